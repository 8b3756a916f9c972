"""Stage `classifier`: people's labels -> the always-on guard, all categories in one pass, calibrated and certified.

`classifier.json` holds what `Sealed` says, `weights.safetensors` one table and one bias per direction and tier.
Thresholds are chosen on the calibration side alone, and every figure is of the test side, which no threshold has seen.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import CorruptArtifact, DataError, MissingExtra, NotFound
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, Verdict, explain
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.judge.certificate import Certificate, together
from tutelage.judge.encoder import Cascade, CascadeStream, Embedder, Tier
from tutelage.judge.figures import all_together, of_direction
from tutelage.judge.fitting import Classifier, choose, fit_direction
from tutelage.judge.judge import Progress, Tap, answer_of, failed
from tutelage.judge.labelled import DIRECTIONS, direction_of, read_rows, short
from tutelage.judge.ngrams import Heads
from tutelage.judge.sealed import Head, Sealed, Second
from tutelage.model import encoder as encoders

Floats = NDArray[np.float64]


class ClassifierJudge:
    """The trained guard as a judge. The direction is `tags.direction`, else by the last message's role.

    Scores are calibrated probabilities per category; a direction it was not trained for is `unsupported`.

    Args:
        kept: folder in which an encoder's vectors are kept, to examine many texts again; in service there is none.
    """

    def __init__(self, path: Path, name: str = "", kept: Path | None = None) -> None:
        file = path / "classifier.json"
        try:
            self.sealed = Sealed.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise CorruptArtifact("the file is missing", file=file) from None
        except ValidationError as error:
            key, message = explain(error)
            raise CorruptArtifact(message, file=file, key=key) from None
        self.name = name or f"classifier:{path.name[:12]}"
        self._made = made_at(path)
        self._certified: dict[str, str | None] = {
            direction: together([each for head in self.sealed.of(direction) for each in head.certificates])
            for direction in DIRECTIONS
        }
        tensors = load_file(str(path / "weights.safetensors"))
        self._embedder: Embedder | None = None
        self._kept = kept
        self._lock = threading.Lock()
        if self.sealed.second:
            _the_same(self.sealed.second, file)
        self._cascades: dict[str, Cascade] = {}
        for direction in DIRECTIONS:
            heads = self.sealed.of(direction)
            if heads:
                table, bias = tensors[direction], tensors[f"{direction}.bias"]
                first = Heads(self.sealed.counted(direction), [h.category for h in heads], table, bias)
                tier = None
                if any(head.escalation for head in heads):
                    again = (tensors[f"{direction}.encoder"], tensors[f"{direction}.encoder.bias"])
                    tier = Tier(tuple(head.escalation for head in heads), *(each.astype(np.float64) for each in again))
                self._cascades[direction] = Cascade(first, tier, self._embed)

    @property
    def bounded(self) -> bool:
        """Whether it is arithmetic of known cost: an encoder needs a thread and a time limit."""
        return not any(cascade.tier for cascade in self._cascades.values())

    def warm(self) -> None:
        """Load the encoder, so that nobody's first text waits for it."""
        if not self.bounded:
            self._embed(["warm"])

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        with self._lock:
            if self._embedder is None:
                assert self.sealed.second
                self._embedder = Embedder(encoders.load(self.sealed.second.ref), self._kept)
        return self._embedder(texts)

    def categories(self, direction: str) -> tuple[str, ...]:
        """What it scores in a direction."""
        cascade = self._cascades.get(direction)
        return cascade.categories if cascade else ()

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All thresholds with what is known about them, and when they were made."""
        dated = {"at": self._made}
        return tuple(each.model_copy(update=dated) for head in self.sealed.heads for each in head.certificates)

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example, on its last message."""
        return [self._judge(example) for example in examples]

    def _judge(self, example: Example) -> Verdict:
        direction = direction_of(example)
        cascade = self._cascades.get(direction)
        if cascade is None:
            return failed(self.name, "unsupported")
        started = time.perf_counter()
        logits = cascade.scores([answer_of(example)])[0]
        return self.verdict(direction, logits, 1000 * (time.perf_counter() - started))

    def many(self, direction: str, texts: Sequence[str]) -> list[Verdict]:
        """Verdicts on many texts of a direction, whose vectors are made together: as `judge` gives them, within what
        half precision rounds. Raises KeyError for a direction it was not trained for."""
        return [self.verdict(direction, logits) for logits in self._cascades[direction].scores(texts)]

    def verdict(self, direction: str, logits: Floats, cost_ms: float = 0.0) -> Verdict:
        """Log-odds [K] of a direction as a verdict with calibrated scores."""
        scores = {
            head.category: float(head.calibration(logit))
            for head, logit in zip(self.sealed.of(direction), logits, strict=True)
        }
        certified = self._certified[direction]
        return Verdict(judge=self.name, scores=scores, cost_ms=round(cost_ms, 4), certificate=certified)

    def watch(self, conversation: Example) -> ClassifierWatcher | Unsupported:
        """A watcher of the answer to come; the direction is `tags.direction`, else output."""
        direction = str(conversation.tags.get("direction", "output"))
        cascade = self._cascades.get(direction)
        return ClassifierWatcher(self, direction, cascade.stream()) if cascade else Unsupported(self.name)


class ClassifierWatcher:
    """Carries the sums of the n-grams along: O(n) in all, and in the end the verdict of the whole text, which asks the
    encoder about the same passages."""

    def __init__(self, judge: ClassifierJudge, direction: str, stream: CascadeStream) -> None:
        self._judge, self._direction, self._stream = judge, direction, stream
        self._cost = 0.0

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """More text."""
        started = time.perf_counter()
        logits = self._stream.feed(text)
        self._cost += 1000 * (time.perf_counter() - started)
        verdict = None if logits is None else self._judge.verdict(self._direction, logits, self._cost)
        return Progress(self._stream.scored_to, verdict)

    def close(self) -> Progress:
        """The end: all of it is scored."""
        started = time.perf_counter()
        logits = self._stream.close()
        self._cost += 1000 * (time.perf_counter() - started)
        return Progress(self._stream.scored_to, self._judge.verdict(self._direction, logits, self._cost))


class Unsupported:
    """Watcher of a judge that has no head for the direction: never an opinion, nothing scored."""

    def __init__(self, name: str) -> None:
        self._name = name

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        """Nothing is scored."""
        return Progress(0, failed(self._name, "unsupported"))

    def close(self) -> Progress:
        """Nothing was scored."""
        return Progress(0, failed(self._name, "unsupported"))


def made_at(path: Path) -> str:
    """When an artifact was made (UTC), as its manifest says; empty where there is none."""
    return str(Artifact(path).manifest.made.get("at", "")) if (path / "manifest.json").is_file() else ""


def _the_same(second: Second, file: Path) -> None:
    """Raises NotFound where the encoder is not here, CorruptArtifact where another one bears its name."""
    if encoders.identity_of(encoders.locate(second.ref)) != second.identity:
        message = f"the encoder {second.ref!r} that is here is not the one it was trained with"
        raise CorruptArtifact(message, file=file, key="second.identity")


def open_classifier(ref: str, root: Root | None = None, **options: Any) -> ClassifierJudge:
    """Open `classifier:<id>`."""
    return ClassifierJudge(refs.resolve_artifact(ref, root or Root("life")).verified().path)


def _cost(config: Classifier, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Every row is read and learned from once in each fold, and once for good; some are shown to the encoder."""
    labels = sizes.get("labels", {})
    rows, characters = labels.get("rows", 6500.0), labels.get("characters", 40.0)
    seconds = 0.2 + (6e-4 + 1.8e-6 * characters) * rows * (config.folds + 1) / 4
    if config.encoder:
        shown = min(rows, 2 * config.sample + 2 * config.escalated * rows)
        seconds += 5 + shown * (4e-3 + 8e-5 * min(characters, 1024.0))
    return Cost(seconds=seconds, memory=900e6 if config.encoder else 600e6)


@stage(
    makes="classifier",
    config=Classifier,
    version=4,
    inputs={
        "labels": Input(kind=("labels", "corpus"), default="labels", many=True, help="Label examples to learn from")
    },
    cost=_cost,
)
def classifier(config: Classifier, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Train, calibrate and certify one guard over all categories and both directions."""
    files = [artifact.file("labels.jsonl") for artifact in inputs.labels]
    by_direction, dropped = read_rows(
        files,
        near=config.near,
        held_out=config.held_out,
        tested=config.tested,
        seed=config.seed,
        check=context.check,
    )
    heads: list[Head] = []
    tensors: dict[str, NDArray[Any]] = {}
    left_out: dict[str, str] = {}
    figures: dict[str, Any] = {}
    all_heads: dict[str, Any] = {}
    embed, tiers = _encoder(config, context)
    data = hashlib.sha256()
    for direction in DIRECTIONS:
        rows = by_direction[direction]
        for row in rows:
            data.update(f"{direction}\0{row.id}\0{short(row.text)}\0{sorted(row.categories.items())}\n".encode())
        wanted, missing = choose(rows, config)
        left_out.update({f"{direction}/{name}": why for name, why in missing.items()})
        if wanted:
            context.check()
            made, cascade, tested, stated = fit_direction(direction, rows, wanted, config, context, embed)
            heads += made
            first = cascade.heads
            tensors[direction], tensors[f"{direction}.bias"] = first.table, first.bias.astype(np.float32)
            if cascade.tier:
                tensors[f"{direction}.encoder"] = cascade.tier.table.astype(np.float32)
                tensors[f"{direction}.encoder.bias"] = cascade.tier.bias.astype(np.float32)
            test = [row for row in rows if row.side == "test"]
            figures.update(of_direction(made, tested, test))
            all_heads[direction] = all_together(made, tested, test)
            tiers |= {direction: stated} if stated else {}
    if not heads:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(left_out.items())) or "no labelled rows"
        raise DataError(f"no category has enough labels to learn from ({reasons})", file=files[0] if files else None)
    second = None
    if embed and any(head.escalation for head in heads):
        second = Second(ref=config.encoder, identity=embed.encoder.identity)
    sealed = Sealed(
        features=config.features("input"),
        first=min(config.first, config.minimum),
        heads=tuple(heads),
        left_out=left_out,
        second=second,
        data=data.hexdigest(),
    )
    (out / "classifier.json").write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    save_file(tensors, str(out / "weights.safetensors"))
    sides = Counter(row.side for rows in by_direction.values() for row in rows)
    counts = {"rows": sides.total(), "calibration": sides["calibration"], "tested": sides["test"], "dropped": dropped}
    return {**counts, "heads": figures, "together": all_heads, "left_out": left_out, "encoder": tiers}


def _encoder(config: Classifier, context: Context) -> tuple[Embedder | None, dict[str, Any]]:
    """The encoder, if one is asked for and here, and what the metrics say of it."""
    if not config.encoder:
        return None, {}
    try:
        found = encoders.load(config.encoder)
    except (NotFound, MissingExtra) as error:
        context.say.note(f"the n-grams decide alone: {error.message}", todo=error.todo)
        return None, {"missing": f"{config.encoder}: {error.message}"}
    kept = context.root.path / "embeddings"
    return Embedder(found, kept, context.check), {"identity": found.identity, "width": found.width}
