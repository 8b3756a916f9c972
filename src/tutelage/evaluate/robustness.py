"""What a change of form costs that changes nothing about the question: paired losses, and an honest worst case.

The lowest of several answers is low for any model that is not always right: asked k times with nothing but luck
between the answers, it is below their mean. Where answers are drawn by chance, the item as it stands is therefore asked
as often as it is changed, and the two worst cases are compared: `excess`. Greedy answers have no luck in them (see
reliability.determinism), and the worst case stands beside the answer itself. The mean loss over all forms is 0 for a
model that other forms merely shake.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from tutelage.core.config import Config
from tutelage.core.records import Example
from tutelage.evaluate.ask import GREEDY, AnswerLog
from tutelage.evaluate.perturb import expand, perturbed, vocabulary
from tutelage.evaluate.suite import Result, Suite, item_id, sample
from tutelage.evaluate.suites.kinds import Ground, Metric, metric_of, named, value_of
from tutelage.evaluate.ways import Way
from tutelage.generate.generator import Generator
from tutelage.measure.statistics import (
    Comparison,
    holm,
    mean,
    negative,
    non_inferior,
    paired,
    plain,
    rate,
    undefined,
)

WORST = "worst case"
AGAIN = "asked again"
"""In place of a family: the lowest answer over all forms of an item; the item as it stands, once more."""
ALL = "all suites"
WEIGHED = ("choice", "perplexity")
"""Kinds in which nothing is drawn by chance: a likelihood is the same each time."""
FEWEST = 30
"""Items below which a worst case has no figure."""


class Robustness(Config):
    """The same items in other forms: `evaluate` asks some of each suite again, changed, and states what that costs."""

    items: int = Field(0, ge=0)
    """Items per suite that are asked in every form that fits; 0 leaves the examination out."""
    families: tuple[str, ...] = ("typos", "casing", "punctuation", "word-order", "prompt", "options")
    """Forms: typos, casing, spacing, punctuation, homoglyphs, zero-width, word-order, paraphrase, prompt, distractor,
    options, learner:LANGUAGE, dialect:NAME; `learners`, `dialects` and `all` stand for several."""
    strength: float = Field(1.0, gt=0, le=3)
    """How much of a text is changed; 1 is what people do."""
    temperature: float = Field(0.0, ge=0)
    """Above 0 answers are drawn, and the items as they stand are asked again as often as they are changed."""
    margin: float = Field(0.05, gt=0, lt=1)
    """A loss within this is small enough, if the interval proves it."""

    @field_validator("families")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        expand(value)
        return value


class Forms(NamedTuple):
    """Items in other forms, and what could not be had: (suite, family) -> reason -> how many."""

    items: tuple[Example, ...]
    originals: tuple[Example, ...]
    left_out: Mapping[tuple[str, str], Counter[str]]


def forms(chosen: Sequence[Suite], config: Robustness, seed: int = 0) -> Forms:
    """Some items of each suite (spread over clusters) in every form whose label provably holds."""
    if not config.items:
        return Forms((), (), {})
    found: list[Example] = []
    originals: list[Example] = []
    left_out: dict[tuple[str, str], Counter[str]] = {}
    for suite in chosen:
        words = vocabulary(suite.items)
        for item in sample(suite.items, config.items, seed):
            originals.append(item)
            for family in expand(config.families):
                form = perturbed(item, family, seed=seed, strength=config.strength, words=words)
                if isinstance(form, str):
                    left_out.setdefault((str(item.tags["suite"]), family), Counter())[form] += 1
                else:
                    found.append(form)
    return Forms(tuple(found), tuple(originals), left_out)


def again(given: Forms) -> int:
    """How often items are asked again as they stand where answers are drawn: as often as the most changed one is."""
    return max(Counter(str(form.tags["original"]) for form in given.items).values(), default=0)


def repeatable(given: Forms) -> list[Example]:
    """The items that are asked again as they stand where answers are drawn."""
    return [item for item in given.originals if item.tags["kind"] not in WEIGHED]


def ask(
    generator: Generator,
    given: Forms,
    config: Robustness,
    way: Way,
    *,
    target: str,
    target_id: str = "",
    log: AnswerLog | None = None,
    max_tokens: Mapping[str, int] | None = None,
    seed: int = 0,
    step: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """One row per form: `item` names the item as it stands, `slices.perturbation` the family.

    `way` is that in which the items were asked as they stand: a form is all in which the two differ.
    """
    more: dict[str, Any] = {
        "target": target,
        "target_id": target_id,
        "log": log,
        "max_tokens": max_tokens,
        "step": step,
    }
    how = GREEDY.model_copy(update={"temperature": config.temperature, "seed": seed})
    rows = way.examine(generator, given.items, originals=given.originals, sampling=how, **more)
    found = [_row(row, item, str(item.tags["perturbation"])) for row, item in zip(rows, given.items, strict=True)]
    if config.temperature > 0:
        drawn = repeatable(given)
        for turn in range(1, 1 + again(given)):
            rows = way.examine(generator, drawn, sampling=how.model_copy(update={"seed": seed + turn}), **more)
            found += [_row(row, item, f"{AGAIN}:{turn}") for row, item in zip(rows, drawn, strict=True)]
    return found


def _row(row: Result, item: Example, family: str) -> Result:
    name = str(item.tags.get("original") or item_id(item))
    return row.model_copy(update={"item": name, "slices": row.slices | {"perturbation": family}})


def table(
    results: Iterable[Result], changed: Iterable[Result], given: Forms, *, margin: float = 0.05
) -> list[dict[str, Any]]:
    """Target x suite x metric x family: what the form costs (paired by item, clustered; positive is worse), with Holm
    over the families; and per suite the worst case. Suite None: all suites together, whatever their metrics.

    `value` is the loss; `before` and `after` the figures, of a corpus figure (chrF, bits per byte) that of the items
    compared; `holds` whether a loss beyond `margin` is ruled out;
    `left_out` why items had no such form; `unmeasured` forms or items without an answer that could be measured.
    """
    wanted = {item_id(item) for item in given.originals}
    told: dict[_Key, dict[str, Result]] = {}
    for row in results:
        if row.item in wanted:
            for key in _keys(row):
                told.setdefault(key, {})[row.item] = row
    rows: dict[_Key, dict[str, dict[str, Result]]] = {}
    for row in changed:
        for key in _keys(row):
            rows.setdefault(key, {}).setdefault(row.slices["perturbation"], {})[row.item] = row
    families = list(dict.fromkeys(name for place in rows.values() for name in place if not name.startswith(AGAIN)))
    families += [name for _, name in given.left_out if name not in families]
    found: list[dict[str, Any]] = []
    ground = Ground({item_id(item): item for item in given.originals})
    for key, originals in told.items():
        place = rows.get(key, {})
        repeats = [members for name, members in place.items() if name.startswith(AGAIN)]
        entries = [
            _entry(key, family, originals, place.get(family, {}), repeats, given, margin, ground)
            for family in dict.fromkeys(families)
        ]
        for entry, p in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
            entry["p_holm"] = p
        forms_of = {name: members for name, members in place.items() if not name.startswith(AGAIN)}
        found += [*entries, _worst(key, originals, forms_of, repeats)]
    return found


_Key = tuple[str, str | None, str]


OWN = "every suite's own"
"""The metric of all suites together."""


def _keys(row: Result) -> list[_Key]:
    """Where a row counts: in its suite, and among all suites where more is better and no judge has a word."""
    own: list[_Key] = [(row.target, row.suite, row.metric)]
    apart = not named(row.metric).higher or row.kind == "judged"
    return own if apart else [*own, (row.target, None, OWN)]


def _metric(key: _Key, rows: Mapping[str, Result]) -> Metric:
    """What is measured there."""
    if key[2] == OWN:
        return Metric(OWN, score=value_of)
    return metric_of(next(iter(rows.values())).kind, key[2])


def _left_out(given: Forms, suite: str | None, family: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for (name, form), reasons in given.left_out.items():
        if form == family and suite in (None, name):
            found += reasons
    return found


def _cluster(row: Result) -> str:
    return f"{row.suite}/{row.cluster}"


def _values(repeats: Sequence[Mapping[str, Result]], item: str) -> list[float]:
    return [each[item].value or 0.0 for each in repeats if item in each and each[item].value is not None]


def _before(original: Result, repeats: Sequence[Mapping[str, Result]]) -> float | None:
    """An item as it stands: its answer, or the mean of those to it where they were drawn as the changed ones were."""
    drawn = _values(repeats, original.item)
    return sum(drawn) / len(drawn) if drawn else original.value


def _entry(
    key: _Key,
    family: str,
    originals: Mapping[str, Result],
    members: Mapping[str, Result],
    repeats: Sequence[Mapping[str, Result]],
    given: Forms,
    margin: float,
    ground: Ground,
) -> dict[str, Any]:
    target, suite, _ = key
    metric = _metric(key, originals)
    shared = [
        item
        for item, row in members.items()
        if row.value is not None and item in originals and _before(originals[item], repeats) is not None
    ]
    after = _worths(members, shared, metric, ground)
    before = _worths(originals, shared, metric, ground)
    if drawn := [each for each in (_worths(repeat, shared, metric, ground) for repeat in repeats) if each]:
        for item in {item for each in drawn for item in each}:
            values = [each[item] for each in drawn if item in each]
            before[item] = sum(values) / len(values)
    both = [(before[item], after[item], _cluster(originals[item])) for item in shared if item in before]
    left_out = _left_out(given, suite, family)
    asked = len(members) + sum(left_out.values())
    compared = _lost(both, metric)
    if any(row.kind == "judged" for row in originals.values()):
        why = "a judge's word, whose error is not known here"
        told = undefined(len(both), why, value=compared.difference.value)
        compared = compared.model_copy(update={"difference": told, "p": None})
    lost = compared.difference
    reason = lost.reason
    if not both and left_out:
        why, often = left_out.most_common(1)[0]
        reason = f"no item has this form: {why} ({often} of {asked})"
    held = non_inferior(negative(lost), margin)
    return {
        "target": target,
        "suite": suite,
        "metric": key[2],
        "family": family,
        **plain(lost),
        "reason": reason,
        "before": _mean([before for before, _, _ in both]),
        "after": _mean([after for _, after, _ in both]),
        "p": compared.p,
        "better": compared.better,
        "worse": compared.worse,
        "margin": margin,
        "holds": held.passed,
        "asked": asked,
        "left_out": dict(sorted(left_out.items())),
        "share_left_out": sum(left_out.values()) / asked if asked else None,
        "unmeasured": len(members) - len(both),
    }


def _worths(rows: Mapping[str, Result], items: Sequence[str], metric: Metric, ground: Ground) -> dict[str, float]:
    """Of those of the items that were measured one value each, whose mean is their figure."""
    known = [rows[item] for item in items if item in rows and rows[item].value is not None]
    return dict(zip((each.item for each in known), metric.per_item(known, ground), strict=False))


def _lost(both: Sequence[tuple[float, float, str]], metric: Metric) -> Comparison:
    """What is lost from before to after, paired; `better` and `worse` count items that became so."""
    before, after = [first for first, _, _ in both], [second for _, second, _ in both]
    found = paired(after, before, [cluster for _, _, cluster in both], bounds=metric.bounds)
    gains = [metric.gain(*pair) for pair in zip(before, after, strict=True)]
    counts = {"better": sum(gain > 0 for gain in gains), "worse": sum(gain < 0 for gain in gains)}
    return found.model_copy(update={"difference": negative(metric.upward(found.difference, None, None)), **counts})


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _worst(
    key: _Key,
    originals: Mapping[str, Result],
    forms_of: Mapping[str, Mapping[str, Result]],
    repeats: Sequence[Mapping[str, Result]],
) -> dict[str, Any]:
    """The worst case over all forms of each item, beside that of asking the item itself as often; and the mean."""
    target, suite, _ = key
    metric = _metric(key, originals)
    lowest: list[float] = []
    middle: list[float] = []
    luck: list[float] = []
    plain_: list[float] = []
    same: list[float] = []
    clusters: list[str] = []
    sizes: list[int] = []
    for item, original in originals.items():
        values = [
            row.value for each in forms_of.values() if (row := each.get(item)) is not None and row.value is not None
        ]
        before = _before(original, repeats)
        if len(values) < 2 or before is None:
            continue
        drawn = _values(repeats, item)
        lowest.append(min(values, key=metric.worth))
        middle.append(sum(values) / len(values))
        luck.append(min(drawn[: len(values)], key=metric.worth) if drawn else before)
        plain_.append(before)
        same.append(float(all(value == before for value in values)))
        clusters.append(_cluster(original))
        sizes.append(len(values))
    entry: dict[str, Any] = {"target": target, "suite": suite, "metric": key[2], "family": WORST}
    entry["forms"] = _mean([float(size) for size in sizes])
    entry["asked"], entry["unmeasured"] = len(originals), len(originals) - len(lowest)
    entry["drawn"] = bool(repeats)
    if len(lowest) < FEWEST:
        fault = undefined(len(lowest), f"not enough data: fewer than {FEWEST} items with two forms or more")
        blank = {name: plain(fault) for name in ("worst", "by_luck", "excess", "mean_loss", "unchanged")}
        return entry | plain(fault) | blank | {"before": _mean(plain_), "after": _mean(lowest), "p": None}
    drop = _lost(list(zip(plain_, lowest, clusters, strict=True)), metric)
    excess = _lost(list(zip(luck, lowest, clusters, strict=True)), metric)
    average = _lost(list(zip(plain_, middle, clusters, strict=True)), metric)
    unit = metric.bounds
    return entry | {
        **plain(drop.difference),
        "before": _mean(plain_),
        "after": _mean(lowest),
        "worst": plain(mean(lowest, clusters, bounds=unit)),
        "by_luck": plain(mean(luck, clusters, bounds=unit)),
        "excess": plain(excess.difference),
        "mean_loss": plain(average.difference),
        "p": excess.p,
        "unchanged": plain(rate(same, clusters)),
    }


def headline(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Target -> suite -> what each form costs, all of them, the worst case (beyond luck), and the share left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        place = found.setdefault(row["target"], {}).setdefault(row["suite"] or ALL, {})
        figures = {name: row[name] for name in ("value", "low", "high", "n", "reason")}
        if row["family"] == WORST:
            place |= {"worst_case": figures, "beyond_luck": row["excess"], "mean_loss": row["mean_loss"]}
        else:
            place.setdefault("loss", {})[row["family"]] = figures
            place.setdefault("left_out", {})[row["family"]] = row["share_left_out"]
    return found
