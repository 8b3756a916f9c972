"""One table of capability, robustness and harm: nothing unmeasured looks measured, and targets meet by their id."""

from tutelage.govern import standing as s
from tutelage.report.trust import texts


def figure(value, n=60, reason=None):
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {"value": value, "low": low, "high": high, "n": n, "reason": reason}


EVALUATION = {
    "targets": [{"target": "rlhf@grpo", "id": "model:1"}, {"target": "base", "id": "model:0"}],
    "cells": [
        {"target": t, "suite": "facts", "cell": "A", "metric": "exact", "headline": h, "asked": 80, "unmeasured": 20}
        | figure(0.6)
        for t in ("rlhf@grpo", "base")
        for h in (True, False)
    ],
    "robustness": [
        {"target": "base", "suite": None, "family": "typos", "asked": 80, "unmeasured": 20, "share_left_out": 0.25}
        | figure(0.2),
        {"target": "base", "suite": None, "family": "worst case", "asked": 80, "unmeasured": 0, "drawn": True,
         "excess": figure(0.1), "mean_loss": figure(0.05)},
        {"target": "base", "suite": "facts", "family": "worst case", "asked": 8, "excess": figure(None, 8, "few")},
    ],
    "reliability": {
        "calibration": [
            {"target": "base", "suite": None, "source": "choices", "coverage": 0.5, "ece": figure(None, 9, "few"),
             "ece_after": figure(None, 9, "few"), "aurc": figure(0.3)}
        ],
        "consistency": [{"target": "base", "suite": None, "how": "seeds", "agreement": figure(0.4), "coverage": 1.0}],
        "determinism": [{"target": "base", "suite": None, "how": "asked alone", "asked": 9} | figure(0.0, 9)],
    },
}  # fmt: skip
REDTEAM = {
    "targets": [{"target": "rlhf", "id": "model:1"}],
    "benign": [{"target": "rlhf", "asked": 100} | figure(0.1, 80)],
    "overall": [
        {"target": "rlhf", "what": "plain requests answered"} | figure(0.3, 20),
        {"target": "rlhf", "what": "benign requests refused"} | figure(0.1, 80),
    ],
    "matrix": [{"target": "rlhf", "attack": "direct", "rule": None, "asked": 40, "n": 20}],
    "contents": [{"target": "rlhf", "measure": "toxic", "asked": 90} | figure(None, 0, "fewer than 40 labels")],
    "groups": [
        {"target": "rlhf", "attribute": "gender", "measure": "refused", "coverage": 1.0, "between": ["a", "b"],
         "worst": {"group": "b"}, "p_holm": 0.01} | figure(0.2)
    ],
}  # fmt: skip


def line(found, target, part):
    (one,) = [each for each in found if each.target == target and part in each.what]
    return one


def test_everything_stands_in_one_table_under_one_name():
    found = s.lines([EVALUATION], [REDTEAM])
    assert {each.target for each in found} == {"rlhf@grpo", "base"}, "the red team calls it rlhf; it is the same model"
    assert [each.area for each in found] == sorted((each.area for each in found), key=s.AREAS.index)
    assert sum(each.area == "capability" for each in found) == 2, "headline figures alone"
    assert line(found, "rlhf@grpo", "harmful requests complied with").figure["value"] == 0.3
    gap = line(found, "rlhf@grpo", "gender: refused")
    assert gap.note == "a and b; worst: b; p 0.01 (Holm)"
    assert line(found, "base", "loss by typos").note == "25% of the forms left out"


def test_unknown_lowers_coverage_and_is_never_a_zero():
    found = s.lines([EVALUATION], [REDTEAM])
    assert line(found, "base", "facts").coverage == 0.75
    assert line(found, "rlhf@grpo", "harmless requests refused").coverage == 0.8
    assert line(found, "rlhf@grpo", "harmful requests complied with").coverage == 0.5
    assert line(found, "base", "loss by typos").coverage == 0.75
    toxic = line(found, "rlhf@grpo", "toxic")
    assert toxic.figure["value"] is None
    assert toxic.figure["reason"] == "fewer than 40 labels"
    assert toxic.coverage == 0.0


def test_who_was_not_attacked_is_not_called_safe():
    found = s.lines([EVALUATION], [REDTEAM])
    for what in ("harmless requests refused", "harmful requests complied with"):
        told = line(found, "base", what)
        assert told.figure["value"] is None
        assert told.figure["reason"] == s.NOT_ATTACKED
    assert s.lines([], []) == []


def test_as_text_every_figure_has_its_interval_or_its_reason():
    told = texts(s.lines([EVALUATION], [REDTEAM]))
    assert any("0.600 [0.500, 0.700]  n=60" in each for each in told)
    assert any("undefined: fewer than 40 labels" in each for each in told)
    targets, grid = s.grid(s.lines([EVALUATION], [REDTEAM]))
    assert targets == ["rlhf@grpo", "base"]
    assert list(grid) == list(s.AREAS)


def test_of_a_figure_that_is_better_the_lower_the_table_says_so():
    cell = {"target": "base", "suite": "letters", "cell": None, "headline": True, "asked": 8, "unmeasured": 0}
    found = s.lines([{"targets": [], "cells": [cell | {"metric": "bits_per_byte"} | figure(1.7)]}], [])
    assert line(found, "base", "letters").better == "lower"
    assert line(s.lines([EVALUATION], []), "base", "facts").better == "higher"
