"""Incidents, the standing of guards and certificates, what tenants used, and traffic as the database counts it."""

import pytest

from tutelage.core.errors import DataError, NotFound, TutelageError
from tutelage.core.records import Message, Verdict
from tutelage.store import budgets, engine, incidents, overview, standings, traces, traffic

HOUR = 3_600_000


def test_one_thing_opens_one_incident_until_it_is_closed(home, monkeypatch):
    store = engine.open(home)
    first = incidents.open(store, "guard", "g1", "g1 fails", severity="high", detail={"timeout": 12})
    assert incidents.open(store, "guard", "g1", "g1 fails again") == first
    other = incidents.open(store, "guard", "g2", "g2 fails")
    assert incidents.counts(store) == {"guard": 2} and other != first
    assert [each.kind for each in incidents.get(store, first)[1]] == ["opened"], "within a minute it is the same"
    later = engine.now() + 61_000
    monkeypatch.setattr(incidents, "now", lambda: later)
    incidents.open(store, "guard", "g1", "g1 fails again")
    incidents.note(store, first, "The machine was full.", "ana")
    incidents.note(store, first, "It is larger now.", "ana", close=True)
    found, events = incidents.get(store, first)
    assert [each.kind for each in events] == ["opened", "seen", "noted", "closed"]
    assert events[0].detail == {"timeout": 12} and events[2].text == "The machine was full."
    assert found.closed_by == "ana" and found.last_at == later
    with pytest.raises(DataError, match="closed"):
        incidents.note(store, first, "late", "ana")
    assert incidents.open(store, "guard", "g1", "g1 fails") != first, "another one"
    assert [each.id for each in incidents.every(store, closed=True)] == [first]
    for bad in ("", " ", "x" * 5001):
        with pytest.raises(DataError):
            incidents.note(store, other, bad, "ana")
    with pytest.raises(NotFound):
        incidents.note(store, "nothing", "x", "ana")
    with pytest.raises(TutelageError, match="append-only"), store.write() as connection:
        connection.exec_driver_sql("DELETE FROM incident_event")


def test_an_appeal_opens_one_and_simulated_people_do_not(home):
    store = engine.open(home)
    traces.write(store, [one := traces.Trace(messages=(Message(role="user", content="why"),))])
    traffic.add_feedback(store, one.id, "appeal", text="That was harmless", people="simulated", key="a")
    traffic.add_feedback(store, one.id, "thumb", value=-1, key="b")
    assert incidents.every(store) == []
    for key in ("c", "c", "d"):
        traffic.add_feedback(store, one.id, "appeal", text="That was harmless", key=key)
    (found,) = incidents.every(store)
    assert (found.kind, found.subject) == ("appeal", one.id)


def test_guards_and_certificates_stand_as_was_last_said(home):
    store = engine.open(home)
    with pytest.raises(DataError, match="say why"):
        standings.switch(store, "g1", "shadow", reason=" ", by="lea")
    standings.switch(store, "g1", "shadow", reason="too strict", by="lea")
    assert standings.switches(store) == {"g1": "shadow"} and standings.switches(store, at=0) == {}
    standings.switch(store, "g1", "on", reason="mended", by="lea")
    assert standings.switches(store) == {"g1": "on"}
    two = {"c1": "g1", "c2": "g1"}
    assert standings.expire(store, two, reason="drift", by="system") == 2
    assert standings.expire(store, two, reason="drift", by="system") == 0, "once"
    assert standings.renew(store, {"c1": "g1"}, reason="looked at", by="lea") == 1
    assert standings.expired(store) == {"c2"} and standings.expired(store, at=0) == set()


def test_what_is_used_adds_up(home):
    store = engine.open(home)
    budgets.add(store, {})
    budgets.add(store, {("acme", "2026-11-27"): (100, 1), ("acme", "2026-11"): (100, 1)})
    budgets.add(store, {("acme", "2026-11-27"): (20, 2), ("bolt", "2026-11-27"): (5, 1)})
    assert budgets.used(store, ["2026-11-27"]) == {("acme", "2026-11-27"): (120, 3), ("bolt", "2026-11-27"): (5, 1)}


def test_traffic_is_counted_by_the_database(home):
    store, at = engine.open(home), engine.now()
    guard = Verdict(judge="g1", scores={"crime": 0.9, "fraud": 0.2})
    late = Verdict(judge="g1", status="timeout")
    for number, (action, verdict, people) in enumerate(
        (("block", guard, "live"), ("allow", guard, "live"), ("allow", late, "live"), ("block", guard, "simulated"))
    ):
        decided = traces.Decided(action=action, verdicts=(verdict,))
        shadow = traces.Decided(action="block", shadow=True, verdicts=(Verdict(judge="s1", scores={"hate": 0.9}),))
        traces.write(
            store,
            [
                traces.Trace(
                    messages=(Message(role="user", content=str(number)),),
                    decisions=(decided, shadow),
                    at=at - 2 * HOUR + number,
                    people=people,
                    latency_ms=10.0 * number,
                )
            ],
        )
    span = (at - 3 * HOUR, at)
    assert overview.outcomes(store, *span) == (3, 1), "real users, and what decided"
    assert overview.statuses(store, *span) == {"g1": {"ok": 3, "timeout": 1}}
    assert overview.actions(store, *span) == dict(allow=2, flag=0, redact=0, rewrite=0, review=0, block=2)
    assert overview.categories(store, *span) == [("crime", 2)]
    assert overview.people(store, *span) == {"live": 3, "simulated": 1}
    assert overview.by_time(store, *span, HOUR) == [(1, 4, 2)]
    assert sorted(overview.latencies(store, *span)) == [0.0, 10.0, 20.0, 30.0]
    assert overview.outcomes(store, at, at + 1) == (0, 0) and overview.by_time(store, at, at + HOUR, HOUR) == []
