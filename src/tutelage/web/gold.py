"""Where a lead keeps the tasks whose answer is known: which there are, how everybody did, who is paused for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import DataError, NotFound, TutelageError
from tutelage.core.records import explain
from tutelage.feedback import adjudicate, assign, check, leads
from tutelage.feedback.api import Item, Shown, status_of
from tutelage.feedback.wire import Expected, NewGold
from tutelage.measure.statistics import clopper_pearson
from tutelage.store import adjudication, answers, gold, ledger, people, tasks
from tutelage.store.answers import Annotation, Value
from tutelage.store.people import Person
from tutelage.store.settings import ProjectSettings
from tutelage.store.tasks import Project, Task
from tutelage.web import forms, render
from tutelage.web.editor import part
from tutelage.web.feedback import failure, fields_of, one
from tutelage.web.lead import gone, led_by, shown

LISTED = 50
"""Gold tasks, and tasks to choose from, on one page."""
LIFTS = 20
"""Pauses that were lifted, the newest ones."""
UNDECIDED = (adjudication.CONTESTED, adjudication.BROKEN)
"""Causes under which an adjudicated task has no one right answer."""


class Row(NamedTuple):
    """A gold task as the page shows it."""

    gold: gold.Gold
    text: str
    state: str
    expected: str


class Did(NamedTuple):
    """One answer to a gold task beside what was expected."""

    task: str
    text: str
    said: str
    expected: str
    why: str
    right: bool
    score: float
    at: int


def item_of(store: Any, where: Project, task: Task) -> Item:
    """A task as people see it, in nobody's hands."""
    form = check.open_forms(store, [task.form])[task.form]
    return Item(
        slot=f"gold-{task.id}", epoch=0, task=task.id, project=where.name, kind=task.kind,
        messages=task.messages, candidates=tuple(Shown(no=no, content=each) for no, each in enumerate(task.candidates)),
        questions=form.questions, guideline=form.guideline, form_version=form.version, lease_until=0,
        language=task.language, taxonomy=form.taxonomy, taxonomy_version=form.taxonomy_version,
    )  # fmt: skip


def written(expected: Mapping[str, Any], item: Item) -> Annotation:
    """What is expected of a task, as if somebody had answered it."""
    strengths = {each.key: each.choices for each in item.questions if each.kind == "strength"}
    tiers: dict[int, list[int]] = {}
    for no, tier in expected["ranks"]:
        if tier is not None:
            tiers.setdefault(tier, []).append(no)
    values = []
    for question, no, value in expected["values"]:
        if steps := strengths.get(question):
            values.append(Value(question, no, value=steps[int(value) - 1]))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            values.append(Value(question, no, number=float(value)))
        else:
            values.append(Value(question, no, value=value))
    return Annotation(
        "", 0, "", item.task, "", "", "", "", "", "", 1, "submitted", "", (), 0, 0,
        tiers=tuple(tuple(tiers[tier]) for tier in sorted(tiers)),
        unrankable=tuple(no for no, tier in expected["ranks"] if tier is None),
        values=tuple(values), spans=tuple(tuple(each) for each in expected["spans"]),
    )  # fmt: skip


def decision(given: Annotation) -> Annotation:
    """What an adjudicator decided, without why people differed."""
    mine = (adjudication.CAUSE, adjudication.NOTE)
    return replace(given, values=tuple(each for each in given.values if each.question not in mine))


def text_of(task: Task | None) -> str:
    """A task in a line: the last thing that is said in it."""
    return task.messages[-1].content if task and task.messages else "(erased)"


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store` and `figures`."""
    routes = APIRouter(include_in_schema=False)
    store, kept = state.store, state.figures

    def of(where: Project, id: str) -> Task:
        """A task of this project as people see it. Raises NotFound."""
        found = tasks.load(store, [id], masked=True).get(id)
        if found is None or found.project != where.id:
            raise NotFound(f"there is no task {id[:60]!r} in {where.name}", key="task")
        return found

    # which there are, and how everybody did

    def listing(
        request: Request, where: Project, status: int = 200, told: str = "", error: str = "", after: int = 0,
        start: int = 0, people_start: int = 0,
    ) -> HTMLResponse:  # fmt: skip
        every = gold.every(store, where.id, start=start, limit=LISTED)
        standings = gold.standings(store, where.id)
        known = gold.tasks_of(store, where.id)
        decided = adjudicate.overruled(adjudicate.decided(store, [where.name], None))
        ready = [id for id in decided if id not in known][:LISTED]
        more = tasks.behind(store, where.id, after, LISTED + 1)
        loaded = tasks.load(store, [*(each.task for each in every), *ready, *more[:LISTED]], masked=True)
        items = {id: item_of(store, where, task) for id, task in loaded.items()}
        rows = []
        for each in every:
            task, item = loaded[each.task], items[each.task]
            rows.append(Row(each, text_of(task), task.state, forms.said(written(each.expected, item), item)))
        assign.showed(store, render.signed_in(request), where, [*(each.task for each in every), *ready])
        lifts = [each for each in ledger.acts(store, "gold.lift") if each.body.get("project") == where.id][:LIFTS]
        who = {id: people.find(store, id) for each in lifts for id in (each.actor, each.object)}
        return shown(
            request, "gold.html", where, status, told=told[:300], error=error, rows=rows, total=len(known),
            start=start, listed=LISTED, people_start=people_start, people_total=len(standings),
            rules=ProjectSettings.of(where.settings), lifts=lifts, who=who,
            pauses=gold.pauses(store, [where.id]), standings=standings[people_start : people_start + LISTED],
            accuracy=lambda each: clopper_pearson(each.right, each.n),
            ready=[(id, text_of(loaded[id]), forms.said(decision(decided[id]), items[id])) for id in ready],
            open_tasks=[(id, text_of(loaded[id]), loaded[id].state) for id in more[:LISTED] if id not in known],
            following=loaded[more[LISTED - 1]].position if len(more) > LISTED else None, after=after,
            shortest=gold.SHORTEST, longest=gold.LONGEST,
        )  # fmt: skip

    @routes.get("/projects/{name}/gold")
    def golds(
        request: Request, name: str, told: str = "", after: int = 0, key: str = "", start: int = 0, people: int = 0
    ) -> Response:
        _, where = led_by(store, request, name)
        if key.strip():  # the task of this key, or of this id
            ids = [tasks.task_id(where.id, key.strip()[:200]), key.strip()[:60]]
            found = next((id for id in ids if id in tasks.load(store, [id])), None)
            if found is None:
                error = f"There is no task with the key {key.strip()[:60]!r} in {where.name}."
                return listing(request, where, 404, error=error)
            return gone(where, f"/gold/{found}")
        return listing(request, where, told=told, after=max(0, after), start=max(0, start), people_start=max(0, people))

    @routes.post("/projects/{name}/gold")
    async def rules(request: Request, name: str) -> Response:
        """How often gold is given, and who is paused for it."""
        person, where = led_by(store, request, name)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        try:
            settings = {
                "gold_share": part(one(fields, "share"), "share", 0, 50) / 100,
                "gold_exposure": int(part(one(fields, "exposure"), "exposure", 1, 1_000_000)),
                "gold_threshold": part(one(fields, "threshold"), "threshold", 1, 99) / 100,
                "gold_doubt": part(one(fields, "doubt"), "doubt", 51, 99.9) / 100,
            }
            await run_in_threadpool(tasks.change_settings, store, where.name, settings, person.id)
        except TutelageError as error:
            return await run_in_threadpool(listing, request, where, status_of(error), "", str(error))
        kept.forget()
        return gone(where, "/gold", "Kept: it holds from the next task on")

    # one task

    def task_page(
        request: Request, where: Project, task: Task, status: int = 200, error: str = "", **typed: Any
    ) -> HTMLResponse:
        """What is expected of a task: what was typed, else what is kept, else what was adjudicated."""
        item = item_of(store, where, task)
        assign.showed(store, render.signed_in(request), where, [task.id])
        now = next(iter(gold.every(store, where.id, task_id=task.id)), None)
        given = answers.read(store, task=task.id, purpose=adjudication.PURPOSE)
        decided = given[-1] if given and adjudicate.cause_of(given[-1]) not in UNDECIDED else None
        filled: Mapping[str, Any] = {}
        if typed:
            filled = {name: given for name, given in typed["fields"].items() if name not in ("csrf", "do")}
        elif now is not None:
            filled = forms.fields_of(written(now.expected, item), item)
        elif decided is not None:
            filled = forms.fields_of(decision(decided), item)
        view = forms.view(item)
        view = replace(view, rows=[each for each in view.rows if each.kind != "text"])  # words are not compared
        kinds = {each.kind for each in item.questions}
        texts = "text" in kinds or item.kind == "rewrite"
        body = now.expected if now else {"tolerance": 0, "enough": 0.8}
        return shown(
            request, "gold_task.html", where, status, error=error, item=item, view=view, task=task, now=now,
            draft=json.dumps(filled) if filled else "", numbers="scale" in kinds, texts=texts,
            rationale=one(typed["fields"], "rationale") if typed else now.rationale if now else "",
            tolerance=one(typed["fields"], "tolerance") if typed else f"{body['tolerance']:g}",
            enough=one(typed["fields"], "enough") if typed else f"{100 * body['enough']:g}",
            adjudicated=forms.said(decision(decided), item) if decided else "",
        )  # fmt: skip

    @routes.get("/projects/{name}/gold/{task}")
    def expect(request: Request, name: str, task: str) -> HTMLResponse:
        _, where = led_by(store, request, name)
        try:
            return task_page(request, where, of(where, task))
        except TutelageError as error:
            raise failure(error) from None

    @routes.post("/projects/{name}/gold/{task}")
    async def change(request: Request, name: str, task: str) -> Response:
        person, where = led_by(store, request, name)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        return await run_in_threadpool(changed, request, person, where, task, fields)

    def changed(request: Request, person: Person, where: Project, id: str, fields: Mapping[str, list[str]]) -> Response:
        try:
            task = of(where, id)
            if one(fields, "do") == "retire":
                leads.retire_gold(store, person, where, task.id)
                kept.forget()
                return gone(where, "/gold", "Nobody is given this task as gold any more; its results stay")
        except TutelageError as error:
            raise failure(error) from None
        try:
            leads.mark_gold(store, person, where, asked(fields, item_of(store, where, task)))
        except ValidationError as error:
            return task_page(request, where, task, 422, explain(error)[1], fields=fields)
        except (ValueError, OverflowError):
            return task_page(request, where, task, 422, "a field holds no number where one is due", fields=fields)
        except TutelageError as error:
            return task_page(request, where, task, status_of(error), str(error), fields=fields)
        kept.forget()
        return gone(where, "/gold", "Kept: it is given as gold from now on")

    def asked(fields: Mapping[str, list[str]], item: Item) -> NewGold:
        """What a form says is expected. Raises DataError, ValidationError and ValueError."""
        rationale = one(fields, "rationale").strip()
        if len(rationale) < gold.SHORTEST:
            raise DataError("say why this is the right answer", key="rationale")
        expected = None
        if one(fields, "do") != "adjudicated":
            given = forms.answer_of(item, fields, key="expected", epoch=0, status="submitted")
            expected = Expected(**{name: getattr(given, name) for name in Expected.model_fields})
        return NewGold(
            task=item.task, answer=expected, rationale=rationale, reserve=bool(one(fields, "reserve")),
            tolerance=part(one(fields, "tolerance", "0"), "tolerance", 0, 1e9),
            enough=part(one(fields, "enough", "80"), "enough", 1, 100) / 100,
        )  # fmt: skip

    # who is paused

    def whom(where: Project, pseudonym: str) -> gold.Standing:
        found = next((each for each in gold.standings(store, where.id) if each.pseudonym == pseudonym), None)
        if found is None:
            raise NotFound(f"{pseudonym[:40]} has answered no gold task of {where.name}", key="person")
        return found

    def person_page(
        request: Request, where: Project, who: gold.Standing, status: int = 200, error: str = ""
    ) -> HTMLResponse:
        """One person's answers to gold tasks beside what was expected, newest first; wrong ones are what to look at."""
        marks = gold.scores(store, who.person, where.id)
        every = {each.task: each for each in gold.every(store, where.id)}
        given = answers.read(store, where.name, person=who.person, purpose=gold.PURPOSE, limit=LISTED)
        loaded = tasks.load(store, sorted({each.task for each in given}), masked=True)
        did = []
        for each in reversed(given):
            if each.id not in marks or each.task not in every:
                continue
            task, known = loaded[each.task], every[each.task]
            item = item_of(store, where, task)
            told, expected = adjudicate.masked(where, each), written(known.expected, item)
            row = (each.task, text_of(task), forms.said(told, item), forms.said(expected, item), known.rationale)
            did.append(Did(*row, *marks[each.id], each.at))
        assign.showed(store, render.signed_in(request), where, [each.task for each in did])
        stopped = next((each for each in gold.pauses(store, [where.id]) if each.person == who.person), None)
        return shown(
            request, "gold_person.html", where, status, who=who, did=did, pause=stopped, error=error,
            rules=ProjectSettings.of(where.settings), accuracy=clopper_pearson(who.right, who.n),
            shortest=gold.SHORTEST, longest=gold.LONGEST,
        )  # fmt: skip

    @routes.get("/projects/{name}/gold/people/{pseudonym}")
    def did(request: Request, name: str, pseudonym: str) -> Response:
        _, where = led_by(store, request, name)
        try:
            return person_page(request, where, whom(where, pseudonym))
        except TutelageError as error:
            raise failure(error) from None

    @routes.post("/projects/{name}/gold/people/{pseudonym}")
    async def lift(request: Request, name: str, pseudonym: str) -> Response:
        person, where = led_by(store, request, name)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        return await run_in_threadpool(lifted, request, person, where, pseudonym, one(fields, "reason").strip())

    def lifted(request: Request, person: Person, where: Project, pseudonym: str, reason: str) -> Response:
        try:
            who = whom(where, pseudonym)
        except TutelageError as error:
            raise failure(error) from None
        try:
            gold.lift(store, who.person, where.id, person.id, reason)
        except TutelageError as error:
            return person_page(request, where, who, status_of(error), str(error))
        kept.forget()
        return gone(where, "/gold", f"{who.pseudonym} is given tasks again")

    return routes
