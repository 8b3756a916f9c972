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
