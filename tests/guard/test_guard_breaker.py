"""A guard that was late too often rests, and is tried again; others go on."""

import asyncio
import threading

import pytest

from tutelage.guard.breaker import LATE, Breaker, Breakers


def test_it_rests_after_failures_in_a_row_is_tried_by_one_and_rests_longer() -> None:
    now = [0.0]
    breaker = Breaker(2, rest_s=1.0, longest_s=3.0, clock=lambda: now[0])
    for fails in (True, False, True):
        assert breaker.may()
        (breaker.failed if fails else breaker.fine)()
        breaker.over()
    assert breaker.state == "closed", "not in a row"
    breaker.failed()
    assert breaker.state == "open" and not breaker.may()
    for rest in (1.0, 2.0, 3.0, 3.0):
        now[0] += rest - 0.01
        assert breaker.state == "open" and not breaker.may()
        now[0] += 0.02
        assert breaker.state == "half" and breaker.may() and not breaker.may(), "one tries it"
        breaker.failed()
        breaker.over()
    now[0] += 4
    assert breaker.may()
    breaker.fine()
    breaker.over()
    assert breaker.state == "closed" and breaker.may() and breaker.may()


def test_a_guard_that_hangs_is_asked_no_more_and_another_is() -> None:
    asked, go = [], threading.Event()

    def hangs() -> None:
        asked.append(1)
        go.wait()

    async def run() -> None:
        rooms = Breakers()
        for _ in range(LATE + 20):
            with pytest.raises(TimeoutError):
                await rooms.call("slow", hangs, 5)
        assert len(asked) == LATE and rooms.states() == {"slow": "open"}
        assert await rooms.call("quick", lambda: 7, 5000) == 7
        assert rooms.states() == {"slow": "open", "quick": "closed"}
        with pytest.raises(TimeoutError, match="rests"):
            rooms.wait("slow", hangs, 5)
        go.set()
        rooms.close()

    asyncio.run(run())
