"""One gradient however a step is cut, packed, padded or spread over two processes, which see the same data in order."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Tiny, text, train

from tutelage.core.errors import Stopped
from tutelage.model.logprob import logprobs
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.train.batch import TokenSteps, token_batch
from tutelage.train.gradient import backward, counted
from tutelage.train.loop import Run, fit
from tutelage.train.objectives import NextToken, Sums
from tutelage.train.optim import Optimizer, Rates, Schedule, weights

SOURCE = text(8)
SEGMENTS = [SOURCE.tokens[a:b] for a, b in zip(SOURCE.offsets[:-1], SOURCE.offsets[1:], strict=True)]
CUTS = {
    "8x1": [[index] for index in range(8)],
    "1x8": [list(range(8))],
    "packed": [[0, 1, 2], [3], [4, 5, 6, 7]],
    "three": [[0, 1], [2, 3, 4], [5, 6, 7]],
}


def decoder() -> Decoder:
    return Decoder(DecoderConfig(32, 16, 32, 2, 2, 1, max_position_embeddings=32), seed=0).double()


def gradient(cut: str) -> dict[str, torch.Tensor]:
    model = decoder()
    batches = [token_batch([SEGMENTS[index] for index in group]) for group in CUTS[cut]]
    backward(model, NextToken(), batches, counted(batches), list(model.parameters()))
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def padded() -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over a rectangle of rows with padding behind them."""
    model, longest = decoder(), max(map(len, SEGMENTS))
    ids = torch.zeros(8, longest, dtype=torch.int64)
    marked = torch.zeros(8, longest - 1, dtype=torch.bool)
    for row, segment in enumerate(SEGMENTS):
        ids[row, : len(segment)] = torch.from_numpy(segment.astype("int64"))
        marked[row, : len(segment) - 1] = True
    found, _ = logprobs(model, model(ids)[:, :-1][marked], ids[:, 1:][marked])
    (-found.mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cut", ["8x1", "packed", "three"])
def test_gradients_do_not_depend_on_how_a_step_is_cut(cut):
    same(gradient("1x8"), gradient(cut))


def test_gradients_do_not_depend_on_padding():
    same(padded(), gradient("packed"))


# two processes


class Recorded(NextToken):
    """Writes down which micro-batches this process learns from; not a number at those whose place is `bad`."""

    def __init__(self, bad=()):
        super().__init__()
        object.__setattr__(self, "seen", [])
        object.__setattr__(self, "bad", bad)

    def __call__(self, model, batch):
        self.seen.append(batch.ids[0, :8].tolist())
        found = super().__call__(model, batch)
        return Sums({"tokens": found.terms["tokens"] * float("nan")}, {}) if len(self.seen) in self.bad else found


def recorded(work: Path, objective: Recorded, stop=lambda: False) -> Tiny:
    """`tiny.train` with an objective of one's own."""
    torch.set_num_threads(1)
    model, steps = Tiny(), TokenSteps(text(), 16, 64, accumulate=2, pool=16)
    run = Run(30, work, checkpoint_every=4, good_every=4, stop=stop)
    fit(model, steps, objective, Optimizer(model, Rates(), Schedule(), 30), run=run)
    return model


def process(job: str, rank: int, work: Path) -> None:
    """One of two: does a job and leaves what it found in a file of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{work}/meet", rank=rank, world_size=2)
    if job == "gradients":
        save_file({f"{cut} {n}": g for cut in CUTS for n, g in gradient(cut).items()}, work / f"{rank}.safetensors")
    else:
        objective = Recorded({7} if job == "bad" and rank else ())
        asked = iter(range(99))
        try:
            model = recorded(work, objective, lambda: job == "stop" and rank == 1 and next(asked) == 9)
            save_file({n: w.detach().clone() for n, w in weights(model).items()}, work / f"{rank}.safetensors")
        except Stopped as error:
            (work / f"{rank}.stopped").write_text(str(error))
        (work / f"{rank}.json").write_text(json.dumps(objective.seen))
    torch.distributed.destroy_process_group()


def two(job: str, work: Path) -> None:
    work.mkdir(exist_ok=True)
    (work / "meet").unlink(missing_ok=True)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tiny"])
    both = [processes.Process(target=process, args=(job, rank, work)) for rank in (0, 1)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
        each.kill()
    assert [each.exitcode for each in both] == [0, 0]


def rows(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_have_the_gradient_of_one(tmp_path):
    two("gradients", tmp_path)
    whole = gradient("1x8")
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for cut in CUTS:  # one micro-batch leaves the second process without any, three leave it with one
            same(whole, {name: found[f"{cut} {name}"] for name in whole})


def test_begun_by_one_and_ended_by_two_it_sees_the_same_data_in_order(tmp_path):
    alone = Recorded()
    recorded(tmp_path / "whole", alone)
    calls = iter(range(99))
    with pytest.raises(Stopped):
        train(tmp_path / "cut", stop=lambda: next(calls) >= 15)
    two("resume", tmp_path / "cut")
    seen = [json.loads((tmp_path / "cut" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [batch for pair in zip(*seen, strict=True) for batch in pair] == alone.seen[2 * 12 :]
    before, after = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    notes = [row["note"] for row in after if "note" in row]
    assert len(notes) == 1 and "not bit-identical: ranks 1 -> 2" in notes[0]
    steps = [row for row in after if "note" not in row]
    assert [row["n_tokens"] for row in steps] == [row["n_tokens"] for row in before]
    assert [row["loss"] for row in steps] == pytest.approx([row["loss"] for row in before], abs=1e-4)
    one, other = (load_file(tmp_path / "cut" / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_one_process_finds_bad_or_is_told_to_stop_holds_for_both(tmp_path):
    two("bad", tmp_path / "bad")
    assert [row["step"] for row in rows(tmp_path / "bad") if "skipped" in row] == [7]
    one, other = (load_file(tmp_path / "bad" / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    two("stop", tmp_path / "stop")
    told = [(tmp_path / "stop" / f"{rank}.stopped").read_text() for rank in (0, 1)]
    assert told[0] == told[1] and "stopped after 9 of 30 steps" in told[0]
    assert len(rows(tmp_path / "stop")) == 9
