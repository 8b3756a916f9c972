"""A changed past shows; an erased person leaves no word and a list of what learned from them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import sqlalchemy as sql

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.errors import NotFound, UsageError
from tutelage.core.records import Message
from tutelage.feedback import api
from tutelage.govern import audit, card, erase
from tutelage.store import (
    access,
    answers,
    engine,
    erasure,
    ledger,
    people,
    profiles,
    releases,
    schema,
    slots,
    standing,
    tasks,
    traces,
    traffic,
)
from tutelage.store.engine import Store


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "town").create()


@pytest.fixture
def store(root: Root) -> Iterator[Store]:
    with engine.open(root) as made:
        yield made


def seal(
    root: Root, stage: str, kind: str, parents: dict[str, str] | None = None, rows: list[str] | None = None
) -> Artifact:
    """A small artifact, with the store's rows it used."""
    folder = root.work / stage
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(f'"{stage}"')
    if rows:
        parquet.write_table(arrow.table({"row": arrow.array(rows, arrow.string())}), folder / "rows.parquet")
    manifest = Manifest(
        kind=kind,
        stage=stage,
        version=1,
        config={},
        inputs=dict(parents or {}),
        files=file_entries(folder),
        licences=["own"],
        metrics={"documents": 12},
        made={"at": f"2026-01-01T00:00:0{len(root.list())}Z"},
    )
    return root.seal(folder, manifest, f"key-{stage}")


def judged(store: Store, who: list[people.Person]) -> None:
    """Everybody writes a note and a score about one task."""
    lead = people.create(store, "lea", roles=("lead",))
    questions = [
        {"key": "right", "kind": "scale", "scale": (1, 5), "per_candidate": True},
        {"key": "note", "kind": "text", "required": False},
    ]
    form = api.Form.model_validate({"questions": questions})
    api.create_project(store, lead, api.NewProject(name="desk", kind="scoring", form=form, per_task=len(who)))
    new = api.NewTask(
        key="1",
        kind="scoring",
        messages=(Message(role="user", content="Hello?"),),
        candidates=(api.NewCandidate(content="Hi."),),
    )
    api.add_tasks(store, lead, "desk", [new])
    for at, person in enumerate(who):
        item = api.claim(store, person, api.Claim(project="desk")).items[0]
        given = api.Answer(
            slot=item.slot,
            epoch=item.epoch,
            key=f"answer-{person.id}",
            scores={"right": {0: 1 + at % 5}},
            values={"note": f"secret of {person.name}"},
        )
        assert api.submit(store, person, api.Answers(answers=(given,))).receipts[0].status == "stored"


def test_a_whole_ledger_holds(store: Store) -> None:
    for at in range(20):
        ledger.record(store, "lea", "test.act", str(at), {"n": at})
    found = audit.verify(store)
    assert found.ok and found.rows >= 20
    assert audit.verify(store, head=found.head, at_least=found.rows).ok


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE seq = 5", "changed"),
        ("UPDATE audit SET body = '{\"n\":99}' WHERE seq = 5", "changed"),
        ("DELETE FROM audit WHERE seq = 5", "missing"),
        ("UPDATE audit SET hash = 'aa' WHERE seq = 5", "changed"),
    ],
)
def test_a_changed_past_shows(store: Store, root: Root, change: str, reason: str) -> None:
    for at in range(10):
        ledger.record(store, "lea", "test.act", str(at), {"n": at})
    with sqlite3.connect(root.store_path) as raw:  # somebody with the file in hand and no respect for triggers
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            raw.execute(f"DROP TRIGGER {name}")
        raw.execute(change)
    found = audit.verify(store)
    assert not found.ok and found.first_bad in (5, 6) and reason in found.reason


def test_a_ledger_cut_at_its_end_shows_by_what_was_noted(store: Store, root: Root) -> None:
    for at in range(10):
        ledger.record(store, "lea", "test.act", str(at))
    noted = audit.verify(store)
    with sqlite3.connect(root.store_path) as raw:
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            raw.execute(f"DROP TRIGGER {name}")
        raw.execute("DELETE FROM audit WHERE seq > 8")
    assert audit.verify(store).ok, "by itself a shorter chain looks whole"
    assert not audit.verify(store, head=noted.head).ok
    assert not audit.verify(store, at_least=noted.rows).ok


def test_erasing_a_judge_takes_the_words_and_names_what_learned_from_them(store: Store, root: Root) -> None:
    ana, ben = (people.create(store, name) for name in ("ana", "ben"))
    access.set_password(store, ana.id, "long enough 1")
    profiles.set_profile(store, ana.id, {"region": "north"})
    judged(store, [ana, ben])
    mine = [each.id for each in answers.read(store, "desk", person=ana.id)]
    theirs = [each.id for each in answers.read(store, "desk", person=ben.id)]
    labels = seal(root, "preferences", "preferences", rows=[*mine, *theirs])
    other = seal(root, "other", "preferences", rows=theirs)
    reward = seal(root, "reward", "reward", {"preferences": labels.ref})
    bundle = seal(root, "bundle", "bundle", {"model": reward.ref})
    live = releases.create(store, bundle.ref)
    releases.promote(store, live, actor="lea", reason="first")

    found = erase.erase(store, root, person="ana", by="lea")
    assert found.artifacts == (labels.ref, reward.ref, bundle.ref) and other.ref not in found.artifacts
    assert found.releases == (live,) and found.live
    assert found.texts == 1 and found.annotations == 1
    raw = root.store_path.read_bytes() + b"".join(p.read_bytes() for p in root.path.glob("store.db-*"))
    left = answers.read(store, "desk", person=ana.id)
    assert len(left) == 1 and left[0].value("note") is None and left[0].scores()["right"] == {0: 1.0}
    assert answers.read(store, "desk", person=ben.id)[0].value("note") == "secret of ben"
    assert people.find(store, "ana") is None and access.check_password(store, "ana", "long enough 1") is None
    assert not profiles.profile(store, ana.id).attributes
    assert found.remains == "" and b"secret of ana" not in raw and b"secret of ben" in raw
    assert audit.verify(store).ok
    assert erase.erase(store, root, person=ana.id, by="lea").texts == 0, "twice is harmless"


def test_erasing_a_person_takes_every_way_in_and_what_they_said_elsewhere(store: Store) -> None:
    ana, ben = people.create_many(store, ["ana", "ben"])
    judged(store, [ana, ben])
    project = tasks.get_project(store, "desk")
    cookie, token, link = access.open_session(store, ana.id)[0], access.issue_token(store, ana.id), ""
    link = access.invite(store, ana.id)
    access.link_identity(store, ana.id, "https://id.example.org", "7")
    with store.write() as connection:
        connection.execute(sql.insert(schema.qualification).values(person_id=ana.id, name="law", by="lea", at=1))
    asked = engine.derived_id("chat")
    for subject, id in ((ana.id, asked), ("u1", engine.derived_id("other"))):
        said = Message(role="user", content=f"my garden, {subject}")
        answer = Message(role="assistant", content="Yes")
        traces.write(store, [traces.Trace(id=id, conversation=id, subject=subject, messages=(said,), answer=answer)])
    for actor in (ana.id, ana.pseudonym, ben.id):
        traffic.add_feedback(
            store, engine.derived_id("other"), "comment", text=f"words of {actor}", actor=actor, key=actor
        )
    new = tasks.NewTask(key="more", kind="scoring", messages=(Message(role="user", content="?"),), people=(ana.id,))
    (task,) = tasks.add(store, project, [new])
    (held,) = slots.claim(store, ana.id, [project.id], 1, 60_000)
    slots.save_draft(store, ana.id, held.id, held.epoch, {"note": "half a word"})

    found = erasure.erase(store, erasure.words_of(store, person=ana.id), person=ana.id, by="lea")
    assert found == 1 + 2 + 2, "the note, question and answer of the chat, and two comments"
    with store.read() as connection:
        left = [row.body for row in connection.execute(sql.select(schema.text.c.body)) if row.body]
        for table in (schema.session, schema.api_token, schema.invitation, schema.identity, schema.draft,
                      schema.qualification, schema.role_grant):  # fmt: skip
            assert connection.execute(sql.select(table).where(table.c.person_id == ana.id)).first() is None, table.name
    assert not [body for body in left if ana.id in body or ana.pseudonym in body or "secret of ana" in body]
    assert f"words of {ben.id}" in left and any("u1" in body for body in left)
    assert access.by_session(store, cookie) is None and access.by_token(store, token) is None
    assert access.redeem(store, link) is None and access.by_identity(store, "https://id.example.org", "7") is None
    assert [each.task for each in slots.claim(store, ben.id, [project.id], 1, 60_000)] == [task], "free for others"


def test_no_word_that_a_judge_typed_is_left_anywhere(store: Store) -> None:
    """Whatever can be typed beside an answer is erased: words why, flags in own words, notes, rewrites."""
    crew = [ana, ben] = people.create_many(store, ["ana", "ben"])
    judged(store, crew)
    project = tasks.get_project(store, "desk")
    new = [
        api.NewTask(key=key, kind="scoring", messages=(Message(role="user", content="?"),),
                    candidates=(api.NewCandidate(content="Yes."),))
        for key in "23"
    ]  # fmt: skip
    api.put_tasks(store, project, new, {})
    for person in crew:
        word = f"WORD of {person.name}"
        for item, status in zip(
            api.claim(store, person, api.Claim(count=2)).items, ("submitted", "skipped"), strict=True
        ):
            said = (
                {"values": {"note": word}, "rewrite": word, "scores": {"right": {0: 1}}}
                if status == "submitted"
                else {}
            )
            given = api.Answer(slot=item.slot, epoch=item.epoch, key=f"more-{item.slot}", status=status,
                               reason=word, flags={0: [word, "rude"]}, **said)  # fmt: skip
            assert api.submit(store, person, api.Answers(answers=(given,))).receipts[0].status == "stored"
    erasure.erase(store, erasure.words_of(store, person=ana.id), person=ana.id, by="lea")
    left = everything(store)
    assert "WORD of ana" not in left and left.count("WORD of ben") == 6
    mine = answers.read(store, "desk", person=ana.id, status=None)
    assert [each.status for each in mine] == ["submitted", "submitted", "skipped"], "the rows stay"
    flagged = [value for each in mine for value in each.values if value.question == "flag"]
    assert len(flagged) == 2 and all(value.value == [] for value in flagged), "and that something was wrong"
    theirs = answers.read(store, "desk", person=ben.id, status="skipped")[0]
    assert theirs.reason == "WORD of ben" and theirs.values[0].value == ["WORD of ben", "rude"]


def everything(store: Store) -> str:
    """Every value of every row of the store."""
    with store.read() as connection:
        return "\n".join(
            str(tuple(row)) for table in schema.metadata.sorted_tables for row in connection.execute(sql.select(table))
        )


def test_erasing_a_user_of_the_service(store: Store, root: Root) -> None:
    for subject in ("u1", "u2"):
        traces.write(
            store,
            [
                traces.Trace(
                    id=engine.derived_id("r", subject),
                    conversation=f"c-{subject}",
                    subject=subject,
                    messages=(Message(role="user", content=f"I am {subject}"),),
                    answer=Message(role="assistant", content="Hello"),
                )
            ],
        )
        traffic.add_feedback(store, engine.derived_id("r", subject), "comment", text=f"{subject} says thanks")
    found = erase.erase(store, root, subject="u1", by="lea")
    assert found.requests == 1 and found.texts == 3
    rows = {each.subject: each for each in traffic.requests(store)}
    assert rows["u1"].messages == () and rows["u1"].answer is None
    assert rows["u2"].messages[0].content == "I am u2"


def test_erasing_nobody_is_a_clear_error(store: Store, root: Root) -> None:
    with pytest.raises(NotFound):
        erase.erase(store, root, person="nobody", by="lea")
    with pytest.raises(UsageError):
        erase.erase(store, root, by="lea")


def test_a_card_says_what_is_not_known(root: Root) -> None:
    corpus = seal(root, "prepare", "corpus")
    model = seal(root, "pretrain", "model", {"corpus": corpus.ref})
    text = card.model_card(root, model)
    assert corpus.id[:12] in text and "own" in text and "documents" in text
    assert text.count(card.NOT_MEASURED) >= 3, "people, figures and attacks are said to be missing"
    assert [each.ref for each in card.ancestors(root, model)] == [corpus.ref]


def test_tasks_stay_countable_after_erasure(store: Store, root: Root) -> None:
    ana = people.create(store, "ana")
    judged(store, [ana])
    erase.erase(store, root, person="ana", by="lea")
    assert standing.counts(store, tasks.get_project(store, "desk").id).answered == 1
