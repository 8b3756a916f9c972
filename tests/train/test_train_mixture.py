"""Tasks mixed by weight: shares as asked, everything once before anything twice, and no state but the place."""

from itertools import islice

import numpy as np
import pytest

from tutelage.core.errors import ConfigError
from tutelage.train.batch import Source, TokenSteps
from tutelage.train.mixture import Mixture, weights_of

GROUPS = (np.arange(30), np.arange(30, 40), np.arange(40, 60))


def test_shares_are_weight_times_size():
    mixture = Mixture(GROUPS, (1.0, 3.0, 0.0))
    assert mixture.shares() == [0.5, 0.5, 0.0]
    for first in (0, 64, 6400):
        taken = mixture.take(first, first + 64)
        assert (len(taken), (taken < 30).sum(), (taken >= 40).sum()) == (64, 32, 0)


def test_everything_is_met_once_before_anything_is_met_again():
    mixture = Mixture(GROUPS, (1.0, 2.5, 0.3), seed=3)
    met = np.concatenate([mixture.take(place, place + 17) for place in range(0, 17 * 200, 17)])
    for group in GROUPS:
        mine = met[np.isin(met, group)]
        turns = [mine[start : start + len(group)] for start in range(0, len(mine) - len(group) + 1, len(group))]
        assert len(turns) > 2 and all(sorted(turn) == sorted(group) for turn in turns)
        assert any(list(turn) != list(turns[0]) for turn in turns), "each turn has an order of its own"


def test_places_are_addressed_in_any_cut():
    whole = [np.sort(Mixture(GROUPS, (1, 2, 1)).take(0, 500))]
    cut = np.concatenate([Mixture(GROUPS, (1, 2, 1)).take(*each) for each in ((0, 7), (7, 123), (123, 500))])
    assert np.array_equal(np.sort(cut), whole[0])


def steps(weights):
    """Documents of ten equal tokens, whose id is their task plus 1; forty of task 0, ten of task 1."""
    tasks = np.repeat([0, 1], [40, 10])
    source = Source(np.repeat(tasks + 1, 10), np.arange(0, 501, 10), None, tasks)
    return TokenSteps(source, 16, 40, 2, shuffle=True, pool=16, weights=weights)


def test_a_pool_of_steps_has_the_mixture_and_goes_on_anywhere():
    ids = np.concatenate([b.ids[0].numpy() for step in islice(steps((1.0, 4.0)), 60) for b in step])
    assert (ids == 2).mean() == pytest.approx(0.5, abs=0.02)
    assert all((b.ids == 1).all() for step in islice(steps((1.0, 0.0)), 30) for b in step)
    whole = [[b.ids.tolist() for b in step] for step in islice(steps((1.0, 4.0)), 40)]
    for cut in (1, 4, 13, 29):
        first, second = steps((1.0, 4.0)), steps((1.0, 4.0))
        for _ in islice(first, cut):
            pass
        second.load(first.state())
        assert [[b.ids.tolist() for b in step] for step in islice(second, 40 - cut)] == whole[cut:]


def test_a_weight_without_a_task_is_named():
    assert weights_of({"b": 2}, ["a", "b"], "finetune.mix") == [1.0, 2.0]
    with pytest.raises(ConfigError, match=r"finetune\.mix\.c.*'c'.*The dialogues have: a, b"):
        weights_of({"c": 2}, ["a", "b"], "finetune.mix")
    with pytest.raises(ConfigError, match="not negative"):
        weights_of({"a": -1}, ["a", "b"], "finetune.mix")
