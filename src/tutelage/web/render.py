"""How the console's pages are made: templates, filters, static files, and text that people wrote shown as text.

Pages carry no inline script and no inline style; every word that came from a person or a model is escaped.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tutelage.report import charts, tables
from tutelage.report.pages import STYLE
from tutelage.store.people import Person

STATIC: Final = Path(__file__).parent / "static"
TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

SECURITY: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every page: nothing from elsewhere, nothing inline, nothing kept by caches."""

REPORT_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'; sandbox"
"""A report is one file with its style inside, so that it can be mailed: it runs no script at all."""

LINKS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("/", "Home", ()),
    ("/history", "My answers", ()),
    ("/chat", "Chat", ()),
    ("/projects", "Projects", ("lead", "operator", "adjudicator", "auditor")),
    ("/review", "Review", ("lead", "reviewer", "safety", "operator", "auditor")),
    ("/redteam", "Red team", ("lead", "safety", "red_teamer", "auditor")),
    ("/runs", "Runs", ("lead", "operator", "safety", "auditor")),
    ("/reports", "Reports", ("lead", "operator", "safety", "auditor", "reviewer")),
    ("/operate", "Operate", ("lead", "operator", "safety", "auditor")),
    ("/people", "People", ("lead", "auditor")),
)
"""The pages and the roles that see them; none = everybody."""


def when(milliseconds: float | None) -> str:
    """A moment of the store (ms since 1970) as people read it, in UTC."""
    if not milliseconds:
        return "–"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def prose(text: str) -> Markup:
    """A guideline as HTML: paragraphs, `#` headings, `-` lists, **bold**, *emphasis*, `code`; all else is text."""

    def inline(line: str) -> Markup:
        out = str(escape(line))
        out = re.sub(r"`([^`]+)`", r"<code>\1</code>", out)
        out = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", out)
        return Markup(re.sub(r"(?<!\*)\*([^*\s][^*]*)\*(?!\*)", r"<em>\1</em>", out))

    blocks: list[Markup] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        while lines and lines[0].startswith("#"):
            blocks.append(Markup("<h3>{}</h3>").format(inline(lines.pop(0).lstrip("# "))))
        if lines and re.match(r"[-*] ", lines[0]):
            lines = re.split(r"\n(?=[-*] )", "\n".join(lines))  # an item may go on over several lines
            items = Markup("").join(Markup("<li>{}</li>").format(inline(line[2:])) for line in lines)
            blocks.append(Markup("<ul>{}</ul>").format(items))
        elif lines:
            blocks.append(Markup("<p>{}</p>").format(Markup(" ").join(inline(line) for line in lines)))
    return Markup("").join(blocks)


def verbatim(text: str) -> Markup:
    """A text so that a browser counts its characters as we do: it would make other line ends into plain ones."""
    return Markup(str(escape(text)).replace("\r", "&#13;").replace("\x00", "&#0;"))


@cache
def environment() -> Environment:
    """The console's templates."""
    made = Environment(
        loader=PackageLoader("tutelage.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(
        prose=prose, verbatim=verbatim, when=when, words=tables.words, number=charts.number, share=charts.share,
        duration=tables.duration, figure=tables.figure, json=lambda value: json.dumps(value, ensure_ascii=False),
    )  # fmt: skip
    made.globals.update(badge=tables.badge, static=static_url)
    return made


@cache
def static_file(name: str) -> tuple[bytes, str]:
    """The bytes and digest of a static file; KeyError for a name that is not one of ours."""
    path = STYLE if name == STYLE.name else STATIC / name
    if "/" in name or path.suffix not in TYPES or not path.is_file():
        raise KeyError(name)
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()[:16]


def static_url(name: str) -> str:
    """The address of a static file; it changes with the file, so browsers may keep it for good."""
    return f"/static/{name}?{static_file(name)[1]}"


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page of the console. `person` and `csrf` come from the request's session."""
    session = getattr(request.state, "session", None)
    person = getattr(session, "person", None)
    links = [
        (href, label, href == request.url.path or (href != "/" and request.url.path.startswith(href)))
        for href, label, roles in LINKS
        if person is not None
        and (not roles or (person.anywhere if href in ("/people", "/projects") else person.has)(*roles))
    ]
    html = environment().get_template(template).render(
        request=request, person=person, csrf=getattr(session, "csrf", ""), links=links, path=request.url.path, **values
    )  # fmt: skip
    return HTMLResponse(html, status_code=status, headers=SECURITY)


def signed_in(request: Request, *roles: str, project: str = "", scope: str = "") -> Person:
    """Who asks. Sends a visitor to the log-in page; refuses (403) a person without any of these roles.

    Pages are for people who signed in. An API token gets in where a `scope` is named that it has.
    """
    session: Any = getattr(request.state, "session", None)
    caller: Any = getattr(request.state, "caller", None)
    if session is None and caller is not None and not {scope or "*", "*"} & caller.scopes:
        needs = f"this token lacks the scope {scope!r}" if scope else "this is a page for people who signed in"
        raise HTTPException(403, needs)
    if session is None and caller is None:
        where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        target = f"/login?next={quote(where)}" if request.method == "GET" else "/login"
        raise HTTPException(303, "sign in first", headers={"location": target})
    person: Person = session.person if session is not None else caller.person
    if roles and not person.has(*roles, project=project):
        raise HTTPException(403, f"this needs the role {' or '.join(roles)}")
    return person


def checked(request: Request, given: str | None) -> None:
    """Refuse (403) a form or call that does not carry its session's token; API tokens need none."""
    session = getattr(request.state, "session", None)
    if session is not None and not hmac.compare_digest(str(given or ""), str(session.csrf)):
        raise HTTPException(403, "this form is too old: load the page again and send it once more")


def see(where: str) -> RedirectResponse:
    """Go on to another page after a form was sent."""
    return RedirectResponse(where, status_code=303)


def router() -> APIRouter:
    """The static files."""
    routes = APIRouter()

    @routes.get("/static/{name}", include_in_schema=False)
    def static(name: str, request: Request) -> Response:
        try:
            data, digest = static_file(name)
        except KeyError:
            return Response("no such file", status_code=404, media_type="text/plain")
        # A script that others import must have one address, or it would run twice: it is asked for again instead.
        lasting = "public, max-age=31536000, immutable" if request.url.query == digest else "no-cache"
        headers = {"etag": f'"{digest}"', "cache-control": lasting}
        headers["x-content-type-options"] = "nosniff"
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=TYPES[Path(name).suffix], headers=headers)

    return routes
