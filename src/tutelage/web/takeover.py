"""Conversations that are with a person, as people see them: read along, answer, give back, take one over."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Message
from tutelage.store import people, takeover, traffic
from tutelage.web import render

LONGEST = 20_000
"""Characters of what a person may say at once."""
READERS = ("reviewer", "safety", "operator", "lead", "auditor")
SPEAKERS = ("reviewer", "safety", "operator", "lead")
Form_ = Annotated[str, Form()]


class Turn(NamedTuple):
    """One message of a conversation as its reader sees it."""

    role: str
    who: str
    text: str
    note: str = ""


def turns(store: Any, conversation: str) -> list[Turn]:
    """A conversation with personal data masked: the newest request as the user's program sent it, what became of it,
    and the words of people that it does not hold yet."""
    given = traffic.requests(store, conversation=conversation, masked=True, newest_first=True, limit=1)
    if not given:
        return []
    newest = given[0]
    names = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool", "text": "Text"}
    found = [Turn(each.role, names[each.role], each.content) for each in newest.messages]
    if newest.answer is not None:
        note = "withheld: the user has not seen it" if newest.finish == "blocked" else ""
        found.append(Turn("assistant", "Assistant", newest.answer.content, note))
    told = [turn.text for turn in found if turn.role == "assistant"]
    known = {each.id: each for each in people.every(store)}
    for at, by, message, delivered in takeover.said(store, conversation):
        if at < newest.at and any(message.content in text for text in told):
            continue
        who = known[by].name if by in known else by
        there = f"delivered {render.when(delivered)} UTC"
        note = there if delivered else "on its way: the user's next request brings it"
        found.append(Turn("assistant", f"{who}, a person", message.content, note))
    return found


def router(state: Any) -> APIRouter:
    """The pages of this file; `state` has `store` and `look`."""
    routes = APIRouter(include_in_schema=False)
    store = state.store

    def values(name: str) -> dict[str, Any]:
        said = turns(store, name)
        if not said:
            raise HTTPException(404, "there is no such conversation")
        stretches = takeover.of(store, name)
        now = next((each for each in takeover.opened(store) if each.conversation == name), None)
        by = people.find(store, now.by) if now else None
        return {
            "name": name,
            "turns": said,
            "now": now,
            "began": by.name if by else "the policy" if now else "",
            "earlier": [each for each in stretches if each.ended_at is not None],
            "longest": LONGEST,
        }

    def back(name: str, told: str = "") -> Response:
        return render.see(f"/review/conversations/{name}" + (f"?told={told.replace(' ', '+')}" if told else ""))

    def speaker(request: Request, csrf: str) -> str:
        person = render.signed_in(request, *SPEAKERS)
        render.checked(request, csrf)
        return person.id

    @routes.get("/review/conversations/{name}")
    def conversation(request: Request, name: str, told: str = "") -> HTMLResponse:
        person = render.signed_in(request, *READERS)
        may = person.has(*SPEAKERS)
        return render.page(request, "conversation.html", told=told[:300], may=may, **values(name))

    @routes.get("/review/conversations/{name}/turns")
    def live(request: Request, name: str) -> HTMLResponse:
        render.signed_in(request, *READERS)
        return render.page(request, "conversation_turns.html", **values(name))

    @routes.post("/review/conversations/{name}/say")
    def say(request: Request, name: str, text: Form_ = "", do: Form_ = "stay", csrf: Form_ = "") -> Response:
        by = speaker(request, csrf)
        words = text.strip()
        if not words or len(words) > LONGEST:
            raise HTTPException(422, f"say something, in at most {LONGEST:,} characters")
        try:
            takeover.say(store, name, Message(role="assistant", content=words), by, stay=do == "stay")
        except (DataError, NotFound) as error:
            return render.page(request, "problem.html", 409, title="Not sent", text=str(error), back="/review")
        state.look()
        if do == "stay":
            return back(name, "Sent: the user has it with this request or the next")
        return render.see("/review?told=Your+answer+goes+out+with+the+next+turn+of+that+conversation")

    @routes.post("/review/conversations/{name}/begin")
    def begin(request: Request, name: str, reason: Form_ = "", csrf: Form_ = "") -> Response:
        by = speaker(request, csrf)
        try:
            takeover.begin(store, name, by=by, reason=reason)
        except (DataError, NotFound) as error:
            status = 422 if isinstance(error, DataError) else 404
            return render.page(request, "problem.html", status, title="Not taken over", text=str(error), back="/review")
        state.look()
        return back(name, "The conversation is with you: the model says nothing in it")

    @routes.post("/review/conversations/{name}/end")
    def end(request: Request, name: str, csrf: Form_ = "") -> Response:
        by = speaker(request, csrf)
        ended = takeover.end(store, name, by)
        state.look()
        return back(name, "The model answers again" if ended else "It was with nobody")

    return routes
