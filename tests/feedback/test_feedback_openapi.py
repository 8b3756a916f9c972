"""The API against its own description: every route is described, and a program that tries what the description allows
(Schemathesis) never meets a 5xx, an answer of another shape, or an error without a sentence."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from test_feedback_api import answer, world

from tutelage.core.artifact import Root
from tutelage.core.errors import UpstreamError
from tutelage.core.records import Message
from tutelage.feedback import api, openapi
from tutelage.feedback.client import Client
from tutelage.feedback.wire import Claim
from tutelage.store import access, people
from tutelage.web import feedback
from tutelage.web.app import Server, create_app
from tutelage.web.settings import Settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
    negative_data_rejection,
]


@dataclass
class Running:
    """A service with a project that has answers, and the token of an owner who is an annotator too."""

    server: Server
    token: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = Root(tmp_path_factory.mktemp("open") / "life").create()
    store, lead, crew, _ = world(root, tasks_=40)
    for person in crew:
        api.submit(store, person, api.Answers(answers=[
            answer(each) for each in api.claim(store, person, Claim(project="help", count=5)).items
        ]))  # fmt: skip
    people.grant(store, lead.id, "owner")
    token = access.issue_token(store, lead.id, ("feedback",))
    store.close()
    with Server(create_app(root, Settings())) as server:
        yield Running(server, token)


def test_every_route_is_described_with_its_scope_and_its_errors() -> None:
    found = openapi.document()
    named = [op["operationId"] for path in found["paths"].values() for op in path.values()]
    assert len(named) == len(set(named)) == len(openapi.EVERY)
    for route in openapi.EVERY:
        operation = found["paths"][route.path][route.method.lower()]
        assert operation["security"] == [{"token": [route.scope]}] and route.scope in openapi.SCOPES
        assert {"200", "401", "403", "404", "422", "503"} <= set(operation["responses"])
        assert operation["summary"] and bool(route.body) == ("requestBody" in operation)
    text = json.dumps(found)
    assert "$defs" not in text, "every reference leads into the components"
    assert all(ref in found["components"]["schemas"] for ref in set(_refs(found)))


def _refs(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        if isinstance(ref := found.get("$ref"), str):
            yield ref.removeprefix("#/components/schemas/")
        found = list(found.values())
    for each in found if isinstance(found, list) else ():
        yield from _refs(each)


def test_the_document_is_served_and_is_part_of_the_whole_one(running: Running) -> None:
    def get(path: str) -> Any:
        with urllib.request.urlopen(running.server.url + path, timeout=10) as told:
            return json.load(told)

    own, whole = get("/api/feedback/openapi.json"), get("/openapi.json")
    assert own == json.loads(json.dumps(openapi.document()))
    assert own["paths"].items() <= whole["paths"].items() and "/v1/chat/completions" in whole["paths"]


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "a\\u0000b"}', '{"name": "p", "form": {"guideline": "\\ud800"}}',
        '{"name": "p", "settings": {"x": NaN}}',
        '{"name": "p", "settings": {"x": 1e999}}', '{"name": "p", "settings": {"x": 99999999999999999999}}',
        '{"name": "p", "settings": {"roles": 5}}', '{"name": "p", "settings": ' + '{"x":' * 60 + "1" + "}" * 61,
        "[" * 100_000, '{"name": "p"', '"p"', "", '{"name": "p", "per_task": 1e3000}',
    ],
)  # fmt: skip
def test_what_no_database_keeps_is_refused_in_a_sentence(running: Running, body: str) -> None:
    place = running.server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(place, timeout=10)
    headers = {"authorization": f"Bearer {running.token}", "content-type": "application/json"}
    connection.request("POST", "/api/feedback/projects", body.encode(), headers)
    answer_ = connection.getresponse()
    told = json.load(answer_)
    connection.close()
    assert answer_.status == 422 and told["message"] and len(told["message"]) < 300, told


def test_a_body_without_end_is_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MOST_BODY", 1000)
    with pytest.raises(UpstreamError, match="larger than"):
        Client(running.server.url, running.token).add_tasks(
            "help", [api.NewTask(key="long", kind="tag", messages=(Message(role="user", content="x" * 2000),))]
        )


def test_a_file_comes_in_a_form_that_is_described(running: Running) -> None:
    described = openapi.document()["paths"]["/api/feedback/projects/{project}/export/{consumer}.{format}"]["get"]
    for form in ("jsonl", "parquet", "zip"):
        path = f"/api/feedback/projects/help/export/dpo.{form}?accept=not-stated"
        request = urllib.request.Request(
            running.server.url + path, headers={"authorization": f"Bearer {running.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as told:
            assert told.headers["content-type"] in described["responses"]["200"]["content"]
            assert told.headers["x-people"] == "live" and int(told.headers["x-rows"]) > 0 and told.read()


def tried(running: Running, examples: int, phases: list[Phase]) -> dict[str, int]:
    """Call every operation with generated requests, good and bad ones; how often each was called."""
    schema = schemathesis.openapi.from_url(f"{running.server.url}/api/feedback/openapi.json")
    headers = {"authorization": f"Bearer {running.token}"}
    called: dict[str, int] = {}

    def call(case: Any) -> None:
        called[case.operation.label] = called.get(case.operation.label, 0) + 1
        reply = case.call(headers=headers)
        asked = parse_qs(urlsplit(reply.request.url).query, keep_blank_values=True)
        whole = set(case.query or {}) <= set(asked)  # a parameter without a value never leaves the client: all was well
        excused = [] if whole else [negative_data_rejection]
        case.validate_response(
            reply, checks=CHECKS, excluded_checks=excused, headers=headers, transport_kwargs={"headers": headers}
        )

    how = settings(
        max_examples=examples, derandomize=True, database=None, phases=phases, suppress_health_check=list(HealthCheck)
    )
    for operation in schema.get_all_operations():
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            how(given(case=operation.ok().as_strategy(generation_mode=mode))(call))()
    return called


def test_a_few_generated_requests(running: Running) -> None:
    called = tried(running, 3, [Phase.generate])
    assert len(called) == len(openapi.EVERY) and min(called.values()) >= 1


@pytest.mark.slow
def test_many_generated_requests(running: Running) -> None:
    called = tried(running, 40, [Phase.explicit, Phase.generate, Phase.shrink])
    assert len(called) == len(openapi.EVERY) and sum(called.values()) > 40 * len(openapi.EVERY)
