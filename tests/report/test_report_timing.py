"""What was predicted beside what it took: one rule for what is near, and nothing counted that would mislead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.core.artifact import Artifact, Root
from tutelage.report import pages
from tutelage.report.markdown import life_tables
from tutelage.report.timing import Timed, how_near, predictions, timed

Life = tuple[Root, dict[str, Artifact]]


@pytest.mark.parametrize(("real", "near"), [(7.5, True), (12.5, True), (7.4, False), (12.6, False), (0.0, False)])
def test_a_quarter_of_the_prediction_either_way_is_near(real: float, near: bool) -> None:
    assert Timed("pretrain", 10.0, real).near is near


def test_what_cannot_be_compared_is_not_counted() -> None:
    assert Timed("labels", 0.0, 3.0).near is None
    rows = [Timed("a", 10, 11), Timed("b", 10, 30), Timed("c", 10, 2, resumed=True)]
    text = how_near(rows)
    assert text.startswith("1 of 2 stages within 25%") and "20 s predicted in all, 41 s taken" in text
    assert "1 resumed, not counted" in text
    assert "can be held against" in how_near([]) and rows[2].plain()["ratio"] is None


def test_the_plan_of_the_last_run_is_read(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert predictions(root) == {}
    for torn in ("{", "[]", '{"stages": 3}', '{"stages": [{"name": "pretrain"}]}'):
        root.plan_path.write_text(torn)
        assert predictions(root) == {}
    root.plan_path.write_text(json.dumps({"stages": [{"name": "pretrain", "cost": {"seconds": 4}}]}))
    assert predictions(root) == {"pretrain": 4.0}


def test_only_what_is_planned_and_made_stands_in_the_tables(life: Life) -> None:
    made = {name: life[1][name] for name in ("prepare", "pretrain")}
    assert timed(made, {"pretrain": 80.0, "finetune": 5.0}) == [Timed("pretrain", 80.0, 121.3)]
    text = life_tables(made, predicted={"pretrain": 80.0})
    assert "### What was predicted and what it took" in text and "| pretrain | 80.0 | 121.3 | 1.52 |" in text
    assert "0 of 1 stages within 25%" in text
    assert "| pretrain | 80.0" in life_tables(made, part="timing", predicted={"pretrain": 80.0})
    assert "predicted" not in life_tables(made)


def test_the_page_shows_them(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'id="timing"' not in pages.life_page(*life)
    monkeypatch.setattr(pages.timing, "predictions", lambda root: {"pretrain": 110.0})
    html = pages.life_page(*life)
    assert 'id="timing"' in html and "1 of 1 stages within 25%" in html
