"""What can be asked of the feedback rooms: one table of requests, and who answers each.

The web mounts ROUTES, tests and in-process clients call `dispatch`: both go through the same functions and checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tutelage.core.errors import DataError, NotFound, TutelageError
from tutelage.core.records import explain
from tutelage.feedback import adjudicate, api, assign, layout, leads, webhooks
from tutelage.feedback.api import LEADERS, Forbidden, status_of
from tutelage.feedback.export import By, export
from tutelage.feedback.rows import CONSUMERS
from tutelage.feedback.wire import (
    Answers,
    Claim,
    Claimed,
    Draft,
    GoldView,
    GoldViews,
    Held,
    History,
    Kept,
    Languages,
    Lift,
    NewGold,
    NewProject,
    NewTasks,
    Progress,
    Projects,
    ProjectView,
    Qualifications,
    Settings,
    Spoken,
    Submitted,
    TaskIds,
    Which,
    WhichGold,
    Wire,
    storable,
)
from tutelage.store import tasks
from tutelage.store.engine import Store
from tutelage.store.people import Person

BASE = "/api/feedback"

Call = Callable[[Store, Person, Mapping[str, Any], Any], Any]


@dataclass(frozen=True)
class File:
    """An answer that is a file and no JSON. `facts` (plain text) travel in headers `x-NAME`."""

    name: str
    media: str
    body: bytes
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """One request that can be made. `call(store, person, parameters of path and query, body)` answers it with a model
    of the wire, or (`answer` is File) with a file."""

    method: str
    path: str
    scope: str
    call: Call
    answer: type[BaseModel] | type[File]
    body: type[BaseModel] | None = None
    summary: str = ""
    query: type[BaseModel] | None = None
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        named = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.path))
        object.__setattr__(self, "pattern", re.compile(named + r"\Z"))


class Wanted(Wire):
    """Whose answers are exported, and how."""

    people: str = ""
    """Kinds of people, with commas between them: `live`, `simulated`, `replayed`. Empty takes the only kind there is;
    naming several pools them."""
    by: By = "task"
    """`task` joins everybody's answers, `person` keeps each person's apart."""
    accept: str = ""
    """Internal licence classes that may be passed on, with commas between them; recorded."""


def _export(store: Store, person: Person, at: Mapping[str, Any], _: Any) -> File:
    where = tasks.get_project(store, at["project"])
    if not person.has(*LEADERS, "auditor", project=where.id):
        raise Forbidden("answers are exported by a lead", key="role", todo="Ask one of them")
    form = at["format"]
    if form not in get_args(layout.Format):
        todo = f"One of: {', '.join(get_args(layout.Format))}"
        raise DataError(f"there is no format {form!r}", key="format", todo=todo)
    people, accept = _listed(at["people"]), _listed(at["accept"])
    made = export(store, where.name, at["consumer"], people=people, by=at["by"], accept=accept, actor=person.id)
    assign.showed(store, person, where)
    facts = {"rows": str(len(made.rows)), "people": made.people, "licences": ",".join(made.licences)}
    facts["dropped"] = json.dumps(made.dropped)
    return File(f"{made.consumer}.{form}", layout.MEDIA[form], layout.packed(made, form), facts)


def _removed(store: Store, person: Person, webhook: str) -> Kept:
    webhooks.remove(store, person, webhook)
    return Kept(ok=True)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        f"{BASE}/projects",
        "feedback:read",
        lambda store, who, at, body: Projects(projects=api.projects(store, who)),
        Projects,
        summary="The projects you may work in",
    ),
    Route(
        "POST",
        f"{BASE}/projects",
        "feedback:lead",
        lambda store, who, at, body: api.create_project(store, who, body),
        ProjectView,
        NewProject,
        "Make a project, or a new version of its form",
    ),
    Route(
        "GET",
        f"{BASE}/projects/{{project}}/progress",
        "feedback:read",
        lambda store, who, at, body: api.progress(store, who, at["project"]),
        Progress,
        summary="Where a project stands",
    ),
    Route(
        "POST",
        f"{BASE}/projects/{{project}}/tasks",
        "feedback:lead",
        lambda store, who, at, body: TaskIds(tasks=api.add_tasks(store, who, at["project"], body.tasks)),
        TaskIds,
        NewTasks,
        "Add tasks; sending them again changes nothing",
    ),
    Route(
        "POST",
        f"{BASE}/claim",
        "feedback:answer",
        lambda store, who, at, body: api.claim(store, who, body),
        Claimed,
        Claim,
        "Hold the next tasks",
    ),
    Route(
        "POST",
        f"{BASE}/answers",
        "feedback:answer",
        lambda store, who, at, body: api.submit(store, who, body),
        Submitted,
        Answers,
        "Store answers, and perhaps hold the next tasks",
    ),
    Route(
        "PUT",
        f"{BASE}/drafts/{{slot}}",
        "feedback:answer",
        lambda store, who, at, body: Kept(ok=api.save_draft(store, who, at["slot"], body)),
        Kept,
        Draft,
        "Keep an unfinished answer",
    ),
    Route(
        "POST",
        f"{BASE}/slots/{{slot}}/return",
        "feedback:answer",
        lambda store, who, at, body: Kept(ok=api.give_back(store, who, at["slot"], at["epoch"])),
        Kept,
        summary="Return a task unanswered",
        query=Held,
    ),
    Route(
        "GET",
        f"{BASE}/history",
        "feedback:answer",
        lambda store, who, at, body: History(answers=api.history(store, who, at["project"], at["limit"])),
        History,
        summary="Your own answers, newest first",
        query=Which,
    ),
    Route(
        "PUT",
        f"{BASE}/projects/{{project}}/settings",
        "feedback:lead",
        lambda store, who, at, body: api.views(
            store, [leads.change(store, who, api.led(store, who, at["project"]), body.settings)]
        )[0],
        ProjectView,
        Settings,
        "Change some settings of a project",
    ),
    Route(
        "GET",
        f"{BASE}/projects/{{project}}/gold",
        "feedback:lead",
        lambda store, who, at, body: leads.view_gold(
            store, who, api.led(store, who, at["project"]), at["start"], at["limit"]
        ),
        GoldViews,
        summary="The gold tasks, and how everybody did on them",
        query=WhichGold,
    ),
    Route(
        "POST",
        f"{BASE}/projects/{{project}}/gold",
        "feedback:lead",
        lambda store, who, at, body: leads.mark_gold(store, who, api.led(store, who, at["project"]), body),
        GoldView,
        NewGold,
        "Make a task gold, or say anew what is expected of it",
    ),
    Route(
        "POST",
        f"{BASE}/projects/{{project}}/gold/{{task}}/retire",
        "feedback:lead",
        lambda store, who, at, body: leads.retire_gold(store, who, api.led(store, who, at["project"]), at["task"]),
        Kept,
        summary="Give a gold task to nobody any more",
    ),
    Route(
        "GET",
        f"{BASE}/projects/{{project}}/adjudications",
        "feedback:lead",
        lambda store, who, at, body: adjudicate.view(store, api.led(store, who, at["project"])),
        adjudicate.Adjudications,
        summary="Where adjudication stands, why people differed, and what was proposed for the guideline",
    ),
    Route(
        "POST",
        f"{BASE}/projects/{{project}}/adjudications",
        "feedback:lead",
        lambda store, who, at, body: adjudicate.open_by(store, who, api.led(store, who, at["project"]), body),
        adjudicate.AdjudicationsOpened,
        adjudicate.NewAdjudications,
        "Ask for an adjudicator, in tasks that are named or those on which people differ most",
    ),
    Route(
        "POST",
        f"{BASE}/projects/{{project}}/people/{{person}}/lift",
        "feedback:lead",
        lambda store, who, at, body: leads.lift(
            store, who, api.led(store, who, at["project"]), at["person"], body.reason
        ),
        Kept,
        Lift,
        "Let somebody go on whose answers you have looked at, and say why",
    ),
    Route(
        "GET",
        f"{BASE}/languages",
        "feedback:answer",
        lambda store, who, at, body: api.languages(store, who),
        Languages,
        summary="The languages that you can judge",
    ),
    Route(
        "PUT",
        f"{BASE}/languages",
        "feedback:answer",
        lambda store, who, at, body: api.set_languages(store, who, body.languages),
        Languages,
        Spoken,
        "Say which languages you can judge",
    ),
    Route(
        "GET",
        f"{BASE}/people/{{person}}/languages",
        "feedback:lead",
        lambda store, who, at, body: api.languages(store, who, at["person"]),
        Languages,
        summary="The languages that somebody can judge",
    ),
    Route(
        "PUT",
        f"{BASE}/people/{{person}}/languages",
        "feedback:lead",
        lambda store, who, at, body: api.set_languages(store, who, body.languages, at["person"]),
        Languages,
        Spoken,
        "Say which languages somebody can judge",
    ),
    Route(
        "GET",
        f"{BASE}/people/{{person}}/qualifications",
        "feedback:lead",
        lambda store, who, at, body: leads.qualified(store, api.leading(who), at["person"]),
        Qualifications,
        summary="What somebody has shown to be able to judge",
    ),
    Route(
        "PUT",
        f"{BASE}/people/{{person}}/qualifications/{{name}}",
        "feedback:lead",
        lambda store, who, at, body: leads.qualify(store, api.leading(who), at["person"], at["name"]),
        Qualifications,
        summary="Grant a qualification",
    ),
    Route(
        "DELETE",
        f"{BASE}/people/{{person}}/qualifications/{{name}}",
        "feedback:lead",
        lambda store, who, at, body: leads.disqualify(store, api.leading(who), at["person"], at["name"]),
        Qualifications,
        summary="Take a qualification away",
    ),
    Route(
        "GET",
        f"{BASE}/projects/{{project}}/export/{{consumer}}.{{format}}",
        "feedback:lead",
        _export,
        File,
        summary=f"Answers as rows for one of {', '.join(CONSUMERS)}; zip holds a Hugging Face data set's folder",
        query=Wanted,
    ),
    Route(
        "GET",
        f"{BASE}/webhooks",
        "feedback:lead",
        lambda store, who, at, body: webhooks.listed(store, who),
        webhooks.Webhooks,
        summary="The addresses that are told of events, and how far they were told",
    ),
    Route(
        "POST",
        f"{BASE}/webhooks",
        "feedback:lead",
        lambda store, who, at, body: webhooks.add(store, who, body),
        webhooks.WebhookMade,
        webhooks.NewWebhook,
        "Tell an address of events; the answer holds the secret that signs them, this once",
    ),
    Route(
        "DELETE",
        f"{BASE}/webhooks/{{webhook}}",
        "feedback:lead",
        lambda store, who, at, body: _removed(store, who, at["webhook"]),
        Kept,
        summary="Tell an address nothing more",
    ),
    Route(
        "POST",
        f"{BASE}/webhooks/{{webhook}}/retry",
        "feedback:lead",
        lambda store, who, at, body: webhooks.retry(store, who, at["webhook"]),
        webhooks.Retried,
        summary="Tell again what was given up",
    ),
)


def dispatch(
    store: Store,
    person: Person,
    method: str,
    path: str,
    body: Any = None,
    query: Mapping[str, str] | None = None,
    routes: Iterable[Route] | None = None,
) -> tuple[int, Any]:
    """Answer a request without a web framework: (status, JSON or File). The body is parsed JSON, the path is not
    encoded; `routes` are those of this file unless others are given."""
    for route in ROUTES if routes is None else routes:
        found = route.pattern.match(path)
        if route.method != method or not found:
            continue
        try:
            at: dict[str, Any] = found.groupdict()
            storable([at, dict(query or {}), body])
            if route.query:
                at |= route.query.model_validate(dict(query or {})).model_dump()
            sent = route.body.model_validate(body) if route.body else None
            made = route.call(store, person, at, sent)
        except ValidationError as error:
            key, message = explain(error)
            return 422, DataError(message, key=key).as_dict()
        except TutelageError as error:
            return status_of(error), error.as_dict()
        return 200, made if isinstance(made, File) else made.model_dump(mode="json")
    return 404, NotFound(f"there is no {method} {path}").as_dict()
