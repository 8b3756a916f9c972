"""Sources to records. A source is `starter:`, `catalog:NAME`, `file:PATH` or `hf:organisation/name`.

A row that does not fit its form is dropped with one clear sentence naming file, row and key, and counted; too many of
them, a file that cannot be opened, or a source that gives nothing is an error. The only outgoing network of this
package is the Hugging Face hub, for `hf:` and for catalog names without a local mirror.

A message names a file where it lies. Ids, tags, keys and reports name it by its own name alone (`names_of`), so that
equal data gives an equal corpus on every machine, and no path of a machine travels with it.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from tutelage.core.artifact import file_hash
from tutelage.core.config import Config
from tutelage.core.errors import DataError, LicenceError, MissingExtra, NotFound
from tutelage.core.records import Document, Example, Preference, digest
from tutelage.corpus.catalog import CATALOG, Entry, Licence, entry
from tutelage.corpus.forms import AnyForm, Dialogues, Documents, Items, Kind, Produced
from tutelage.corpus.rows import Raw, Rows, count, evenly, local_files, parsed, rows_of
from tutelage.starter.material import HERE


class Source(Config):
    """One source of data."""

    source: str
    """`starter:` (`starter:more`: its further suites), `catalog:NAME`, `file:PATH` (jsonl, txt, md, parquet; .gz and
    .zst; a folder of them) or `hf:organisation/name`, with `:configuration` and `@revision` where needed."""
    kinds: tuple[Kind, ...] = ()
    """Take only these kinds of record; empty takes all that the source gives."""
    form: Annotated[AnyForm, Field(discriminator="kind")] | None = None
    """How rows of `file:` and `hf:` become records; by default documents from the field `text`."""
    split: str = "train"
    """Which split of `hf:` to read; what the rows of `file:` are (train, validation or test)."""
    limit: int = Field(default=0, ge=0)
    """At most so many rows of each split, taken evenly over it; 0 takes all."""
    items: int = Field(default=0, ge=0)
    """At most so many examination items of each form and split, taken evenly over the rows; 0 takes all."""
    weight: float = Field(default=1.0, ge=0)
    """How often its training documents are passed: 1 once, 0.5 half of them, 2 all of them twice. Where `characters`
    bounds the whole, its share."""
    licence: Licence = "not-stated"
    """Licence class of `file:` and `hf:`; the catalog knows its own."""

    @field_validator("source")
    @classmethod
    def _known(cls, value: str) -> str:
        scheme, sign, rest = value.partition(":")
        if scheme == "starter" and rest not in ("", "more"):
            raise ValueError(f"there are starter: and starter:more (its further suites), found {value!r}")
        if not sign or scheme not in ("starter", "catalog", "file", "hf") or (scheme != "starter" and not rest):
            raise ValueError(f"expected starter:, catalog:NAME, file:PATH or hf:organisation/name, found {value!r}")
        return value

    @property
    def scheme(self) -> str:
        return self.source.partition(":")[0]

    @property
    def name(self) -> str:
        """What stands after the scheme; for the starter its own name."""
        return self.source.partition(":")[2] or "starter"


@dataclass
class Reading:
    """What one source gave."""

    source: Source
    name: str
    """What it is called in ids, tags and the report."""
    licence: str
    use: str = ""
    rows: int = 0
    documents: list[Document] = field(default_factory=list)
    dialogues: list[Example] = field(default_factory=list)
    comparisons: list[Preference] = field(default_factory=list)
    labels: list[Example] = field(default_factory=list)
    items: list[Example] = field(default_factory=list)
    bad: int = 0
    bad_examples: list[str] = field(default_factory=list)
    """What was wrong with the first bad rows, each with its file where it lies."""
    bad_reported: list[str] = field(default_factory=list)
    """The same, each with its file as the report may name it."""

    def counts(self) -> dict[str, int]:
        kinds = ("documents", "dialogues", "comparisons", "labels", "items")
        return {kind: len(getattr(self, kind)) for kind in kinds}


def names_of(sources: Sequence[Source]) -> list[str]:
    """What each of these sources is called in ids and tags: a file or a folder by its own name, wherever it lies.

    Another place of the same name counts on (`texts.jsonl`, `texts.jsonl@2`); one place read twice is one source.
    """
    taken = {each.name for each in sources if each.scheme != "file"}
    given: dict[str, str] = {}
    for each in sources:
        place = os.path.abspath(each.name)  # `file:.` has a name too; a link keeps its own
        if each.scheme == "file" and place not in given:
            own = os.path.basename(place) or "files"
            names = itertools.chain([own], (f"{own}@{number}" for number in itertools.count(2)))
            given[place] = next(name for name in names if name not in taken)
            taken.add(given[place])
    return [given[os.path.abspath(each.name)] if each.scheme == "file" else each.name for each in sources]


def gives(source: Source, kind: Kind) -> bool:
    """Whether training records of this kind are taken from a source."""
    if source.kinds and kind not in source.kinds:
        return False
    forms = _forms(source, entry(source.name)) if source.scheme == "catalog" else (source.form or Documents(),)
    return any(form.kind == kind and "train" in form.splits.values() for form in forms)


def files_of(source: Source, mirror: str) -> list[Path]:
    """The local files a source is read from, which its fingerprint covers. NotFound when one is missing."""
    if source.scheme == "file":
        return local_files(Path(source.name))
    if source.scheme == "catalog" and mirror:
        known = entry(source.name)
        return [_mirror_file(mirror, known, split) for split in _splits(_forms(source, known), mirror, known)]
    return []


def fingerprint(source: Source, mirror: str, name: str = "") -> dict[str, str]:
    """sha256 of every local file of a source, by name; equal data gives an equal fingerprint wherever it lies.

    The starter world is written by its generator: another line or another rule in it is another corpus.
    """
    if source.scheme == "starter":
        parts = sorted([*HERE.glob("*.py"), *HERE.glob("*.jsonl"), *(HERE / "lexicon").glob("*.yaml")])
        return {"starter": digest([_hash(path, path.stat().st_mtime_ns, path.stat().st_size) for path in parts])}
    called = name or names_of([source])[0]
    found = {}
    for path in files_of(source, mirror):
        state = path.stat()
        found[_label(source, called, path)] = _hash(path, state.st_mtime_ns, state.st_size)
    return found


def _label(source: Source, called: str, path: Path) -> str:
    """A local file of a source as artifacts name it: within its source, without the place where that lies."""
    if source.scheme != "file":
        return f"{called}/{path.name}"
    inner = path.relative_to(source.name).as_posix()
    return called if inner == "." else f"{called}/{inner}"


@functools.lru_cache(maxsize=4096)
def _hash(path: Path, changed: int, size: int) -> str:
    return file_hash(path)


def read(
    source: Source,
    *,
    name: str = "",
    mirror: str = "",
    bad_rows: int = 100,
    characters: float = 0,
    check: Callable[[], None] = lambda: None,
) -> Reading:
    """All records of a `catalog:`, `file:` or `hf:` source.

    `name` is what it is called beside others (`names_of`); by default what it is called alone. `characters` bounds the
    training documents, taken evenly. Raises DataError after more than `bad_rows` bad rows, or when nothing is left.
    """
    known = entry(source.name) if source.scheme == "catalog" else _on_hub(source)
    forms = _forms(source, known)
    _may_be_read(source, known, forms)
    licence = known.licence if known else source.licence
    called = name or names_of([source])[0]
    found = Reading(source, called, licence, known.use if known else "")
    several = {form.kind for form in forms if sum(other.kind == form.kind for other in forms) > 1}
    for split in _splits(forms, mirror, known if source.scheme == "catalog" else None):
        here = [(place, form) for place, form in enumerate(forms) if split in form.splits]
        before = len(found.items)
        place_of, rows = _open(source, known, split, mirror)
        total = count(rows) if source.limit or characters else 0
        size = min(source.limit or total, total)
        if characters and any(isinstance(form, Documents) for _, form in here):
            size = min(size, _fitting(rows, here, characters, total))
        for number, raw in evenly(rows, size, total):
            if number % 1000 == 1:
                check()
            found.rows += 1
            row = parsed(raw)
            for place, form in here:
                tail = f"{split}-{number}" if form.kind not in several else f"{split}-{number}-{place}"
                tags = {"id": f"{called}/{tail}", "source": called, "licence": licence}
                try:
                    if isinstance(row, DataError):
                        raise row
                    if form.reads(row):
                        _keep(found, form, form.make(row, number, tags | {"split": form.splits[split]}))
                except DataError as error:
                    _bad(found, error, place_of(number), bad_rows)
                    if isinstance(row, DataError):
                        break
        found.items = found.items[:before] + _thinned(found.items[before:], source.items)
    if not any(found.counts().values()):
        why = f"; the first bad row: {found.bad_examples[0]}" if found.bad_examples else ""
        raise DataError(f"the source gives no records{why}", key=source.source)
    for form in forms:
        if isinstance(form, Documents) and form.join:
            found.documents = _joined(found.documents, form.join)
    return found


def _thinned(items: list[Example], limit: int) -> list[Example]:
    """At most `limit` items of each suite and slice direction, at even distances."""
    forms: dict[str, list[Example]] = {}
    for each in items:
        forms.setdefault(str(each.tags["slices"].get("direction", "")), []).append(each)
    if not limit:
        return items
    return [each for mine in forms.values() for each in mine[:: max(1, -(-len(mine) // limit))]]


def _on_hub(source: Source) -> Entry | None:
    """The entry of a set that is addressed by its name on the hub, so that its rules hold there too."""
    name = source.name.partition("@")[0]
    exact = [each for each in CATALOG.values() if each.hub and each.hub == name]
    whole = [each for each in CATALOG.values() if each.hub and each.hub.partition(":")[0] == name.partition(":")[0]]
    return next(iter(exact + whole), None) if source.scheme == "hf" else None


def _forms(source: Source, known: Entry | None) -> tuple[AnyForm, ...]:
    if source.scheme == "catalog" and source.form is None:
        assert known is not None
        forms = known.forms
    else:
        form = source.form or Documents()
        role = source.split if source.split in ("train", "validation", "test") else "train"
        own = form.model_copy(update={"splits": {source.split: role}})
        forms = (form if source.scheme == "catalog" else own,)
    wanted = tuple(form for form in forms if not source.kinds or form.kind in source.kinds)
    if not wanted and not (known and known.evaluation_only):
        kinds = ", ".join(sorted({form.kind for form in forms}))
        raise DataError(f"{source.source} gives {kinds}, not {', '.join(source.kinds)}", key="kinds")
    return wanted


def _may_be_read(source: Source, known: Entry | None, forms: tuple[AnyForm, ...]) -> None:
    """Evaluation-only sets, and test splits, are never learned from."""
    if known is None:
        return
    kinds = {form.kind for form in forms} | (set(source.kinds) if known.evaluation_only else set())
    if known.evaluation_only and kinds != {"items"}:
        raise LicenceError(
            f"{known.name} is for evaluation only", key=source.source, todo="Take its items: `kinds: [items]`"
        )
    for form in forms:
        for split, role in form.splits.items():
            if split.startswith("test") and role != "test" and not isinstance(form, Items):
                raise LicenceError(f"the split {split!r} of {known.name} is for evaluation only", key=source.source)


def _splits(forms: tuple[AnyForm, ...], mirror: str = "", known: Entry | None = None) -> list[str]:
    """The splits that the forms name and, in a mirror, that are there. NotFound when none is."""
    named = list(dict.fromkeys(split for form in forms for split in form.splits))
    if not mirror or known is None:
        return named
    if not Path(mirror).is_dir():
        raise NotFound("the mirror of the catalog is no folder", file=mirror, todo="Check TUTELAGE_DATA")
    there = [split for split in named if _mirror_file(mirror, known, split).is_file()]
    if not there:
        raise NotFound(f"the mirror has no {known.name}", file=_mirror_file(mirror, known, named[0]))
    return there


def _keep(found: Reading, form: AnyForm, record: Produced) -> None:
    if isinstance(record, Document):
        found.documents.append(record)
    elif isinstance(record, Preference):
        found.comparisons.append(record)
    elif isinstance(form, Dialogues):
        found.dialogues.append(record)
    else:
        (found.items if isinstance(form, Items) else found.labels).append(record)


def _bad(found: Reading, error: DataError, place: tuple[Path | str, int], allowed: int) -> None:
    error.file, error.row = error.file or place[0], error.row or place[1]
    found.bad += 1
    if len(found.bad_examples) < 5:
        found.bad_examples.append(str(error))
        file = _label(found.source, found.name, error.file) if isinstance(error.file, Path) else error.file
        shown = DataError(error.message, file=file, row=error.row, key=error.key, todo=error.todo)
        found.bad_reported.append(str(shown))
    if found.bad > allowed:
        raise DataError(
            f"{error.message} (and {found.bad - 1} bad rows before it)",
            file=error.file,
            row=error.row,
            key=error.key,
            todo=f"Mend the data, or allow more than {allowed} with prepare.bad_rows",
        )


def _joined(documents: list[Document], size: int) -> list[Document]:
    """Neighbouring documents of one split, put together until they reach `size` characters."""
    done: list[Document] = []
    texts: list[str] = []
    for place, each in enumerate(documents):
        texts.append(each.text)
        last = place + 1 == len(documents) or documents[place + 1].meta["split"] != each.meta["split"]
        if last or sum(map(len, texts)) >= size:
            done.append(each.model_copy(update={"text": "\n\n".join(texts)}))
            texts = []
    return done


# An opened split is (number -> (file, row), rows), rows a function so that they can be counted first. A row is bytes
# until it is taken: most rows of a large set are only counted.


def _open(
    source: Source, known: Entry | None, split: str, mirror: str
) -> tuple[Callable[[int], tuple[Path | str, int]], Rows]:
    if source.scheme == "file":
        files = local_files(Path(source.name))
        starts: list[tuple[int, Path]] = []

        def rows() -> Iterator[tuple[int, Raw]]:
            starts.clear()
            number = 0
            for file in files:
                starts.append((number, file))
                for number, (_, row) in enumerate(rows_of(file), number + 1):  # noqa: B020 - goes on counting
                    yield number, row

        def place(number: int) -> tuple[Path | str, int]:
            start, file = max((pair for pair in starts if pair[0] < number), key=lambda pair: pair[0])
            return file, number - start

        return place, rows
    if source.scheme == "catalog" and mirror:
        assert known is not None
        path = _mirror_file(mirror, known, split)
        return (lambda number: (path, number)), (lambda: rows_of(path))
    where = known.hub if known and source.scheme == "catalog" else source.name
    if not where:
        raise NotFound(
            f"{source.name} is not on the Hugging Face hub in this form",
            key=source.source,
            todo="Point TUTELAGE_DATA at a folder that mirrors it",
        )
    renamed = known.renamed if known and source.scheme == "catalog" else {}
    return (lambda number: (where, number)), (lambda: _hub_rows(where, split, renamed))


def _mirror_file(mirror: str, known: Entry, split: str) -> Path:
    return Path(mirror) / (known.folder or known.name) / f"{split}.jsonl.gz"


def _hub_rows(where: str, split: str, renamed: Mapping[str, str]) -> Iterator[tuple[int, Raw]]:
    try:
        import datasets
    except ImportError:
        todo = "Point TUTELAGE_DATA at a folder that mirrors the sets, or let the hub answer: "
        todo += ".venv/bin/pip install -e '.[hf]'"
        raise MissingExtra("datasets", "hf", todo) from None
    path, _, revision = where.partition("@")
    name, _, configuration = path.partition(":")
    try:
        rows = datasets.load_dataset(
            name, configuration or None, split=split, revision=revision or None, trust_remote_code=False
        )
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        if reason.startswith("Unknown split"):  # sets differ in which splits they have; none at all is noticed later
            return
        raise DataError(f"the hub did not give it: {reason}", file=f"hf:{where}", key=split) from None
    for number, row in enumerate(rows, 1):
        yield number, {**row, **{ours: row.get(theirs) for ours, theirs in renamed.items()}}


def _fitting(rows: Rows, here: list[tuple[int, AnyForm]], characters: float, total: int) -> int:
    """How many rows hold so many characters of documents, judged by 200 rows at even distances."""
    lengths = []
    for _, raw in evenly(rows, min(200, total), total):
        row = parsed(raw)
        for _, form in here:
            if isinstance(form, Documents) and not isinstance(row, DataError):
                try:
                    lengths.append(len(form.fill(form.text, row)))
                except DataError:
                    continue
    return max(1, int(characters * len(lengths) / sum(lengths))) if lengths and sum(lengths) else total
