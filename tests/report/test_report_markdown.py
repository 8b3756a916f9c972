"""The tables as Markdown: the sealed figures and nothing else, and what people wrote stays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.errors import UsageError
from tutelage.report.markdown import _testable, figure, into, life_tables, table
from tutelage.report.sections import fresh

Life = tuple[Root, dict[str, Artifact]]


def test_every_part_stands_in_the_document(life: Life) -> None:
    text = life_tables(life[1])
    for title in (
        "What was learned",
        "Judged by gold",
        "Controls",
        "The people and the reward",
        "Attacks",
        "The wheel",
    ):
        assert f"### {title}" in text, title
    assert "People are simulated" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_figures_are_the_sealed_ones(life: Life) -> None:
    cells = json.loads(life[1]["evaluate"].file("summary.json").read_text())["cells"]
    rows = {
        tuple(part.strip() for part in line.strip("|").split("|"))[:2]: line
        for line in life_tables(life[1]).splitlines()
        if line.startswith("|")
    }
    for cell in cells:
        line = rows[cell["suite"], cell["cell"]]
        if cell["value"] is None:
            assert "(no item of this cell)" in line
        else:
            mark = "**" if cell["learned"] else ""
            assert f"{mark}{cell['value']:.2f}{mark} [{cell['low']:.2f}, {cell['high']:.2f}]" in line


def test_a_life_of_some_stages_reports_too(life: Life) -> None:
    few = {name: life[1][name] for name in ("prepare", "pretrain")}
    text = life_tables(few)
    assert "What was learned" not in text and "2 stages" in text
    assert life_tables({}).startswith("Nothing has been made yet.")


def test_the_last_week_is_called_by_what_was_served(life: Life) -> None:
    assert "| fresh, after the release |" in life_tables(life[1])
    assert fresh({"candidates": {"retrained": {"verdict": {"promote": False}}}}) == "fresh, under the old guards"
    assert fresh({"candidates": [1]}) == "fresh, after the release"


def test_a_cell_cannot_break_the_table() -> None:
    assert table(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"
    assert figure({"value": None, "reason": "no data", "n": 3}, n=True) == "– (no data, n=3)"
    assert figure({"value": -0.001, "low": None, "high": None}) == "0.00"


def test_rules_that_nobody_breaks_are_no_virtue() -> None:
    told = _testable({"locker": True, "pin": False, "dose": None})
    assert "breaks 1 of 3 rules" in told and ": locker;" in told and "too few requests to tell for 1" in told
    assert _testable({}) == _testable(None) == ""


def test_only_what_stands_between_the_marks_is_replaced(life: Life, tmp_path: Path) -> None:
    file = tmp_path / "results.md"
    file.write_text(into(file, "town", "one\n"))
    file.write_text(f"# Mine\n\n{file.read_text()}\nMy words.\n")
    text = into(file, "town", life_tables(life[1]))
    assert text.startswith("# Mine\n") and text.endswith("My words.\n") and "one\n" not in text
    file.write_text(text)
    assert into(file, "town", life_tables(life[1])) == text, "the same life gives the same document"
    with pytest.raises(UsageError, match=re.escape("'other'")):
        into(file, "other", "x")


def test_seeds_give_median_and_range(tmp_path: Path) -> None:
    def cell(target: str, value: float) -> dict[str, object]:
        return {"suite": "facts", "cell": "A", "target": target, "value": value, "headline": True, "metric": "exact"}

    rows = [cell("finetune", 0.5), cell("finetune@seed1", 0.3), cell("finetune@seed2", 0.4), cell("rlhf@random", 0.1)]
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"cells": rows}))
    manifest = Manifest(kind="evaluation", stage="evaluate", version=1, config={}, files=file_entries(folder))
    root = Root(tmp_path / "root").create()
    work = root.work / "x"
    folder.rename(work)
    text = life_tables({"evaluate": root.seal(work, manifest, "0" * 64)}, part="seeds")
    assert "| suite | cell | finetune, 3 seeds |" in text
    assert "| facts | A | 0.40 (0.30 to 0.50) |" in text
    assert "random" not in text
    assert life_tables({}, part="seeds").startswith("Nothing to show yet.")
