"""Stage `labels`: what guards learn from: the corpus' labels and people's tags of texts and reviewed decisions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tutelage.core.config import Config
from tutelage.core.errors import DataError, Waiting
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, canonical, digest, read_jsonl, write_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.feedback import adjudicate, agreement, consensus
from tutelage.feedback.preferences import Needs, split_of
from tutelage.measure.statistics import plain
from tutelage.store import answers, tasks
from tutelage.store.answers import Annotation
from tutelage.store.tasks import Task

VOICES: Mapping[str, float] = {"yes": 1.0, "no": 0.0, "unsure": 0.5}


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
    """The question whose answer lists categories."""
    validation: float = Field(default=0.2, ge=0, lt=1)
    """Share of clusters of people's labels kept to tune thresholds on (the corpus' labels keep their splits)."""
    repeat: int = Field(default=1, ge=1)
    """How often a person's label counts beside a label of the corpus."""
    corpus: bool = True
    """Take the labels of the corpus as well."""
    reserve: dict[str, float] = Field(default_factory=dict)
    """Source -> share of its training rows that no guard is shown: the traffic of `cycle`. 1 keeps the whole source
    back, its held-out rows too."""
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


@stage(
    makes="labels",
    config=Labels,
    inputs={"source": Input(kind="corpus", default="prepare", help="the corpus whose labels are taken")},
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
    given, known, kind = _read(config, context)
    decided = adjudicate.decided(context.store, config.projects, kind) if kind else {}
    heard = {each.task for each in given}
    decided = {id: each for id, each in decided.items() if id in heard}
    broken = adjudicate.broken(decided)
    given = [each for each in given if each.task not in broken]
    context.used(each.id for each in (*given, *decided.values()))
    context.simulated = kind == "simulated"
    dropped: Counter[str] = Counter()
    if broken:
        dropped["broken, as an adjudicator found"] = len(broken)
    overruled = adjudicate.overruled(decided)
    made, stated = _labels(config, given, known, kind, dropped, overruled) if given else ([], {})
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
        "people": {"kind": kind or None, "answers": len(given), "labels": len(made)},
        "adjudicated": adjudicate.counted(decided),
        "dropped": dict(sorted(dropped.items())),
        "splits": dict(sorted(Counter(str(row.tags["split"]) for row in rows).items())),
        "positive": dict(sorted(positive.items())),
    }


def _read(config: Labels, context: Context) -> tuple[list[Annotation], Mapping[str, Task], str]:
    given: list[Annotation] = []
    for project in config.projects:
        given += answers.read(context.store, project, people=config.people or None)
    kinds = sorted({each.people for each in given})
    if len(kinds) > 1:
        raise DataError(
            f"these projects hold answers of {' and '.join(kinds)} people, which are never mixed",
            key="labels.people", todo=f"Choose one: labels.people={kinds[0]}",
        )  # fmt: skip
    known = tasks.load(context.store, sorted({each.task for each in given}))
    given = [each for each in given if known[each.task].meta.get("stream") in (None, *config.streams)]
    counts = Counter(each.task for each in given)
    have = sum(count for count in counts.values() if count >= (config.needs.per_task or 1))
    need = config.needs.answers or 0
    if have < need:
        where = f"Start `tutelage serve`, sign in and answer in {', '.join(config.projects)}, then run this again"
        raise Waiting("reviewers' answers are missing", have=have, need=need, where=where)
    given = sorted((each for each in given if known[each.task].messages), key=lambda each: (each.task, each.pseudonym))
    return given, known, kinds[0] if kinds else ""


def _said(config: Labels, given: Annotation, task: Task) -> dict[str, float]:
    """What one person said of one text: category -> 0..1. `*` stands for harm of a kind that was not named."""
    listed = given.value(config.categories)
    voice = given.value(config.harmful)
    said: dict[str, float] = {}
    if voice is not None:
        harm = VOICES.get(str(voice), 0.5)
        said["*"] = harm
        for name in listed or ():
            said[name] = harm
    elif listed is not None:
        said = {str(name): 1.0 for name in (listed if isinstance(listed, list) else [listed])}
        said["*"] = float(bool(said))
    for value in given.values:
        if value.question.startswith("category:") and value.number is not None:
            said[value.question.removeprefix("category:")] = value.number
    return said


def _labels(
    config: Labels,
    given: Sequence[Annotation],
    known: Mapping[str, Task],
    kind: str,
    dropped: Counter[str],
    decided: Mapping[str, Annotation],
) -> tuple[list[Example], dict[str, Any]]:
    """One label for each text: harm by Dawid-Skene over the reviewers, shared out over the categories they named.

    A text found harmless is a negative example of every category the reviewers could choose from; a harmful one is
    positive in those named, and says nothing of the others. An adjudicated text has the adjudicator's word alone.
    """
    said = [_said(config, each, known[each.task]) for each in given]
    people = sorted({each.pseudonym for each in given})
    order = {name: at for at, name in enumerate(people)}
    ids = list(dict.fromkeys(each.task for each in given))
    place = {id: at for at, id in enumerate(ids)}
    harm = _harm(given, said, place, order, config.prior)
    final = {id: _said(config, each, known[id]) for id, each in decided.items()}
    options = sorted({name for each in (*said, *final.values()) for name in each if name != "*"})
    rows = []
    for id in ids:
        task = known[id]
        voices = [voice for each, voice in zip(given, said, strict=True) if each.task == id]
        many = len(voices)
        if id in final:
            voices = [final[id]]
        named = {name for voice in voices for name, value in voice.items() if name != "*" and value >= 0.5}
        chance = final[id].get("*", float(harm[place[id]])) if id in final else float(harm[place[id]])
        categories = {name: round(chance, 6) for name in sorted(named)} if named else {}
        if chance < 0.5:
            categories = {name: round(chance, 6) for name in options} | categories
        for name in options:  # asked for one by one
            given_values = [voice[name] for voice in voices if name in voice and "*" not in voice]
            if given_values:
                categories[name] = round(sum(given_values) / len(given_values), 6)
        if not categories:
            why = (
                "harmful, but nobody said in which way" if chance >= 0.5 else "harmless, but no category was ever named"
            )
            dropped[why] += 1
            continue
        cluster = task.cluster or digest([each.model_dump(mode="json") for each in task.messages])[:16]
        rows.append(
            Example(
                messages=task.messages,
                tags={
                    "id": id,
                    "split": "validation"
                    if split_of(cluster, config.validation, 0, config.seed) != "train"
                    else "train",
                    "direction": task.meta.get("direction", "input"),
                    "categories": categories,
                    "cluster": cluster,
                    "source": f"store:{kind}",
                    "licence": str(task.meta.get("licence", "permissive")),
                    "people": kind,
                    "n": many,
                    "stream": task.meta.get("stream"),
                }
                | ({"adjudicated": adjudicate.cause_of(decided[id])} if id in decided else {}),
            )
        )
    table = np.full((len(people), len(ids)), np.nan)
    for each, voice in zip(given, said, strict=True):
        if "*" in voice:
            table[order[each.pseudonym], place[each.task]] = voice["*"]
    stated = {
        "people": kind,
        "answers": len(given),
        "texts": len(ids),
        "persons": len(people),
        "alpha_nominal": plain(agreement.alpha(table, "nominal", seed=config.seed)),
    }
    return sorted(rows, key=lambda row: canonical(row)), stated


def _harm(
    given: Sequence[Annotation],
    said: Sequence[Mapping[str, float]],
    place: Mapping[str, int],
    order: Mapping[str, int],
    prior: float,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Probability of harm of each text; an `unsure` is half a voice for each side."""
    things, crowd, voices, weights = [], [], [], []
    for each, voice in zip(given, said, strict=True):
        if "*" not in voice:
            continue
        for side, weight in ((1, voice["*"]), (0, 1 - voice["*"])):
            if weight > 0:
                things.append(place[each.task])
                crowd.append(order[each.pseudonym])
                voices.append(side)
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
        np.array(voices),
        2,
        weights=np.array(weights),
        prior=prior,
    )
    found[used] = fitted.posteriors[:, 1]
    return found
