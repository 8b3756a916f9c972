"""Who is there: invitations, roles, ways in and out; what was judged by which groups; and who uncovered what."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from tutelage.core.errors import ConfigError, NotFound, TutelageError
from tutelage.feedback import api
from tutelage.govern import diversity
from tutelage.store import access, people, profiles, qualifications, reveal, tasks
from tutelage.store.people import Person
from tutelage.web import render

READERS = ("lead", "auditor")
REVEALERS = ("lead", "reviewer")
SEEN, ANSWERING = ("live", "service"), ("simulated", "replayed")
"""Kinds of people that stand on the page, and those that are only counted."""
Field = Annotated[str, Form()]


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store`."""
    routes = APIRouter(include_in_schema=False)
    store = state.store

    def problem(request: Request, error: TutelageError, back: str) -> HTMLResponse:
        status = api.status_of(error)
        return render.page(request, "problem.html", status, title="Not changed", text=str(error), back=back)

    def reader(request: Request) -> Person:
        """Somebody who leads or audits something."""
        person = render.signed_in(request)
        if not person.anywhere(*READERS):
            raise HTTPException(403, f"this needs the role {' or '.join(READERS)}")
        return person

    def seen_by(person: Person, other: Person) -> bool:
        """Whether somebody may see an account: everywhere, or where they lead or audit."""
        return person.has(*READERS) or any(where and person.has(*READERS, project=where) for _, where in other.roles)

    def account(request: Request, id: str) -> tuple[Person, Person]:
        """Who asks, and the account they may see."""
        person = reader(request)
        found = people.find(store, id)
        if found is None or found.id != id or found.status == "erased" or not seen_by(person, found):
            raise HTTPException(404, "there is no such person")
        return person, found

    def managed(request: Request, id: str) -> tuple[Person, Person]:
        person, found = account(request, id)
        if not people.may_manage(person, found):
            raise HTTPException(403, f"{found.name} holds roles that are not yours to manage; ask an owner")
        return person, found

    def places(person: Person) -> list[tuple[str, str]]:
        """Where somebody may give roles: (project name, "" = everywhere; what it is called)."""
        found = [("", "everywhere")] if people.may_grant(person, "annotator") else []
        names = [each.name for each in tasks.projects(store) if people.may_grant(person, "annotator", each.id)]
        return found + [(name, name) for name in names]

    def givable(person: Person) -> list[str]:
        where = ["", *(each.id for each in tasks.projects(store))]
        return [role for role in people.ROLES if any(people.may_grant(person, role, place) for place in where)]

    def link_page(request: Request, person: Person, name: str, token: str) -> HTMLResponse:
        del person
        text = (
            f"Send it to {name}. It works once and for a day, and is shown only now. Their name for signing in: {name}"
        )
        link = f"{str(request.base_url).rstrip('/')}/welcome/{token}"
        return render.page(
            request, "secret.html", 201, title=f"A link for {name}", secret=link, text=text, back="/people"
        )

    @routes.get("/people")
    def everybody(request: Request, told: str = "", q: str = "", after: str = "") -> HTMLResponse:
        person = reader(request)
        names = {each.id: each.name for each in tasks.projects(store)}
        mine = None if person.has(*READERS) else [id for id in names if person.has(*READERS, project=id)]
        wanted = " ".join(q.replace("\0", "").split())[:120]
        return render.page(
            request,
            "people.html",
            told=told[:300],
            page=people.page(store, kinds=SEEN, containing=wanted, after=after, projects=mine),
            q=wanted,
            after=after,
            names=names,
            places=places(person),
            roles=givable(person),
            simulated=people.page(store, kinds=ANSWERING, most=1).total,
        )

    @routes.post("/people")
    def invite(
        request: Request,
        name: Field = "",
        role: Field = "",
        project: Field = "",
        languages: Field = "",
        kind: Field = "live",
        csrf: Field = "",
    ) -> Response:
        person = reader(request)
        render.checked(request, csrf)
        try:
            where = _place(project)
            if role not in people.ROLES or not people.may_grant(person, role, where):
                raise api.Forbidden(f"you may not give the role {role!r} there", key="role")
            if kind not in ("live", "service") or (kind == "service") != (role == "service"):
                raise api.Forbidden("a program gets the role `service`, a person another one", key="role")
            name = " ".join(name.split())
            if people.find(store, name):
                raise api.Forbidden(f"the name {name!r} is taken", key="name", todo="Give roles on that person's page")
            tongues = [each for each in languages.replace(",", " ").split() if each][:20]
            made = people.create(
                store, name, kind=kind, roles=(role,), project=project or None, languages=tongues, by=person.id
            )
        except TutelageError as error:
            return problem(request, error, "/people")
        if kind == "service":
            return render.see(f"/people/{made.id}?told=Made.+A+program+signs+in+with+a+token")
        return link_page(request, person, made.name, access.invite(store, made.id, by=person.id))

    def _place(project: str) -> str:
        return tasks.get_project(store, project).id if project else ""

    @routes.get("/people/reveals")
    def reveals(request: Request, before: int | None = None) -> HTMLResponse:
        render.signed_in(request, *READERS)
        if before is not None and not 0 <= before < 2**53:
            raise HTTPException(404, "there is no such page")
        found = reveal.reveals(store, people.PAGE + 1, before)
        who = people.names(store, [each.actor for each in found])
        names = {each.id: each.name for each in tasks.projects(store)}
        more = found[people.PAGE - 1].seq if len(found) > people.PAGE else None
        rows = found[: people.PAGE]
        return render.page(request, "reveals.html", rows=rows, who=who, names=names, before=before, more=more)

    @routes.get("/people/{id}")
    def one(request: Request, id: str, told: str = "") -> HTMLResponse:
        person, found = account(request, id)
        names = {each.id: each.name for each in tasks.projects(store)}
        return render.page(
            request,
            "person.html",
            told=told[:300],
            who=found,
            roles=[
                (role, where, names.get(where, ""), people.may_grant(person, role, where) and not person.reads_only)
                for role, where in sorted(found.roles)
            ],
            manages=people.may_manage(person, found),
            places=places(person),
            givable=givable(person),
            visits=len(access.visits(store, found.id)) if people.may_manage(person, found) else 0,
            tokens=access.tokens(store, found.id) if people.may_manage(person, found) else [],
            scopes=access.SCOPES,
            tenants=sorted(state.settings.tenants),
            qualified=qualifications.of(store, [found.id]).get(found.id, ()),
            qualifies=person.has(*api.LEADERS) and found.status == "active",
            known=qualifications.every(store),
        )

    @routes.post("/people/{id}/roles")
    def change_role(
        request: Request, id: str, role: Field = "", project: Field = "", act: Field = "grant", csrf: Field = ""
    ) -> Response:
        person, found = account(request, id)
        render.checked(request, csrf)
        try:
            if not people.may_grant(person, role, _place(project)):
                raise api.Forbidden(f"you may not give or take the role {role!r} there", key="role")
            change = people.revoke if act == "revoke" else people.grant
            change(store, found.id, role, project or None, by=person.id)
        except TutelageError as error:
            return problem(request, error, f"/people/{id}")
        return render.see(f"/people/{id}?told=Changed")

    @routes.post("/people/{id}/languages")
    def set_languages(request: Request, id: str, languages: Field = "", csrf: Field = "") -> Response:
        person, found = managed(request, id)
        render.checked(request, csrf)
        try:
            people.set_languages(store, found.id, languages.replace(",", " ").split(), by=person.id)
        except TutelageError as error:
            return problem(request, error, f"/people/{id}")
        return render.see(f"/people/{id}?told=The+languages+are+kept")

    @routes.post("/people/{id}/link")
    def new_link(request: Request, id: str, csrf: Field = "") -> Response:
        person, found = managed(request, id)
        render.checked(request, csrf)
        if found.kind != "live" or found.status != "active":
            raise HTTPException(409, "this account does not sign in")
        return link_page(request, person, found.name, access.invite(store, found.id, by=person.id))

    @routes.post("/people/{id}/sign-out")
    def sign_out(request: Request, id: str, csrf: Field = "") -> Response:
        person, found = managed(request, id)
        render.checked(request, csrf)
        ended = access.end_visits(store, found.id, person.id)
        return render.see(f"/people/{id}?told=Signed+out+of+{ended}")

    @routes.post("/people/{id}/status")
    def status(request: Request, id: str, status: Field = "", csrf: Field = "") -> Response:
        person, found = managed(request, id)
        render.checked(request, csrf)
        try:
            people.set_status(store, found.id, status, by=person.id)
        except TutelageError as error:
            return problem(request, error, f"/people/{id}")
        return render.see(f"/people/{id}?told=Changed")

    @routes.post("/people/{id}/tokens")
    def service_token(
        request: Request, id: str, label: Field = "", tenant: Field = "default", csrf: Field = ""
    ) -> Response:
        person, found = managed(request, id)
        render.checked(request, csrf)
        if found.kind != "service" or not label.strip() or tenant not in state.settings.tenants:
            raise HTTPException(422, "a program's token needs a name and a tenant")
        token = access.issue_token(store, found.id, ("chat", f"tenant:{tenant}"), label.strip()[:120], by=person.id)
        text = f"A key for the model, with the limits of the tenant {tenant}. It is shown this once."
        return render.page(
            request, "secret.html", 201, title=f"A token of {found.name}", secret=token, text=text, back=f"/people/{id}"
        )

    @routes.post("/people/{id}/tokens/{token}/revoke")
    def end_token(request: Request, id: str, token: str, csrf: Field = "") -> Response:
        person, found = managed(request, id)
        render.checked(request, csrf)
        if not access.end_token(store, found.id, token, by=person.id):
            raise HTTPException(404, "this token has ended already")
        return render.see(f"/people/{id}?told={quote('The token is revoked')}")

    # by groups

    def project_of(request: Request, name: str, *roles: str) -> tuple[Person, tasks.Project]:
        person = render.signed_in(request)
        try:
            found = tasks.get_project(store, name)
        except TutelageError as error:
            raise HTTPException(404, str(error)) from None
        if not person.has(*roles, project=found.id):
            raise HTTPException(403, f"this needs the role {' or '.join(roles)}")
        return person, found

    @routes.get("/projects/{name}/people")
    def groups(request: Request, name: str, kind: str = "live", told: str = "") -> HTMLResponse:
        person, project = project_of(request, name, *READERS)
        kind = kind if kind in people.KINDS else "live"
        made = diversity.latest(store, name, kind)
        problem_ = ""
        try:
            diversity.targets(project.settings)
        except ConfigError as error:
            problem_ = str(error)
        about = tasks.load(store, sorted({each.task for each in made.winners}), masked=True) if made else {}
        return render.page(
            request,
            "groups.html",
            told=told[:300],
            project=project,
            kind=kind,
            kinds=[each for each in people.KINDS if each != "service"],
            report=made,
            about=about,
            problem=problem_,
            leads=person.has("lead", project=project.id),
            questions=profiles.QUESTIONS,
            k=diversity.K,
        )

    @routes.post("/projects/{name}/people")
    def publish(request: Request, name: str, kind: Field = "live", csrf: Field = "") -> Response:
        person, _ = project_of(request, name, "lead")
        render.checked(request, csrf)
        kind = kind if kind in people.KINDS else "live"
        back = f"/projects/{quote(name)}/people?kind={kind}"
        try:
            before = diversity.latest(store, name, kind)
            made = diversity.publish(store, name, person.id, kind)
        except TutelageError as error:
            return problem(request, error, back)
        told = "Nothing has happened since this report was made" if made == before else "The report is made"
        return render.see(f"{back}&told={quote(told)}")

    # what is masked

    def masked_in(request: Request, task: str) -> tuple[Person, list[reveal.Masked], str]:
        person = render.signed_in(request)
        try:
            project, found = reveal.masked(store, task)
        except NotFound as error:
            raise HTTPException(404, str(error)) from None
        if not person.has(*REVEALERS, project=project):
            raise HTTPException(403, f"this needs the role {' or '.join(REVEALERS)}")
        name = next((each.name for each in tasks.projects(store) if each.id == project), "")
        return person, found, name

    def masked_page(request: Request, task: str, status: int = 200, **values: Any) -> HTMLResponse:
        _, found, name = masked_in(request, task)
        shown = {"error": "", "text": "", "uncovered": "", **values}
        limits = {"shortest": reveal.SHORTEST, "longest": reveal.LONGEST}
        return render.page(request, "masked.html", status, task=task, rows=found, project=name, **limits, **shown)

    @routes.get("/tasks/{task}/masked")
    def masked(request: Request, task: str) -> HTMLResponse:
        return masked_page(request, task)

    @routes.post("/tasks/{task}/masked")
    def uncover(request: Request, task: str, text: Field = "", reason: Field = "", csrf: Field = "") -> Response:
        person, _, _ = masked_in(request, task)
        render.checked(request, csrf)
        try:
            found = reveal.reveal(store, task, text, reason, by=person.id)
        except TutelageError as error:
            return masked_page(request, task, api.status_of(error), error=str(error), text=text)
        return masked_page(request, task, uncovered=found, text=text)

    return routes
