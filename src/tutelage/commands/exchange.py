"""In and out: models and people's answers from elsewhere; models and data for elsewhere, under their licences."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import typer

from tutelage.commands.base import (
    HERE,
    JsonOption,
    RootOption,
    alone,
    artifact_of,
    emit,
    group,
    known_root,
    root_at,
    say,
)
from tutelage.core.artifact import Root
from tutelage.core.errors import UsageError

import_app = group("import", "Bring a model, or recorded answers of people, into a life.")
export_app = group("export", "Take a model or data out of a life, with its card and licences.")

Form = Literal["hf", "gguf", "gguf-f16"]  # as in govern/export.py, which a command line loads late
LicenceOption = Annotated[str, typer.Option(help="Licence class: public-domain, permissive, share-alike ...")]
AcceptOption = Annotated[
    list[str] | None, typer.Option("--accept", help="An internal licence class that you may pass on; recorded.")
]


@import_app.command("model")
def import_model(
    ref: Annotated[str, typer.Argument(help="A folder in Hugging Face's layout, or hf:organisation/name.")],
    base: Annotated[str, typer.Option(help="The model that an adapter in PEFT's layout belongs to.")] = "",
    licence: LicenceOption = "not-stated",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Bring a model's weights and tokenizer under a root, or an adapter, merged into its base; the same only once."""
    from tutelage.core import refs
    from tutelage.life import made_last

    where = root_at(root).create()
    if base:
        made = refs.load(refs.SCHEMES["adapter"])(ref, where, made_last(where).get(base, base), licence=licence)
    else:
        made = refs.load(refs.SCHEMES["import"])(ref, where, licence=licence)
    emit({"model": made.ref, **made.metrics}) if as_json else say(made.ref)
    if made.metrics.get("base_known") is False:
        text = "the adapter does not say which weights it was made for: those of --base were taken unchecked"
        typer.echo(f"note: {text}", err=True)


@import_app.command("feedback")
def import_feedback(
    file: Annotated[Path, typer.Argument(help="A .jsonl, .parquet or .json file, or a folder of them.")],
    project: Annotated[str, typer.Option(help="Name of the labelling effort; default: the file's name.")] = "",
    source: Annotated[
        str, typer.Option("--from", help="own, huggingface, argilla, label-studio; auto looks at the first row.")
    ] = "auto",
    response: Annotated[
        list[str] | None,
        typer.Option("--response", help="A field that holds what is judged, where the file says none."),
    ] = None,
    annotator: Annotated[str, typer.Option(help="Whose choices those of a set without names are.")] = "",
    form: Annotated[
        Path | None, typer.Option(help="What was asked: a JSON file with `questions` and `guideline`.")
    ] = None,
    scale: Annotated[tuple[float, float] | None, typer.Option(help="Lowest and highest score.")] = None,
    licence: LicenceOption = "not-stated",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Bring tasks and people's recorded answers into the store, through its checks, marked as replayed.

    Own rows have `prompt` or `messages`, `candidates`, and `answers` (person, and the fields of an answer); what
    `export feedback --for annotations` wrote comes in again. What compares answers also becomes a collection, for the
    stages that learn from preferences: `tutelage preferences collection=...` with the name that is printed.
    """
    if source == "auto" and (found := _comparisons(file)):
        return _replay(file, found, project, scale or (1, 5), licence, root, as_json)
    from tutelage.feedback import imports, incoming
    from tutelage.store import engine

    batches = imports.read(file, cast(Any, source), responses=response or (), annotator=annotator, form=form)
    name = project or re.sub(r"[^\w .:@+-]", "-", file.name.partition(".")[0])[:100] or "imported"
    told: dict[str, Any] = {"project": name, "tasks": 0, "answers": 0, "there": 0, "people": 0, "dropped": {}}
    with closing(engine.open(Root(root).create())) as store:
        for batch in batches:
            made = incoming.bring(store, batch, name, licence=_class(licence), source=f"file:{file.name}", scale=scale)
            for key in ("tasks", "answers", "there"):
                told[key] += getattr(made, key)
            told["people"] = max(told["people"], made.people)
            for reason, count in made.dropped.items():
                told["dropped"][reason] = told["dropped"].get(reason, 0) + count
            for line in (*made.problems, *made.notes):
                typer.echo(f"note: {line}", err=True)
        compared = incoming.compares(store, name)
    if compared:
        told["collection"] = alone("collect", {"take": name}, root, as_json).ref
    dropped = told["dropped"]
    if as_json:
        emit(told)
    else:
        say("\n".join(f"{key}: {value}" for key, value in told.items() if key != "dropped"))
        for reason, count in sorted(dropped.items()):
            say(f"left out, {reason}: {count}")
    if dropped:  # what was good is there; a program must hear that it was not all
        raise typer.Exit(1)


def _class(licence: str) -> str:
    """A licence class that there is. Raises UsageError."""
    from tutelage.core.config import nearest
    from tutelage.corpus.catalog import Licence

    known = get_args(Licence)
    if licence not in known:
        near = nearest(licence, known)
        todo = f"Did you mean {near!r}?" if near else f"There are: {', '.join(known)}"
        raise UsageError(f"{licence!r} is no licence class", key="--licence", todo=todo)
    return licence


def _replay(
    file: Path, form: str, project: str, scale: tuple[float, float], licence: str, root: Path, as_json: bool
) -> None:
    """Comparisons with named annotators: a corpus and a collection, as the stages `prepare` and `collect` make them."""
    fields: dict[str, Any] = {"form": form, "candidates": ["{a}", "{b}"], "votes": "votes"}
    if form == "scoring":
        fields = {"form": form, "each": "candidates", "ratings": "ratings", "scale": list(scale)}
    source = {"source": f"file:{file}", "licence": licence, "form": {"kind": "comparisons", **fields}}
    corpus = alone("prepare", {"sources": [source]}, root, as_json)
    count = sum(1 for line in corpus.file("comparisons.jsonl").read_text(encoding="utf-8").splitlines() if line)
    # twice as many as there are: a replay otherwise keeps its shares of training and test comparisons
    settings: dict[str, Any] = {
        "people": "replayed",
        "corpus": corpus.ref,
        "model": [],
        "comparisons": max(1, 2 * count),
    }
    if project:
        settings["project"] = project
    made = alone("collect", settings, root, as_json)
    told = json.loads(made.file("summary.json").read_text(encoding="utf-8"))
    found = {"collection": made.ref, "projects": told["projects"], "tasks": made.metrics["tasks"], **told["receipts"]}
    emit(found) if as_json else say("\n".join(f"{key}: {value}" for key, value in found.items()))


def _comparisons(file: Path) -> str:
    """The form of comparisons with votes or ratings, told by the first row; empty for anything else."""
    if not file.is_file() or file.suffix != ".jsonl":
        return ""
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(row, dict) or "prompt" not in row:
        return ""
    each = next(iter(row.get("candidates") or ()), None)
    if isinstance(each, dict) and "ratings" in each:
        return "scoring"
    return "pair" if {"a", "b", "votes"} <= set(row) else ""


def _export(
    kinds: tuple[str, ...],
    ref: str,
    folder: Path,
    accept: list[str] | None,
    root: Path,
    as_json: bool,
    form: Form = "hf",
    part: str = "",
) -> None:
    from tutelage.govern.export import export
    from tutelage.store import engine

    where = known_root(root)
    with closing(engine.open(where)) as store:
        found = export(
            store, where, artifact_of(where, ref), folder, kinds=kinds, accept=accept or (), form=form, part=part
        )
    if as_json:
        return emit(found.model_dump(mode="json"))
    say("\n".join(str(folder / name) for name in found.files))
    say(f"licences: {', '.join(found.licences) or 'none stated'}" + ("; simulated people" if found.simulated else ""))


@export_app.command("model")
def export_model(
    ref: Annotated[str, typer.Argument(help="A model, reward model or tokenizer, or a section of the last run.")],
    folder: Annotated[Path, typer.Argument(help="A new folder; transformers and vLLM load it, llama.cpp its GGUF.")],
    form: Annotated[Form, typer.Option("--format", help="Hugging Face's layout, or one GGUF file (f32, f16).")] = "hf",
    adapter: Annotated[bool, typer.Option("--adapter", help="The LoRA adapter alone, in PEFT's layout.")] = False,
    accept: AcceptOption = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write a model with its card, as Hugging Face's files or as GGUF; refused while it comes from internal data."""
    from tutelage.govern.export import MODELS

    if adapter and form != "hf":
        raise UsageError(
            "an adapter alone has no GGUF form", key="--adapter", todo="Export the model, or leave --format"
        )
    _export(MODELS, ref, folder, accept, root, as_json, form, part="adapter" if adapter else "")


@export_app.command("data")
def export_data(
    ref: Annotated[str, typer.Argument(help="A corpus, preferences, labels or findings, or a section.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    accept: AcceptOption = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write data as JSON lines and Parquet with its card; refused while it comes from internal data."""
    from tutelage.govern.export import DATA

    _export(DATA, ref, folder, accept, root, as_json)


@export_app.command("suite")
def export_suite(
    suite: Annotated[str, typer.Argument(help="A file of your own items, or the name of a suite of the last run.")],
    folder: Annotated[Path, typer.Argument(help="A new folder for the tasks; `lm_eval --include_path` reads it.")],
    items: Annotated[int, typer.Option(min=0, help="Items per suite and cell; 0 takes all.")] = 0,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write a suite as tasks of lm-evaluation-harness: YAML, and the rows as JSON lines."""
    from tutelage.commands.examining import suites_of
    from tutelage.evaluate.harness_tasks import write

    if folder.exists() and any(folder.iterdir()):
        raise UsageError("it is there already and is left as it is", file=folder, todo="Name a new folder")
    told = write(suites_of(suite, items, root)[0], folder)
    if as_json:
        return emit(told)
    for name, count in told["tasks"].items():
        say(f"{name:<44}{count} items")
    for reason, count in told["left_out"].items():
        say(f"left out, {reason}: {count}")


@export_app.command("feedback")
def export_feedback(
    project: Annotated[str, typer.Argument(help="The labelling effort whose answers are taken.")],
    target: Annotated[
        Path, typer.Argument(help="A new file (.jsonl, .parquet, .zip), or a new folder for `datasets`.")
    ],
    consumer: Annotated[
        str,
        typer.Option(
            "--for",
            help="sft, reward, dpo, kto, classifier, evaluation, consensus (what people together say), or annotations "
            "(all as it is).",
        ),
    ],
    people: Annotated[
        list[str] | None, typer.Option("--people", help="live, simulated or replayed; named twice, they are pooled.")
    ] = None,
    by: Annotated[
        Literal["task", "person"], typer.Option(help="Join everybody's answers, or keep them apart.")
    ] = "task",
    accept: AcceptOption = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write people's answers as rows for a trainer, with pseudonyms and origin; refused while texts are internal."""
    from tutelage.core.artifact import atomic_write
    from tutelage.feedback import layout
    from tutelage.feedback.export import export
    from tutelage.store import engine

    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError("it is there already and is left as it is", file=target, todo="Name a new file or folder")
    with closing(engine.open(known_root(root))) as store:
        made = export(store, project, cast(Any, consumer), people=people or (), by=by, accept=accept or ())
    form = target.suffix.removeprefix(".")
    files = {"": layout.packed(made, cast(Any, form))} if form in layout.MEDIA else layout.folder(made)
    for name, body in files.items():
        place = target / name if name else target
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, body)
    told = {"rows": len(made.rows), "people": made.people, "simulated": made.simulated, "dropped": dict(made.dropped)}
    if as_json:
        names = sorted(str(target / name) if name else str(target) for name in files)
        return emit(told | {"files": names, "licences": list(made.licences), "accepted": list(made.accepted)})
    say(f"{target}: {len(made.rows)} rows of {made.people} people; licences: {', '.join(made.licences)}")
    for reason, count in made.dropped.items():
        say(f"left out, {reason}: {count}")
