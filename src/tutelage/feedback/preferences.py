"""Stage `preferences`: what people ranked and scored, weighed and joined into what a reward model learns from."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tutelage.core.config import Config
from tutelage.core.errors import DataError, Waiting
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, Message, Preference, digest, read_jsonl, write_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.feedback import adjudicate, rankings, rewrites, votes
from tutelage.feedback import quality as judging
from tutelage.feedback.figures import LEFT, RIGHT, TIE, Read, stated_agreement, stated_people
from tutelage.store import answers, tasks
from tutelage.store.answers import Annotation
from tutelage.store.tasks import Task

Floats = NDArray[np.float64]


class Needs(Config):
    """How many answers must be there before this stage goes on."""

    answers: int | None = None
    """Answers in all; empty asks for all that the collection expects."""
    per_task: int | None = None
    """A task counts from so many people's answers on; empty asks for as many as the collection has per task."""


class Preferences(Config):
    """How answers become preferences."""

    people: Literal["", "live", "simulated", "replayed"] = ""
    """Whose answers; empty takes the collection's. They are never mixed."""
    projects: tuple[str, ...] = ()
    """Labelling efforts of the store to read beside the collection's own: pairs, rankings, rewrites made elsewhere."""
    needs: Needs = Needs()
    """What must be there; until then the run ends with code 3 and says where to answer."""
    aggregate: Literal["consensus", "person"] = "consensus"
    """One record for each task, from everybody's weighed words, or one for each person's answer."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompt clusters kept to tune on (recorded comparisons keep their own splits)."""
    test: float = Field(default=0.2, ge=0, lt=1)
    """Share of prompt clusters kept to examine the reward model."""
    unnamed: bool = True
    """Take comparisons without named people from the corpus as well, as they are."""
    prior: float = Field(default=4.0, ge=0)
    """Votes of the average person added to each person's table of confusions (Dawid-Skene)."""
    seed: int = 0
    """Of the splits and the bootstraps."""


def _summary(inputs: Inputs) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(inputs.collection.file("summary.json").read_text(encoding="utf-8"))
    return found


def _scopes(config: Preferences, inputs: Inputs) -> Sequence[str]:
    return [*map(str, _summary(inputs)["projects"]), *config.projects]


def preferences_cost(config: Preferences, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Each answer is a vote on every pair of its candidates; rows without named people are taken as they are."""
    asked = inputs.get("collection", {})
    rows, answer, each = (asked.get(n, d) for n, d in (("tasks", 300.0), ("answer_tokens", 100.0), ("candidates", 2.0)))
    pairs = each * (each - 1) / 2
    seconds = 1.15e-4 * pairs * asked.get("answers", 3 * rows) + 0.0015 * asked.get("people", 24.0)
    others = inputs.get("corpus", {}).get("unnamed", 0.0) if config.unnamed else 0.0  # two or three answers each
    every, total = max(1.0, rows + others), rows * answer * each + others * 155 * 2.4
    made = {"rows": rows + others, "tokens_per_row": total / every}
    made["answer_tokens"] = total / max(1.0, rows * each + others * 2.4)
    made["answered"] = asked.get("answered", 0.3)
    made["pairs"] = (min(3.0, pairs) * rows + 1.4 * others) / every
    return Cost(seconds=seconds, sizes=made)


@stage(
    makes="preferences",
    version=2,
    config=Preferences,
    inputs={
        "collection": Input(kind="collection", default="collect"),
        "corpus": Input(
            kind="corpus", default="prepare", optional=True, help="comparisons without named people are taken from it"
        ),
    },
    reads=_scopes,
    cost=preferences_cost,
)
def preferences(config: Preferences, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Join rankings, scores and rewrites.

    Writes `preferences.jsonl`, `agreement.json`, `people.json`, and what people wrote as dialogues: those of the
    training split in `demonstrations.jsonl`, the others in `demonstrations.held-out.jsonl`.
    """
    summary = _summary(inputs)
    kind = config.people or str(summary["people"])
    decided = adjudicate.decided(context.store, [*map(str, summary["projects"]), *config.projects], kind)
    asked = _asked(inputs)
    words, wrote, shown = _read(config, asked, summary, kind, context, adjudicate.broken(decided))
    broken = adjudicate.broken(decided).intersection(asked)
    decided = {id: each for id, each in decided.items() if id in words.tasks or id in shown or id in broken}
    final = adjudicate.overruled(decided)
    settled = [each for each in [*wrote, *final.values()] if final.get(each.task, each) is each]
    wrote = [each for each in settled if rewrites.written(each)]
    missing = sorted({each.task for each in wrote} - set(shown))
    shown = {**shown, **tasks.load(context.store, missing, masked=True)}
    context.used(each.id for each in (*words.given, *wrote, *decided.values()))
    context.simulated = kind == "simulated"
    texts = {id: task.candidates for id, task in words.tasks.items()}
    table = votes.table(words.given, texts, words.people, words.scales)
    quality = judging.judge_people(table.votes) if len(table.votes) else []
    trust = np.ones(len(words.people))
    for each in quality:
        trust[each.person] = each.weight
    pairs = votes.likely(table, trust, {id: task.project for id, task in words.tasks.items()}, config.prior)
    by_person = config.aggregate == "person"
    rows = _by_person(config, words, trust, kind) if by_person else _by_task(config, words, table, pairs, trust, kind)
    rows = _adjudicated(config, words, rows, final, kind)
    heard = {name: float(trust[place]) for place, name in enumerate(words.people)}
    written, demonstrations = rewrites.joined(wrote, shown, lambda task: _tags(config, task, kind), heard)
    _write_demonstrations(out, demonstrations)
    unnamed = _unnamed(inputs) if config.unnamed and inputs.corpus is not None else []
    unheard = _unheard(quality)
    if unheard and unnamed:
        context.say.note(f"{unheard}: only comparisons without named people are left")
    _check(rows + written + unnamed, out, unheard)
    write_jsonl(out / "preferences.jsonl", rows + written + unnamed)
    stated = stated_agreement(words, table, pairs, quality, kind, config.seed)
    (out / "agreement.json").write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    found = stated_people(words, quality, summary.get("planted"))
    (out / "people.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "people": kind,
        "answers": len(words.given),
        "tasks": len(words.tasks),
        "persons": len(words.people),
        "rows": dict(sorted(Counter(str(each.tags["split"]) for each in rows + written).items())),
        "rewrites": len(written),
        "demonstrations": len(demonstrations),
        "unheard": len(words.tasks) - len({row.tags["id"] for row in rows}) if not by_person else 0,
        "adjudicated": adjudicate.counted(decided),
        "unnamed": len(unnamed),
        "ceiling": stated["ceiling"],
        "ceiling_single": stated["ceiling_single"],
        "tau_b": stated["ranking"]["tau_b"],
        "found": {name: found[name] for name in ("unreliable", "detection")},
    }


# reading


def _asked(inputs: Inputs) -> dict[str, int]:
    """The tasks of a collection with their places in it."""
    lines = inputs.collection.file("tasks.jsonl").read_text(encoding="utf-8").splitlines()
    return {str(json.loads(line)["task"]): at for at, line in enumerate(lines)}


def _read(
    config: Preferences,
    order: Mapping[str, int],
    summary: Mapping[str, Any],
    kind: str,
    context: Context,
    broken: Collection[str],
) -> tuple[Read, list[Annotation], Mapping[str, Task]]:
    """What was compared; what was written; and the tasks of the latter as people saw them. Broken ones are left out."""
    given: list[Annotation] = []
    for project in summary["projects"]:
        given += [each for each in answers.read(context.store, project, people=kind) if each.task in order]
    _wait(config.needs, summary, given, kind)
    for project in config.projects:
        given += answers.read(context.store, tasks.get_project(context.store, project).name, people=kind)
    given = list({each.id: each for each in sorted(given, key=lambda each: (each.task, each.pseudonym))}.values())
    known = tasks.load(context.store, sorted({each.task for each in given}))
    out = {id for id, task in known.items() if not task.messages or not all(task.candidates)} | set(broken)
    given = [each for each in given if each.task not in out]
    wrote = [each for each in given if rewrites.written(each)]
    shown = tasks.load(context.store, sorted({each.task for each in wrote}), masked=True)
    given = [each for each in given if each.tiers or each.unrankable or each.scores()]
    compared = {each.task for each in given}
    known = {id: known[id] for id in sorted(compared, key=lambda id: (order.get(id, len(order)), id))}
    return Read.of(context.store, given, known), wrote, shown


def _wait(needs: Needs, summary: Mapping[str, Any], given: Sequence[Annotation], kind: str) -> None:
    """Raise Waiting until the answers are there that the recipe asks for."""
    per_task = needs.per_task if needs.per_task is not None else int(summary["per_task"])
    need = needs.answers if needs.answers is not None else int(summary["expected"])
    counts = Counter(each.task for each in given)
    have = sum(count for count in counts.values() if count >= per_task)
    if have < need:
        projects = ", ".join(str(name) for name in summary["projects"])
        where = (
            f"Start `tutelage serve`, sign in and answer in {projects} (/projects), then run the same command again. "
            "`preferences.needs.answers=N` asks for fewer"
        )
        raise Waiting(
            f"{kind} answers of at least {per_task} people a task are missing", have=have, need=need, where=where
        )


# joining


def _by_task(
    config: Preferences, words: Read, table: votes.Table, pairs: Floats, trust: Floats, kind: str
) -> list[Preference]:
    number = {pair: at for at, pair in enumerate(table.pairs)}
    by_task: dict[str, list[Annotation]] = {}
    for each in words.given:
        by_task.setdefault(each.task, []).append(each)
    strictness = _strictness(words)
    weight = dict(zip(words.people, trust.tolist(), strict=True))
    rows = []
    for id, task in words.tasks.items():
        size = len(task.candidates)
        better, tied = np.full((size, size), math.nan), np.full((size, size), math.nan)
        for left in range(size):
            for right in range(left + 1, size):
                at = number.get((id, left, right))
                if at is not None:
                    better[left, right], better[right, left] = pairs[at, LEFT], pairs[at, RIGHT]
                    tied[left, right] = tied[right, left] = pairs[at, TIE]
        heard = [(one, other) for one, other in np.argwhere(~np.isnan(better)).tolist()]
        chances = {f"{one}>{other}": round(float(better[one, other]), 6) for one, other in heard}
        certain = [abs(float(better[one, other] - better[other, one])) for one, other in heard if one < other]
        given = by_task[id]
        scores, criteria = _scores([(each, weight[each.pseudonym]) for each in given], words, size, strictness)
        rejected = _rejected(words, given, trust)
        if not scores and rejected >= 0.5:
            scores = (0.0,) * size  # no order says that all are bad; the lowest score does
        if not heard and not scores:
            continue  # nobody reliable said anything of it: whatever stood here would be invented
        bad = [each for each in given if each.value("all_bad")]
        tags = _tags(config, task, kind) | {
            "n": len({each.pseudonym for each in given}),
            "probabilities": chances,
            "all_bad": len(bad) / len(given),
        }
        strength = _strength(words, given, trust)
        if strength is not None:
            tags["strength"] = round(strength, 6)
        if criteria:
            tags["criteria"] = criteria
        flags = _flags(given)
        if flags:
            tags["flags"] = flags
        rows.append(
            Preference(
                prompt=task.messages,
                candidates=tuple(Message(role="assistant", content=text) for text in task.candidates),
                tiers=rankings.order(better, tied),
                scores=scores,
                weight=round(max(0.05, float(np.mean(certain)) * (strength or 1.0)), 6) if certain else 1.0,
                rows=tuple(sorted(each.id for each in given)),
                tags=tags,
            )
        )
    return rows


def _by_person(config: Preferences, words: Read, trust: Floats, kind: str) -> list[Preference]:
    place = {name: at for at, name in enumerate(words.people)}
    rows = []
    for each in words.given:
        task, weight = words.tasks[each.task], float(trust[place[each.pseudonym]])
        if weight <= 0:
            continue
        size = len(task.candidates)
        ranked = votes.ranks(each, size, words.scales)
        levels = sorted({float(rank) for rank in ranked if not np.isnan(rank)})
        tiers = tuple(tuple(int(no) for no in np.flatnonzero(ranked == level)) for level in levels)
        scores, criteria = _scores([(each, 1.0)], words, size, {})
        if not scores and each.value("all_bad"):
            scores = (0.0,) * size
        tags = _tags(config, task, kind) | {"person": each.pseudonym, "n": 1}
        strength = _strength(words, [each], np.ones(len(words.people)))
        if strength is not None:
            tags["strength"] = round(strength, 6)
        rows.append(
            Preference(
                prompt=task.messages,
                candidates=tuple(Message(role="assistant", content=text) for text in task.candidates),
                tiers=tiers,
                scores=scores,
                weight=round(weight * (strength or 1.0), 6),
                rows=(each.id,),
                tags=tags | ({"criteria": criteria} if criteria else {}),
            )
        )
    return rows


def _rejected(words: Read, given: Sequence[Annotation], trust: Floats) -> float:
    """The trusted people's share who found none of the candidates acceptable."""
    place = {name: at for at, name in enumerate(words.people)}
    weights = [float(trust[place[each.pseudonym]]) for each in given]
    bad = sum(weight for each, weight in zip(given, weights, strict=True) if each.value("all_bad"))
    return bad / total if (total := sum(weights)) > 0 else 0.0


def _strength(words: Read, given: Sequence[Annotation], trust: Floats) -> float | None:
    """How much better the better one of a pair is, from above 0 to 1; None where nobody said."""
    place = {name: at for at, name in enumerate(words.people)}
    said = []
    for each in given:
        key, steps = words.strengths.get(each.form, ("", 0))
        step, weight = each.value(key) if key else None, float(trust[place[each.pseudonym]])
        if step is not None and weight > 0:
            said.append((float(step) / steps, weight))
    total = sum(weight for _, weight in said)
    return sum(step * weight for step, weight in said) / total if said else None


def _write_demonstrations(out: Path, rows: Sequence[Example]) -> None:
    for name, train in (("demonstrations.jsonl", True), ("demonstrations.held-out.jsonl", False)):
        write_jsonl(out / name, [each for each in rows if (each.tags["split"] == "train") == train])


def _adjudicated(
    config: Preferences, words: Read, rows: Sequence[Preference], decided: Mapping[str, Annotation], kind: str
) -> list[Preference]:
    """The rows, and for each adjudicated task the adjudicator's answer with full weight in place of the crowd's."""
    given: dict[str, list[Annotation]] = {}
    for each in words.given:
        given.setdefault(each.task, []).append(each)
    made = [row for row in rows if str(row.tags["id"]) not in decided]
    for id, each in decided.items():
        if id not in words.tasks:
            continue
        task = words.tasks[id]
        size, ranked = len(task.candidates), votes.ranks(each, len(task.candidates), words.scales)
        levels = sorted({float(rank) for rank in ranked if not np.isnan(rank)})
        scores, criteria = _scores([(each, 1.0)], words, size, {})
        tags = _tags(config, task, kind) | {
            "n": len({one.pseudonym for one in given[id]}),
            "adjudicated": adjudicate.cause_of(each),
            "probabilities": {
                f"{one}>{other}": float(ranked[one] < ranked[other])
                for one in range(size) for other in range(size)
                if one != other and not np.isnan(ranked[[one, other]]).any()
            },
            "all_bad": float(bool(each.value("all_bad"))),
        }  # fmt: skip
        flags = _flags([each])
        made.append(
            Preference(
                prompt=task.messages,
                candidates=tuple(Message(role="assistant", content=text) for text in task.candidates),
                tiers=tuple(tuple(int(no) for no in np.flatnonzero(ranked == level)) for level in levels),
                scores=scores,
                weight=1.0,
                rows=tuple(sorted([*(one.id for one in given[id]), each.id])),
                tags=tags | ({"criteria": criteria} if criteria else {}) | ({"flags": flags} if flags else {}),
            )
        )
    order = {id: at for at, id in enumerate(words.tasks)}
    return sorted(made, key=lambda row: order[str(row.tags["id"])])


def _tags(config: Preferences, task: Task, kind: str) -> dict[str, Any]:
    cluster = task.cluster or digest([each.model_dump(mode="json") for each in task.messages])[:16]
    return {
        "id": task.id,
        "split": task.meta.get("split") or split_of(cluster, config.validation, config.test, config.seed),
        "people": kind,
        "cluster": cluster,
        "kind": task.kind,
        "producers": list(task.producers),
        "source": task.meta.get("source", ""),
        "licence": task.meta.get("licence", "not-stated"),
        "family": task.meta.get("family", ""),
    }


def split_of(cluster: str, validation: float, test: float, seed: int) -> str:
    """The split of a prompt cluster: all that belongs together is on one side."""
    total = hashlib.sha256(f"split/{seed}/{cluster}".encode()).digest()
    place = int.from_bytes(total[:8], "big") / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def _strictness(words: Read) -> dict[tuple[str, str], float]:
    """(person, criterion) -> how far their mean score lies from everybody's, for people with ten scored tasks."""
    means: dict[tuple[str, str], list[float]] = {}
    for each in words.given:
        for criterion, scores in votes.scaled(each, words.scales).items():
            means.setdefault((each.pseudonym, criterion), []).append(sum(scores.values()) / len(scores))
    overall: dict[str, list[float]] = {}
    for (_, criterion), values in means.items():
        overall.setdefault(criterion, []).extend(values)
    return {
        key: float(np.mean(values) - np.mean(overall[key[1]])) for key, values in means.items() if len(values) >= 10
    }


def _scores(
    given: Sequence[tuple[Annotation, float]], words: Read, size: int, strictness: Mapping[tuple[str, str], float]
) -> tuple[tuple[float | None, ...], dict[str, list[float | None]]]:
    """Weighted mean scores from 0 to 1, each person's strictness taken out: (mean over criteria, by criterion)."""
    total: dict[str, Floats] = {}
    below: dict[str, Floats] = {}
    for each, weight in given:
        for criterion, scores in votes.scaled(each, words.scales).items():
            sums, weights = total.setdefault(criterion, np.zeros(size)), below.setdefault(criterion, np.zeros(size))
            for candidate, score in scores.items():
                sums[candidate] += weight * (score - strictness.get((each.pseudonym, criterion), 0.0))
                weights[candidate] += weight
    criteria: dict[str, list[float | None]] = {}
    for criterion in sorted(total):
        sums, weights = total[criterion], below[criterion]
        criteria[criterion] = [
            round(min(1.0, max(0.0, float(sums[no] / weights[no]))), 6) if weights[no] > 0 else None
            for no in range(size)
        ]
    mean: list[float | None] = []
    for no in range(size):
        some = [mark for by_number in criteria.values() if (mark := by_number[no]) is not None]
        mean.append(sum(some) / len(some) if some else None)
    return (tuple(mean), criteria) if any(each is not None for each in mean) else ((), {})


def _flags(given: Sequence[Annotation]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for each in given:
        for value in each.values:
            if value.question == "flag" and value.value:
                found.setdefault(str(value.candidate), set()).update(value.value)
    return {no: sorted(categories) for no, categories in sorted(found.items())}


def _unnamed(inputs: Inputs) -> list[Preference]:
    """Comparisons of the corpus that name nobody: taken as they are, marked so, in no figure of agreement."""
    rows = []
    for each in read_jsonl(inputs.corpus.file("comparisons.jsonl"), Preference):
        if not each.tags.get("people") and (len(each.tiers) > 1 or each.scores):
            rows.append(each.model_copy(update={"tags": {**each.tags, "people": "unnamed"}}))
    return rows


def _unheard(quality: Sequence[judging.Quality]) -> str:
    """Why nobody's answers count; empty where somebody's do.

    Whoever made too few choices beside others is trusted as those are on average who made enough: where all of these
    were found unreliable, nobody is left.
    """
    if not quality or any(each.weight > 0 for each in quality):
        return ""
    found = Counter(str(each.finding) for each in quality if not each.reason)
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    return (
        f"nobody's answers could be relied on: {found.total()} of {len(quality)} people made enough choices beside "
        f"others to be judged, all of them were found unreliable ({kinds}), and the rest are trusted as they are"
    )


def _check(rows: Sequence[Preference], out: Path, unheard: str) -> None:
    """Refuse a set that nothing can be learned from."""
    if not rows:
        todo = "Ask each person about more tasks (`collect.prompts`), or about answers that differ more clearly"
        why = unheard or "nobody's answers could be relied on"
        raise DataError(f"no preference to learn from: {why}", file=out, todo=todo)
    if not any(each.tags["split"] == "train" for each in rows):
        raise DataError("no preference to learn from: every answer is in a held-out split", file=out)
