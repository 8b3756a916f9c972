"""Guards and their policy: scan texts, train, stand before another's model; check, compare and replay a policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

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
    say_error,
    typed,
)
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import DataError, NotFound, UsageError

guard_app = group("guard", "Scan texts, train guards, and put them before a model.")
policy_app = group("policy", "Check, compare and replay a safety policy.")

OnOption = Annotated[
    str | None, typer.Option("--on", help="Whose guards: a bundle, a section of the last run, or release:current.")
]
GuardOption = Annotated[
    str | None,
    typer.Option(
        "--guard", "--on", help="Which guards: a bundle, a section of the last run, release:current, or `rules` alone."
    ),
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
    file: Annotated[Path | None, typer.Argument(help="JSON lines or plain text, a row a line; `-` is stdin.")] = None,
    guard: GuardOption = None,
    tenant: Annotated[str, typer.Option(help="Whose overrides of the policy hold.")] = "",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Say what the policy decides on texts, one JSON line for each; nothing is generated and nothing kept.

    A row is a plain text, or JSON with `text` or `messages`, and perhaps `id` and `answer`. In a file whose name ends
    in .jsonl, or whose first row begins with `{` or `[`, all rows are JSON. What does not read is named by its row on
    stderr, the rest goes on, and the exit code is 2.
    """
    scanner = _scanner(root, guard)
    bad = total = 0
    for row in _rows(None if file == Path("-") else file):
        total += 1
        if isinstance(row, DataError):
            bad += 1
            say_error(row)
            continue
        emit(scanner.scan(row.messages, row.answer, tenant=tenant).line(row.id))
    if bad:
        raise DataError(f"{bad} of {total} rows could not be read", file=str(file or "stdin"))


def _scanner(root: Path, guard: str | None) -> Any:
    """The guards that are meant: those named, else what is served, else the draft of the last run, else rules alone."""
    from tutelage.guard.opened import alone as by_itself
    from tutelage.guard.opened import bare, open_parts
    from tutelage.judge.classifier import ClassifierJudge

    found = None
    if guard != "rules" and (guard is not None or (root / "artifacts").is_dir()):
        where = known_root(root)
        found = _served(where) if guard is None else artifact_of(where, guard)
    if found is None:
        return bare()
    if found.kind == "classifier":
        return by_itself(ClassifierJudge(found.verified().path))
    if found.kind != "bundle":
        raise UsageError(f"{found.ref[:24]} is of kind {found.kind}, wanted bundle or classifier", key="--guard")
    return open_parts(found, known_root(root)).scanner


def _served(root: Root) -> Artifact | None:
    """The bundle of the live release, else of the last run; None without one."""
    for ref in ("release:current", "bundle"):
        with suppress(NotFound):
            return artifact_of(root, ref)
    return None


class Row(NamedTuple):
    """One row to scan."""

    id: str
    messages: Any
    answer: str | None = None


def _rows(file: Path | None) -> Iterator[Row | DataError]:
    """Each line that is not blank, read one by one; nothing but a line feed ends a line. What does not read is given as
    the error that names file, row and key. Raises NotFound."""
    if file is not None and not file.is_file():
        raise NotFound("no such file", file=file)
    as_json, first = file is not None and file.suffix in (".jsonl", ".ndjson"), True
    for number, line in _lines(file):
        if first and isinstance(line, str):
            as_json, first = as_json or line.lstrip().startswith(("{", "[")), False
        try:
            if isinstance(line, DataError):
                raise line
            plain = not as_json and not line.lstrip().startswith("{")
            yield Row(str(number), (_user(line),)) if plain else _row(line, number, str(file or "stdin"))
        except DataError as error:
            yield error


def _user(text: str) -> Any:
    from tutelage.core.records import Message

    return Message(role="user", content=text)


def _row(line: str, number: int, name: str) -> Row:
    """A row of JSON. Raises DataError."""
    from pydantic import TypeAdapter, ValidationError

    from tutelage.core.records import Message, explain

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", file=name, row=number) from None
    if not isinstance(row, dict):
        raise DataError("a row is a JSON object with `text` or `messages`", file=name, row=number)
    answer, id_ = row.get("answer"), str(row.get("id") or number)
    if answer is not None and not isinstance(answer, str):
        raise DataError("an answer is a text", file=name, row=number, key="answer")
    if isinstance(row.get("text"), str):
        return Row(id_, (_user(row["text"]),), answer)
    if "messages" not in row:
        raise DataError("a row has `text` or `messages`", file=name, row=number)
    try:
        return Row(id_, TypeAdapter(tuple[Message, ...]).validate_python(row["messages"]), answer)
    except ValidationError as error:
        key, message = explain(error)
        raise DataError(message, file=name, row=number, key=f"messages.{key}") from None


def _lines(file: Path | None) -> Iterator[tuple[int, str | DataError]]:
    """(number, text) of each line that is not blank; an error for bytes that are no text."""
    with file.open("rb") if file is not None else nullcontext(sys.stdin.buffer) as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                why = f"not UTF-8 text ({error.reason} at byte {error.start} of the row)"
                yield number, DataError(why, file=file or "stdin", row=number)
                continue
            if text.strip():
                yield number, text


@guard_app.command("train")
def train(
    file: Annotated[
        Path,
        typer.Argument(help="A recipe (.yaml), or JSON lines with `text` and a number 0 to 1 for each category."),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="stage.key=value of the recipe; of a file, key=value of `classifier`.")
    ] = None,
    categories: Annotated[
        list[str] | None, typer.Option("--category", help="A field that is a category; as many as you like.")
    ] = None,
    direction: Annotated[str, typer.Option(help="input: what users write; output: what models answer.")] = "input",
    licence: Annotated[str, typer.Option(help="Licence class of the file.")] = "not-stated",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Train, calibrate and certify guards: as a recipe says, or on labelled texts of your own."""
    from tutelage.core.config import parse_overrides

    if direction not in ("input", "output"):
        raise UsageError(f"direction is input or output, found {direction!r}", key="--direction")
    if not file.is_file():
        raise NotFound("no such file", file=file)
    if file.suffix in (".yaml", ".yml"):
        return _by_recipe(file, settings or [], root, as_json)
    named = categories or _categories(file)
    role = "user" if direction == "input" else "assistant"
    labelled = {"kind": "labels", "direction": direction, "role": role, "categories": {n: f"{{{n}}}" for n in named}}
    source = {"source": f"file:{file}", "licence": licence, "form": labelled}
    corpus = alone("prepare", {"sources": [source]}, root, as_json)
    made = alone("classifier", {"labels": [corpus.ref], **parse_overrides(settings or [])}, root, as_json)
    if as_json:
        return emit({"classifier": made.ref, "metrics": made.metrics})
    _tell_heads(made)


def _by_recipe(recipe: Path, overrides: list[str], root: Path, as_json: bool) -> None:
    """Run a recipe of guards; it must make a classifier, whose heads are shown."""
    from tutelage.commands.making import run_recipe

    made = run_recipe(recipe, overrides, root, as_json=as_json)
    trained = {name: each for name, each in made.items() if each.kind == "classifier"}
    if not trained:
        raise UsageError("the recipe makes no classifier", file=recipe, todo="Give it a section `classifier`")
    if as_json:
        figures = {name: each.metrics for name, each in trained.items()}
        return emit({"made": {name: each.ref for name, each in made.items()}, "metrics": figures})
    for each in trained.values():
        _tell_heads(each)
    for name in (name for name, each in made.items() if each.kind == "bundle"):
        say(f"Before a model:   {typed()} guard up --upstream https://host/v1#model --guard {name} --root {root}")
        say(f"They decide from: {typed()} guard switch on {name} --reason WHY --root {root}")


def _tell_heads(made: Artifact) -> None:
    from tutelage.report.markdown import figure

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
    url: Annotated[str | None, typer.Argument(help="The OpenAI-compatible URL to guard: https://host/v1#model")] = None,
    upstream: Annotated[str | None, typer.Option(help="The same, as an option.")] = None,
    guard: GuardOption = None,
    root: RootOption = HERE,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default 8420.")] = None,
) -> None:
    """Stand before another's model: its answers leave through these guards; without any, through rules alone.

    Guards trained on people's labels watch and decide nothing until `tutelage guard switch on --reason WHY`.
    Demonstration guards, learned from simulated people, are taken only where `--guard` names them.
    """
    from tutelage.web.app import serve

    if (url is None) == (upstream is None):
        raise UsageError(
            "name one URL to guard", key="--upstream", todo="tutelage guard up --upstream https://host/v1#model"
        )
    where = root_at(root).create()
    bundle: str | None = "rules"
    if guard is not None and guard != "rules":
        bundle = _bundle(where, guard).ref
    elif guard is None and (found := _served(where)) is not None:
        if found.manifest.simulated:
            raise UsageError(
                "the guards here are a demonstration, learned from simulated people", key="--guard",
                todo=f"Name them if you want them all the same (--guard {found.ref[:19]}), or take --guard rules",
            )  # fmt: skip
        bundle = found.ref
    how: Any = {"host": host, "port": port, "upstream": url or upstream, "environment": environment()}
    serve(where, bundle=bundle, new_guards="shadow", **how)


@guard_app.command("switch")
def switch(
    to: Annotated[str | None, typer.Argument(help="on or off; left out: what is switched on.")] = None,
    guard: Annotated[str | None, typer.Argument(help="A bundle; else the one served, or of the last run.")] = None,
    by: Annotated[str, typer.Option(help="Who answers for it.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for those who look later.")] = "",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Let guards decide, or only watch; a service that runs follows. The console's page `/operate` does the same."""
    from tutelage.guard.opened import open_parts
    from tutelage.store import standings
    from tutelage.store.engine import open as open_store

    where = known_root(root)
    if to not in (None, "on", "off"):
        raise UsageError(f"switch on or off, found {to!r}", key="TO")
    with open_store(where) as store:
        if to is not None:
            for one in open_parts(_bundle(where, guard), where).scanner.policy.guards:
                standings.switch(store, one.name, "on" if to == "on" else "shadow", reason=reason, by=by or "operator")
        latest = {each.what: each for each in standings.guard_events(store)}
    if as_json:
        return emit([{"guard": n, "on": e.event == "on", "by": e.by, "reason": e.reason} for n, e in latest.items()])
    for name, each in latest.items():
        say(f"{name}  {'on' if each.event == 'on' else 'off':<4}{each.by}  {each.reason}".rstrip())
    if not latest:
        say("nothing was switched on: trained guards before an upstream watch and decide nothing")


# policy


def _file(root: Path, ref: str) -> tuple[Any, Any]:
    """A policy and its taxonomy, from a file, or from a bundle by its reference."""
    from tutelage.core.config import build, load_yaml
    from tutelage.guard.bundle import policy_path
    from tutelage.guard.written import PolicyFile, Taxonomy

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
    from tutelage.guard.coverage import coverage, table
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
    rows = coverage(bound, tenant=tenant)
    if as_json:
        return emit({"policy": bound.hash, "coverage": rows})
    for line in table(rows):
        say(line)


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
    since: Annotated[
        str | None, typer.Option(help="Only requests since then: 90m, 24h, 7d ago, or 2026-11-01 (UTC).")
    ] = None,
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
    if file is not None and since:
        raise UsageError("--since chooses among recorded requests, --rows takes others", key="--since")
    if file is not None:
        spoken = [Spoken(r.id, r.messages, r.answer, tenant=tenant or "") for r in map(_whole, _rows(file))]
    else:
        with closing(engine.open(where, writable=False)) as store:
            begin = _since(since) if since else 0
            kept = traffic.requests(store, since=begin, tenant=tenant, newest_first=True, limit=last)
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
    if found.categories:
        say(f"{'fired on':<24}{'before':>8}{'after':>8}{'no more':>9}{'newly':>7}")
    for name, fired in found.categories.items():
        say(f"{name:<24}{fired.before:>8}{fired.after:>8}{fired.gone:>9}{fired.new:>7}")
    share = found.share
    say(f"{found.changed} of {found.n} decided otherwise: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]")
    for each in found.moved[:20]:
        say(f"  {each.id}  {each.before} -> {each.after}  {'; '.join(each.reasons)}".rstrip())


def _whole(row: Row | DataError) -> Row:
    if isinstance(row, DataError):
        raise row
    return row


def _since(text: str) -> int:
    """Milliseconds since 1970 of `24h` (ago) or of a day. Raises UsageError."""
    from datetime import UTC, datetime

    from tutelage.store.keys import now

    seconds = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}.get(text[-1:])
    try:
        if seconds and text[:-1].isdigit():
            return max(0, now() - int(text[:-1]) * seconds * 1000)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(f"no time: {text!r}", key="--since", todo="As in 24h, 7d or 2026-11-01") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
