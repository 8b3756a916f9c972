"""The embedded model behind the service: log-probabilities, schemas, calls it must make, and a queue with an end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tutelage.core.errors import Busy, UsageError
from tutelage.core.records import Message
from tutelage.generate.engine import Engine
from tutelage.generate.generator import Sampling
from tutelage.guard.tools import PLAIN, Calls, Shape, Tool, Wants
from tutelage.guard.upstream import Delta, EngineUpstream
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import learn

ASKED = [Message(role="user", content="where is the parcel")]
PLACE = {"type": "object", "properties": {"place": {"enum": ["mill", "tower"]}}, "required": ["place"]}
TOOLS = (Tool("look_up", "Finds.", {**PLACE, "additionalProperties": False}), Tool("wait", "Waits."))


@pytest.fixture
def upstream() -> Iterator[EngineUpstream]:
    torch.set_num_threads(1)
    tokenizer = learn(['hello town, where is the parcel 0123456789 {"a": "b"} zürich ✓' * 9], 330)
    config = DecoderConfig(tokenizer.size, 32, 64, 1, 2, 1, max_position_embeddings=900)
    engine = Engine(Decoder(config, seed=1), eos=tokenizer.stops, max_batch=2, tokenizer=tokenizer)
    found = EngineUpstream(engine, tokenizer, "tiny", queue=1)
    yield found
    found._thread.close()


def made(upstream: EngineUpstream, wants: Wants, **sampling: Any) -> list[Delta]:
    async def run() -> list[Delta]:
        return [each async for each in upstream.stream(ASKED, Sampling(**{"max_tokens": 40, **sampling}), 0, wants)]

    return asyncio.run(run())


def test_tokens_are_told_with_their_text(upstream: EngineUpstream) -> None:
    plain = made(upstream, PLAIN, seed=3)
    told = made(upstream, replace(PLAIN, logprobs=2), seed=3)
    assert [each.text for each in plain] == [each.text for each in told] and not any(each.logprobs for each in plain)
    text, raw = "", b""
    for each in told:
        text += each.text
        raw += b"".join(one.bytes for one in each.logprobs)
        assert len(raw.decode("utf-8", "replace")) <= len(text) + 1
        assert all(len(one.top) == 2 and one.logprob <= 0 for one in each.logprobs)
    assert raw.decode("utf-8", "replace") == text


def test_what_a_stop_cut_off_is_not_told(upstream: EngineUpstream) -> None:
    whole = "".join(each.text for each in made(upstream, PLAIN, seed=3))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    told = made(upstream, replace(PLAIN, logprobs=0), seed=3, stop=(stop,))
    text = "".join(each.text for each in told)
    raw = b"".join(one.bytes for each in told for one in each.logprobs)
    assert text == whole[: whole.index(stop)] and told[-1].finish == "stop"
    assert raw and text.startswith(raw.decode("utf-8", "replace")[:-1])


def test_an_answer_under_a_schema(upstream: EngineUpstream) -> None:
    for seed in range(5):
        found = made(upstream, replace(PLAIN, shape=Shape(TOOLS[0].parameters)), seed=seed)
        assert json.loads("".join(each.text for each in found))["place"] in ("mill", "tower")
    with pytest.raises(UsageError, match="schema"):
        made(upstream, replace(PLAIN, shape=Shape({"type": "nonsense"})))


@pytest.mark.parametrize("choice", ["required", ":look_up"])
def test_a_call_that_must_be_made_is_made(upstream: EngineUpstream, choice: str) -> None:
    names = set()
    for seed in range(8):
        calls = Calls()
        found = made(upstream, replace(PLAIN, tools=TOOLS, choice=choice), seed=seed, max_tokens=200)
        for each in found:
            assert not each.text
            if each.call is not None:
                calls.take(each.call)
        if found[-1].finish == "stop":
            ((name, arguments),) = calls.read(TOOLS)
            names.add(name)
            assert name != "look_up" or arguments["place"] in ("mill", "tower")
    assert "look_up" in names and (choice == "required" or names == {"look_up"})


def test_what_the_model_would_have_to_choose_is_refused_by_name(upstream: EngineUpstream) -> None:
    with pytest.raises(UsageError) as caught:
        made(upstream, replace(PLAIN, tools=TOOLS))
    assert caught.value.key == "tool_choice"
    assert made(upstream, replace(PLAIN, tools=TOOLS, choice="none"))[-1].finish


def test_the_queue_has_an_end(upstream: EngineUpstream) -> None:
    async def run() -> None:
        streams = [upstream.stream(ASKED, Sampling(max_tokens=800, seed=at)) for at in range(3)]
        for each in streams[:2]:
            await anext(each)
        third = asyncio.ensure_future(anext(streams[2]))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="too many answers"):
            await anext(upstream.stream(ASKED, Sampling(max_tokens=4)))
        for each in streams[:2]:
            await each.aclose()
        assert await third
        await streams[2].aclose()
        assert (await anext(upstream.stream(ASKED, Sampling(max_tokens=4)))).completion == 1

    asyncio.run(run())
