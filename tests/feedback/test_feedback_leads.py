"""A lead's hand over the API: gold tasks that nobody can tell, pauses, qualifications, the rules of a project."""

from __future__ import annotations

import pytest
from test_feedback_api import answer, world

from tutelage.core.errors import DataError
from tutelage.core.records import Message
from tutelage.feedback import api, desk, disagreement, disputes, routes
from tutelage.feedback.client import Client, Direct
from tutelage.store import access, answers, ledger, people, tasks

BASE = "/api/feedback"


def send(store, person, method, path, body=None):
    return routes.dispatch(store, person, method, f"{BASE}{path}", body)


def golden(store, lead, ids, **fields):
    """Make tasks gold: the candidates stand in the order of their numbers."""
    for id in ids:
        body = {"task": id, "answer": {"tiers": [[0], [1], [2]]}, "rationale": "by the guideline", **fields}
        status, told = send(store, lead, "POST", "/projects/help/gold", body)
        assert status == 200, told
    return told


@pytest.fixture
def house(tmp_path):
    store, lead, crew, ids = world(tmp_path, tasks_=12, per_task=1)
    send(store, lead, "PUT", "/projects/help/settings", {"settings": {"gold_share": 0.5}})
    assert golden(store, lead, ids[:4], reserve=True)["expected"]["ranks"] == [[0, 0], [1, 1], [2, 2]]
    return store, lead, crew, ids


def work(store, person, items, tiers):
    """Items one after the other, each answered with the same order."""
    found = []
    for _ in range(items):
        held = api.claim(store, person, api.Claim(project="help")).items
        if held:
            found.append(held[0])
            api.submit(store, person, api.Answers(answers=[answer(held[0], tiers=tiers)]))
    return found


def test_nothing_that_an_annotator_can_read_tells_which_task_is_gold(house):
    store, lead, (anna, *_), ids = house
    before = api.progress(store, anna, "help")
    seen, told = [], []
    for _ in range(6):
        seen += work(store, anna, 1, [[0], [1], [2]])
        moment = api.progress(store, anna, "help")
        told.append(moment.per_person[0].answers)
        assert (moment.answers, moment.needed, moment.in_hand) == (before.answers, before.needed, before.in_hand)
    assert told == [1, 2, 3, 4, 5, 6] == sorted(told)
    gold = [item for item in seen if item.task in ids[:4]]
    plain = [item for item in seen if item.task not in ids[:4]]
    assert len(gold) == 3
    shape = {(tuple(item.model_dump()), item.epoch, item.form_version, item.kind, item.draft) for item in gold}
    assert shape == {(tuple(item.model_dump()), item.epoch, item.form_version, item.kind, item.draft) for item in plain}
    assert not any(word in item.model_dump_json() for item in seen for word in ("gold", 'guideline":"by', "expected"))
    assert len(api.history(store, anna, "help")) == 6
    assert len(answers.read(store, "help")) == 3 == api.progress(store, lead, "help").answers


def test_a_lead_sees_how_it_went_and_lifts_a_pause(house):
    store, lead, crew, _ids = house
    anna = crew[0]
    send(store, lead, "PUT", "/projects/help/settings", {"settings": {"gold_doubt": 0.6}})
    assert len(work(store, anna, 9, [[2], [1], [0]])) < 9
    reason = api.claim(store, anna, api.Claim(project="help")).reason
    assert reason == "A lead looks at your answers first; then you can go on."
    _, told = send(store, lead, "GET", "/projects/help/gold")
    assert [(each["person"], each["right"], each["paused"]) for each in told["people"]] == [(anna.pseudonym, 0, True)]
    assert sum(each["answered"] for each in told["tasks"]) == told["people"][0]["n"] >= 1
    path, why = f"/projects/help/people/{anna.pseudonym}/lift", {"reason": "She read the scale\n the other way"}
    assert send(store, anna, "POST", path, why)[0] == 403
    for short in ({}, {"reason": "ok"}, {"reason": "  ok      "}, {"reason": "x" * 301}):
        status, told = send(store, lead, "POST", path, short)
        assert status == 422 and told["key"] == "reason", short
    assert send(store, lead, "POST", path, why) == (200, {"ok": True})
    (act,) = ledger.acts(store, "gold.lift")
    assert act.object == anna.id and act.body["reason"] == "She read the scale the other way"
    assert send(store, lead, "POST", path, why)[0] == 404
    assert len(work(store, anna, 1, [[0], [1], [2]])) == 1


def test_an_expectation_is_an_answer_that_the_form_takes(house):
    store, lead, crew, ids = house

    def mark(**fields):
        return send(store, lead, "POST", "/projects/help/gold", {"task": ids[5], "rationale": "so", **fields})

    for fields, says in (
        ({"answer": {"tiers": [[0], [1]]}}, "candidate 2 is not ranked"),
        ({"answer": {"tiers": [[0], [1], [2]], "scores": {"taste": {"0": 1}}}}, "does not ask"),
        ({}, "no adjudicated answer"),
        ({"task": "none", "answer": {}}, "there is no task"),
        ({"rationale": ""}, "at least 1"),
    ):
        status, told = mark(**fields)
        assert status in (404, 422) and says in told["message"]
    status, told = mark(answer={"tiers": [[0], [1, 2]], "scores": {"quality": {"0": 5, "1": 2, "2": 2}}})
    assert status == 200 and told["expected"]["values"] == [
        ["quality", 0, 5.0],
        ["quality", 1, 2.0],
        ["quality", 2, 2.0],
    ]
    assert send(store, crew[0], "GET", "/projects/help/gold")[0] == 403
    assert send(store, lead, "POST", f"/projects/help/gold/{ids[5]}/retire")[0] == 200
    assert send(store, lead, "POST", f"/projects/help/gold/{ids[6]}/retire")[0] == 404


def test_what_was_adjudicated_is_expected(house):
    store, lead, crew, ids = house
    judge = people.create(store, "judge", roles=["adjudicator"])
    while held := api.claim(store, crew[0], api.Claim(project="help")).items:
        api.submit(store, crew[0], api.Answers(answers=[answer(held[0])]))
    mine = {each.task for each in answers.read(store, "help")}
    first, second = [id for id in ids if id in mine][:2]
    status, told = send(store, lead, "POST", "/projects/help/adjudications", {"tasks": [first, second]})
    assert status == 200 and [each["task"] for each in told["opened"]] == [first, second]
    for item in api.claim(store, judge, api.Claim(project="help", count=2)).items:
        cause = "slip" if item.task == first else "contested"
        given = answer(item, tiers=[[2], [0, 1]], values={"cause": cause, "cause_note": "say what counts"})
        assert api.submit(store, judge, api.Answers(answers=[given])).receipts[0].status == "stored"
    expected = golden(store, lead, [first], answer=None)["expected"]
    assert expected["ranks"] == [[0, 1], [1, 1], [2, 0]] and expected["values"] == []
    body = {"task": second, "rationale": "so"}
    status, told = send(store, lead, "POST", "/projects/help/gold", body)
    assert status == 422 and "both views are legitimate" in told["message"]
    # whoever has not met it answers it as they would any other, and is right
    send(store, lead, "PUT", "/projects/help/settings", {"settings": {"gold_share": 0.5}})
    bert = crew[1]
    api.add_tasks(store, lead, "help", [_more(at) for at in range(9)])
    while held := api.claim(store, bert, api.Claim(project="help")).items:
        api.submit(store, bert, api.Answers(answers=[answer(held[0], tiers=[[2], [0, 1]])]))
    _, told = send(store, lead, "GET", "/projects/help/gold")
    (found,) = [each for each in told["tasks"] if each["task"] == first]
    assert (found["answered"], found["right"]) == (1, 1)


def _more(at):
    candidates = tuple(api.NewCandidate(content=f"answer {at}.{no}") for no in range(3))
    return api.NewTask(
        key=f"more {at}", kind="ranking", messages=(Message(role="user", content="q"),), candidates=candidates
    )


def test_qualifications_are_a_leads_to_give(house):
    store, lead, (anna, *_), _ = house
    send(store, lead, "PUT", "/projects/help/settings", {"settings": {"qualifications": ["law"]}})
    assert "law" in api.claim(store, anna, api.Claim(project="help")).reason
    assert send(store, anna, "PUT", "/people/p0/qualifications/law")[0] == 403
    assert send(store, lead, "PUT", "/people/nobody/qualifications/law")[0] == 404
    assert send(store, lead, "PUT", "/people/p0/qualifications/law")[1] == {"person": anna.pseudonym, "names": ["law"]}
    assert api.claim(store, anna, api.Claim(project="help")).items
    assert send(store, lead, "DELETE", f"/people/{anna.pseudonym}/qualifications/law")[1]["names"] == []
    assert send(store, lead, "GET", "/people/p0/qualifications")[1]["names"] == []


def looked_at(store, person):
    """Whoever opens the page on which answers stand beside each other."""
    words, where = desk.sample(store, "help", "live"), tasks.get_project(store, "help")
    assert disagreement.page(store, person, where, words, disputes.disputes(words), disagreement.Filters()).rows


def exported(store, person):
    """Whoever takes the answers with them."""
    path = f"{BASE}/projects/help/export/annotations.jsonl"
    assert routes.dispatch(store, person, "GET", path, None, {"accept": "not-stated"})[0] == 200


@pytest.mark.parametrize(
    "look",
    [
        looked_at,
        exported,
    ],
    ids=["page", "export"],
)
def test_whoever_may_answer_and_looks_at_answers_is_not_asked_the_same(tmp_path, look):
    store, lead, crew, ids = world(tmp_path, tasks_=4, per_task=3)
    for person in crew[:2]:
        held = {each.task: each for each in api.claim(store, person, api.Claim(project="help", count=4)).items}
        given = [answer(held[id]) for id in ids[:2]]
        assert {each.status for each in api.submit(store, person, api.Answers(answers=given)).receipts} == {"stored"}
    auditor = people.create(store, "audra", roles=("auditor",))
    for who in (lead, auditor):
        look(store, who)
    mine = api.claim(store, lead, api.Claim(project="help", count=4)).items
    assert {each.task for each in mine} == set(ids[2:]), "what nobody has answered yet"
    api.submit(store, lead, api.Answers(answers=[answer(each) for each in mine]))
    assert "seen what others answered" in api.claim(store, lead, api.Claim(project="help")).reason
    people.grant(store, auditor.id, "annotator")
    late = api.claim(store, people.get(store, "audra"), api.Claim(project="help", count=4)).items
    assert {each.task for each in late} == set(ids[:2]), "who could not answer was not noted"


def test_whoever_knows_what_is_expected_is_given_no_gold(house):
    store, lead, (anna, *_), ids = house
    other = people.create(store, "second lead", roles=["lead"])
    assert send(store, other, "GET", "/projects/help/gold")[0] == 200
    for who in (lead, other):
        assert not {item.task for item in work(store, who, 2, [[0], [1], [2]])} & set(ids[:4])
    assert {item.task for item in work(store, anna, 4, [[0], [1], [2]])} & set(ids[:4])


def test_languages_are_said_by_oneself_or_by_who_looks_after_the_account(house):
    store, lead, (anna, bert, *_), _ = house
    api.add_tasks(
        store, lead, "help", [_more(at).model_copy(update={"language": "de", "priority": 9}) for at in range(2)]
    )
    leads = Client(Direct(store, lead))
    leads.change_settings("help", {"gold_share": 0})
    mine = Client(Direct(store, anna))
    assert mine.languages() == [] and "de" not in {item.language for item in mine.claim("help", 12).items}
    access.link_identity(store, bert.id, "https://id.example.org", "7")
    assert leads.set_languages_of(bert.pseudonym, ["DE", " en ", "de"]) == ["de", "en"] == leads.languages_of("p1")
    assert (
        mine.set_languages(["de", "pt-BR"])
        == ["de", "pt-BR"]
        == mine.set_languages(["de", "pt-BR"])
        == mine.languages()
    )
    assert people.get(store, "p1").languages == ("de", "en")
    assert {item.language for item in Client(Direct(store, bert)).claim("help").items} == {"de"}
    for client in (mine, Client(Direct(store, bert))):
        for who in ("lead", "p2", "nobody"):
            with pytest.raises(api.Forbidden):
                client.set_languages_of(who, ["fr"])
            with pytest.raises(api.Forbidden):
                client.languages_of(who)
    with pytest.raises(api.Forbidden):
        leads.set_languages_of(people.create(store, "olga", roles=["owner"]).name, [])
    for wrong in (["German and French"], ["d"], ["x" * 21], ["a" + chr(97 + at) for at in range(21)]):
        with pytest.raises(DataError):
            mine.set_languages(wrong)
    acts = [(each.actor, each.object, each.body) for each in ledger.acts(store, "person.languages")]
    assert acts == [(anna.id, anna.id, {"languages": ["de", "pt-BR"]}), (lead.id, bert.id, {"languages": ["de", "en"]})]


def test_only_who_leads_or_audits_a_project_sees_its_settings(house):
    store, lead, (anna, *_), _ = house
    auditor = people.create(store, "audra", roles=("auditor",), project="help")
    for who, settings in ((lead, {"gold_share": 0.5}), (auditor, {"gold_share": 0.5}), (anna, {})):
        (shown,) = send(store, who, "GET", "/projects")[1]["projects"]
        assert shown["name"] == "help" and shown["settings"] == settings


def test_a_setting_that_does_not_exist_is_refused_and_named(house):
    store, lead, *_ = house
    for path, method, body in (
        ("/projects", "POST", {"name": "other", "settings": {"gold_shar": 0.1}}),
        ("/projects/help/settings", "PUT", {"settings": {"gold_shar": 0.1}}),
    ):
        status, told = send(store, lead, method, path, body)
        assert status == 422 and "gold_shar" in told["key"]
    status, told = send(store, lead, "PUT", "/projects/help/settings", {"settings": {"languages": ["de"]}})
    assert status == 200 and told["settings"] == {"gold_share": 0.5, "languages": ["de"]}
    reason = api.claim(store, people.create(store, "p9"), api.Claim(project="help")).reason
    assert reason == "This is for people who named one of these languages: de."
