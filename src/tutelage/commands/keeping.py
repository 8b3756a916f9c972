"""Keeping house: the store and its ledger, erasing a person, clearing up, stopping, and what this machine can do."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.commands.base import (
    HERE,
    JsonOption,
    RootOption,
    app,
    emit,
    environment_defaults,
    group,
    known_root,
    root_at,
    say,
    tell,
)
from tutelage.core.artifact import Root
from tutelage.core.errors import CorruptArtifact, NotFound, UsageError, install

store_app = group("store", "Back up, restore and check what people said.")
audit_app = group("audit", "Answers to an auditor.")


@store_app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.")], root: RootOption = HERE, as_json: JsonOption = False
) -> None:
    """Copy the store, be it in SQLite or PostgreSQL, into a file while others use it, and check the copy."""
    from tutelage.store.backup import backup as copy

    size = copy(root_at(root), file)
    if as_json:
        return emit({"backup": str(file), "bytes": size})
    say(f"{file}  {size:,} bytes, whole\nKeep {root / 'secret.key'} too, elsewhere: it opens profiles and the vault.")


@store_app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="What `store backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of the store that is there.")] = False,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the place of the store; what was there is kept beside it."""
    from tutelage.store import engine
    from tutelage.store.backup import restore as put_back

    kept = put_back(root_at(root), file, replace)
    found = {"restored": str(engine.location(root_at(root))), "kept": str(kept) if kept else None}
    tell({name: value for name, value in found.items() if value or as_json}, as_json)


@store_app.command("check")
def check(root: RootOption = HERE, as_json: JsonOption = False) -> None:
    """Check that the store can be read, its append-only rules and the chain of its ledger."""
    from tutelage.store import engine
    from tutelage.store.backup import check_root

    where = root_at(root)
    if not engine.exists(where):
        raise NotFound("there is no store", file=where.store_path)
    if faults := check_root(where):
        todo = "Restore it from a backup"
        raise CorruptArtifact(f"{len(faults)} faults: {faults[0]}", file=engine.location(where), todo=todo)
    _verify(where, "", 0, as_json)


@audit_app.command("verify")
def verify(
    head: Annotated[str, typer.Option(help="A hash noted earlier: it must still stand in the chain.")] = "",
    at_least: Annotated[int, typer.Option("--at-least", min=0, help="A number of rows noted earlier.")] = 0,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Walk the ledger of official acts: every row's hash must follow from its words and the row before."""
    from tutelage.store import engine

    where = root_at(root)
    if not engine.exists(where):
        raise NotFound("there is no store", file=where.store_path)
    _verify(where, head, at_least, as_json)


def _verify(root: Root, head: str, at_least: int, as_json: bool) -> None:
    from tutelage.govern.audit import verify as walk
    from tutelage.store import engine

    with closing(engine.open(root, writable=False)) as store:
        found = walk(store, head=head, at_least=at_least)
    if not found.ok:
        where = f" at row {found.first_bad}" if found.first_bad is not None else ""
        raise CorruptArtifact(f"the ledger does not hold{where}: {found.reason}", file=engine.location(root))
    if as_json:
        return emit(found.model_dump(mode="json"))
    say(f"the ledger holds: {found.rows} rows\nhead: {found.head or 'none yet'}")
    say("Note the head elsewhere: `tutelage audit verify --head` then finds a ledger that was cut.")


@app.command()
def erase(
    person: Annotated[str, typer.Option("--person", help="One who judged: name or id.")] = "",
    subject: Annotated[str, typer.Option("--subject", help="A user of the service, as traffic names them.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; it cannot be undone.")] = False,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Take one person's words out of the store, and name every model that learned from them."""
    from tutelage.govern.erase import erase as take_out
    from tutelage.store import engine

    if not person and not subject:
        raise UsageError("say whose words are erased", todo="Give --person NAME or --subject ID")
    where = known_root(root)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("this cannot be undone and asks first", todo="Say --yes")
        if not typer.confirm(f"Erase the words of {person or subject} for good?"):
            return say("nothing was erased")
    with closing(engine.open(where)) as store:
        found = take_out(store, where, person=person, subject=subject, by="operator")
    if as_json:
        return emit(found.model_dump(mode="json"))
    account = "the name, the profile and the ways to sign in" if person else "what their placeholders stood for"
    say(f"gone:  {_many(found.texts, 'text')}, {account} of {person or subject}")
    if found.annotations:
        what = "rankings, scores, labels and marks, which hold no words"
        say(f"stays: {_many(found.annotations, 'answer')} ({what}), under the pseudonym {found.person}")
    if found.requests:
        kept = "when, how long, what the guards decided"
        name = f"the user name {subject!r}, as it came with them" if subject else "the account's id"
        say(f"stays: {_many(found.requests, 'request')} without a word ({kept}), under {name}")
    for why, count in found.kept.items():
        say(f"kept:  {_many(count, 'request')} as they are, under a legal hold ({why})")
    for ref in found.artifacts:
        say(f"learned from them: {ref[:40]}")
    say("Backups that were made before still hold them.")
    if found.remains:
        say(found.remains)
    if found.live:
        say("One of these answers now: make it anew, or `tutelage release rollback`.")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@app.command()
def stop(root: RootOption = HERE, as_json: JsonOption = False) -> None:
    """Ask a running life to stop; it ends within seconds and goes on with the same command."""
    where = known_root(root)
    (where.path / "stop").touch()  # a life that begins later heeds no earlier mark
    busy = where.busy()
    told = "asked to stop" if busy else "no stage is at work here; a life that plans or waits stops before its next"
    emit({"asked": True, "busy": busy}) if as_json else say(told)


@app.command()
def gc(
    root: RootOption = HERE,
    keep: Annotated[int, typer.Option(min=0, help="Keep so many of each stage's newest as well.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts that neither the last run, nor a release, nor the newest of each stage was made from."""
    from tutelage.life import collect_garbage

    gone, kept = collect_garbage(known_root(root), keep=keep, dry_run=dry_run)
    if as_json:
        return emit({"removed": gone, "kept": kept, "dry_run": dry_run})
    does = "would remove" if dry_run else "removed"
    for ref in gone:
        kind, _, id = ref.partition(":")
        say(f"{does} {kind}:{id[:12]}")
    say(f"{does} {len(gone)} of {len(gone) + kept} artifacts")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine and this installation can do."""
    import importlib.metadata as metadata
    import platform

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB",
        "gpu": _gpu(),
        "engine": _engine(),
        "TUTELAGE_DATA": environment_defaults().get("mirror", "not set: public sets come from the Hugging Face hub"),
    }
    for name in ("tutelage", "torch", "transformers", "tokenizers", "pydantic", "sqlalchemy", "fastapi"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    extras = {name: all(map(_there, modules)) for name, (modules, _) in EXTRAS.items()}
    if as_json:
        return emit({**found, "extras": extras})
    for name, value in found.items():
        say(f"{name:<14}{value if value is not None else 'not installed'}")
    for name, there in extras.items():
        state = "installed" if there else f"absent; {install(name)}"
        say(f"{f'[{name}]':<14}{EXTRAS[name][1]}: {state}")


EXTRAS = {
    "train": (("torch", "openai"), "to train, examine and serve a model of one's own"),
    "hf": (("huggingface_hub", "datasets", "transformers"), "models and sets of the hub"),
    "gguf": (("gguf",), "export for llama.cpp"),
    "otel": (("opentelemetry.sdk",), "spans of requests"),
    "postgres": (("psycopg",), "a store in PostgreSQL"),
}
"""Extra -> the modules that it brings, and what for."""


def _there(module: str) -> bool:
    """Whether a module is installed; of one inside a package that is not there, no."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _gpu() -> str:
    """The graphics cards that torch can use."""
    if find_spec("torch") is None:
        return "unknown without torch"
    from tutelage.train.device import cards

    return ", ".join(cards()) or "none"


def _engine() -> str:
    """What makes the steps of the engine on the processor."""
    from tutelage.model.library import identity

    made = identity()
    return "torch (a C compiler makes it faster)" if made == "torch" else f"built in C for this processor ({made})"
