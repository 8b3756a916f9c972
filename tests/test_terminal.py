"""What a person reads while a life runs."""

import re

import pytest

from tutelage.core.events import Event
from tutelage.terminal import Terminal


def _printed(capsys: pytest.CaptureFixture[str], *events: Event) -> list[str]:
    with Terminal(lambda event: 168.0, total=2, every=0.0) as terminal:
        for event in events:
            terminal(event)
    return capsys.readouterr().err.splitlines()


def test_a_line_for_each_stage_and_under_it_for_those_inside(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"seconds": 7.2, "policy": "ab" * 32, "promoted": True, "careless": "refused: " + "too many " * 9}
    lines = _printed(
        capsys,
        Event(at=0, stage="finetune@helpful", kind="skip"),
        Event(at=1, stage="cycle", part="labels", kind="done", figures={"seconds": 3, "rows": 1200}),
        Event(at=2, stage="cycle", kind="progress", done=1, total=4, unit="requests"),
        Event(at=3, stage="cycle", kind="done", figures=figures),
    )
    assert [re.sub(r"\s+", " ", line).strip() for line in lines] == [
        "· finetune@helpful made already",
        "✓ labels 0:03 rows 1,200",
        "2/2 cycle: 1/4 requests ETA -:-- life: 2:48 left",
        "✓ cycle 0:07 policy abababababab · promoted yes",
    ]
    assert lines[0].index("made already") == lines[3].index("policy"), "one column"


def test_a_failure_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with the reason."""
    lines = _printed(capsys, Event(at=0, stage="prepare", kind="fail", text="no such file"))
    assert [line.strip() for line in lines] == ["✗ prepare"]
