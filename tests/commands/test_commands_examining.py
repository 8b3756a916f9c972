"""`tutelage evaluate REF --suite`: how items are asked is said once, and what is wrong is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, ...]:
    """A suite of forty questions with examples beside them, and where the life is."""
    rows = [
        {"id": f"q{n}", "prompt": f"is house number {n} older than the mill by the river?", "target": "yes"}
        | ({"split": "train"} if n < 4 else {})
        for n in range(44)
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "--suite", str(file), "--root", str(tmp_path / "life")


def test_examples_by_option_or_by_key_are_the_same(tutelage: Any, own: tuple[str, ...]) -> None:
    further = ("robustness.items=40", "robustness.families=[prompt, typos]", "reliability.same=3")
    asked = ("evaluate", "fake:say yes", *further)
    one = tutelage(*asked, "--shots", 2, "--seed", 3, "--json", *own).json
    other = tutelage(*asked, "how.shots=2", "seed=3", "--json", *own).json
    assert one == other
    assert [row["value"] for row in one["robustness"]] == [0.0] * len(one["robustness"])
    assert one["contamination"][0]["clean"]["value"] is None, "what a fake learned from is not known"
    said = tutelage(*asked, "--shots", 2, *own)
    assert said.code == 0 and "items met in training: what fake:say yes learned from is not known here" in said.out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--shots", 2, "how.shots=3"), "shots is given twice"),
        (("--seed", 2, "seed=3"), "seed is given twice"),
        (("how=5",), "expected keys of it, as how.shots=2, found 5"),
        (("how.shot=3",), "'how.shot': unknown key. Did you mean 'shots'?"),
        (("reliability.labels=true",), "'reliability.labels': unknown key"),
        (("--shots", 9), "were asked for, 4 are left"),
        (("--form", "cooked"), "how.form"),
        (("robustness.families=[tipos]",), "did you mean 'typos'?"),
        (("contamination=-1",), "contamination"),
    ],
)
def test_what_is_said_wrong(tutelage: Any, own: tuple[str, ...], wrong: tuple[object, ...], said: str) -> None:
    done = tutelage("evaluate", "fake:say yes", *wrong, *own)
    assert done.code == 2 and said in done.err, (done.code, done.err)


def test_an_examination_is_kept_listed_shown_and_compared(tutelage: Any, own: tuple[str, ...]) -> None:
    """The same answers make one artifact; two of them are compared item by item, without asking again."""
    where = own[2:]
    said = tutelage("evaluate", "fake:say yes", *own)
    assert said.code == 0, said
    kept = said.out.splitlines()[-1].removeprefix("Kept as ")
    again = tutelage("evaluate", "fake:say yes", "--json", *own).json["evaluation"]
    assert again.startswith(kept) and len(again) > 70
    other = tutelage("evaluate", "fake:say no", "--json", *own).json["evaluation"]
    rows = tutelage("list", "--json", *where).json
    assert [(row["ref"], row["stage"]) for row in rows] == [(again, "examine"), (other, "examine")]
    assert kept in tutelage("list", "evaluation", *where).out
    shown = tutelage("show", kept, *where)
    assert "suite: own.jsonl" in shown.out and "ref: fake:say yes" in shown.out and "items.jsonl" in shown.out
    found = tutelage("compare", kept, other, "--json", *where).json
    row = found["rows"][0]
    assert row["values"] == [1.0, 0.0] and row["changes"]["broken"] == 40 and row["verdict"] == "worse"
    assert found["items"][0]["prompt"].startswith("is house number")
    nothing = tutelage("evaluate", "fake:echo", "--suite", "none.jsonl", *where)
    assert nothing.code == 2 and len(tutelage("list", "--json", *where).json) == 2
