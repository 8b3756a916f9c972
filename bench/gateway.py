"""`gateway`: what the service adds to an answer's time, a thousand streams at once, and memory over a soak.

Nobody stands beside. An upstream that answers at once (64 pieces, 330 characters) runs in a process of its own, the
service in another, and requests come at 200 a second, at times drawn beforehand (exponential gaps): what is timed is
from a request's due time to its last byte, so that a service that falls behind is not spared. The same requests go to
the upstream alone; **added** is the difference of the two medians, and of the two 99th percentiles.

**Bare**: personal data is looked for on both sides, no classifier. **Full path**: a trained n-gram tier on both sides,
personal data masked and opened, the hold-back, every trace on disk.

`python -m bench.gateway SECONDS` is the soak alone, for so long.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench import side
from bench.environments import HOME
from bench.serving import Service, free_port
from bench.side import Part, Settings

RATE = 200.0
STREAMS = 1000
PIECES = 64
WORDS = ("the ", "mill ", "is ", "open ", "and ", "so ", "it ", "goes ")
ANSWER = "".join(WORDS[at % len(WORDS)] for at in range(PIECES))
QUESTION = "Where can I find the parcel near the mill, and when does the bridge open on Monday? " * 2
SETTLED = 0.3
"""The share of a soak after which memory is to be flat."""


def measure(settings: Settings) -> list[Part]:
    seconds, soak_s = (8.0, 40.0) if settings.quick else (40.0, 180.0)
    with ExitStack() as stack:
        port = free_port()
        stack.enter_context(upstream(port))
        alone = asyncio.run(load("127.0.0.1", port, "/v1/chat/completions", "", RATE, seconds))
        side.tell(f"upstream alone: {_told(alone)}")
        parts = []
        for name, full, median, worst in (("bare", False, 1.0, 5.0), ("full path", True, 2.0, 10.0)):
            with served(settings.work / name.replace(" ", "-"), port, full) as service:
                asyncio.run(load(*_where(service), 50.0, 2.0))  # a first request opens what is opened late
                before = busy(service.pid)
                found = asyncio.run(load(*_where(service), RATE, seconds))
                spent = 1000 * (busy(service.pid) - before) / len(found)
                side.tell(f"{name}: {_told(found)}")
                told = f"added latency, {name}, 200 requests/s"
                added = [_at(found, q) - _at(alone, q) for q in (50, 99)]
                parts += [
                    Part(f"{told}: p50", "ms", "lower", added[0], None, median, "ours"),
                    Part(f"{told}: p99", "ms", "lower", added[1], None, worst, "ours"),
                    Part(f"{told}: errors", "", "lower", float(found.count(None)), None, 0.0, "ours"),
                    Part(f"the service's processor time for a request, {name}", "ms", "lower", spent),
                ]
                if full:
                    parts += streams(service)
                    parts += soak(service, soak_s)
    return parts


def _at(found: Sequence[float | None], percentile: float) -> float:
    return float(np.percentile([each for each in found if each is not None], percentile))


def _told(found: Sequence[float | None]) -> str:
    figures = ", ".join(f"p{q:g} {_at(found, q):.2f} ms" for q in (50, 90, 99))
    return f"{len(found)} requests, {figures}, {found.count(None)} errors"


# the two other processes


@contextmanager
def upstream(port: int) -> Iterator[None]:
    """An upstream in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "bench.gateway", "upstream", str(port)], cwd=HOME)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise SystemExit("the upstream did not start") from None
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def served(root: Path, port: int, full: bool) -> Service:
    """A service before the upstream; `full`: with a trained guard."""
    root.mkdir(parents=True)
    told: dict[str, Any] = {
        "upstream": {"url": f"http://127.0.0.1:{port}/v1", "model": "m"},
        "tenants": {"default": {"limits": {"requests_per_minute": 0, "concurrent": 0}}},
    }
    if full:
        from tests.guard import guard_house

        told["serve"] = guard_house.make_bundle(guard_house.make_root(root), root / "policy").ref
    (root / "service.yaml").write_text(json.dumps(told), encoding="utf-8")
    return Service(root)


def _where(service: Service) -> tuple[str, int, str, str]:
    key = (service.root / "api.key").read_text("utf-8").strip()
    return "127.0.0.1", service.port, "/v1/chat/completions", key


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The upstream's side of a connection."""
    events = [_event({"content": WORDS[at % len(WORDS)]}, None) for at in range(PIECES)]
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 64}}\n\n'
    end = _event({}, "stop") + _chunk(usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    whole = head + b"".join(events) + end
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            asked = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(asked.partition(b"content-length:")[2].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            if b"drip" not in body:
                writer.write(whole)
                continue
            writer.write(head)
            for at in range(0, PIECES, 4):
                writer.write(b"".join(events[at : at + 4]))
                await asyncio.sleep(0.3)
            writer.write(end)
    writer.close()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _chunk(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())


# requests


class Line:
    """A connection that asks one thing after the other."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> str:
        """The answer's text, "" where it is not whole."""
        try:
            if self._reader is None or self._writer is None:
                self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
            self._writer.write(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head[:32]:
                await self.close()
                return ""
            body = await self._reader.readuntil(b"\r\n0\r\n\r\n")
            return _text(body)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await self.close()
            return ""

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def _text(body: bytes) -> str:
    """What the events of an answer say, all of it; nothing where it did not come to its end."""
    said = []
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            said += [choice["delta"].get("content") or "" for choice in event.get("choices", ())]
    return "".join(said) if b"data: [DONE]" in body else ""


def _request(path: str, key: str, question: str) -> bytes:
    asked = {"model": "tutelage", "messages": [{"role": "user", "content": question}], "stream": True}
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def load(host: str, port: int, path: str, key: str, rate: float, seconds: float) -> list[float | None]:
    """Milliseconds of each request from its due time on; None where the answer was not whole."""
    dice, due = random.Random(7), 0.0
    free: list[Line] = []
    found: list[float | None] = []
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()

    async def one(at: float, number: int) -> None:
        line = free.pop() if free else Line(host, port)
        text = await line.ask(_request(path, key, f"{QUESTION} {number}"))
        found.append(1000 * (time.perf_counter() - began - at) if text == ANSWER else None)
        free.append(line)

    number = 0
    while (due := due + dice.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
        task = asyncio.create_task(one(due, number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    await asyncio.gather(*tasks)
    for line in free:
        await line.close()
    return found


def streams(service: Service) -> list[Part]:
    """A thousand answers at once, each written over five seconds: none is lost, none is cut."""
    host, port, path, key = _where(service)

    async def all_at_once() -> list[str]:
        async with AsyncExitStack() as stack:
            lines = [Line(host, port) for _ in range(STREAMS)]
            for line in lines:
                stack.push_async_callback(line.close)
            asked = (line.ask(_request(path, key, f"drip {QUESTION} {at}")) for at, line in enumerate(lines))
            return list(await asyncio.gather(*asked))

    began = time.perf_counter()
    said = asyncio.run(all_at_once())
    side.tell(f"{STREAMS} streams in {time.perf_counter() - began:.1f} s, {said.count(ANSWER)} whole")
    lost = float(sum(text != ANSWER for text in said))
    return [Part(f"{STREAMS} streams at once: lost or cut", "", "lower", lost, None, 0.0, "ours")]


def soak(service: Service, seconds: float) -> list[Part]:
    """Memory under load: how much it grows once it has settled, per 10,000 requests."""
    pid = service.pid
    sizes: list[tuple[int, float]] = []

    async def run() -> list[float | None]:
        found: list[float | None] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found += await load(*_where(service), RATE / 2, min(5.0, max(0.5, until - time.monotonic())))
            sizes.append((len(found), resident(pid)))
        return found

    found = asyncio.run(run())
    kept = sizes[int(len(sizes) * SETTLED) :]
    slope = float(np.polyfit([at for at, _ in kept], [size for _, size in kept], 1)[0]) * 10_000
    side.tell(f"soak of {seconds:.0f} s: {_told(found)}; {kept[0][1]:.1f} MiB, then {kept[-1][1]:.1f} MiB")
    told = f"soak, {len(found)} requests"
    return [
        Part(f"{told}: memory per 10,000 requests once settled", "MiB", "lower", slope, None, 5.0, "ours"),
        Part(f"{told}: memory at the end", "MiB", "lower", kept[-1][1]),
        Part(f"{told}: errors", "", "lower", float(found.count(None)), None, 0.0, "ours"),
    ]


def resident(pid: int) -> float:
    """MiB of a process that are in memory."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def busy(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _answering(port: int) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


def _alone(seconds: float) -> None:
    """The soak by itself."""
    import tempfile

    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        port = free_port()
        stack.enter_context(upstream(port))
        service = stack.enter_context(served(Path(work) / "soak", port, True))
        for part in soak(service, seconds):
            print(f"{part.name}: {part.ours:.3g} {part.unit}")


if __name__ == "__main__":
    if sys.argv[1] == "upstream":
        with suppress(KeyboardInterrupt):
            asyncio.run(_answering(int(sys.argv[2])))
    else:
        _alone(float(sys.argv[1]))
