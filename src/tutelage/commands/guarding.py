"""Guards and their policy: scan texts, train, stand before another's model; check, compare and replay a policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.commands.base import (
    HERE,
    JsonOption,
    RootOption,
    alone,
    artifact_of,
    emit,
    environment,
    group,
    known_root,
    root_at,
    say,
)
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import DataError, NotFound, UsageError

guard_app = group("guard", "Scan texts, train guards, and put them before a model.")
policy_app = group("policy", "Check, compare and replay a safety policy.")

OnOption = Annotated[
    str | None, typer.Option("--on", help="Whose guards: a bundle, a section of the last run, or release:current.")
]


def _bundle(root: Root, ref: str | None) -> Artifact:
    """The bundle that is meant: the named one, else what is served, else the draft of the last run."""
    if ref is not None:
        found = artifact_of(root, ref)
    else:
        try:
            found = artifact_of(root, "release:current")
        except NotFound:
            found = artifact_of(root, "bundle")
    if found.kind != "bundle":
        raise UsageError(f"{found.ref[:24]} is of kind {found.kind}, wanted bundle", key="--on")
    return found


# guard


@guard_app.command("scan")
def scan(
    file: Annotated[
        Path | None, typer.Argument(help="JSON lines or plain text, a row a line; stdin when left out.")
    ] = None,
    on: OnOption = None,
    tenant: Annotated[str, typer.Option(help="Whose overrides of the policy hold.")] = "",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Say what the policy decides on texts, one line each; nothing is generated and nothing kept.

    A row is a plain text, or JSON with `text` or `messages`, and perhaps `id` and `answer`. In a file whose name ends
    in .jsonl, or whose first row begins with `{` or `[`, all rows are JSON.
    """
    from tutelage.guard.opened import open_parts

    where = known_root(root)
    scanner = open_parts(_bundle(where, on), where).scanner
    for row, (name, messages, answer) in enumerate(_rows(file), 1):
        line = scanner.scan(messages, answer, tenant=tenant).line(name or str(row))
        if as_json:
            emit(line)
            continue
        top = max(line["scores"].items(), key=lambda pair: pair[1], default=None)
        shown = f"{top[0]} {top[1]:.3f}" if top else ""
        say(f"{line['id']:<12}{line['decision']:<9}{shown:<28}{'; '.join(line['reasons'])}".rstrip())


def _rows(file: Path | None) -> Iterator[tuple[str, Any, str | None]]:
    """(id, messages, answer) of each line, read one by one; nothing but a line feed ends a line.

    Raises DataError naming file, row and key; NotFound.
    """
    from pydantic import TypeAdapter, ValidationError

    from tutelage.core.records import Message, explain

    reader = TypeAdapter(tuple[Message, ...])
    if file is not None and not file.is_file():
        raise NotFound("no such file", file=file)
    name = str(file) if file is not None else "stdin"
    as_json = file is not None and file.suffix in (".jsonl", ".ndjson")
    first = True
    for number, line in _lines(file):
        if first:
            as_json, first = as_json or line.lstrip().startswith(("{", "[")), False
        if not as_json and not line.lstrip().startswith("{"):
            yield "", (Message(role="user", content=line),), None
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", file=name, row=number) from None
        if not isinstance(row, dict):
            raise DataError("a row is a JSON object with `text` or `messages`", file=name, row=number)
        answer = row.get("answer")
        if answer is not None and not isinstance(answer, str):
            raise DataError("an answer is a text", file=name, row=number, key="answer")
        if isinstance(row.get("text"), str):
            yield str(row.get("id", "")), (Message(role="user", content=row["text"]),), answer
            continue
        if "messages" not in row:
            raise DataError("a row has `text` or `messages`", file=name, row=number)
        try:
            yield str(row.get("id", "")), reader.validate_python(row["messages"]), answer
        except ValidationError as error:
            key, message = explain(error)
            raise DataError(message, file=name, row=number, key=f"messages.{key}") from None


def _lines(file: Path | None) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank. Raises DataError for bytes that are no text."""
    with file.open("rb") if file is not None else nullcontext(sys.stdin.buffer) as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                why = f"not UTF-8 text ({error.reason} at byte {error.start} of the row)"
                raise DataError(why, file=file or "stdin", row=number) from None
            if text.strip():
                yield number, text


@guard_app.command("train")
def train(
    file: Annotated[Path, typer.Argument(help="JSON lines with `text` and a number 0 to 1 for each category.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value of the stage `classifier`.")] = None,
    categories: Annotated[
        list[str] | None, typer.Option("--category", help="A field that is a category; as many as you like.")
    ] = None,
    direction: Annotated[str, typer.Option(help="input: what users write; output: what models answer.")] = "input",
    licence: Annotated[str, typer.Option(help="Licence class of the file.")] = "not-stated",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Train, calibrate and certify a guard on labelled texts of your own."""
    from tutelage.core.config import parse_overrides
    from tutelage.report.markdown import figure

    if direction not in ("input", "output"):
        raise UsageError(f"direction is input or output, found {direction!r}", key="--direction")
    if not file.is_file():
        raise NotFound("no such file", file=file)
    named = categories or _categories(file)
    role = "user" if direction == "input" else "assistant"
    labelled = {"kind": "labels", "direction": direction, "role": role, "categories": {n: f"{{{n}}}" for n in named}}
    source = {"source": f"file:{file}", "licence": licence, "form": labelled}
    corpus = alone("prepare", {"sources": [source]}, root, as_json)
    made = alone("classifier", {"labels": [corpus.ref], **parse_overrides(settings or [])}, root, as_json)
    if as_json:
        return emit({"classifier": made.ref, "metrics": made.metrics})
    if heads := made.metrics.get("heads"):
        say(
            f"{'head':<24}{'texts':>7}{'of it':>7}  {'average precision':<20}{'found at 1% false alarms':<26}"
            "certified: at most"
        )
    for name, found in (heads or {}).items():
        at = found.get("at_0.01") or {}
        known = f"{figure(found.get('average_precision')):<20}{figure(at.get('recall')):<26}{figure(at.get('bound'))}"
        say(f"{name:<24}{found.get('n', 0):>7}{found.get('positives', 0):>7}  {known}")
    for name, why in (made.metrics.get("left_out") or {}).items():
        say(f"{name:<28}left out: {why}")
    say(made.ref)


def _categories(file: Path) -> list[str]:
    """The fields of the first row that hold a number from 0 to 1. Raises DataError when there is none."""
    with file.open(encoding="utf-8") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=file, row=1) from None
    named = [k for k, v in row.items() if isinstance(v, int | float) and 0 <= v <= 1] if isinstance(row, dict) else []
    if not named:
        raise DataError("no field holds a number from 0 to 1", file=file, row=1, todo="Name fields with --category")
    return named


@guard_app.command("up")
def up(
    upstream: Annotated[str, typer.Argument(help="The OpenAI-compatible URL to guard: https://host/v1#model")],
    on: OnOption = None,
    root: RootOption = HERE,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default 8420.")] = None,
) -> None:
    """Stand before another's model: its answers leave through these guards (personal data alone, without any)."""
    from tutelage.web.app import serve

    where = root_at(root).create()
    bundle = _bundle(where, on).ref if on is not None else None
    serve(where, host=host, port=port, upstream=upstream, bundle=bundle, environment=environment())


# policy


def _file(root: Path, ref: str) -> tuple[Any, Any]:
    """A policy and its taxonomy, from a file, or from a bundle by its reference."""
    from tutelage.core.config import build, load_yaml
    from tutelage.guard.bundle import policy_path
    from tutelage.guard.policy import PolicyFile, Taxonomy

    path = policy_path(ref)
    if not path.is_file() and not ref.endswith((".yaml", ".yml")):
        path = _bundle(known_root(root), ref).file("policy.yaml")
    file = build(PolicyFile, load_yaml(path), file=path)
    beside = path.parent / file.taxonomy
    return file, build(Taxonomy, load_yaml(beside), file=beside)


def _bound(file: Any, taxonomy: Any, judges: Any, path: str) -> Any:
    """A policy bound to guards. Raises ConfigError where it names what they cannot keep."""
    from tutelage.guard.opened import guard_of
    from tutelage.guard.policy import Policy
    from tutelage.judge.classifier import ClassifierJudge

    guards = [guard_of(judge) for judge in judges.values() if isinstance(judge, ClassifierJudge)]
    return Policy(file, taxonomy, guards, path=Path(path))


@policy_app.command("check")
def check(
    policy: Annotated[str, typer.Argument(help="A policy file, `starter`, or a bundle.")],
    on: OnOption = None,
    tenant: Annotated[str, typer.Option(help="Whose overrides hold.")] = "",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Check a policy: its form, and with `--on` what these guards can keep of it, surface by surface."""
    from tutelage.core.config import nearest
    from tutelage.core.errors import ConfigError
    from tutelage.guard.opened import open_parts

    file, taxonomy = _file(root, policy)
    for rule in file.rules:
        if rule.category and rule.category not in taxonomy.categories:
            near = nearest(rule.category, taxonomy.categories)
            todo = f"Did you mean {near!r}?" if near else f"Known: {', '.join(sorted(taxonomy.categories))}"
            raise ConfigError(
                f"the taxonomy has no category {rule.category!r}", file=policy, key=f"rules.{rule.id}", todo=todo
            )
    if tenant and tenant not in file.tenants:
        raise UsageError(f"the policy names no tenant {tenant!r}", key="--tenant")
    if on is None:
        found = {"rules": len(file.rules), "tenants": sorted(file.tenants), "guards": None}
        return emit(found) if as_json else say(f"{len(file.rules)} rules, well formed; `--on bundle` checks its guards")
    where = known_root(root)
    bound = _bound(file, taxonomy, open_parts(_bundle(where, on), where).scanner.judges, policy)
    rows = bound.coverage(tenant=tenant)
    if as_json:
        return emit({"policy": bound.hash, "coverage": rows})
    surfaces: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        rules = ", ".join(row["rules"]) or "NOT GUARDED"
        surfaces.setdefault((row["direction"], row["channel"], rules), []).append(row["surface"])
    every = {row["surface"] for row in rows}
    say(f"{'direction':<11}{'channel':<13}{'surfaces':<24}rules")
    for (direction, channel, rules), named in surfaces.items():
        say(f"{direction:<11}{channel:<13}{'all' if set(named) == every else ', '.join(named):<24}{rules}")


@policy_app.command("diff")
def diff(
    old: Annotated[str, typer.Argument(help="A policy file, `starter`, or a bundle.")],
    new: Annotated[str, typer.Argument(help="Another one.")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Say what differs between two policies, and whether it withholds more or less."""
    from tutelage.guard.compare import changes

    (before, one), (after, two) = _file(root, old), _file(root, new)
    found = changes(before, after, one, two)
    if as_json:
        return emit([each.model_dump(mode="json") for each in found])
    for each in found:
        mark = "" if each.way == "other" else f"  ({each.way})"
        say(f"{each.where}: {json.dumps(each.before)} -> {json.dumps(each.after)}{mark}")
    if not found:
        say("no difference")


@policy_app.command("replay")
def replay(
    policy: Annotated[str, typer.Argument(help="The new policy: a file, `starter`, or a bundle.")],
    file: Annotated[Path | None, typer.Option("--rows", help="Rows as `guard scan` reads them, not traffic.")] = None,
    on: OnOption = None,
    last: Annotated[int, typer.Option(min=1, help="So many of the newest requests.")] = 1000,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's requests.")] = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Decide again on recorded requests under a new policy, with the guards that are there, and say what changes.

    Recorded requests hold no personal data any more, so rules on it have nothing to find in them.
    """
    from tutelage.guard.compare import Spoken
    from tutelage.guard.compare import replay as decide_again
    from tutelage.guard.opened import open_parts
    from tutelage.guard.scan import Scanner
    from tutelage.store import engine, traffic

    where = known_root(root)
    parts = open_parts(_bundle(where, on), where)
    new = Scanner(_bound(*_file(root, policy), parts.scanner.judges, policy), parts.scanner.judges)
    if file is not None:
        spoken = [Spoken(n or str(row), m, a, tenant=tenant or "") for row, (n, m, a) in enumerate(_rows(file), 1)]
    else:
        with closing(engine.open(where, writable=False)) as store:
            kept = traffic.requests(store, tenant=tenant, newest_first=True, limit=last)
        surfaces: Any = {each.id: each.surface for each in kept}
        spoken = [
            Spoken(each.id, each.messages, each.answer.content if each.answer else None, surfaces[each.id], each.tenant)
            for each in kept
            if each.messages
        ]
    found = decide_again(parts.scanner, new, spoken)
    if as_json:
        return emit(found.model_dump(mode="json"))
    if not found.n:
        return say("no request was recorded here")
    for name, count in found.table.items():
        say(f"{name:<24}{count:>8}")
    share = found.share
    say(f"{found.changed} of {found.n} decided otherwise: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]")
    for each in found.moved[:20]:
        say(f"  {each.id}  {each.before} -> {each.after}  {'; '.join(each.reasons)}".rstrip())
