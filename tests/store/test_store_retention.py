"""Words go by their age, and stay under a legal hold; figures and rows stay in any case."""

import pytest
import sqlalchemy as sql

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Message
from tutelage.store import engine, erasure, ledger, people, retention, review, schema, takeover, traces, traffic

DAY = 86_400_000


def put(store, name, at, **values):
    decided = traces.Decided(action="review", policy="p")
    made = traces.Trace(
        conversation=name, messages=(Message(role="user", content=f"{name} asks"),),
        answer=Message(role="assistant", content=f"{name} is told"), decisions=(decided,), at=at, **values,
    )  # fmt: skip
    traces.write(store, [made])
    review.vault_put(store, name, {f"[EMAIL-{len(name):08x}]": ("email", f"{name}@example.org")})
    return made


def read(store, made):
    (found,) = traffic.requests(store, ids=[made.id])
    return bool(found.messages), found.answer is not None


def test_old_words_go_with_all_that_was_said_about_them(home):
    store, now = engine.open(home), engine.now()
    old, new = put(store, "old", now - 40 * DAY, held=True), put(store, "new", now)
    traffic.add_feedback(store, old.id, "comment", text="old was told nothing")
    takeover.say(store, "old", Message(role="assistant", content="old is told by Ana"), "ana")
    swept = retention.sweep(store, now - 30 * DAY)
    assert (swept.texts, swept.requests, swept.kept) == (4, 1, {})
    assert read(store, old) == (False, False) and read(store, new) == (True, True)
    assert traffic.feedback(store)[0].text is None and takeover.said(store, "old") == []
    assert len(traffic.decisions(store)) == 2, "the rows stay"
    with store.read() as connection:
        left = connection.execute(sql.select(schema.text.c.body).where(schema.text.c.body.contains("old is"))).all()
    assert left == [], "no word of it"
    assert retention.sweep(store, now - 30 * DAY).texts == 0
    assert [each.action for each in ledger.rows(store)].count("retention.sweep") == 1


@pytest.mark.parametrize("kind", retention.KINDS)
def test_a_legal_hold_keeps_words_from_sweep_erasure_and_the_vault(home, kind):
    store, now = engine.open(home), engine.now()
    given = {
        "subject": {"subject": "u1"},
        "tenant": {"tenant": "acme", "subject": "u1"},
        "conversation": {"subject": "u1"},
    }
    kept = put(store, "kept", now - 40 * DAY, **given[kind])
    other = put(store, "other", now - 40 * DAY, subject="u1" if kind != "subject" else "u2")
    name = {"subject": "u1", "tenant": "acme", "conversation": "kept"}[kind]
    id = retention.place(store, kind, name, "case 12", "lea")
    swept = retention.sweep(store, now - 30 * DAY)
    assert swept.kept == {f"{kind} {name}: case 12": 1}
    assert read(store, kept) == (True, True) and read(store, other) == (False, False)
    words = erasure.words_of(store, subject="u1")
    assert kept.id not in words.requests and words.kept == {f"{kind} {name}: case 12": 1}
    assert review.vault_expire(store, now + DAY) == 1
    assert review.vault_get(store, "kept") and not review.vault_get(store, "other")
    retention.lift(store, id, "lea", "closed")
    assert retention.holds(store) == [] and len(retention.holds(store, lifted=True)) == 1
    assert retention.sweep(store, now - 30 * DAY).requests == 1 and review.vault_expire(store, now + DAY) == 1
    acts = [each.action for each in ledger.rows(store)]
    assert acts.count("hold.place") == acts.count("hold.lift") == 1


def test_a_hold_says_of_whom_and_why(home):
    store = engine.open(home)
    for kind, name, reason in (
        ("person", "x", "y"),
        ("tenant", "", "y"),
        ("tenant", "x", " "),
        ("tenant", "x", "y" * 501),
    ):
        with pytest.raises(DataError):
            retention.place(store, kind, name, reason, "lea")
    with pytest.raises(NotFound, match="no hold"):
        retention.lift(store, "nothing", "lea", "closed")
    assert people.every(store) == []
