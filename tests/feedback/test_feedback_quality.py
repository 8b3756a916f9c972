"""How people judge beside the others: who is unreliable, who answers without looking, and how often that is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tutelage.feedback import assign, careless, quality
from tutelage.feedback.votes import Votes
from tutelage.store.answers import Annotation, Value


def ranked_votes(kinds, tasks=120, size=4, per_task=3, noise=0.35, seed=0, long_is_good=False):
    """Votes of people of known kinds on candidates of known worth, to which length is unrelated unless it is said."""
    stream = np.random.default_rng(seed)
    panels = assign.panels(tasks, [str(n) for n in range(len(kinds))], per_task, seed)
    rows, pair_ids = [], {}
    for task in range(tasks):
        worth, length = stream.normal(size=size), stream.normal(size=size)
        length = worth if long_is_good else length
        for name in panels[task]:
            person = int(name)
            shown = stream.permutation(size)
            place = np.argsort(shown)
            value = {
                "careful": worth + stream.normal(size=size) * noise * 2,
                "hostile": -worth + stream.normal(size=size) * noise * 2,
                "random": stream.normal(size=size),
                "longest": length + stream.normal(size=size) * 0.1,
                "first": -place + stream.normal(size=size) * 0.1,
            }[kinds[person]]
            for left in range(size):
                for right in range(left + 1, size):
                    pair = pair_ids.setdefault((task, left, right), len(pair_ids))
                    rows.append((
                        person, pair, task,
                        0 if abs(value[left] - value[right]) < 0.1 else int(np.sign(value[left] - value[right])),
                        int(np.sign(length[left] - length[right])), int(np.sign(place[right] - place[left])),
                    ))  # fmt: skip
    return Votes(*np.array(rows).T)


def test_unreliable_people_are_found_and_weighted_to_nothing():
    kinds = ["careful"] * 19 + ["random", "random", "longest", "first", "hostile"]
    for seed in range(5):
        found = quality.judge_people(ranked_votes(kinds, tasks=160, seed=seed))
        findings = {str(each.person): each.finding for each in found}
        planted = {str(at): None if kind == "careful" else kind for at, kind in enumerate(kinds)}
        told = quality.detection(findings, planted)
        assert told.recall >= 0.8 and told.precision >= 0.8, (seed, findings)
        assert all(each.weight == 0 for each in found if each.finding)
        assert all(each.weight > 0.2 for each in found if not each.finding and kinds[each.person] == "careful")


def test_a_careful_crowd_is_left_alone():
    flagged = sum(
        each.finding is not None
        for seed in range(5)
        for each in quality.judge_people(ranked_votes(["careful"] * 24, tasks=160, seed=seed))
    )
    assert flagged <= 2


def test_people_with_few_answers_are_neither_trusted_nor_distrusted():
    votes = ranked_votes(["careful"] * 6, tasks=3, size=2)
    assert all(each.finding is None and each.reason for each in quality.judge_people(votes))


def test_detection_without_truth_or_findings_is_undefined():
    assert quality.detection({"a": None}, {"a": "random"}).precision is None
    assert quality.detection({"a": "random"}, {"a": None}).recall is None


def test_people_who_prefer_the_better_answer_are_not_blamed_when_it_is_the_longer_one():
    """Length and worth coincide: everybody chooses the longer one, and everybody is right to."""
    for seed in range(3):
        found = quality.judge_people(ranked_votes(["careful"] * 12, tasks=120, seed=seed, long_is_good=True))
        assert not [each for each in found if each.finding == "longest"]
        assert sum(each.weight == 0 for each in found) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_where_all_are_unreliable_all_stay_so(seed):
    """Once everybody was set aside nobody had others to be held against, and all were trusted again: the verdict hung
    on whether the number of rounds was odd."""
    found = quality.judge_people(ranked_votes(["random"] * 8, tasks=120, seed=seed))
    flagged = [each for each in found if each.finding]
    assert len(flagged) >= 6 and all(each.weight == 0 and each.agreement.defined for each in flagged)


def test_judging_settles_whatever_the_crowd():
    """Two camps, each the hostile one to the other: it ends, and ends the same way again."""
    for kinds in (["careful"] * 4 + ["hostile"] * 4, ["careful"] * 3 + ["random"] * 9, ["first"] * 6 + ["longest"] * 6):
        votes = ranked_votes(kinds, tasks=100, seed=1)
        first, again = quality.judge_people(votes), quality.judge_people(votes)
        assert [each.finding for each in first] == [each.finding for each in again]
        rounds = quality.ROUNDS
        try:
            quality.ROUNDS = rounds + 1
            assert [each.finding for each in quality.judge_people(votes)] == [each.finding for each in first]
        finally:
            quality.ROUNDS = rounds


def answer(person, task, at, *, tiers=(), shown=(), scores=None, value=None, ms=0):
    values = tuple(Value("quality", no, number=score) for no, score in enumerate(scores or ()))
    if value is not None:
        values += (Value("harmful", value=value),)
    return Annotation(
        id=f"{person}/{task}", seq=at, slot="", task=str(task), project="", person=person, pseudonym=person, name="",
        people="live", form="", revision=1, status="submitted", reason="", shown=tuple(shown), active_ms=ms, at=at,
        tiers=tuple(tuple(tier) for tier in tiers), values=values,
    )  # fmt: skip


def scorings(stream, people, tasks=60, per_task=4, lazy=()):
    """Scores 1 to 5 of one text by people of their own strictness and noise; `lazy` ones always say 3."""
    strict = {person: stream.normal() * 0.5 for person in people}
    given = []
    for task in range(tasks):
        worth = stream.normal()
        for person in stream.choice(people, per_task, replace=False):
            felt = 3 + 1.2 * worth - strict[person] + stream.normal() * 0.5
            score = 3 if person in lazy else int(np.clip(round(felt), 1, 5))
            given.append(answer(person, task, len(given), scores=[score]))
    return given


def rankings(stream, people, tasks=60, size=4, per_task=4, lazy=()):
    given = []
    for task in range(tasks):
        worth = stream.normal(size=size)
        for person in stream.choice(people, per_task, replace=False):
            shown = stream.permutation(size)
            felt = worth + stream.normal(size=size) * 0.7
            order = shown if person in lazy else np.argsort(-felt)
            given.append(answer(person, task, len(given), tiers=[[int(no)] for no in order], shown=shown.tolist()))
    return given


def test_the_same_answer_again_and_again_is_found():
    people = [f"p{n:02}" for n in range(12)]
    for make in (scorings, rankings):
        found = careless.straight_lining(make(np.random.default_rng(3), people, lazy=("p05",)))
        assert [name for name, each in found.items() if each.flagged] == ["p05"]
        one = found["p05"]
        assert one.share.value == 1 and one.expected < 0.6 and one.longest >= 15 and one.chance <= 1
        assert "times in a row" in one.reason or "answers are the same" in one.reason
    assert found["p05"].answer == "as shown"


def test_who_gives_up_half_way_is_found_by_the_run():
    people = [f"p{n:02}" for n in range(10)]
    given = scorings(np.random.default_rng(4), people, tasks=150)
    mine = [at for at, each in enumerate(given) if each.pseudonym == "p03"]
    for at in mine[len(mine) // 2 :]:
        given[at] = answer("p03", given[at].task, given[at].at, scores=[2])
    found = careless.straight_lining(given)
    assert found["p03"].flagged and "in a row" in found["p03"].reason
    assert not any(each.flagged for name, each in found.items() if name != "p03")


def test_what_everybody_says_is_no_straight_line():
    given = [answer(f"p{n}", task, task * 9 + n, value="no") for task in range(40) for n in range(5)]
    found = careless.straight_lining(given)
    assert not any(each.flagged for each in found.values()) and found["p1"].expected == 1
    few = careless.straight_lining(given[:20])
    assert all("fewer than" in each.reason and not each.flagged for each in few.values())


def test_patterns_are_gestures_on_the_screen():
    look = careless.patterns
    assert look(answer("a", 1, 0, tiers=[[2], [0], [1]], shown=[2, 0, 1])) == {"ranking": "as shown"}
    assert look(answer("a", 1, 0, tiers=[[1], [0]], shown=[0, 1])) == {"ranking": "as shown, turned round"}
    assert look(answer("a", 1, 0, tiers=[[0, 1, 2]], shown=[2, 0, 1])) == {"ranking": "all tied"}
    assert look(answer("a", 1, 0, scores=[3, 3, 3])) == look(answer("a", 2, 0, scores=[3, 3])) == {"quality": 3}
    both = look(answer("a", 1, 0, tiers=[[1], [0]], shown=[1, 0], scores=[2, 4]))
    assert both == {"ranking": "as shown", "quality": (4, 2)}


def timed(stream, people, tasks=60, per_task=4, fast=()):
    words = {str(task): int(stream.integers(20, 400)) for task in range(tasks)}
    own = {person: stream.normal() * 0.35 for person in people}  # a person's pace: half of them within 20% or so
    given = []
    for task in range(tasks):
        for person in stream.choice(people, per_task, replace=False):
            pace = math.log(300 * words[str(task)]) + own[person] + stream.normal() * 0.6
            took = int(math.exp(pace) * (0.1 if person in fast else 1))
            given.append(answer(person, task, len(given), value="no", ms=took))
    return given, words


def test_who_cannot_have_read_is_found_and_no_time_is_no_verdict():
    people = [f"p{n:02}" for n in range(12)]
    given, words = timed(np.random.default_rng(5), people, fast=("p07",))
    found = careless.speed(given, words)
    assert [name for name, each in found.items() if each.flagged] == ["p07"]
    assert found["p07"].ratio.value < 0.25 and "others' time" in found["p07"].reason
    assert found["p01"].ratio.low < found["p01"].ratio.value < found["p01"].ratio.high
    untimed = careless.speed([answer("a", 1, 0), answer("b", 1, 1)], {"1": 10})
    assert untimed["a"].reason == "no times were taken" and untimed["a"].ratio.value is None


@pytest.mark.slow
def test_careful_crowds_are_hardly_ever_blamed():
    """300 crowds of 24 careful people: in how many anybody is flagged. Found: straight-lining in 0 of 600 (scores and
    rankings), speed in 0 of 300 where people's own pace varies by a factor of 1.4 (one standard deviation)."""
    people = [f"p{n:02}" for n in range(24)]
    lined = rushed = 0
    for seed in range(300):
        stream = np.random.default_rng(seed)
        lined += any(each.flagged for each in careless.straight_lining(scorings(stream, people, tasks=120)).values())
        lined += any(each.flagged for each in careless.straight_lining(rankings(stream, people, tasks=120)).values())
        given, words = timed(stream, people, tasks=120)
        rushed += any(each.flagged for each in careless.speed(given, words).values())
    print(f"crowds of 24 careful people with anybody flagged: straight-lining {lined}/600, speed {rushed}/300")
    assert lined <= 0.05 * 600 and rushed <= 0.05 * 300


@pytest.mark.slow
def test_careful_people_are_rarely_found_unreliable():
    """100 crowds of 24 careful people, 160 rankings of 4 by 3 people each. Found: 6 of 2,400."""
    flagged = [
        sum(each.finding is not None for each in quality.judge_people(ranked_votes(["careful"] * 24, 160, seed=seed)))
        for seed in range(100)
    ]
    print(f"of {24 * len(flagged)} careful people {sum(flagged)} were found unreliable")
    assert sum(flagged) <= 0.01 * 24 * len(flagged)
