"""A lead's pages without a browser: who may do what, files that are wrong, forms that are wrong, two leads at once."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tutelage import worker
from tutelage.core.artifact import Manifest, Root, file_entries
from tutelage.core.records import Example, Message, write_jsonl
from tutelage.feedback import api
from tutelage.store import access, answers, jobs, ledger, oversight, people, releases, tasks
from tutelage.store.settings import ProjectSettings
from tutelage.web.app import create_app
from tutelage.web.editor import Draft, QuestionFields, difference, question_of, shown
from tutelage.web.settings import Settings

HTML = {"accept": "text/html"}
NEW = {"name": "new", "kind": "ranking", "per_task": "2", "guideline": "Be fair.", "mask_pii": "1", "shown_mask": "1"}
GOOD = b'{"prompt": "x", "candidates": ["a", "b"]}\n{"prompt": "y", "candidates": ["a", "b"]}\n'


def send(client: Any, path: str, fields: dict[str, str], data: bytes = b"", name: str = "tasks.jsonl") -> Any:
    files = {"file": (name, data)} if data else {"file": ("", b"")}
    return client.post(path, data={**fields, "csrf": client.headers["x-csrf-token"]}, files=files, headers=HTML)


def hidden(page: str, name: str) -> str:
    """The value of a hidden field of a page."""
    return unescape(page.partition(f'name="{name}" value="')[2].partition('"')[0])


def made(client: Any, **changes: str) -> Any:
    """A project made in two steps, as a page does it."""
    preview = send(client, "/projects/-/preview", NEW | changes, GOOD)
    assert preview.status_code == 200, preview.text
    return send(client, "/projects", {"draft": hidden(preview.text, "draft")})


WRONG = (
    ({}, b'{"prompt": "x", "candidates": ["a", "b"]}\n{oops', "tasks.jsonl, row 2"),
    ({}, b"prompt,candidate_1,candidate_2\nx,a,b\nx,a\n", "tasks.jsonl, row 1"),
    ({}, b"", "choose the file"),
    ({"name": ""}, GOOD, "a name begins with"),
    ({"name": "desk ranking"}, GOOD, "already"),
    ({"licence": "mine"}, GOOD, "is no licence class"),
    ({"per_task": "0"}, GOOD, "from 1 to 1000"),
    ({"per_task": "9" * 5000}, GOOD, "from 1 to 1000"),
    ({"kind": "juggling"}, GOOD, "kind"),
    ({"q.1.prompt": "a", "q.1.kind": "choice"}, GOOD, "needs choices"),
    ({"q.1.prompt": "a", "q.1.kind": "scale", "q.1.low": "5", "q.1.high": "1"}, GOOD, "must go up"),
    ({"q.1.prompt": "a", "q.1.kind": "scale", "q.1.low": "a"}, GOOD, "two numbers"),
    ({"q.1.prompt": "a", "q.1.kind": "scale", "q.1.anchors": "9: high"}, GOOD, "names no point of the scale"),
    ({"q.1.prompt": "a", "q.1.kind": "text", "q.1.each": "1"}, GOOD, "only scales"),
    ({"q.1.prompt": "a", "q.1.kind": "boolean", "q.1.each": "1"}, GOOD, "asks nothing of each response"),
    ({"q.1.key": "A b", "q.1.kind": "text"}, GOOD, "small letter"),
    ({"q.1.key": "a", "q.1.kind": "text", "q.2.key": "a", "q.2.kind": "text"}, GOOD, "two questions are called"),
    ({"q.1.prompt": "a", "q.1.more": "{"}, GOOD, "changed on its way"),
)


@pytest.mark.parametrize(("fields", "data", "said"), WRONG)
def test_what_is_wrong_is_said_and_makes_nothing(site: Any, fields: dict[str, str], data: bytes, said: str) -> None:
    client = site("lea")
    before = {each.name for each in tasks.projects(site.store)}
    reply = send(client, "/projects/-/preview", NEW | fields, data)
    assert reply.status_code == 422 and said in reply.text.replace("&#39;", "'")
    assert "Be fair." in reply.text, "what was written stays on the page"
    assert {each.name for each in tasks.projects(site.store)} == before


def test_a_project_is_made_as_previewed_or_not_at_all(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = site("lea")
    put, calls = tasks.put, []

    def fail(*given: Any) -> Any:
        calls.append(put(*given))
        raise api.DataError("the disk went away")

    monkeypatch.setattr(tasks, "put", fail)
    preview = send(client, "/projects/-/preview", NEW, GOOD)
    draft = {"draft": hidden(preview.text, "draft")}
    assert send(client, "/projects", draft).status_code == 422 and len(calls[0]) == 2
    assert "new" not in {each.name for each in tasks.projects(site.store)}, "half a project is none"
    monkeypatch.undo()
    reply = send(client, "/projects", draft)
    assert reply.status_code == 303 and reply.headers["location"].startswith("/projects/new?")
    where = tasks.get_project(site.store, "new")
    assert (where.per_task, where.guideline, ProjectSettings.of(where.settings).mask_pii) == (2, "Be fair.", True)
    assert len(tasks.load(site.store, project_name="new")) == 2
    assert list((site.root.path / "uploads").iterdir()) == [], "the file is gone once its project is made"


def test_a_kept_file_is_its_senders_alone(site: Any) -> None:
    preview = send(site("lea"), "/projects/-/preview", NEW, GOOD)
    draft = hidden(preview.text, "draft")
    other = people.create(site.store, "other lead", roles=("lead",))
    client = site()
    cookie, token = access.open_session(site.store, other.id)
    client.cookies.set("tutelage", cookie)
    client.headers["x-csrf-token"] = token
    assert "no longer here" in send(client, "/projects", {"draft": draft}).text
    forged = json.dumps(json.loads(draft) | {"upload": "../secret.key"})
    assert send(client, "/projects", {"draft": forged}).status_code == 422
    for broken in ("", "[]", '{"name": 3}', '{"questions": 7}'):
        assert send(client, "/projects", {"draft": broken}).status_code == 422


LED = ("", "/people", "/disagreements", "/form")


def test_a_project_is_led_by_its_own_leads(site: Any) -> None:
    made(site("lea"))
    ana = site.people["ana"]
    people.grant(site.store, ana.id, "lead", "new")
    client = site("ana")
    for page in (*LED, "/settings"):
        assert client.get(f"/projects/new{page}", headers=HTML).status_code == 200
        assert client.get(f"/projects/desk ranking{page}", headers=HTML).status_code == 403
    listed = client.get("/projects", headers=HTML).text
    assert "/projects/new" in listed and "desk" not in listed.partition("<main")[2]
    assert send(client, "/projects/desk ranking/settings", {"do": "close"}).status_code == 403
    people.revoke(site.store, ana.id, "lead", "new")
    people.grant(site.store, ana.id, "auditor", "new")
    client = site("ana")
    for page in LED:
        assert client.get(f"/projects/new{page}", headers=HTML).status_code == 200
    for path in ("/disagreements", "/form", "/settings"):
        assert send(client, f"/projects/new{path}", {"do": "close"}).status_code == 403
    assert tasks.get_project(site.store, "new").state == "open"


def test_two_leads_do_not_publish_over_each_other(site: Any) -> None:
    client = site("lea")
    made(client)
    page = client.get("/projects/new/form", headers=HTML).text
    assert hidden(page, "version") == "1"
    seen = send(client, "/projects/new/form", {"version": "1", "guideline": "Be quick."})
    assert "<ins>    Be quick.</ins>" in seen.text and "2 tasks that are not done keep their version" in seen.text
    draft = hidden(seen.text, "draft")
    where = tasks.get_project(site.store, "new")
    oversight.publish(site.store, where.id, 1, [], "Be slow.", "somebody")
    reply = send(client, "/projects/new/form", {"version": "1", "draft": draft, "do": "publish"})
    assert reply.status_code == 422 and "somebody else has published" in reply.text and "Be quick." in reply.text
    assert tasks.get_project(site.store, "new").guideline == "Be slow."
    reply = send(client, "/projects/new/form", {"version": "2", "draft": draft, "do": "publish"})
    assert reply.status_code == 303 and tasks.get_project(site.store, "new").version == 3
    reply = send(client, "/projects/new/form", {"version": "3", "guideline": "Be quick."})
    assert reply.status_code == 422 and "nothing is changed" in reply.text


def test_settings_hold_for_tasks_to_come(site: Any) -> None:
    client = site("lea")
    made(client)
    asking = {"do": "asking", "per_task": "4", "target": "3", "mask_pii": "1"}
    assert send(client, "/projects/new/settings", asking).status_code == 303
    where = tasks.get_project(site.store, "new")
    assert where.per_task == 4 and where.settings["target"] == 3
    new = api.NewTask.model_validate(
        {"key": "later", "kind": "ranking", "messages": [{"role": "user", "content": "?"}],
         "candidates": [{"content": "a"}, {"content": "b"}]}
    )  # fmt: skip
    api.add_tasks(site.store, site.people["lea"], "new", [new])
    assert sorted(each.required for each in tasks.load(site.store, project_name="new").values()) == [2, 2, 4]
    for wrong in ({"per_task": "x"}, {"per_task": "4", "target": "-1"}):
        assert send(client, "/projects/new/settings", {"do": "asking"} | wrong).status_code == 422
    for wrong, status in (({"person": "nobody", "role": "lead"}, 404), ({"person": "ana", "role": "owner"}, 422)):
        assert send(client, "/projects/new/settings", {"do": "grant"} | wrong).status_code == status
    assert send(client, "/projects/new/settings", {"do": "grant", "person": "ana", "role": "reviewer"}).is_redirect
    found = people.get(site.store, "ana")
    assert found.has("reviewer", project=where.id) and not found.has("reviewer")
    assert send(client, "/projects/new/settings", {"do": "dance"}).status_code == 422


@pytest.mark.parametrize("role", ["reviewer", "auditor", "lead"])
def test_an_operator_gives_nobody_a_role(site: Any, role: str) -> None:
    made(site("lea"))
    people.grant(site.store, site.people["ana"].id, "operator", "new")
    client = site("ana")
    for act in ("grant", "revoke"):
        reply = send(client, "/projects/new/settings", {"do": act, "person": "ana", "role": role})
        assert reply.status_code == 403 and "may not give or take" in reply.text
    assert {each for each, _ in people.get(site.store, "ana").roles} == {"annotator", "operator"}


def test_export_goes_to_the_consumer(site: Any) -> None:
    client = site("lea")
    for wrong in ("consumer=x", "consumer=dpo&format=x", "consumer=dpo&people=x"):
        reply = client.get(f"/projects/desk ranking/export?{wrong}", headers=HTML)
        assert reply.status_code == 422 and "Not exported" in reply.text, wrong


def test_odd_addresses_are_answered(site: Any) -> None:
    client = site("lea")
    odd = "people=x&order=y&after=z/&before=99999999999999999999&only=w&language=" + "l" * 300
    assert client.get(f"/projects/desk ranking/disagreements?{odd}", headers=HTML).status_code == 200
    assert client.get("/projects/desk ranking/disagreements?after=nan/1", headers=HTML).status_code == 200
    assert client.get("/projects/nothing", headers=HTML).status_code == 404
    assert client.get("/projects/-/making/nothing", headers=HTML).status_code == 404
    assert client.get("/projects/desk ranking?after=x", headers=HTML).status_code == 422
    for fields in ({"do": "reopen"}, {"do": "assign", "person": "nobody"}, {}):
        assert send(client, "/projects/desk ranking/tasks/nothing", fields).status_code == 404


@pytest.mark.parametrize("masks", [True, False])
def test_what_people_wrote_is_masked_on_a_leads_pages(site: Any, masks: bool) -> None:
    store, lead = site.store, site.people["lea"]
    new = {"name": "words", "per_task": 2, "settings": {"mask_pii": masks},
           "form": {"questions": [{"key": "why", "kind": "text", "prompt": "Why?"}]}}  # fmt: skip
    row = {"key": "t", "kind": "ranking", "messages": [{"role": "user", "content": "x"}],
           "candidates": [{"content": "a"}, {"content": "b"}]}  # fmt: skip
    task = api.NewTask.model_validate(row)
    api.open_project(store, lead, api.NewProject.model_validate(new), [task])
    for at, tiers in enumerate((((0,), (1,)), ((1,), (0,)))):
        who = people.create(store, f"writer{at}", roles=("annotator",))
        (item,) = api.claim(store, who, api.Claim(project="words")).items
        given = api.Answer(slot=item.slot, epoch=item.epoch, key=f"1234567{at}", tiers=tiers,
                           values={"why": "ask ann@mill.example"})  # fmt: skip
        assert api.submit(store, who, api.Answers(answers=(given,))).receipts[0].status == "stored"
    api.open_project(store, lead, api.NewProject.model_validate(new | {"name": "stuck", "per_task": 1}),
                     [task])  # fmt: skip
    for at in range(4):
        who = people.create(store, f"passer{at}", roles=("annotator",))
        (item,) = api.claim(store, who, api.Claim(project="stuck")).items
        given = api.Answer(slot=item.slot, epoch=item.epoch, key=f"1234567{at}", status="skipped",
                           reason="bob@mill.example knows")  # fmt: skip
        api.submit(store, who, api.Answers(answers=(given,)))
    client = site("lea")
    page = client.get("/projects/words/disagreements", headers=HTML).text
    assert "ask " in page and ("ann@mill.example" in page) is not masks
    page = client.get("/projects/stuck", headers=HTML).text
    assert page.count(" knows") == 5 and page.count("bob@mill.example") == (0 if masks else 5)


def test_an_open_task_is_closed_with_its_answers_kept(site: Any) -> None:
    client = site("lea")
    ana, rio = site.people["ana"], site.people["rio"]
    item = api.claim(site.store, ana, api.Claim(project="desk ranking")).items[0]
    tiers = tuple((each.no,) for each in item.candidates)
    given = api.Answer(slot=item.slot, epoch=item.epoch, key="12345678", tiers=tiers)
    api.submit(site.store, ana, api.Answers(answers=(given,)))
    held = next(each for each in api.claim(site.store, rio, api.Claim(project="desk ranking", count=3)).items
                if each.task == item.task)  # fmt: skip
    path = f"/projects/desk ranking/tasks/{item.task}"
    assert send(client, path, {"do": "close", "reason": "unclear"}).is_redirect
    late = api.Answer(slot=held.slot, epoch=held.epoch, key="12345679", tiers=tiers)
    assert api.submit(site.store, rio, api.Answers(answers=(late,))).receipts[0].status == "stale"
    assert len(answers.read(site.store, task=item.task)) == 1
    assert any(row.action == "task.close" and row.body["reason"] == "unclear" for row in ledger.rows(site.store))
    assert send(client, path, {"do": "reopen"}).is_redirect
    assert send(client, path, {"do": "reopen"}).status_code == 422
    assert send(client, path, {"do": "assign", "person": "ana"}).status_code == 422, "nobody judges a task twice"


# from a model


def test_a_request_to_a_model_is_checked_before_it_is_asked_for(site: Any) -> None:
    out = site.root.work / "corpus"
    out.mkdir(parents=True)
    turns = (Message(role="user", content="Where?"), Message(role="assistant", content="Here."))
    rows = [Example(messages=turns, tags={"family": name, "split": "train"}) for name in ("a", "a", "b")]
    write_jsonl(out / "dialogues.jsonl", rows)
    sealed = site.root.seal(
        out, Manifest(kind="corpus", stage="prepare", version=1, config={}, files=file_entries(out)), "0" * 64
    )
    client = site("lea")
    page = client.get("/projects/-/new?source=model", headers=HTML).text
    live = releases.current(site.store).bundle
    assert sealed.ref in page and "a (2), b (1)" in page and live in page
    asked = {**NEW, "models": live, "corpus": sealed.ref, "families": "a, b", "prompts": "7"}
    for wrong, said in (
        ({"models": ""}, "choose at least one model"),
        ({"models": "os:system"}, "none of those offered"),
        ({"corpus": "../somewhere"}, "none of those offered"),
        ({"corpus": ""}, "a file of prompts, or a corpus"),
        ({"temperature": "hot"}, "expected a number"),
        ({"temperature": "-1"}, "greater than or equal to 0"),
        ({"candidates": "1"}, "from 2 to 9"),
        ({"kind": "tag"}, "kinds"),
        ({"name": "desk ranking"}, "already"),
    ):
        reply = send(client, "/projects/-/collect", asked | wrong)
        assert reply.status_code == 422 and said in reply.text, said
    assert jobs.newest(site.store, worker.ALONE) == []
    reply = send(client, "/projects/-/collect", asked)
    assert reply.is_redirect
    (job,) = jobs.newest(site.store, worker.ALONE)
    settings = job.args["settings"]
    assert settings["families"] == ["a", "b"] and settings["prompts"] == 7 and settings["corpus"] == sealed.ref
    assert settings["model"] == [live] and settings["generators"] == []
    assert "waits for a worker" in client.get("/projects", headers=HTML).text
    assert worker.work(site.root, once=True) == 1
    page = client.get(reply.headers["location"], headers=HTML).text
    assert "It was not made" in page and "bundle" in page, "a release that cannot be opened is told"
    assert "was not made" in client.get("/projects", headers=HTML).text


# the pieces


def test_a_form_comes_back_as_it_was_written() -> None:
    asked = [
        api.Question(key="right", prompt="Right?", scale=(0, 10), anchors={"0": "no", "10": "yes"}, per_candidate=True),
        api.Question(key="topic", kind="choice", choices=("a b", "c"), required=False),
        api.Question(key="note", kind="text"),
    ]
    fields = shown([each.model_dump(mode="json") for each in asked])
    assert [question_of(each, at) for at, each in enumerate(fields, 1)] == asked
    assert difference(api.Form(questions=tuple(asked)), api.Form(questions=tuple(asked))) == []
    draft = Draft(name="x", questions=fields, guideline="g")
    assert Draft.of(draft.kept()) == draft


def test_a_question_without_a_name_gets_one() -> None:
    assert question_of(QuestionFields(prompt="Is it kind?", kind="boolean"), 1).key == "is_it_kind"
    assert question_of(QuestionFields(prompt="Хорошо?", kind="boolean"), 3).key == "question_3"


def test_who_states_the_licence_is_not_asked_at_the_export(site: Any) -> None:
    client = site("lea")
    for name, licence in (("own", "permissive"), ("found", "")):
        assert made(client, name=name, licence=licence, per_task="1").status_code == 303
        for item in api.claim(site.store, site.people["ana"], api.Claim(project=name, count=2)).items:
            said = api.Answer(slot=item.slot, epoch=item.epoch, key=f"key-{item.slot}", tiers=((0,), (1,)))
            api.submit(site.store, site.people["ana"], api.Answers(answers=(said,)))
    rows = client.get("/projects/own/export?consumer=dpo")
    assert rows.status_code == 200 and json.loads(rows.text.splitlines()[0])["licence"] == "permissive"
    refused = client.get("/projects/found/export?consumer=dpo", headers=HTML)
    assert refused.status_code == 422 and "State their licence under Settings" in refused.text
    asked = {"do": "asking", "per_task": "1", "mask_pii": "1"}
    assert send(client, "/projects/found/settings", asked | {"licence": "mine"}).status_code == 422
    assert send(client, "/projects/found/settings", asked | {"licence": "share-alike"}).status_code == 303
    assert 'value="share-alike" selected' in client.get("/projects/found/settings").text
    rows = client.get("/projects/found/export?consumer=dpo")
    assert json.loads(rows.text.splitlines()[0])["licence"] == "share-alike"


def test_the_first_page_of_an_empty_house_says_how_to_begin(tmp_path: Path, upstream: str) -> None:
    app = create_app(Root(tmp_path / "fresh"), Settings(serve="release:none"), upstream=upstream)
    store = app.state.house.store
    with TestClient(app, base_url="http://localhost", headers=HTML) as client:
        for name, role, told in (("olga", "owner", True), ("lea", "lead", True), ("ana", "annotator", False)):
            cookie, _ = access.open_session(store, people.create(store, name, roles=(role,)).id)
            client.cookies.clear()
            client.cookies.set("tutelage", cookie)
            assert ('href="/projects/-/new"' in client.get("/").text) == told, name
        tasks.make_project(store, "p", kind="ranking", questions=[])
        assert 'href="/projects/-/new"' not in client.get("/").text
