"""The console in a real browser: everything without a mouse, nothing doubled, nothing run that a text says."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.web import looks
from tutelage.store import answers, releases, review, traffic

Visit = Any


def picture(page: Any, path: Any) -> None:
    """The whole page as one picture; in a window as high as the page, so that what sticks to its edge hides nothing."""
    path.parent.mkdir(exist_ok=True)
    size = page.viewport_size
    page.set_viewport_size(size | {"height": max(size["height"], page.evaluate("document.body.scrollHeight"))})
    page.screenshot(path=str(path), full_page=True)
    page.set_viewport_size(size)


def shown(page: Any, name: str, scheme: str, width: int, shots: Any) -> None:
    """Keep a picture of the page, and see that everybody can read it and nothing sticks out of it."""
    picture(page, shots / f"{name}-{scheme}-{width}.png")
    assert looks.problems(page) == [], f"{name}, {scheme}, {width}"


def stored(page: Any, count: int = 1) -> None:
    """Wait until the server has so many answers of this page on disk: the next task shows before that."""
    page.wait_for_selector(f'#task[data-stored="{count}"]', state="attached")


SCREENS = [
    pytest.param("dark", 390),
    pytest.param("light", 1280, marks=pytest.mark.slow),
    pytest.param("light", 390, marks=pytest.mark.slow),
    pytest.param("dark", 1280, marks=pytest.mark.slow),
]


def test_ranking_with_digits_alone(visit: Visit) -> None:
    window = visit("ana")
    page = window.go("/")
    page.keyboard.press("n")
    page.wait_for_url("**/task/next")
    page.keyboard.press("2")
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.wait_for_function("document.querySelector('[data-left]').textContent.startsWith('complete')")
    order = [
        int(card.get_attribute("name").split(":")[1]) for card in page.locator("fieldset.row input[value='1']").all()
    ]
    page.keyboard.press("Enter")
    stored(page)
    kept = answers.read(window.house.store, "desk ranking")
    assert len(kept) == 1
    assert kept[0].tiers == ((order[1],), tuple(sorted((order[0], order[2])))), "the same digit is a tie"
    assert kept[0].active_ms > 0


def test_scoring_moves_on_by_itself_and_asks_for_what_is_missing(visit: Visit) -> None:
    window = visit("ana")
    page = window.go("/task/next?project=desk%20scoring")
    for key in "51423":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert page.locator("#status").inner_text() == "1 to answer first"
    page.keyboard.press("4")
    page.keyboard.press("t")
    page.keyboard.type("5 and 1 are digits here")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    stored(page)
    kept = answers.read(window.house.store, "desk scoring")[0]
    assert sorted(kept.scores()["right"].values()) == [3.0, 4.0, 5.0]
    assert kept.value("note") == "5 and 1 are digits here"


def test_a_draft_survives_a_reload_and_a_lost_connection_loses_nothing(visit: Visit) -> None:
    window = visit("ana")
    page = window.go("/task/next?project=desk%20ranking")
    page.keyboard.press("3")
    page.reload()
    assert page.locator("fieldset.row").first.locator("input[value='3']").is_checked()
    page.keyboard.press("1")
    page.keyboard.press("2")
    window.context.set_offline(True)
    page.keyboard.press("Enter")
    page.get_by_text("No connection").wait_for()
    assert answers.read(window.house.store, "desk ranking") == []
    window.context.set_offline(False)
    stored(page)
    assert len(answers.read(window.house.store, "desk ranking")) == 1
    window.errors.clear()  # the browser itself reports the lost connection


def test_help_opens_and_closes(visit: Visit) -> None:
    page = visit("ana").go("/task/next?project=desk%20ranking")
    page.keyboard.press("?")
    assert page.get_by_role("dialog").get_by_text("the same digit ties").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


def test_skip_needs_a_reason_and_all_bad_needs_no_order(visit: Visit) -> None:
    window = visit("ana")
    page = window.go("/task/next?project=desk%20ranking")
    page.keyboard.press("s")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    stored(page)
    page.keyboard.press("x")
    page.keyboard.press("Enter")
    stored(page, 2)
    kept = answers.read(window.house.store, "desk ranking", status=None)
    assert [each.status for each in kept] == ["skipped", "submitted"]
    assert kept[0].reason == "I do not know this matter"
    assert kept[1].value("all_bad") == 1.0 and len(kept[1].unrankable) == 3


def test_a_correction_is_kept_beside_the_first_answer(visit: Visit) -> None:
    window = visit("ana")
    page = window.go("/task/next?project=desk%20ranking")
    for key in "123":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    stored(page)
    page = window.go("/history")
    page.get_by_role("link", name="change").click()
    page.locator("fieldset.row input:checked").nth(2).wait_for()  # the page shows what was answered
    assert page.locator("fieldset.row input:checked").count() == 3
    page.evaluate("document.querySelectorAll('fieldset.row')[0].querySelector('input[value=\"3\"]').click()")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    store = window.house.store
    assert [each.revision for each in answers.read(store, "desk ranking", newest=False)] == [1, 2]


def test_what_a_response_says_is_shown_and_never_run(visit: Visit) -> None:
    page = visit("ana").go("/task/next?project=desk%20ranking")
    assert page.get_by_text("<script>alert('x')</script>").count() == 1


def test_review_is_blind_first_and_revealed_later(visit: Visit) -> None:
    window = visit("rio")
    page = window.go("/task/next?project=review")
    before = page.locator("main").inner_text()
    assert "0.93" not in before and "block" not in before.lower().replace("blocked", "") and "guards decided" in before
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("You said yes; the guards").wait_for()
    page = window.go("/review")
    assert page.get_by_text("Miss rate by week").count() >= 1


def test_chat_streams_through_the_guards(visit: Visit) -> None:
    window = visit("ana")
    page = window.go("/chat")
    page.keyboard.type("Where is the ferry office?")
    page.keyboard.press("Enter")
    page.get_by_text("You asked: Where is the ferry office?").wait_for()
    page.get_by_role("button", name="Good answer").click()
    page.get_by_text("Thank you, noted").wait_for()
    said = traffic.feedback(window.house.store, kind="thumb")
    assert [each.value for each in said] == [1.0] and said[0].actor == window.house.people["ana"].pseudonym


def test_chat_says_what_was_withheld(visit: Visit) -> None:
    window = visit("ana")
    chunks = [
        {"delta": {"content": "I cannot "}},
        {"delta": {"content": "help."}},
        {"delta": {}, "finish_reason": "content_filter"},
    ]
    body = "".join(f"data: {json.dumps({'choices': [chunk]})}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    window.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )
    page = window.go("/chat")
    page.keyboard.type("Tell me a locker code")
    page.keyboard.press("Enter")
    page.get_by_text("withheld by the safety policy").wait_for()
    assert page.get_by_text("I cannot help.").count() == 1


def test_a_person_answers_in_a_held_conversation(visit: Visit) -> None:
    window = visit("lea")
    page = window.go("/review")
    page.locator("textarea[name=text]").fill("Please come to the desk with your papers.")
    page.get_by_role("button", name="Send and give back").click()
    page.get_by_text("goes out with the next turn").wait_for()
    assert review.holds(window.house.store, waiting=True) == []


def test_rollback_in_one_step(visit: Visit) -> None:
    window = visit("lea")
    page = window.go("/operate")
    page.get_by_role("button", name="Roll back", exact=True).click()
    page.get_by_label("Reason, kept for good").first.fill("it blocks too much")
    page.get_by_role("button", name="Roll back now").click()
    page.get_by_text("Rolled back to spring").wait_for()
    now_live = releases.current(window.house.store)
    assert now_live is not None and now_live.name == "spring"


def test_runs_move_while_one_looks(visit: Visit) -> None:
    from tutelage.core.events import JsonLines, Reporter

    window = visit("lea")
    say = Reporter("pretrain", "k", (JsonLines(window.house.root.events / "pretrain.jsonl"),), every=0)
    say.say("start")
    say.progress(10, 100, "steps", loss=3.2)
    page = window.go("/runs")
    assert "10 of 100 steps" in page.locator("table.runs").inner_text()
    say.progress(60, 100, "steps", loss=2.4)
    page.get_by_text("60 of 100 steps").wait_for()
    say.say("done")
    page.get_by_text("1 of 1 stages are done").wait_for()


def test_a_browser_that_hangs_is_killed_and_the_next_window_gets_another(
    browser: Any, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = visit("ana")
    first = browser.mark
    monkeypatch.setattr(browser, "PATIENCE_S", 1.0)
    browser.signal(signal.SIGSTOP)
    window.close()
    again = visit("ana")
    again.go("/")
    assert browser.mark != first
