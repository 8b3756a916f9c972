"""Stage `labels`: what guards learn from: the corpus' labels, people's tags of texts and reviewed decisions, and what
the red team found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tutelage.core.artifact import Artifact, Root
from tutelage.core.config import Config
from tutelage.core.errors import DataError, Waiting
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, canonical, digest, read_jsonl, write_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.corpus.catalog import CATALOG
from tutelage.feedback import adjudicate, agreement, consensus
from tutelage.feedback.preferences import Needs, split_of
from tutelage.feedback.tagged import Text, Trees, Voice, conversation, voices
from tutelage.measure.statistics import plain
from tutelage.store import answers, tasks
from tutelage.store.answers import WHOLE, Annotation
from tutelage.store.tasks import Task


class Labels(Config):
    """Whose tags become labels, and how."""

    projects: tuple[str, ...] = ()
    """Labelling efforts of the store to read beside the corpus' own labels (tagging and review)."""
    people: Literal["", "live", "simulated", "replayed"] = ""
    """Whose tags are read; empty takes the only kind there is, and asks when there are several."""
    streams: tuple[str, ...] = ("learn", "certainty", "measure")
    """Reviewed decisions to learn from, by what they were drawn for. A decision that is learned from can no longer
    measure the guard that learns from it: measure that one on later traffic."""
    needs: Needs = Needs(answers=0, per_task=1)
    """What must be there; until then the run ends with code 3 and says where to answer."""
    harmful: str = "harmful"
    """The question yes, no or unsure of review forms."""
    categories: str = "categories"
    """The question whose answer lists categories, or tags of a taxonomy: these are read under its newest version."""
    validation: float = Field(default=0.2, ge=0, lt=1)
    """Share of clusters of people's labels kept to tune thresholds on (the corpus' labels keep their splits)."""
    repeat: int = Field(default=1, ge=1)
    """How often a person's label counts beside a label of the corpus."""
    corpus: bool = True
    """Take the labels of the corpus as well."""
    reserve: dict[str, float] = Field(default_factory=dict)
    """Source -> share of its training rows that no guard is shown: the traffic of `cycle`. 1 keeps the whole source
    back, its held-out rows too."""
    believed: float = Field(default=0.9, gt=0.5, le=1)
    """How sure a finding of the red team is, while only its judge has called it harmful: a label of that probability.
    Findings that people have tagged are taken from the store as well, as any text they tag."""
    prior: float = Field(default=4.0, ge=0)
    """Votes of the average person added to each person's table of confusions (Dawid-Skene)."""
    seed: int = 0
    """Of the splits and the bootstraps."""


def reserved(row: Example, shares: Mapping[str, float], seed: int) -> bool:
    """Whether a row of the corpus is kept from the guards; rows of one cluster stay together."""
    share = shares.get(str(row.tags.get("source")), 0.0)
    if share >= 1:
        return True
    cluster = str(row.tags.get("cluster") or row.tags.get("id"))
    return row.tags.get("split") == "train" and split_of(cluster, share, 0, seed) != "train"


def _scopes(config: Labels, inputs: Inputs) -> Sequence[str]:
    return config.projects


def labels_cost(config: Labels, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Reading rows."""
    source = inputs.get("source", {})
    rows, characters = source.get("labels", 6500.0), source.get("label_characters", 40.0)
    seconds = 0.05 + rows * (1.5e-5 + 6e-8 * characters)
    return Cost(seconds=seconds, sizes={"rows": rows, "characters": characters})


def red_team_labels(attacks: Sequence[Artifact], root: Root, believed: float) -> tuple[list[Example], int]:
    """The findings of red teams as labels to learn from, and how many were left out: those that no category was named
    for, and those whose request is an examination's (a guard that has read it can no more be examined on it)."""
    rows: dict[str, Example] = {}
    left = 0
    for artifact in attacks:
        items = root.find(str(artifact.manifest.inputs["corpus"])).file("items.jsonl")
        examined = {
            str(item.tags.get("id"))
            for item in read_jsonl(items, Example)
            if (entry := CATALOG.get(str(item.tags.get("source")))) and entry.evaluation_only
        }
        for row in read_jsonl(artifact.file("findings.jsonl"), Example):
            named = row.tags.get("categories") or {}
            if not named or str(row.tags.get("goal")) in examined:
                left += 1
                continue
            tags = {**row.tags, "categories": dict.fromkeys(named, believed)}
            rows.setdefault(str(row.tags["id"]), row.model_copy(update={"tags": tags}))
    return [rows[name] for name in sorted(rows)], left


@stage(
    makes="labels",
    version=3,
    config=Labels,
    inputs={
        "source": Input(kind="corpus", default="prepare", help="the corpus whose labels are taken"),
        "findings": Input(kind="redteam", many=True, optional=True, help="what red teams broke, see `believed`"),
    },
    reads=_scopes,
    cost=labels_cost,
)
def labels(config: Labels, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Join labels; writes `labels.jsonl` (categories as probabilities) and `agreement.json`."""
    rows: list[Example] = []
    back = 0
    if config.corpus:
        sources: set[str] = set()
        for row in read_jsonl(inputs.source.file("labels.jsonl"), Example):
            sources.add(str(row.tags.get("source")))
            if reserved(row, config.reserve, config.seed):
                back += 1
                continue
            kept = {name: value for name, value in row.tags.items() if name != "people"}
            rows.append(row.model_copy(update={"tags": kept}))
        if unknown := sorted(set(config.reserve) - sources):  # a misspelt name would show the guards everything
            todo = f"Its labels are of {', '.join(sorted(sources)) or 'no source'}"
            raise DataError(f"the corpus has no label of {', '.join(unknown)}", key="labels.reserve", todo=todo)
    taken = len(rows)
    attacked, unfit = red_team_labels(inputs.findings or (), context.root, config.believed)
    rows += attacked
    given, known, shown, kind = _read(config, context)
    heard = {each.task for each in given}
    decided = adjudicate.decided(context.store, config.projects, kind) if kind else {}
    decided = {id: each for id, each in decided.items() if id in heard}
    broken = adjudicate.broken(decided)
    given = [each for each in given if each.task not in broken]
    context.used(each.id for each in (*given, *decided.values()))
    context.simulated = kind == "simulated"
    dropped: Counter[str] = Counter()
    if unfit:
        dropped["findings without a category, or of an examination"] = unfit
    if broken:
        dropped["broken, as an adjudicator found"] = len(broken)
    overruled = adjudicate.overruled(decided)
    trees = Trees.read(context.store, [*given, *overruled.values()])

    def speak(every: Iterable[Annotation]) -> list[Voice]:
        how = {"categories": config.categories, "harmful": config.harmful}
        return [voice for each in every for voice in voices(each, known[each.task], trees, **how)]

    said, final = speak(given), speak(overruled.values())
    marked = sorted({each.text[0] for each in final if each.spans} - set(shown))
    shown = {**shown, **tasks.load(context.store, marked, masked=True)}
    for each in (*said, *final):
        if each.spans:  # the offsets hold in the text that was shown
            known[each.text[0]] = shown[each.text[0]]
    made, stated = _labels(config, said, known, kind, dropped, final) if said else ([], {})
    for row in made:
        if (task := str(row.tags["id"]).partition("/")[0]) in overruled:
            row.tags["adjudicated"] = adjudicate.cause_of(overruled[task])
            row.tags["n"] = sum(one.task == task for one in given)  # the people whose voices were heard
    if given:
        stated["answers"] = len(given)
    if trees.by_form:
        stated |= {"ambiguous_tags": trees.ambiguous, "tags_taken_out": trees.gone}
    rows += made * config.repeat
    if not rows:
        raise DataError("there is no label to learn from", file=inputs.source.path)
    write_jsonl(out / "labels.jsonl", rows)
    (out / "agreement.json").write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    positive = Counter(
        f"{row.tags['direction']}/{name}"
        for row in rows
        for name, value in row.tags["categories"].items()
        if value >= 0.5
    )
    return {
        "rows": len(rows),
        "corpus": taken,
        "reserved": back,
        "findings": len(attacked),
        "people": {"kind": kind or None, "answers": len(given), "labels": len(made)},
        "adjudicated": adjudicate.counted(decided),
        "dropped": dict(sorted(dropped.items())),
        "splits": dict(sorted(Counter(str(row.tags["split"]) for row in rows).items())),
        "positive": dict(sorted(positive.items())),
    }


def _read(config: Labels, context: Context) -> tuple[list[Annotation], dict[str, Task], Mapping[str, Task], str]:
    """The answers, their tasks, those with marked words as they were shown, and which people they are of."""
    given: list[Annotation] = []
    for project in config.projects:
        given += answers.read(context.store, project, people=config.people or None)
    kinds = sorted({each.people for each in given})
    if len(kinds) > 1:
        raise DataError(
            f"these projects hold answers of {' and '.join(kinds)} people, which are never mixed",
            key="labels.people", todo=f"Choose one: labels.people={kinds[0]}",
        )  # fmt: skip
    known = dict(tasks.load(context.store, sorted({each.task for each in given})))
    given = [each for each in given if known[each.task].meta.get("stream") in (None, *config.streams)]
    counts = Counter(each.task for each in given)
    have = sum(count for count in counts.values() if count >= (config.needs.per_task or 1))
    need = config.needs.answers or 0
    if have < need:
        where = f"Start `tutelage serve`, sign in and answer in {', '.join(config.projects)}, then run this again"
        raise Waiting("reviewers' answers are missing", have=have, need=need, where=where)
    given = sorted((each for each in given if known[each.task].messages), key=lambda each: (each.task, each.pseudonym))
    marked = sorted({each.task for each in given if each.spans})
    shown = tasks.load(context.store, marked, masked=True)
    return given, known, shown, kinds[0] if kinds else ""


def _labels(
    config: Labels,
    said: Sequence[Voice],
    known: Mapping[str, Task],
    kind: str,
    dropped: Counter[str],
    final: Sequence[Voice],
) -> tuple[list[Example], dict[str, Any]]:
    """One label for each text: harm by Dawid-Skene over the reviewers, shared out over the categories they named.

    A text found harmless is a negative example of every category the reviewers could choose from; a harmful one is
    positive in those named, and says nothing of the others. A category that was asked for by itself, as each tag of
    a taxonomy is, has the share of the people who chose it. Of an adjudicated task only the adjudicator's word counts
    (`final`).
    """
    people = sorted({each.person for each in said})
    order = {name: at for at, name in enumerate(people)}
    by_text: dict[Text, list[Voice]] = {}
    for each in said:
        by_text.setdefault(each.text, []).append(each)
    place = {text: at for at, text in enumerate(by_text)}
    answered: dict[str, set[str]] = {}
    for each in said:
        answered.setdefault(each.text[0], set()).add(each.person)
    harm = _harm(said, place, order, config.prior)
    options = sorted({name for each in (*said, *final) if "*" in each.said for name in each.said if name != "*"})
    chances = {text: float(harm[at]) for text, at in place.items()}
    over = {each.text[0] for each in final}
    heard = {text: mine for text, mine in by_text.items() if text[0] not in over}
    heard |= {each.text: [each] for each in final}
    chances |= {each.text: each.said.get("*", chances.get(each.text, 0.0)) for each in final}
    rows = []
    for text, mine in heard.items():
        crowd = 1 if text[0] in over else len(answered[text[0]])
        categories = _categories(mine, chances[text], options, crowd)
        if not categories:
            told = [each.said["*"] for each in mine if "*" in each.said]
            bad = told and chances[text] >= 0.5
            why = "harmful, but nobody said in which way" if bad else "harmless, but no category was ever named"
            dropped[why if told else "nothing was said of it"] += 1
            continue
        rows.append(_row(config, known[text[0]], text, mine, categories, kind))
    table = np.full((len(people), len(by_text)), np.nan)
    for each in said:
        if "*" in each.said:
            table[order[each.person], place[each.text]] = each.said["*"]
    stated = {
        "people": kind,
        "texts": len(by_text),
        "persons": len(people),
        "alpha_nominal": plain(agreement.alpha(table, "nominal", seed=config.seed)),
    }
    return sorted(rows, key=lambda row: canonical(row)), stated


def _categories(voices: Sequence[Voice], chance: float, options: Sequence[str], crowd: int) -> dict[str, float]:
    """Category -> probability, for one text that `crowd` people were shown."""
    found: dict[str, float] = {}
    said = [each.said for each in voices]
    reported = {name for each in voices for name in each.reported}
    whole = [each for each in said if "*" in each]
    if whole:
        named = {name for each in whole for name, value in each.items() if name != "*" and value >= 0.5}
        found = dict.fromkeys(options, round(chance, 6)) if chance < 0.5 else {}
        found |= dict.fromkeys(sorted(named), round(chance, 6))
    single = [each for each in said if "*" not in each]
    for name in sorted({name for each in single for name in each}):
        values = [each[name] for each in single if name in each]
        found[name] = round(sum(values) / (crowd if name in reported else len(values)), 6)
    return found


def _row(
    config: Labels, task: Task, text: Text, said: Sequence[Voice], categories: Mapping[str, float], kind: str
) -> Example:
    messages, direction = conversation(task, text[1])
    cluster = task.cluster or digest([each.model_dump(mode="json") for each in task.messages])[:16]
    kept = split_of(cluster, config.validation, 0, config.seed)
    tags = {
        "id": text[0] if text[1] == WHOLE else f"{text[0]}/{text[1]}",
        "split": "validation" if kept != "train" else "train",
        "direction": direction,
        "categories": dict(categories),
        "cluster": cluster,
        "source": f"store:{kind}",
        "licence": str(task.meta.get("licence", "permissive")),
        "people": kind,
        "n": len(said),
        "stream": task.meta.get("stream"),
    }
    marks = Counter(json.dumps(mark, sort_keys=True) for each in said for mark in each.spans)
    if marks:
        tags["spans"] = [json.loads(mark) | {"share": round(n / len(said), 6)} for mark, n in sorted(marks.items())]
    return Example(messages=messages, tags=tags)


def _harm(
    said: Sequence[Voice],
    place: Mapping[Text, int],
    order: Mapping[str, int],
    prior: float,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Probability of harm of each text; an `unsure` is half a voice for each side."""
    things, crowd, sides, weights = [], [], [], []
    for each in said:
        if "*" not in each.said:
            continue
        for side, weight in ((1, each.said["*"]), (0, 1 - each.said["*"])):
            if weight > 0:
                things.append(place[each.text])
                crowd.append(order[each.person])
                sides.append(side)
                weights.append(weight)
    if not things:
        return np.zeros(len(place))
    found = np.zeros(len(place))
    # texts are renumbered: those that only have answers category by category take no part
    used = sorted(set(things))
    again = {thing: at for at, thing in enumerate(used)}
    fitted = consensus.dawid_skene(
        np.array([again[thing] for thing in things]),
        np.array(crowd),
        np.array(sides),
        2,
        weights=np.array(weights),
        prior=prior,
    )
    found[used] = fitted.posteriors[:, 1]
    return found
