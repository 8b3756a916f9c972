"""A week's requests go through the real gateway with the official client, and are rated as their users would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tutelage.adapt.sources import Asked
from tutelage.core.errors import MissingExtra, UpstreamError
from tutelage.guard.opened import finish

Heard = Callable[[Asked, str, bool], tuple[int | None, str | None]]
"""Request, answer, whether it was withheld -> what the user does: a thumb and an appeal, each perhaps None."""
WITHHELD = "content_filter"
"""The finish reason of an answer that a guard withheld."""


class Sent(NamedTuple):
    """One request and what came back."""

    request: Asked
    text: str
    finish: str
    trace: str
    """The id under which the gateway recorded it."""
    thumb: int | None
    appealed: bool

    @property
    def withheld(self) -> bool:
        return self.finish == WITHHELD


def drive(
    url: str,
    key: str,
    requests: Sequence[Asked],
    *,
    heard: Heard,
    model: str = "tutelage",
    concurrency: int = 16,
    known: Mapping[str, Sent] | None = None,
    done: Callable[[Sent], None] = lambda sent: None,
) -> list[Sent]:
    """Send all requests, every fourth as a stream, and rate the answers. Those `known` by their ids are not sent again.

    Raises UpstreamError when the service fails, MissingExtra without the `openai` client.
    """
    try:
        import openai
    except ModuleNotFoundError:
        raise MissingExtra("openai", "train") from None

    async def all_of_them() -> list[Sent]:
        limit = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=3, timeout=60) as client:

            async def one(number: int, request: Asked) -> Sent:
                if known and request.id in known:
                    return known[request.id]
                async with limit:
                    sent = await _ask(client, model, request, stream=number % 4 == 3, heard=heard)
                done(sent)
                return sent

            return list(await asyncio.gather(*(one(number, each) for number, each in enumerate(requests))))

    try:
        return finish(all_of_them())
    except openai.OpenAIError as error:
        raise UpstreamError(f"the service at {url} failed: {error}") from None


async def _ask(client: Any, model: str, request: Asked, *, stream: bool, heard: Heard) -> Sent:
    arguments: dict[str, Any] = {
        "model": model,
        "messages": [{"role": each.role, "content": each.content} for each in request.conversation],
        "max_tokens": 48,
        "temperature": 0,
        "extra_headers": {"x-conversation-id": request.id},
    }
    if stream:
        async with client.chat.completions.with_streaming_response.create(**arguments, stream=True) as raw:
            trace = raw.headers.get("x-request-id", "")
            text, finish = "", ""
            async for chunk in await raw.parse():
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finish = choice.finish_reason or finish
    else:
        raw = await client.chat.completions.with_raw_response.create(**arguments)
        trace = raw.headers.get("x-request-id", "")
        choice = raw.parse().choices[0]
        text, finish = choice.message.content or "", choice.finish_reason
    withheld = finish == WITHHELD
    rating, complaint = heard(request, text, withheld)
    if rating is not None:
        await _feedback(client, trace, "thumb", rating)
    if complaint is not None:
        await _feedback(client, trace, "appeal", complaint)
    return Sent(request, text, finish, trace, rating, complaint is not None)


async def _feedback(client: Any, trace: str, kind: str, value: int | str) -> None:
    body = {"request": trace, "kind": kind, "value" if kind == "thumb" else "text": value}
    await client.post("/feedback", body=body, cast_to=object)
