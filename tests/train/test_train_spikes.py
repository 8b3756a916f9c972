"""Steps out of the ordinary: passed over, gone back from, given up; ordinary noise is none; kills change nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tiny import Tiny, text

from tutelage.core.errors import Diverged, Stopped
from tutelage.train.batch import TokenSteps
from tutelage.train.loop import Run, fit
from tutelage.train.objectives import NextToken, Sums
from tutelage.train.optim import Optimizer, Rates, Schedule, weights
from tutelage.train.spikes import ENOUGH, Spikes

TOTAL = 110


class Planted(TokenSteps):
    """Text with planted steps: `bad` ones hold but token 31, which is not a number to the objective below; `garbage`
    ones repeat one pair of tokens that the text does not know. Both are a function of the position alone."""

    bad: frozenset[int] = frozenset()
    garbage: frozenset[int] = frozenset()
    _given = 0

    def state(self):
        return {**super().state(), "given": self._given}

    def load(self, state):
        super().load(state)
        self._given = state["given"]

    def __iter__(self):
        for step in super().__iter__():
            self._given += 1
            ids = step[0].ids
            if self._given in self.bad:
                step = [replace(step[0], ids=torch.full_like(ids, 31))]
            if self._given in self.garbage:
                backwards = (torch.arange(ids.shape[1])[None] * 17) % 31
                step = [replace(step[0], ids=backwards, targets=backwards[0, step[0].at + 1])]
            yield step


class Careful(NextToken):
    """Next-token loss; not a number where all tokens are 31."""

    def __call__(self, model, batch):
        found = super().__call__(model, batch)
        return Sums({"tokens": found.terms["tokens"] * float("nan")}, {}) if (batch.ids == 31).all() else found


@dataclass(frozen=True)
class Jumping(Schedule):
    """A learning rate that is a thousand times too large at some steps."""

    jumps: frozenset[int] = frozenset()

    def at(self, step, total):
        return super().at(step, total) * (1e3 if step in self.jumps else 1)


def attempt(work, *, bad=(), garbage=(), jumps=(), total=TOTAL, **options):
    torch.set_num_threads(1)
    model, steps = Tiny(), Planted(text(), 16, 64, accumulate=2, pool=16)
    steps.bad, steps.garbage = frozenset(bad), frozenset(garbage)
    optim = Optimizer(model, Rates(), Jumping(jumps=frozenset(jumps)), total)
    run = Run(total, work, checkpoint_every=5, good_every=5, **options)
    return model, fit(model, steps, Careful(), optim, run=run)


def read(work):
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "note" not in row], [row for row in rows if "note" in row]


def test_a_batch_that_is_not_finite_is_passed_over_and_nothing_changes(tmp_path):
    model, fitted = attempt(tmp_path, bad={13, 29})
    steps, notes = read(tmp_path)
    assert [row["step"] for row in steps if "skipped" in row] == [13, 29] and fitted.skipped == 2 and not notes
    assert steps[12]["loss"] is None and "rate" not in steps[12]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_batch_of_garbage_is_passed_over(tmp_path):
    _, fitted = attempt(tmp_path, garbage={95})
    steps, notes = read(tmp_path)
    assert fitted.skipped == 1 and not notes
    assert steps[94]["skipped"] == "the loss exploded" and steps[94]["loss"] > 2 * steps[93]["loss"]
    assert attempt(tmp_path / "blind", garbage={95}, spike=0)[1].skipped == 0


def test_poisoned_weights_go_back_and_learn_on(tmp_path):
    _, fitted = attempt(tmp_path, jumps={36})
    steps, notes = read(tmp_path)
    assert [row["step"] for row in steps] == list(range(1, TOTAL + 1)), "steps and data go on"
    assert [row["step"] for row in steps if "skipped" in row] == [38, 39] and fitted.skipped == 2
    assert len(notes) == 1 and "back to the weights after step 35" in notes[0]["note"] and notes[0]["step"] == 39
    assert steps[37]["loss"] > 2 * steps[35]["loss"] > 1.5 * steps[39]["loss"]
    assert steps[-1]["loss"] < steps[35]["loss"]


def test_weights_that_were_poisoned_just_before_a_snapshot_is_due(tmp_path):
    _, fitted = attempt(tmp_path, jumps={39})  # the 40th step: what it left behind is never taken for good
    assert fitted.skipped == 2 and "after step 35" in read(tmp_path)[1][0]["note"]


@pytest.mark.parametrize(
    ("planted", "total", "stops"),
    [({"jumps": {36}, "bad": {44, 45}}, 50, (38, 39, 45)), ({"jumps": {39}, "garbage": {95}}, TOTAL, (41, 95))],
)
def test_a_stop_before_at_and_after_a_rewind_changes_nothing(tmp_path, planted, total, stops):
    planted = {**planted, "total": total}
    whole, fitted = attempt(tmp_path / "whole", **planted)
    assert fitted.skipped > 2
    for after in stops:
        work, calls = tmp_path / f"cut{after}", iter(range(1000))
        with pytest.raises(Stopped):
            attempt(work, stop=lambda calls=calls, after=after: next(calls) >= after, **planted)
        again, other = attempt(work, **planted)
        assert (work / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
        assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), weights(whole).values(), strict=True))
        assert other == fitted


@pytest.mark.parametrize("rewinds", [0, 1, 3])
def test_what_does_not_get_better_is_given_up(tmp_path, rewinds):
    with pytest.raises(Diverged, match=f"not finite, again after the weights went back {rewinds} times") as told:
        attempt(tmp_path, bad=range(20, 99), rewinds=rewinds)
    assert "learning rates" in str(told.value)
    assert len(read(tmp_path)[0]) == 19 + 2 * (rewinds + 1)
    with pytest.raises(Diverged):
        attempt(tmp_path, bad=range(20, 99), rewinds=rewinds)  # from the checkpoint, to the same end


def test_weights_poisoned_again_and_again_are_given_up(tmp_path):
    with pytest.raises(Diverged, match="exploded, again after the weights went back 2 times"):
        attempt(tmp_path, jumps=range(30, 99, 2), rewinds=2)


def test_nothing_but_bad_steps_from_the_start(tmp_path):
    with pytest.raises(Diverged, match="went back 3 times"):
        attempt(tmp_path, bad=range(99))
    assert len(read(tmp_path)[0]) == 8


def test_too_many_single_ones_are_given_up(tmp_path):
    with pytest.raises(Diverged, match="21 of 41 steps had to be passed over"):
        attempt(tmp_path, bad=range(1, 99, 2))


def test_data_that_become_other_data_are_learned_from(tmp_path):
    """High losses that stay as high on good weights are the data's: no endless rewinding, no giving up."""
    _, fitted = attempt(tmp_path, garbage=range(90, 199), total=150)
    steps, notes = read(tmp_path)
    assert fitted.skipped == 2 and len(notes) == 2 and "the data have changed" in notes[1]["note"]
    assert steps[-1]["loss"] < 0.5 * steps[92]["loss"]


# the rule


def ordinary(kind, random):
    n = 400
    noise = random.standard_normal(n)
    if kind == "pre-training":
        return 2 + 6 * np.exp(-np.arange(n) / 40) + 0.1 * noise
    if kind == "policy":
        return 0.02 * noise
    if kind == "policy and critic":
        return 0.05 * noise + 0.2 * random.gamma(2, 1, n)
    if kind == "tuning":
        return np.exp(-np.arange(n) / 60) * random.gamma(2, 0.5, n)
    if kind == "waves":
        return 0.7 + 0.3 * np.sin(np.arange(n) / 30) + 0.1 * noise
    return 300 + 40 * noise  # returns of hundreds


@pytest.mark.parametrize("kind", ["pre-training", "policy", "policy and critic", "tuning", "waves", "returns"])
def test_ordinary_noise_is_no_spike_and_a_spike_is_one(kind):
    for seed in range(20):
        spikes = Spikes(10)
        losses = ordinary(kind, np.random.default_rng(seed))
        for loss in losses:
            assert spikes.fault(loss, 1.0) == "", (kind, loss, spikes.limit())
            spikes.accept(float(loss))
        assert spikes.fault(10 * (1 + abs(losses).max()), 1.0) == "the loss exploded"
        assert spikes.fault(-1e6, 1.0) == "", "a loss that falls is no spike"


def test_it_is_silent_until_enough_was_seen():
    spikes = Spikes(10)
    for _ in range(ENOUGH):
        assert spikes.fault(1e9, 1.0) == "" and spikes.limit() == float("inf")
        assert spikes.fault(float("nan"), 1.0) and spikes.fault(1.0, float("inf")) == "the gradient was not finite"
        spikes.accept(1.0)
    assert spikes.limit() == pytest.approx(2.0) and spikes.fault(1e9, 1.0)


class Refusing(Planted):
    """Steps whose 21st batch cannot be made from the weights as they are, once."""

    refused = False

    def __iter__(self):
        steps = super().__iter__()
        while True:
            if self._given == 20 and not self.refused:
                self.refused = True
                raise Diverged("nothing could be sampled")
            yield next(steps)


def test_a_stop_after_a_batch_that_could_not_be_made_resumes_to_the_same_bytes(tmp_path):
    def run(folder, refused=False, stop=1000):
        torch.set_num_threads(1)
        steps, asked = Refusing(text(), 16, 64, pool=16), iter(range(1000))
        steps.refused = refused
        options = Run(40, folder, good_every=10, stop=lambda: next(asked) == stop)
        model = Tiny()
        fit(model, steps, NextToken(), Optimizer(model, Rates(), Schedule(), 40), run=options)

    run(tmp_path / "straight")
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stop=23)
    run(tmp_path / "stopped", refused=True)
    one, other = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("straight", "stopped"))
    assert one == other and b"nothing could be sampled" in one
