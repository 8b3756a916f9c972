"""Each kind of task in a real browser without a mouse: its keys, what is stored, taken back, or left by a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tutelage.core.records import Message
from tutelage.feedback import api
from tutelage.store import answers, slots

Visit = Any
LONG = "I am not sure, but the ferry office could be at the north pier, beside the mill. " * 4
TEXTS = ("At the north pier, beside the mill.", "I do not know.", LONG, "Ask the harbour master.", "It is closed.")
TREE = [
    {"key": "harm", "title": "Harm", "severity": 2, "children": [
        {"key": "threat", "title": "Threat", "severity": 3, "description": "announces violence",
         "children": [{"key": "weapon", "title": "With a weapon"}]},
        {"key": "insult", "title": "Insult", "severity": 1}]},
    {"key": "spam", "title": "Advertisement"},
]  # fmt: skip
SCALE = {"kind": "scale", "scale": [1, 5], "per_candidate": True}
GUIDELINE = "# What counts\nRight answers beat polite ones.\n\n- Not knowing is **better** than inventing."
ANCHORS = {"1": "wrong", "3": "partly", "5": "right and complete"}
FORMS: dict[str, dict[str, Any]] = {
    "ranking": {},
    "scoring": {"questions": [
        {"key": "right", "prompt": "is it right?", "anchors": ANCHORS, **SCALE},
        {"key": "polite", "prompt": "is it polite?", "anchors": {"1": "rude", "5": "kind"}, **SCALE},
        {"key": "tone", "kind": "choice", "choices": ["warm", "cold"], "per_candidate": True},
    ]},
    "pair": {"questions": [
        {"key": "strength", "kind": "strength", "choices": ["slightly better", "better", "much better"]}]},
    "tag": {"taxonomy": {"nodes": TREE}, "questions": [
        {"key": "categories", "kind": "tags", "prompt": "what does the text contain?"},
        {"key": "where", "kind": "spans", "prompt": "mark the words that say so", "required": False}]},
    "rewrite": {},
}  # fmt: skip
SIZES = {"ranking": 5, "scoring": 2, "pair": 2, "tag": 1, "rewrite": 1}
PROMPT = "Where is the 🛳 ferry office?\nWrite to anna@example.org now."


def add(house: Any, kind: str, many: int = 3, size: int | None = None, per_task: int = 1, name: str = "") -> None:
    """A project of a kind, named by it if by nothing else, with some tasks."""
    lead = house.people["lea"]
    form = FORMS[kind] | {"guideline": GUIDELINE}
    made = {"name": name or kind, "kind": kind, "form": form, "per_task": per_task}
    api.create_project(house.store, lead, api.NewProject.model_validate(made))
    texts = [
        text if kind != "tag" else f"{text} Buy pills now!" for text in TEXTS[: SIZES[kind] if size is None else size]
    ]
    new = [
        api.NewTask(
            key=str(at),
            kind=kind,  # type: ignore[arg-type]
            messages=(Message(role="user", content=f"{PROMPT} ({at})"),),
            candidates=tuple(api.NewCandidate(content=text) for text in texts),
        )
        for at in range(many)
    ]
    api.add_tasks(house.store, lead, name or kind, new)


def begin(visit: Visit, kind: str, name: str = "ana", **options: Any) -> tuple[Any, Any]:
    window = visit(name, **options)
    if not [each for each in api.projects(window.house.store, window.house.people["lea"]) if each.name == kind]:
        add(window.house, kind)
    return window, window.go(f"/task/next?project={kind}")


def stored(page: Any, count: int = 1) -> None:
    """Wait until the server has so many answers of this page on disk: the next task shows before that."""
    page.wait_for_selector(f'#task[data-stored="{count}"]', state="attached")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def last(window: Any, kind: str) -> answers.Annotation:
    return answers.read(window.house.store, kind)[-1]


OUTBOX_EMPTY = "() => !Object.keys(localStorage).some(key => key.startsWith('tutelage.outbox'))"

# each kind by its keys


def test_a_pair_with_strength(visit: Visit) -> None:
    window, page = begin(visit, "pair")
    points = page.locator("fieldset.row .point").all_inner_texts()
    assert points == [
        "1A much better", "2A better", "3A slightly better", "4about the same", "5B slightly better", "6B better",
        "7B much better",
    ]  # fmt: skip
    assert page.locator("input:checked").count() == 0, "nothing is chosen beforehand"
    press(page, "Enter")
    assert page.locator("#status").inner_text() == "1 to answer first"
    first, second = (int(str(each.get_attribute("data-no"))) for each in page.locator(".candidate").all())
    press(page, "6", "Enter")
    stored(page)
    kept = last(window, "pair")
    assert kept.tiers == ((second,), (first,)) and kept.value("strength") == 2.0 and kept.shown == (first, second)


def test_scores_with_words_at_their_points_and_choices_for_each_answer(visit: Visit) -> None:
    window, page = begin(visit, "scoring")
    words = page.locator(".point.worded").first.inner_text().split()
    assert words == ["1", "wrong"]
    name = page.locator("input[name^='score:right']").nth(4).get_attribute("aria-label")
    assert name == "Answer A, Is it right?: 5, right and complete"
    press(page, *"542", *"131")
    page.wait_for_function("() => document.querySelector('[data-left]').textContent.startsWith('complete')")
    press(page, "r")
    press(page, "Space", "Enter")
    stored(page)
    kept = last(window, "scoring")
    first, second = kept.shown
    assert kept.scores() == {"right": {first: 5.0, second: 1.0}, "polite": {first: 4.0, second: 3.0}}
    rest = {(each.question, each.candidate): each.value for each in kept.values if each.value is not None}
    assert rest == {("tone", first): "cold", ("tone", second): "warm", ("flag", second): ["harmful"]}


def test_nine_answers_are_ranked_by_digits_with_ties(visit: Visit) -> None:
    window = visit("ana")
    add(window.house, "ranking", size=5)
    page = window.go("/task/next?project=ranking")
    press(page, *"21310", "Enter")
    stored(page)
    kept = last(window, "ranking")
    shown = kept.shown
    assert kept.unrankable == (shown[4],)
    assert kept.tiers == (tuple(sorted((shown[1], shown[3]))), (shown[0],), (shown[2],))


def test_a_rewrite_needs_an_act_and_a_change(visit: Visit) -> None:
    window, page = begin(visit, "rewrite")
    press(page, "Control+Enter")
    assert page.locator("#status").inner_text() == "2 to answer first"
    press(page, "1")
    assert page.locator("textarea").input_value() == TEXTS[0]
    press(page, "Control+Enter")
    assert page.locator("#status").inner_text() == "1 to answer first", "the text is as it was"
    press(page, "Control+End")
    page.keyboard.type(" Open from 9 <b>to</b> 5.")
    press(page, "Control+Enter")
    stored(page)
    assert [(each.question, each.candidate, each.text) for each in last(window, "rewrite").values] == [
        ("rewrite", 0, f"{TEXTS[0]} Open from 9 <b>to</b> 5.")
    ]
    press(page, "2", "Control+Enter")
    stored(page, 2)
    assert [each.question for each in last(window, "rewrite").values] == ["as_is"]


def test_a_text_that_is_too_long_is_not_sent_and_not_lost(visit: Visit) -> None:
    window, page = begin(visit, "rewrite")
    press(page, "1")
    page.locator("textarea").fill("x" * 20_001)
    press(page, "Control+Enter")
    page.get_by_text("This text has 20001 characters; at most 20000 are kept").wait_for()
    assert len(page.locator("textarea").input_value()) == 20_001
    assert answers.read(window.house.store, "rewrite", status=None) == []


def test_what_is_too_large_or_wrong_for_the_server_is_refused_with_a_sentence(visit: Visit) -> None:
    window, page = begin(visit, "rewrite")
    slot = page.locator("form[data-task]").get_attribute("data-task")
    form = {"csrf": window.csrf, "epoch": "1", "key": "much-too-large", "as_is": "0"}
    headers = {"accept": "application/json"}
    for size, status, says in ((10_000_000, 413, "at most 2 MB"), (30_000, 422, "at most 20,000"), (0, 422, "missing")):
        told = page.request.post(
            f"{window.house.url}/task/{slot}", form=form | {"rewrite": "x" * size}, headers=headers, max_redirects=0
        )
        assert told.status == status and says in told.json()["error"]
    for wrong in ({"epoch": "one"}, {"rewritten": "B"}, {"active_ms": "soon"}, {"span": "{"}, {"key": "short"}):
        told = page.request.post(f"{window.house.url}/task/{slot}", form=form | wrong, headers=headers)
        assert told.status == 422 and told.json()["error"], wrong
    assert answers.read(window.house.store, "rewrite", status=None) == []


def test_tags_of_a_tree_and_words_marked_by_keys_alone(visit: Visit) -> None:
    window, page = begin(visit, "tag")
    press(page, "Enter")
    assert page.locator("#status").inner_text() == "1 to answer first", "an untouched page says nothing"
    page.locator(".tree input").first.focus()
    press(page, "ArrowRight", "ArrowRight", "Space")  # harm > threat > weapon
    checked = page.locator(".tree input:checked").evaluate_all("all => all.map(each => each.value)")
    assert checked == ["harm", "threat", "weapon"], "a tag implies those above it"
    press(page, "w", "ArrowUp")
    assert page.evaluate("getSelection().toString()") == "Where"
    for _ in range(4):
        press(page, "ArrowRight")
    press(page, "Shift+ArrowRight")
    assert page.evaluate("getSelection().toString()") == "office?\nWrite"
    press(page, "5")  # Advertisement
    press(page, "Escape", "ArrowDown", "w", "ArrowDown", "ArrowRight", "2")
    lines = page.locator(".marks li").all_inner_texts()
    assert [" ".join(line.split()) for line in lines] == [
        "Advertisement: “office? Write” remove",
        "Threat: “the” remove",
    ]
    assert (
        page.locator("mark").all_inner_texts()
        == ["office?\nWrite", "north"][:1] + page.locator(".candidate mark").all_inner_texts()
    )
    press(page, "Enter")
    stored(page)
    kept = last(window, "tag")
    assert kept.value("categories") == ["harm", "threat", "weapon"]
    shown = f"{PROMPT} (0)".replace("anna@example.org", "[EMAIL]")
    spans = {label: (field, no, start, end) for field, no, start, end, label in kept.spans}
    field, no, start, end = spans["spam"]
    assert (field, no, shown[start:end]) == ("prompt:0", -1, "office?\nWrite"), "offsets count code points"
    field, no, start, end = spans["threat"]
    assert (field, no, f"{TEXTS[0]} Buy"[start:end]) == ("candidate", 0, "the")


def test_words_selected_with_the_mouse_are_marked_and_can_be_removed(visit: Visit) -> None:
    window, page = begin(visit, "tag")
    page.locator(".candidate .said").dblclick(position={"x": 8, "y": 10})
    page.get_by_role("button", name="Advertisement").click()
    assert page.locator(".candidate mark").inner_text().strip() == "At"
    page.reload()
    assert page.locator(".candidate mark").inner_text().strip() == "At", "a mark survives a reload"
    page.get_by_role("button", name="remove Advertisement: At").click()
    assert page.locator("mark").count() == 0
    page.locator(".point.zero input").check(force=True)
    press(page, "Enter")
    stored(page)
    kept = last(window, "tag")
    assert kept.spans == () and kept.value("categories") == []


def test_unchoosing_a_parent_unchooses_what_implied_it_and_none_stands_alone(visit: Visit) -> None:
    _, page = begin(visit, "tag")
    press(page, "3")
    values = "all => all.map(each => each.dataset.none ? 'none' : each.value)"
    assert page.locator(".tree input:checked").evaluate_all(values) == ["harm", "threat", "weapon"]
    press(page, "2")
    assert page.locator(".tree input:checked").evaluate_all(values) == ["harm"]
    press(page, "0")
    assert page.locator(".tree input:checked").evaluate_all(values) == ["none"]
    press(page, "4")
    assert page.locator(".tree input:checked").evaluate_all(values) == ["harm", "insult"]


# the flow


def test_the_next_task_lies_ready_and_one_round_trip_brings_the_one_after(visit: Visit) -> None:
    window = visit("ana")
    add(window.house, "pair", many=4)
    page = window.go("/task/next?project=pair")
    asked: list[str] = []
    page.on("request", lambda request: "/static/" in request.url or asked.append(f"{request.method} {request.url}"))
    first = page.locator("form[data-task]").get_attribute("data-task")
    ready = page.evaluate("document.querySelectorAll('template.ahead').length")
    page.route("**/task/*", lambda route: None)  # the server hears nothing: what shows was there before
    press(page, "1", "Enter")
    second = page.locator("form[data-task]").get_attribute("data-task")
    assert ready == 1 and second != first
    page.unroute_all()
    page.reload()
    page.get_by_text("An earlier answer is stored now").or_(page.locator("h1")).first.wait_for()
    page.wait_for_function(OUTBOX_EMPTY)
    assert [each.slot for each in answers.read(window.house.store, "pair")] == [first]
    page = window.go("/task/next?project=pair")
    asked.clear()
    for count in range(1, 3):
        press(page, "1", "Enter")
        stored(page, count)
    assert len([each for each in asked if each.startswith("POST")]) == 2
    assert [each for each in asked if not each.startswith("POST")] == [], "no request but the answers themselves"
    assert page.locator("[data-mine]").inner_text() == "3"
    window.errors.clear()


def test_the_last_answer_can_be_taken_back_with_a_key(visit: Visit) -> None:
    window, page = begin(visit, "pair")
    slot = str(page.locator("form[data-task]").get_attribute("data-task"))
    press(page, "1", "Enter")
    stored(page)
    with page.expect_navigation(url=f"**/task/{slot}"):
        press(page, "u")
    assert answers.read(window.house.store, "pair") == []
    assert page.locator("fieldset.row input:checked").get_attribute("data-key") == "1", "it is filled in again"
    press(page, "7", "Enter")
    stored(page)
    every = answers.read(window.house.store, "pair", newest=False, status=None)
    assert [(each.revision, each.status) for each in every] == [(1, "submitted"), (2, "withdrawn"), (3, "submitted")]
    assert slots.held(window.house.store, slot).state == "done"


@pytest.mark.parametrize("kind", ["scoring", "pair", "tag", "rewrite"])
def test_an_answer_opened_from_my_answers_is_filled_in_and_corrected(visit: Visit, kind: str) -> None:
    window, page = begin(visit, kind)
    keys = {"scoring": "542131", "pair": "2", "tag": "3", "rewrite": "1"}[kind]
    press(page, *keys)
    if kind == "tag":
        press(page, "w", "4", "Escape")
    if kind == "rewrite":
        page.locator("textarea").fill("A better answer.")
    filled = "() => Object.fromEntries([...new FormData(document.querySelector('form[data-task]'))].slice(5))"
    before = page.evaluate(filled)
    press(page, "Control+Enter")
    stored(page)
    first = last(window, kind)
    page = window.go("/history")
    page.get_by_role("link", name="change").first.click()
    page.get_by_text("kept beside it as a correction").wait_for()
    page.locator("fieldset.row.now").wait_for()
    assert page.evaluate(filled) == before
    if kind == "rewrite":
        page.locator("textarea").fill("A still better answer.")
    else:
        row = page.locator("fieldset.row").first
        row.locator("input:not(:checked)").first.evaluate("each => each.click()")
    with page.expect_navigation(url="**/history**"):
        press(page, "Control+Enter")
    newest = last(window, kind)
    assert newest.revision == 2 and newest.slot == first.slot and newest.values != first.values


def test_what_a_lost_page_could_not_send_is_sent_by_the_next(visit: Visit) -> None:
    window, page = begin(visit, "pair")
    window.context.set_offline(True)
    press(page, "1", "Enter")
    page.get_by_text("No connection").wait_for()
    page.goto("about:blank")
    window.context.set_offline(False)
    page = window.go("/task/next?project=pair")
    page.wait_for_function(OUTBOX_EMPTY)
    assert len(answers.read(window.house.store, "pair", newest=False)) == 1
    window.errors.clear()


def test_signed_out_in_the_middle_loses_nothing(visit: Visit) -> None:
    window, page = begin(visit, "pair")
    cookies = window.context.cookies()
    window.context.clear_cookies()
    with page.expect_navigation(url="**/login**"):
        press(page, "1", "Enter")
    assert answers.read(window.house.store, "pair") == []
    window.context.add_cookies(cookies)
    page = window.go("/task/next?project=pair")
    page.wait_for_function(OUTBOX_EMPTY)
    assert len(answers.read(window.house.store, "pair")) == 1
    window.errors.clear()


def test_a_refused_answer_comes_back_with_the_reason(visit: Visit) -> None:
    window, page = begin(visit, "tag")
    slot = page.locator("form[data-task]").get_attribute("data-task")
    press(page, "3")
    field = json.dumps({"field": "candidate", "candidate": 0, "start": 1, "end": 9_999, "label": "spam"})
    page.evaluate(
        "value => document.querySelector('form[data-task]').insertAdjacentHTML('beforeend',"
        " `<input type=hidden name=span value='${value}'>`)", field
    )  # fmt: skip
    press(page, "Enter")
    page.get_by_text("behind the end of the text").wait_for()
    assert page.locator("form[data-task]").get_attribute("data-task") == slot
    assert page.locator(".tree input:checked").count() == 3, "what was chosen is still chosen"
    window.errors.clear()  # the browser reports the 422


def test_texts_are_shown_as_text_whatever_they_hold(visit: Visit) -> None:
    window = visit("ana")
    add(window.house, "tag", many=0)
    nasty = "<img src=x onerror=alert(1)>\r\n</textarea><script>document.title='x'</script> & \u202e right"
    new = api.NewTask(
        key="nasty", kind="tag", messages=(Message(role="user", content=nasty),),
        candidates=(api.NewCandidate(content=nasty),),
    )  # fmt: skip
    api.add_tasks(window.house.store, window.house.people["lea"], "tag", [new])
    page = window.go("/task/next?project=tag")
    for place in page.locator(".said").all():
        assert place.evaluate("each => each.textContent") == nasty, "to the character, line ends too"
    assert page.locator("main img").count() == 0 and page.title().startswith("Tag the text")


# how it looks

SCREENS = [
    pytest.param("dark", 390),
    pytest.param("light", 1280, marks=pytest.mark.slow),
    pytest.param("light", 390, marks=pytest.mark.slow),
    pytest.param("dark", 1280, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_every_kind_fits_and_names_its_fields(visit: Visit, scheme: str, width: int, shots: Any) -> None:
    window = visit("ana", scheme=scheme, width=width)
    shots.mkdir(exist_ok=True)
    for kind in FORMS:
        add(window.house, kind)
        page = window.go(f"/task/next?project={kind}")
        if kind == "tag":
            press(page, "3", "w", "4", "ArrowRight", "ArrowRight", "Shift+ArrowRight", "2")
        elif kind == "rewrite":
            press(page, "1")
        else:
            press(page, "2")
        page.screenshot(path=str(shots / f"kind-{kind}-{scheme}-{width}.png"), full_page=True)
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, f"{kind} is {over} pixels wider than a screen of {width}"
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("main input, main textarea, main button")].filter(each =>
                 each.type !== "hidden" && !(each.labels?.length || each.ariaLabel || each.textContent.trim()))
                 .map(each => each.name)"""
        )
        assert unnamed == [] and page.locator("h1").count() == 1, f"{kind}: fields without a name for screen readers"
        assert page.locator("fieldset.row legend").count() == page.locator("fieldset.row").count()
