"""Serving: talk to a model, start the service, and work off the runs that were asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.commands.base import (
    HERE,
    JsonOption,
    RootOption,
    app,
    emit,
    environment,
    environment_defaults,
    known_root,
    open_ref,
    root_at,
    say,
    sink_of_lines,
)
from tutelage.core.artifact import Root
from tutelage.core.config import nearest
from tutelage.core.errors import NotFound, UsageError


def _lines() -> Iterator[str]:
    """What a person types, until an empty line or the end of the input."""
    while True:
        try:
            line = input("you> ") if sys.stdin.isatty() else sys.stdin.readline()
        except EOFError:
            return
        if not line.strip():
            return
        yield line.strip()


@app.command()
def chat(
    ref: Annotated[str, typer.Argument(help="model:3fa9, a section of the last run, release:current, a URL ...")],
    root: RootOption = HERE,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest word.")] = 0.0,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 96,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model, line by line; an empty line ends. `release:current` answers through its guards.

    Where a line was not answered (the conversation outgrew the model's context, say), the exit code is 1.
    """
    from tutelage.core.records import Example, Message
    from tutelage.generate.generator import Generator, Sampling, let_go

    generator = open_ref(root, ref)
    if not isinstance(generator, Generator):
        what = (
            "is a judge: it gives verdicts on texts and answers none" if hasattr(generator, "judge") else "answers none"
        )
        raise UsageError(f"{ref!r} {what}", todo="Name a model, a bundle, a release or a URL")
    turns: list[Message] = []
    failed = False
    for text in _lines():
        turns.append(Message(role="user", content=text))
        sampling = Sampling(max_tokens=tokens, temperature=temperature)
        response = generator.generate([Example(messages=tuple(turns))], sampling)[0][0]
        turns.append(response.message)
        if response.finish == "error":
            failed = True
            turns.clear()
        if as_json:
            emit(response.model_dump(mode="json"))
            continue
        mark = {
            "blocked": " [withheld by a guard]",
            "error": f" [{response.error or 'no answer'}; a new conversation begins]",
        }
        say(f"model> {response.message.content}{mark.get(response.finish, '')}")
    let_go(generator)
    if failed:
        raise typer.Exit(1)


@app.command()
def serve(
    root: RootOption = HERE,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default 8420.")] = None,
    upstream: Annotated[str | None, typer.Option(help="Guard this OpenAI-compatible URL instead of a release.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Begin an empty life, before there is a model.")] = False,
) -> None:
    """Start the guarded OpenAI-compatible service and the console on one port."""
    from tutelage.web.app import serve as serve_app

    if not root.is_dir() and not upstream and not new:
        beside = root.parent if root.parent.is_dir() else Path()
        near = nearest(root.name, [each.name for each in beside.iterdir() if (each / "artifacts").is_dir()])
        todo = f"Did you mean --root {beside / near}? " if near else ""
        todo += "--new begins an empty one, to ask people; --upstream URL guards an endpoint that you have"
        raise NotFound("there is no life here yet", file=root, todo=todo)
    serve_app(root_at(root).create(), host=host, port=port, upstream=upstream, environment=environment())


@app.command()
def worker(
    root: RootOption = HERE,
    once: Annotated[bool, typer.Option("--once", help="End when nothing waits.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the runs that were asked for, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make what was asked for with `tutelage run RECIPE --later` or at the console, one after the other."""
    from tutelage import life
    from tutelage import worker as workers
    from tutelage.terminal import Terminal

    if listing:
        return _list_runs(known_root(root), as_json)
    ended: list[dict[str, Any]] = []

    def heard(job: Any, text: str) -> None:
        ended.append({"job": job.id, "end": text})
        if not as_json:
            say(f"{job.id}  {text}")

    with life.interruptible() as stop:
        given: Any = {"once": once, "defaults": environment_defaults(), "stop": stop, "heard": heard}
        if as_json:
            workers.work(root_at(root), sinks=(sink_of_lines,), **given)
            return emit({"runs": ended})
        with Terminal() as terminal:
            workers.work(root_at(root), sinks=(terminal,), **given)


def _list_runs(root: Root, as_json: bool) -> None:
    from tutelage.worker import asked

    found = asked(root)
    if as_json:
        return emit(
            [{"job": each.id, "state": each.state, "error": each.error, "result": each.result} for each in found]
        )
    for each in found:
        say(f"{each.id}  {each.state:<9}{each.attempts} tries  {each.error or ''}".rstrip())
    if not found:
        say("no run was asked for")
