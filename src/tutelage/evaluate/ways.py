"""How the items are asked: worked examples before them, a chat template or none, a judge; and what each changes.

The figures of a run are those of the first way (draw 0, the form that was asked for). Other draws of the examples give
the part of the variance that is theirs; the other form gives a paired drop. Both stand beside the figures, not in them.
Whatever else is asked (changed items, answers by chance, the same once more) is asked in the first way too: `Way`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.config import Config
from tutelage.core.errors import DataError
from tutelage.core.records import Example, Preference, digest, read_jsonl
from tutelage.evaluate.ask import GREEDY, AnswerLog, examine, judgements
from tutelage.evaluate.item import read_items
from tutelage.evaluate.suite import Result, check, item_id, people_of, sample
from tutelage.evaluate.suites.judged import Agreement, Bench, agreement
from tutelage.evaluate.suites.kinds import KIND, Ground, measured
from tutelage.evaluate.suites.shots import drawn, raw, shown, templated
from tutelage.evaluate.summary import Items
from tutelage.generate.generator import Generator, Sampling
from tutelage.measure.draws import over_draws
from tutelage.measure.statistics import plain

NEVER_SHOWN = ("perplexity", "judged")
"""Kinds before which no examples can stand."""


class Asking(Config):
    """How items are asked, beside what they say themselves."""

    shots: int = Field(0, ge=0)
    """Worked examples before each item, from the suite's own training rows or `shots_from`."""
    draws: int = Field(1, ge=1)
    """So many draws of the examples; more than one gives their part of the variance."""
    shots_from: str = ""
    """A file of items or dialogues to draw the examples from, of whatever suite."""
    form: Literal["written", "chat", "raw"] = "written"
    """`written`: as each item says. `chat`: all as conversations; `raw`: all as verbatim text, without a template."""
    other_form: bool = False
    """Ask once more in the other form, raw or templated, and report the paired drop."""
    judge: str = ""
    """Who judges items of kind `judged`: a reference (`prompted:REFERENCE`, `reward:ID`)."""
    people: str = ""
    """Answers that people judged, which measure the judge: a file, or `preferences:ID`."""
    stride: int = Field(0, ge=0)
    """Running text: tokens weighed anew in each window; 0 is the model's context."""
    weigh_labels: bool = False
    """Weigh the labels of classifications too, for their calibration; costs a likelihood per label."""


def bench_of(ref: str, root: Root | None, folder: Path | None = None) -> Bench | None:
    """The judge of a reference, for any rubric; None without a reference. An endpoint is asked as one under test is:
    what it said lies in `folder`, request by request. To be closed."""
    if not ref:
        return None
    if ref.startswith("prompted:"):
        from tutelage.judge.prompted import RUBRIC, PromptedJudge

        behind = ref.partition(":")[2]
        generator: Generator = refs.open(behind, root, **endpoint_options(behind, folder, "judge"))
        return Bench(lambda rubric: PromptedJudge(generator, rubric or RUBRIC), generator)
    judge = refs.open(ref, root)
    return Bench(lambda rubric: judge)


def endpoint_options(ref: str, folder: Path | None, part: str = "") -> dict[str, Any]:
    """How an examination opens an endpoint: a request that fails costs itself alone, and answers lie in `folder`. Of
    any other reference nothing."""
    if not ref.startswith(("http:", "https:")):
        return {}
    name = digest([part, ref] if part else ref)[:16]
    return {"apart": True} | ({"kept": folder / "asked" / name} if folder else {})


class Way:
    """The one way in which a run asks all it asks, so that answers that are compared differ in nothing else."""

    def __init__(
        self,
        how: Asking | None = None,
        pools: Mapping[str, Sequence[Example]] | None = None,
        *,
        seed: int = 0,
        bench: Bench | None = None,
    ) -> None:
        self.how, self.pools, self.seed, self.bench = how or Asking(), pools or {}, seed, bench
        self._orders: dict[tuple[str, str, int], list[Example]] = {}

    def prepared(
        self, items: Sequence[Example], *, originals: Sequence[Example] = (), draw: int = 0, other: bool = False
    ) -> list[Example]:
        """The items as they are asked: with the examples of a draw, in the form wanted (or the `other` one).

        An item that is another form of one of `originals` (`tags.original`) stands behind the examples of that one, as
        they are. Raises DataError where a suite has too few examples.
        """
        known = {item_id(each): each for each in originals}
        found = []
        for item in items:
            if self.how.shots and item.tags["kind"] not in NEVER_SHOWN:
                whose = known.get(str(item.tags.get("original")))
                item = shown(item, self._order(item, draw), self.how.shots, whose)
            found.append(_formed(item, self.how.form, other))
        return found

    def _order(self, item: Example, draw: int) -> list[Example]:
        suite, kind = str(item.tags["suite"]), str(item.tags["kind"])
        if (suite, kind, draw) not in self._orders:
            pool = self.pools.get(suite) or self.pools.get("", ())
            alike = [row for row in pool if row.tags.get("kind", kind) == kind]
            self._orders[suite, kind, draw] = drawn(alike or pool, self.seed, draw)
        return self._orders[suite, kind, draw]

    def examine(
        self,
        generator: Generator,
        items: Sequence[Example],
        *,
        sampling: Sampling = GREEDY,
        originals: Sequence[Example] = (),
        draw: int = 0,
        other: bool = False,
        weigh_labels: bool = False,
        **options: Any,
    ) -> list[Result]:
        """One result per item, in order (see `ask.examine`)."""
        asked = self.prepared(items, originals=originals, draw=draw, other=other)
        beside: dict[str, Any] = {"bench": self.bench, "judge": self.how.judge, "stride": self.how.stride}
        return examine(generator, asked, sampling=sampling, weigh_labels=weigh_labels, **beside, **options)

    def examined(
        self, generator: Generator, items: Sequence[Example], **options: Any
    ) -> tuple[list[Result], dict[str, list[list[Result]]]]:
        """(the results of the items, and those of further draws and of the other form)."""
        first = self.examine(generator, items, weigh_labels=self.how.weigh_labels, **options)
        draws = range(1, self.how.draws if self.how.shots else 1)
        return first, {
            "draws": [self.examine(generator, items, draw=draw, **options) for draw in draws],
            "forms": [self.examine(generator, items, other=True, **options)] if self.how.other_form else [],
        }

    def close(self) -> None:
        """Let go of an endpoint that judges."""
        if self.bench:
            self.bench.close()


def way_of(
    how: Asking,
    rows: Sequence[Example],
    dialogues: Sequence[Example],
    root: Root | None = None,
    *,
    folder: Path | None = None,
    seed: int = 0,
) -> Way:
    """The way that a run asks in: its examples found, its judge opened; what an endpoint that judges says lies in
    `folder`. To be closed. Raises DataError, NotFound."""
    pools = pools_of(rows, dialogues, how.shots_from) if how.shots else {}
    return Way(how, pools, seed=seed, bench=bench_of(how.judge, root, folder))


def _formed(item: Example, form: str, other: bool) -> Example:
    if item.tags["kind"] == "perplexity":
        return item
    verbatim = item.messages[-1].role == "text"
    wanted = {"written": verbatim, "chat": False, "raw": True}[form]
    return raw(item) if wanted != other else templated(item)


def times(how: Asking) -> int:
    """How often each item is asked."""
    return 1 + (how.draws - 1 if how.shots else 0) + int(how.other_form)


def draws_table(first: Sequence[Result], further: Sequence[Sequence[Result]], items: Items) -> list[dict[str, Any]]:
    """Per target, suite and cell: the headline's mean over the draws of examples, and how much a draw moves it."""
    table: list[dict[str, Any]] = []
    for key, (rows, *others) in _beside(first, further).items():
        if rows[0].kind in NEVER_SHOWN:
            continue
        sides, metric = (rows, *others), KIND[rows[0].kind][0]
        whole = [place for place in range(len(rows)) if all(one[place].value is not None for one in sides)]
        values = [metric.per_item([one[place] for place in whole], Ground(items)) for one in sides]
        found = over_draws(values, [rows[place].cluster for place in whole], bounds=metric.bounds)
        target, suite, cell = key
        table.append(
            {"target": target, "suite": suite, "cell": cell, "metric": rows[0].metric, "draws": len(sides)}
            | plain(found.figure)
            | {"deviation": found.deviation, "items_error": found.items_error, "means": list(found.means)}
            | {"asked": len(rows)}
        )
    return table


def forms_table(
    first: Sequence[Result],
    other: Sequence[Sequence[Result]],
    items: Items,
    *,
    form: str,
    people: Mapping[str, Sequence[Agreement]] | None = None,
    resamples: int = 200,
) -> list[dict[str, Any]]:
    """Per target, suite and cell: what the headline loses in the other form (other minus first, paired)."""
    table: list[dict[str, Any]] = []
    for (target, suite, cell), (rows, others) in _beside(first, other).items():
        both = [(a, b) for a, b in zip(others, rows, strict=True) if a.value is not None and b.value is not None]
        metric = KIND[rows[0].kind][0]
        ground = Ground(items, people or {}, resamples)
        gap = metric.difference([a for a, _ in both], [b for _, b in both], ground)
        verbatim = items[rows[0].item].messages[-1].role == "text" if form == "written" else form == "raw"
        table.append(
            {"target": target, "suite": suite, "cell": cell, "metric": metric.name}
            | {"form": "raw" if verbatim else "chat", "other": "chat" if verbatim else "raw"}
            | {"value": metric.figure(rows, ground)[0].value, "other_value": metric.figure(others, ground)[0].value}
            | {"difference": plain(gap.difference), "p": gap.p, "better": gap.better, "worse": gap.worse}
            | {"asked": len(rows), "measured": len(both)}
        )
    return table


Key = tuple[str, str, str | None]


def _beside(first: Sequence[Result], others: Sequence[Sequence[Result]]) -> dict[Key, list[list[Result]]]:
    """The same items under each way, by target, suite and cell, in one order."""
    groups: dict[Key, list[list[Result]]] = {}
    for rows in zip(first, *others, strict=True):
        key = (rows[0].target, rows[0].suite, rows[0].cell)
        slots = groups.setdefault(key, [[] for _ in rows])
        for slot, row in zip(slots, rows, strict=True):
            slot.append(row)
    return {key: slots for key, slots in groups.items() if measured(slots[0])}


# -- where examples stand


def pools_of(rows: Sequence[Example], dialogues: Sequence[Example] = (), file: str = "") -> dict[str, list[Example]]:
    """Rows to draw examples from, by suite: `file` for all (under ""), else a suite's `split: train` items, else the
    corpus's training dialogues of that suite, family or source."""
    if file:
        pool = [item for _, item in read_items(Path(file))]
        if not pool:
            raise DataError("no rows in this file", file=file)
        return {"": pool}
    found: dict[str, list[Example]] = {}
    for row in rows:
        if row.tags.get("split") == "train":
            found.setdefault(str(row.tags["suite"]), []).append(row)
    own = set(found)
    for row in dialogues:
        if row.tags.get("split", "train") == "train":
            for name in {str(row.tags.get(key) or "") for key in ("suite", "source")} - {""} - own:
                found.setdefault(name, []).append(row)
    return found


# -- judged by people


def labelled_answers(rows: Sequence[Example], people: str = "", root: Root | None = None) -> list[Example]:
    """Answers that people judged: among the rows themselves, and from a file or an artifact `preferences:ID`.

    Raises DataError naming file, row and key.
    """
    found = [row for row in rows if row.tags.get("kind") == "judged" and row.tags.get("answer")]
    if people.startswith("preferences:"):
        artifact = refs.resolve_artifact(people, root) if root else None
        if artifact is None:
            raise DataError(f"{people} needs a root", key="people")
        for place, row in enumerate(read_jsonl(artifact.file("preferences.jsonl"), Preference)):
            for number, (said, score) in enumerate(zip(row.candidates, row.scores, strict=False)):
                if score is not None:
                    tags: dict[str, Any] = {
                        "id": f"{place}-{number}",
                        "cluster": f"{place}",
                        "suite": "",
                        "kind": "judged",
                    }
                    tags |= {"answer": said.content, "human": score, "simulated": artifact.manifest.simulated}
                    found.append(Example(messages=row.prompt, tags=tags))
        if not found:
            raise DataError("people gave no scores here", file=artifact.file("preferences.jsonl"), key="people")
    elif people:
        for number, item in read_items(Path(people)):
            fault = check(item) or ("" if people_of(item) else "human: what people gave the answer is missing")
            if fault:
                key, _, message = fault.partition(": ")
                raise DataError(message, file=people, row=number, key=key)
            found.append(item.model_copy(update={"tags": item.tags | {"suite": ""}}))
    return found


def measured_judge(
    bench: Bench | None,
    answers: Sequence[Example],
    suites: Sequence[str],
    *,
    judge: str,
    log: AnswerLog,
    most: int = 0,
    step: Callable[[int], None] = lambda done: None,
) -> dict[str, list[Agreement]]:
    """By suite of judged items: what people and the judge said of the same answers. Answers of a suite measure the
    judge for that suite; those of no suite (`--people`) for every suite without its own."""
    if bench is None:
        return {}
    found: dict[str, list[Agreement]] = {}
    by_suite: dict[str, list[Example]] = {}
    for row in answers:
        by_suite.setdefault(str(row.tags["suite"]), []).append(row)
    said: dict[str, list[Agreement]] = {}
    for name, rows in by_suite.items():
        rows = sample(rows, most)
        words = judgements(bench, rows, [str(row.tags["answer"]) for row in rows], log=log, judge=judge)
        said[name] = agreement(rows, words)
        step(len(rows))
    for suite in suites:
        found[suite] = said.get(suite) or said.get("", [])
    return found
