"""An OpenAI-compatible upstream that answers by what it is asked, well or badly, and a service in front of it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

HELLO = "the parcel is beside the mill, it opens at nine on Monday and at ten on Sunday"
CODE = "the locker code for the bread is 4471, take it from the tower"


def delta(finish: str | None = None, logprobs: Any = None, **values: Any) -> str:
    """One event of an answer."""
    choice = {"index": 0, "delta": values, "finish_reason": finish, "logprobs": logprobs}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def tokens(text: str, top: int) -> dict[str, Any]:
    """A piece of text as one token."""
    one = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
    return {"content": [{**one, "top_logprobs": [one][:top]}]}


def call(index: int, name: str, arguments: str) -> Iterator[str]:
    """A call of a tool in three pieces, under an id that no guard should have to read."""
    yield delta(tool_calls=[{"index": index, "id": f"evil {CODE}", "type": "function", "function": {"name": name}}])
    half = len(arguments) // 2
    for part in (arguments[:half], arguments[half:]):
        yield delta(tool_calls=[{"index": index, "function": {"arguments": part}}])


def endpoint() -> FastAPI:
    """The upstream. What it was asked last stands in `app.state.asked`."""
    app = FastAPI()
    app.state.asked = []

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        app.state.asked.append(body)
        last = body["messages"][-1]
        return StreamingResponse(_events(body, last["content"] or "", last["role"]), media_type="text/event-stream")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        app.state.asked.append(body)

        async def events() -> AsyncIterator[str]:
            for word in HELLO.split(" "):
                yield f"data: {json.dumps({'choices': [{'index': 0, 'text': word + ' ', 'finish_reason': None}]})}\n\n"
            yield f"data: {json.dumps({'choices': [{'index': 0, 'text': '', 'finish_reason': 'stop'}]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await request.json()
        app.state.asked.append(body)
        data = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(body["input"])]
        return JSONResponse({"data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}})

    return app


async def _events(body: dict[str, Any], asked: str, role: str) -> AsyncIterator[str]:
    names = [tool["function"]["name"] for tool in body.get("tools", ())]
    top = body.get("top_logprobs", 0)
    finish, text = "stop", HELLO
    if "think" in asked:
        for word in ("let me ", "see, ", "it is clear"):
            yield delta(reasoning_content=word)
    if names and role == "user":
        text, finish = "", "tool_calls"
        arguments = {"place": "the mill"}
        if "bread" in asked:
            arguments = {"note": CODE}
        if "[EMAIL" in asked:
            arguments = {"to": "[EMAIL" + asked.partition("[EMAIL")[2].partition("]")[0] + "]"}
        written = json.dumps(arguments)
        if "escaped" in asked:
            written = '{"to": "bo\\u0062.stone\\u0040example.org"}'
        for index in range(2 if "twice" in asked else 1):
            for piece in call(index, "nothing_offered" if "unoffered" in asked else names[0], written):
                yield piece
    elif body.get("response_format", {}).get("type") == "json_schema":
        text = json.dumps({"city": "Velden", "open": 9})
    elif "bread" in asked:
        text = CODE + ", and so on" * 30
    elif "say:" in asked:
        text = asked.partition("say:")[2]
    elif role == "tool":
        text = f"it says {asked}"
    if "stall" in asked:
        await asyncio.sleep(30)
    size = 5
    if "endless" in asked:
        text, size = "all is well here, and so it goes. " * 200_000, 8192
    for at in range(0, len(text), size):
        piece = text[at : at + size]
        if "drip" in asked and at > 300:
            for _ in range(300):
                await asyncio.sleep(0.05)
                yield ": still here\n\n"
        if "slowly" in asked:
            await asyncio.sleep(0.02)
        told = tokens("other" if "forged" in asked else piece, top) if body.get("logprobs") else None
        yield delta(content=piece, logprobs=told)
    yield delta(finish)
    usage = {"prompt_tokens": 11, "completion_tokens": max(1, len(text) // 5)}
    yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


@contextmanager
def running(app: Any, **how: Any) -> Iterator[str]:
    """Its address, while it runs in a thread."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, **how))
    thread = threading.Thread(target=server.run, args=([held],), daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{held.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        held.close()
