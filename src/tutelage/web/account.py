"""One's own pages: password, where one is signed in, API tokens; and what one chose to say about oneself."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from tutelage.core.errors import TutelageError
from tutelage.feedback import api
from tutelage.store import access, people, profiles, tasks
from tutelage.store.people import Person
from tutelage.web import auth, render

MOST_TOKENS = 20
"""Tokens of one person that work at a time."""
DAYS = (30, 90, 365)
"""How long a token may last."""
OVERLAP_H = 24
"""Hours that a replaced token works beside the new one."""
Field = Annotated[str, Form()]

CONSENT = """
Your answers train and test a language model. Who judges shapes what it becomes. If you like, tell us something about
yourself, so that we can see whether all kinds of people are heard, and where they disagree.

- **Every field is optional.** Leaving one empty changes nothing for you: not your tasks nor your pay.
- **Nobody reads your fields.** Not the lead, not the owner of this service. They are stored encrypted, apart from your
  answers, and are read only to count groups.
- **Reports show groups, never people.** A group of fewer than five people is not shown, nor one that could be worked
  out by subtraction; figures are rounded, and a report is made anew only when at least five people have changed
  something or answered.
- **You can change or withdraw it here at any time.** What you gave is then deleted at once. Your answers stay, without
  it. Reports made before stay as they are: they hold figures of groups. Copies in backups go when the backups do.
- What you give is used for this alone, and is not handed on.
""".strip()
"""What people agree to, version 1. ROOT/consent.md stands in its place; its version is its digest."""


def consent(state: Any) -> tuple[str, str]:
    """The version of the consent text, and the text."""
    path = state.root.path / "consent.md"
    if not path.is_file():
        return "1", CONSENT
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    return hashlib.sha256(text.encode()).hexdigest()[:12], text


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store`, `root` and the limiter."""
    routes = APIRouter(include_in_schema=False)
    store = state.store

    def problem(request: Request, status: int, text: str, back: str = "/account") -> HTMLResponse:
        return render.page(request, "problem.html", status, title="Not changed", text=text, back=back)

    @routes.get("/account")
    def account(request: Request, told: str = "") -> HTMLResponse:
        person = _own(request)
        names = {each.id: each.name for each in tasks.projects(store)}
        return render.page(
            request,
            "account.html",
            told=told[:300],
            roles=[(role, names.get(where, "") if where else "") for role, where in sorted(person.roles)],
            visits=access.visits(store, person.id, request.cookies.get(auth.COOKIE, "")),
            tokens=access.tokens(store, person.id),
            identities=access.identities(store, person.id),
            has_password=access.has_password(store, person.id),
            scopes=access.SCOPES,
            days=DAYS,
            shortest=access.SHORTEST,
        )

    @routes.post("/account/password")
    def password(
        request: Request, new: Field = "", again: Field = "", current: Field = "", csrf: Field = ""
    ) -> Response:
        person = _own(request)
        render.checked(request, csrf)
        with auth.tries(state, request, person.name) as denied:
            if denied:
                return problem(request, 429, auth.TOO_MANY)
            known = access.has_password(store, person.id)
            if known and access.check_password(store, person.name, current[: access.LONGEST]) is None:
                return problem(request, 401, "The current password does not fit.")
        if wrong := auth.new_password(new, again):
            return problem(request, 422, wrong)
        access.set_password(store, person.id, new)
        return auth.enter(state, request, person.id, "/account?told=Your+password+is+changed")

    @routes.post("/account/languages")
    def languages(request: Request, languages: Field = "", csrf: Field = "") -> Response:
        person = _own(request)
        render.checked(request, csrf)
        try:
            people.set_languages(store, person.id, languages.replace(",", " ").split(), by=person.id)
        except TutelageError as error:
            return problem(request, api.status_of(error), str(error), "/account#languages")
        return render.see("/account?told=Your+languages+are+kept")

    @routes.post("/account/sign-out")
    def sign_out(request: Request, visit: Field = "", csrf: Field = "") -> Response:
        person = _own(request)
        render.checked(request, csrf)
        ended = access.end_visits(store, person.id, person.id, visit[:16])
        return render.see(f"/account?told=Signed+out+of+{ended}") if visit else render.see("/login")

    @routes.post("/account/tokens")
    async def make_token(request: Request) -> Response:
        person = _own(request)
        form = await request.form()
        render.checked(request, str(form.get("csrf") or ""))
        scopes = [each for each in map(str, form.getlist("scope")) if each in access.SCOPES]
        label, days = str(form.get("label") or "").strip()[:120], str(form.get("days") or "")
        if not label or not scopes or days not in map(str, DAYS):
            return problem(request, 422, "A token needs a name, a lifetime, and something that it allows.")
        if len(access.tokens(store, person.id)) >= MOST_TOKENS:
            return problem(request, 409, f"You have {MOST_TOKENS} tokens; revoke one first.")
        token = access.issue_token(store, person.id, scopes, label, float(days), by=person.id)
        text = "It is shown this once. Whoever has it can do what it allows, as you."
        return render.page(
            request, "secret.html", 201, title=f"Your token {label}", secret=token, text=text, back="/account"
        )

    @routes.post("/account/tokens/{token}/replace")
    def replace_token(request: Request, token: str, csrf: Field = "") -> Response:
        person = _own(request)
        render.checked(request, csrf)
        try:
            fresh = access.rotate(store, person.id, token, OVERLAP_H, by=person.id)
        except TutelageError as error:
            return problem(request, 404, str(error))
        text = f"It is shown this once. The old one works for {OVERLAP_H} hours more, so that programs can be changed."
        return render.page(
            request, "secret.html", 201, title="Your new token", secret=fresh, text=text, back="/account"
        )

    @routes.post("/account/tokens/{token}/revoke")
    def end_token(request: Request, token: str, csrf: Field = "") -> Response:
        person = _own(request)
        render.checked(request, csrf)
        if not access.end_token(store, person.id, token, by=person.id):
            return problem(request, 404, "This token has ended already.")
        return render.see("/account?told=The+token+is+revoked")

    # what one says about oneself

    @routes.get("/account/profile")
    def profile(request: Request, told: str = "") -> HTMLResponse:
        return profile_page(request, _own(request), told=told[:300])

    def profile_page(
        request: Request, person: Person, status: int = 200, told: str = "", error: str = "", typed: Any = None
    ) -> HTMLResponse:
        version, text = consent(state)
        given = profiles.profile(store, person.id)
        held = set(given.attributes) if given else set()  # names alone: whoever gets in here must not read the values
        return render.page(
            request,
            "profile.html",
            status,
            told=told,
            error=error,
            version=version,
            text=text,
            given=given if held else None,
            withdrawn=given is not None and given.consent == "withdrawn",
            agreed=bool(held) and given is not None and given.consent == version,
            questions=profiles.QUESTIONS,
            held=held,
            typed=typed or {},
            longest=profiles.LONGEST,
        )

    @routes.post("/account/profile")
    async def set_profile(request: Request) -> Response:
        person = _own(request)
        form = {name: str(value) for name, value in (await request.form()).items()}
        render.checked(request, form.get("csrf", ""))
        version, text = consent(state)
        typed = {name: (form.get(f"{name}_words") or form.get(name) or "") for name in profiles.ATTRIBUTES}
        try:
            wanted = profiles.tidy(typed)
        except TutelageError as error:
            return profile_page(request, person, api.status_of(error), error=str(error), typed=typed)
        if form.get("version") != version:
            changed = "The text above has changed since you opened the page: please read it again."
            return profile_page(request, person, 409, error=changed, typed=typed)
        if form.get("agree") != "yes":
            return profile_page(request, person, 422, error="Nothing is stored until you agree.", typed=typed)
        if not wanted:
            return profile_page(request, person, 422, error="You left every field empty: nothing is stored.")
        profiles.keep_consent(store, version, text)
        profiles.set_profile(store, person.id, wanted, version)
        return render.see("/account/profile?told=Stored.+It+took+the+place+of+what+was+kept+before")

    @routes.post("/account/profile/withdraw")
    def withdraw(request: Request, csrf: Field = "") -> Response:
        person = _own(request)
        render.checked(request, csrf)
        profiles.withdraw(store, person.id, by=person.id)
        return render.see("/account/profile?told=Withdrawn.+What+you+gave+is+deleted;+your+answers+stay,+without+it")

    return routes


def _own(request: Request) -> Person:
    """Whose page it is. A token is not enough: it could make itself last for ever."""
    return render.signed_in(request)
