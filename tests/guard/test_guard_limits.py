"""Budgets, load and priorities: who may begin, who is refused, and when it is worth trying again."""

import datetime

from hypothesis import given
from hypothesis import strategies as st

from tutelage.guard.limits import Budget, Budgets, Shedder, periods

AT = datetime.datetime(2026, 12, 31, 23, 0, tzinfo=datetime.UTC).timestamp()


def test_a_budget_is_reserved_settled_and_begins_anew() -> None:
    books, budget = Budgets(), Budget(day_tokens=100, month_tokens=150)
    assert books.acquire("acme", budget, 80, AT) is None
    denied = books.acquire("acme", budget, 30, AT)
    assert denied and denied.status == 429 and denied.code == "insufficient_quota" and "20 of 100" in denied.reason
    assert denied.retry_after == 3600.0, "the day ends in an hour"
    books.settle("acme", 80, 60, AT)
    assert books.acquire("acme", budget, 40, AT) is None
    books.settle("acme", 40, 40, AT)
    tomorrow = AT + 7200
    assert books.acquire("acme", budget, 100, tomorrow) is None, "another day, and another month"
    books.release("acme", 100)
    assert books.acquire("bolt", budget, 100, AT) is None, "another tenant"
    assert periods(AT) == ("2026-12-31", "2026-12") and periods(tomorrow) == ("2027-01-01", "2027-01")


def test_a_month_is_a_limit_of_its_own() -> None:
    books, budget = Budgets(), Budget(month_tokens=150)
    early = AT - 20 * 86_400
    assert books.acquire("acme", budget, 150, early) is None
    books.settle("acme", 150, 150, early)
    denied = books.acquire("acme", budget, 1, AT)
    assert denied and "month" in denied.reason and denied.retry_after == 3600.0
    assert books.acquire("acme", Budget(), 10**9, AT) is None, "no limit"


def test_what_other_services_used_counts() -> None:
    books, budget = Budgets(), Budget(day_tokens=100)
    books.settle("acme", 0, 30, AT)
    new = books.take()
    assert new[("acme", "2026-12-31")] == (30, 1) and books.used("acme", "2026-12-31") == 30
    books.put_back(new)
    assert books.used("acme", "2026-12-31") == 30 and books.take() == new
    books.know({("acme", "2026-12-31"): 90})
    assert books.acquire("acme", budget, 11, AT) is not None and books.acquire("acme", budget, 10, AT) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=40))
def test_never_more_is_granted_than_there_is(asked: list[tuple[int, int]]) -> None:
    books, budget, spent = Budgets(), Budget(day_tokens=200), 0
    for reserved, used in asked:
        if books.acquire("acme", budget, reserved, AT) is None:
            books.settle("acme", reserved, min(used, reserved), AT)
            spent += min(used, reserved)
    assert spent <= 200 and books.used("acme", "2026-12-31") == spent


def test_a_full_service_refuses_low_priority_first() -> None:
    shedder = Shedder(10)
    for _ in range(7):
        assert shedder.acquire("low") is None
    low = shedder.acquire("low")
    assert low and low.status == 503 and low.retry_after > 0
    assert [shedder.acquire("normal") is None for _ in range(3)] == [True, True, False]
    assert [shedder.acquire("high") is None for _ in range(2)] == [True, False]
    shedder.release()
    assert shedder.acquire("high") is None and shedder.running == 10
    assert Shedder(1).acquire("low") is None, "a small one serves somebody"
