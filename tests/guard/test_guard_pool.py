"""Several upstreams: the next one when the first fails before its first byte, a rest for one that fails in a row."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from tutelage.core.records import Message
from tutelage.generate.generator import Sampling
from tutelage.guard.pool import FAILURES, REST_S, Pool
from tutelage.guard.tools import PLAIN, Wants
from tutelage.guard.upstream import Delta, Misbehaved, Refusing, TooLong

ASKED = (Message(role="user", content="hello"),)


class Member:
    """Answers, or fails at a place of its answer."""

    def __init__(self, name: str, fails: Exception | None = None, at: int = 0) -> None:
        self.name, self.fails, self.at, self.asked, self.closed = name, fails, at, 0, 0

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, sample: int = 0, wants: Wants = PLAIN
    ) -> AsyncGenerator[Delta]:
        self.asked += 1
        try:
            for place in range(3):
                if self.fails is not None and place == self.at:
                    raise self.fails
                yield Delta(f"{self.name}{place} ")
            yield Delta("", "stop")
        finally:
            self.closed += 1

    async def close(self) -> None:
        pass


def said(pool: Pool) -> str:
    async def run() -> str:
        return "".join([delta.text async for delta in pool.stream(ASKED, Sampling())])

    return asyncio.run(run())


def test_the_next_one_answers_where_the_first_fails_before_its_first_byte() -> None:
    first, second = Member("a", Misbehaved("down")), Member("b")
    pool = Pool([first, second])
    assert said(pool) == "b0 b1 b2 " and first.closed == 1
    first.fails = None
    assert said(pool) == "a0 a1 a2 "


def test_what_has_begun_is_never_replaced() -> None:
    pool = Pool([Member("a", Misbehaved("broke off"), at=1), second := Member("b")])
    with pytest.raises(Misbehaved, match="broke off"):
        said(pool)
    assert second.asked == 0


@pytest.mark.parametrize("error", [Refusing("no"), TooLong("too long", key="messages")])
def test_a_request_that_is_at_fault_is_not_asked_elsewhere(error: Exception) -> None:
    pool = Pool([Member("a", error), second := Member("b")])
    with pytest.raises(type(error)):
        said(pool)
    assert second.asked == 0 and pool.health == ["closed", "closed"]


def test_one_that_fails_in_a_row_rests_and_is_tried_by_one_request() -> None:
    now = [100.0]
    first, second = Member("a", Misbehaved("down")), Member("b")
    pool = Pool([first, second], clock=lambda: now[0])
    for _ in range(FAILURES + 4):
        assert said(pool) == "b0 b1 b2 "
    assert first.asked == FAILURES and pool.health == ["open", "closed"]
    now[0] += REST_S + 0.1
    assert pool.health == ["half", "closed"]
    said(pool)
    assert first.asked == FAILURES + 1 and pool.health == ["open", "closed"]  # tried once, failed, rests longer
    now[0] += REST_S + 0.1
    assert pool.health == ["open", "closed"]
    now[0] += REST_S
    first.fails = None
    assert said(pool) == "a0 a1 a2 " and pool.health == ["closed", "closed"]


def test_none_that_is_well_says_so() -> None:
    pool = Pool([Member("a", Misbehaved("down a")), Member("b", Misbehaved("down b"))])
    for _ in range(3):
        with pytest.raises(Misbehaved):
            said(pool)
    with pytest.raises(Misbehaved, match="left alone"):
        said(pool)


def test_a_client_that_leaves_leaves_no_trial_behind() -> None:
    now = [0.0]
    first, second = Member("a", Misbehaved("down")), Member("b")
    pool = Pool([first, second], clock=lambda: now[0])
    for _ in range(FAILURES):
        said(pool)
    first.fails, now[0] = None, 100.0

    async def leave() -> None:
        pieces = pool.stream(ASKED, Sampling())
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(leave())
    assert pool.health == ["closed", "closed"] and said(pool).startswith("a0")
