"""What people together say of choices: the model that the votes allow, nearer to the truth than shares of people."""

from __future__ import annotations

import numpy as np
import pytest

from tutelage.feedback.classes import Chances, chosen, together
from tutelage.feedback.consensus import dawid_skene
from tutelage.feedback.mace import mace
from tutelage.store.answers import WHOLE, Annotation, Value

SORT = {"key": "sort", "kind": "choice", "choices": ["a", "b", "c"]}
TAGS = {"key": "tags", "kind": "tags", "choices": ["x", "y"]}
FIT = {"key": "fit", "kind": "boolean", "choices": []}


def said(person: int, task: int, value: Value) -> Annotation:
    name, id = f"p{person}", f"t{task}"
    return Annotation(f"{name}{id}", 0, f"{name}{id}", id, "p", name, name, name, "live", "f", 1, "submitted", "", (),
                      0, 0, values=(value,))  # fmt: skip


def crowd(tasks: int, people: int = 5, guessing: int = 2, seed: int = 0) -> tuple[list[int], list[list[int]]]:
    """True classes, and what each of several people says; the last ones say what they like."""
    stream = np.random.default_rng(seed)
    truth = stream.integers(0, 3, tasks)
    found = []
    for person in range(people):
        guess = stream.integers(0, 3, tasks)
        right = stream.random(tasks) < (0.85 if person < people - guessing else 0.0)
        found.append(np.where(right, truth, guess).tolist())
    return truth.tolist(), found


def sorted_by(tasks: int, **more: int) -> tuple[list[int], dict[tuple[str, int], Chances]]:
    truth, voices = crowd(tasks, **more)
    given = [
        said(person, task, Value("sort", value="abc"[voice]))
        for person, row in enumerate(voices)
        for task, voice in enumerate(row)
    ]
    return truth, together(given, SORT)


@pytest.mark.parametrize(("tasks", "model"), [(60, "dawid-skene"), (20, "mace")])
def test_posteriors_are_nearer_to_the_truth_than_shares(tasks: int, model: str) -> None:
    lost, plain = 0.0, 0.0
    for seed in range(4):
        truth, found = sorted_by(tasks, seed=seed)
        assert {each.model for each in found.values()} == {model} and {each.why for each in found.values()} == {""}
        _, voices = crowd(tasks, seed=seed)
        for task, right in enumerate(truth):
            here = found[f"t{task}", WHOLE]
            assert here.n == 5 and sum(here.probabilities.values()) == pytest.approx(1, abs=1e-5)
            lost -= np.log(max(here.probabilities["abc"[right]], 1e-3))
            share = sum(row[task] == right for row in voices) / 5
            plain -= np.log(max(share, 1e-3))
    assert lost < 0.8 * plain


def test_the_model_is_the_one_of_its_file() -> None:
    _, voices = crowd(60)
    table = np.array([(task, person, voice) for person, row in enumerate(voices) for task, voice in enumerate(row)])
    _, found = sorted_by(60)
    right = dawid_skene(table[:, 0], table[:, 1], table[:, 2], 3, prior=1.0).posteriors
    assert [list(found[f"t{task}", WHOLE].probabilities.values()) for task in range(60)] == np.round(right, 6).tolist()
    _, voices = crowd(20)
    table = np.array([(task, person, voice) for person, row in enumerate(voices) for task, voice in enumerate(row)])
    _, found = sorted_by(20)
    right = mace(table[:, 0], table[:, 1], table[:, 2], 3).posteriors
    assert [list(found[f"t{task}", WHOLE].probabilities.values()) for task in range(20)] == np.round(right, 6).tolist()


def test_each_label_of_a_list_is_a_question_of_its_own() -> None:
    _, voices = crowd(60)
    given = [
        said(person, task, Value("tags", no, value=["x", "y"][: voice if no == 0 else 1]))
        for person, row in enumerate(voices)
        for task, voice in enumerate(row)
        for no in (0, 1)
    ]
    found = together(given, TAGS)
    assert len(found) == 120, "candidates are things of their own"
    first = together([said(int(each.person[1:]), int(each.task[1:]), Value("fit", each.values[0].candidate,
                           number=float("x" in each.values[0].value))) for each in given], FIT)  # fmt: skip
    for thing, each in found.items():
        assert set(each.probabilities) == {"x", "y"}
        assert each.probabilities["x"] == first[thing].probabilities["yes"]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([(0, 0, 1), (0, 1, 1)], "all chose the same"),
        ([(t, p, (t + p) % 2) for t in range(50) for p in range(2)], "fewer than three people"),
        ([(t, t % 3, t % 2) for t in range(90)], "fewer than three people answered beside others"),
        ([(t, p, (t + p) % 2) for t in range(9) for p in range(4)], "9 beside others of the median person"),
    ],
)
def test_votes_that_tell_nothing_of_people_are_shares_and_say_why(rows: list[tuple[int, int, int]], why: str) -> None:
    table = np.array(rows)
    model, told = chosen(table[:, 0], table[:, 1], table[:, 2])
    assert model == "shares" and why in told


def test_what_lies_between_no_and_yes_is_shared_out() -> None:
    given = [said(person, 0, Value("fit", number=number)) for person, number in enumerate((1.0, 0.5, 0.0, 0.5))]
    (found,) = together(given, FIT).values()
    assert found.probabilities == {"no": 0.5, "yes": 0.5} and "between" in found.why and found.weight == 0.0
