"""How an endpoint is asked: its settings, the pace, what it answered before, and what that cost."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from tutelage.core.artifact import Root
from tutelage.core.config import Config, build, load_yaml, merge
from tutelage.core.errors import ConfigError, Stopped

FILE = "endpoints.yaml"
"""Beside service.yaml: `https://host/v1` or `https://host/v1#model` -> the settings of Endpoint."""
TEXT_PER_TOKEN = 3
"""Bytes of a prompt per token where a limit or a budget must know before the endpoint has counted. More tokens than
most tokenizers make, so that an estimate errs to the careful side."""


class Price(Config):
    """What a million tokens cost, in any one currency."""

    input: float = Field(0.0, ge=0)
    """A million tokens of prompts."""
    output: float = Field(0.0, ge=0)
    """A million tokens of answers."""

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost."""
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


class Endpoint(Config):
    """How a model behind an address is asked."""

    key: str = ""
    """Its API key as `env:NAME` or `file:PATH` (beside this file), never the key itself."""
    concurrency: int = Field(8, ge=1, le=256)
    """Requests under way at once."""
    requests_per_minute: float = Field(0.0, ge=0)
    """Requests begun in a minute, evenly spaced; 0 sets no limit. What the endpoint itself says of its limits
    (Retry-After, x-ratelimit-*) is obeyed in any case."""
    tokens_per_minute: float = Field(0.0, ge=0)
    """Tokens of prompts and answers in a minute; 0 sets no limit."""
    timeout: float = Field(60.0, gt=0)
    """Seconds from asking to the last byte of an answer."""
    retries: int = Field(4, ge=0)
    """How often a request is tried again after what may pass: no connection, no answer in time, 408, 409, 425, 429,
    5xx."""
    longest_wait: float = Field(120.0, ge=0)
    """Longest pause that the endpoint may ask for, in seconds; a longer one is a failure with that reason."""
    price: Price = Field(default_factory=Price)
    """What its tokens cost."""
    budget: float | None = Field(None, gt=0)
    """Most that an examination may cost in all its runs; then it stops, and a larger budget goes on."""
    fresh: bool = False
    """Ask again what was answered in an earlier run; those answers are laid aside."""


def settings_of(ref: str, root: Root | None, given: Mapping[str, Any]) -> Endpoint:
    """The settings of `https://host/v1#model`: those of the address, of the model, and `given` laid upon each other.

    Raises ConfigError naming file and key.
    """
    path = root.path / FILE if root is not None else None
    found: dict[str, Any] = {}
    if path is not None and path.is_file():
        written = load_yaml(path)
        for name in written:
            if not name.startswith(("http://", "https://")):
                raise ConfigError("expected an address", file=path, key=name, todo="https://host/v1 or with #model")
            build(Endpoint, written[name], file=path, prefix=name)
        for name in (ref.partition("#")[0], ref):
            found = merge(found, written.get(name) or {})
    settings = build(Endpoint, merge(found, given))
    if settings.budget is not None and not (settings.price.input or settings.price.output):
        raise ConfigError(
            "a budget needs prices", key="budget", todo="Give price.input and price.output per million tokens"
        )
    return settings


# ----------------------------------------------------------------------------------------------------------------- pace


def seconds_of(text: str | None) -> float | None:
    """A duration as endpoints write it: `7`, `0.5`, `120ms`, `1s`, `6m0s`, `1h2m3s`. None for anything else."""
    if not text:
        return None
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", text)
    if not parts or not any(parts.groups()):
        return None
    hours, minutes, seconds, thousandths = (float(each or 0) for each in parts.groups())
    return 3600 * hours + 60 * minutes + seconds + thousandths / 1000


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """The pause that `retry-after-ms` or `Retry-After` (seconds or a date) asks for."""
    thousandths = seconds_of(headers.get("retry-after-ms"))
    if thousandths is not None:
        return thousandths / 1000
    text = headers.get("retry-after") or ""
    if (seconds := seconds_of(text)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def closed_for(headers: Mapping[str, str]) -> float:
    """How long an endpoint that has nothing left of an allowance says that this lasts; 0 where it has some left."""
    names = [(f"x-ratelimit-remaining-{each}", f"x-ratelimit-reset-{each}") for each in ("requests", "tokens")]
    found = [
        seconds_of(headers.get(reset)) or 0.0
        for remaining, reset in (*names, ("ratelimit-remaining", "ratelimit-reset"))
        if (headers.get(remaining) or "").strip() == "0"
    ]
    return max(found, default=0.0)


class Pace:
    """Lets requests begin no faster than both limits allow. One for all threads of a generator."""

    def __init__(
        self, requests: float, tokens: float, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._gaps = 60 / requests if requests else 0.0, 60 / tokens if tokens else 0.0
        self._clock, self._sleep, self._lock = clock, sleep, threading.Lock()
        self._request = self._token = self._closed = 0.0
        self.waited = 0.0

    def wait(self, tokens: int) -> None:
        """Sleep until a request of about so many tokens may begin."""
        with self._lock:
            now = self._clock()
            begin = max(now, self._request, self._token)
            self._request = begin + self._gaps[0]
            self._token = begin + self._gaps[1] * tokens
        while True:
            with self._lock:
                pause = max(begin, self._closed) - self._clock()
                if pause <= 0:
                    return
                self.waited += pause
            self._sleep(pause)

    def rest(self, seconds: float) -> None:
        """One thread's pause before it tries again."""
        with self._lock:
            self.waited += seconds
        self._sleep(seconds)

    def settle(self, estimated: int, used: int) -> None:
        """The endpoint has counted: give back what was estimated too much, take what was too little."""
        with self._lock:
            self._token += self._gaps[1] * (used - estimated)

    def hold(self, seconds: float) -> None:
        """Nothing begins for so long."""
        with self._lock:
            self._closed = max(self._closed, self._clock() + seconds)


# ------------------------------------------------------------------------------------------ answers and their cost


class Kept:
    """Answers by request in an append-only file, a line each, written before the answer is used: whatever kills the
    process, nothing is asked or paid twice. A torn last line is cut. Holds no key and no header."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self.path = folder / "requests.jsonl"
        self.known: dict[str, dict[str, Any]] = {}
        self.spent: list[dict[str, int]] = []
        """Tokens of every answer that was paid for, whether or not it could be used."""
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        if fresh and self.path.is_file():
            aside = sum(1 for _ in folder.glob("requests-*.jsonl"))
            self.path.rename(folder / f"requests-{aside}.jsonl")
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    entry = json.loads(line)
                    if entry["key"]:
                        self.known[entry["key"]] = entry["answer"]
                    self.spent.append({name: int(entry["tokens"][name]) for name in ("input", "output")})
                except (ValueError, KeyError, TypeError):
                    continue
        with self.path.open("r+b") as file:
            file.truncate(whole)

    def put(self, key: str, answer: Mapping[str, Any] | None, tokens: Mapping[str, int]) -> None:
        """Keep an answer; "" as key keeps what an answer cost that could not be used."""
        line = json.dumps({"key": key, "answer": answer, "tokens": dict(tokens)}, ensure_ascii=False) + "\n"
        with self._lock:
            if key and answer is not None:
                self.known[key] = dict(answer)
            with self.path.open("a", encoding="utf-8") as out:
                out.write(line)


class Bill:
    """What was asked, what it cost, and whether that still lies within the budget."""

    def __init__(self, price: Price, budget: float | None) -> None:
        self.price, self.budget, self._lock = price, budget, threading.Lock()
        self.requests = self.kept = self.retried = self.unanswered = self.estimated = 0
        self.input_tokens = self.output_tokens = 0
        self.cost = self._reserved = 0.0
        """Of all runs so far, these tokens and this cost."""
        self.models: set[str] = set()

    def reserve(self, input_tokens: int, output_tokens: int) -> float:
        """Set aside what a request may cost. Raises Stopped where the budget does not hold it any more."""
        cost = self.price.of(input_tokens, output_tokens)
        with self._lock:
            if self.budget is not None and self.cost + self._reserved + cost > self.budget:
                raise Stopped(
                    f"the budget of {self.budget:g} holds no further request: {self.cost:.4g} is spent and a request "
                    f"may cost {cost:.2g}",
                    todo="Give a larger budget; the same command goes on where it stopped",
                )
            self._reserved += cost
        return cost

    def release(self, reserved: float) -> None:
        """The request is over, whatever it cost."""
        with self._lock:
            self._reserved -= reserved

    def count(self, name: str) -> None:
        """One more of `requests`, `kept`, `retried`, `unanswered`, `estimated`."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def pay(self, tokens: Mapping[str, int], model: str = "") -> None:
        """Tokens of an answer."""
        with self._lock:
            self.input_tokens += tokens["input"]
            self.output_tokens += tokens["output"]
            self.cost += self.price.of(tokens["input"], tokens["output"])
            if model:
                self.models.add(model)

    def plain(self) -> dict[str, Any]:
        """As it stands in a summary. `kept`: answers of earlier runs; `retried`: tries again; `unanswered`: requests
        that got no answer in time and may have been charged; `estimated`: answers without a count of tokens."""
        names = ("requests", "kept", "retried", "unanswered", "estimated", "input_tokens", "output_tokens")
        priced = bool(self.price.input or self.price.output)
        return {
            **{name: getattr(self, name) for name in names},
            "cost": round(self.cost, 6) if priced else None,
            "budget": self.budget,
            "models": sorted(self.models),
        }
