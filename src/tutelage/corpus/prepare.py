"""The stage `prepare`: every source into one corpus, by kind of record.

Documents are cleaned, rid of personal data, deduplicated, decontaminated against every held-out item, mixed and
ordered; dialogues, comparisons, labels and items go through the same account of licence, personal data, duplicates and
contamination. `report.json` says what happened to what, and where the truth is known, how well.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from pydantic import Field, field_validator

from tutelage.core.config import Config
from tutelage.core.errors import DataError
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, Message, Preference, read_jsonl, write_jsonl
from tutelage.core.stage import Context, Inputs, stage
from tutelage.corpus.catalog import Entry, entry
from tutelage.corpus.clean import FILTERS, Drops, Filter, Text, clean, improbable
from tutelage.corpus.decontaminate import Contamination, HeldOut
from tutelage.corpus.dedup import exact, exact_key, near, words_of
from tutelage.corpus.forms import KINDS, Items
from tutelage.corpus.mix import mix
from tutelage.corpus.read import Reading, Source, fingerprint, gives, names_of, read
from tutelage.corpus.report import (
    Duplicates,
    Personal,
    Report,
    SourceReport,
    judge_drops,
    judge_duplicates,
    judge_personal,
)
from tutelage.text import pii
from tutelage.text.language import identify

BROKEN = ("broken characters", "few letters", "no words", "repetitive", "improbable letters")
"""Reasons of clean.py that mean a text is broken."""


class Prepare(Config):
    """Settings of the stage `prepare`."""

    OUTSIDE_KEY: ClassVar[frozenset[str]] = frozenset({"mirror"})

    sources: tuple[Source, ...] = (Source(source="starter:"),)
    """Where the data comes from: strings such as `catalog:pretrain_books`, or mappings with `source:` and more."""
    mirror: str = ""
    """Folder that serves catalog names offline; filled in from TUTELAGE_DATA."""
    seed: int = 0
    """Another number is another town, another order and another validation part."""
    scale: float = Field(default=1.0, gt=0, le=1)
    """Size of the starter's town text: 0.1 is a tenth."""
    rows: int = Field(default=0, ge=0)
    """At most so many rows of each split of every source, whatever its own limit says; 0 leaves the limits."""
    characters: int = Field(default=0, ge=0)
    """About so many characters of training documents; the sources' weights are then their shares. 0 takes all."""
    validation: float = Field(default=0.02, ge=0, lt=1)
    """Share of the documents held back for validation, from sources without a validation split."""
    filters: tuple[Filter, ...] = FILTERS
    """Filters of corpus/clean.py that run."""
    shortest: int = 8
    """Documents with fewer characters are dropped."""
    personal: tuple[str, ...] = pii.TYPES
    """Types of personal data that are taken out."""
    near: float = Field(default=0.8, ge=0, le=1)
    """Jaccard index of word triples from which two documents are near duplicates; 0 keeps them."""
    gram: int = Field(default=8, ge=2)
    """Length in words of the runs by which held-out items are recognised in training text."""
    common: int = Field(default=5, ge=1)
    """A run that stands in more held-out items than this is a wording, not a secret."""
    held_out: tuple[str, ...] = ()
    """Further JSONL files of examination items (Examples) that training text must not hold."""
    bad_rows: int = Field(default=100, ge=0)
    """So many rows of a source may be bad before it is an error."""
    data: dict[str, str] = Field(default_factory=dict)
    """sha256 of every local file that is read; filled in, so that changed data is another corpus."""

    @field_validator("sources", mode="before")
    @classmethod
    def _written_short(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(listed, list | tuple):
            return value
        return tuple({"source": each} if isinstance(each, str) else each for each in listed)

    @field_validator("personal")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(pii.TYPES)):
            raise ValueError(f"unknown types {unknown}; there are {', '.join(pii.TYPES)}")
        return value

    def names(self) -> list[str]:
        """What the sources and then the held-out files are called, wherever they lie."""
        return names_of([*self.sources, *(Source(source=f"file:{file}") for file in self.held_out)])

    def resolved(self) -> dict[str, Any]:
        """Local files by name and content: where they lie decides nothing."""
        values, names = super().resolved(), self.names()
        found: dict[str, str] = {}
        for each, name, written in zip(self.sources, names, values["sources"], strict=False):
            found |= fingerprint(each, self.mirror, name)
            written["source"] = _shown(each, name)
        values["held_out"] = names[len(self.sources) :]
        for file, name in zip(self.held_out, values["held_out"], strict=True):
            found |= fingerprint(Source(source=f"file:{file}"), "", name)
        return values | {"data": dict(sorted(found.items()))}


def _cost(config: Prepare, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """From what was seen: the town, or public sets at their limits of some thousand rows each."""
    if any(each.scheme == "starter" for each in config.sources):
        characters, rows = 4.2e6 * config.scale, 1.6e4 * config.scale
        made = {"dialogues": 9e3 * config.scale, "prompt_tokens": 20.0, "answer_tokens": 7.0}
        made |= {
            "item_tokens": 22.0,
            "document_tokens": 75.0,
            "words": 7e3,
            "text_sources": 6.0,
            "held_out": config.validation * characters,
        }
    else:
        characters, most = float(config.characters or 40e6), config.rows or 1 << 31
        known = [entry(each.name) for each in config.sources if each.scheme == "catalog"]
        rows = sum(min(2.5e3, 3.0 * most) for _ in config.sources)
        made = {"dialogues": 0.5 * rows, "labels": 0.25 * rows, "prompt_tokens": 40.0, "answer_tokens": 10.0}
        made |= {"cells": 1.0, "item_tokens": 130.0, "suites": float(sum(map(_examines, known)))}
        texts = float(sum("documents" in each.kinds for each in known))
        made |= {"words": 38 * characters**0.5, "text_sources": texts, "label_characters": 370.0}
        made["unnamed"] = float(sum("comparisons" in each.kinds and not each.named for each in known)) * 850
        made["held_out"] = config.validation * characters + 5e5 * texts  # many sets bring held-out text of their own
    made["characters"] = characters
    return Cost(seconds=0.3 + 1.2e-6 * characters + 1e-4 * rows, memory=2e8 + 30 * characters, sizes=made)


def _examines(known: Entry) -> bool:
    """Whether a set brings questions that models are examined on."""
    tasks = {form.task for form in known.forms if isinstance(form, Items)}
    return bool(tasks - {"goal", "benign", "pair", "audit"})


@stage(makes="corpus", config=Prepare, cost=_cost)
def prepare(config: Prepare, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Read every source and make one clean, deduplicated, decontaminated, mixed corpus of it, with a report."""
    work = _Work(config, context)
    work.read()
    work.clean()
    work.deduplicate()
    work.decontaminate()
    return work.write(out)


class _Work:
    """The records on their way, and the account of what happened to them."""

    def __init__(self, config: Prepare, context: Context) -> None:
        self.config, self.context = config, context
        self.readings: list[Reading] = []
        self.texts: list[Text] = []
        self.dialogues: list[Example] = []
        self.comparisons: list[Preference] = []
        self.labels: list[Example] = []
        self.items: list[Example] = []
        self.drops = Drops()
        self.duplicates = Duplicates(threshold=config.near)
        self.personal: Counter[str] = Counter()
        self.personal_texts = 0
        self.found: dict[str, list[tuple[str, str]]] = {}
        self.contamination = Contamination()
        self.truth: Any = None
        self.given: set[str] = set()
        """Held-out text that a source brings: it is tidied but kept whole, so that figures on it can be compared."""

    # -- read

    def read(self) -> None:
        total = sum(each.weight for each in self.config.sources if gives(each, "documents")) or 1.0
        for place, (source, name) in enumerate(zip(self.config.sources, self.config.names(), strict=False)):
            self.context.check()
            self.context.say.progress(place, len(self.config.sources), unit="sources")
            if source.scheme == "starter":
                reading = self._starter(source)
            else:
                reading = read(
                    _bounded(source, self.config.rows),
                    name=name,
                    mirror=self.config.mirror,
                    bad_rows=self.config.bad_rows,
                    characters=self.config.characters * source.weight / total,
                    check=self.context.check,
                )
            if reading.bad:
                self.context.say.note(
                    f"{source.source}: {reading.bad} bad rows left out, the first: {reading.bad_examples[0]}"
                )
            self.readings.append(reading)
            self._take(reading)
        self.context.licence(*(reading.licence for reading in self.readings))

    def _starter(self, source: Source) -> Reading:
        from tutelage.starter import more, world

        if source.name != "starter":
            further = more.items_of(source.name, self.config.seed)
            return Reading(source, source.name, "permissive", "further suites of the embedded town", items=further)
        town = world.build(self.config.seed, self.config.scale)
        self.truth = town.truth
        reading = Reading(source, source.name, "permissive", "the embedded town: everything, with its truth known")
        wanted = source.kinds or KINDS
        if "documents" in wanted:
            reading.documents = list(town.documents())
        if "dialogues" in wanted:
            reading.dialogues = list(town.dialogues())
        if "labels" in wanted:
            reading.labels = list(town.labels())
        if "items" in wanted:
            reading.items = list(town.items())
        reading.rows = sum(reading.counts().values())
        return reading

    def _take(self, reading: Reading) -> None:
        """Documents get their split: as the source says, else a share held back by a hash of the id."""
        fixed = any(each.meta.get("split") == "validation" for each in reading.documents)
        for place, each in enumerate(reading.documents):
            meta = dict(each.meta)
            name = str(meta.pop("id", f"{reading.name}/{place}"))
            split = str(meta.pop("split", "train"))
            if split != "train":
                self.given.add(name)
            elif not fixed and _draw(self.config.seed, name) < self.config.validation:
                split = "validation"
            self.texts.append(Text(name, each.text, each.source, each.licence, split, meta))
        self.dialogues += reading.dialogues
        self.comparisons += reading.comparisons
        self.labels += reading.labels
        self.items += reading.items

    # -- clean

    def clean(self) -> None:
        kept = []
        for place, text in enumerate(self.texts):
            if place % 500 == 0:
                self.context.check()
                self.context.say.progress(place, len(self.texts), unit="documents")
            text.text, reason = clean(text.text, self.config.filters, self.config.shortest)
            if reason and text.id not in self.given:
                self.drops.add(reason, text)
            else:
                kept.append(text)
        self.texts = []
        strange = self._improbable(kept) if "improbable" in self.config.filters else set()
        for text in kept:
            if text.id in strange - self.given:
                self.drops.add("improbable letters", text)
            else:
                text.text = self._redacted(text.text, text.id)
                self.texts.append(text)
        self.dialogues = [self._redacted_turns(each) for each in self.dialogues]
        self.comparisons = [
            each.model_copy(update={"prompt": self._turns(each.prompt), "candidates": self._turns(each.candidates)})
            for each in self.comparisons
        ]

    def _improbable(self, texts: Sequence[Text]) -> set[str]:
        """Ids of training texts whose letters are improbable within their source."""
        found = improbable([text.text for text in texts], [text.source for text in texts])
        return {text.id for text, strange in zip(texts, found, strict=True) if strange}

    def _redacted(self, text: str, name: str = "") -> str:
        spans = pii.find(text, self.config.personal) if self.config.personal else []
        if name and self.truth is not None:
            self.found[name] = [(span.type, text[span.start : span.end]) for span in spans]
        if not spans:
            return text
        self.personal_texts += 1
        self.personal.update(span.type for span in spans)
        return pii.redact(text, spans)

    def _turns(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        changed = [(each, self._redacted(each.content)) for each in messages]
        return tuple(
            each if text == each.content else each.model_copy(update={"content": text}) for each, text in changed
        )

    def _redacted_turns(self, example: Example) -> Example:
        turns = self._turns(example.messages)
        if turns == example.messages:
            return example
        target = turns[-1].content if example.target is not None else None
        return example.model_copy(update={"messages": turns, "target": target})

    # -- deduplicate

    def deduplicate(self) -> None:
        """What is held back stays, so validation text comes first and its copies in training text go."""
        self.texts.sort(key=lambda text: text.split != "validation")
        first = exact([text.text for text in self.texts])
        exact_count = sum(place != other for place, other in enumerate(first))
        self.texts = self._without(first, "exact duplicate")
        near_count = 0
        if self.config.near:
            self.context.say.note("looking for near duplicates", documents=len(self.texts))
            first = near(words_of([text.text for text in self.texts]), self.config.near, check=self.context.check)
            near_count = sum(place != other for place, other in enumerate(first))
            self.texts = self._without(first, "near duplicate")
        before = len(self.dialogues)
        held = {exact_key(_text(each)) for each in self.dialogues if each.tags.get("split") != "train"}
        seen: set[bytes] = set()
        kept = []
        for each in self.dialogues:
            key = exact_key(_text(each))
            if key in seen or (each.tags.get("split") == "train" and key in held):
                continue
            seen.add(key)
            kept.append(each)
        self.dialogues = kept
        self.duplicates = Duplicates(
            exact=exact_count, near=near_count, threshold=self.config.near, dialogues=before - len(kept)
        )

    def _without(self, first: Sequence[int], reason: str) -> list[Text]:
        kept = []
        for place, (text, other) in enumerate(zip(self.texts, first, strict=True)):
            if place == other:
                kept.append(text)
            else:
                self.drops.add(reason, text)
        return kept

    # -- decontaminate

    def decontaminate(self) -> None:
        items = [_text(each, whole=True) for each in self.items]
        for file in self.config.held_out:
            items += [_text(each, whole=True) for each in read_jsonl(Path(file), Example)]
        items += [_text(each) for each in self.comparisons if each.tags.get("split") == "test"]
        held = HeldOut(items, self.config.gram, self.config.common)
        dropped: dict[str, int] = {}
        examples: list[dict[str, str]] = []
        for kind in ("texts", "dialogues", "comparisons", "labels"):
            self.context.check()
            records = getattr(self, kind)
            training = [each for each in records if _learned(each)]
            hit = held.found_in(words_of([_text(each) for each in training]))
            bad = {id(each) for each, is_hit in zip(training, hit, strict=True) if is_hit}
            if kind == "texts":
                for each in training:
                    if id(each) in bad:
                        self.drops.add("holds a run of a held-out item", each)
            if bad:
                dropped["documents" if kind == "texts" else kind] = len(bad)
                shown = next(each for each in training if id(each) in bad)
                examples.append({"kind": kind, "text": _text(shown)[:160]})
            setattr(self, kind, [each for each in records if id(each) not in bad])
        left = 0
        for kind in ("texts", "dialogues", "comparisons", "labels"):
            training = [each for each in getattr(self, kind) if _learned(each)]
            left += int(held.found_in(words_of([_text(each) for each in training])).sum())
        self.contamination = Contamination(
            items=held.items,
            gram=held.gram,
            runs=len(held.runs),
            wording=held.wording,
            common=held.common,
            dropped=dropped,
            left=left,
            examples=examples,
        )

    # -- write

    def write(self, out: Path) -> dict[str, Any]:
        weights: dict[str, float] = {}
        for reading in self.readings if not self.config.characters else ():  # else the weights were shares in reading
            weights |= {each.source: reading.source.weight for each in reading.documents}
        train = mix([text for text in self.texts if text.split == "train"], weights, self.config.seed)
        validation = sorted((text for text in self.texts if text.split == "validation"), key=lambda text: text.source)
        if not (train or self.dialogues or self.labels or self.comparisons):
            dropped = {reason: each.count for reason, each in self.drops.by_reason.items()}
            raise DataError(f"nothing is left to train on; dropped: {dropped or 'nothing'}", key="prepare.sources")
        ordered = [*train, *validation]
        _write_documents(out / "documents.parquet", ordered)
        order = np.random.default_rng([self.config.seed, 1]).permutation(len(self.dialogues))
        self.dialogues = [self.dialogues[int(place)] for place in order]  # any first part is a fair mixture
        for name in ("dialogues", "comparisons", "labels", "items"):
            write_jsonl(out / f"{name}.jsonl", getattr(self, name))
        report = self._report(ordered)
        (out / "report.json").write_text(
            json.dumps(report.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
        )
        counts = {kind: len(getattr(self, kind)) for kind in ("dialogues", "comparisons", "labels", "items")}
        metrics: dict[str, Any] = {
            "documents": len(train),
            "validation_documents": len(validation),
            "characters": sum(len(text.text) for text in train),
            **counts,
            "dropped": {reason: each.count for reason, each in sorted(self.drops.by_reason.items())},
            "contamination_left": self.contamination.left,
        }
        if report.truth:
            metrics["truth"] = {
                name: {"recall": each.recall, "precision": each.precision}
                for name, each in report.truth.items()
                if "/" not in name
            }
        return metrics

    def _report(self, ordered: Sequence[Text]) -> Report:
        splits: dict[str, Counter[str]] = defaultdict(Counter)
        licences: dict[str, Counter[str]] = defaultdict(Counter)
        kept: dict[str, Counter[str]] = defaultdict(Counter)
        for text in ordered:
            splits[text.split].update(documents=1, characters=len(text.text))
            licences[text.licence].update(documents=1)
            kept[text.source].update(documents=1, characters=len(text.text))
        for kind in ("dialogues", "comparisons", "labels", "items"):
            for each in getattr(self, kind):
                splits[str(each.tags.get("split"))][kind] += 1
                licences[str(each.tags.get("licence"))][kind] += 1
                kept[str(each.tags.get("source"))][kind] += 1
        return Report(
            sources=[self._source_report(reading, ordered, kept) for reading in self.readings],
            drops=dict(sorted(self.drops.by_reason.items())),
            personal=Personal(texts=self.personal_texts, found=dict(sorted(self.personal.items()))),
            duplicates=self.duplicates,
            contamination=self.contamination,
            licences={name: dict(counts) for name, counts in sorted(licences.items())},
            splits={name: dict(counts) for name, counts in sorted(splits.items())},
            levels=dict(sorted(Counter(str(text.meta["level"]) for text in ordered if "level" in text.meta).items())),
            truth=self._truth() if self.truth is not None else None,
        )

    def _source_report(
        self, reading: Reading, ordered: Sequence[Text], kept: Mapping[str, Counter[str]]
    ) -> SourceReport:
        names = {each.source for each in reading.documents}
        records = [*reading.dialogues, *reading.comparisons, *reading.labels, *reading.items]
        names |= {str(cast(Any, each).tags.get("source")) for each in records}
        total: Counter[str] = Counter()
        for name in names:
            total.update(kept.get(name, Counter()))
        mine = [text for text in ordered if text.source in names]
        sample = mine[:: max(1, len(mine) // 300)][:300]
        return SourceReport(
            source=_shown(reading.source, reading.name),
            licence=reading.licence,
            use=reading.use,
            rows=reading.rows,
            read=reading.counts(),
            kept={kind: total[kind] for kind in KINDS},
            characters=total["characters"],
            languages=dict(Counter(identify(text.text, sample=500).code for text in sample).most_common()),
            bad_rows=reading.bad,
            bad_examples=reading.bad_reported,
        )

    def _truth(self) -> dict[str, Any]:
        """What the starter planted, beside what was found."""
        dropped: dict[str, set[str]] = defaultdict(set)
        for name, reason in self.drops.ids.items():
            dropped[reason].add(name)
        read_ids = {str(each.meta.get("id")) for reading in self.readings for each in reading.documents}
        broken = set().union(*(dropped[reason] for reason in BROKEN))
        cleaned = set(self.found)
        copies = {kind: dropped[f"{kind} duplicate"] for kind in ("exact", "near")}
        found = {
            "broken": judge_drops(set(self.truth.broken), broken, read_ids),
            **judge_duplicates(self.truth.duplicates, copies, cleaned),
        }
        if self.config.personal:
            found |= judge_personal(self.truth.pii, self.truth.lookalikes, self.found)
        return found


def _text(record: Text | Example | Preference, whole: bool = False) -> str:
    """All the words of a record; `whole` adds target and choices."""
    if isinstance(record, Text):
        return record.text
    if isinstance(record, Preference):
        return "\n".join(message.content for message in (*record.prompt, *record.candidates))
    parts = [message.content for message in record.messages]
    return "\n".join([*parts, record.target or "", *record.choices] if whole else parts)


def _learned(record: Text | Example | Preference) -> bool:
    """Whether anything is learned or tuned on a record: training documents, and all others but the test split."""
    return record.split == "train" if isinstance(record, Text) else record.tags.get("split", "train") != "test"


def _shown(source: Source, name: str) -> str:
    """A source as artifacts write it: a local one without the place where it lies."""
    return f"file:{name}" if source.scheme == "file" else source.source


def _bounded(source: Source, rows: int) -> Source:
    """The source with at most `rows` rows of each split; 0 changes nothing."""
    limit = min(source.limit or rows, rows) if rows else source.limit
    return source.model_copy(update={"limit": limit})


def _draw(seed: int, name: str) -> float:
    """A number from 0 to 1 that a name has under a seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") / 2**64


def _write_documents(path: Path, texts: Sequence[Text]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    seen: Counter[str] = Counter()
    columns: dict[str, list[str]] = {name: [] for name in ("id", "text", "source", "licence", "split", "meta")}
    for text in texts:
        seen[text.id] += 1  # a text that is passed twice has two rows
        columns["id"].append(text.id if seen[text.id] == 1 else f"{text.id}#{seen[text.id]}")
        columns["meta"].append(json.dumps(text.meta, sort_keys=True, ensure_ascii=False))
        for name in ("text", "source", "licence", "split"):
            columns[name].append(getattr(text, name))
    table = arrow.table({name: arrow.array(values, arrow.string()) for name, values in columns.items()})
    parquet.write_table(table, path, row_group_size=5000, compression="zstd")
