"""Traffic in groups, feedback, draws, held answers, the vault, releases, jobs."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import sqlalchemy as sql

from tutelage.core.errors import NotFound, Refused, TutelageError, UsageError
from tutelage.core.records import Message, Verdict
from tutelage.store import engine, jobs, people, releases, review, schema, traces, traffic


def trace(number=0, **fields):
    verdict = Verdict(judge="guard", scores={"crime": 0.1 * (number % 10), "fraud": 0.01}, cost_ms=1.0)
    decided = traces.Decided(direction="input", action="flag", reasons=("r1",), policy="abc", verdicts=(verdict,))
    return traces.Trace(
        conversation=f"c{number}",
        tenant="town",
        release="r1",
        messages=(Message(role="user", content=f"hello {number}"),),
        answer=Message(role="assistant", content=f"good day {number}"),
        finish="stop",
        usage={"completion_tokens": 3},
        decisions=(decided, traces.Decided(direction="output", verdicts=(verdict,))),
        **fields,
    )


def test_what_is_put_is_there_after_a_flush_and_reads_back_whole(home):
    store = engine.open(home)
    writer = traces.Writer(store, interval=0.01)
    sent = [trace(number) for number in range(50)]
    for each in sent:
        writer.put(each)
    assert writer.flush() and writer.lag == 0 and writer.healthy
    found = traffic.requests(store)
    assert {each.id for each in found} == {each.id for each in sent}
    one = next(each for each in found if each.id == sent[7].id)
    assert one.messages == sent[7].messages and one.answer == sent[7].answer and one.usage == {"completion_tokens": 3}
    assert [(each.direction, each.action, each.category) for each in one.decisions] == [
        ("input", "flag", "crime"),
        ("output", "allow", "crime"),
    ]
    assert one.decisions[0].score == pytest.approx(0.7) and one.decisions[0].verdicts == sent[7].decisions[0].verdicts
    writer.close()
    with pytest.raises(traces.Full):
        writer.put(trace())


def test_writing_a_trace_twice_keeps_it_once(home):
    store = engine.open(home)
    one = trace()
    traces.write(store, [one, one])
    traces.write(store, [one])
    assert len(traffic.requests(store)) == 1 and len(traffic.decisions(store)) == 2


def test_a_full_queue_is_an_error_to_the_caller_and_nothing_is_lost(home, monkeypatch):
    store = engine.open(home)
    writer = traces.Writer(store, interval=0.01, capacity=10)
    real, full = traces.write, threading.Event()
    monkeypatch.setattr(traces, "write", lambda *args: full.wait() and real(*args))
    put, refused = 0, 0
    for number in range(40):
        try:
            writer.put(trace(number))
            put += 1
        except traces.Full:
            refused += 1
    full.set()
    assert (put, refused) == (10, 30) and writer.flush()
    assert len(traffic.requests(store)) == put
    writer.close()


def test_a_store_that_is_held_delays_traffic_and_loses_none(home, monkeypatch):
    store = engine.open(home)
    writer = traces.Writer(store, interval=0.01)
    real, broken = traces.write, threading.Event()

    def failing(*args):
        if not broken.is_set():
            raise traces.Busy("held")
        real(*args)

    monkeypatch.setattr(traces, "write", failing)
    writer.put(trace())
    while writer.healthy:
        time.sleep(0.001)
    broken.set()
    assert writer.flush() and writer.healthy and len(traffic.requests(store)) == 1
    writer.close()


def test_what_waits_for_a_person_is_kept_with_its_hold_and_says_when(home, monkeypatch):
    store = engine.open(home)
    writer = traces.Writer(store, interval=0.01)
    real, broken = traces.write, threading.Event()

    def failing(*args):
        if not broken.is_set():
            raise traces.Busy("held")
        real(*args)

    monkeypatch.setattr(traces, "write", failing)
    asked = trace(held=True)
    written = writer.put(asked, trace(1))
    while writer.healthy:
        time.sleep(0.001)
    assert not written.done() and review.holds(store) == []
    broken.set()
    written.result(10)
    (hold,) = review.holds(store, waiting=True)
    assert (hold.request, hold.conversation) == (asked.id, "c0") and len(traffic.requests(store)) == 2
    real(store, [asked])
    assert len(review.holds(store)) == 1, "written twice, it waits once"
    writer.close()


def test_places_are_kept_for_traces_that_come_later(home):
    store = engine.open(home)
    writer = traces.Writer(store, interval=0.01, capacity=3)
    writer.reserve(2)
    with pytest.raises(traces.Full):
        writer.put(trace(1), trace(2))
    assert writer.refused == 2 and writer.lag == 2 and not writer.flush(0.05)
    written = writer.fill([trace(3), trace(4)])
    written.result(10)
    assert writer.flush() and writer.healthy and len(traffic.requests(store)) == 2, "all or none"
    writer.close()


def taken(store):
    """A decision whose id is another's: such a trace can never be written."""
    traces.write(store, [there := trace(9)])
    return traces.Decided(id=there.decisions[0].id)


def test_a_trace_that_can_never_be_written_says_so_to_whoever_waits(home):
    store = engine.open(home)
    writer = traces.Writer(store, interval=0.01)
    bad = replace(trace(held=True), decisions=(taken(store),))
    with pytest.raises(TutelageError, match="could not be written down"):
        writer.put(bad).result(10)
    assert review.holds(store) == [] and writer.lost == 1
    writer.close()


def test_one_trace_that_cannot_be_written_does_not_stop_the_others_nor_the_service(home):
    store = engine.open(home)
    writer = traces.Writer(store, interval=0.05)
    bad = replace(trace(), decisions=(taken(store),))
    good = [trace(1), trace(2)]
    for each in (good[0], bad, good[1]):
        writer.put(each)
    assert writer.flush()
    assert {each.id for each in good} < {each.id for each in traffic.requests(store)}
    assert [id for id, _ in writer.spoiled] == [bad.id] and writer.lost == 1 and writer.healthy
    writer.put(trace(3)).result(10)
    writer.close()


def test_what_a_column_cannot_hold_is_cut_and_what_no_store_holds_is_left_out(home):
    """PostgreSQL refuses what is too long for its column, half of a character, and a number that is none."""
    store = engine.open(home)
    writer = traces.Writer(store, interval=0.01)
    names = ("tenant", "subject", "release", "model", "surface", "language", "finish", "conversation")
    long = replace(trace(1, held=True), **{name: f"{name} " * 80 for name in names})
    verdict = Verdict(judge="j" * 400, scores={"c" * 90: 0.9})
    long = replace(long, decisions=(traces.Decided(action="review", policy="p" * 200, verdicts=(verdict,)),))
    odd = trace(2, meta={"odd": object(), "half": "\ud800", "none": float("nan")})
    half = replace(trace(3), messages=(Message(role="user", content="a \ud83d b"),), latency_ms=float("inf"))
    for each in (long, odd, half):
        writer.put(each).result(10)
    assert writer.lost == 0 and writer.healthy
    (kept,) = traffic.requests(store, ids=[long.id])
    assert kept.tenant == ("tenant " * 80)[:120] and kept.decisions[0].category == "c" * 60
    assert review.holds(store, waiting=True)[0].conversation == kept.conversation
    (kept,) = traffic.requests(store, ids=[odd.id])
    assert kept.meta == {"odd": "(object)", "half": "?", "none": None}
    (kept,) = traffic.requests(store, ids=[half.id])
    assert kept.messages[0].content == "a ? b"
    writer.close()


def test_thumbs_and_appeals_mark_a_decision_as_reported(home):
    store = engine.open(home)
    traces.write(store, [one := trace(1), two := trace(2)])
    first = traffic.add_feedback(store, one.id, "thumb", value=-1, text="wrong", key="k1")
    assert traffic.add_feedback(store, one.id, "thumb", value=-1, text="wrong", key="k1") == first
    traffic.add_feedback(store, two.id, "thumb", value=1)
    assert [each.text for each in traffic.feedback(store, request=one.id)] == ["wrong"]
    assert {each.request for each in traffic.decisions(store) if each.reported} == {one.id}
    with pytest.raises(NotFound):
        traffic.add_feedback(store, "nowhere", "thumb", value=1)
    with pytest.raises(UsageError, match="kind of feedback"):
        traffic.add_feedback(store, one.id, "shout")


def test_a_reviewer_sees_the_masked_form_of_what_was_decided_on(home):
    store = engine.open(home)
    masked = (Message(role="user", content="hello [EMAIL]"),)
    one = trace(3, redacted_messages=masked, redacted_answer=Message(role="assistant", content="good day [X]"))
    traces.write(store, [one])
    incoming, outgoing = one.decisions
    assert traffic.subject(store, incoming.id) == (masked, "input")
    assert [each.content for each in traffic.subject(store, outgoing.id)[0]] == ["hello [EMAIL]", "good day [X]"]
    assert traffic.subject(store, incoming.id, masked=False)[0] == one.messages
    with pytest.raises(NotFound):
        traffic.subject(store, "nothing")


def test_draws_keep_their_probability_and_are_made_once(home):
    store = engine.open(home)
    traces.write(store, [trace(number) for number in range(10)])
    policy = review.save_policy(store, {"floor": 0.05}, seed_commit="abc")
    assert policy == review.save_policy(store, {"floor": 0.05}, seed_commit="abc")
    seen = traffic.decisions(store, direction="input", undrawn=True)
    new = [review.Draw(each.id, policy, "allow", 0.25, at % 4 == 0) for at, each in enumerate(seen)]
    assert review.save_draws(store, new) == 10 and review.save_draws(store, new) == 0
    assert len(review.draws(store, selected=True)) == 3
    assert {each.probability for each in review.draws(store)} == {0.25}
    assert traffic.decisions(store, direction="input", undrawn=True) == []
    with pytest.raises(UsageError, match="probability"):
        review.save_draws(store, [review.Draw(seen[0].id, policy, "allow", 0.0, True)])


def test_a_persons_answer_is_delivered_once_in_its_conversation(home):
    store = engine.open(home)
    traces.write(store, [one := trace(1)])
    held = review.hold(store, one.id, "c1")
    assert review.hold(store, one.id, "c1") == held and len(review.holds(store, waiting=True)) == 1
    assert review.pending(store, "c1") == []
    said = Message(role="assistant", content="a person says hello")
    review.deliver(store, one.id, said, by="rita")
    assert review.pending(store, "c1") == [(held, said)] and review.pending(store, "c2") == []
    review.delivered(store, [held])
    assert review.pending(store, "c1") == []
    with pytest.raises(UsageError, match="already"):
        review.deliver(store, held, said, by="rita")


def test_the_vault_is_encrypted_and_forgets(home):
    store = engine.open(home)
    review.vault_put(store, "c1", {"[EMAIL:1]": ("email", "anna@example.org")})
    assert review.vault_get(store, "c1") == {"[EMAIL:1]": ("email", "anna@example.org")}
    with store.read() as connection:
        raw = b"".join(connection.execute(sql.select(schema.vault.c.sealed)).scalars())
    if store.dialect == "sqlite":
        raw += (home / "store.db").read_bytes() + (home / "store.db-wal").read_bytes()
    assert raw and b"anna@" not in raw
    assert review.vault_forget(store, "c1") == 1 and review.vault_get(store, "c1") == {}


def test_the_vault_forgets_by_age(home, monkeypatch):
    store = engine.open(home)
    first = engine.now()
    for number in range(5):
        monkeypatch.setattr(review, "now", lambda at=first + 1000 * number: at)
        for conversation in ("c1", "c2"):
            review.vault_put(store, conversation, {f"[EMAIL-{number}]": ("email", f"a{number}@example.org")})
    review.vault_put(store, "c1", {"[EMAIL-0]": ("email", "a0@example.org")})
    assert review.vault_expire(store, first) == 0
    assert review.vault_expire(store, first + 3000, most=4) == 6, "in two parts"
    assert review.vault_get(store, "c1") == {f"[EMAIL-{n}]": ("email", f"a{n}@example.org") for n in (3, 4)}
    assert len(review.vault_get(store, "c2")) == 2 and review.vault_expire(store, first + 3000) == 0
    review.vault_put(store, "c1", {"[EMAIL-0]": ("email", "a0@example.org")})
    assert "[EMAIL-0]" in review.vault_get(store, "c1"), "a conversation that goes on keeps it anew"


def test_estimates_and_drift_read_back(home):
    store = engine.open(home)
    review.save_estimates(store, [review.Estimate("g", "week 1", "miss_rate", None, reason="not enough data")])
    for _ in range(2):
        review.save_drift(store, [review.Drift("miss_rate", "week 2", 0.3, 0.1, True)], key="turn")
    assert len(review.drifts(store)) == 1
    assert review.estimates(store)[0].reason == "not enough data"
    assert review.drifts(store, triggered=True)[0].value == 0.3 and review.drifts(store, triggered=False) == []


def test_promotion_and_rollback_move_one_pointer_and_leave_a_trail(home):
    store = engine.open(home)
    assert releases.current(store) is None
    with pytest.raises(Refused):
        releases.rollback(store, actor="op", reason="?")
    first, second, third = (releases.create(store, f"bundle:{n}", name=str(n)) for n in "abc")
    assert releases.promote(store, first, actor="op", reason="first") is None
    assert releases.promote(store, second, actor="op", reason="better") == first
    releases.move(store, third, "refused", actor="gate", reason="blocks too much")
    with pytest.raises(Refused):
        releases.promote(store, third, actor="op", reason="anyway")
    assert releases.current(store).bundle == "bundle:b"
    assert releases.rollback(store, actor="op", reason="misses").id == first
    assert releases.current(store).id == first and releases.current(store).state == "live"
    trail = [(each.release, each.after) for each in releases.history(store, "production")]
    assert trail[-2:] == [(second, "rolled_back"), (first, "live")]
    with pytest.raises(Refused):
        releases.rollback(store, actor="op", reason="again")
    person = people.create(store, "sam", roles=["safety"])
    for _ in range(2):
        releases.approve(store, first, person.id, "fine")
    assert releases.approvals(store, first) == [person.id]


def test_what_has_a_key_is_released_once(home):
    store = engine.open(home)
    old = releases.create(store, "bundle:a")
    releases.promote(store, old, actor="op", reason="first")
    for live in (old, "other"):
        if live == "other":
            live = releases.create(store, "bundle:x")
            releases.promote(store, live, actor="op", reason="meanwhile")
        new = releases.create(store, "bundle:b", parent=live, key="k")
        assert releases.get(store, new).parent == old, "the parent of the first time"
        replaced = releases.promote(store, new, actor="life", reason="better", key="k")
        assert replaced == (old if live == old else None)
    assert releases.current(store).bundle == "bundle:x", "what came afterwards stays"
    assert releases.create(store, "bundle:b", key="l") != new != releases.create(store, "bundle:c", key="k")
    for _ in range(2):
        assert releases.rollback(store, actor="op", reason="rehearsal", key="k").id == new
    refused = releases.create(store, "bundle:d", key="k")
    for _ in range(2):
        releases.move(store, refused, "refused", actor="gate", reason="no", key="k")
    states = [each.after for each in releases.history(store) if each.release in (new, refused)]
    assert states == ["draft", "live", "retired", "live", "draft", "refused"]


def test_jobs_are_done_once_and_a_dead_workers_job_goes_on(home):
    store = engine.open(home)
    one = jobs.enqueue(store, "retrain", {"week": 2}, dedupe="week-2")
    assert jobs.enqueue(store, "retrain", dedupe="week-2") == one
    mine = jobs.claim(store, ["retrain"], "w1", lease_s=0.01)
    time.sleep(0.02)
    theirs = jobs.claim(store, ["retrain"], "w2")
    assert mine.id == theirs.id and theirs.attempts == 2
    assert not jobs.finish(store, mine) and jobs.beat(store, theirs)
    assert jobs.fail(store, theirs, "no", retry_in_s=0)
    again = jobs.claim(store, ["retrain"], "w1")
    assert jobs.finish(store, again, {"ok": True}) and jobs.get(store, one).result == {"ok": True}
    assert jobs.claim(store, ["retrain"], "w1") is None and jobs.every(store, "done")[0].id == one


def test_traffic_rows_cannot_be_changed(home):
    store = engine.open(home)
    traces.write(store, [trace()])
    for table in ("request", "decision", "verdict"):
        with pytest.raises(TutelageError, match="append-only"), store.write() as connection:
            connection.exec_driver_sql(f"DELETE FROM {table}")
