"""Draws: known probability, same draw again, nothing unseen, estimates that are right on average."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.measure.statistics import Interval
from tutelage.review.estimates import Count, Estimate, Stratum, corrected, counted, estimates, part
from tutelage.review.sample import Draw, Reviewed, Subject, draw, population, probabilities, stratum_of
from tutelage.review.slips import Slips, slips


def town(
    n: int = 800, *, seed: int = 1, prevalence: float = 0.1, missed: float = 0.15, blocked_for_nothing: float = 0.03
) -> tuple[list[Subject], dict[str, bool]]:
    """A week of decisions with the truth about each."""
    stream = random.Random(seed)
    subjects, truth = [], {}
    for at in range(n):
        harmful = stream.random() < prevalence
        withheld = stream.random() >= missed if harmful else stream.random() < blocked_for_nothing
        if withheld:
            score = stream.uniform(0.5, 1)
        else:
            score = stream.betavariate(1, 4) if harmful else stream.betavariate(0.6, 12)
        subjects.append(Subject(id=f"d{at}", week="1", action="block" if withheld else "allow", score=score))
        truth[f"d{at}"] = harmful
    return subjects, truth


def answered(draws: tuple[Draw, ...], truth: dict[str, bool], people: str = "live") -> list[Reviewed]:
    """Every selected decision, judged rightly."""
    return [
        Reviewed(
            subject=each.subject, week=each.week, stratum=each.stratum, probability=each.probability,
            harmful=float(truth[each.subject]), people=people,  # type: ignore[arg-type]
        )
        for each in draws
        if each.selected
    ]  # fmt: skip


def slipping(
    draws: tuple[Draw, ...], truth: dict[str, bool], *, alarm: float, oversight: float, seed: int, double: float = 0.2
) -> list[Reviewed]:
    """Every selected decision, some of them judged twice, by people who slip."""
    dice, found = random.Random(seed), []
    for each in answered(draws, truth):
        harmful = each.harmful > 0.5
        many = 2 if dice.random() < double else 1
        voices = tuple(float(harmful != (dice.random() < (oversight if harmful else alarm))) for _ in range(many))
        found.append(each.model_copy(update={"voices": voices, "harmful": sum(voices) / many, "reviewers": many}))
    return found


def figures(found: list[Estimate]) -> dict[str, Estimate]:
    return {each.metric: each for each in found}


def test_the_same_draw_again_in_any_order() -> None:
    subjects, _ = town()
    first = draw(subjects, seed=7, budget=100)
    again = draw(list(reversed(subjects)), seed=7, budget=100)
    assert {each.subject: each for each in first} == {each.subject: each for each in again}
    other = draw(subjects, seed=8, budget=100)
    assert {e.subject for e in first if e.selected} != {e.subject for e in other if e.selected}


def test_about_the_budget_is_drawn_and_more_where_it_matters() -> None:
    subjects, _ = town(4000)
    drawn = draw(subjects, seed=1, budget=400, floor=0.02)
    assert 340 <= sum(each.selected for each in drawn) <= 460
    chances = {each.stratum: each.probability for each in drawn}
    assert chances["delivered/middle"] > chances["delivered/low"] >= 0.02


def test_everything_reported_is_looked_at_in_a_stream_of_its_own() -> None:
    subjects = [Subject(id=str(at), week="1", action="allow", score=0.01, reported=at < 5) for at in range(200)]
    drawn = draw(subjects, seed=1, budget=20)
    assert all(each.selected and each.stream == "certainty" for each in drawn if int(each.subject) < 5)
    assert {each.stream for each in drawn if int(each.subject) >= 5} == {"measure"}


def test_no_floor_is_refused() -> None:
    with pytest.raises(ValueError, match="never be drawn"):
        draw([], seed=0, budget=10, floor=0.0)


@given(
    st.dictionaries(
        st.sampled_from(["delivered/low", "delivered/middle", "delivered/high", "withheld/high", "withheld/reported"]),
        st.integers(0, 5000),
        min_size=1,
    ),
    st.floats(0, 3000),
    st.floats(0.001, 0.5),
)
def test_every_stratum_can_be_drawn_and_the_budget_is_met(sizes: dict[str, int], budget: float, floor: float) -> None:
    found = probabilities(sizes, budget=budget, floor=floor)
    filled = {name: size for name, size in sizes.items() if size}
    assert all(floor <= found[name] + 1e-12 and found[name] <= 1 + 1e-12 for name in filled)
    expected = sum(found[name] * size for name, size in filled.items())
    certain = sum(size for name, size in filled.items() if name.endswith("reported"))
    least = certain + floor * (sum(filled.values()) - certain)
    assert expected >= min(budget, sum(filled.values())) - 1e-6 * (1 + budget)
    assert expected <= max(budget, least) + 1e-6 * (1 + budget) or expected <= least + sum(filled.values()) * floor


def test_bands() -> None:
    assert stratum_of(Subject(id="a", week="1", action="flag", score=0.05)) == "delivered/low"
    assert stratum_of(Subject(id="a", week="1", action="review", score=1.0)) == "withheld/high"
    assert stratum_of(Subject(id="a", week="1", action="block", score=0.3, reported=True)) == "withheld/reported"


def test_everything_reviewed_gives_the_truth_without_a_margin() -> None:
    subjects, truth = town(300)
    drawn = draw(subjects, seed=1, budget=1000)
    found = figures(estimates(answered(drawn, truth), population(drawn)))
    bad = [s for s in subjects if truth[s.id]]
    missed = sum(s.action == "allow" for s in bad) / len(bad)
    assert found["miss_rate"].value == pytest.approx(missed)
    assert found["miss_rate"].low == pytest.approx(missed) and found["miss_rate"].high == pytest.approx(missed)
    assert found["prevalence"].value == pytest.approx(len(bad) / 300)


def test_nothing_missed_in_the_sample_is_not_a_miss_rate_of_zero() -> None:
    passed = [Subject(id=str(at), week="1", action="allow", score=0.05) for at in range(900)]
    stopped = [Subject(id=str(at), week="1", action="block", score=0.9) for at in range(900, 1000)]
    subjects = [*passed, *stopped]
    drawn = draw(subjects, seed=1, budget=100)
    found = figures(estimates(answered(drawn, {str(at): at >= 900 for at in range(1000)}), population(drawn)))
    miss = found["miss_rate"]
    assert miss.value == 0 and miss.low == 0
    assert miss.high is not None and 0.05 < miss.high < 0.8, "0 of n says at most about 3 of n, scaled up"


def test_what_nobody_looked_at_has_no_figure_but_a_reason() -> None:
    subjects, truth = town(200)
    drawn = draw(subjects, seed=1, budget=60)
    only = [each for each in answered(drawn, truth) if each.stratum.startswith("withheld")]
    found = figures(estimates(only, population(drawn)))
    assert found["miss_rate"].value is None and found["miss_rate"].reason == "no delivered decision was reviewed"
    assert found["precision"].value is not None
    empty = figures(estimates([], population(drawn)))
    assert all(each.value is None and each.reason for each in empty.values())


def test_a_week_without_harm_has_no_miss_rate() -> None:
    subjects = [Subject(id=str(at), week="1", action="allow", score=0.01) for at in range(100)]
    drawn = draw(subjects, seed=1, budget=40)
    found = figures(estimates(answered(drawn, {str(at): False for at in range(100)}), population(drawn)))
    assert found["miss_rate"].value is None and "no harmful decision" in str(found["miss_rate"].reason)
    assert found["false_positive_rate"].value == 0
    assert found["precision"].reason == "nothing was withheld"


def test_kinds_of_people_are_never_pooled() -> None:
    subjects, truth = town()
    drawn = draw(subjects, seed=1, budget=200)
    wrong = {id: not harmful for id, harmful in truth.items()}
    both = [*answered(drawn, truth), *answered(drawn, wrong, "simulated")]
    by_kind = {(e.people, e.metric): e.value for e in estimates(both, population(drawn))}
    assert by_kind["live", "prevalence"] != by_kind["simulated", "prevalence"]
    alone = figures(estimates(answered(drawn, truth), population(drawn)))
    assert by_kind["live", "miss_rate"] == alone["miss_rate"].value


def test_counts_and_their_parts_keep_order() -> None:
    seen = counted([Stratum(1000, 50, 0.1), Stratum(100, 60, 0.5)])
    assert seen.low < seen.value < seen.high <= 1100
    found = part(Count(5, 2, 12), Count(50, 45, 52))
    assert found is not None and 0 < found.low < 5 / 55 < found.high < 0.3
    assert part(Count(0, 0, 3), Count(0, 0, 9)) is None
    whole = part(Count(5, 2, 12), Count(0, 0, 4))
    assert whole is not None and whole.value == 1 and whole.low < 1


@settings(max_examples=200)
@given(*(st.floats(0, 500) for _ in range(2)), *(st.floats(0, 1) for _ in range(4)))
def test_a_part_lies_in_its_interval(a: float, b: float, la: float, ha: float, lb: float, hb: float) -> None:
    found = part(Count(a, a * la, a * (1 + ha) + ha), Count(b, b * lb, b * (1 + hb) + hb))
    if found is not None:
        assert 0 <= found.low <= found.value + 1e-9 and found.value <= found.high + 1e-9 <= 1 + 2e-9


def test_slips_are_told_from_what_two_people_judged() -> None:
    rows = []
    for week in range(6):
        subjects, truth = town(600, seed=week, prevalence=0.2)
        rows += slipping(draw(subjects, seed=week, budget=300), truth, alarm=0.05, oversight=0.15, seed=week)
    found = slips(rows)
    assert found is not None and found == slips(rows) and found.pairs > 250
    for rate, real in ((found.alarm, 0.05), (found.oversight, 0.15)):
        assert rate.low is not None and rate.high is not None and rate.value is not None
        assert rate.low < real < rate.high < rate.low + 0.2
    assert slips(rows[:40]) is None, "too few were judged twice"
    assert slips([each.model_copy(update={"voices": ()}) for each in rows]) is None


def test_slips_are_taken_out_and_the_raw_figure_stays() -> None:
    """The slip of one in twenty on many harmless requests looks like harm that was missed."""
    off, raw_off = 0, 0
    for seed in range(12):
        subjects, truth = town(600, seed=seed, prevalence=0.2, missed=0.05)
        drawn = draw(subjects, seed=seed, budget=400)
        found = figures(estimates(slipping(drawn, truth, alarm=0.05, oversight=0.05, seed=seed), population(drawn)))
        miss, bad = found["miss_rate"], [s for s in subjects if truth[s.id]]
        real = sum(s.action == "allow" for s in bad) / len(bad)
        assert miss.corrected and miss.raw and miss.low is not None and miss.high is not None
        off += not miss.low - 1e-12 <= real <= miss.high + 1e-12
        raw_off += not miss.raw[1] <= real <= miss.raw[2]
    assert off <= 1 and raw_off >= 10
    honest = figures(estimates(answered(drawn, truth), population(drawn)))["miss_rate"]
    assert not honest.corrected and honest.raw is None


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5),
    st.floats(0, 0.49),
    st.floats(0, 0.49),
)
def test_a_corrected_count_lies_in_its_interval(
    parts: list[tuple[int, float, float]], alarm: float, oversight: float
) -> None:
    strata = []
    for size, share, said in parts:
        many = max(1, int(size * share))
        strata.append(Stratum(size, many, round(2 * many * said) / (2 * many)))

    def rate(value: float) -> Interval:
        return Interval(value=value, low=value / 2, high=min(0.49, value * 2), n=30)

    found = corrected(strata, Slips(alarm=rate(alarm), oversight=rate(oversight), pairs=30))
    total = sum(s.size for s in strata)
    assert 0 <= found.low <= found.value + 1e-9 and found.value <= found.high + 1e-9 <= total + 2e-9


def covered(reps: int, **world: float) -> tuple[Counter[str], dict[str, float], Counter[str]]:
    """How often each interval held the truth, the mean error, and how often there was a figure."""
    subjects, truth = town(**world)  # type: ignore[arg-type]
    bad = [s for s in subjects if truth[s.id]]
    good = [s for s in subjects if not truth[s.id]]
    real = {
        "miss_rate": sum(s.action == "allow" for s in bad) / len(bad),
        "false_positive_rate": sum(s.action == "block" for s in good) / len(good),
    }
    held: Counter[str] = Counter()
    defined: Counter[str] = Counter()
    error = dict.fromkeys(real, 0.0)
    for seed in range(reps):
        drawn = draw(subjects, seed=seed, budget=200)
        for name, each in figures(estimates(answered(drawn, truth), population(drawn))).items():
            if name in real and each.value is not None and each.low is not None and each.high is not None:
                defined[name] += 1
                held[name] += each.low - 1e-12 <= real[name] <= each.high + 1e-12
                error[name] += (each.value - real[name]) / reps
    return held, error, defined


def test_intervals_hold_the_truth() -> None:
    held, error, defined = covered(60)
    assert all(held[name] >= 0.88 * defined[name] for name in held)
    assert all(abs(each) < 0.02 for each in error.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "prevalence", "missed"),
    [
        (800, 0.1, 0.1),
        (800, 0.15, 0.5),
        (2400, 0.02, 0.2),
    ],
)
def test_intervals_hold_the_truth_in_many_towns(n: int, prevalence: float, missed: float) -> None:
    held, error, defined = covered(800, n=n, prevalence=prevalence, missed=missed)
    for name in held:
        assert held[name] >= 0.945 * defined[name], (name, held[name] / defined[name])
        assert abs(error[name]) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "prevalence", "missed", "alarm", "oversight"),
    [
        (200, 0.25, 0.04, 0.05, 0.05),
        (200, 0.25, 0.4, 0.05, 0.05),
        (800, 0.1, 0.1, 0.02, 0.2),
        (800, 0.1, 0.3, 0.0, 0.0),
    ],
)
def test_corrected_intervals_hold_the_truth(
    n: int, prevalence: float, missed: float, alarm: float, oversight: float
) -> None:
    """As in service: two weeks of reviews tell of the slips, the last one is estimated."""
    reps, held, error = 80, 0, 0.0
    for rep in range(reps):
        rows: list[Reviewed] = []
        for week in range(2):
            subjects, truth = town(n, seed=2 * rep + week, prevalence=prevalence, missed=missed)
            subjects = [s.model_copy(update={"id": f"{week}/{s.id}"}) for s in subjects]
            truth = {f"{week}/{name}": harmful for name, harmful in truth.items()}
            drawn = draw(subjects, seed=rep, budget=160)
            fresh = slipping(drawn, truth, alarm=alarm, oversight=oversight, seed=rep)
            rows += fresh
        miss = figures(estimates(fresh, population(drawn), voices=rows))["miss_rate"]
        bad = [s for s in subjects if truth[s.id]]
        real = sum(s.action == "allow" for s in bad) / len(bad)
        assert miss.corrected and miss.value is not None and miss.low is not None and miss.high is not None
        held += miss.low - 1e-12 <= real <= miss.high + 1e-12
        error += (miss.value - real) / reps
    assert held >= 0.93 * reps, (held / reps, error)
    assert abs(error) < 0.06  # never below 0: a little too high where little is missed
