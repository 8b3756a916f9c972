"""Answers under a schema: whatever the model, what it ends is JSON that fulfils it; what can not be is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.core.errors import UsageError
from tutelage.generate.engine import Engine, Request, Token, complete
from tutelage.generate.generator import Sampling
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import Tokenizer, learn

pytest.importorskip("llguidance")
from tutelage.generate.grammar import grammar_for

WORDS = 'hello town, where is the parcel 0123456789 {"name": "mill", "open": [1, 2.5, true, null]} zürich ✓ '


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn([WORDS * 9], 340, 2)


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    torch.set_num_threads(1)
    decoder = Decoder(DecoderConfig(tokenizer.size + 9, 16, 24, 1, 2, 1, max_position_embeddings=400), seed=1)
    return Engine(decoder, eos=tokenizer.stops, max_batch=8, tokenizer=tokenizer)


ODD = st.sampled_from(["é", "a b", '"q"', "\n", 7, True])
TEXTS = st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6))
PLAIN = st.one_of(
    TEXTS,
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 99),
    ),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda values: {"enum": values}, st.lists(ODD, min_size=1, max_size=3, unique_by=repr)),
    st.builds(lambda value: {"const": value}, st.sampled_from(["mill", 4, {"a": [1]}])),
)


def shapes(inner: Any) -> Any:
    objects = st.dictionaries(st.sampled_from(["name", "open", "ü", "a-b"]), inner, min_size=1, max_size=3).map(
        lambda fields: {
            "type": "object", "properties": fields, "required": sorted(fields)[:2], "additionalProperties": False
        }
    )  # fmt: skip
    lists = st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 3))
    return objects | lists | st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner)


SCHEMAS = st.recursive(PLAIN, shapes, max_leaves=5)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 9), st.sampled_from([0.0, 1.0]))
def test_what_ends_fulfils_its_schema(
    engine: Engine, tokenizer: Tokenizer, schema: dict[str, Any], seed: int, cold: float
) -> None:
    def request(grammar: Any, number: int) -> Request:
        sampling = Sampling(max_tokens=380, temperature=cold, seed=number)
        return Request((1, 2, 3), sampling, text=True, grammar=grammar)

    size = engine.decoder.config.vocab_size
    grammars = [grammar_for(tokenizer, tokenizer.stops, schema, size) for _ in range(2)]
    done = complete(engine, [*(request(each, seed + at) for at, each in enumerate(grammars)), request(None, seed)])
    for each in done[:2]:
        assert each.finish in ("stop", "length")
        if each.finish == "stop":
            found = json.loads(each.text)
            assert jsonschema_rs.is_valid(schema, found), (schema, found)
    assert done[0].finish == "stop", "these schemas have no endless answers"


def test_a_neighbour_without_a_schema_is_drawn_as_if_it_were_alone(engine: Engine, tokenizer: Tokenizer) -> None:
    alone = complete(engine, [Request((1, 2, 3), Sampling(max_tokens=20, seed=5, top_k=50), text=True)])[0]
    grammar = grammar_for(tokenizer, tokenizer.stops, {"type": "boolean"}, engine.decoder.config.vocab_size)
    beside = complete(
        engine,
        [
            Request((4, 5), Sampling(max_tokens=20, seed=1), text=True, grammar=grammar),
            Request((1, 2, 3), Sampling(max_tokens=20, seed=5, top_k=50), text=True),
        ],
    )
    assert beside[1].tokens == alone.tokens and beside[0].text in ("true", "false")


def test_no_special_token_may_come_inside(engine: Engine, tokenizer: Tokenizer) -> None:
    grammar = grammar_for(tokenizer, tokenizer.stops, {"type": "string"})
    grammar.take(tokenizer.encode('"')[0])
    allowed = grammar.allowed()
    assert not allowed[sorted(tokenizer.specials)].any() and allowed.sum() > 100


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ({"type": "nonsense"}, "schema"),
        ({"type": "string", "pattern": "("}, "schema"),
        ({"$ref": "https://example.org/else"}, "schema"),
        ({"type": "object", "description": "x" * 70_000}, "at most"),
        ({"not": {"type": "string"}}, "schema"),
    ],
)
def test_what_can_not_be_followed_is_refused_by_name(tokenizer: Tokenizer, schema: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        grammar_for(tokenizer, tokenizer.stops, schema)
    assert caught.value.key == "response_format"


def run(engine: Engine, requests: list[Request]) -> dict[int, list[Token]]:
    numbers = [engine.submit(each) for each in requests]
    found: dict[int, list[Token]] = {number: [] for number in numbers}
    while engine.busy:
        for token in engine.step():
            found[token.request].append(token)
    return found


def test_likeliest_tokens_are_told_beside_the_drawn_one(engine: Engine) -> None:
    greedy = Sampling(max_tokens=6, temperature=0)
    plain, told = run(engine, [Request((1, 2), greedy), Request((1, 2), greedy, top_logprobs=4)]).values()
    assert [each.id for each in plain] == [each.id for each in told]
    for each in told:
        assert len(each.top) == 4 and each.top[0][0] == each.id
        assert each.top[0][1] == pytest.approx(each.logprob, abs=1e-4)
        assert [value for _, value in each.top] == sorted((value for _, value in each.top), reverse=True)
    assert not any(each.top for each in plain)


def test_the_text_of_each_token_is_told_even_while_it_is_held(engine: Engine, tokenizer: Tokenizer) -> None:
    (tokens,) = run(engine, [Request((1, 2), Sampling(max_tokens=30, seed=4, stop=("zzzz",)))]).values()
    assert "".join(each.own for each in tokens) == "".join(each.text for each in tokens)


def test_prompts_of_other_salts_are_not_read_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[set[tuple[int, ...]]] = []
    steps = engine.steps
    plain = steps.read

    def watched(last: Any, lengths: Any, prompts: Any, taps: Any) -> Any:
        read.append(set(prompts))
        return plain(last, lengths, prompts, taps)

    monkeypatch.setattr(steps, "read", watched)
    same, short = tuple(range(1, 30)), Sampling(max_tokens=2, temperature=0)
    found = run(engine, [Request(same, short, salt=salt) for salt in ("a", "b", "a", "c")])
    first = [sorted(prompts) for prompts in read if prompts]
    assert first == [[same], [same], [same]], "each salt by itself, the equal prompts of one salt once"
    assert len({tuple(token.id for token in tokens) for tokens in found.values()}) == 1


def test_who_has_priority_begins_first(engine: Engine) -> None:
    short = Sampling(max_tokens=3, temperature=0)
    for _ in range(engine.max_batch):
        engine.submit(Request((1,), short))
    engine.step()
    late = [engine.submit(Request((2,), short, priority=level)) for level in (0, 0, 5, -1, 5)]
    order: list[int] = []
    while engine.busy:
        order += [token.request for token in engine.step() if token.request in late and token.request not in order]
    assert order == [late[2], late[4], late[0], late[1], late[3]]
