"""In and out: models and people's answers from elsewhere; models and data for elsewhere, under their licences."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

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
from tutelage.core.errors import DataError, NotFound, UsageError

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
    file: Annotated[Path, typer.Argument(help="JSON lines of comparisons with named annotators.")],
    project: Annotated[str, typer.Option(help="Name of the labelling effort.")] = "",
    scale: Annotated[tuple[float, float], typer.Option(help="Lowest and highest score.")] = (1, 5),
    licence: LicenceOption = "not-stated",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Bring people's recorded answers into the store, through the API, marked as replayed.

    Rows have `prompt` and either `a`, `b` and `votes` (annotator, choice: a, b or tie), or `candidates`, each with
    `text` and `ratings` (annotator, score).
    """
    form = {"kind": "comparisons", **_form_of(file, scale)}
    source = {"source": f"file:{file}", "licence": licence, "form": form}
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


def _form_of(file: Path, scale: tuple[float, float]) -> dict[str, Any]:
    """What the rows of a file are, told by the first. Raises NotFound, DataError."""
    if not file.is_file():
        raise NotFound("no such file", file=file)
    with file.open(encoding="utf-8") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=file, row=1) from None
    keys = set(row) if isinstance(row, dict) else set()
    if {"prompt", "candidates"} <= keys:
        return {"form": "scoring", "each": "candidates", "ratings": "ratings", "scale": list(scale)}
    if {"prompt", "a", "b", "votes"} <= keys:
        return {"form": "pair", "candidates": ["{a}", "{b}"], "votes": "votes"}
    todo = "A row has prompt and candidates (with ratings), or prompt, a, b and votes"
    raise DataError("these are no comparisons with named annotators", file=file, row=1, todo=todo)


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
