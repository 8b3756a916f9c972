"""Packing loses nothing, order is a function of position, counts are known beforehand."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.errors import DataError, NotFound
from tutelage.train.batch import Source, TokenSteps, best_fit, open_source, spread, token_batch

lengths = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(lengths)
def test_bins_hold_everything_once(items):
    for pack in (best_fit, spread):
        bins = pack(items, 40)
        assert sorted(index for each in bins for index in each) == list(range(len(items)))
        assert all(sum(items[index] for index in each) <= 40 for each in bins)


@given(lengths)
def test_best_fit_is_near_the_bound(items):
    assert len(best_fit(items, 40)) <= 1.7 * -(-sum(items) // 40) + 1  # Johnson's bound for best fit


@given(lengths, st.integers(2, 9))
def test_pieces_make_every_token_a_target_once(items, context):
    offsets = np.concatenate([[0], np.cumsum(items)])
    pieces = Source(np.arange(offsets[-1], dtype=np.uint32), offsets).pieces(context)
    targets = [token for start, length in pieces for token in range(start + 1, start + length)]
    assert sorted(targets) == sorted(set(range(offsets[-1])) - set(offsets[:-1].tolist()))
    assert all(1 < length <= context for _, length in pieces)


def test_a_mask_decides_what_is_a_target():
    batch = token_batch([np.array([5, 6, 7]), np.array([8, 9])], [np.array([1, 0, 1]), np.array([0, 1])])
    assert batch.targets.tolist() == [7, 9]
    assert batch.at.tolist() == [1, 3]
    assert batch.counts == {"tokens": 2.0}
    source = Source(np.arange(6), np.array([0, 3, 6]), np.array([1, 0, 0, 0, 1, 0], bool))
    assert source.pieces(8).tolist() == [[3, 3]]


def steps(**options):
    random = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 20, 50))])
    return TokenSteps(Source(random.integers(0, 99, offsets[-1]), offsets), 16, 48, accumulate=2, pool=8, **options)


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"seed": 3}])
def test_steps_can_be_addressed(options):
    whole = [[batch.ids.tolist() for batch in step] for step in islice(steps(**options), 20)]
    for cut in (1, 7, 13):
        first = steps(**options)
        for _ in islice(first, cut):
            pass
        second = steps(**options)
        second.load(first.state())
        assert [[batch.ids.tolist() for batch in step] for step in islice(second, 20 - cut)] == whole[cut:]


def test_the_given_order_holds_beyond_a_pool():
    seen = [int(batch.ids.min()) for step in islice(steps(), 2) for batch in step]
    assert len(seen) == 4
    ordered = TokenSteps(Source(np.arange(1000), np.arange(0, 1001, 10)), 16, 40, pool=4)
    firsts = [int(step[0].ids.min()) for step in islice(ordered, 20)]
    assert firsts[10] > firsts[0] and max(firsts[:2]) < 80


def test_replay_has_its_share():
    new = Source(np.full(4000, 7), np.arange(0, 4001, 10))
    old = Source(np.full(4000, 3), np.arange(0, 4001, 20))
    mixed = TokenSteps(new, 32, 64, pool=64, replay=[(old, 0.25)])
    ids = np.concatenate([step[0].ids[0].numpy() for step in islice(mixed, 40)])
    assert 0.2 < (ids == 3).mean() < 0.3


def test_bad_input_is_named(tmp_path):
    with pytest.raises(DataError, match="does not fit"):
        best_fit([5], 4)
    with pytest.raises(DataError, match="no text"):
        TokenSteps(Source(np.zeros(0), np.array([0])), 8, 16)
    with pytest.raises(NotFound, match="no such file"):
        open_source(tmp_path, "train")
    np.save(tmp_path / "train.npy", np.arange(5))
    np.save(tmp_path / "train.offsets.npy", np.array([0, 9]))
    with pytest.raises(DataError, match="do not fit"):
        open_source(tmp_path, "train")
