"""Conversations that are with a person: begun, answered, given back, and what waits in them."""

import pytest

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Message
from tutelage.review import queue
from tutelage.store import engine, ledger, review, takeover, tasks, traces

HELLO = Message(role="assistant", content="I am Ana, a person.")


def trace(conversation="c1", held=False):
    decided = traces.Decided(action="review" if held else "allow", policy="p", reasons=("r1",))
    messages = (Message(role="user", content="may I see my papers"),)
    return traces.Trace(conversation=conversation, tenant="town", messages=messages, decisions=(decided,), held=held)


def held(store, conversation="c1"):
    made = trace(conversation, True)
    traces.write(store, [made])
    return made


def test_a_held_request_takes_its_conversation_to_a_person(home):
    store = engine.open(home)
    held(store)
    held(store)
    held(store, "c2")
    assert takeover.conversations(store) == {"c1", "c2"}
    first = takeover.opened(store)[0]
    assert (first.conversation, first.by, first.waiting, first.tenant) == ("c1", "policy", 2, "town")
    takeover.say(store, "c1", HELLO, "ana")
    assert [each.answered_at is not None for each in review.holds(store, conversation="c1")] == [True, True]
    assert [message for _, message in review.pending(store, "c1")] == [HELLO], "one answer for all that waited"
    (now,) = (each for each in takeover.opened(store) if each.conversation == "c1")
    assert (now.person, now.waiting) == ("ana", 0)
    again = Message(role="assistant", content="One thing more.")
    takeover.say(store, "c1", again, "ana", stay=False)
    assert [message for _, message in review.pending(store, "c1")] == [HELLO, again]
    assert takeover.conversations(store) == {"c2"}
    assert [each.content for _, _, each, _ in takeover.said(store, "c1")] == [HELLO.content, again.content]


def test_a_person_begins_and_ends_one_with_a_reason(home):
    store = engine.open(home)
    traces.write(store, [trace()])
    with pytest.raises(DataError, match="say why"):
        takeover.begin(store, "c1", by="ana", reason=" ")
    with pytest.raises(NotFound):
        takeover.begin(store, "nobody", by="ana", reason="a tip")
    takeover.begin(store, "c1", by="ana", reason="a tip")
    takeover.begin(store, "c1", by="ben", reason="me too")
    (now,) = takeover.opened(store)
    assert (now.by, now.reason, now.tenant) == ("ana", "a tip", "town"), "one at a time"
    held(store)
    assert takeover.end(store, "c1", "ana") and not takeover.end(store, "c1", "ana")
    assert review.holds(store, waiting=True) == [], "what waited waits no more"
    acts = [each.action for each in ledger.rows(store)]
    assert acts.count("takeover.begin") == 1 and acts.count("takeover.end") == 1
    held(store)
    assert [each.ended_at is None for each in takeover.of(store, "c1")] == [True, False]


def test_what_nobody_touches_goes_back(home):
    store = engine.open(home)
    held(store)
    assert takeover.expire(store, 0) == 0
    assert takeover.expire(store, engine.now() + 1) == 1 and takeover.conversations(store) == set()


def test_reviewers_are_asked_about_all_that_waits(home):
    store = engine.open(home)
    one = held(store)
    assert queue.open_held(store) == 1 and queue.open_held(store) == 0
    (hold,) = review.holds(store)
    assert hold.task in tasks.load(store, [hold.task]) and hold.request == one.id
    (drawn,) = review.draws(store)
    assert (drawn.probability, drawn.selected, drawn.stream) == (1.0, True, "certainty")
    assert drawn.stratum.endswith("withheld/held"), "a stratum of its own, taken whole"


def test_the_first_answer_to_a_hold_counts(home):
    store = engine.open(home)
    one = held(store)
    review.deliver(store, one.id, HELLO, by="ana")
    with pytest.raises(DataError, match="answered already"):
        review.deliver(store, one.id, HELLO, by="ben")
    assert takeover.conversations(store) == set(), "one answer, and the model goes on"
