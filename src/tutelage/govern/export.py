"""Taking a model or data out of a root: with its card and licences, refused where a licence class forbids it.

What learned from non-commercial or not-stated data is internal: it leaves only when each such class is accepted by
name, and the act is recorded in the ledger.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from tutelage.core.artifact import Artifact, Root, disk_errors
from tutelage.core.config import nearest
from tutelage.core.errors import LicenceError, UsageError
from tutelage.core.records import Record
from tutelage.corpus.catalog import INTERNAL
from tutelage.govern.card import ancestors, model_card
from tutelage.store import ledger
from tutelage.store.engine import Store

MODELS = ("model", "reward", "tokenizer")
DATA = ("corpus", "preferences", "labels", "redteam")
Form = Literal["hf", "gguf", "gguf-f16"]
"""The files as they are (a model's: Hugging Face's layout), or a model as one GGUF file in f32 or f16."""


class Exported(Record):
    """What was written where, and under which licence classes."""

    artifact: str
    folder: str
    files: tuple[str, ...]
    licences: tuple[str, ...]
    accepted: tuple[str, ...] = ()
    simulated: bool = False


def licences_of(root: Root, artifact: Artifact) -> tuple[str, ...]:
    """The licence classes of an artifact and of all it was made from."""
    every = [artifact, *ancestors(root, artifact)]
    return tuple(sorted({name for each in every for name in each.manifest.licences}))


def export(
    store: Store,
    root: Root,
    artifact: Artifact,
    folder: Path,
    *,
    kinds: Collection[str],
    accept: Collection[str] = (),
    form: Form = "hf",
    part: str = "",
) -> Exported:
    """Copy an artifact's files into a new folder, with its card (README.md) and manifest; the act is recorded.

    With `part`, only what lies in that folder of the artifact (a model's `adapter`). Raises UsageError for the wrong
    kind, a part that is not there or a folder that holds something, LicenceError unless every internal class is among
    `accept`, CorruptArtifact when a file no longer matches its hash, NoSpace; for GGUF also what `gguf.write` raises.
    """
    if form != "hf" and artifact.kind != "model":
        raise UsageError(f"a {artifact.kind} has no GGUF form, only a model has", key="--format")
    if folder.suffix == ".gguf":
        todo = f"Name a folder, as in: {folder.stem} --format gguf"
        raise UsageError("a GGUF file leaves in a folder, with its card beside it", file=folder, todo=todo)
    if artifact.kind not in kinds:
        raise UsageError(f"{artifact.ref[:24]} is of kind {artifact.kind}, wanted {' or '.join(sorted(kinds))}")
    inside = f"{part}/" if part else ""
    files = [name for name in artifact.manifest.files if name.startswith(inside)]
    if not files:
        raise UsageError(f"{artifact.ref[:24]} has no {part}", todo=f"Export it whole, without --{part}")
    licences = licences_of(root, artifact)
    for name in accept:
        if name not in INTERNAL:
            near = nearest(name, INTERNAL)
            todo = f"Did you mean {near!r}?" if near else f"There are: {', '.join(INTERNAL)}"
            raise UsageError(f"{name!r} is no class that must be accepted", key="--accept", todo=todo)
    barred = [name for name in licences if name in INTERNAL and name not in accept]
    if not licences:
        barred = [] if "not-stated" in accept else ["not-stated"]
    if barred:
        todo = "If you may pass it on, accept the class by name: " + " ".join(f"--accept {name}" for name in barred)
        raise LicenceError(f"{artifact.ref[:24]} comes from {', '.join(barred)} data and is internal", todo=todo)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("it holds something already and is left as it is", file=folder, todo="Name a new folder")
    artifact.verify()
    if form != "hf":
        _write_gguf(artifact, folder, form, licences)
    with disk_errors(folder):
        for name in files if form == "hf" else ():
            if name == "rows.parquet":
                continue  # ids of people's answers mean nothing outside, and need not leave
            target = folder / name.removeprefix(inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, target)
        (folder / "README.md").write_text(model_card(root, artifact), encoding="utf-8")
        shutil.copyfile(artifact.path / "manifest.json", folder / "manifest.json")
    used = tuple(sorted(name for name in accept if name in licences or not licences))
    body = {"folder": folder.name, "form": form, "licences": list(licences), "accepted": list(used)}
    ledger.record(store, "operator", "artifact.export", artifact.ref, body)
    return Exported(
        artifact=artifact.ref,
        folder=str(folder),
        files=tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())),
        licences=licences,
        accepted=used,
        simulated=artifact.manifest.simulated,
    )


def _write_gguf(artifact: Artifact, folder: Path, form: Form, licences: Collection[str]) -> None:
    from tutelage.model import checkpoint, gguf
    from tutelage.tokens import tokenizer

    precision: gguf.Precision = "f16" if form == "gguf-f16" else "f32"
    decoder, words = checkpoint.load_decoder(artifact.path), tokenizer.load(artifact)
    file = folder / f"model-{precision}.gguf"
    gguf.write(decoder, file, words, precision=precision, name=artifact.ref[:18], licence=", ".join(licences))
