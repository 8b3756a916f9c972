"""Looking: what was made, from what, what it can do, and what is learned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.commands.base import HERE, JsonOption, RootOption, app, artifact_of, emit, known_root, root_at, say
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import CorruptArtifact

if TYPE_CHECKING:
    from tutelage.evaluate.systems import System


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Argument(help="One kind only: model, corpus, release ...")] = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts of a life."""
    damaged: list[CorruptArtifact] = []
    from tutelage.life import made_last

    where = known_root(root)
    found = where.list(kind, damaged)
    sections: dict[str, list[str]] = {}
    for section, ref in made_last(where).items():
        sections.setdefault(ref, []).append(section)
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "ref": each.ref,
                "stage": each.manifest.stage,
                "sections": sections.get(each.ref, []),
                "made": each.manifest.made,
            }
            for each in found
        ]
        emit([*rows, *(error.as_dict() for error in damaged)])
        return
    for each in found:
        made, name = each.manifest.made, f"{each.kind}:{each.id[:12]}"
        mine = ", ".join(sections.get(each.ref, [])) or f"({each.manifest.stage})"
        say(f"{name:<28}{mine:<22}{made.get('at', '')}  {made.get('seconds')} s")
    if not found and not damaged:
        what = f"nothing of kind {kind!r}" if kind else "nothing"
        say(f"{what} has been made here yet; `tutelage run recipes/starter.yaml --root {root}` makes a whole life")
    for error in damaged:
        say(f"damaged: {error}")


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="An artifact (`model:3fa9`) or a section of the last run (`finetune`).")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show one artifact: where it comes from, its settings, its figures; every file is checked against its hash."""
    artifact = artifact_of(known_root(root), ref)
    artifact.verify()
    manifest = artifact.manifest
    if as_json:
        emit({"ref": artifact.ref, "path": str(artifact.path), **manifest.model_dump(mode="json")})
        return
    import yaml

    from tutelage.report.markdown import figure
    from tutelage.report.pages import dotted
    from tutelage.terminal import figure as short

    marks = ", ".join(manifest.licences) or "none stated"
    say(f"{artifact.ref}\n  {artifact.path}\n  licences: {marks}{'; simulated people' if manifest.simulated else ''}")
    if manifest.metrics:
        say("metrics:")
        for name, value in dotted(manifest.metrics).items():
            say(f"  {name:<40}{figure(value, n=True) if isinstance(value, Mapping) else short(value)}")
    for title, part in (("inputs", manifest.inputs), ("config", manifest.config)):
        if part:
            text = yaml.safe_dump(part, sort_keys=False, allow_unicode=True).rstrip()
            say(f"{title}:\n  " + text.replace("\n", "\n  "))
    say("files (all match their hashes):")
    for name, entry in manifest.files.items():
        say(f"  {name:<40}{entry.bytes:>12,} bytes")


@app.command()
def lineage(
    ref: Annotated[str, typer.Argument(help="An artifact, a section of the last run, or release:current.")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Print where an artifact comes from, down to the first stage."""
    where = known_root(root)
    start = artifact_of(where, ref)
    seen: dict[str, dict[str, Any]] = {}

    def walk(artifact: Artifact, depth: int) -> None:
        manifest = artifact.manifest
        known = artifact.ref in seen
        mark = " (people's words)" if manifest.store else ""
        if not as_json:
            tail = "  (above)" if known else ""
            say(f"{'  ' * depth}{artifact.kind}:{artifact.id[:12]}  {manifest.stage}{mark}{tail}")
        if not known:
            seen[artifact.ref] = {"ref": artifact.ref, "stage": manifest.stage, "inputs": manifest.parents()}
            for parent in manifest.parents():
                walk(where.find(parent), depth + 1)

    walk(start, 0)
    if as_json:
        emit(list(seen.values()))


@app.command()
def report(
    root: RootOption = HERE,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the page.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables into this document instead of a page.")
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            "--part",
            help="Name of the marks in the document between which they go; `seeds`, say, is that table.",
        ),
    ] = "life",
    as_json: JsonOption = False,
) -> None:
    """Write one static HTML page about the life: curves, figures with intervals, attacks, the release verdict."""
    from tutelage.core.artifact import atomic_write
    from tutelage.life import last

    where = known_root(root)
    if markdown is not None:
        from tutelage.report.markdown import into, life_tables
        from tutelage.report.timing import predictions

        path = markdown
        text = into(path, part, life_tables(last(where), part=part, predicted=predictions(where)))
    else:
        from tutelage.report.pages import life_page

        path = out or where.reports / "life.html"
        text = life_page(where, last(where))
    atomic_write(path, text.encode())
    emit({"report": str(path)}) if as_json else say(str(path))


@app.command()
def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            help="Evaluations, targets in them (`evaluate#finetune`), examined models; with --suite URLs too. "
            "All are held against the first; of two evaluations targets of one name meet."
        ),
    ],
    suite: Annotated[
        str | None, typer.Option("--suite", help="Examine them all now: a file of items, or a suite's name.")
    ] = None,
    items: Annotated[int, typer.Option(min=0, help="With --suite: items per suite and cell; 0 asks all.")] = 0,
    judge: Annotated[str, typer.Option(help="With --suite: who judges open answers, as prompted:REFERENCE.")] = "",
    people: Annotated[
        str, typer.Option(help="With --judge: answers that people judged, a file or preferences:ID.")
    ] = "",
    only: Annotated[list[str] | None, typer.Option("--only", help="This suite only; may be given again.")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Test against so much worse, in the figures' unit: 0.02 is 2 points.")
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="End with code 4 unless everything is surely within --margin.")
    ] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Where to write the page.")] = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Compare systems item by item: paired differences, what could have been seen, every answer that changed."""
    from tutelage.core.artifact import atomic_write
    from tutelage.core.errors import Refused, UsageError
    from tutelage.evaluate import compare as side_by_side
    from tutelage.evaluate.systems import paired_up
    from tutelage.report.comparison import comparison_page, lines_of

    if gate and margin is None:
        raise UsageError("--gate needs --margin", key="--gate", todo="Say how much worse is accepted: --margin 0.02")
    if suite is None and (judge or people):
        key = "--judge" if judge else "--people"
        raise UsageError(f"{key} needs --suite", key=key, todo="What was examined before was judged before")
    where = root_at(root) if suite is not None else known_root(root)
    if suite is None:
        operands = _examined(systems, where)
    else:
        operands = _examined_now(systems, suite, items, where, judge, people)
    found = side_by_side.compare(*paired_up(operands), only=only or (), margin=margin)
    path = html or where.reports / "compare.html"
    atomic_write(path, comparison_page(found, _made(where, [each["id"] for each in found.systems])).encode())
    if as_json:
        emit({**found.model_dump(mode="json"), "report": str(path)})
    else:
        say("\n".join([*lines_of(found), f"The page: {path}"]))
    if gate and (reason := side_by_side.refusal(found)):
        raise Refused(reason)


def _examined(systems: Sequence[str], root: Root) -> list[list[System]]:
    """The systems that these words name, from what was sealed."""
    from tutelage.core.errors import UsageError
    from tutelage.evaluate.systems import examined, read

    again = f"tutelage compare {' '.join(systems)} --suite FILE.jsonl"
    if url := next((each for each in systems if each.startswith(("http:", "https:"))), None):
        raise UsageError(f"{url} was not examined", todo=f"Say on what: {again}")
    named = [each.partition("#") for each in systems]
    artifacts = [artifact_of(root, name) for name, _, _ in named]
    models = [each.ref for each in artifacts if each.kind in ("model", "bundle")]
    source = examined(root, models) if models else None
    found = []
    for artifact, (_, mark, target) in zip(artifacts, named, strict=True):
        if artifact.ref not in models:
            found.append(read(artifact, root, target if mark else None))
            continue
        fit = [each for each in read(source, root) if each.target_id == artifact.ref] if source else []
        if not fit:
            together = "these were" if len(models) > 1 else "this was"
            asked = ",".join(f"{each.partition(':')[0]}:{each.partition(':')[2][:12]}" for each in models)
            todo = f"Examine first: {again}, or tutelage evaluate of={asked}"
            raise UsageError(f"{together} not examined in one evaluation: {', '.join(systems)}", todo=todo)
        found.append(fit[:1])
    return found


def _examined_now(
    systems: Sequence[str], suite: str, items: int, root: Root, judge: str, people: str
) -> list[list[System]]:
    """Every system asked the same items now; their answers are kept, so that the same command goes on."""
    from tutelage.commands.examining import judge_of, suites_of, unmeasured
    from tutelage.core.errors import TutelageError
    from tutelage.evaluate.further import Examination
    from tutelage.evaluate.run import evaluate_reference
    from tutelage.evaluate.summary import by_id
    from tutelage.evaluate.systems import judged, system
    from tutelage.evaluate.ways import Asking
    from tutelage.life import made_last

    known, (chosen, dialogues) = made_last(root), suites_of(suite, items, root.path)
    asked = by_id(item for each in chosen for item in each.items)
    how = Asking(judge=judge_of(judge, known), people=known.get(people, people))
    config, found = Examination(contamination=0, how=how), []
    for ref in systems:
        done = evaluate_reference(
            known.get(ref, ref), chosen, config, root=root, items=items, work=root.work / "answers",
            dialogues=dialogues,
        )  # fmt: skip
        if (reason := unmeasured(done["results"])) is not None:
            raise TutelageError(f"{ref}: {reason}")
        rows = [row.model_copy(update={"target": ref}) for row in done["results"]]
        found.append([judged(system(ref, ref, rows, asked, suite), done["judges"])])
    return found


def _made(root: Root, refs: Sequence[str]) -> dict[str, Artifact]:
    """Those of the systems that are artifacts still there."""
    from tutelage.core.errors import NotFound

    found: dict[str, Artifact] = {}
    for ref in refs:
        try:
            found[ref] = root.find(ref)
        except NotFound:
            continue
    return found


@app.command("show-mask")
def show_mask(
    source: Annotated[
        str, typer.Argument(help="A corpus, tokens or a tuned model, a section of the last run, a file of dialogues.")
    ] = "prepare",
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer, a model or a section; left out: what the ids were made with.")
    ] = None,
    row: Annotated[int, typer.Option(min=1, help="Which dialogue to begin with, counted from 1.")] = 1,
    count: Annotated[int, typer.Option(min=1, help="How many to show.")] = 1,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Print dialogues as training sees them: what is learned from stands between « and »."""
    from itertools import islice

    from tutelage.core.errors import DataError
    from tutelage.tokens.chat import stretches
    from tutelage.tokens.tokenizer import load

    where = known_root(root)
    told = Path(source) if source.endswith((".jsonl", ".json")) else _learned_from(source, where)
    words = load(artifact_of(where, tokenizer or _tokenizer_of(told, where)))
    file, dialogues = _dialogues(told, words)
    found = list(islice(dialogues, row - 1, row - 1 + count))
    if not found:
        raise DataError("there is no such row", file=file, row=row)
    for number, (ids, mask) in enumerate(found, row):
        parts = stretches(ids, mask, words)
        if as_json:
            emit({"row": number, "parts": [each._asdict() for each in parts]})
            continue
        text = "".join(f"«{each.text}»" if each.learned else each.text for each in parts)
        learned = sum(each.tokens for each in parts if each.learned)
        say(f"{text}\n({learned} of {sum(each.tokens for each in parts)} tokens are learned from)")


def _learned_from(source: str, root: Root) -> Artifact:
    """A corpus or tokens; of a model the tokens that it learned from."""
    artifact = artifact_of(root, source)
    tokens = artifact.manifest.inputs.get("tokens") if artifact.kind == "model" else None
    return artifact_of(root, str(tokens)) if tokens else artifact


def _tokenizer_of(source: Path | Artifact, root: Root) -> str:
    """What these ids were made with, or else those of the last run; before there are any, its tokenizer."""
    from tutelage.life import last

    tokens = source if isinstance(source, Artifact) and source.kind == "tokens" else last(root).get("encode")
    return str(tokens.manifest.inputs["tokenizer"]) if tokens else "tokenizer"


def _dialogues(source: Path | Artifact, words: Any) -> tuple[Path, Iterator[tuple[Any, Any]]]:
    """Ids and mask of each dialogue: as `encode` would make them, or as it made them where the artifact holds them."""
    import itertools

    from tutelage.core.records import Example, read_jsonl
    from tutelage.tokens.chat import encode_dialogue

    if not isinstance(source, Artifact) or source.kind != "tokens":
        file = source.file("dialogues.jsonl") if isinstance(source, Artifact) else source
        return file, (encode_dialogue(example, words) for example in read_jsonl(file, Example))
    import numpy as np

    ids, mask, offsets = (
        np.load(source.file(f"dialogues{part}.npy"), mmap_mode="r", allow_pickle=False)
        for part in ("", ".mask", ".offsets")
    )
    bounds = itertools.pairwise(offsets.tolist())
    return source.file("dialogues.npy"), ((ids[first:last], mask[first:last]) for first, last in bounds)


@app.command()
def agreement(
    project: Annotated[str, typer.Argument(help="The labelling effort whose answers are looked at.")],
    people: Annotated[
        str, typer.Option("--people", help="live, simulated or replayed; needed where there are several kinds.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the bootstraps.")] = 0,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Say how far people agree on each question, how each of them answers, and why they differed where it was decided.

    A row of a person is a reason to look at their answers, never a measure of pay.
    """
    from contextlib import closing

    from tutelage.feedback import adjudicate, report
    from tutelage.feedback.agreements import agreed
    from tutelage.store import engine, tasks

    with closing(engine.open(known_root(root))) as store:
        where = tasks.get_project(store, project)
        words = report.read(store, where.name, people)
        found = agreed(words, seed)
        found["persons_table"] = report.people_table(words, report.hidden(store, where.id))
        found["adjudication"] = adjudicate.view(store, where).model_dump(mode="json")
    emit({"project": where.name, **found}) if as_json else _say_agreement(found)


def _say_agreement(found: Mapping[str, Any]) -> None:
    from tutelage.report.markdown import figure

    kind = f"{found['people']} " if found["people"] else ""
    say(f"{found['answers']} answers of {found['persons']} {kind}people to {found['tasks']} tasks")
    for name, value in _figures(found):
        say(f"  {name:<36}{figure(value, n=True)}")
    for row in found["persons_table"]:
        agrees, gold = figure(row["agreement"]), figure(row["gold"])
        say(f"{row['person']}: {row['answers']} answers, agreement {agrees}, gold {gold}")
        if row["findings"]:
            say(f"  {', '.join(row['findings'])}: {row['reason']}")
    waiting = found["adjudication"]["waiting"]
    if waiting:
        say(f"{waiting} tasks wait for an adjudicator")
    for each in found["adjudication"]["causes"]:
        causes = ", ".join(f"{name} {count}" for name, count in each["causes"].items())
        say(f"{each['decided']} adjudicated by {each['people']} people: {causes}")
        for proposal in each["proposals"]:
            say(f"  {proposal['cause']}, {proposal['person']}: {proposal['text']}")


def _figures(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every figure below a table of agreement, with the way to it."""
    for name in found if above else ("ranking", "questions", "spans"):
        value = found.get(name)
        way = f"{above} {name}".strip() if name != "questions" else above or " "
        if isinstance(value, Mapping) and "value" in value:
            yield way, value
        elif isinstance(value, Mapping):
            yield from _figures(value, way)
