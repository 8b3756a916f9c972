"""The page of a life: whole, escaped, without script or anything from elsewhere, also when parts are missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tutelage.core.artifact import Artifact, Root
from tutelage.report import pages

Life = tuple[Root, dict[str, Artifact]]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Balanced(HTMLParser):
    """Fails when a tag is closed that was not open, or left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def check(html: str) -> None:
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert "<script" not in html and "style=" not in html
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)


def test_a_whole_life_has_every_part(life: Life) -> None:
    html = pages.life_page(*life)
    check(html)
    for part in (
        "learned",
        "curves",
        "evaluation",
        "people",
        "guards",
        "redteam",
        "bias",
        "release",
        "wheel",
        "lineage",
    ):
        assert f'<section id="{part}"' in html, part
    assert "Promoted. Attack success fell" in html
    assert "It blocks a third of benign requests" in html and "not enough data" in html
    assert "Simulated people stand in this lineage" in html
    assert "no item of this cell" in html, "an undefined figure gives its reason"
    assert "What must not be claimed" in html
    assert "7 are to items that stand in what the model learned from; of 4 it cannot be told" in html
    assert "What these learned from is not here: best of 4." in html
    assert "p corrected for the 9 first figures" in html and "Items that each stage fixed and broke" in html


def test_a_life_of_three_stages_reports_too(life: Life) -> None:
    root, made = life
    html = pages.life_page(root, {name: made[name] for name in ("prepare", "pretrain", "finetune")})
    check(html)
    assert '<section id="release"' not in html
    assert "pretrain: loss" in html


def test_what_was_forgotten_is_of_the_weights_that_were_saved(tmp_path: Path, seal: Any) -> None:
    root = Root(tmp_path).create()
    watch = [{"step": step, "facts": value, "watched": 0.5} for step, value in ((0, 0.41), (10, 0.83), (20, 0.62))]
    for stage, metrics, change in (("pretrain", {}, "+0.210"), ("finetune", {"best": {"step": 10}}, "+0.420")):
        made = seal(root, stage, "model", {"watch.jsonl": watch}, metrics=metrics)
        assert change in pages.life_page(root, {stage: made})


def test_an_empty_life_is_a_page_too(life: Life) -> None:
    check(pages.life_page(life[0], {}))


def test_what_a_file_says_is_text_never_markup(tmp_path_factory: pytest.TempPathFactory, seal: Any) -> None:
    root = Root(tmp_path_factory.mktemp("hostile")).create()
    evil = "<script>alert(1)</script>"
    files = {"verdict.json": {"promote": False, "reason": evil, "checks": [{"id": evil, "reason": evil}]}}
    html = pages.life_page(root, {evil: seal(root, "release", "release", files, metrics={evil: 1})})
    check(html)
    assert "&lt;script&gt;" in html


def test_files_of_unknown_shape_do_not_break_the_page(tmp_path_factory: pytest.TempPathFactory, seal: Any) -> None:
    root = Root(tmp_path_factory.mktemp("odd")).create()
    odd = {
        "evaluate": seal(root, "evaluate", "evaluation", {"summary.json": {"cells": [{}, {"value": None}]}}),
        "redteam": seal(root, "redteam", "redteam", {"summary.json": {"matrix": [{}, "x"]}, "bias.json": [1, 2]}),
        "prepare": seal(
            root,
            "prepare",
            "corpus",
            {"report.json": {"drops": {"x": 3}, "truth": [], "sources": [1], "new": {"a": 1}}},
        ),
        "preferences": seal(
            root, "preferences", "preferences", {"agreement.json": [1], "people.json": {"people": [1]}}
        ),
        "classifier": seal(root, "classifier", "classifier", {"classifier.json": [1, 2]}),
        "release": seal(root, "release", "release", {"verdict.json": {"checks": {"a": 1}}}),
        "cycle": seal(
            root,
            "cycle",
            "cycle",
            {"cycle.json": {"estimates": {"a": 1}, "weeks": [{"x": [1, {"y": 2}]}], "candidates": [1], "fresh": 3}},
        ),
        "rlhf": seal(
            root, "rlhf", "model", {"metrics.jsonl": [{"step": 1, "reward": None}, {"step": 2, "reward": None}]}
        ),
    }
    check(pages.life_page(root, odd))


def test_the_same_life_gives_the_same_page(life: Life) -> None:
    assert pages.life_page(*life) == pages.life_page(*life)
