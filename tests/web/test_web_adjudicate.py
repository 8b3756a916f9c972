"""The adjudicator's page in a real browser: what the others said, and a key for why they differed."""

from __future__ import annotations

from typing import Any

import pytest
from test_web_tasks import add, press, stored

from tutelage.feedback import api
from tutelage.feedback.client import Client, Direct
from tutelage.store import answers, people

Visit = Any


def split(house: Any, kind: str = "ranking") -> list[str]:
    """Three tasks that two people order the other way round, and an adjudicator for them."""
    add(house, kind, size=3, per_task=2)
    house.people["ada"] = people.create(house.store, "ada", roles=("adjudicator",))
    rio = people.create(house.store, "rob")
    for at, person in enumerate((house.people["ana"], rio)):
        for item in api.claim(house.store, person, api.Claim(project=kind, count=3)).items:
            order = [[0], [1], [2]] if at else [[2], [0, 1]]
            given = api.Answer(slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", tiers=order)
            api.submit(house.store, person, api.Answers(answers=[given]))
    lead = Client(Direct(house.store, house.people["lea"]))
    return [each.task for each in lead.adjudicate(kind)]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), pytest.param("dark", 390, marks=pytest.mark.slow)])
def test_an_adjudicator_decides_and_says_why_without_a_mouse(
    visit: Visit, house: Any, scheme: str, width: int, shots: Any
) -> None:
    opened = split(house)
    window = visit("ada", scheme=scheme, width=width)
    page = window.go("/")
    page.locator("a[href*='/task/next?project=ranking']").first.wait_for()
    page = window.go("/task/next?project=ranking")
    assert page.locator("h1").inner_text() == "Adjudicate: rank the answers"
    letters = {
        int(str(card.get_attribute("data-no"))): "ABC"[at] for at, card in enumerate(page.locator(".candidate").all())
    }
    said = page.locator(".others li").all_inner_texts()
    assert len(said) == 2 and said[1].endswith(f": {letters[0]} > {letters[1]} > {letters[2]}")
    assert said[0].startswith(house.people["ana"].pseudonym) and f"{letters[2]} > {letters[0]}={letters[1]}" in said[0]
    press(page, *"123", "Enter")
    assert page.locator("#status").inner_text() == "1 to answer first"
    shots.mkdir(exist_ok=True)
    page.screenshot(path=shots / f"adjudicate-{scheme}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
    press(page, "1", "t")
    page.keyboard.type("Say which counts more.")
    press(page, "Escape", "Enter")
    stored(page)
    # the next one is broken: nothing else need be said
    page.wait_for_function("() => document.querySelector('[data-left]').textContent.includes('to answer')")
    press(page, *["ArrowDown"] * 3, "5")
    page.wait_for_function("() => document.querySelector('[data-left]').textContent.startsWith('complete')")
    press(page, "Enter")
    stored(page, 2)
    first, second = answers.read(house.store, "ranking", purpose="adjudicate")
    assert first.value("cause") == "guideline_unclear" and first.value("cause_note") == "Say which counts more."
    assert len(first.tiers) == 3 and (second.value("cause"), second.tiers) == ("data_error", ())
    assert {first.task, second.task} <= set(opened)
    # back to the first one: it stands as it was sent
    page = window.go("/history")
    assert "cause: guideline_unclear" in page.locator("main").inner_text()
    page = window.go(f"/task/{first.slot}")
    assert page.locator("input[name='value:cause']:checked").get_attribute("value") == "guideline_unclear"


def test_everybody_else_is_shown_nothing(visit: Visit, house: Any) -> None:
    split(house)
    add(house, "rewrite", many=1)
    for name in ("ana", "rio"):
        page = visit(name).go("/task/next?project=rewrite")
        assert page.locator(".others").count() == 0 and page.locator("[name='value:cause']").count() == 0
        page = visit(name).go("/task/next?project=ranking")
        assert page.locator(".candidate").count() == 0
