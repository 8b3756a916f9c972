"""Gold tasks, pauses, adjudication and qualifications on a lead's pages, in a real browser; and who may use none."""

from __future__ import annotations

from typing import Any

import pytest
from test_web_tasks import add, press

from tests.web.test_web_pages import SCREENS, shown
from tutelage.feedback import api
from tutelage.feedback.client import Client, Direct
from tutelage.feedback.wire import Expected, NewGold
from tutelage.store import answers, gold, ledger, people, qualifications, standing, tasks

Visit = Any
HTML = {"accept": "text/html"}


def ids_of(house: Any, project: str) -> list[str]:
    return tasks.behind(house.store, tasks.get_project(house.store, project).id, 0, 100)


def work(store: Any, person: Any, project: str, tiers: Any, many: int = 1) -> int:
    """Answer what is given, one at a time; how many there were."""
    for at in range(many):
        found = api.claim(store, person, api.Claim(project=project)).items
        if not found:
            return at
        given = api.Answer(slot=found[0].slot, epoch=found[0].epoch, key=f"key-{found[0].slot}", tiers=tiers)
        assert api.submit(store, person, api.Answers(answers=(given,))).receipts[0].status == "stored"
    return many


def golden(house: Any, project: str = "ranking", many: int = 6) -> list[str]:
    """A project with half of its items gold, the first `many` tasks, expected in the order of their numbers."""
    add(house, "ranking", many=2 * many + 4, size=3)
    lead = Client(Direct(house.store, house.people["lea"]))
    chosen = ids_of(house, project)[:many]
    for id in chosen:
        expected = Expected(tiers=((0,), (1,), (2,)))
        lead.mark_gold(project, NewGold(task=id, answer=expected, rationale="The pier is right", reserve=True))
    lead.change_settings(project, {"gold_share": 0.5, "gold_doubt": 0.6})
    return chosen


def test_a_lead_says_what_is_expected_with_keys(visit: Visit, house: Any, shots: Any) -> None:
    add(house, "ranking", many=3, size=3)
    lead = visit("lea")
    page = lead.go("/projects/ranking/gold")
    assert "Nobody has answered a gold task yet" in page.locator("main").inner_text()
    page.get_by_role("link", name="Where is").first.click()
    page.locator("fieldset.row.now").wait_for()
    press(page, "2", "1")
    page.get_by_label("Why this is the right answer").fill("The pier is where the office is.")
    page.get_by_label("keep it for this alone").check()
    page.get_by_role("button", name="Make it gold").click()
    assert page.locator("#status").inner_text() == "1 to answer first", "what is missing is said before it is sent"
    page.keyboard.press("Escape")
    page.locator("h1").click()
    press(page, "3")
    page.get_by_role("button", name="Make it gold").click()
    page.get_by_text("Kept: it is given as gold from now on").wait_for()
    (made,) = gold.every(house.store, tasks.get_project(house.store, "ranking").id)
    assert made.expected["ranks"] == [[0, 1], [1, 0], [2, 2]] and made.expected["enough"] == 0.8
    text = page.locator("main").inner_text()
    assert "B > A > C" in text and "Nobody is given gold: its share is 0" in text
    page.get_by_label("Gold among what people are given").fill("25")
    page.get_by_role("button", name="Keep").click()
    page.get_by_text("it holds from the next task on").wait_for()
    assert tasks.get_project(house.store, "ranking").settings["gold_share"] == 0.25
    # it is shown as it was said, changed, and retired
    page.get_by_role("link", name="Where is").first.click()
    page.locator("fieldset.row.now").wait_for()
    assert page.locator("input[name='tier:1'][value='1']").is_checked()
    page.locator("input[name='tier:1'][value='2']").check(force=True)
    page.get_by_role("button", name="Keep it").click()
    page.get_by_text("A=B > C").wait_for()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Retire").click()
    page.get_by_text("Nobody is given this task as gold any more").wait_for()
    assert [row.action for row in ledger.rows(house.store)].count("gold.retire") == 1
    assert gold.every(house.store, tasks.get_project(house.store, "ranking").id)[0].retired


@pytest.mark.parametrize("kind", ["scoring", "tag", "rewrite", "pair"])
def test_every_kind_of_task_can_be_gold(visit: Visit, house: Any, kind: str) -> None:
    add(house, kind, many=1)
    page = visit("lea").go(f"/projects/{kind}/gold/{ids_of(house, kind)[0]}")
    page.locator("fieldset.row.now").wait_for()
    keys = {"scoring": "151322", "tag": "2", "rewrite": "2", "pair": "2"}[kind]
    press(page, *keys)
    if kind == "tag":  # mark a word as well
        page.locator(".said[data-field]").last.focus()
        press(page, "ArrowRight", "Shift+ArrowRight")
        page.locator("button[data-label='spam']").click()
    page.get_by_label("Why this is the right answer").fill("So the guideline says.")
    page.get_by_role("button", name="Make it gold").click()
    page.get_by_text("Kept: it is given").wait_for()
    where = tasks.get_project(house.store, kind)
    (made,) = gold.every(house.store, where.id)
    assert made.expected["values"] or made.expected["ranks"]
    assert bool(made.expected["spans"]) == (kind == "tag")
    # what was said comes back into the form, so that it can be kept again as it stands
    page = visit("lea").go(f"/projects/{kind}/gold/{made.task}")
    page.locator("fieldset.row.now").wait_for()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_text("Kept: it is given").wait_for()
    assert gold.every(house.store, where.id)[0].expected == made.expected


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_who_is_paused_is_looked_at_and_goes_on(visit: Visit, house: Any, scheme: str, width: int, shots: Any) -> None:
    store, ana = house.store, house.people["ana"]
    golden(house)
    done = work(store, ana, "ranking", [[2], [1], [0]], 20)
    assert done < 20, "too many wrong ones: nothing more is given"
    visitor = visit("ana", scheme=scheme, width=width)
    assert standing.REASONS["paused"] in visitor.go("/").locator("main").inner_text()
    lead = visit("lea", scheme=scheme, width=width)
    assert "1 paused" in lead.go("/projects").locator("main").inner_text()
    page = lead.go("/projects/ranking")
    page.get_by_role("link", name="Look at their answers").click()
    page.get_by_role("heading", name="Paused people").wait_for()
    shown(page, "gold-paused", scheme, width, shots)
    assert ana.pseudonym in page.locator("main").inner_text() and ana.name not in page.locator("main").inner_text()
    page.get_by_role("link", name="Look at their answers").click()
    assert page.get_by_text("wrong", exact=True).count() >= 2 and "C > B > A" in page.locator("main").inner_text()
    shown(page, "gold-person", scheme, width, shots)
    page.get_by_label(f"Why {ana.pseudonym} may go on").fill("She read the scale the other way round")
    page.keyboard.press("Enter")
    page.get_by_text("is given tasks again").wait_for()
    page.get_by_text("Pauses that were lifted").click()
    assert "She read the scale the other way round" in page.locator("main").inner_text()
    shown(page, "gold", scheme, width, shots)
    (act,) = ledger.acts(store, "gold.lift")
    assert act.actor == house.people["lea"].id and act.body["reason"] == "She read the scale the other way round"
    assert work(store, ana, "ranking", [[0], [1], [2]], 2) == 2
    page = lead.go(f"/projects/ranking/gold/{ids_of(house, 'ranking')[0]}")
    shown(page, "gold-task", scheme, width, shots)


def split(house: Any, name: str = "ranking") -> None:
    """Three tasks that two people order the other way round."""
    add(house, "ranking", many=3, size=3, per_task=2, name=name)
    rob = house.people["rob"] = people.create(house.store, "rob")
    for at, person in enumerate((house.people["ana"], rob)):
        assert work(house.store, person, name, [[0], [1], [2]] if at else [[2], [0, 1]], 3) == 3


def decide(store: Any, ada: Any, project: str) -> None:
    """Adjudicate two tasks: one in which somebody slipped, and one that is contested."""
    for cause, tiers in (("slip", [[0], [1], [2]]), ("contested", [[1], [0], [2]])):
        (item, *_) = api.claim(store, ada, api.Claim(project=project)).items
        values = {"cause": cause, "cause_note": "Say which counts more."}
        given = api.Answer(slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", tiers=tiers, values=values)
        assert api.submit(store, ada, api.Answers(answers=(given,))).receipts[0].status == "stored"


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_a_lead_asks_an_adjudicator_and_reads_why(
    visit: Visit, house: Any, scheme: str, width: int, shots: Any
) -> None:
    split(house)
    store = house.store
    lead = visit("lea", scheme=scheme, width=width)
    page = lead.go("/projects/ranking/adjudication")
    text = page.locator("main").inner_text()
    assert "Nobody here is an adjudicator" in text and "Nothing has been decided yet" in text
    shown(page, "adjudication-empty", scheme, width, shots)
    ada = house.people["ada"] = people.create(store, "ada", roles=("adjudicator",))
    page = lead.go("/projects/ranking/disagreements")
    page.get_by_role("button", name="Ask an adjudicator about task 1").click()
    page.get_by_text("An adjudicator is asked about 1 task").wait_for()
    assert page.get_by_text("waits for an adjudicator").count() == 1
    assert page.get_by_role("button", name="Ask an adjudicator").count() == 2
    shown(page, "disagreements-asked", scheme, width, shots)
    page = lead.go("/projects/ranking/adjudication")
    page.get_by_label("About tasks with a disagreement above").fill("0.2")
    page.get_by_label("At most so many").fill("1")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("An adjudicator is asked about 1 task").wait_for()
    decide(store, ada, "ranking")
    page = lead.go("/projects/ranking/adjudication")
    text = page.locator("main").inner_text()
    assert "somebody slipped" in text and "both views are legitimate" in text and "Say which counts more." in text
    assert "A > B > C" in text and ada.pseudonym in text and ada.name not in text.split()
    shown(page, "adjudication", scheme, width, shots)
    page = lead.go("/projects/ranking/disagreements")
    assert page.get_by_text("decided: slip").count() == 1
    # what was adjudicated is offered as gold, and can be taken as it stands; a contested task cannot
    page = lead.go("/projects/ranking/gold")
    assert page.locator("section:has(#choose) ul.picks").first.locator("li").count() == 1
    page.locator("section:has(#choose) ul.picks a").first.click()
    page.get_by_label("Why this is the right answer").fill("The adjudicator said so")
    page.get_by_role("button", name="Expect what was adjudicated").click()
    page.get_by_text("A > B > C").first.wait_for()
    (made,) = gold.every(store, tasks.get_project(store, "ranking").id)
    assert made.expected["ranks"] == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_qualifications_are_asked_for_granted_and_taken(
    visit: Visit, house: Any, scheme: str, width: int, shots: Any
) -> None:
    store, ana = house.store, house.people["ana"]
    add(house, "ranking", many=2, size=3)
    lead = visit("lea", scheme=scheme, width=width)
    page = lead.go("/projects/ranking/settings")
    page.get_by_label("Qualifications that people need").fill("ferries, old Velic, ferries")
    page.get_by_role("button", name="Keep").nth(1).click()
    page.get_by_text("it holds from the next task").wait_for()
    assert list(tasks.get_project(store, "ranking").settings["qualifications"]) == ["ferries", "old Velic"]
    assert page.get_by_text("lacks ferries").count() >= 1
    shown(page, "settings-qualifications", scheme, width, shots)
    visitor = visit("ana", scheme=scheme, width=width)
    page = visitor.go("/")
    assert (
        "This asks for a qualification that you do not have yet: ferries, old Velic"
        in page.locator("main").inner_text()
    )
    shown(page, "home-unqualified", scheme, width, shots)
    page = lead.go("/people/qualifications")
    page.get_by_label("To whom").fill(ana.pseudonym)
    page.get_by_label("Qualification", exact=True).fill("ferries")
    page.keyboard.press("Enter")
    page.get_by_text(f"{ana.pseudonym} holds ferries").wait_for()
    shown(page, "qualifications", scheme, width, shots)
    page = lead.go(f"/people/{ana.id}")
    page.get_by_label("qualification", exact=True).fill("old Velic")
    page.get_by_role("button", name="Grant it").click()
    page.get_by_text("ana holds old Velic").wait_for()
    shown(page, "person-qualified", scheme, width, shots)
    assert qualifications.of(store, [ana.id])[ana.id] == ("ferries", "old Velic")
    assert visitor.go("/").get_by_role("link", name="Start ranking").count() == 1
    page = lead.go(f"/people/{ana.id}")
    page.get_by_role("button", name="Take away ferries").click()
    page.get_by_text("ana no longer holds ferries").wait_for()
    assert visitor.go("/").get_by_role("link", name="Start ranking").count() == 0
    # asked for when a project is made
    page = lead.go("/projects/-/new")
    assert "Held by somebody: old Velic" in page.locator("main").inner_text()


def test_who_may_use_none_of_it_and_what_is_wrong_is_said(site: Any) -> None:
    store = site.store

    class House:
        people = site.people

    House.store = store
    chosen = golden(House)
    who = site.people["ana"]
    work(store, who, "ranking", [[2], [1], [0]], 20)
    paths = {
        "/projects/ranking/gold": ("lea",),
        f"/projects/ranking/gold/{chosen[0]}": ("lea",),
        f"/projects/ranking/gold/people/{who.pseudonym}": ("lea",),
        "/projects/ranking/adjudication": ("lea", "aud"),
        "/people/qualifications": ("lea", "aud"),
    }
    site.people["aud"] = people.create(store, "aud", roles=("auditor",))
    for path, may in paths.items():
        for name in ("ana", "rio", "aud", "lea"):
            found = site(name).get(path, headers=HTML)
            assert found.status_code == (200 if name in may else 403), (name, path)
            if name != "lea":
                client = site(name)
                sent = client.post(path, data={"csrf": client.headers["x-csrf-token"]}, headers=HTML)
                assert sent.status_code == 403, (name, path)
        assert site().get(path, headers=HTML).status_code == 303
    before = len(list(ledger.rows(store)))
    client = site("lea")
    csrf = client.headers["x-csrf-token"]
    good = {"csrf": csrf, "share": "10", "exposure": "5", "threshold": "60", "doubt": "95"}
    ranked = {"tier:0": "1", "tier:1": "2", "tier:2": "3"}
    expects = {"csrf": csrf, "do": "mark", "rationale": "It is so", "enough": "80", **ranked}
    base, task = "/projects/ranking", ids_of(House, "ranking")[-1]
    refused = [
        (f"{base}/gold", good | {"csrf": "no"}, 403, "form is too old"),
        (f"{base}/gold", good | {"share": "many"}, 422, "expected a number from 0 to 50"),
        (f"{base}/gold", good | {"threshold": "0"}, 422, "from 1 to 99"),
        (f"{base}/gold/{task}", expects | {"csrf": ""}, 403, "form is too old"),
        (f"{base}/gold/{task}", expects | {"rationale": ""}, 422, "say why this is the right answer"),
        (f"{base}/gold/{task}", expects | {"tier:2": ""}, 422, "candidate 2 is not ranked"),
        (f"{base}/gold/{task}", expects | {"tier:2": "last"}, 422, "a field holds no number"),
        (f"{base}/gold/{task}", expects | {"enough": "0"}, 422, "from 1 to 100"),
        (f"{base}/gold/{task}", expects | {"do": "adjudicated"}, 422, "no adjudicated answer"),
        (f"{base}/gold/{task}", {"csrf": csrf, "do": "retire"}, 404, "is no gold task"),
        (f"{base}/gold/nothing", expects, 404, "no task"),
        (f"{base}/gold/people/{who.pseudonym}", {"csrf": csrf, "reason": " ok "}, 422, "why they may go on"),
        (f"{base}/gold/people/l-nobody", {"csrf": csrf, "reason": "a good one"}, 404, "has answered no gold task"),
        (f"{base}/adjudication", {"csrf": "no"}, 403, "form is too old"),
        (f"{base}/adjudication", {"csrf": csrf, "above": "2", "most": "3"}, 422, "expected a number from 0 to 0.99"),
        (f"{base}/adjudication", {"csrf": csrf, "above": "0.2", "most": "x"}, 422, "expected a whole number"),
        (f"{base}/adjudication", {"csrf": csrf, "task": "nothing"}, 404, "no task"),
        (f"{base}/settings", {"csrf": csrf, "do": "who", "qualifications": "<b>"}, 422, "no name of a qualification"),
        (f"{base}/settings", {"csrf": csrf, "do": "who", "most_per_day": "0"}, 422, "expected a whole number"),
        ("/people/qualifications", {"csrf": csrf, "who": "nobody", "name": "a"}, 404, "there is no person"),
        ("/people/qualifications", {"csrf": csrf, "who": "ana", "name": "<b>"}, 422, "is no name of a qualification"),
        ("/people/qualifications", {"csrf": csrf, "who": "", "name": "a"}, 422, "say who"),
    ]  # fmt: skip
    for path, body, status, says in refused:
        found = client.post(path, data=body, headers=HTML)
        assert found.status_code == status and says in found.text.replace("&#39;", "'"), (
            path,
            body,
            found.text[-1500:],
        )
    assert client.get(f"{base}/gold?key=nothing", headers=HTML).status_code == 404
    assert client.get(f"{base}/gold?key=3", headers=HTML).headers["location"].endswith(ids_of(House, "ranking")[3])
    assert len(list(ledger.rows(store))) == before, "what is refused leaves no trace"
    again = {"csrf": csrf, "reason": "a good one"}
    assert client.post(f"{base}/gold/people/{who.pseudonym}", data=again, headers=HTML).status_code == 303
    twice = client.post(f"{base}/gold/people/{who.pseudonym}", data=again, headers=HTML)
    assert twice.status_code == 404 and "not paused" in twice.text
    typed = client.post(f"{base}/gold/{task}", data=expects | {"rationale": "x"}, headers=HTML).text
    assert "tier:1" in typed.partition("data-draft=")[2][:300], "what was typed is still there"
    assert not answers.read(store, "ranking", purpose="adjudicate")


def test_languages_are_said_by_oneself_and_by_a_lead(visit: Visit, house: Any) -> None:
    store, ana = house.store, house.people["ana"]
    page = visit("ana").go("/account")
    page.get_by_label("Languages that you can judge").fill("de, EN pt-BR de")
    page.keyboard.press("Enter")
    page.get_by_text("Your languages are kept").wait_for()
    assert people.get(store, "ana").languages == ("de", "en", "pt-BR")
    assert page.get_by_label("Languages that you can judge").input_value() == "de, en, pt-BR"
    lead = visit("lea")
    page = lead.go(f"/people/{ana.id}")
    page.get_by_label("languages they can judge").fill("fr")
    page.get_by_role("button", name="Keep").click()
    page.get_by_text("The languages are kept").wait_for()
    assert people.get(store, "ana").languages == ("fr",)
    page.get_by_label("languages they can judge").fill("<b>")
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("alert").get_by_text("names no language").wait_for()
    lead.errors.clear()  # the browser itself reports the 422
    assert people.get(store, "ana").languages == ("fr",)
    assert [(act.actor, act.object) for act in ledger.acts(store, "person.languages")] == [
        (house.people["lea"].id, ana.id), (ana.id, ana.id),
    ]  # fmt: skip


def test_nobody_else_says_somebodys_languages(site: Any) -> None:
    olga = people.create(site.store, "olga", roles=("owner",))
    for name, id, status in (("ana", site.people["lea"].id, 403), ("lea", olga.id, 403), ("lea", "nobody", 404)):
        client = site(name)
        body = {"csrf": client.headers["x-csrf-token"], "languages": "de"}
        assert client.post(f"/people/{id}/languages", data=body, headers=HTML).status_code == status
        assert client.post("/account/languages", data=body | {"csrf": "no"}, headers=HTML).status_code == 403
        wrong = client.post("/account/languages", data=body | {"languages": "x" * 30}, headers=HTML)
        assert wrong.status_code == 422 and "names no language" in wrong.text
    assert people.get(site.store, "olga").languages == () and not ledger.acts(site.store, "person.languages")


def test_a_lead_who_may_answer_is_not_given_what_the_page_told(site: Any) -> None:
    store, lead = site.store, site.people["lea"]
    where = tasks.get_project(store, "desk ranking")
    people.grant(store, lead.id, "annotator", where.name)
    lead = people.get(store, "lea")
    shown_, other = tasks.behind(store, where.id, 0, 100)[:2]
    assert site("lea").get(f"/projects/desk ranking/gold/{shown_}").status_code == 200
    given = []
    while found := api.claim(store, lead, api.Claim(project="desk ranking")).items:
        given.append(found[0].task)
        answer = api.Answer(slot=found[0].slot, epoch=found[0].epoch, key=f"k-{found[0].slot}", tiers=((0, 1, 2),))
        api.submit(store, lead, api.Answers(answers=(answer,)))
    assert other in given and shown_ not in given


def test_gold_tasks_and_people_come_page_by_page(visit: Visit, house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.web.gold.LISTED", 4)
    chosen = golden(house)
    lead = Client(Direct(house.store, house.people["lea"]))
    found = lead.gold("ranking", start=4, limit=4)
    assert [each.task for each in found.tasks] == chosen[4:] and found.tasks_total == 6
    assert found.people == [] and found.people_total == 0
    page = visit("lea").go("/projects/ranking/gold")
    rows = page.locator("section[aria-labelledby=tasks] tbody tr")
    assert rows.count() == 4 and page.get_by_text("1 to 4 of 6").count() == 1
    page.get_by_role("link", name="Further").click()
    page.get_by_text("5 to 6 of 6").wait_for()
    assert rows.count() == 2
    page.get_by_role("link", name="Before").click()
    page.get_by_text("1 to 4 of 6").wait_for()
