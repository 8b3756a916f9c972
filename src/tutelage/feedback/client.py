"""The client of the feedback API: over HTTP with one kept connection, or straight into `api.dispatch`.

Simulated and replayed people go through it like anybody else, so what they prove holds for live ones.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from pydantic import BaseModel, ValidationError

from tutelage.core.errors import DataError, NotFound, UpstreamError
from tutelage.core.records import explain
from tutelage.feedback import api
from tutelage.feedback.api import Answer, Answers, Claim, Claimed, NewProject, NewTask, Progress, ProjectView, Submitted
from tutelage.feedback.wire import DialogueView, EndDialogue, History, Kept, NewTasks, NewTurn, Projects, TaskIds
from tutelage.store.engine import Store
from tutelage.store.people import Person

M = TypeVar("M", bound=BaseModel)


class Transport(Protocol):
    """Carries one request: (status, parsed JSON)."""

    def send(self, method: str, path: str, query: Mapping[str, str], body: str | None) -> tuple[int, Any]: ...

    def close(self) -> None: ...


class Direct:
    """Calls the API's functions in this process, with every check but the network."""

    def __init__(self, store: Store, person: Person) -> None:
        self.store, self.person = store, person

    def send(self, method: str, path: str, query: Mapping[str, str], body: str | None) -> tuple[int, Any]:
        """Answer through `api.dispatch`."""
        parsed = json.loads(body) if body is not None else None
        return api.dispatch(self.store, self.person, method, path, parsed, query)

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
        problem = ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(min(2.0, 0.05 * 4**attempt))
            try:
                if self._connection is None:
                    self._connection = self._make(self._host, self._port, timeout=self._timeout)
                self._connection.request(method, target, body.encode() if body is not None else None, headers)
                answer = self._connection.getresponse()
                raw = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                problem = f"{type(error).__name__}: {error}"
                continue
            if answer.status in (429, 502, 503, 504):
                problem = f"status {answer.status}"
                continue
            try:
                return answer.status, json.loads(raw) if raw else None
            except ValueError:
                problem = f"status {answer.status}, not JSON"
                break
        raise UpstreamError(f"{method} {path} at {self._host}:{self._port} failed: {problem}")

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

    def _call(
        self,
        method: str,
        path: str,
        model: type[M],
        *,
        body: BaseModel | None = None,
        query: Mapping[str, str] | None = None,
    ) -> M:
        sent = body.model_dump_json() if body is not None else None
        status, found = self._transport.send(method, api.BASE + path, query or {}, sent)
        if status == 200:
            return model.model_validate(found)
        told = found if isinstance(found, dict) else {}
        message = str(told.get("message") or told.get("detail") or f"status {status}")
        if status == 404:
            raise NotFound(message, key=told.get("key"))
        if status in (401, 403):
            raise api.Forbidden(message, key=told.get("key"))
        if status == 422:
            raise DataError(message, key=told.get("key"), todo=told.get("todo"))
        raise UpstreamError(message)
