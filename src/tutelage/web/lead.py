"""Where a lead watches a project: progress, agreement and people, disagreements side by side, its form and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from tutelage.core.errors import DataError, NotFound, Refused, TutelageError
from tutelage.corpus.catalog import INTERNAL
from tutelage.feedback import adjudicate, api, desk, disagreement, disputes, report
from tutelage.feedback.adjudicate import hidden
from tutelage.feedback.figures import Read
from tutelage.feedback.routes import BASE, File, dispatch
from tutelage.measure.statistics import Interval
from tutelage.report import charts
from tutelage.store import adjudication, answers, gold, ledger, oversight, people, qualifications, tasks
from tutelage.store.people import Person
from tutelage.store.settings import ProjectSettings
from tutelage.store.tasks import Project
from tutelage.web import editor, render
from tutelage.web.editor import QUESTION_KINDS, Draft, QuestionFields, named, whole
from tutelage.web.feedback import download, failure, fields_of, one
from tutelage.web.projects import MAKERS, WATCHERS

CONSUMERS = {
    "annotations": "tasks with every answer as it was given",
    "sft": "fine-tuning (demonstrations)",
    "reward": "a reward model (rankings, scores)",
    "dpo": "preference pairs (DPO)",
    "kto": "good and bad answers (KTO)",
    "classifier": "a classifier (labels)",
    "evaluation": "evaluation (items with references)",
    "consensus": "what people together say, with how certain it is",
}
"""What an export is for, as the API names it."""
FORMATS = {"jsonl": "JSON lines", "parquet": "Parquet", "zip": "Hugging Face folder"}
ROLES = ("annotator", "reviewer", "adjudicator", "lead", "auditor")
"""Roles that a lead gives in one project."""
STUCK = 20
"""Stuck tasks on one page."""
SUGGESTED = 20
"""Names to choose from, where somebody is to be asked; the others are found by letters of their name."""


def daily_chart(daily: dict[str, Sequence[tuple[float, float]]]) -> Markup:
    """Answers of the last two weeks, day by day, a line for each kind of people."""
    series = [charts.Series(kind, points) for kind, points in daily.items()]
    if not series:
        return Markup("")
    return Markup(charts.line(series, title="Answers per day", x_label="days from now", zero=True))


def drawn(figure: Interval | None, span: tuple[float, float] = (-1.0, 1.0)) -> Markup:
    """A figure and its interval as a drawing, for a table's column."""
    if figure is None or figure.value is None:
        return Markup("")
    return Markup(charts.interval(figure.value, figure.low, figure.high, span=span))


# what every page of a project begins with


def led_by(store: Any, request: Request, name: str, *roles: str) -> tuple[Person, Project]:
    """Who asks, and the project. Refuses (403) whoever does not hold one of the roles (else: leads) there."""
    render.signed_in(request)
    try:
        where = tasks.get_project(store, name)
    except TutelageError as error:
        raise failure(error) from None
    return render.signed_in(request, *(roles or MAKERS), project=where.id), where


def shown(request: Request, template: str, where: Project, status: int = 200, **values: Any) -> HTMLResponse:
    """A page of one project, under its tabs."""
    person = render.signed_in(request)
    may = person.has(*MAKERS, project=where.id)
    return render.page(request, template, status, project=where, base=address(where), may=may, **values)


def address(where: Project, page: str = "", **query: Any) -> str:
    """Where a page of a project stands."""
    asked = f"?{urlencode(query)}" if query else ""
    return f"/projects/{quote(where.name, safe='')}{page}{asked}"


def gone(where: Project, page: str = "", told: str = "") -> Response:
    """On to a page of the project, with a word of what was done."""
    return render.see(address(where, page, told=told) if told else address(where, page))


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store` and `figures`."""
    routes = APIRouter(include_in_schema=False)
    store, kept = state.store, state.figures
    samples = desk.Kept(most=8)  # each holds thousands of answers

    def led(request: Request, name: str, *roles: str) -> tuple[Person, Project]:
        return led_by(store, request, name, *roles)

    def standing(where: Project) -> desk.Standing:
        return kept.get(("standing", where.id), lambda: desk.standing(store, where))  # type: ignore[no-any-return]

    def words(where: Project, kind: str, before: int | None = None) -> Read:
        return samples.get(("sample", where.id, kind, before), lambda: desk.sample(store, where.name, kind, before))

    # progress

    @routes.get("/projects/{name}")
    def progress(request: Request, name: str, told: str = "", after: int = 0, who: str = "") -> HTMLResponse:
        _, where = led(request, name, *WATCHERS)
        able = desk.answerers(store, where) if oversight.stuck(store, where.id, after, 1) else []
        named = [each for each in able if who.strip().lower() in each.name.lower()]
        moment = standing(where)
        stuck = oversight.stuck(store, where.id, after, STUCK + 1)
        loaded = tasks.load(store, [each.task for each in stuck], masked=True)
        return shown(
            request, "project.html", where, standing=moment, chart=daily_chart(dict(moment.daily)), told=told[:300],
            stuck=[(each, said(where, each), loaded[each.task]) for each in stuck[:STUCK] if each.task in loaded],
            more=stuck[STUCK - 1].position if len(stuck) > STUCK else None,
            reasons=kept.get(("reasons", where.id), lambda: passed_over(where)),
            able=len(able), members=named[:SUGGESTED], named=len(named), who=who.strip()[:120], after=after,
            consumers=CONSUMERS, formats=FORMATS, paused=len(gold.pauses(store, [where.id])),
        )  # fmt: skip

    def said(where: Project, each: oversight.Stuck) -> list[tuple[str, str, str]]:
        return [(who, status, hidden(where, reason)) for who, status, reason in each.said]

    def passed_over(where: Project) -> list[oversight.Passed]:
        return [replace(each, reason=hidden(where, each.reason)) for each in oversight.reasons(store, where.id)]

    @routes.post("/projects/{name}/tasks/{task}")
    async def mend(request: Request, name: str, task: str) -> Response:
        person, where = led(request, name)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        try:
            told = await run_in_threadpool(mended, person, where, task, fields)
        except TutelageError as error:
            raise failure(error) from None
        kept.forget()
        return gone(where, told=told)

    def mended(person: Person, where: Project, task: str, fields: dict[str, list[str]]) -> str:
        if oversight.project_of(store, task) != where.id:
            raise NotFound("this task is not of this project", key="task")
        match one(fields, "do"):
            case "reopen":
                places = oversight.reopen(store, task, person.id)
                return f"{places} further {'people are' if places > 1 else 'person is'} asked"
            case "assign":
                who = people.get(store, one(fields, "person"))
                if not who.has(*api.answerers(where), project=where.id):
                    raise DataError(f"{who.name} may not answer here", key="person", todo="Give them a role first")
                oversight.assign(store, task, who.id, person.id)
                return f"It waits for {who.name}"
            case "close":
                oversight.close(store, task, person.id, one(fields, "reason").strip()[:300])
                return "The task is closed; its answers stay"
        raise DataError("nothing was chosen", key="do")

    # agreement and people

    @routes.get("/projects/{name}/agreement")
    def who(request: Request, name: str) -> HTMLResponse:
        person, where = led(request, name, *WATCHERS)
        moment = standing(where)
        hidden_ones = report.hidden(store, where.id)
        found = []
        for kind in moment.kinds:
            totals = {each.pseudonym: each.answers for each in moment.tallies if each.people == kind}

            def figures(kind: str = kind, totals: dict[str, int] = totals) -> tuple[Any, ...]:
                read = words(where, kind)
                return desk.agreements(read), desk.people(read, totals, hidden_ones), len(read.given)

            found.append((kind, *kept.get(("figures", where.id, kind), figures)))
        return shown(
            request, "project_agreement.html", where, kinds=found, drawn=drawn, standing=moment, most=desk.SAMPLE,
            by_groups=person.has("lead", "auditor", project=where.id),
        )  # fmt: skip

    # disagreements

    def disputed(request: Request, where: Project, given: dict[str, str], producers: bool) -> HTMLResponse:
        moment = standing(where)
        kinds = list(moment.kinds) or ["live"]
        kind = given.get("people", "")
        before = given.get("before", "")
        wanted = disagreement.Filters(
            people=kind if kind in kinds else moment.main,
            order=given.get("order", "") if given.get("order") in disagreement.ORDERS else "worst",
            language=given.get("language", "")[:20], only=given.get("only", ""), after=given.get("after", ""),
            before=int(before) if before.isdecimal() and len(before) < 18 else None,
        )  # fmt: skip
        read = words(where, wanted.people, wanted.before)
        mark = (where.id, wanted.people, wanted.before, read.given[-1].seq if read.given else 0, len(read.given))
        rows = samples.get(("disputes", *mark), lambda: disputes.disputes(read))
        page = disagreement.page(store, render.signed_in(request), where, read, rows, wanted)
        query = {"people": wanted.people, "order": wanted.order, "language": wanted.language, "only": wanted.only}

        def link(**more: Any) -> str:
            every = {**query, "before": wanted.before, **more}
            return "?" + urlencode({name: value for name, value in every.items() if value not in ("", None)})

        ids = [dispute.task for dispute, _ in page.rows]
        causes = {
            each.task: adjudicate.cause_of(each) for each in answers.read(store, task=ids, purpose=adjudication.PURPOSE)
        }
        languages = sorted({each.language for each in read.tasks.values() if each.language})
        reveals = render.signed_in(request).has("lead", "reviewer", project=where.id)
        return shown(
            request, "disagreements.html", where, page=page, wanted=wanted, kinds=kinds, producers=producers, link=link,
            orders=disagreement.ORDERS, languages=languages, reveals=reveals, told=given.get("told", "")[:300],
            deciding=adjudication.states(store, ids), causes=causes,
            over={id for id in ids if read.tasks[id].state != "open"},
        )  # fmt: skip

    @routes.get("/projects/{name}/disagreements")
    def disagreements(request: Request, name: str) -> HTMLResponse:
        _, where = led(request, name, *WATCHERS)
        return disputed(request, where, dict(request.query_params), False)

    @routes.post("/projects/{name}/disagreements")
    async def reveal(request: Request, name: str) -> Response:
        """The same page with the makers of the responses; that they were shown stands in the ledger."""
        person, where = led(request, name, "lead")
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        given = {key: values[0] for key, values in fields.items()}

        def noted() -> HTMLResponse:
            body = {"after": given.get("after", "")[:80], "before": given.get("before", "")[:20]}
            ledger.record(store, person.id, "producers.reveal", where.id, body)
            return disputed(request, where, given, True)

        return await run_in_threadpool(noted)

    # the form

    def form_page(request: Request, where: Project, draft: Draft, base: int, **more: Any) -> HTMLResponse:
        values: dict[str, Any] = {"error": "", "changes": None, "versions": (), "told": ""} | more
        return shown(
            request, "project_form.html", where, 422 if values["error"] else 200, draft=draft, version=base,
            blank=QuestionFields(), question_kinds=QUESTION_KINDS, **values,
        )  # fmt: skip

    def versions(where: Project) -> Any:
        return kept.get(("forms", where.id), lambda: oversight.by_form(store, where.id))

    @routes.get("/projects/{name}/form")
    def form(request: Request, name: str, told: str = "") -> HTMLResponse:
        _, where = led(request, name, *WATCHERS)
        draft = Draft(kind=where.kind, guideline=where.guideline, questions=editor.shown(where.questions))
        return form_page(request, where, draft, where.version, versions=versions(where), told=told[:300])

    @routes.post("/projects/{name}/form")
    async def new_form(request: Request, name: str) -> Response:
        person, where = led(request, name)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        return await run_in_threadpool(formed, request, person, where, fields)

    def formed(request: Request, person: Person, where: Project, fields: dict[str, list[str]]) -> Response:
        base = int(one(fields, "version")) if one(fields, "version").isdecimal() else 0
        draft = Draft(kind=where.kind)
        try:
            draft = Draft.of(one(fields, "draft")) if "draft" in fields else Draft.read(fields)
            draft.kind = where.kind
            before = api.views(store, [where])[0].form
            written = before.model_copy(update={"questions": draft.asked(), "guideline": draft.guideline})
            settings = ProjectSettings.of(where.settings)
            editor.checked(name=where.name, kind=where.kind, form=written, settings=settings)
            changes = editor.difference(before, written)
            if not changes:
                raise DataError("nothing is changed")
            if one(fields, "do") == "publish":
                questions = [each.model_dump(mode="json") for each in written.questions]
                made = oversight.publish(store, where.id, base, questions, draft.guideline, person.id)
                kept.forget()
                return gone(where, "/form", f"Version {made} is asked from now on, of new tasks")
            shown_changes = None if one(fields, "do") == "edit" else changes
            return form_page(request, where, draft, base, changes=shown_changes, versions=versions(where))
        except Refused as error:
            return form_page(request, where, draft, where.version, error=str(error), versions=versions(where))
        except TutelageError as error:
            return form_page(request, where, draft, base, error=str(error), versions=versions(where))

    # settings

    @routes.get("/projects/{name}/settings")
    def settings(request: Request, name: str, told: str = "", q: str = "", after: str = "") -> HTMLResponse:
        _, where = led(request, name)
        return settings_page(
            request, where, told=told[:300], q=" ".join(q.replace("\0", "").split())[:120], after=after
        )

    def settings_page(
        request: Request, where: Project, status: int = 200, told: str = "", error: str = "", q: str = "",
        after: str = "",
    ) -> HTMLResponse:  # fmt: skip
        every = sorted(oversight.members(store, where.id), key=lambda each: each.name)  # as names are compared here
        found = [each for each in every if q.casefold() in each.name.casefold()]
        members = [each for each in found if each.name > after]
        rows = members[: people.PAGE]
        return shown(
            request, "project_settings.html", where, status, roles=ROLES, told=told, error=error, q=q, after=after,
            members=people.Page(tuple(rows), rows[-1].name if len(members) > len(rows) else "", len(found)),
            rules=ProjectSettings.of(where.settings), licences=editor.LICENCES, known=qualifications.every(store),
            able={each.id for each in desk.answerers(store, where)},
            held=qualifications.of(store, [each.id for each in rows]),
        )  # fmt: skip

    @routes.post("/projects/{name}/settings")
    async def change(request: Request, name: str) -> Response:
        person, where = led(request, name)
        fields = await fields_of(request)
        render.checked(request, one(fields, "csrf"))
        try:
            told = await run_in_threadpool(changed, person, where, fields)
        except TutelageError as error:
            return await run_in_threadpool(settings_page, request, where, api.status_of(error), "", str(error))
        kept.forget()
        return gone(where, "/settings", told)

    def changed(person: Person, where: Project, fields: dict[str, list[str]]) -> str:
        match one(fields, "do"):
            case "asking":
                target = one(fields, "target").strip()
                enough = whole(target, "target", 1, 1_000_000_000) if target else None
                per_task = whole(one(fields, "per_task"), "per_task", 1, 1000)
                masks = bool(one(fields, "mask_pii"))
                asked = {"target": enough, "mask_pii": masks, "licence": editor.licence_of(one(fields, "licence"))}
                tasks.change_settings(store, where.name, asked, person.id, per_task)
                return "Kept: it holds for tasks that are added from now on, the licence for all"
            case "who":
                rules: dict[str, Any] = {"qualifications": named(one(fields, "qualifications"))}
                rules["languages"] = one(fields, "languages").replace(",", " ").lower().split()[:50]
                for key in ("most_per_person", "most_per_day"):
                    given = one(fields, key).strip()
                    rules[key] = whole(given, key, 1, 1_000_000_000) if given else None
                tasks.change_settings(store, where.name, rules, person.id)
                return "Kept: it holds from the next task that somebody is given"
            case "close" | "open" as act:
                tasks.close_project(store, where.name, person.id, "closed" if act == "close" else "open")
                return "Nobody is asked any more; answers stay" if act == "close" else "People are asked again"
            case "grant":
                who = people.get(store, one(fields, "person").strip())
                people.grant(store, who.id, role_of(person, where, one(fields, "role")), where.name, person.id)
                return f"{who.name} is {one(fields, 'role')} here"
            case "revoke":
                who = people.get(store, one(fields, "person").strip())
                people.revoke(store, who.id, role_of(person, where, one(fields, "role")), where.name, person.id)
                return f"{who.name} is no longer {one(fields, 'role')} here"
        raise DataError("nothing was chosen", key="do")

    def role_of(person: Person, where: Project, role: str) -> str:
        """A role that this person may give and take here."""
        if role not in ROLES:
            raise DataError(f"{role[:40]!r} is not given in a project", key="role", todo=f"One of: {', '.join(ROLES)}")
        if not people.may_grant(person, role, where.id):
            raise api.Forbidden(f"you may not give or take the role {role!r} here", key="role", todo="Ask a lead")
        return role

    # export

    @routes.get("/projects/{name}/export")
    def export_for(
        request: Request,
        name: str,
        consumer: str = "annotations",
        format: str = "jsonl",
        people: str = "",
        accept: str = "",
    ) -> Response:
        """A file as the API makes it; what cannot be had is said on a page."""
        person, where = led(request, name, "lead", "operator", "auditor")
        query = {"people": people or standing(where).main, "accept": ",".join(INTERNAL) if accept else ""}
        path = f"{BASE}/projects/{where.name}/export/{consumer}.{format}"
        status, told = dispatch(store, person, "GET", path, None, query)
        if isinstance(told, File):
            return download(told)
        back = f"/projects/{quote(where.name, safe='')}#export"
        todo = told.get("todo") or ""
        if told.get("key") == "accept":
            todo = "State their licence under Settings; if you may pass them on as they are, tick the box beside Export"
        text = f"{told['message']}. {todo}"
        return render.page(request, "problem.html", status, title="Not exported", text=text, back=back)

    @routes.get("/projects/{name}/export.jsonl")
    def export(request: Request, name: str) -> Response:
        return export_for(request, name)

    return routes
