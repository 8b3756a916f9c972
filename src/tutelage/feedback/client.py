"""The client of the feedback API: over HTTP with one kept connection, or straight into `routes.dispatch`.

Simulated and replayed people go through it like anybody else, so what they prove holds for live ones.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

from pydantic import BaseModel, ValidationError

from tutelage.core.errors import DataError, NotFound, UpstreamError
from tutelage.core.records import explain
from tutelage.feedback import api, routes
from tutelage.feedback.adjudicate import Adjudications, AdjudicationsOpened, NewAdjudications, Opened
from tutelage.feedback.api import Answer, Answers, Claim, Claimed, NewProject, NewTask, Progress, ProjectView, Submitted
from tutelage.feedback.export import By
from tutelage.feedback.layout import Format
from tutelage.feedback.rows import Consumer
from tutelage.feedback.webhooks import NewWebhook, Retried, WebhookMade, Webhooks, WebhookView
from tutelage.feedback.wire import (
    DialogueView,
    EndDialogue,
    GoldView,
    GoldViews,
    History,
    Kept,
    Languages,
    Lift,
    NewGold,
    NewTasks,
    NewTurn,
    Projects,
    Qualifications,
    Settings,
    Spoken,
    TaskIds,
)
from tutelage.store.engine import Store
from tutelage.store.people import Person

M = TypeVar("M", bound=BaseModel)


class Transport(Protocol):
    """Carries one request: (status, parsed JSON, or the bytes of a file)."""

    def send(self, method: str, path: str, query: Mapping[str, str], body: str | None) -> tuple[int, Any]: ...

    def close(self) -> None: ...


class Direct:
    """Calls the API's functions in this process, with every check but the network."""

    def __init__(self, store: Store, person: Person) -> None:
        self.store, self.person = store, person

    def send(self, method: str, path: str, query: Mapping[str, str], body: str | None) -> tuple[int, Any]:
        """Answer through `routes.dispatch`."""
        parsed = json.loads(body) if body is not None else None
        status, told = routes.dispatch(self.store, self.person, method, unquote(path), parsed, query)
        return status, told.body if isinstance(told, routes.File) else told

    def close(self) -> None:
        """Nothing to close."""


class Http:
    """One kept connection to a server. Safe to repeat: every write of the API is idempotent."""

    def __init__(self, url: str, token: str, timeout: float = 60.0, retries: int = 4) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(f"{url!r} is no address of a server", key="url")
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._base = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        self._timeout, self._retries = timeout, retries
        self._connection: http.client.HTTPConnection | None = None

    def send(self, method: str, path: str, query: Mapping[str, str], body: str | None) -> tuple[int, Any]:
        """Send, again after a short pause when the connection breaks or the server is busy. Raises UpstreamError."""
        target = self._base + path + (f"?{urlencode(query)}" if query else "")
        headers = self._headers | ({"content-type": "application/json"} if body is not None else {})
        pauses = [min(2.0, 0.2 * 4**attempt) for attempt in range(self._retries)]
        while True:
            kept = self._connection is not None
            try:
                if self._connection is None:
                    self._connection = self._make(self._host, self._port, timeout=self._timeout)
                self._connection.request(method, target, body.encode() if body is not None else None, headers)
                answer = self._connection.getresponse()
                raw = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if kept:  # a server lets go of a connection that rests: ask on a new one, at once
                    continue
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.status == 200 and answer.getheader("content-disposition"):
                    return 200, raw
                problem = f"status {answer.status}"
                if answer.status not in (429, 502, 503, 504):
                    try:
                        return answer.status, json.loads(raw) if raw else None
                    except ValueError:
                        problem, pauses = f"status {answer.status}, not JSON", []
            if not pauses:
                raise UpstreamError(f"{method} {path} at {self._host}:{self._port} failed: {problem}")
            time.sleep(pauses.pop(0))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _made(model: type[M], **fields: Any) -> M:
    """A model of the wire; what does not fit is a DataError that names the key, before anything is sent."""
    try:
        return model(**fields)
    except ValidationError as error:
        key, message = explain(error)
        raise DataError(message, key=key) from None


class Client:
    """The feedback API as functions.

    >>> client = Client("http://127.0.0.1:8000", "tut_...")
    >>> item = client.claim(project="helpfulness").items[0]
    """

    def __init__(self, url: str | Transport, token: str = "") -> None:
        self._transport: Transport = Http(url, token) if isinstance(url, str) else url

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def projects(self) -> list[ProjectView]:
        """The projects this person may work in."""
        return self._call("GET", "/projects", Projects).projects

    def create_project(self, new: NewProject) -> ProjectView:
        """Make a project, or a new version of its form."""
        return self._call("POST", "/projects", ProjectView, body=new)

    def add_tasks(self, project: str, new: Sequence[NewTask], batch: int = 200) -> list[str]:
        """Add tasks; sending them again changes nothing."""
        ids: list[str] = []
        for start in range(0, len(new), batch):
            some = NewTasks(tasks=tuple(new[start : start + batch]))
            ids += self._call("POST", f"/projects/{quote(project, safe='')}/tasks", TaskIds, body=some).tasks
        return ids

    def progress(self, project: str) -> Progress:
        """Where a project stands."""
        return self._call("GET", f"/projects/{quote(project, safe='')}/progress", Progress)

    def claim(self, project: str = "", count: int = 1, lease_s: float = 900) -> Claimed:
        """Hold the next tasks; asking again gives the same ones until they are answered."""
        wanted = _made(Claim, project=project, count=count, lease_s=lease_s)
        return self._call("POST", "/claim", Claimed, body=wanted)

    def submit(self, given: Sequence[Answer], then: Claim | None = None) -> Submitted:
        """Store answers, and perhaps hold the next tasks in the same round trip."""
        return self._call("POST", "/answers", Submitted, body=_made(Answers, answers=tuple(given), claim=then))

    def save_draft(self, slot: str, epoch: int, body: Mapping[str, Any]) -> bool:
        """Keep an unfinished answer."""
        return self._call("PUT", f"/drafts/{slot}", Kept, body=_made(api.Draft, epoch=epoch, body=dict(body))).ok

    def give_back(self, slot: str, epoch: int) -> bool:
        """Return a task unanswered."""
        return self._call("POST", f"/slots/{slot}/return", Kept, query={"epoch": str(epoch)}).ok

    def dialogue(self, project: str, dialogue: str = "") -> DialogueView:
        """One's dialogue in a project of that kind, or the newest that has not ended."""
        query = {"dialogue": dialogue} if dialogue else {}
        return self._call("GET", f"/projects/{quote(project, safe='')}/dialogue", DialogueView, query=query)

    def say(self, project: str, message: str, key: str, dialogue: str = "") -> DialogueView:
        """Say something; the answers stand in `item`, to be judged with `submit`."""
        wanted = _made(NewTurn, message=message, key=key, dialogue=dialogue)
        return self._call("POST", f"/projects/{quote(project, safe='')}/dialogue", DialogueView, body=wanted)

    def end_dialogue(self, project: str, dialogue: str = "") -> DialogueView:
        """End one's dialogue."""
        wanted = _made(EndDialogue, dialogue=dialogue)
        return self._call("POST", f"/projects/{quote(project, safe='')}/dialogue/end", DialogueView, body=wanted)

    def history(self, project: str = "", limit: int = 50) -> list[dict[str, Any]]:
        """One's own answers, newest first."""
        return self._call("GET", "/history", History, query={"project": project, "limit": str(limit)}).answers

    def change_settings(self, project: str, settings: Mapping[str, Any]) -> ProjectView:
        """Change some settings of a project; what is not named stays."""
        wanted = _made(Settings, settings=dict(settings))
        return self._call("PUT", f"/projects/{quote(project, safe='')}/settings", ProjectView, body=wanted)

    def gold(self, project: str, start: int = 0, limit: int = 200) -> GoldViews:
        """The gold tasks of a project, and how everybody did on them: `limit` of each behind the first `start`."""
        query = {"start": str(start), "limit": str(limit)}
        return self._call("GET", f"/projects/{quote(project, safe='')}/gold", GoldViews, query=query)

    def mark_gold(self, project: str, new: NewGold) -> GoldView:
        """Make a task gold, or say anew what is expected of it."""
        return self._call("POST", f"/projects/{quote(project, safe='')}/gold", GoldView, body=new)

    def retire_gold(self, project: str, task: str) -> bool:
        """Give a gold task to nobody any more."""
        return self._call("POST", f"/projects/{quote(project, safe='')}/gold/{quote(task, safe='')}/retire", Kept).ok

    def adjudications(self, project: str) -> Adjudications:
        """Where adjudication stands, why people differed, and what was proposed for the guideline."""
        return self._call("GET", f"/projects/{quote(project, safe='')}/adjudications", Adjudications)

    def adjudicate(
        self, project: str, tasks: Sequence[str] = (), *, above: float = 0.5, most: int = 20, people: str = ""
    ) -> list[Opened]:
        """Ask for an adjudicator in these tasks; without any, in those done ones on which people differ most."""
        new = _made(NewAdjudications, tasks=tuple(tasks), above=above, most=most, people=people)
        path = f"/projects/{quote(project, safe='')}/adjudications"
        return self._call("POST", path, AdjudicationsOpened, body=new).opened

    def lift(self, project: str, person: str, reason: str) -> bool:
        """Let somebody go on whose answers a lead has looked at, and say why: it is kept for good."""
        path = f"/projects/{quote(project, safe='')}/people/{quote(person, safe='')}/lift"
        return self._call("POST", path, Kept, body=_made(Lift, reason=reason)).ok

    def languages(self) -> list[str]:
        """The languages that one can judge."""
        return list(self._call("GET", "/languages", Languages).languages)

    def set_languages(self, languages: Sequence[str]) -> list[str]:
        """Say which languages one can judge (`de`, `pt-BR` ...)."""
        return list(
            self._call("PUT", "/languages", Languages, body=_made(Spoken, languages=tuple(languages))).languages
        )

    def languages_of(self, person: str) -> list[str]:
        """The languages that somebody can judge."""
        return list(self._call("GET", f"/people/{quote(person, safe='')}/languages", Languages).languages)

    def set_languages_of(self, person: str, languages: Sequence[str]) -> list[str]:
        """Say which languages somebody can judge."""
        path = f"/people/{quote(person, safe='')}/languages"
        return list(self._call("PUT", path, Languages, body=_made(Spoken, languages=tuple(languages))).languages)

    def qualifications(self, person: str) -> list[str]:
        """What somebody has shown to be able to judge."""
        return self._call("GET", f"/people/{quote(person, safe='')}/qualifications", Qualifications).names

    def qualify(self, person: str, name: str) -> list[str]:
        """Grant a qualification."""
        path = f"/people/{quote(person, safe='')}/qualifications/{quote(name, safe='')}"
        return self._call("PUT", path, Qualifications).names

    def disqualify(self, person: str, name: str) -> list[str]:
        """Take a qualification away."""
        path = f"/people/{quote(person, safe='')}/qualifications/{quote(name, safe='')}"
        return self._call("DELETE", path, Qualifications).names

    def export(
        self,
        project: str,
        consumer: Consumer,
        *,
        people: Sequence[str] = (),
        by: By = "task",
        accept: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Answers as rows for a consumer; see `tutelage.feedback.export`."""
        raw = self.export_file(project, consumer, "jsonl", people=people, by=by, accept=accept)
        return [json.loads(line) for line in raw.splitlines()]

    def export_file(
        self,
        project: str,
        consumer: Consumer,
        format: Format = "parquet",
        *,
        people: Sequence[str] = (),
        by: By = "task",
        accept: Sequence[str] = (),
    ) -> bytes:
        """The same as a file: JSON lines, Parquet, or a zip of a Hugging Face data set's folder."""
        path = f"/projects/{quote(project, safe='')}/export/{quote(consumer, safe='')}.{quote(format, safe='')}"
        found = self._send("GET", path, query={"people": ",".join(people), "by": by, "accept": ",".join(accept)})
        return bytes(found)

    def webhooks(self) -> list[WebhookView]:
        """The addresses that are told of events, and how far they were told."""
        return self._call("GET", "/webhooks", Webhooks).webhooks

    def add_webhook(self, url: str, events: Sequence[str], insecure: bool = False) -> WebhookMade:
        """Tell an address of events; `secret` of the answer signs them and is shown this once."""
        new = _made(NewWebhook, url=url, events=tuple(events), insecure=insecure)
        return self._call("POST", "/webhooks", WebhookMade, body=new)

    def remove_webhook(self, id: str) -> bool:
        """Tell an address nothing more."""
        return self._call("DELETE", f"/webhooks/{quote(id, safe='')}", Kept).ok

    def retry_webhook(self, id: str) -> int:
        """Tell again what was given up; returns how many things that are."""
        return self._call("POST", f"/webhooks/{quote(id, safe='')}/retry", Retried).count

    def _call(
        self,
        method: str,
        path: str,
        model: type[M],
        *,
        body: BaseModel | None = None,
        query: Mapping[str, str] | None = None,
    ) -> M:
        return model.model_validate(self._send(method, path, body=body, query=query))

    def _send(
        self, method: str, path: str, *, body: BaseModel | None = None, query: Mapping[str, str] | None = None
    ) -> Any:
        sent = body.model_dump_json() if body is not None else None
        status, found = self._transport.send(method, routes.BASE + path, query or {}, sent)
        if status == 200:
            return found
        told = found if isinstance(found, dict) else {}
        message = str(told.get("message") or told.get("detail") or f"status {status}")
        if status == 404:
            raise NotFound(message, key=told.get("key"))
        if status in (401, 403):
            raise api.Forbidden(message, key=told.get("key"))
        if status == 422:
            raise DataError(message, key=told.get("key"), todo=told.get("todo"))
        raise UpstreamError(message)
