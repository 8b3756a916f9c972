"""Free dialogue over the real service: by a typed client, and by keyboard alone in a real browser."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from test_web_pages import shown

from tutelage.core.artifact import Root
from tutelage.core.errors import DataError
from tutelage.feedback import api
from tutelage.feedback.client import Client
from tutelage.store import access, answers, people, tasks
from tutelage.web.addresses import UpstreamSettings
from tutelage.web.app import Server, create_app
from tutelage.web.settings import Settings

Visit = Any
SAID = {"warm": "Of course! The ferry office stands at the north pier, beside the mill.", "short": "North pier."}


class Speaker(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint with two voices; it can be made slow."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        time.sleep(self.server.slow.get(asked["model"], 0))  # type: ignore[attr-defined]
        said = f"{SAID[asked['model']]} ({asked['messages'][-1]['content']})"
        message = {"role": "assistant", "content": said}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {}}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        with suppress(OSError):  # whoever asked may have gone
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def speaker() -> Any:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Speaker)
    server.asked, server.slow = [], {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def settings_of(speaker: Any) -> Settings:
    url = f"http://127.0.0.1:{speaker.server_address[1]}/v1"
    named = {model: UpstreamSettings(url=url, model=model) for model in SAID}
    return Settings(serve="release:none", generators=named)


def talks(store: Any, lead: people.Person, **changes: Any) -> None:
    form = api.Form(
        questions=(
            api.Question(key="strength", kind="strength", choices=("slightly better", "clearly better", "much better"),
                         required=False),
        ),
        guideline="# What counts\nRight before polite, polite before short.",
    )  # fmt: skip
    told = {"dialogue": {"generators": ["warm", "short"], "timeout_s": 20, **changes}}
    api.create_project(store, lead, api.NewProject(name="talks", kind="dialogue", form=form, settings=told))


@pytest.fixture
def house(tmp_path: Any, filled: Any, speaker: Any) -> Any:
    """The filled house with generators for dialogues in its settings."""
    import shutil

    from conftest import House

    shutil.copytree(filled.root.path, tmp_path / "town")
    root = Root(tmp_path / "town")
    with Server(create_app(root, settings_of(speaker))) as server:
        made = House(root, server.state.store, dict(filled.people), server.url)
        talks(made.store, made.people["lea"])
        yield made


def client_of(house: Any, name: str = "ana") -> Client:
    scopes = ("feedback:answer", "feedback:read")
    return Client(house.url, access.issue_token(house.store, house.people[name].id, scopes))


def judged(client: Client, item: api.Item, best: str, **fields: Any) -> None:
    order = sorted(item.candidates, key=lambda each: not each.content.startswith(best))
    given = {"tiers": [[each.no] for each in order]} | fields
    answer = api.Answer(slot=item.slot, epoch=item.epoch, key=f"answer-{item.slot}", **given)
    assert client.submit([answer]).receipts[0].status == "stored"


def test_a_client_talks_picks_and_ends(house: Any, speaker: Any) -> None:
    client = client_of(house)
    assert client.dialogue("talks").messages == ()
    first = client.say("talks", "Where is the ferry office?", key="first-message")
    assert first.item is not None and len(first.item.candidates) == 2 and "warm" not in first.model_dump_json()
    judged(client, first.item, "North", values={"strength": "clearly better"})
    second = client.say("talks", "And the mill?", key="second-message")
    assert second.messages[1].content == "North pier. (Where is the ferry office?)"
    assert second.item is not None
    judged(client, second.item, "Of course", rewrite="Beside the pier.")
    assert client.dialogue("talks").messages[-1].content == "Beside the pier."
    assert client.end_dialogue("talks").ended
    assert client.dialogue("talks").messages == ()
    given = answers.read(house.store, "talks")
    assert [each.value("strength") for each in given] == [2.0, None] and given[1].value("rewrite")
    producers = {name for task in tasks.load(house.store, project_name="talks").values() for name in task.producers}
    assert len(producers) == 2 and all("#" in name for name in producers)
    with pytest.raises(DataError, match="kind ranking"):
        client.dialogue("desk ranking")
    with pytest.raises(api.Forbidden):
        Client(house.url, access.issue_token(house.store, house.people["ana"].id, ("feedback:read",))).dialogue("talks")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{oops", 422),
        (b"{}", 422),
        (b'{"message": "", "key": "a-long-key"}', 422),
        (b'{"message": "hi", "key": "short"}', 422),
        (json.dumps({"message": "x" * 20_001, "key": "a-long-key"}).encode(), 422),
        (b'{"message": "hi", "key": "a-long-key", "dialogue": "of nobody"}', 422),
        (b'{"message": "hi", "key": "a-long-key", "more": 1}', 422),
    ],
)
def test_what_cannot_be_said_is_refused_with_a_sentence(house: Any, speaker: Any, body: bytes, status: int) -> None:
    token = access.issue_token(house.store, house.people["ana"].id, ("feedback:answer",))
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    url = f"{house.url}/api/feedback/projects/talks/dialogue"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, body, headers))
    told = json.loads(refused.value.read())
    assert refused.value.code == status and told["message"] and speaker.asked == []


def test_an_address_that_the_service_does_not_name_is_never_called(house: Any, speaker: Any) -> None:
    url = f"http://127.0.0.1:{speaker.server_address[1]}/v1#warm"
    for name, ref in (("direct", url), ("code", "tutelage.generate.fake:open_fake")):
        told = {"dialogue": {"generators": [ref]}}
        api.create_project(house.store, house.people["lea"], api.NewProject(name=name, kind="dialogue", settings=told))
        said = client_of(house).say(name, "Hello", key="a-message-key")
        assert said.item is None and "service.yaml" in said.problem
    assert speaker.asked == []


def test_a_dialogue_with_the_keyboard_alone(visit: Visit, shots: Any) -> None:
    window = visit("ana")
    page = window.go("/task/next?project=talks")
    assert page.url.endswith("/dialogue/talks")
    shown(page, "dialogue-begin", "light", 1280, shots)
    page.keyboard.type("Where is the <b>ferry</b> office?")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator("article.candidate").count() == 2 and page.locator("b").count() == 0
    assert "warm" not in page.content() and "127.0.0.1:" not in page.locator("main").inner_text()
    shown(page, "dialogue-choose", "light", 1280, shots)
    first = page.locator("article.candidate .said").first.inner_text()
    page.keyboard.press("1")  # the first is much better
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_selector("form[data-dialogue]")
    assert page.locator(".turn.assistant .said").last.inner_text() == first
    (given,) = answers.read(window.house.store, "talks")
    assert given.value("strength") == 3.0 and len(given.tiers) == 2 and given.active_ms > 0
    page.keyboard.type("And the mill?")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.keyboard.press("x")
    page.locator("textarea[name=rewrite]").fill("It stands beside the pier.")
    with page.expect_navigation():
        page.keyboard.press("Control+Enter")
    page.wait_for_selector("form[data-dialogue]")
    assert page.locator(".turn.assistant .said").last.inner_text() == "It stands beside the pier."
    shown(page, "dialogue-on", "light", 1280, shots)
    page.on("dialog", lambda asked: asked.accept())
    with page.expect_navigation():
        page.get_by_role("button", name="End the conversation").press("Enter")
    assert page.locator(".turn").count() == 0


def test_one_answer_alone_and_a_turn_that_is_passed_over(visit: Visit, speaker: Any, shots: Any) -> None:
    window = visit("ana", scheme="dark", width=390)
    talks_of_one(window.house, speaker)
    speaker.slow.pop("short")
    page = window.go("/dialogue/slow%20talks")
    for key, button in (("1", "Go on"), ("s", "Skip")):
        page.keyboard.type("Is anybody there?")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert page.get_by_text("Only one answer can be shown").is_visible()
        assert page.locator("fieldset.row").count() == 2 and page.locator("button[data-undo]").is_hidden()
        shown(page, "dialogue-alone", "dark", 390, shots)
        page.keyboard.press(key)
        with page.expect_navigation():
            page.get_by_role("button", name=re.compile(f"{button}( Enter)?$")).press("Enter")
        page.wait_for_selector("form[data-dialogue]")
        assert page.url.endswith("/dialogue/slow%20talks")
        assert page.locator(".turn").count() == 2


def test_a_message_is_kept_until_it_is_answered(visit: Visit, speaker: Any, shots: Any) -> None:
    window = visit("ana", scheme="dark", width=390)
    talks_of_one(window.house, speaker)
    page = window.go("/dialogue/slow%20talks")
    page.keyboard.type("Is anybody there?")
    page.keyboard.press("Enter")
    page.get_by_text("did not answer within 1 seconds").first.wait_for()
    assert page.locator("#message").input_value() == "Is anybody there?"
    shown(page, "dialogue-problem", "dark", 390, shots)
    page.reload()
    assert page.locator("#message").input_value() == "Is anybody there?"
    window.context.set_offline(True)
    page.keyboard.press("Enter")
    page.get_by_text("No connection").first.wait_for()
    window.context.set_offline(False)
    speaker.slow.clear()
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator("article.candidate").count() == 2
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select")].filter(e => e.type !== "hidden" &&
             !(e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby"))).map(e => e.name)"""
    )
    assert unnamed == []
    shown(page, "dialogue-choose", "dark", 390, shots)
    window.errors.clear()  # the browser itself reports the lost connection


def talks_of_one(house: Any, speaker: Any) -> None:
    speaker.slow.update(warm=3, short=3)
    told = {"dialogue": {"generators": ["warm", "short"], "timeout_s": 1}}
    api.create_project(
        house.store, house.people["lea"], api.NewProject(name="slow talks", kind="dialogue", settings=told)
    )
