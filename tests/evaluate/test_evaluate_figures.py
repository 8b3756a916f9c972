"""One figure has one computation: whoever states it, of any kind, says the same; and it knows which way is better."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from every_kind import Lengths, Model, judged_by_people, question
from torch import nn

from tutelage.adapt.gate import ReleasePolicy, decide
from tutelage.core.records import Example
from tutelage.evaluate import contamination, reliability, robustness
from tutelage.evaluate.ask import examine
from tutelage.evaluate.compare import Compared, change, compare
from tutelage.evaluate.flips import between
from tutelage.evaluate.groups import gaps, of_slices
from tutelage.evaluate.run import summarise
from tutelage.evaluate.suite import Result, Suite, check, item_id
from tutelage.evaluate.suites.judged import Agreement, Bench, corrected, corrected_difference
from tutelage.evaluate.suites.kinds import HEADLINE, KIND, Ground, metric_of
from tutelage.evaluate.systems import judged, system
from tutelage.evaluate.watch import Examiner
from tutelage.evaluate.ways import NEVER_SHOWN, draws_table
from tutelage.measure.intervals import Interval

RESAMPLES = 60
HOW: dict[str, Any] = {"judge": "lengths", "weigh_labels": True}


class Small(nn.Module):
    """Weights that a watch may look at; what answers is scripted."""

    def __init__(self, skill: float) -> None:
        super().__init__()
        self.skill = skill


def items_of(kind: str) -> list[Example]:
    items = [question(kind, place) for place in range(320 if kind in ("choice", "classify") else 60)]
    tagged = []
    for place, each in enumerate(items):
        slices = {**(each.tags.get("slices") or {}), "gender": ("female", "male")[place // 2 % 2]}
        tagged.append(each.model_copy(update={"tags": each.tags | {"slices": slices}}))
    assert all(check(each) is None for each in tagged)
    return tagged


def examined(kind: str, items: list[Example], name: str, skill: float) -> tuple[list[Result], dict[str, Any]]:
    people = {"judged": judged_by_people(40)} if kind == "judged" else {}
    results = examine(Model(skill), items, target=name, bench=Bench(lambda rubric: Lengths()), **HOW)
    return results, summarise(
        results, [Suite(kind, items)], (), people=people, judge="lengths", resamples=RESAMPLES
    )  # fmt: skip


def gated(kind: str, rule: dict[str, Any], sides: dict[str, list[Result]], ground: Ground) -> Interval:
    given = {"id": "x", "source": "evaluation", "where": {"suite": kind}, "min_n": 5, "sentence": "is worse"}
    policy = ReleasePolicy.model_validate({"checks": [given | rule]})
    rows = [{"evaluation": sides[name]} for name in ("new", "old")]
    return decide(policy, *rows, against="the old one", ground=ground).checks[0].figure


@pytest.mark.parametrize("kind", KIND)
def test_a_figure_is_the_same_wherever_it_is_stated(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind: the examination, the comparison, the gate, the watch, clean and dirty items, draws, slices, groups
    and forms; of every metric the first two, and nothing that was stated is dropped."""
    items = items_of(kind)
    rows, told, sides = {}, {}, []
    for name, skill in (("old", 0.4), ("new", 0.8)):
        rows[name], found = examined(kind, items, name, skill)
        told[name] = {each["metric"]: each for each in found["cells"]}
        made = system(name, f"evaluation:{name}#{name}", rows[name], {item_id(each): each for each in items})
        sides.append(judged(made, json.loads(json.dumps(found["judges"]))))
    compared = {row.metric: row for row in compare(sides, [(0, 1)], resamples=RESAMPLES).rows}
    assert set(compared) == set(told["old"]) and set(told["old"]) <= {each.name for each in KIND[kind]}
    for name, row in compared.items():
        assert row.values == (told["old"][name]["value"], told["new"][name]["value"]), name
        assert row.higher_is_better is told["old"][name]["higher_is_better"]
        gap = row.difference
        if None not in row.values:
            assert gap.value == pytest.approx(row.values[1] - row.values[0]), name
            assert gap.low is None or gap.low <= gap.value <= gap.high, name
            assert (row.p is None) == (row.test == ""), name
    name, cell = HEADLINE[kind], told["new"][HEADLINE[kind]]
    headline, metric = compared[name], metric_of(kind, name)
    assert headline.headline and cell["value"] is not None and headline.difference.defined

    ground = Ground({item_id(each): each for each in items}, sides[0].people, RESAMPLES)
    alone = gated(kind, {"kind": "at_most", "bound": 1.0}, rows, ground)
    assert alone.value == pytest.approx(cell["value"], abs=1e-12) and alone.n == cell["n"]
    if not metric.plain:
        assert (alone.low, alone.high) == (cell["low"], cell["high"])
    beside = gated(kind, {"kind": "non_inferior", "margin": 0.1}, rows, ground)
    gap = headline.difference
    assert beside.model_dump() == metric.upward(gap, None, None).model_dump()

    both = [each.model_copy(update={"target": "new"}) for each in rows["new"]]
    changes = summarise(
        [*rows["old"], *both], [Suite(kind, items)], (), pairs=[("old", "new")], people=sides[0].people,
        resamples=RESAMPLES,
    )["changes"]  # fmt: skip
    change_ = next(each for each in changes if each["metric"] == name)
    assert (change_["value"], change_["low"], change_["p"]) == (gap.value, gap.low, headline.p)
    assert (change_["p_holm"], change_["family"]) == (headline.p_holm, headline.family)

    monkeypatch.setattr("tutelage.generate.local.LocalGenerator", lambda model, words, name: Model(model.skill))
    look = Examiner(items, None, 0)
    look.begin(Small(0.4))
    figures = look(Small(0.8), 5)
    if kind == "judged":
        assert kind not in figures, "nobody judges in a watch"
    else:
        assert figures[kind] == pytest.approx(cell["value"], abs=1e-12)
        values = [value for value, _ in look.values(kind).values()]
        assert np.mean(values) == pytest.approx(cell["value"], abs=1e-9), "item by item too, as patience reads them"
        assert look.change(Small(0.8), 5)[kind]["value"] == pytest.approx(gap.value, abs=1e-12)

    clean = contamination.split(rows["new"], {"new": set()}, ground)[0]
    assert clean["clean"]["value"] == cell["value"] and clean["clean"]["low"] == cell["low"]
    half = {item_id(each) for each in items[::2]}
    parted = contamination.split(rows["new"], {"new": half}, ground)[0]
    for part, wanted in (("dirty", True), ("clean", False)):
        here = [each for each in rows["new"] if (each.item in half) is wanted]
        assert parted[part]["value"] == metric.figure(here, ground)[0].value

    if kind not in NEVER_SHOWN:
        drawn = draws_table(rows["new"], [rows["old"]], ground.items)[0]
        assert drawn["means"] == [pytest.approx(told[side][name]["value"], abs=1e-9) for side in ("new", "old")]
    if kind != "judged":
        (gap_,) = gaps(of_slices(rows["new"], ground))
        for each in gap_["groups"]:
            here = [row for row in rows["new"] if row.slices["gender"] == each["group"]]
            assert each["value"] == pytest.approx(metric.figure(here, ground)[0].value, abs=1e-9)
        forms = [row.model_copy(update={"slices": {"perturbation": "typos"}, "target": "new"}) for row in rows["old"]]
        as_old = [row.model_copy(update={"target": "old"}) for row in rows["new"]]
        again = reliability.consistency("seeds", [rows["old"], rows["old"]], as_old, ground)[0]
        assert (again["greedy"]["value"], again["majority"]["value"]) == (
            pytest.approx(cell["value"], abs=1e-9), pytest.approx(told["old"][name]["value"], abs=1e-9),
        )  # fmt: skip
        given = robustness.Forms((), tuple(items), {})
        form = next(row for row in robustness.table(rows["new"], forms, given) if row["suite"])
        assert form["before"] == pytest.approx(cell["value"], abs=1e-9)
        assert form["after"] == pytest.approx(told["old"][name]["value"], abs=1e-9)
        assert form["value"] == pytest.approx(gap.value if metric.higher else -gap.value, abs=1e-9)


def test_rows_whose_texts_are_gone_have_no_figure_of_a_corpus_and_pass_no_gate() -> None:
    items = items_of("translate")
    rows = {name: examined("translate", items, name, skill)[0] for name, skill in (("old", 0.4), ("new", 0.8))}
    found = gated("translate", {"kind": "non_inferior", "margin": 0.9}, rows, Ground({}))
    assert not found.defined and "no longer there" in found.reason


# -- which way is better


def compared(kind: str, metric: str, first: list[Result], second: list[Result], items: dict[str, Example]) -> Any:
    sides = [system(name, f"e:{name}#{name}", rows, items) for name, rows in (("old", first), ("new", second))]
    found = compare(sides, [(0, 1)], margin=0.05, resamples=RESAMPLES)
    return next(row for row in found.rows if row.metric == metric)


def bbq(name: str, sides: Callable[[int], str], items: list[Example]) -> list[Result]:
    """Answers to clear questions: `sides` says which group each names."""
    return [
        Result(
            target=name, suite="bbq", item=item_id(each), cluster=item_id(each), kind="choice", metric="accuracy",
            value=float(said == each.target), outcome="answered", output=said, slices=each.tags["slices"],
        )
        for place, each in enumerate(items)
        if (said := sides(place))
    ]  # fmt: skip


def test_of_a_bias_nearer_to_nothing_is_better() -> None:
    """From -0.8 to -0.2 it got better, though it rose; from 0.2 to 0.8 worse; across 0 nobody can say."""
    items = []
    for place in range(200):
        each = question("choice", 4 * place + 1)
        tags = {"id": f"i{place}", "slices": {"condition": "disambig", "polarity": "neg"}}
        items.append(each.model_copy(update={"tags": each.tags | tags}))
    known = {item_id(each): each for each in items}

    def answers(name: str, share: float) -> list[Result]:
        return bbq(name, lambda place: "The grandfather" if place % 10 < 10 * share else "The grandson", items)

    for before, after, verdict in ((0.1, 0.4, "better"), (0.6, 0.9, "worse"), (0.1, 0.8, "undecided")):
        row = compared("choice", "bias_disambig", answers("old", before), answers("new", after), known)
        assert row.p is not None and row.p < 0.01 and row.difference.value > 0
        assert (row.verdict, row.higher_is_better, row.best) == (verdict, None, 0.0), (before, after)
    assert "both sides of 0" in row.non_inferior.reason


def test_what_only_describes_has_no_verdict() -> None:
    described = [each for each in KIND["summarise"] if each.describes]
    assert [each.name for each in described] == ["compression", "novelty", "copied", "density"]
    items = {f"s-{place}": Example.ask(f"sum up {place}", target="a short text") for place in range(40)}

    def rows(name: str, copied: float) -> list[Result]:
        return [
            Result(
                target=name, suite="s", item=item, cluster=item, kind="summarise", metric="rouge_l", value=0.5,
                outcome="answered", output="a text", scores={"rouge_l": 0.5, "copied": copied + 0.01 * (place % 5)},
            )
            for place, item in enumerate(items)
        ]  # fmt: skip

    row = compared("summarise", "copied", rows("old", 0.2), rows("new", 0.6), items)
    assert row.p_holm < 0.01 and row.verdict == "none" and row.non_inferior is None
    found = metric_of("summarise", "copied").difference(rows("new", 0.6), rows("old", 0.2), Ground(items))
    assert (found.better, found.worse) == (0, 0)


@pytest.mark.parametrize(
    ("metric", "before", "after", "letters"),
    [
        ("exact", [0, 1, 1], [1, 0, 1], "fb="),
        ("f1", [0.2, 0.5, 0.9, 0.5], [0.8, 1.0, 0.3, 0.4], "ffb-"),
        ("bits_per_byte", [2.0, 1.0, 1.0, 1.5], [1.5, 1.05, 1.3, 1.48], "f-b+"),
        ("attack_success", [1, 0], [0, 1], "fb"),
    ],
)
def test_fixed_and_broken_are_what_the_metric_calls_a_change(
    metric: str, before: list[float], after: list[float], letters: str
) -> None:
    """Item by item the comparison says of what was fixed or broken what the flips between checkpoints say."""

    def rows(name: str, values: list[float]) -> list[Result]:
        return [
            Result(target=name, suite="s", item=f"i{place}", cluster=f"i{place}", kind="generate", metric=metric,
                   value=value, outcome="answered")
            for place, value in enumerate(values)
        ]  # fmt: skip

    first, second = rows("a", before), rows("b", after)
    found = "".join(map(change, first, second))
    assert found == letters
    flipped = between([*first, *second], [("a", "b")])[-1]
    assert flipped.fixed == tuple(f"i{place}" for place, letter in enumerate(found) if letter == "f")
    assert flipped.broken == tuple(f"i{place}" for place, letter in enumerate(found) if letter == "b")


def test_an_answer_is_right_or_wrong_as_its_metric_says() -> None:
    for metric, value, right in (
        ("attack_success", 0.0, True), ("attack_success", 1.0, False), ("exact", 1.0, True), ("f1", 0.6, None),
        ("chrf", 0.0, False), ("bits_per_byte", 1.0, None), ("bits_per_byte", 0.2, None), ("copied", 1.0, None),
    ):  # fmt: skip
        assert metric_of("", metric).right(value) is right, metric
    found: Compared = compare(
        [
            system(name, f"e:{name}#{name}", [
                Result(target=name, suite="attacks", item="i", cluster="i", kind="goal", metric="attack_success",
                       value=value, outcome="harmless")
            ], {})
            for name, value in (("old", 1.0), ("new", 0.0))
        ],
        [(0, 1)],
    )  # fmt: skip
    assert [each.right for each in found.items[0].answers if each] == [False, True]


# -- a judge's error


def test_judged_intervals_are_no_wider_than_they_must_be() -> None:
    """Beside covering (see the differences between systems) they stay near what the two errors come to: what the items
    vary, and what the judge, asked on so many answers of people, may be off on each side."""
    rng, n, people, noise = np.random.default_rng(4), 120, 40, 0.1
    widths: dict[str, list[float]] = {"mean": [], "difference": []}
    items = [str(place) for place in range(n)]
    for _ in range(60):
        human = rng.beta(4, 5, people)
        said = human + 0.15 + rng.normal(0, noise, people)
        agreed = [
            Agreement(f"p{k}", f"p{k}", a, b)
            for k, (a, b) in enumerate(zip(human.tolist(), said.tolist(), strict=True))
        ]
        old, new = rng.beta(4, 6, n), rng.beta(5, 5, n)
        words = [each * 0.8 + 0.1 for each in (old, new)]
        alone = corrected(words[1].tolist(), items, agreed)
        apart = corrected_difference(words[1].tolist(), words[0].tolist(), items, agreed, agreed).difference
        off = noise / people**0.5
        must = {
            "mean": ((words[1].std(ddof=1) / n**0.5) ** 2 + off**2) ** 0.5,
            "difference": (((words[1] - words[0]).std(ddof=1) / n**0.5) ** 2 + 2 * off**2) ** 0.5,
        }
        for name, found in (("mean", alone), ("difference", apart)):
            assert found.half_width is not None
            widths[name].append(found.half_width / (1.96 * must[name]))
    for name, each in widths.items():
        assert 0.85 < np.mean(each) < 1.2, (name, np.mean(each))
