"""Who is given which task: languages, qualifications, caps, roles, priorities, clocks. In SQLite and in PostgreSQL."""

from __future__ import annotations

import itertools
import threading

import pytest
import sqlalchemy as sql

from tutelage.core.errors import ConfigError, DataError, NotFound
from tutelage.store import (
    answers,
    claimants,
    engine,
    erasure,
    gold,
    oversight,
    people,
    profiles,
    qualifications,
    schema,
    seen,
    slots,
    standing,
    tasks,
)
from tutelage.store.standing import REASONS

LEASE = 60_000


def project(store, name="p", **settings):
    made = tasks.make_project(store, name, kind="ranking", questions=[], settings=settings)
    return made


def fill(store, where, *new, per_task=1):
    """Tasks made from (key, fields of NewTask)."""
    made = [
        tasks.NewTask(key, "ranking", (), (("a", "", {}), ("b", "", {})), **{"required": per_task, **fields})
        for key, fields in new
    ]
    return dict(zip((key for key, _ in new), tasks.add(store, where, made), strict=True))


def crew(store, *names, **fields):
    return [people.create(store, name, **fields).id for name in names]


keys = (f"key-{number}" for number in itertools.count())


def answered(held, status="submitted"):
    return answers.NewAnnotation(held.id, held.epoch, next(keys), status=status, ranks=[(0, 0), (1, 1)])


def submit(store, person, *held, status="submitted"):
    given = [answered(each, status) for each in held]
    return [each.status for each in answers.submit(store, person, "live", given)]


def take(store, person, where, count=1, lease=LEASE):
    return slots.claim(store, person, [where.id], count, lease)


def why(store, person, where):
    return standing.why_empty(store, person, [where.id])


def plans(store, act):
    """How SQLite finds the rows of every SELECT of an act: (statement, a line of its plan)."""
    found = []

    def look(connection, cursor, statement, parameters, context, many):
        if statement.startswith("SELECT") and not many:
            lines = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            found.extend((statement, line[3]) for line in lines)

    for each in (store._reading, store._words, store._traces):
        sql.event.listen(each, "before_cursor_execute", look)
    act()
    return found


def test_what_is_read_while_others_wait_to_write_is_found_in_an_index(tmp_path):
    with engine.open(tmp_path) as store:
        found = plans(store, lambda: profiles.keep_consent(store, "1", "We ask, you may answer."))
        (line,) = {line for statement, line in found if "action" in statement}
        assert line == "SEARCH audit USING COVERING INDEX ix_audit_act (action=? AND object=?)"
        where = project(store, gold_share=0.5)
        fill(store, where, ("a", {}), ("b", {}))
        (anna,) = crew(store, "anna")
        found = plans(store, lambda: take(store, anna, where))
        lines = {line for statement, line in found if "count(" in statement and "slot.purpose !=" in statement}
        assert lines == {"SEARCH slot USING COVERING INDEX ix_slot_person (person_id=? AND project_id=?)"}


def test_a_task_with_a_language_goes_to_who_named_it_and_one_without_to_anybody(store):
    where = project(store)
    ids = fill(store, where, ("german", {"language": "de"}), ("plain", {}), ("french", {"language": "fr"}))
    (anna,), (bert,) = crew(store, "anna", languages=["de", "it"]), crew(store, "bert")
    assert [each.task for each in take(store, bert, where, 9)] == [ids["plain"]]
    assert submit(store, bert, *take(store, bert, where)) == ["stored"]
    assert take(store, bert, where) == [] and why(store, bert, where) == REASONS["language"]
    assert [each.task for each in take(store, anna, where, 9)] == [ids["german"]]


def test_who_is_named_by_id_is_not_asked_for_the_language(store):
    where = project(store)
    (anna,) = crew(store, "anna")
    fill(store, where, ("mine", {"language": "de", "people": [anna]}))
    assert len(take(store, anna, where)) == 1


def test_a_project_asks_for_all_its_qualifications(store):
    where = project(store, qualifications=["law", "medicine"])
    fill(store, where, ("t", {}))
    anna, lead = crew(store, "anna", "lead")
    assert take(store, anna, where) == [] and "law, medicine" in why(store, anna, where)
    qualifications.grant(store, anna, "law", lead)
    assert take(store, anna, where) == [] and "yet: medicine." in why(store, anna, where)
    qualifications.grant(store, anna, "medicine", lead)
    qualifications.grant(store, anna, "medicine", lead)
    assert len(take(store, anna, where)) == 1
    assert qualifications.of(store, [anna, lead]) == {anna: ("law", "medicine")}
    assert qualifications.every(store) == ["law", "medicine"]
    assert qualifications.revoke(store, anna, "law", lead) and not qualifications.revoke(store, anna, "law", lead)
    with pytest.raises(DataError, match="no name"):
        qualifications.grant(store, anna, " ", lead)
    with pytest.raises(NotFound):
        qualifications.grant(store, "nobody", "law", lead)


def test_a_project_for_speakers_of_a_language(store):
    where = project(store, languages=["de", "fr"])
    fill(store, where, ("t", {}))
    (anna,), (bert,) = crew(store, "anna", languages=["fr"]), crew(store, "bert", languages=["it"])
    assert take(store, bert, where) == [] and "de, fr" in why(store, bert, where)
    assert len(take(store, anna, where)) == 1


def test_caps_hold_for_what_is_held_and_what_is_answered(store):
    where = project(store, most_per_person=3)
    fill(store, where, *((f"t{n}", {}) for n in range(9)))
    (anna,) = crew(store, "anna")
    assert len(take(store, anna, where, 2)) == 2
    held = take(store, anna, where, 9)
    assert len(held) == 3
    assert submit(store, anna, *held[:2], status="submitted") == ["stored"] * 2
    assert [each.id for each in take(store, anna, where, 9)] == [held[2].id]
    submit(store, anna, held[2])
    assert take(store, anna, where) == [] and "the 3 tasks that one person" in why(store, anna, where)


def test_a_cap_per_day_ends_at_midnight_and_revisions_do_not_count(store, monkeypatch):
    where = project(store, most_per_day=2)
    fill(store, where, *((f"t{n}", {}) for n in range(9)))
    (anna,) = crew(store, "anna")
    clock = [1000 * claimants.DAY + 1]
    for module in (slots, standing, answers):
        monkeypatch.setattr(module, "now", lambda: clock[0])
    first = take(store, anna, where, 2)
    submit(store, anna, first[0])
    submit(store, anna, first[0])
    assert [each.id for each in take(store, anna, where, 2)] == [first[1].id]
    submit(store, anna, first[1])
    assert take(store, anna, where) == [] and "tomorrow" in why(store, anna, where)
    clock[0] += claimants.DAY
    assert len(take(store, anna, where, 9)) == 2


def test_a_place_reserved_for_a_role_goes_to_who_holds_it_in_this_project(store):
    where, elsewhere = project(store), project(store, "elsewhere")
    ids = fill(store, where, ("t", {"language": "de"}))
    with store.write() as connection:
        connection.execute(sql.update(schema.slot).values(reserved_for="adjudicator"))
    (anna,) = crew(store, "anna", languages=["de"])
    people.grant(store, anna, "adjudicator", elsewhere.name)
    assert take(store, anna, where) == [] and why(store, anna, where) == REASONS["reserved"]
    (owner,) = crew(store, "owner", roles=["owner"])
    assert take(store, owner, where) == []  # who holds all roles has named no language
    people.grant(store, anna, "adjudicator", where.name)
    assert [each.task for each in take(store, anna, where)] == [ids["t"]]


def test_the_highest_priority_is_next_however_far_somebody_has_come(store, monkeypatch):
    monkeypatch.setattr(slots, "WINDOW", 3)
    where = project(store)
    fill(store, where, *((f"low{n}", {}) for n in range(12)), per_task=2)
    anna, bert = crew(store, "anna", "bert")
    for _ in range(8):  # further than a window of tasks that are all met
        submit(store, anna, *take(store, anna, where))
    late = fill(store, where, ("high", {"priority": 5}), ("higher", {"priority": 9}))
    first, second = take(store, bert, where, 2)
    assert [first.task, second.task] == [late["higher"], late["high"]]
    assert slots.give_back(store, bert, first.id, first.epoch)
    assert submit(store, bert, second, status="skipped") == ["stored"]
    taken = []
    while found := take(store, anna, where):  # what came back is next, what was skipped goes to somebody else
        taken.append(found[0].task)
        submit(store, anna, *found)
    assert taken[:2] == [late["higher"], late["high"]] and len(taken) == 2 + 4
    assert why(store, anna, where) == REASONS["met"]


def test_whoever_comes_late_still_finds_what_lies_before_their_last_task(store, monkeypatch):
    monkeypatch.setattr(slots, "WINDOW", 2)
    where = project(store)
    fill(store, where, *((f"t{n}", {"language": "de" if n == 0 else ""}) for n in range(9)), per_task=2)
    (anna,) = crew(store, "anna")
    for _ in range(8):
        submit(store, anna, *take(store, anna, where))
    assert why(store, anna, where) == REASONS["met"]
    with store.write() as connection:  # they learn a language
        connection.execute(sql.update(schema.person).where(schema.person.c.id == anna).values(languages=["de"]))
    assert len(take(store, anna, where)) == 1


def test_a_lease_that_ran_out_is_still_its_holders_until_somebody_else_is_given_it(store, monkeypatch):
    where = project(store)
    fill(store, where, ("t", {}))
    anna, bert = crew(store, "anna", "bert")
    clock = [10**12]
    for module in (slots, standing):
        monkeypatch.setattr(module, "now", lambda: clock[0])
    held = take(store, anna, where)[0]
    clock[0] += LEASE + 1
    again = take(store, anna, where)[0]
    assert (again.id, again.epoch) == (held.id, held.epoch) and again.lease_until == clock[0] + LEASE
    clock[0] += LEASE + 1
    theirs = take(store, bert, where)[0]
    assert theirs.id == held.id and theirs.epoch == held.epoch + 1
    assert take(store, anna, where) == [] and why(store, anna, where) == REASONS["held"]


@pytest.mark.parametrize("jump", [-10 * claimants.DAY, 10 * claimants.DAY])
def test_a_clock_that_jumps_moves_leases_and_doubles_nothing(store, monkeypatch, jump):
    """Backwards a lease lasts longer, forwards it runs out at once; either way a slot is answered once."""
    where = project(store)
    fill(store, where, *((f"t{n}", {}) for n in range(4)))
    anna, bert = crew(store, "anna", "bert")
    clock = [10**12]
    monkeypatch.setattr(slots, "now", lambda: clock[0])
    mine = take(store, anna, where, 4)
    clock[0] += jump
    theirs = take(store, bert, where, 2)
    assert len(theirs) == (2 if jump > 0 else 0)
    lost = {each.id for each in theirs}
    said = submit(store, anna, *mine)
    assert said == ["stale" if each.id in lost else "stored" for each in mine]
    assert submit(store, bert, *theirs) == ["stored"] * len(theirs)
    kept = answers.read(store, "p")
    assert len(kept) == len({each.task for each in kept}) == 4


def test_whoever_has_seen_the_others_answers_is_not_asked(store):
    where = project(store)
    ids = fill(store, where, *((key, {}) for key in "abcd"), per_task=2)
    anna, lead, carl = crew(store, "anna", "lead", "carl")
    submit(store, anna, *take(store, anna, where, 4))
    for _ in range(2):
        seen.note(store, lead, [ids["a"]])
    held = {each.task: each for each in take(store, lead, where, 9)}
    assert set(held) == {ids["b"], ids["c"], ids["d"]}
    seen.note(store, lead, [ids["c"]])  # while it is in their hands: they go on, and their answer says so
    submit(store, lead, held[ids["b"]], held[ids["c"]])
    assert slots.give_back(store, lead, held[ids["d"]].id, held[ids["d"]].epoch)
    said = {each.task: each.suggestion_seen for each in answers.read(store, "p", person=lead)}
    assert said == {ids["b"]: False, ids["c"]: True}
    seen.note(store, lead, [ids["d"]])  # what was given back as well
    assert take(store, lead, where, 9) == [] and why(store, lead, where) == REASONS["seen"]
    assert why(store, anna, where) == REASONS["met"]
    assert {each.task for each in take(store, carl, where, 9)} == {ids["a"], ids["d"]}
    oversight.assign(store, ids["a"], lead, "another lead")
    (mine,) = take(store, lead, where, 9)
    submit(store, lead, mine)
    (given,) = answers.read(store, "p", person=lead, task=ids["a"])
    assert given.suggestion_seen, "a place with a person's name on it is theirs all the same"


def test_whoever_has_seen_a_whole_project_is_asked_what_nobody_had_answered(store):
    where = project(store, gold_share=0.5)
    ids = fill(store, where, *((key, {}) for key in "abgh"), per_task=2)
    for key in "gh":
        gold.mark(
            store, ids[key], gold.Said({0: 0, 1: 1}, {}), rationale="", tolerance=0, enough=1, reserve=True, by="l"
        )
    anna, lead, other = crew(store, "anna", "lead", "other")
    seen.note(store, lead, [ids["g"]])  # what is expected there
    submit(store, anna, *[each for each in take(store, anna, where, 9) if each.task == ids["a"]])
    seen.note_all(store, lead, where.id)
    assert {each.task for each in take(store, lead, where, 9)} <= {ids["b"], ids["h"]}
    assert {ids["a"], ids["g"]} <= {each.task for each in take(store, other, where, 9)} | {ids["g"]}
    given = next(each for each in take(store, lead, where, 9) if each.task == ids["b"])
    submit(store, anna, *take(store, anna, where, 9))
    seen.note_all(store, lead, where.id)
    submit(store, lead, given)
    (said,) = answers.read(store, "p", person=lead)
    assert said.suggestion_seen


def test_what_was_seen_of_one_project_is_nothing_of_another(store):
    wheres = project(store, "p"), project(store, "q")
    anna, lead = crew(store, "anna", "lead")
    for where in wheres:
        fill(store, where, ("a", {}), per_task=2)
        submit(store, anna, *take(store, anna, where, 9))
    for known in reversed(wheres):
        seen.note_all(store, lead, known.id)
        other = wheres[0] if known is wheres[1] else None
        assert take(store, lead, known, 9) == [] and why(store, lead, known) == REASONS["seen"]
        assert other is None or why(store, lead, other) != REASONS["seen"]


def test_two_claims_of_one_person_at_once_never_take_a_task_twice(store):
    where = project(store)
    fill(store, where, *((f"t{n}", {}) for n in range(6)), per_task=4)
    (anna,) = crew(store, "anna")
    found = []
    threads = [threading.Thread(target=lambda: found.append(take(store, anna, where, 6))) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 6 and len({one.id for each in found for one in each}) == 6


def test_of_several_projects_the_reason_is_what_can_soonest_be_changed(store):
    done, closed = project(store, "done"), project(store, "closed", qualifications=["law"])
    fill(store, closed, ("t", {}))
    fill(store, done, ("t", {}))
    (anna,) = crew(store, "anna")
    submit(store, anna, *take(store, anna, done))
    assert "law" in standing.why_empty(store, anna, [done.id, closed.id])
    assert why(store, anna, done) == REASONS["done"] and standing.why_empty(store, anna, []) == REASONS["none"]
    assert why(store, anna, project(store, "empty")) == REASONS["none"]


def test_settings_are_changed_one_by_one_and_a_wrong_one_is_named(store):
    where = project(store, most_per_person=3)
    changed = tasks.change_settings(store, where.name, {"gold_share": 0.1}, "lead")
    assert dict(changed.settings) == {"most_per_person": 3, "gold_share": 0.1}
    with pytest.raises(ConfigError, match="gold_share"):
        tasks.change_settings(store, where.name, {"gold_shar": 0.1}, "lead")
    with pytest.raises(ConfigError, match="most_per_day"):
        tasks.change_settings(store, where.name, {"most_per_day": 0}, "lead")


def test_what_was_kept_for_who_is_erased_is_asked_of_those_who_can(store):
    where = project(store, gold_share=0.5)
    anna, bert, carl = (
        crew(store, name, languages=spoken)[0] for name, spoken in (("anna", ["de"]), ("bert", []), ("carl", ["de"]))
    )
    ids = fill(store, where, *((key, {"people": [anna], "language": "de"}) for key in "ab"), ("gold", {}))
    gold.mark(
        store, ids["gold"], gold.Said({0: 0, 1: 1}, {}), rationale="", tolerance=0, enough=1, reserve=True, by="l"
    )
    talks = tasks.make_project(store, "talks", kind="dialogue", questions=[])
    (talk,) = tasks.add(
        store, talks, [tasks.NewTask("t", "dialogue", (), (("a", "", {}), ("b", "", {})), people=[anna])]
    )
    held = take(store, anna, where, 3)
    assert {each.task for each in held} == set(ids.values())
    for each in held[:2]:
        assert slots.give_back(store, anna, each.id, each.epoch)
    erasure.erase(store, erasure.words_of(store, person=anna), person=anna, by="lead")
    assert take(store, bert, where, 9) == [] and take(store, bert, talks) == []
    given = [each.task for each in take(store, carl, where, 9) if each.purpose == schema.ORDINARY]
    assert sorted(given) == sorted((ids["a"], ids["b"]))
    assert tasks.load(store, [talk])[talk].state == "closed"
    with store.read() as connection:
        left = sql.select(schema.slot.c.state).where(schema.slot.c.reserved_for == anna)
        assert set(connection.execute(left).scalars()) == {"void"}
