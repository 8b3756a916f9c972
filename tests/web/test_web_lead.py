"""A lead's pages in a real browser: made from a file, answered, watched, disagreements side by side, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.web.test_web_pages import shown, stored
from tutelage import worker
from tutelage.core import refs
from tutelage.generate.fake import FakeGenerator
from tutelage.store import answers, ledger, people, tasks

CSV = (
    "prompt,candidate_1,candidate_2,producer_1,producer_2,language,note\n"
    "Where is the ferry office?,At the north pier.,I do not know.,model:a,model:b,,first\n"
    '"Write to ana@example.org, please",Dear Ana,No.,model:a,model:b,,second\n'
    "What does bread cost?,Two coins.,Three coins.,model:b,model:a,,third\n"
)


SCREENS = [
    pytest.param("light", 1280),
    pytest.param("dark", 390, marks=pytest.mark.slow),
    pytest.param("dark", 1280, marks=pytest.mark.slow),
    pytest.param("light", 390, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_from_a_file_to_an_export(visit: Any, tmp_path: Path, shots: Path, scheme: str, width: int) -> None:
    lead = visit("lea", scheme=scheme, width=width)
    store = lead.house.store
    people.create(store, "bo", roles=("annotator",))
    lead.house.people["bo"] = people.get(store, "bo")

    def keep(name: str) -> None:
        shown(lead.page, f"lead-{name}", scheme, width, shots)

    # a wrong file makes nothing and names the cell; what was written stays
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(CSV.replace("Two coins.", ""))
    page = lead.go("/projects")
    page.get_by_role("link", name="New project").click()
    page.get_by_label("Name", exact=True).fill("bread and ferries")
    page.get_by_label("Kind of task").select_option("ranking")
    page.get_by_label("People for each task").fill("2")
    page.get_by_label("What is asked").first.fill("Anything to add?")
    page.get_by_label("Answered by").first.select_option("text")
    page.get_by_label("may be left out").first.check()
    page.get_by_role("button", name="One more question").click()
    page.get_by_label("What is asked").nth(1).fill("Which topic?")
    page.get_by_label("Answered by").nth(1).select_option("choice")
    page.get_by_label("Choices, one a line").nth(1).fill("town\nbread")
    page.get_by_label("Guideline").fill("# What counts\nRight answers **first**.")
    page.locator("input[type=file]").set_input_files(str(wrong))
    keep("new")
    page.get_by_role("button", name="Look at the first tasks").click()
    page.get_by_role("alert").wait_for()
    said = page.get_by_role("alert").inner_text()
    assert "wrong.csv" in said and "row 4" in said and "candidates" in said
    assert page.get_by_label("Name", exact=True).input_value() == "bread and ferries"
    keep("refused")
    lead.errors.clear()  # the browser itself reports the 422
    right = tmp_path / "tasks.csv"
    right.write_text(CSV)
    page.locator("input[type=file]").set_input_files(str(right))
    page.get_by_role("button", name="Look at the first tasks").click()
    page.get_by_role("button", name="Make it").wait_for()
    text = page.locator("main").inner_text()
    assert "Two coins." in text and "ana@example.org" not in text and "Which topic?" in text
    assert not [each for each in tasks.projects(store) if each.name == "bread and ferries"], "a preview makes nothing"
    keep("preview")
    page.get_by_role("button", name="Change something").click()
    page.get_by_label("What is asked").nth(1).fill("Which matter?")
    page.get_by_role("button", name="Look at the first tasks").click()  # the file is still here
    page.get_by_role("button", name="Make it").click()
    page.get_by_text("3 tasks are open").wait_for()
    keep("fresh")

    # two people answer, differently; one passes a task over
    for name, keys in (("ana", ("12", "12", "11")), ("bo", ("21", "12"))):
        window = visit(name)
        work = window.go("/task/next?project=bread%20and%20ferries")
        for at, each in enumerate(keys, 1):
            work.get_by_label("Which matter?: town").first.check()
            for no, place in enumerate(each):  # by the candidate's number: the order on the screen is shuffled
                work.locator(f"input[name='tier:{no}'][value='{place}']").check()
            work.locator("[data-send]").click()
            if at < 3:
                stored(work, at)
            else:
                work.get_by_role("heading", name="Nothing to do").wait_for()
    bo = [each.slot for each in answers.read(store, "bread and ferries", person=lead.house.people["bo"].id)]
    assert len(bo) == 2

    page = lead.go("/projects/bread%20and%20ferries")
    assert "5 / 6" in page.locator("main").inner_text()
    keep("progress")
    page = lead.go("/projects/bread%20and%20ferries/agreement")
    assert page.get_by_text("Kendall's tau-b").count() == 1 and page.locator("code").count() >= 2
    keep("people")

    # disagreements: the largest first, makers hidden until the lead asks, which is noted
    page = lead.go("/projects/bread%20and%20ferries/disagreements")
    cards = page.locator("article.side")
    assert cards.count() == 2 and "rankings 1.00" in cards.first.inner_text()
    assert "rankings 0.00" in cards.nth(1).inner_text() and "model:a" not in page.content()
    keep("disagreements")
    page.get_by_role("button", name="Show who made the responses").click()
    page.get_by_text("made by model:a").first.wait_for()
    assert any(row.action == "producers.reveal" for row in ledger.rows(store))
    keep("revealed")

    # the form: what changes is shown before it is published
    page = lead.go("/projects/bread%20and%20ferries/form")
    page.get_by_label("Guideline").fill("# What counts\nShort answers **first**.")
    page.get_by_role("button", name="Show what changes").click()
    page.get_by_role("button", name="Publish version 2").wait_for()
    assert page.locator("del").inner_text().strip() == "Right answers **first**."
    assert page.locator("ins").inner_text().strip() == "Short answers **first**."
    assert "1 task that is not done keeps its version" in page.locator("main").inner_text()
    keep("form-changes")
    page.get_by_role("button", name="Publish version 2").click()
    page.get_by_text("Version 2 is asked from now on").wait_for()
    assert tasks.get_project(store, "bread and ferries").version == 2
    keep("form")

    # people, closing, opening, further tasks
    page = lead.go("/projects/bread%20and%20ferries/settings")
    page.get_by_label("Account").fill("rio")
    page.get_by_role("combobox", name="Role").select_option("annotator")
    page.get_by_role("button", name="Add").click()
    page.get_by_text("rio is annotator here").wait_for()
    keep("settings")
    page.get_by_role("button", name="Close it").click()
    page.get_by_text("Nobody is asked any more").wait_for()
    page.get_by_role("button", name="Open it").click()
    page.get_by_text("People are asked again").wait_for()
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": "How far is it?", "candidates": ["An hour.", "A day."]}) + "\n")
    page.locator("input[type=file]").set_input_files(str(more))
    page.get_by_role("button", name="Look at the first tasks").click()
    page.get_by_role("button", name="Add them").click()
    page.get_by_text("1 task is open").wait_for()

    # export
    page.get_by_role("button", name="Export").click()
    page.get_by_text("internal").wait_for()  # nobody said how these texts may be used
    keep("not-exported")
    lead.errors.clear()  # the browser itself reports the refusal
    page = lead.go("/projects/bread%20and%20ferries")
    page.get_by_label("What it is for").select_option("dpo")
    page.get_by_label("licence is not stated").check()
    with page.expect_download() as loading:
        page.get_by_role("button", name="Export").click()
    pairs = [json.loads(line) for line in Path(loading.value.path()).read_text().splitlines()]
    assert pairs and all({"prompt", "chosen", "rejected"} <= row.keys() for row in pairs)
    page.get_by_label("What it is for").select_option("annotations")
    with page.expect_download() as loading:
        page.get_by_role("button", name="Export").click()
    rows = [json.loads(line) for line in Path(loading.value.path()).read_text().splitlines()]
    assert sum(len(row["answers"]) for row in rows) == 5


def test_a_stuck_task_waits_for_the_lead(visit: Any, shots: Path) -> None:
    lead, store = visit("lea"), None
    store = lead.house.store
    crew = [people.create(store, f"crew{at}", roles=("annotator",)) for at in range(26)]
    from tutelage.feedback import api

    new = api.NewTask.model_validate(
        {"key": "t", "kind": "ranking", "messages": [{"role": "user", "content": "Which one?"}],
         "candidates": [{"content": "this"}, {"content": "that"}]}
    )  # fmt: skip
    made = api.NewProject.model_validate({"name": "stuck", "per_task": 1})
    api.open_project(store, lead.house.people["lea"], made, [new])
    for at, each in enumerate(crew[:4]):
        item = api.claim(store, each, api.Claim(project="stuck")).items[0]
        given = api.Answer(
            slot=item.slot, epoch=item.epoch, key=f"passed-{at}", status="skipped", reason="It is broken"
        )
        assert api.submit(store, each, api.Answers(answers=(given,))).receipts[0].status == "stored"
    page = lead.go("/projects/stuck")
    assert "1 task is stuck" in page.locator("main").inner_text()
    assert page.locator("article li").count() == 4 and page.get_by_role("row", name="It is broken").count() == 1
    shown(page, "lead-stuck", "light", 1280, shots)
    assert "The first 20 of 2" in page.locator("#stuck").locator("..").inner_text(), "nobody scrolls through a team"
    page.get_by_label("Whom to ask").fill("nobody")
    page.keyboard.press("Enter")
    page.get_by_text("Nobody's name here holds “nobody”").wait_for()
    page.get_by_label("Whom to ask").fill("CREW5")
    page.keyboard.press("Enter")
    page.get_by_label("Somebody who may answer").select_option(label="crew5")
    page.get_by_role("button", name="Ask this person").click()
    page.get_by_text("It waits for crew5").wait_for()
    assert api.claim(store, crew[4], api.Claim(project="stuck")).items == []
    assert len(api.claim(store, crew[5], api.Claim(project="stuck")).items) == 1


def open_speaker(ref: str, root: Any = None, **options: Any) -> FakeGenerator:
    return FakeGenerator(
        lambda example, sample: f"{example.messages[-1].content} {'abcdefgh'[sample % 8] * 9}", name="speaker"
    )


def test_from_a_model_as_a_job(visit: Any, tmp_path: Path, shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(refs.SCHEMES, "https", f"{__name__}:open_speaker")
    lead = visit("lea")
    page = lead.go("/projects")
    page.get_by_role("link", name="From a model").click()
    page.get_by_label("Name", exact=True).fill("drawn")
    page.get_by_label("Kind of task").select_option("ranking+scoring")
    page.get_by_label("What is asked").first.fill("Is it kind?")
    page.get_by_label("of each response").first.check()
    page.get_by_label("What points mean").first.fill("1: rude\n5: kind")
    page.get_by_label("Endpoints elsewhere").fill("ftp://host")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,cluster\nWhat is the weather?,c1\nHow are you?,c2\n")
    page.locator("input[type=file]").set_input_files(str(prompts))
    page.get_by_role("button", name="Draw responses").click()
    page.get_by_text("an endpoint reads https://host/v1#model").wait_for()
    lead.errors.clear()  # the browser itself reports the 422
    page.get_by_label("Endpoints elsewhere").fill("https://host/v1#speaker")
    shown(page, "lead-from-a-model", "light", 1280, shots)
    page.get_by_role("button", name="Draw responses").click()
    page.get_by_text("It waits for a worker").wait_for()
    shown(page, "lead-waiting-for-a-worker", "light", 1280, shots)
    assert worker.work(lead.house.root, once=True) == 1
    page.get_by_role("link", name="Go to drawn").click()
    page.get_by_text("0 / 2").wait_for()
    made = tasks.get_project(lead.house.store, "drawn")
    assert made.kind == "ranking+scoring" and [each["prompt"] for each in made.questions] == ["Is it kind?"]
    found = list(tasks.load(lead.house.store, project_name="drawn").values())
    assert [each.cluster for each in found] in (["c1", "c2"], ["c2", "c1"]) and len(found[0].candidates) == 4
    assert set(found[0].producers) == {"speaker"}
