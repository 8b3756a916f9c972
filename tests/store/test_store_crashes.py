"""Exactly N people for each task, whoever crashes when: 32 clients in 4 processes that are killed at work."""

from __future__ import annotations

import pytest

from bench import crowd


def held_to(found: crowd.Outcome, tasks: int, per_task: int) -> None:
    assert (found.answers, found.over, found.under, found.lost) == (tasks * per_task, 0, 0, 0), found


def test_every_task_gets_exactly_its_people_though_processes_are_killed(tmp_path, database):
    asked, persons = crowd.prepare(tmp_path, database, clients=32, tasks_=60, per_task=4, lease_ms=400)
    held_to(crowd.run(asked, persons, processes=4, kills=2, every_s=0.4, seed=1), 60, 4)


@pytest.mark.slow
def test_ten_thousand_slots_and_twenty_kills(tmp_path, database):
    asked, persons = crowd.prepare(tmp_path, database, clients=32, tasks_=2500, per_task=4, lease_ms=1500)
    found = crowd.run(asked, persons, processes=4, kills=20, every_s=2.0, seed=2)
    held_to(found, 2500, 4)
    assert found.stale > 0  # answers that came too late were sent, and refused
