"""The pages and the JSON API without a browser: who may do what, forged forms, bad input, reports that run nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.core.events import JsonLines, Reporter
from tutelage.feedback import api
from tutelage.feedback.api import Item, Question
from tutelage.store import access, answers, ledger, people, releases
from tutelage.web import forms, render, runs
from tutelage.web.app import announce, create_app, first_start
from tutelage.web.settings import Settings

HTML = {"accept": "text/html"}
PAGES = ("/", "/chat", "/task/next", "/history", "/projects", "/review", "/review/decisions", "/redteam", "/runs")


@pytest.mark.parametrize("path", [*PAGES, "/reports", "/operate", "/reports/life.html", "/artifacts/model/abcd"])
def test_a_visitor_is_sent_to_the_log_in(site: Any, path: str) -> None:
    reply = site().get(path, headers=HTML)
    assert reply.status_code == 303 and reply.headers["location"].startswith("/login?next=/")


@pytest.mark.parametrize("path", ["/projects", "/review", "/redteam", "/runs", "/reports", "/operate"])
def test_annotators_do_not_see_what_is_not_for_them(site: Any, path: str) -> None:
    reply = site("ana").get(path, headers=HTML)
    assert reply.status_code == 403 and "role" in reply.text
    assert f'href="{path}"' not in site("ana").get("/", headers=HTML).text


def test_every_page_forbids_what_is_inline_or_from_elsewhere(site: Any) -> None:
    client = site("lea")
    for path in (*PAGES, "/reports", "/operate"):
        reply = client.get(path, headers=HTML)
        assert reply.status_code == 200, path
        policy = reply.headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy
        assert " style=" not in reply.text and "javascript:" not in reply.text and "onclick" not in reply.text
        assert reply.headers["cache-control"] == "no-store"


FORMS = (
    ("/operate/rollback", {"reason": "x"}),
    ("/operate/promote", {"release": "r", "reason": "x"}),
    ("/review/draw", {"budget": "5"}),
    ("/review/conversations/c1/say", {"text": "x"}),
    ("/review/conversations/c1/begin", {"reason": "x"}),
    ("/review/conversations/c1/end", {}),
    ("/operate/guards", {"guard": "g", "do": "on", "reason": "x"}),
    ("/incidents", {"title": "x", "text": "x"}),
    ("/incidents/x", {"text": "x"}),
    ("/account/tokens/x/replace", {}),
    ("/reports", {}),
    ("/projects", {"name": "x"}),
    ("/projects/-/preview", {"name": "x"}),
    ("/projects/-/collect", {"name": "x"}),
    ("/projects/-/change", {"name": "x"}),
    ("/projects/desk ranking/disagreements", {}),
    ("/projects/desk ranking/form", {"guideline": "x"}),
    ("/projects/desk ranking/settings", {"do": "close"}),
    ("/projects/desk ranking/tasks/x", {"do": "close"}),
)


@pytest.mark.parametrize(("path", "fields"), FORMS)
def test_a_forged_form_changes_nothing(site: Any, path: str, fields: dict[str, str]) -> None:
    client = site("lea")
    del client.headers["x-csrf-token"]
    for token in ({}, {"csrf": "0" * 32}):
        assert client.post(path, data={**fields, **token}).status_code == 403
    live = releases.current(site.store)
    assert live is not None and live.name == "summer"


def test_the_api_needs_a_token_with_the_scope(site: Any) -> None:
    client = site()
    assert client.get("/api/feedback/projects").status_code == 401
    reader = access.issue_token(site.store, site.people["ana"].id, scopes=("feedback:read",))
    told = client.get("/api/feedback/projects", headers={"authorization": f"Bearer {reader}"})
    assert told.status_code == 200 and {p["name"] for p in told.json()["projects"]} >= {"desk ranking"}
    refused = client.post("/api/feedback/claim", json={}, headers={"authorization": f"Bearer {reader}"})
    assert refused.status_code == 403


def test_the_whole_flow_over_the_api(site: Any) -> None:
    client = site()
    token = access.issue_token(site.store, site.people["ana"].id, scopes=("feedback",))
    client.headers["authorization"] = f"Bearer {token}"
    item = client.post("/api/feedback/claim", json={"project": "desk ranking"}).json()["items"][0]
    numbers = [shown["no"] for shown in item["candidates"]]
    assert "producer" not in json.dumps(item), "who made an answer is never told"
    answer = {"slot": item["slot"], "epoch": item["epoch"], "key": "key-12345678", "tiers": [[n] for n in numbers]}
    for status in ("stored", "repeated"):
        told = client.post("/api/feedback/answers", json={"answers": [answer]})
        assert told.json()["receipts"][0]["status"] == status
    assert len(answers.read(site.store, "desk ranking")) == 1
    assert client.post("/api/feedback/claim", content=b"{no json").status_code == 422
    assert client.post("/api/feedback/claim", json={"nonsense": 1}).status_code == 422
    assert client.get("/api/feedback/projects/nothing/progress").status_code == 404


def test_the_api_is_described(site: Any) -> None:
    paths = site().get("/openapi.json").json()["paths"]
    assert "/api/feedback/claim" in paths and "/api/feedback/answers" in paths
    assert not any(path.startswith(("/task", "/operate")) for path in paths), "pages are no API"


KEYED = {"epoch": "1", "key": "12345678"}
BROKEN: tuple[dict[str, str], ...] = (
    {},
    {"epoch": "x"},
    KEYED | {"tier:0": "first"},
    KEYED | {"tier:99": "1"},
    KEYED | {"epoch": "9999999999999999999999"},
    KEYED | {"score:right:0": "7"},
    KEYED | {"active_ms": "inf"},
    KEYED | {"key": "k" * 500},
)


@pytest.mark.parametrize("fields", BROKEN)
def test_a_broken_form_is_refused_and_nothing_is_stored(site: Any, fields: dict[str, str]) -> None:
    client = site("ana")
    item = api.claim(site.store, site.people["ana"], api.Claim(project="desk ranking")).items[0]
    reply = client.post(f"/task/{item.slot}", data=fields, headers={"accept": "application/json"})
    assert reply.status_code in (409, 422) and reply.json()["error"]
    assert answers.read(site.store, "desk ranking", status=None) == []


def test_somebody_elses_task_is_not_mine(site: Any) -> None:
    item = api.claim(site.store, site.people["ana"], api.Claim(project="desk ranking")).items[0]
    other = site("lea")
    assert other.get(f"/task/{item.slot}", headers=HTML).status_code == 404
    fields = {"epoch": "1", "key": "12345678", "project": "desk ranking"}
    reply = other.post(f"/task/{item.slot}", data=fields, headers={"accept": "application/json"})
    assert reply.status_code == 409 and reply.json()["next"].startswith("/task/next?project=desk%20ranking")


def test_without_script_a_form_is_enough(site: Any) -> None:
    client = site("ana")
    item = api.claim(site.store, site.people["ana"], api.Claim(project="desk ranking")).items[0]
    ranks = {f"tier:{shown.no}": str(at) for at, shown in enumerate(item.candidates, 1)}
    fields = {"epoch": str(item.epoch), "key": "12345678", "csrf": client.headers["x-csrf-token"], **ranks}
    reply = client.post(f"/task/{item.slot}", data=fields, headers=HTML)
    assert reply.status_code == 303 and "after=" in reply.headers["location"]
    assert answers.read(site.store, "desk ranking")[0].tiers == tuple((shown.no,) for shown in item.candidates)


def test_a_report_is_made_and_runs_no_script(site: Any) -> None:
    client = site("lea")
    made = client.post("/reports", data={"csrf": client.headers["x-csrf-token"]})
    assert made.headers["location"] == "/reports/life.html"
    reply = client.get("/reports/life.html")
    assert reply.status_code == 200 and "script-src" not in reply.headers["content-security-policy"]
    for name in ("..%2Fstore.db", "%2e%2e/secret.key", "life.txt", "missing.html"):
        assert client.get(f"/reports/{name}").status_code == 404


def test_static_files_are_kept_by_browsers_and_nothing_else_is_served(site: Any) -> None:
    client = site()
    reply = client.get(render.static_url("console.css"))
    assert reply.status_code == 200 and "immutable" in reply.headers["cache-control"]
    again = client.get("/static/console.css", headers={"if-none-match": reply.headers["etag"]})
    assert again.status_code == 304
    for name in ("..%2Frender.py", "render.py", "%2e%2e%2fapp.py", "no.css"):
        assert client.get(f"/static/{name}").status_code == 404


def test_a_filter_does_not_uncover_what_waits_for_a_blind_review(site: Any) -> None:
    client = site("lea")
    every = client.get("/review/decisions", headers=HTML).text
    blocked = client.get("/review/decisions?action=block", headers=HTML).text
    assert "waits for a blind review" in every and "waits for a blind review" not in blocked


def test_the_review_page_draws_and_counts(site: Any) -> None:
    client = site("lea")
    reply = client.post("/review/draw", data={"budget": "5", "csrf": client.headers["x-csrf-token"]})
    assert "has+been+in+a+draw" in reply.headers["location"], "the house has drawn all of them already"
    assert client.post("/review/draw", data={"budget": "0", "csrf": "x"}).status_code == 422


def test_export_is_one_object_a_line(site: Any) -> None:
    item = api.claim(site.store, site.people["ana"], api.Claim(project="desk ranking")).items[0]
    tiers = tuple((shown.no,) for shown in item.candidates)
    given = api.Answer(slot=item.slot, epoch=item.epoch, key="12345678", tiers=tiers)
    api.submit(site.store, site.people["ana"], api.Answers(answers=(given,)))
    refused = site("lea").get("/projects/desk ranking/export.jsonl")
    assert refused.status_code == 422 and "internal" in refused.text, "nobody said how these texts may be used"
    assert not any(row.action == "feedback.export" for row in ledger.rows(site.store))
    reply = site("lea").get("/projects/desk ranking/export?accept=1")
    rows = [json.loads(line) for line in reply.text.splitlines()]
    assert len(rows) == 1 and "ana" not in json.dumps(rows), "people leave the house under a pseudonym"
    (noted,) = [row.body for row in ledger.rows(site.store) if row.action == "feedback.export"]
    assert noted["accepted"] == ["not-stated"]


# the pieces


def question(**fields: Any) -> Question:
    return Question.model_validate({"key": "q", **fields})


def test_rows_of_every_kind_of_question() -> None:
    scale = forms.row_of(question(kind="scale", scale=(0, 10), per_candidate=True), "score:q:0")
    assert [point.key for point in scale.points] == [*map(str, range(10)), ""]
    wide = forms.row_of(question(kind="scale", scale=(-25, 0)), "value:q")
    assert [point.value for point in wide.points] == ["-25", "-12.5", "0"]
    many = forms.row_of(question(kind="choices", choices=tuple(f"c{i}" for i in range(40))), "value:q")
    assert many.kind == "many" and many.required and many.none == "none:q", "that none applies must be said"
    assert len({p.key for p in many.points if p.key}) == len(forms.KEYS)
    assert not set(forms.KEYS) & set("jknrstuwx?"), "keys of choices do nothing else on the page"
    assert forms.row_of(question(kind="boolean"), "value:q").points[0].value == "1"
    assert forms.row_of(question(kind="text"), "value:q").kind == "text"


def test_a_form_and_its_answer_are_the_same_thing(site: Any) -> None:
    person = site.people["ana"]
    item: Item = api.claim(site.store, person, api.Claim(project="desk scoring")).items[0]
    fields = {f"score:{key}:{no}": ["3"] for key in ("right", "polite") for no in range(3)} | {"value:note": ["fine"]}
    given = forms.answer_of(item, fields, key="12345678", epoch=item.epoch, status="submitted")
    api.submit(site.store, person, api.Answers(answers=(given,)))
    stored = answers.read(site.store, "desk scoring", person=person.id)[0]
    assert {k: sorted(v) for k, v in forms.fields_of(stored, item).items()} == {k: sorted(v) for k, v in fields.items()}


def test_guidelines_are_text_with_a_little_form() -> None:
    html = render.prose("# Head\nOne **bold** `code` <b>\n\n- a\n- *b*\n\n[x](javascript:1)")
    assert "<h3>Head</h3>" in html and "<strong>bold</strong>" in html and "<code>code</code>" in html
    assert "&lt;b&gt;" in html and "<li>a</li>" in html and "<em>b</em>" in html
    assert "<a" not in html


def test_runs_read_what_stages_say(tmp_path: Path) -> None:
    from tutelage.core.artifact import Root

    root = Root(tmp_path).create()
    for name, kinds in (("pretrain", ["start", "done"]), ("prepare", ["start"]), ("release", ["start", "wait"])):
        say = Reporter(name, "k", (JsonLines(root.events / f"{name}.jsonl"),), every=0)
        for kind in kinds:
            say.say(kind, text="8 of 20 answers are there" if kind == "wait" else "")
    say = Reporter("finetune", "k", (JsonLines(root.events / "finetune.jsonl"),), every=0)
    say.say("start")
    say.progress(10, 40, "steps", loss=1.5)
    say.note("continued from step 9")
    with (root.events / "finetune.jsonl").open("a") as torn:
        torn.write('{"at": 1, "sta')
    found = {stage.name: stage for stage in runs.stages(root)}
    assert list(found) == ["prepare", "pretrain", "finetune", "release"], "in the order of a life"
    assert found["finetune"].share == 0.25 and found["finetune"].notes == ("continued from step 9",)
    assert found["finetune"].figures == {"loss": 1.5} and found["finetune"].word == "working"
    assert found["release"].word == "waits for people" and "8 of 20" in found["release"].text
    assert runs.stages(Root(tmp_path / "new")) == []


def test_a_start_names_what_answers_and_keeps_the_key_to_itself(tmp_path: Path, upstream: str) -> None:
    import shlex

    from tutelage.core.artifact import Root

    house = create_app(Root(tmp_path / "house"), Settings(serve="release:none"), upstream=upstream).state.house
    house.reload()
    key = first_start(house, lambda text: None, "http://here")
    said: list[str] = []
    announce(house, said.append, "http://here")
    text = "\n".join(said)
    assert upstream in text and "the policy's rules alone" in text and key not in text
    typed = shlex.split(next(line for line in said if "First request:" in line).split("First request:")[1])
    assert typed[:2] == ["curl", "http://here/v1/chat/completions"]
    assert json.loads(typed[-1])["temperature"] == 0, "the starter's small model strays at 1"


def test_the_way_in_is_shown_until_somebody_has_used_it(tmp_path: Path, upstream: str) -> None:
    """A link in a lost terminal must not lock anybody out."""
    from tutelage.core.artifact import Root

    house = create_app(Root(tmp_path / "house"), Settings(serve="release:none"), upstream=upstream).state.house
    said: list[str] = []
    keys = {first_start(house, said.append, "http://here") for _ in range(2)}
    assert len(said) == 2 and all("/welcome/" in line and "name: owner" in line for line in said)
    assert len(keys) == 1 and len(people.every(house.store, "live")) == 1
    first, token = (line.split("/welcome/")[1].split()[0] for line in said)
    assert access.redeem(house.store, first) is None, "a newer link ends the one before"
    owner = access.redeem(house.store, token)
    assert owner is not None
    access.set_password(house.store, owner.id, "a long enough password")
    first_start(house, said.append, "http://here")
    assert len(said) == 2
