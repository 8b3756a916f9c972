"""Operating the service: budgets, keys and scopes, load, logs, spans, figures, incidents by rule, replay, shadow."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "guard"))
from guard_house import make_bundle, make_root
from test_web_gateway import ATTACK, HELLO, behind, chat, wait_for  # noqa: F401

from tutelage.core.artifact import Root
from tutelage.core.config import build, parse_yaml
from tutelage.core.errors import ConfigError, NotFound
from tutelage.core.records import Verdict
from tutelage.feedback.client import Client
from tutelage.govern.replay import replay
from tutelage.store import access, incidents, people, review, standings, traces, traffic
from tutelage.web import semconv, watch
from tutelage.web.app import Server, create_app
from tutelage.web.settings import Key, Settings

MAIL = "write to ana.lopez@example.org about the parcel"


@pytest.fixture(scope="module")
def kept_root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    root = make_root(tmp_path_factory.mktemp("operations"))
    make_bundle(root, tmp_path_factory.mktemp("policy"))
    return root


def settings(root: Root, url: str, **values: Any) -> Settings:
    given = {"serve": root.list("bundle")[0].ref, "follow_seconds": 0.1, "upstream": {"url": url, "model": "m"}}
    return build(Settings, given | values)


@pytest.fixture(scope="module")
def observed(kept_root: Root, behind: str) -> Iterator[Server]:  # noqa: F811
    given = settings(kept_root, behind, telemetry={"logs": "logs/requests.jsonl", "traces": "logs/spans.jsonl"})
    with Server(create_app(kept_root, given)) as server:
        yield server


def caller(server: Server, key: str = "") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key or server.key(), max_retries=0)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_the_settings_that_the_readme_shows_are_settings() -> None:
    (shown,) = re.findall(r"```yaml\n(tenants:.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.S)
    made = build(Settings, parse_yaml(shown))
    old, new, scan = made.tenants["acme"].keys
    assert isinstance(old, Key) and old.until == "2027-01-31" and old.ends and isinstance(new, Key) and new.ends is None
    assert isinstance(scan, Key) and scan.scopes == ("guard",) and made.max_tokens == 4096


# what is told


def test_a_request_is_a_line_and_a_span_without_a_word_of_it(observed: Server, kept_root: Root) -> None:
    client = caller(observed)
    answer = chat(client, MAIL)
    chat(client, f'{ATTACK}\n{{"event": "forged"}}')
    folder = kept_root.path / "logs"
    wait_for(lambda: len(lines(folder / "spans.jsonl")) >= 2, 20)
    told = lines(folder / "requests.jsonl")
    first, second = told[-2:]
    assert first["id"] == answer.id and first["event"] == "request" and first["finish"] == ["stop"]
    assert second["action"] == "block" and second["rules"] == ["injection"]
    raw = (folder / "requests.jsonl").read_text() + (folder / "spans.jsonl").read_text()
    for word in ("ana.lopez", "parcel", "forged", "ignore all", HELLO):
        assert word not in raw
    span = next(each for each in lines(folder / "spans.jsonl") if each["attributes"][semconv.RESPONSE_ID] == answer.id)
    assert span["name"] == "chat tutelage" and span["kind"] == "SpanKind.SERVER"
    assert span["attributes"][semconv.OPERATION] == "chat"
    assert span["attributes"][semconv.OUTPUT_TOKENS] == answer.usage.completion_tokens
    events = [each["name"] for each in span["events"]]
    assert semconv.DECISION_EVENT in events and semconv.VERDICT_EVENT in events


def test_figures_by_stage_guard_and_tenant(observed: Server) -> None:
    for text in (HELLO, ATTACK):
        chat(caller(observed), text)
    observed.state.flush()
    key = observed.key("meter", scopes=("metrics",))
    text = httpx.get(f"{observed.url}/metrics", headers={"authorization": f"Bearer {key}"}).text
    for stage in ("input_guards", "output_guards", "first_byte", "total"):
        (count,) = re.findall(rf'tutelage_stage_seconds_count{{stage="{stage}"}} (\S+)', text)
        assert float(count) > 0, stage
    assert re.search(r'tutelage_verdicts_total{category="prompt_injection",guard="[^"]+",status="ok"} [1-9]', text)
    assert re.search(r'tutelage_withheld_total{action="block",category="prompt_injection"} [1-9]', text)
    assert re.search(r'tutelage_tokens_total{kind="completion",tenant="default"} [1-9]', text)
    assert "tutelage_traces_lost 0.0" in text
    health = httpx.get(f"{observed.url}/health").json()
    assert health["traces_lost"] == 0 and isinstance(health["breakers"], dict)


def test_content_is_told_only_where_it_is_asked_for_and_masked(
    kept_root: Root,
    behind: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    log = tmp_path / "with-words.jsonl"
    given = settings(kept_root, behind, telemetry={"logs": str(log), "content": True})
    with Server(create_app(kept_root, given)) as server:
        chat(caller(server), MAIL)
    (line,) = lines(log)
    assert "about the parcel" in line["asked"][0]["content"] and "ana.lopez" not in log.read_text()
    assert line["answered"] == [HELLO]


def test_a_log_that_cannot_be_written_is_said_at_the_start(kept_root: Root, behind: str) -> None:  # noqa: F811
    given = settings(kept_root, behind, telemetry={"logs": "service.yaml/nowhere/log"})
    (kept_root.path / "service.yaml").write_text("port: 0\n")
    with pytest.raises(ConfigError, match="telemetry"):
        create_app(kept_root, given)


# who may, and how much


def test_budgets_keys_with_an_end_scopes_and_load(kept_root: Root, behind: str) -> None:  # noqa: F811
    keys = [
        {"key": "env:OLD", "until": "2020-01-01"},
        {"key": "env:NEW", "until": "2999-01-01T00:00:00Z"},
        {"key": "env:GUARD", "scopes": ["guard"]},
    ]
    small = {"keys": keys, "budget": {"day_tokens": 60}}
    given = settings(
        kept_root, behind, tenants={"default": {}, "small": small, "last": {"keys": ["env:LOW"], "priority": "low"}}
    )
    names = {"OLD": "old-key", "NEW": "new-key", "GUARD": "guard-key", "LOW": "low-key"}
    with Server(create_app(kept_root, given, environment=names)) as server:
        with pytest.raises(openai.AuthenticationError):
            chat(caller(server, "old-key"), HELLO, max_tokens=8)
        assert chat(caller(server, "new-key"), HELLO, max_tokens=8).choices[0].message.content
        with pytest.raises(openai.RateLimitError) as stopped:
            chat(caller(server, "new-key"), HELLO, max_tokens=60)
        assert stopped.value.code == "insufficient_quota" and int(stopped.value.response.headers["retry-after"]) > 0
        with pytest.raises(openai.PermissionDeniedError, match="scope"):
            chat(caller(server, "guard-key"), HELLO)
        wait_for(lambda: server.state.tenancy.budgets.used("small", _day()) > 0)
        (row,) = server.state.tenancy.spending()
        assert row[:2] == ("small", "day") and 0 < row[2] <= row[3] == 60
        assert caller(server, "guard-key").moderations.create(input=ATTACK).results[0].flagged
        server.state.tenancy.shedder._capacity = 1
        server.state.tenancy.shedder.running = 1
        with pytest.raises(openai.InternalServerError) as full:
            chat(caller(server, "low-key"), HELLO)
        assert full.value.response.status_code == 503 and full.value.response.headers["retry-after"] == "2"
        server.state.tenancy.shedder.running = 0
        key = server.key("meter", scopes=("metrics",))
        text = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {key}"}).text
        assert 'tutelage_sheds_total{reason="overloaded",tenant="last"} 1.0' in text
        assert 'tutelage_sheds_total{reason="insufficient_quota",tenant="small"} 1.0' in text
    again = Server(create_app(kept_root, given, environment=names))
    with again, pytest.raises(openai.RateLimitError):  # what was used is kept
        chat(caller(again, "new-key"), HELLO, max_tokens=60)


def _day() -> str:
    import time

    from tutelage.guard.limits import periods

    return periods(time.time())[0]


@pytest.mark.parametrize(
    "tenant",
    [
        {"keys": [{"key": "env:A", "until": "soon"}]},
        {"keys": [{"key": "env:A", "scopes": ["everything"]}]},
        {"priority": "first"},
        {"budget": {"day_tokens": -1}},
    ],
)
def test_what_is_wrong_in_service_yaml_is_named(tenant: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="tenants"):
        build(Settings, {"tenants": {"acme": tenant}})
    with pytest.raises(ConfigError, match="120 characters"):
        build(Settings, {"tenants": {"x" * 121: {}}})


def test_a_token_is_replaced_while_the_old_one_still_works(observed: Server) -> None:
    store = observed.state.store
    ana = people.create(store, "rotating", roles=("annotator",))
    old = access.issue_token(store, ana.id, ("chat",), "mine", 30.0)
    (known,) = access.tokens(store, ana.id)
    new = access.rotate(store, ana.id, known.id, 24, by=ana.id)
    assert access.by_token(store, old) and access.by_token(store, new)
    first, second = access.tokens(store, ana.id)
    assert first.scopes == ("chat",) and first.label == "mine" and second.expires_at < known.expires_at
    access.end_token(store, ana.id, second.id, by=ana.id)
    with pytest.raises(Exception, match="ended"):
        access.rotate(store, ana.id, second.id, 24, by=ana.id)
    assert access.by_token(store, old) is None and access.by_token(store, new)


def test_a_wrong_token_is_told_from_none(observed: Server) -> None:
    for headers, word in (({}, "send `Authorization"), ({"authorization": "Bearer tut_no"}, "not known")):
        told = httpx.get(f"{observed.url}/api/feedback/projects", headers=headers)
        assert told.status_code == 401 and word in told.json()["message"]
    with pytest.raises(Exception, match="not known"):
        Client(observed.url, "tut_no").history()


# incidents by rule


def put(store: Any, many: int, ago_ms: int, action: str, status: str = "ok") -> None:
    at = review.now() - ago_ms
    verdict = Verdict(judge="g1", status=status, scores={"crime": 0.9} if status == "ok" else {})  # type: ignore[arg-type]
    for _ in range(many):
        decided = traces.Decided(action=action, verdicts=(verdict,))  # type: ignore[arg-type]
        traces.write(store, [traces.Trace(decisions=(decided,), at=at)])


class Told:
    """What a service knows of itself."""

    def __init__(self, failed: int = 0, asked: int = 0) -> None:
        self.counts = failed, asked

    def upstream_failures(self) -> tuple[int, int]:
        return self.counts


def test_rules_open_incidents_and_quiet_opens_none(store: Any) -> None:
    put(store, 200, 3_600_000, "allow")
    put(store, 10, 3_600_000, "block")
    put(store, 40, 1000, "allow")
    put(store, 2, 1000, "block")
    assert watch.look(store, None, Told(3, 100), {"g1": "closed"}) == [], "as usual"
    put(store, 30, 1000, "block")
    put(store, 20, 1000, "allow", "timeout")
    found = watch.look(store, None, Told(40, 60), {"g1": "open", "upstream a": "half"}, lost=2)
    assert {each.kind for each in incidents.every(store)} == {"blocks", "guard", "breaker", "upstream", "records"}
    assert len(found) == 5 and watch.look(store, None, Told(40, 60), {"g1": "open"}, lost=2) == found


def test_drift_expires_certificates_and_a_guard_then_only_flags(
    kept_root: Root,
    behind: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    shutil.copytree(kept_root.path, tmp_path / "life", ignore=shutil.ignore_patterns("store.db*"))
    root = Root(tmp_path / "life")
    with Server(create_app(root, settings(root, behind))) as server:
        state = server.state
        client = caller(server)
        assert chat(client, ATTACK).choices[0].finish_reason == "content_filter"
        tried = review.Drift("false_positive_rate", "w0", 0.3, 0.1, True, {"people": "simulated"})
        review.save_drift(state.store, [tried])
        state.watch()
        assert standings.expired(state.store) == set(), "simulated people say nothing of users"
        review.save_drift(state.store, [review.Drift("false_positive_rate", "w1", 0.3, 0.1, True)])
        state.watch()
        (found,) = [each for each in incidents.every(state.store) if each.kind == "drift"]
        assert "false positive rate in w1" in found.title
        assert standings.expired(state.store)
        passed = chat(client, ATTACK)
        assert passed.choices[0].finish_reason == "stop", "an expired certificate stops nothing"
        state.flush()
        (kept,) = traffic.requests(state.store, ids=[passed.id])
        assert kept.decisions[0].action == "flag" and "certificate expired" in kept.decisions[0].reasons[0]
        guards = state.pipeline.policy.guards
        mine = {each.id: guard.name for guard in guards for each in guard.certificates}
        standings.renew(state.store, mine, reason="looked at", by="lea")
        state.stand()
        assert chat(client, ATTACK).choices[0].finish_reason == "content_filter"
        standings.switch(state.store, guards[0].name, "shadow", reason="tried out", by="lea")
        state.stand()
        shadowed = chat(client, ATTACK)
        assert shadowed.choices[0].finish_reason == "stop"
        state.flush()
        (kept,) = traffic.requests(state.store, ids=[shadowed.id])
        assert kept.decisions[0].action == "allow" and kept.decisions[0].verdicts, "heard, and decides nothing"
        again = replay(state.store, root, kept.decisions[0].id)
        assert again.outcome == "same", "as its guards stood then"
        standings.switch(state.store, guards[0].name, "on", reason="done", by="lea")


# replay


def test_a_decision_is_made_again_offline(observed: Server, kept_root: Root) -> None:
    client, store = caller(observed), observed.state.store
    asked = [chat(client, text).id for text in (ATTACK, MAIL, "where is my bread", HELLO)]
    observed.state.flush()
    for request in traffic.requests(store, ids=asked):
        for decision in request.decisions:
            found = replay(store, kept_root, decision.id)
            assert found.outcome == "same" and found.after == decision.action, found
            assert found.policy == decision.policy and (found.heads or not decision.verdicts)
    with pytest.raises(NotFound):
        replay(store, kept_root, "nothing")


def test_what_differs_and_what_is_missing_is_named(observed: Server, kept_root: Root) -> None:
    store = observed.state.store
    request = traffic.requests(store, ids=[chat(caller(observed), ATTACK).id])
    observed.state.flush()
    request = traffic.requests(store, newest_first=True, limit=1)
    kept = request[0].decisions[0]
    base = {"messages": request[0].messages, "release": request[0].release, "surface": "chat"}

    def put_in(**values: Any) -> str:
        decided = traces.Decided(
            action=values.get("action", kept.action),
            policy=values.get("policy", kept.policy),
            reasons=kept.reasons,
            verdicts=values.get("verdicts", kept.verdicts),
        )
        traces.write(store, [traces.Trace(**(base | values.get("trace", {})), decisions=(decided,))])
        return decided.id

    assert replay(store, kept_root, put_in()).outcome == "same"
    milder = replay(store, kept_root, put_in(action="flag"))
    assert milder.outcome == "differs" and milder.differs == ("the decision was flag and is block",)
    guard = next(each for each in kept.verdicts if each.scores)
    moved = guard.model_copy(update={"scores": {name: 0.5 for name in guard.scores}})
    assert "was 0.500000" in replay(store, kept_root, put_in(verdicts=(moved,))).differs[0]
    other = guard.model_copy(update={"judge": "classifier:gone"})
    assert replay(store, kept_root, put_in(verdicts=(other,))).missing == ("the guard 'classifier:gone'",)
    assert "the policy" in replay(store, kept_root, put_in(policy="f" * 64)).missing[0]
    assert "bundle" in replay(store, kept_root, put_in(trace={"release": "bundle:" + "0" * 64})).missing[0]
    assert "erased" in replay(store, kept_root, put_in(trace={"messages": ()})).missing[0]
    failed = Verdict(judge=guard.judge, status="timeout")
    assert "repeats no clock" in replay(store, kept_root, put_in(verdicts=(failed,))).notes[0]


def test_replay_at_the_command_line(observed: Server, kept_root: Root) -> None:
    said = chat(caller(observed), ATTACK)
    observed.state.flush()
    run = [sys.executable, "-m", "tutelage", "replay", said.id, "--root", str(kept_root.path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "same  block -> block" in done.stdout, done.stderr


# the console


def test_incidents_are_noted_and_closed_from_the_console(visit: Any, house: Any) -> None:
    asked = traffic.requests(house.store, limit=1)[0]
    traffic.add_feedback(house.store, asked.id, "appeal", text="<b>mine</b>", actor="u1")
    page = visit("lea").go("/operate")
    page.get_by_role("link", name="A user appeals").click()
    page.get_by_text("<b>mine</b>").wait_for()
    page.get_by_label("What you found or did").fill("It was theirs.")
    page.get_by_role("button", name="Note it").click()
    page.get_by_text("It was theirs.").wait_for()
    page.get_by_label("What you found or did").fill("The rule is milder now.")
    page.get_by_role("button", name="Close the incident").click()
    page.get_by_text("It is closed").wait_for()
    assert incidents.counts(house.store) == {}
    page.goto(f"{house.url}/operate")
    page.get_by_role("link", name="Incidents").click()
    page.get_by_text("Nothing is open.").wait_for()


def test_the_live_page_renews_itself(visit: Any, house: Any) -> None:
    page = visit("lea").go("/operate?span=hour")
    assert "60 of these 60 requests" in page.locator("main").inner_text()
    page.locator("[data-live]").evaluate("node => { node.dataset.mark = '1'; }")
    put(house.store, 7, 1000, "block")
    page.get_by_text("67").first.wait_for(timeout=15_000)
    assert page.locator("[data-live]").get_attribute("data-mark") == "1", "the page was not loaded again"


def test_who_may_switch_a_guard_and_close_an_incident(site: Any) -> None:
    lead = site("lea")
    csrf = lead.headers["x-csrf-token"]
    form = {"guard": "nobody", "do": "on", "reason": "x", "csrf": csrf}
    assert lead.post("/operate/guards", data=form).status_code == 422
    id = incidents.open(site.store, "note", "a", "a")
    assert lead.post(f"/incidents/{id}", data={"text": "", "csrf": csrf}).status_code == 422
    assert lead.post("/incidents/nothing", data={"text": "x", "csrf": csrf}).status_code == 404
    assert lead.post("/incidents", data={"title": "", "text": "x", "csrf": csrf}).status_code == 422
    made = lead.post("/incidents", data={"title": "A leak", "text": "seen at noon", "csrf": csrf})
    assert made.status_code == 303 and lead.get(made.headers["location"]).status_code == 200
    assert lead.get("/incidents/nothing").status_code == 404
    rio = site("rio")
    assert rio.get(f"/incidents/{id}").status_code == 200
    assert rio.post(f"/incidents/{id}", data={"text": "x", "csrf": rio.headers["x-csrf-token"]}).status_code == 403
    assert site("ana").get("/incidents").status_code == 403


def test_a_lead_switches_a_guard_by_keyboard(
    kept_root: Root,
    behind: str,  # noqa: F811
    browser: Any,
    shots: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(kept_root.path, tmp_path / "life", ignore=shutil.ignore_patterns("store.db*"))
    root = Root(tmp_path / "life")
    tenants = {"default": {"budget": {"day_tokens": 100000, "month_tokens": 2000000}}}
    with Server(create_app(root, settings(root, behind, tenants=tenants))) as server:
        client, store = caller(server), server.state.store
        for text in (ATTACK, HELLO, HELLO):
            chat(client, text)
        server.state.flush()
        lea = people.create(store, "lea", roles=("lead", "safety"))
        cookie, _ = access.open_session(store, lea.id)
        window = browser.new_context(viewport={"width": 1280, "height": 900})
        window.add_cookies([{"name": "tutelage", "value": cookie, "url": server.url}])
        page = window.new_page()
        page.goto(f"{server.url}/operate?span=hour")
        page.get_by_text("decides").first.wait_for()
        page.locator("summary", has_text="Switch a guard").focus()
        page.keyboard.press("Enter")
        page.get_by_label("Reason, kept for good").fill("too many false alarms")
        page.screenshot(path=shots / "operate-guards-light-1280.png", full_page=True)
        page.keyboard.press("Enter")
        page.get_by_text("The guard is in shadow from now on").wait_for()
        page.get_by_text("shadow").nth(1).wait_for()
        assert chat(client, ATTACK).choices[0].finish_reason == "stop"
        page.close()
        window.close()
