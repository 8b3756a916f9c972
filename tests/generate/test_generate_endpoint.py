"""How an endpoint is asked: durations as they are written, pace, answers that outlive a kill, and a budget."""

from __future__ import annotations

import json
from email.utils import formatdate
from pathlib import Path

import pytest

from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError, Stopped
from tutelage.generate.endpoint import Bill, Kept, Pace, Price, asked_pause, closed_for, seconds_of, settings_of


def test_durations_as_endpoints_write_them() -> None:
    for text, seconds in (
        ("7", 7), ("0.5", 0.5), ("120ms", 0.12), ("1s", 1), ("6m0s", 360), ("1h2m3s", 3723), ("59.5s", 59.5),
        ("", None), (None, None), ("soon", None), ("-3", None), ("nan", None),
    ):  # fmt: skip
        assert seconds_of(text) == seconds, text
    assert asked_pause({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert asked_pause({"retry-after": "9"}) == 9
    assert 50 < (asked_pause({"retry-after": formatdate(__import__("time").time() + 60, usegmt=True)}) or 0) <= 60
    assert asked_pause({"retry-after": formatdate(0, usegmt=True)}) == 0
    assert asked_pause({}) is None and asked_pause({"retry-after": "later"}) is None
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}
    assert closed_for(left | {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}) == 360
    assert closed_for({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1s"}) == 0
    assert closed_for({"ratelimit-remaining": "0", "ratelimit-reset": "12"}) == 12


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_requests_and_tokens_are_paced() -> None:
    clock = Clock()
    pace, begun = Pace(60, 6000, clock, clock.sleep), []
    for tokens in (10, 10, 300, 10, 10):
        pace.wait(tokens)
        begun.append(clock.now - 100)
    assert begun == pytest.approx([0, 1, 2, 5, 6])  # a request a second; 300 tokens take three
    pace.settle(10, 510)  # the endpoint counted 500 more than was thought
    pace.wait(0)
    assert clock.now - 100 == pytest.approx(11.1)
    pace.hold(30)
    pace.wait(0)
    assert clock.now - 100 == pytest.approx(41.1) and pace.waited == pytest.approx(41.1)


def test_answers_outlive_a_torn_line(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put("a", {"choices": [1]}, {"input": 5, "output": 1})
    kept.put("", None, {"input": 7, "output": 0})
    kept.put("b", {"choices": [2]}, {"input": 5, "output": 2})
    whole = kept.path.read_bytes()
    kept.path.write_bytes(whole[:-9])
    again = Kept(tmp_path)
    assert again.known == {"a": {"choices": [1]}} and [each["input"] for each in again.spent] == [5, 7]
    again.put("c", {"choices": [3]}, {"input": 1, "output": 1})
    assert list(Kept(tmp_path).known) == ["a", "c"]
    kept.path.write_bytes(b"neither here nor there\n" + kept.path.read_bytes())
    assert list(Kept(tmp_path).known) == ["a", "c"], "a bad line takes nothing with it that was paid"
    assert Kept(tmp_path, fresh=True).known == {} and (tmp_path / "requests-0.jsonl").is_file()


def test_a_budget_is_never_passed() -> None:
    bill = Bill(Price(input=1.0, output=10.0), budget=0.001)
    held = bill.reserve(100, 50)
    with pytest.raises(Stopped, match=r"the budget of 0.001 holds no further request.*larger budget"):
        bill.reserve(100, 50)
    bill.release(held)
    bill.pay({"input": 100, "output": 3})
    assert bill.plain()["cost"] == pytest.approx(0.00013)
    bill.release(bill.reserve(100, 50))


def test_settings_come_from_the_root_and_name_their_mistakes(tmp_path: Path) -> None:
    root = Root(tmp_path)
    file = tmp_path / "endpoints.yaml"
    file.write_text(
        "https://h/v1: {key: 'env:K', requests_per_minute: 30, price: {input: 1}}\n"
        "https://h/v1#big: {price: {output: 4}}\n"
    )
    found = settings_of("https://h/v1#big", root, {"budget": 2})
    assert (found.key, found.requests_per_minute, found.price, found.budget) == (
        "env:K",
        30,
        Price(input=1, output=4),
        2,
    )
    assert settings_of("https://h/v1#small", root, {}).price == Price(input=1)
    with pytest.raises(ConfigError, match="a budget needs prices"):
        settings_of("https://other/v1#m", root, {"budget": 2})
    for text, said in (
        ("https://h/v1: {kye: 'env:K'}", "https://h/v1.kye': unknown key. Did you mean 'key'"),
        ("h: {}", "expected an address"),
        ("https://h/v1: {timeout: 0}", "timeout"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            settings_of("https://h/v1#m", root, {})
    assert json.loads(json.dumps(found.model_dump()))["key"] == "env:K"
