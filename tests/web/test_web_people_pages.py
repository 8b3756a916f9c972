"""The pages about people in a real browser: filled, by keyboard alone, light and dark, wide and narrow."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.test_web_pages import SCREENS, shown
from tutelage.core.records import Message
from tutelage.feedback import api
from tutelage.govern import diversity
from tutelage.store import access, people, profiles, reveal

Visit = Any


def crowd(house: Any) -> str:
    """Twenty-four people of two groups who disagree on a task, a report on them, and a text with something masked."""
    store, lead = house.store, house.people["lea"]
    crew = people.create_many(store, [f"p{n:02}" for n in range(24)])
    people.create_many(store, [f"guest {n:02}" for n in range(40)], roles=("reviewer",))  # more than one page of people
    for at, person in enumerate(crew):
        said = {"gender": "woman" if at < 12 else "man", "native_language": ("Velic", "German", "English")[at % 3]}
        profiles.set_profile(store, person.id, said)
    coverage = {"gender": {"woman": 0.5, "non-binary": 0.05}, "native_language": {"Velic": 0.5}}
    form = api.Form.model_validate({"questions": [], "guideline": "Better first."})
    project = api.NewProject(name="crowd", kind="ranking", form=form, per_task=24, settings={"coverage": coverage})
    api.create_project(store, lead, project)
    new = [
        api.NewTask(
            key=str(n),
            kind="ranking",
            messages=(Message(role="user", content=f"{n}: what do I write to ada.byron@example.org?"),),
            candidates=(
                api.NewCandidate(content="Dear Ada, good morning.", producer="m"),
                api.NewCandidate(content="Oi.", producer="m"),
            ),
        )
        for n in range(12)
    ]
    tasks = api.add_tasks(store, lead, "crowd", new)
    for at, person in enumerate(crew):
        while items := api.claim(store, person, api.Claim(project="crowd", count=12)).items:
            given = tuple(
                api.Answer(
                    slot=each.slot,
                    epoch=each.epoch,
                    key=f"key-{each.slot}",
                    tiers=((0,), (1,)) if (at < 12) == (int(each.task[-4:], 16) % 7 != 0) else ((1,), (0,)),
                )
                for each in items
            )
            api.submit(store, person, api.Answers(answers=given))
    diversity.publish(store, "crowd", by=lead.id)
    _, found = reveal.masked(store, tasks[0])
    reveal.reveal(store, tasks[0], found[0].id, "The answer depends on the address", by=house.people["rio"].id)
    people.create(store, "robot", kind="service", roles=("service",))
    people.set_status(store, crew[0].id, "inactive", by=lead.id)
    access.issue_token(store, house.people["ana"].id, ("feedback:read", "feedback:answer"), "my notebook", 90)
    house.cookie("ana")
    profiles.set_profile(
        store, house.people["ana"].id, {"gender": "woman", "region": "on a small island far from everywhere"}, "1"
    )
    return tasks[0]


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_pages_about_people_fit(visit: Visit, house: Any, scheme: str, width: int, shots: Any) -> None:
    task = crowd(house)
    bob = people.get(house.store, "p03").id
    pages = {
        "account-full": ("ana", "/account"),
        "profile-full": ("ana", "/account/profile"),
        "people-full": ("lea", "/people"),
        "people-next": ("lea", "/people?after=p03&q=p"),
        "people-nobody": ("lea", "/people?q=nobody+of+this+name"),
        "person": ("lea", f"/people/{bob}"),
        "reveals-full": ("lea", "/people/reveals"),
        "groups-full": ("lea", "/projects/crowd/people"),
        "masked": ("rio", f"/tasks/{task}/masked"),
    }
    windows = {name: visit(name, scheme=scheme, width=width) for name in ("ana", "rio", "lea")}
    for name, (who, path) in pages.items():
        page = windows[who].go(path)
        assert page.locator("h1").count() == 1, name
        shown(page, name, scheme, width, shots)


def test_a_profile_by_keyboard_alone(visit: Visit, house: Any, shots: Any) -> None:
    window = visit("rio")
    page = window.go("/account/profile")
    page.get_by_label("Gender", exact=True).focus()
    page.keyboard.type("non")
    page.keyboard.press("Tab")
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.type("of the north")
    page.get_by_role("checkbox").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    held = profiles.profile(house.store, house.people["rio"].id)
    assert held is not None and held.attributes == {"gender": "non-binary", "ethnicity": "of the north"}
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Withdraw").focus()
    with page.expect_navigation():
        page.keyboard.press("Enter")
    held = profiles.profile(house.store, house.people["rio"].id)
    assert held is not None and not held.attributes


def test_inviting_by_keyboard_alone(visit: Visit, house: Any) -> None:
    page = visit("lea").go("/people")
    page.get_by_role("button", name="Invite").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("newcomer")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "/welcome/" in page.locator("#secret").input_value()
    assert people.find(house.store, "newcomer") is not None
