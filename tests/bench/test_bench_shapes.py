"""What the shapes weigh, by their own formula and by the model that is built of them."""

import pytest

from bench import pretrain, shapes
from bench.side import Runs


@pytest.mark.parametrize(("name", "millions"), [("S", 5.6), ("M", 27)])
def test_a_shape_weighs_what_it_is_said_to(name: str, millions: float) -> None:
    shape = shapes.SHAPES[name]
    config = shapes.build(shape).config
    assert shape.parameters == config.parameters == pytest.approx(millions * 1e6, rel=0.03)
    assert shape.inference == config.flops_per_token and shape.training == 3 * config.flops_per_token


def test_token_rows_are_the_same_every_time() -> None:
    rows = shapes.token_rows(shapes.SHAPES["S"], 3, 8)
    assert rows.shape == (3, 8) and rows.min() >= 16 and rows.max() < 4096
    assert (rows == shapes.token_rows(shapes.SHAPES["S"], 3, 8)).all()


def test_the_time_to_a_loss_is_that_of_the_first_look_at_or_below_it() -> None:
    slow = {"curve": [(0.0, 4.0), (10.0, 2.0), (20.0, 1.5), (30.0, 1.6)], "peak": 1.0}
    fast = {"curve": [(0.0, 4.0), (4.0, 1.55), (8.0, 1.45)], "peak": 1.0}
    first, losses, _ = pretrain.compared("text", Runs([fast] * 3, [slow] * 3))
    assert (first.ours, first.peer, first.met) == (8.0, 20.0, True)
    assert (losses.ours, losses.peer) == (1.45, 1.5)
    missed, *_ = pretrain.compared("text", Runs([slow] * 3, [fast] * 3))
    assert missed.ours is None and missed.met is False
