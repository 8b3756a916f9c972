"""What begins alike is read once, and nothing changes by it: not by a bit."""

from __future__ import annotations

import random

import pytest
import torch

from tutelage.generate.score import Row, weigh, weigh_in_torch
from tutelage.model import library
from tutelage.model.native import Native
from tutelage.model.prefix import LEAST, parts, shared
from tutelage.model.transformer import Decoder, DecoderConfig

VOCABULARY, CONTEXT = 150, 160
native_only = pytest.mark.skipif(library.load() is None, reason="needs the C library")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    config = DecoderConfig(VOCABULARY, 32, 48, 2, 4, 2, max_position_embeddings=CONTEXT)
    made = Decoder(config, seed=1).requires_grad_(False)
    for parameter in made.parameters():
        parameter *= 1.5
    return made


def some(count: int, source: random.Random) -> tuple[int, ...]:
    return tuple(source.randrange(VOCABULARY) for _ in range(count))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A header that many questions share, their choices, equal rows, rows inside others, and a long text."""
    source = random.Random(0)
    header = some(40, source)
    found = []
    for _ in range(9):
        read = header + some(source.randrange(1, 40), source)
        choices = [some(source.randrange(1, 7), source) for _ in range(4)]
        found += [Row(read, choice) for choice in choices] + [Row(read, (each,)) for each in range(3)]
        found += [Row(read[:30], read[30:]), Row(read, choices[0])]
    found += [Row(some(1, source), some(CONTEXT, source)), Row(header, header[:1]), Row(header[:1], header[1:])]
    source.shuffle(found)
    return found


def plainly(decoder: Decoder, row: Row) -> tuple[float, bool]:
    logs = torch.log_softmax(decoder.logits(decoder(torch.tensor([row.tokens])))[0, len(row.read) - 1 :], -1)
    said = torch.tensor(row.said)
    return float(logs.gather(1, said[:, None]).double().sum()), bool((logs.argmax(-1) == said).all())


@native_only
@pytest.mark.parametrize("slots", [1, 2, 5, 64])
def test_a_row_is_the_same_to_the_bit_in_any_company(decoder: Decoder, rows: list[Row], slots: int) -> None:
    native = Native(decoder, slots, CONTEXT)
    alone = [weigh(Native(decoder, 1, CONTEXT), [row])[0] for row in rows[:25]]
    together = weigh(native, rows)
    assert together[:25] == alone
    order = list(range(len(rows)))
    random.Random(slots).shuffle(order)
    again = weigh(native, [rows[place] for place in order])
    assert [again[order.index(place)] for place in range(len(rows))] == together


@native_only
def test_it_equals_the_plain_forward(decoder: Decoder, rows: list[Row]) -> None:
    for row, found in zip(rows, weigh(Native(decoder, 8, CONTEXT), rows), strict=True):
        logprob, greedy = plainly(decoder, row)
        assert found.logprob == pytest.approx(logprob, abs=1e-5 * len(row.said))
        assert found.greedy == greedy


def test_the_slow_way_says_the_same(decoder: Decoder, rows: list[Row]) -> None:
    for row, found in zip(rows, weigh_in_torch(decoder, rows, 8), strict=True):
        assert found.logprob == pytest.approx(plainly(decoder, row)[0], abs=1e-4)


class Counted(Native):
    read = asked = 0

    def forward(self, ids, slots, positions, rows, taps=()):  # type: ignore[no-untyped-def, override]
        self.read, self.asked = self.read + len(ids), self.asked + len(rows)
        return super().forward(ids, slots, positions, rows, taps)


@native_only
def test_what_is_shared_is_read_once_and_only_what_is_asked_meets_the_head(decoder: Decoder) -> None:
    source = random.Random(1)
    header, questions = some(60, source), [(place, *some(19, source)) for place in range(10)]
    choices = [[(place, *some(2, source)) for place in range(4)] for _ in questions]
    rows = [
        Row(header + question, choice) for question, each in zip(questions, choices, strict=True) for choice in each
    ]
    native = Counted(decoder, 64, CONTEXT)
    together = weigh(native, rows)
    assert native.read == 60 + 10 * 20 + 10 * 4 * 2
    assert native.asked == 10 + 10 * 4 * 2, "the last token of a question is asked once for its four choices"
    few = Counted(decoder, 4, CONTEXT)
    assert weigh(few, rows) == together
    assert few.read < 1.6 * native.read, "the header outlives a batch"


@native_only
def test_weights_that_change_are_noticed_and_broken_ones_are_not_a_number(decoder: Decoder) -> None:
    model = Decoder(decoder.config, seed=2)
    native, row = Native(model, 4, CONTEXT), Row((1, 2), (3,))
    before = weigh(native, [row])[0]
    with torch.no_grad():
        model.embed_tokens.weight.mul_(2)
    after = weigh(native, [row])[0]
    assert before != after
    with torch.no_grad():
        assert after.logprob == pytest.approx(plainly(model, row)[0], abs=1e-5)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    broken = weigh(native, [row])[0]
    assert broken.logprob != broken.logprob and not broken.greedy


def test_the_plan() -> None:
    header = tuple(range(LEAST))
    sequences = [(*header, 50), (*header, 50, 60), (*header, 70), (99,)]
    planned = parts(sequences)
    assert [(part.start, part.source, part.wave) for part in planned] == [
        (0, -1, 0),
        (LEAST + 1, 0, 1),
        (LEAST, 0, 1),
        (0, -1, 0),
    ]
    assert [planned[1].owner(place) for place in (0, LEAST, LEAST + 1)] == [0, 0, 1]
    assert shared((1, 2), (1, 3)) == 1 and shared((), (1,)) == 0
    kept = parts([(*header, 1)], header)
    assert (kept[0].start, kept[0].source, kept[0].wave) == (LEAST, -1, 0)
