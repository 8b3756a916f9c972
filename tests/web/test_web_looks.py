"""Every page of the console for everybody who sees it: light and dark, wide and narrow, with something on it."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from test_web_gold import decide, golden, split, work
from test_web_people_pages import crowd

from tests.report.conftest import invented
from tests.web import looks
from tests.web.test_web_pages import SCREENS, picture
from tutelage import worker
from tutelage.core.events import JsonLines, Reporter
from tutelage.core.records import Message
from tutelage.feedback import api
from tutelage.feedback.client import Client, Direct
from tutelage.store import access, incidents, people, qualifications, takeover, tasks, traffic

Visit = Any
NOT_PAGES = {
    "/static/{name}", "/login/provider", "/login/return", "/runs/table", "/projects/-/making/{id}/state",
    "/operate/live", "/review/conversations/{name}/turns",
    "/projects/{name}/export", "/projects/{name}/export.jsonl", "/health", "/metrics", "/openapi.json",
    "/reports/{name}",  # a file of its own, looked at in tests/report
}  # fmt: skip
PLAIN = {
    "home-annotator": ("ana", "/"),
    "home-reviewer": ("rio", "/"),
    "home-lead": ("lea", "/"),
    "home-adjudicator": ("ada", "/"),
    "home-auditor": ("aud", "/"),
    "home-red-teamer": ("red", "/"),
    "home-nothing": ("new", "/"),
    "task-ranking": ("ana", "/task/next?project=desk%20ranking"),
    "task-scoring": ("ana", "/task/next?project=desk%20scoring"),
    "task-review": ("rio", "/task/next?project=review"),
    "task-adjudicate": ("ada", "/task/next?project=disputed"),
    "nothing": ("ana", "/task/next?project=ranking"),
    "history": ("ana", "/history"),
    "history-empty": ("new", "/history"),
    "chat": ("ana", "/chat"),
    "dialogue": ("ana", "/dialogue/talks"),
    "login": ("", "/login"),
    "account": ("ana", "/account"),
    "account-lead": ("lea", "/account"),
    "profile": ("ana", "/account/profile"),
    "profile-empty": ("new", "/account/profile"),
    "projects": ("lea", "/projects"),
    "projects-auditor": ("aud", "/projects"),
    "project-new": ("lea", "/projects/-/new"),
    "project-from-a-model": ("lea", "/projects/-/new?source=model"),
    "project": ("lea", "/projects/crowd"),
    "project-ranking": ("lea", "/projects/ranking"),
    "project-adjudicator": ("ada", "/projects/disputed"),
    "project-agreement": ("lea", "/projects/crowd/agreement"),
    "project-groups": ("lea", "/projects/crowd/people"),
    "project-disagreements": ("lea", "/projects/disputed/disagreements"),
    "project-adjudication": ("lea", "/projects/disputed/adjudication"),
    "project-adjudication-auditor": ("aud", "/projects/disputed/adjudication"),
    "project-gold": ("lea", "/projects/ranking/gold"),
    "project-gold-empty": ("lea", "/projects/disputed/gold"),
    "project-form": ("lea", "/projects/desk%20scoring/form"),
    "project-form-auditor": ("aud", "/projects/desk%20scoring/form"),
    "project-settings": ("lea", "/projects/ranking/settings"),
    "people": ("lea", "/people"),
    "people-auditor": ("aud", "/people"),
    "qualifications": ("lea", "/people/qualifications"),
    "qualifications-auditor": ("aud", "/people/qualifications"),
    "reveals": ("lea", "/people/reveals"),
    "review": ("lea", "/review"),
    "review-reviewer": ("rio", "/review"),
    "decisions": ("lea", "/review/decisions"),
    "redteam": ("red", "/redteam"),
    "runs": ("lea", "/runs"),
    "reports": ("lea", "/reports"),
    "operate": ("lea", "/operate"),
    "operate-hour": ("lea", "/operate?span=hour"),
    "incidents": ("lea", "/incidents"),
    "incidents-auditor": ("aud", "/incidents?show=all"),
    "operate-auditor": ("aud", "/operate"),
    "not-there": ("lea", "/people/nobody"),
    "not-allowed": ("ana", "/projects"),
}
"""Name -> (who looks, where)."""


def furnish(house: Any) -> dict[str, tuple[str, str]]:
    """Something to see on every page; the addresses that are not known before."""
    store, lead = house.store, house.people["lea"]
    masked = crowd(house)
    for name, roles in (("ada", ("adjudicator",)), ("aud", ("auditor",)), ("red", ("red_teamer",)), ("new", ())):
        house.people[name] = people.create(store, name, roles=roles)
    chosen = golden(house)
    ana = house.people["ana"]
    work(store, ana, "ranking", [[2], [1], [0]], 20)
    split(house, "disputed")
    client = Client(Direct(store, lead))
    client.adjudicate("disputed", above=0.1)
    decide(store, house.people["ada"], "disputed")
    qualifications.grant(store, ana.id, "ferries", lead.id)
    tasks.change_settings(store, "ranking", {"qualifications": ["ferries", "old Velic"]}, lead.id)
    settings = {"dialogue": {"generators": ["fake:echo"]}}
    api.create_project(store, lead, api.NewProject(name="talks", kind="dialogue", settings=settings))  # type: ignore[arg-type]
    made = invented(house.root)
    for name, done in (("pretrain", 100), ("finetune", 40)):
        say = Reporter(name, "k", (JsonLines(house.root.events / f"{name}.jsonl"),), every=0)
        say.say("start")
        say.progress(done, 100, "steps", loss=2.4)
        if done == 100:
            say.say("done")
    job = worker.ask_alone(store, "collect@drawn", {"project": "drawn"})
    token = access.invite(store, house.people["new"].id, by=lead.id)
    model, incident = made["pretrain"], appealed(house)
    mine = [each.conversation for each in traffic.requests(store, newest_first=True, limit=2)]
    takeover.begin(store, mine[1], by=lead.id, reason="the user asked for a person")
    takeover.say(store, mine[1], Message(role="assistant", content="I am Lea. I will look."), lead.id)
    return {
        "masked": ("rio", f"/tasks/{masked}/masked"),
        "person": ("lea", f"/people/{ana.id}"),
        "person-auditor": ("aud", f"/people/{ana.id}"),
        "person-program": ("lea", f"/people/{people.get(store, 'robot').id}"),
        "gold-task": ("lea", f"/projects/ranking/gold/{chosen[0]}"),
        "gold-person": ("lea", f"/projects/ranking/gold/people/{ana.pseudonym}"),
        "making": ("lea", f"/projects/-/making/{job}"),
        "artifact": ("lea", f"/artifacts/{model.kind}/{model.id}"),
        "welcome": ("", f"/welcome/{token}"),
        "incident": ("lea", f"/incidents/{incident}"),
        "incident-auditor": ("aud", f"/incidents/{incident}"),
        "conversation": ("rio", f"/review/conversations/{mine[0]}"),
        "conversation-taken": ("lea", f"/review/conversations/{mine[1]}"),
        "conversation-auditor": ("aud", f"/review/conversations/{mine[1]}"),
        "task-again": ("ana", f"/task/{client_slot(house)}"),
    }


def appealed(house: Any) -> str:
    """An incident that a user's appeal has opened, and somebody has noted something about."""
    asked = traffic.requests(house.store, limit=1)[0]
    traffic.add_feedback(house.store, asked.id, "appeal", text="That was <b>my own</b> parcel.", actor="u1")
    (found,) = incidents.every(house.store)
    incidents.note(house.store, found.id, "The parcel was theirs: the rule is too strict.", house.people["lea"].id)
    return found.id


def client_slot(house: Any) -> str:
    """A place that ana has answered."""
    found: list[dict[str, Any]] = api.history(house.store, house.people["ana"], "disputed")
    return str(found[0]["slot"])


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_every_page_is_seen_by_whoever_may_and_can_be_read(
    visit: Visit, house: Any, scheme: str, width: int, shots: Any
) -> None:
    pages = {**PLAIN, **furnish(house)}
    routes = {
        route.path: route.path_regex
        for route in house.app.routes
        if "GET" in (getattr(route, "methods", None) or ()) and not route.path.startswith(("/api/", "/v1/", "/guard/"))
    }
    paths = [path.partition("?")[0] for _, path in pages.values()]
    unseen = [path for path, regex in routes.items() if not any(regex.match(unquote(each)) for each in paths)]
    assert set(unseen) <= NOT_PAGES, f"pages that nobody has looked at: {sorted(set(unseen) - NOT_PAGES)}"
    windows: dict[str, Any] = {}
    wrong: dict[str, list[str]] = {}
    for name, (who, path) in pages.items():
        if who not in windows:
            windows[who] = visit(who or "ana", scheme=scheme, width=width)
            if not who:
                windows[who].context.clear_cookies()
        page = windows[who].go(path)
        picture(page, shots / f"{name}-{scheme}-{width}.png")
        if found := looks.problems(page):
            wrong[name] = found
        windows[who].errors.clear() if name.startswith("not-") else None  # the browser itself reports 403 and 404
    assert not wrong, "\n".join(f"{name}: {'; '.join(found)}" for name, found in wrong.items())


@pytest.mark.slow
def test_every_place_of_every_page_is_reached_by_the_tabulator_and_shows_it(visit: Visit, house: Any) -> None:
    windows: dict[str, Any] = {}
    wrong: dict[str, list[str]] = {}
    for name, (who, path) in {**PLAIN, **furnish(house)}.items():
        if not who or name.startswith("not-"):
            continue
        windows[who] = windows.get(who) or visit(who)
        if found := looks.unreached(windows[who].go(path)):
            wrong[name] = found
    assert not wrong, "\n".join(f"{name}: {'; '.join(found)}" for name, found in wrong.items())


def test_what_is_wrong_is_found(visit: Visit) -> None:
    page = visit("ana").go("/account")
    assert looks.problems(page) == [] and looks.unreached(page) == []
    page.evaluate(
        """() => {
          const [first, second] = document.querySelectorAll("header nav a");
          first.tabIndex = -1; second.style.outline = "none";
          document.querySelector("h2").outerHTML = "<h4>Roles</h4>";
          document.querySelector("label[for=label]").remove();
          document.querySelector("p").style.color = "#999"; document.querySelector("p").style.backgroundColor = "#aaa";
          const wide = document.createElement("p"); wide.textContent = "wide"; wide.style.minWidth = "3000px";
          document.querySelector("main").append(wide);
        }"""
    )
    found = "; ".join(looks.problems(page))
    for each in (
        "contrast 1.",
        "no label: label",
        "a heading of level 4",
        "sticks out: p",
        "pixels wider",
        "tab order: a",
    ):
        assert each in found, each
    stops = "; ".join(looks.unreached(page))
    assert "not reached: A" in stops and "no ring on A" in stops
