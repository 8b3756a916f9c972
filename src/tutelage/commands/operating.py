"""Operating the service from the command line: legal holds, the sweep, and a decision made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.commands.base import HERE, JsonOption, RootOption, app, emit, group, known_root, root_at, say
from tutelage.core.artifact import Root
from tutelage.core.errors import NotFound, UsageError

if TYPE_CHECKING:
    from tutelage.store.engine import Store

hold_app = group("hold", "Legal holds: whose words are kept, whatever retention and erasure say.")

OPERATOR = "operator"
"""Who acts at a command line, as the ledger names them."""


@contextmanager
def _store(path: Path, writable: bool = True) -> Iterator[tuple[Store, Root]]:
    """The store of a root that has one."""
    from tutelage.store import engine

    where = root_at(path)
    if not engine.exists(where):
        raise NotFound("there is no store", file=where.store_path)
    with engine.open(where, writable=writable) as store:
        yield store, where


@hold_app.command("place")
def place(
    kind: Annotated[str, typer.Argument(help="subject (a user as traffic names them), conversation or tenant.")],
    name: Annotated[str, typer.Argument(help="Whose: the subject, the conversation's id in the store, the tenant.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept for good and named wherever the hold keeps something.")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Keep somebody's words: neither the sweep nor `erase` takes them out until the hold is lifted."""
    from tutelage.store import retention

    with _store(root) as (store, _):
        id = retention.place(store, kind, name, reason, OPERATOR)
    emit({"hold": id}) if as_json else say(f"{id}  {kind} {name}: {reason}")


@hold_app.command("lift")
def lift(
    id: Annotated[str, typer.Argument(help="The hold, as `tutelage hold list` names it.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept for good.")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """End a legal hold: what is too old goes with the next sweep."""
    from tutelage.store import retention

    with _store(root) as (store, _):
        retention.lift(store, id, OPERATOR, reason)
    emit({"lifted": id}) if as_json else say(f"lifted {id}")


@hold_app.command("list")
def list_holds(
    every: Annotated[bool, typer.Option("--all", help="Those that were lifted, too.")] = False,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """The legal holds in force."""
    from tutelage.store import retention

    with _store(root, writable=False) as (store, _):
        found = retention.holds(store, lifted=every)
    if as_json:
        return emit([vars(each) for each in found])
    for each in found:
        say(f"{each.id}  {each.kind} {each.name}: {each.reason}{'' if each.lifted_at is None else '  (lifted)'}")
    if not found:
        say("no legal hold is in force")


@app.command()
def sweep(
    days: Annotated[
        float | None, typer.Option(min=0.01, help="Take out words older than so many days; else as service.yaml says.")
    ] = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Take out the words of requests that are older than service.yaml keeps them, as a running service does."""
    from tutelage.store import retention, review
    from tutelage.store.engine import now
    from tutelage.web.settings import read_settings

    with _store(root) as (store, where):
        given = read_settings(where).retention
        wanted = given.days if days is None else days
        if not wanted and not given.vault_hours:
            todo = "Give --days, or `retention: {days: N}` in service.yaml"
            raise UsageError("nothing says how long words are kept", todo=todo)
        hours = given.vault_hours
        forgotten = review.vault_expire(store, now() - int(3_600_000 * hours)) if hours else 0
        found = retention.Swept(0, 0, {})
        if wanted:
            found = retention.sweep(store, now() - int(86_400_000 * wanted), OPERATOR)
        remains = store.forget()
    if as_json:
        return emit({**vars(found), "placeholders": forgotten, "remains": remains})
    say(f"gone:  {found.texts} texts of {found.requests} requests; what {forgotten} placeholders stood for")
    for why, count in found.kept.items():
        say(f"kept:  {count} requests under a legal hold ({why})")
    if remains:
        say(remains)


@app.command()
def replay(
    decision: Annotated[str, typer.Argument(help="The id of a decision, or of a request: then all its decisions.")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Make a decision of the service again, offline: same policy, same guards, same input. Says same, or what differs.

    Ends with 0 where all are the same, 1 where one differs, 2 where something is not here any more.
    """
    from tutelage.govern.replay import replay as again
    from tutelage.store import engine, traffic

    where = known_root(root)
    if not engine.exists(where):
        raise NotFound("there is no store", file=where.store_path)
    with engine.open(where, writable=False) as store:
        ids = [each.id for each in traffic.decisions(store, requests=[decision])] or [decision]
        found = [again(store, where, each) for each in ids]
    if as_json:
        emit([each.model_dump(mode="json") for each in found])
    for each in [] if as_json else found:
        now = f" -> {each.after}" if each.after is not None else ""
        say(f"{each.decision}  {each.outcome}  {each.before}{now}  policy {each.policy[:16] or 'none'}")
        for title, lines in (("differs", each.differs), ("missing", each.missing), ("note", each.notes)):
            for line in lines:
                say(f"  {title}: {line}")
    if any(each.outcome == "differs" for each in found):
        raise typer.Exit(1)
    if any(each.outcome == "missing" for each in found):
        raise typer.Exit(2)
