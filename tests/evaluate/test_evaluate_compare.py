"""Systems on the same items: figures against independent sources, promises kept in simulation, bad input named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sacrebleu
from every_kind import judged_by_people
from scipy import stats
from sklearn.metrics import f1_score

from tutelage.core.errors import DataError, UsageError
from tutelage.core.records import Example
from tutelage.evaluate.compare import Compared, compare, refusal
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.judged import Agreement
from tutelage.evaluate.systems import System, judged, paired_up, system
from tutelage.measure.calibration import ece


def rows(target: str, values, *, suite="facts", kind="generate", metric="exact", clusters=None, **more) -> list[Result]:
    """A row an item; a value of None was not measured."""
    return [
        Result(
            target=target,
            suite=suite,
            cell=more.get("cell"),
            item=f"{suite}-{place}",
            cluster=str(clusters[place] if clusters is not None else place),
            kind=kind,
            metric=metric,
            value=None if value is None else float(value),
            outcome="unknown" if value is None else "answered",
            reason="it hung" if value is None else "",
            output=more["outputs"][place] if "outputs" in more else f"{target} says {value}",
            scores={name: each[place] for name, each in more.get("scores", {}).items()},
        )
        for place, value in enumerate(values)
    ]


def asked(made: list[Result], targets=None, choices=()) -> dict[str, Example]:
    return {
        row.item: Example.ask(f"question {row.item}", target=targets[place] if targets else "yes").model_copy(
            update={"choices": tuple(choices)}
        )
        for place, row in enumerate(made)
    }


def side(name: str, made: list[Result], items=None) -> System:
    return system(name, f"evaluation:{name}#{name}", made, asked(made) if items is None else items)


def two(first, second, **options) -> Compared:
    more = {key: options.pop(key) for key in ("clusters", "suite", "kind", "metric") if key in options}
    return compare(
        [side("old", rows("old", first, **more)), side("new", rows("new", second, **more))], [(0, 1)], **options
    )


def test_a_difference_of_rates_is_paired_and_its_p_exact() -> None:
    first, second = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0] * 4, [1, 0, 1, 1, 1, 0, 0, 0, 0, 0] * 4
    found = two(first, second, margin=0.5)
    row, unread = found.rows
    assert unread.metric == "unextracted" and unread.values == (0.0, 0.0) and not unread.headline
    assert row.values == (0.2, 0.4) and row.difference.value == pytest.approx(0.2) and row.difference.n == 40
    assert (row.test, row.p) == ("exact McNemar", pytest.approx(stats.binomtest(12, 16).pvalue))
    gap = np.array(second) - np.array(first)
    assert row.tests["cluster-robust t"] == pytest.approx(stats.ttest_1samp(gap, 0).pvalue)
    assert row.changes == {"fixed": 12, "better": 0, "same": 24, "worse": 0, "broken": 4, "not measured": 0}
    assert row.non_inferior.passed is True and row.equivalent.passed is True
    ninety = stats.t.interval(0.9, 39, gap.mean(), stats.sem(gap))
    assert row.non_inferior.bound == pytest.approx(ninety[0])
    assert [each.changes for each in found.items[:3]] == [("same",), ("broken",), ("fixed",)]
    assert found.items[1].prompt == "question facts-1" and found.items[1].answers[1].output == "new says 0"


def test_items_that_depend_on_each_other_count_as_one() -> None:
    first, second = [0] * 40, [1] * 20 + [0] * 20
    alone, grouped = (
        two(first, second).rows[0],
        two(first, second, clusters=[place // 20 for place in range(40)]).rows[0],
    )
    assert alone.p < 1e-4 and alone.verdict == "better"
    assert grouped.test == "sign-flip permutation" and grouped.p == 1.0, "two groups can never show it"
    assert grouped.detectable is None and "2 independent items" in grouped.detectable_reason
    assert grouped.difference.clusters == 2 and grouped.verdict == "undecided"


@pytest.mark.parametrize(
    "worse", [pytest.param(0.0, marks=pytest.mark.slow), 0.05, pytest.param(0.15, marks=pytest.mark.slow)]
)
def test_what_is_said_to_be_detectable_is_detected(worse: float) -> None:
    """A difference just as large as what is stated shows in four pairs out of five, with few flips and with many."""
    n, rng, effect = 300, np.random.default_rng(5), 0.05

    def pair(effect: float) -> tuple[list[float], list[float]]:
        draw = rng.random(n)
        flips = np.where(draw < worse, -1, np.where(draw < 2 * worse + effect, 1, 0))
        first = np.where(flips == -1, 1, np.where(flips == 1, 0, rng.random(n) < 0.5))
        return first.tolist(), (first + flips).tolist()

    for _ in range(5):  # until the true difference is the one that is stated of it
        effect = float(np.median([two(*pair(effect)).rows[0].detectable for _ in range(9)]))
    seen = sum((two(*pair(effect)).rows[0].p or 1) < 0.05 for _ in range(150))
    assert 0.68 < seen / 150 < 0.92, (worse, effect, seen)


def test_without_a_difference_hardly_anything_is_found() -> None:
    rng, false = np.random.default_rng(0), 0
    for _ in range(60):
        made = {}
        for name in ("old", "new"):
            made[name] = [
                row
                for cell in "ABCDE"
                for row in (
                    each.model_copy(update={"item": f"{cell}{each.item}"})
                    for each in rows(name, (rng.random(60) < 0.6).astype(float), cell=cell)
                )
            ]
        found = compare([side(*each) for each in made.items()], [(0, 1)], resamples=50)
        assert found.tests == 5 and sum(row.headline for row in found.rows) == 5
        false += any(row.verdict != "undecided" for row in found.rows)
    assert false <= 6  # 5% of 60 tables, and some


def test_corpus_figures_are_those_of_their_sources() -> None:
    golds = [f"the {word} cat sits on the {word} mat today" for word in ("red", "blue", "old", "small", "wet") * 8]
    said = {
        "old": [gold.replace("sits", "sat").replace("today", "now") for gold in golds],
        "new": [gold if place % 3 else gold.replace("mat", "rug") for place, gold in enumerate(golds)],
    }
    sides = []
    for name, texts in said.items():
        values = [sacrebleu.sentence_chrf(text, [gold]).score / 100 for text, gold in zip(texts, golds, strict=True)]
        made = rows(name, values, suite="velic", kind="translate", metric="chrf", outputs=texts)
        sides.append(side(name, made, asked(made, golds)))
    found = compare(sides, [(0, 1)], resamples=300)
    by_metric = {row.metric: row for row in found.rows}
    for metric, score in (("chrf", sacrebleu.corpus_chrf), ("bleu", sacrebleu.corpus_bleu)):
        old, new = (score(said[name], [golds]).score / 100 for name in ("old", "new"))
        row = by_metric[metric]
        assert row.values == (pytest.approx(old), pytest.approx(new))
        assert row.difference.low < new - old < row.difference.high and row.test == "approximate randomization"
        assert "version:" in row.signature and row.detectable > 0
    assert by_metric["chrf"].verdict == "better" and by_metric["chrf"].headline and not by_metric["bleu"].headline


def test_macro_f1_and_calibration_of_choices() -> None:
    rng = np.random.default_rng(3)
    labels = ["good", "bad", "mixed"]
    gold = [labels[place % 3] for place in range(330)]
    sides, told = [], {}
    for name, skill in (("old", 0.4), ("new", 0.9)):
        said = [each if rng.random() < skill else labels[int(rng.integers(3))] for each in gold]
        right = [float(a == b) for a, b in zip(said, gold, strict=True)]
        sure = rng.uniform(0.7, 1.0, 330)
        made = rows(
            name, right, kind="choice", metric="accuracy", outputs=said,
            scores={"confidence": sure, "accuracy": right, "accuracy_per_character": right},
        )  # fmt: skip
        sides.append(side(name, made, asked(made, gold, labels)))
        told[name] = f1_score(gold, said, average="macro", labels=labels), ece(sure, right, clusters=range(330)).value
    found = {row.metric: row for row in compare(sides, [(0, 1)], resamples=200).rows}
    assert found["macro_f1"].values == (pytest.approx(told["old"][0]), pytest.approx(told["new"][0]))
    assert found["calibration_error"].values == (told["old"][1], told["new"][1])
    assert found["calibration_error"].higher_is_better is False and found["macro_f1"].verdict == "better"
    assert found["calibration_error"].difference.high < 0 and found["calibration_error"].verdict == "better"


# -- a judge's error


def open_ended(name: str, words: Sequence[float], people: Sequence[Agreement], judge: str = "j") -> System:
    made = side(name, rows(name, words, suite="talk", kind="judged", metric="score", scores={"judge": words}))
    answers = [each._asdict() for each in people]
    return judged(made, [{"suite": "talk", "judge": judge, "answers": answers}])


def test_a_judged_difference_carries_what_the_judge_was_measured_to_be_off() -> None:
    rng = np.random.default_rng(7)
    old, new = rng.uniform(0.2, 0.6, 80), rng.uniform(0.35, 0.75, 80)

    def compared(*people: Sequence[Agreement], judges: str = "jj") -> dict[str, Any]:
        both = [open_ended(*each) for each in zip(("old", "new"), (old, new), people, judges, strict=True)]
        return {row.metric: row for row in compare(both, [(0, 1)], margin=0.01).rows}

    many, few = judged_by_people(990), judged_by_people(15)
    found, wide = compared(many, many)["score"], compared(few, few)["score"]
    raw = compared(many, many)["judge"]
    assert found.values[0] == pytest.approx(old.mean() - 0.1), "as the examination corrects it"
    assert found.difference.value == wide.difference.value == pytest.approx(new.mean() - old.mean())
    assert found.difference.half_width < wide.difference.half_width and found.p < wide.p
    assert raw.difference.half_width < found.difference.half_width and "judge's error" in found.test
    assert found.detectable < wide.detectable
    nobody = compared([], [])["score"]
    assert nobody.p is None and nobody.verdict == "undecided" and not nobody.difference.defined
    assert "no answer was judged by people" in nobody.difference.reason and nobody.detectable is None
    assert nobody.non_inferior.passed is None, "what nobody measured passes no gate"
    assert "only 3 answers" in compared(many, many[:3])["score"].difference.reason
    blind = [each._replace(judge=0.5) for each in many]
    assert "decides nothing" in compared(many, blind)["score"].difference.reason
    other = compared(many, judged_by_people(990, off=0.3), judges="jk")
    assert other["score"].difference.value == pytest.approx(new.mean() - old.mean() - 0.2)
    assert "judge" not in other, "the word of one judge beside that of another says nothing"


def test_intervals_of_differences_cover_what_they_promise() -> None:
    """Right or wrong in clusters, graded, and judged by a judge who is off and noisy, but as much on both sides."""
    rng, held, turns = np.random.default_rng(8), {"exact": 0, "f1": 0, "score": 0, "judge": 0}, 100
    for _ in range(turns):
        groups = np.repeat(rng.normal(0, 0.1, 30), 2)
        low, high = 0.4 + groups, 0.55 + groups
        old, new = (rng.random(60) < low).astype(float), (rng.random(60) < high).astype(float)
        clusters = [place // 2 for place in range(60)]
        graded = rng.beta(2, 3, 60), rng.beta(3, 3, 60)
        made = [
            side(name, rows(name, one, clusters=clusters, scores={"f1": two}))
            for name, one, two in zip(("old", "new"), (old, new), graded, strict=True)
        ]
        truth = {"exact": 0.15, "f1": 0.1, "score": 0.1, "judge": 0.1}
        human = rng.beta(4, 6, 100), rng.beta(5, 5, 100)
        measured = rng.beta(4, 5, 25)

        def word(people: Any) -> Any:
            return people + 0.15 + rng.normal(0, 0.1, len(people))

        agreed = [
            Agreement(str(n), str(n), float(a), float(b))
            for n, (a, b) in enumerate(zip(measured, word(measured), strict=True))
        ]
        talk = [open_ended(name, word(each), agreed) for name, each in zip(("old", "new"), human, strict=True)]
        for each in (made, talk):
            for row in compare(each, [(0, 1)], resamples=100).rows:
                if row.metric in held:
                    held[row.metric] += row.difference.low <= truth[row.metric] <= row.difference.high
    assert min(held.values()) / turns >= 0.88, held
    assert held["exact"] / turns <= 0.99 and held["f1"] / turns <= 0.99, held


def test_less_is_better_where_it_is() -> None:
    found = two([1.0] * 30, [0.0] * 30, suite="attacks", kind="goal", metric="attack_success", margin=0.02)
    row = found.rows[0]
    assert row.difference.value == -1.0 and row.verdict == "better" and row.changes["fixed"] == 30
    assert row.non_inferior.passed is True
    worse = two([0.0] * 30, [1.0] * 30, suite="attacks", kind="goal", metric="attack_success", margin=0.02)
    assert worse.rows[0].non_inferior.passed is False and worse.rows[0].changes["broken"] == 30


def test_what_was_not_measured_is_counted_and_fails_the_gate() -> None:
    first, second = [1.0] * 400, [1.0] * 380 + [None] * 20
    found = two(first, second, margin=0.05)
    row = found.rows[0]
    assert (row.difference.n, row.unmeasured_second, row.changes["not measured"]) == (380, 20, 20)
    assert row.non_inferior.passed is True and "20 of 400 items were not measured" in refusal(found)
    assert refusal(two(first, first, margin=0.05)) is None
    assert "no margin" in refusal(two(first, first))
    assert "worse by more" in refusal(two(first, [0.0] * 400, margin=0.05))
    nothing = two(first, [None] * 400).rows[0]
    assert nothing.values == (None, None) and nothing.p is None and nothing.difference.reason


def test_only_items_in_common_count() -> None:
    old, new = rows("old", [1, 0] * 20), rows("new", [1, 1] * 20)
    extra = rows("new", [1] * 5, suite="rules", metric="kept", kind="rule")
    found = compare([side("old", old[:30]), side("new", [*new[10:], *extra])], [(0, 1)], margin=0.5)
    row = found.rows[0]
    assert (row.difference.n, row.only_first, row.only_second, len(found.items)) == (20, 10, 10, 20)
    assert found.left_out == ("old → new: rules: only 'new' was asked",)
    assert "were not asked" in refusal(found)
    assert [
        row.suite for row in compare([side("old", old), side("new", [*new, *extra])], [(0, 1)], only=["facts"]).rows
    ]


def test_ranks_have_intervals_and_equals_share_them() -> None:
    rng = np.random.default_rng(2)
    skill = rng.random(120)
    sides = [
        side(name, rows(name, (skill < level).astype(float)))
        for name, level in (("weak", 0.2), ("twin", 0.6), ("other", 0.6), ("strong", 0.95))
    ]
    found = {sides[each.system].name: each for each in compare(sides, [(0, 1), (0, 2), (0, 3)]).ranks}
    assert (found["strong"].rank, found["weak"].rank) == (1.0, 4.0)
    assert found["strong"].rank_high == 1.0 and found["twin"].rank == found["other"].rank == 2.5
    assert found["twin"].low < found["twin"].value < found["twin"].high


def test_suites_are_drawn_apart() -> None:
    """Six suites of the same answers: with one seed for all, their mean rank would be as uncertain as that of one."""
    rng = np.random.default_rng(11)
    skill, sides = rng.random(80), []
    for name, level in (("a", 0.5), ("b", 0.55), ("c", 0.6)):
        once = rows(name, (skill + 0.3 * rng.random(80) < level).astype(float))
        sides.append(side(name, [row.model_copy(update={"suite": suite}) for suite in "pqrstu" for row in once]))
    whole = compare(sides, [(0, 1), (0, 2)], resamples=400)
    width = {
        suite: sum(each.rank_high - each.rank_low for each in whole.ranks if each.suite == suite)
        for suite in ("p", "q", None)
    }
    assert width[None] < 0.8 * min(width["p"], width["q"]), width
    first = {row.suite: row for row in whole.rows if row.second == 1 and row.headline}
    places = {each.suite: each for each in whole.ranks if each.system == 1}
    assert (places["p"].value, places["p"].kind) == (first["p"].values[1], "generate")
    assert places["p"].low < places["p"].value < places["p"].high


def test_two_evaluations_meet_by_name_and_one_is_held_against_its_first() -> None:
    one = [side("a", rows("a", [1, 0])), side("b", rows("b", [1, 0])), side("c", rows("c", [1, 0]))]
    other = [System(each.name, f"evaluation:ffff00#{each.name}", "", each.rows, each.items) for each in one[1:]]
    systems, pairs = paired_up([one])
    assert [each.name for each in systems] == ["a", "b", "c"] and pairs == [(0, 1), (0, 2)]
    systems, pairs = paired_up([one, other])
    assert [each.name for each in systems] == ["b (b)", "b (ffff00)", "c (c)", "c (ffff00)"] and pairs == [
        (0, 1),
        (2, 3),
    ]
    for operands, said in (
        ([one[:1]], "needs two systems"),
        ([one[:1], one[:1]], "the same system stands twice"),
        ([one, [side("z", rows("z", [1]))]], "no target of one name"),
    ):
        with pytest.raises(UsageError, match=said):
            paired_up(operands)


def test_bad_input_is_named() -> None:
    made = rows("old", [1, 0, 1])
    other_text = asked(made) | {"facts-1": Example.ask("another question", target="yes")}
    for systems, said in (
        ([side("old", made), side("new", rows("new", [1], suite="rules"))], "no item in common"),
        (
            [side("old", made), side("new", rows("new", [1, 0, 1]), other_text)],
            "1 item has the same id.*'facts-1' of facts",
        ),
        ([side("old", made), side("new", rows("new", [1, 0, 1], metric="f1"))], "exact .generate. for 'old' and as f1"),
    ):
        with pytest.raises(DataError, match=said):
            compare(systems, [(0, 1)])
    with pytest.raises(DataError, match="answers the item 'facts-0' of facts twice"):
        side("old", [*made, *made])
    with pytest.raises(DataError, match=r"'old' was not asked sums.* It was asked: facts"):
        two([1, 0], [1, 1], only=["sums"])
    with pytest.raises(DataError, match="asked nothing"):
        side("old", [])


def test_tags_may_differ_and_unknown_texts_do_not_stop_it() -> None:
    made = rows("old", [1, 0, 1] * 10)
    tagged = {key: each.model_copy(update={"tags": {"kind": "classify"}}) for key, each in asked(made).items()}
    found = compare([side("old", made), side("new", rows("new", [1] * 30), tagged)], [(0, 1)])
    assert found.rows[0].changes["fixed"] == 10
    bare = compare([side("old", made, {}), side("new", rows("new", [1] * 30), {})], [(0, 1)])
    assert bare.items[0].prompt is None and bare.rows == found.rows
