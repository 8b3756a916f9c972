"""The page shows calibration, robustness and the one table from what is sealed, and says what is missing."""

import random

from tests.evaluate.test_evaluate_reliability import points
from tests.evaluate.test_evaluate_robustness import given, luck
from tests.report.test_report_pages import check
from tutelage.core.artifact import Root
from tutelage.evaluate import reliability, robustness
from tutelage.evaluate.suites.kinds import Ground
from tutelage.govern.standing import Line
from tutelage.report import markdown, pages, trust


def summary():
    before, after = luck(random.Random(0), 60, 3)
    forms = given(60)
    same = {
        "target": "m",
        "suite": None,
        "how": "asked alone",
        "asked": 9,
        "value": 0.0,
        "low": 0.0,
        "high": 0.3,
        "n": 9,
    }
    return {
        "targets": [{"target": "m", "id": "model:0"}],
        "cells": [],
        "robustness": robustness.table(before, after, forms),
        "reliability": {
            "calibration": reliability.calibration(points(400, 3.0), {("m", "s"): 400}),
            "consistency": reliability.consistency("seeds", [before, before], before, Ground({})),
            "determinism": [same | {"reason": None, "largest": 0.0}],
        },
    }


def test_the_page_draws_reliability_and_risk_and_the_table(tmp_path, seal):
    root = Root(tmp_path / "r").create()
    made = {"evaluate": seal(root, "evaluate", "evaluation", {"summary.json": summary()})}
    html = pages.life_page(root, made)
    check(html)
    assert "Reliability: choices and labels" in html
    assert "Risk and coverage: choices and labels" in html
    assert html.count('class="band') >= 2, "with one target its intervals are drawn"
    assert "as sure as right" in html
    assert "loss in the worst case" in html
    assert "not attacked" in html, "one that no red team examined is not called safe"
    assert "the same" in html
    told = markdown.life_tables(made, part="standing")
    assert "| robustness | loss in the worst case, all suites | lower |" in told


def test_without_such_figures_the_parts_are_left_out(tmp_path, seal):
    root = Root(tmp_path / "r").create()
    made = {"evaluate": seal(root, "evaluate", "evaluation", {"summary.json": {"cells": [], "targets": []}})}
    assert trust.reliability(made) is None
    assert trust.robustness(made) is None
    assert trust.standing(made) is None


def test_on_a_terminal_what_could_not_be_measured_stands_beside_the_figure():
    figures = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 5, "reason": None}
    half = Line("robustness", "loss by typos", "m", figures, "lower", 0.5, "2% of the forms left out")
    assert trust.texts([half])[1].endswith("n=5  (2% of the forms left out; 50% measured)")
    assert trust.texts([half._replace(coverage=1.0, note="")])[1].endswith("n=5")
