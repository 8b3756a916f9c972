"""Golden losses: a change that moves them changes what every run computes, and says why in `docs/log.md`."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import text

from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.train.batch import TokenSteps
from tutelage.train.loop import Run, fit
from tutelage.train.objectives import NextToken
from tutelage.train.optim import Optimizer, Rates, Schedule

GOLDEN = {1: 3.48282, 5: 3.23314, 10: 2.8403, 20: 2.02909, 40: 1.19647}


def test_losses_are_where_they_were(tmp_path):
    torch.set_num_threads(1)
    model = Decoder(DecoderConfig(32, 32, 64, 2, 2, 1, max_position_embeddings=16), seed=0)
    steps = TokenSteps(text(200), 16, 128, accumulate=2, seed=0, pool=64)
    fit(model, steps, NextToken(), Optimizer(model, Rates(), Schedule(), 40), run=Run(40, tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["loss"] for row in rows if row["step"] in GOLDEN}
    assert found == pytest.approx(GOLDEN, rel=2e-3)  # other processors round otherwise
