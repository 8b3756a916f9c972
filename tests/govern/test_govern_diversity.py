"""Groups of people: figures that tell nobody apart, agreement as published, winners that truly depend on the group."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import krippendorff
import numpy as np
import pytest

from tests.feedback.test_feedback_api import FORM
from tutelage.core.errors import ConfigError, UsageError
from tutelage.core.records import Message
from tutelage.feedback import api
from tutelage.govern import audit, disagreement, diversity
from tutelage.store import engine, people, profiles
from tutelage.store.answers import Annotation, Value


def said(person: str, task: str, tiers: Sequence[Sequence[int]] = (), values: Sequence[Value] = ()) -> Annotation:
    """An answer as it is read back."""
    return Annotation(
        id=f"{person}/{task}", seq=1, slot="s", task=task, project="p", person=person, pseudonym=person, name=person,
        people="live", form="f", revision=1, status="submitted", reason="", shown=(), active_ms=0, at=1,
        tiers=tuple(tuple(tier) for tier in tiers), values=tuple(values),
    )  # fmt: skip


# figures


def test_agreement_within_a_group_is_krippendorffs_alpha() -> None:
    rng = np.random.default_rng(3)
    ratings = np.where(rng.random((5, 40)) < 0.8, rng.integers(1, 6, (5, 40)), np.nan)
    given = [
        said(f"p{who}", f"t{task}", values=[Value("right", 0, float(ratings[who, task]))])
        for who, task in zip(*np.nonzero(~np.isnan(ratings)), strict=True)
    ]
    groups = {"a": {f"p{n}" for n in range(5)}, "b": set[str]()}
    (question,) = disagreement.rated(given).items()
    found = disagreement.agreement(*question, groups, "a", "b")
    assert found.within[0].value == pytest.approx(
        krippendorff.alpha(ratings, level_of_measurement="interval"), abs=1e-12
    )
    assert found.within[0].low < found.within[0].value < found.within[0].high and found.within[0].n == 40
    assert not found.between.defined and "not enough data" in str(found.between.reason)


def test_agreement_between_groups_by_hand() -> None:
    """Two groups of one person each: observed 1 of 4 differ; expected from 3:1 and 2:2 is 1/2; 1 - 0.25/0.5 = 0.5."""
    counts = [np.array(rows, dtype=float) for rows in ([[1, 0]] * 3 + [[0, 1]], [[1, 0]] * 2 + [[0, 1]] * 2)]
    sums = disagreement._between(*counts, 1.0 - np.eye(2), np.arange(4), 4)
    assert sums.coefficient(np.ones((1, 4)), 1.0 - np.eye(2))[0] == pytest.approx(0.5)


def world(groups: Mapping[str, float], tasks: int, seed: int, people_: int = 12) -> tuple[list[Annotation], dict]:
    """People of each group prefer answer 0 with the group's chance."""
    rng = random.Random(seed)
    members = {name: {f"{name}{n}" for n in range(people_)} for name in groups}
    given = []
    for task in range(tasks):
        for name, chance in groups.items():
            for person in sorted(members[name]):
                first = rng.random() < chance
                given.append(said(person, f"t{task}", [[0], [1]] if first else [[1], [0]]))
    return given, members


def test_groups_that_differ_are_told_from_groups_that_do_not() -> None:
    for chances, differ in (({"a": 0.9, "b": 0.2}, True), ({"a": 0.7, "b": 0.7}, False)):
        given, members = world(chances, 30, seed=1)
        ratings = disagreement.rated(given)[disagreement.RANKING]
        found = disagreement.agreement("ranking", ratings, members, "a", "b")
        assert (found.gap.low > 0.2) if differ else (found.gap.low < 0 < found.gap.high)


def test_winners_that_depend_on_the_group_are_found_and_few_others() -> None:
    given, members = world({"a": 0.95, "b": 0.05}, 10, seed=2)
    found, compared = disagreement.depending(disagreement.choices(given), {"x": members}, 5)
    assert compared == 10 and len(found) == 10
    assert all(each.winners == (0, 1) and each.difference.low > 0.2 and each.p < 0.01 for each in found)
    false = 0
    for seed in range(20):  # nothing differs: a false finding in at most one project of twenty, give or take
        given, members = world({"a": 0.5, "b": 0.5}, 25, seed=100 + seed)
        false += bool(disagreement.depending(disagreement.choices(given), {"x": members}, 5)[0])
    assert false <= 3
    few, _ = disagreement.depending(disagreement.choices(given), {"x": members}, 13)
    assert few == [], "groups of twelve are no groups of thirteen"


def test_choices_come_from_ranks_or_scores_and_know_ties() -> None:
    scores = [Value("right", 0, 2.0), Value("right", 1, 4.0)]
    given = [said("a", "t", [[1], [0]]), said("b", "t", [[0, 1]]), said("c", "t", values=scores), said("d", "t")]
    assert disagreement.choices(given) == {"t": {"a": 1, "b": disagreement.TIE, "c": 1}}


def test_several_answers_are_tested_by_permutation_with_the_right_size() -> None:
    """Of 300 tests where nothing differs, about 5% are below 5%."""
    rng = np.random.default_rng(5)
    stream = np.random.default_rng(6)
    low = 0
    for _ in range(300):
        drawn = [disagreement.Counter(rng.integers(0, 3, 15).tolist()) for _ in range(2)]
        p = disagreement._independence(drawn[0], drawn[1], stream)
        low += p is not None and p < 0.05
    assert 3 <= low <= 27


def test_choices_from_a_list_are_things_of_their_own() -> None:
    given = [said(p, "t", values=[Value("tags", -1, value=tags)]) for p, tags in (("a", ["x"]), ("b", ["x", "y"]))]
    ratings = disagreement.rated(given)["tags"]
    assert sorted(zip(ratings.person, ratings.unit.tolist(), ratings.values[ratings.value], strict=True)) == [
        ("a", 0, 1.0), ("a", 1, 0.0), ("b", 0, 1.0), ("b", 1, 1.0),
    ]  # fmt: skip


# who may be shown


@pytest.mark.parametrize(
    ("sizes", "answered", "left"),
    [
        ({"north": 6, "south": 5, "west": 2}, 13, ["north"]),  # south goes with west, or 13 - 6 - 5 would tell
        ({"north": 6, "south": 5}, 11, ["north", "south"]),
        ({"north": 6, "south": 5}, 13, ["north"]),  # two said nothing: nor are they told apart
        ({"north": 6, "south": 5}, 16, ["north", "south"]),
        ({"north": 9}, 9, []),  # all of them: everybody's attribute
        ({"north": 9}, 11, []),
        ({"north": 4, "south": 4, "west": 4}, 12, []),
        ({}, 0, []),
    ],
)
def test_no_group_can_be_had_by_subtraction(sizes: dict[str, int], answered: int, left: list[str]) -> None:
    members = {value: frozenset(f"{value}{n}" for n in range(size)) for value, size in sizes.items()}
    assert list(diversity.shown(members, answered)) == left


@pytest.fixture
def store(tmp_path: Path) -> engine.Store:
    return engine.open(tmp_path)


def answered(store: engine.Store, crew: Sequence[people.Person], tasks_: int, coverage: object = None) -> None:
    """A project in which these people rank: the first half one way, the others the other way."""
    lead = people.create(store, "lead", roles=["lead"])
    settings = {"coverage": coverage} if coverage else {}
    project = api.NewProject(name="help", kind="ranking", form=FORM, per_task=len(crew), settings=settings)
    api.create_project(store, lead, project)
    two = tuple(api.NewCandidate(content=text, producer="m") for text in ("yes", "no"))
    new = [
        api.NewTask(key=f"t{n}", kind="ranking", messages=(Message(role="user", content="?"),), candidates=two)
        for n in range(tasks_)
    ]
    api.add_tasks(store, lead, "help", new)
    for at, person in enumerate(crew):
        give(store, person, tasks_, at < len(crew) / 2)


def give(store: engine.Store, person: people.Person, count: int, first: bool) -> None:
    """All answers of one person."""
    order = ((0,), (1,)) if first else ((1,), (0,))
    while items := api.claim(store, person, api.Claim(project="help", count=count)).items:
        made = tuple(
            api.Answer(
                slot=each.slot, epoch=each.epoch, key=f"key-{each.slot}", tiers=order, scores={"quality": {0: 3, 1: 3}}
            )
            for each in items
        )
        done = api.submit(store, person, api.Answers(answers=made))
        assert {each.status for each in done.receipts} == {"stored"}


def crew(store: engine.Store, count: int = 24) -> list[people.Person]:
    """Half of them women, half men; all of one region but two."""
    made = people.create_many(store, [f"p{n:02}" for n in range(count)])
    for at, person in enumerate(made):
        said_ = {"gender": "woman" if at < count / 2 else "man", "region": "North" if at < count - 2 else "South"}
        profiles.set_profile(store, person.id, said_)
    return made


def test_a_report_of_groups(store: engine.Store) -> None:
    everybody = crew(store)
    answered(store, everybody, 12, {"gender": {"Woman": 0.5, "non-binary": 0.1}})
    found = diversity.publish(store, "help", by="lead")
    by_name = {each.attribute: each for each in found.attributes}
    gender = {each.value: each for each in by_name["gender"].groups}
    assert set(gender) == {"man", "woman", "non-binary"}
    assert gender["woman"].people in (10, 15) and gender["woman"].share == pytest.approx(0.5)
    assert gender["woman"].target == 0.5 and gender["woman"].missing == 0
    assert gender["non-binary"].people is None and gender["non-binary"].share is None
    assert by_name["region"].groups == () and "not enough data" in str(by_name["region"].reason)
    ranking = next(each for each in found.agreement if each.question == "ranking")
    assert ranking.within_first.value == 0.9 and ranking.between.value == -0.9 and ranking.gap.low == 0.9
    assert len(found.winners) == 12 and found.winners[0].winner_first != found.winners[0].winner_second
    text = found.model_dump_json()
    assert not any(each.id in text or each.pseudonym in text or f'"{each.name}"' in text for each in everybody)
    assert diversity.latest(store, "help") == found and audit.verify(store).ok
    assert diversity.latest(store, "help", "simulated") is None


def test_two_reports_never_differ_by_a_person_or_two(store: engine.Store) -> None:
    everybody = crew(store)
    answered(store, everybody, 2)
    first = diversity.publish(store, "help", by="lead")
    assert diversity.publish(store, "help", by="lead") == first, "nothing has happened"
    profiles.withdraw(store, everybody[0].id, by=everybody[0].id)
    for person in everybody[1:4]:
        profiles.set_profile(store, person.id, {"gender": "man"})
    with pytest.raises(UsageError, match="it stands"):
        diversity.publish(store, "help", by="lead")
    assert diversity.latest(store, "help") == first
    profiles.set_profile(store, everybody[4].id, {"gender": "man"})
    assert diversity.publish(store, "help", by="lead") != first


def test_one_more_person_does_not_show_in_the_rounded_counts(store: engine.Store) -> None:
    """Rounding is by the whole group: groups that differ by one person are rounded apart from each other."""
    crowd = [f"p{n}" for n in range(200)]
    rng = random.Random(4)
    up = {size: 0 for size in (7, 8)}
    for _ in range(400):
        for size in up:
            mark = ",".join(sorted(rng.sample(crowd, size)))
            assert diversity._rounded(store, size / 5, mark) == diversity._rounded(store, size / 5, mark)
            up[size] += diversity._rounded(store, size / 5, mark) == 2
    assert 110 < up[7] < 210 and 190 < up[8] < 290  # 7 is shown as ten in 2 of 5 cases, 8 in 3 of 5


def test_simulated_people_stand_apart(store: engine.Store) -> None:
    made = people.create_many(store, [f"s{n}" for n in range(12)], kind="simulated")
    for at, person in enumerate(made):
        profiles.set_profile(store, person.id, {"gender": "woman" if at < 6 else "man"})
    answered(store, made, 2)
    assert all(each.groups == () for each in diversity.publish(store, "help", by="lead").attributes)
    found = diversity.publish(store, "help", by="lead", kind="simulated")
    assert found.kind == "simulated" and {each.value for each in found.attributes[0].groups} == {"man", "woman"}


@pytest.mark.parametrize(
    ("coverage", "key"),
    [
        ({"shoe": {"42": 0.5}}, "coverage.shoe"),
        ({"gender": {"woman": 2}}, "coverage.gender"),
        ({"gender": {"woman": 0.6, "man": 0.6}}, "coverage.gender"),
        ({"gender": "all"}, "coverage.gender"),
        (["gender"], "coverage"),
    ],
)
def test_wrong_targets_are_refused(coverage: object, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        diversity.targets({"coverage": coverage})
    assert caught.value.key == key


def test_nothing_but_own_pages_and_the_report_reads_profiles() -> None:
    """Whoever wants one person's attributes finds no function for it outside these files."""
    home = Path(diversity.__file__).parents[1]
    readers = {
        path.relative_to(home).as_posix()
        for path in home.rglob("*.py")
        if any(f"profiles.{name}(" in path.read_text(encoding="utf-8") for name in ("profile", "members"))
    }
    assert readers == {"web/account.py", "govern/diversity.py"}
