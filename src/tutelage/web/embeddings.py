"""Embeddings by the encoder that service.yaml names; the guards read what is to be embedded first.

Personal data that the policy masks is masked; what it withholds is refused: there is no other way to answer.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from tutelage.core.records import Message
from tutelage.guard.barrier import stops
from tutelage.guard.remote import RemoteUpstream
from tutelage.text.pii import redact
from tutelage.web import auth, wire
from tutelage.web.admission import admitted
from tutelage.web.state import State
from tutelage.web.wire import Fault

MOST_TEXTS = 256


async def embed(state: State, request: Request) -> Response:
    """Embeddings in OpenAI's form; 501 where no encoder is configured."""
    who = auth.asker(request, "embeddings")
    limits = state.tenant(who.tenant).limits
    body = await wire.read_json(request, limits.body_bytes)
    wire.only(body, frozenset(("model", "input", "encoding_format", "dimensions", "user")))
    wire.text(body, "model", 256)
    wire.text(body, "user", 120)
    form = wire.text(body, "encoding_format", 16, "float")
    if form not in ("float", "base64"):
        wire.refuse("'encoding_format' must be 'float' or 'base64'", "encoding_format")
    if body.get("dimensions") is not None:
        wire.refuse("'dimensions' is not supported by this service", "dimensions", "unsupported_parameter")
    texts = _texts(body.get("input"), limits.characters)
    encoder = state.encoder
    if encoder is None:
        raise Fault("no encoder is configured", status=501, code="not_implemented", kind="not_implemented_error")
    total = sum(map(len, texts))
    with state.lease() as pipeline, admitted(state, who.tenant, wire.tokens(total)):
        seen = []
        for index, text in enumerate(texts):
            asked = (Message(role="user", content=text),)
            found = await pipeline.examine(asked, surface="embeddings", tenant=who.tenant)
            if stops(found.input.decision):
                message = f"input[{index}] is not embedded: {pipeline.policy.message(found.input.decision)}"
                raise Fault(message, param="input", code="content_filter")
            seen.append(redact(text, found.input.redactions.get((0, "content"), ())))
        if isinstance(encoder, RemoteUpstream):
            vectors, read = await encoder.embed(seen)
        else:
            local: Any = encoder
            vectors, read = await run_in_threadpool(local.embed, seen), 0
    rows = np.asarray(vectors, dtype=np.float32)
    data = [{"object": "embedding", "index": place, "embedding": _written(row, form)} for place, row in enumerate(rows)]
    usage = {"prompt_tokens": read or wire.tokens(total), "total_tokens": read or wire.tokens(total)}
    return JSONResponse({"object": "list", "data": data, "model": "tutelage", "usage": usage})


def _texts(given: Any, most: int) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 0 < len(texts) <= MOST_TEXTS:
        wire.refuse(f"'input' must be a text or a list of 1 to {MOST_TEXTS} texts", "input")
    if not all(isinstance(each, str) and each for each in texts):
        wire.refuse("'input' must hold texts: token ids can not be guarded", "input")
    total = sum(map(len, texts))
    if total > most:
        wire.refuse(f"'input' has {total} characters, {most} are allowed", "input")
    return texts


def _written(row: np.ndarray[Any, Any], form: str) -> Any:
    return row.tolist() if form == "float" else base64.b64encode(row.astype("<f4").tobytes()).decode()
