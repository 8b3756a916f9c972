"""One gradient however a step is cut, packed, padded or spread over two processes, which see the same data in order."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Tiny, text, train
from torch import nn

from tutelage.core.errors import Stopped
from tutelage.model.checkpoint import load_decoder, save
from tutelage.model.logprob import logprobs
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.train.batch import TokenSteps, token_batch
from tutelage.train.gradient import backward, counted
from tutelage.train.loop import Run, Watches, fit
from tutelage.train.objectives import NextToken, Sums
from tutelage.train.optim import Optimizer, Rates, Schedule, weights
from tutelage.train.parallel import divided, gathered

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


class Tied(nn.Module):
    """A block between an embedding and a head that is the same weight; and a buffer, which nobody divides."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.head.weight = self.embed.weight
        self.register_buffer("angles", torch.arange(4.0), persistent=False)


def jobs(rank: int, work: Path) -> None:
    """One of two processes: does every job in turn and leaves what it found in files of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{work}/meet", rank=rank, world_size=2)
    save_file({f"{cut} {n}": g for cut in CUTS for n, g in gradient(cut).items()}, work / f"{rank}.safetensors")
    for job in ("resume", "bad", "stop"):
        objective, folder = Recorded({7} if job == "bad" and rank else ()), work / job
        folder.mkdir(exist_ok=True)
        asked = iter(range(9 if job == "stop" and rank else 99))
        try:
            model = recorded(folder, objective, lambda asked=asked: next(asked, None) is None)
            save_file({n: w.detach().clone() for n, w in weights(model).items()}, folder / f"{rank}.safetensors")
        except Stopped as error:
            (folder / f"{rank}.stopped").write_text(str(error))
        (folder / f"{rank}.json").write_text(json.dumps(objective.seen))
    torch.manual_seed(3)
    tied = Tied()
    before = {name: tensor.detach().clone() for name, tensor in [*tied.named_parameters(), *tied.named_buffers()]}
    found = gathered(divided(tied))
    if found is not None:
        assert found.head.weight is found.embed.weight
        after = dict([*found.named_parameters(), *found.named_buffers()])
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
        (work / f"{rank}.tied").touch()
    torch.distributed.destroy_process_group()


def together(target: Callable[..., None], *given: object, seconds: float = 60) -> None:
    """Run `target(rank, *given)` in two processes."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tiny"])
    both = [processes.Process(target=target, args=(rank, *given)) for rank in (0, 1)]
    for each in both:
        each.start()
    for each in both:
        each.join(seconds)
        each.kill()
    assert [each.exitcode for each in both] == [0, 0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes did the jobs, one of them begun by one process."""
    work, calls = tmp_path_factory.mktemp("two"), iter(range(99))
    with pytest.raises(Stopped):
        train(work / "resume", stop=lambda: next(calls) >= 15)
    together(jobs, work)
    return work


def rows(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_have_the_gradient_of_one(two):
    whole = gradient("1x8")
    for rank in (0, 1):
        found = load_file(two / f"{rank}.safetensors")
        for cut in CUTS:  # one micro-batch leaves the second process without any, three leave it with one
            same(whole, {name: found[f"{cut} {name}"] for name in whole})


def test_begun_by_one_and_ended_by_two_it_sees_the_same_data_in_order(two, tmp_path):
    alone = Recorded()
    recorded(tmp_path, alone)
    seen = [json.loads((two / "resume" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [batch for pair in zip(*seen, strict=True) for batch in pair] == alone.seen[2 * 12 :]
    before, after = rows(tmp_path), rows(two / "resume")
    notes = [row["note"] for row in after if "note" in row]
    assert len(notes) == 1 and "not bit-identical: ranks 1 -> 2" in notes[0]
    steps = [row for row in after if "note" not in row]
    assert [row["n_tokens"] for row in steps] == [row["n_tokens"] for row in before]
    assert [row["loss"] for row in steps] == pytest.approx([row["loss"] for row in before], abs=1e-4)
    one, other = (load_file(two / "resume" / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_one_process_finds_bad_or_is_told_to_stop_holds_for_both(two):
    assert [row["step"] for row in rows(two / "bad") if "skipped" in row] == [7]
    one, other = (load_file(two / "bad" / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    told = [(two / "stop" / f"{rank}.stopped").read_text() for rank in (0, 1)]
    assert told[0] == told[1] and "stopped after 9 of 30 steps" in told[0]
    assert len(rows(two / "stop")) == 9


def test_what_was_tied_before_it_was_divided_is_tied_when_it_is_whole_again(two):
    assert (two / "0.tied").exists() and not (two / "1.tied").exists()


# other architectures


class Reading:
    """A watch that reads a text with the model it is shown."""

    every = 0

    def __call__(self, model, step):
        return {"largest": float(model.logits(model(torch.arange(20)[None])).max())}


def tuned(path: Path, work: Path) -> Decoder | None:
    """A model of another architecture after a few steps; None where this process only helped."""
    torch.set_num_threads(1)
    model, watch = divided(load_decoder(path)), Reading()
    steps = TokenSteps(text(), 16, 64, accumulate=2, pool=16)
    optim = Optimizer(model, Rates(), Schedule(), 6)
    fit(model, steps, NextToken(), optim, run=Run(6, work, checkpoint_every=2, good_every=2), watch=Watches(6, watch))
    return gathered(model)


def tune(rank: int, path: Path, work: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{work}/meet", rank=rank, world_size=2)
    found = tuned(path, work)
    if found is not None:
        save(found, work / "saved")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "phi3", "gpt_neox"])
def test_another_architecture_on_two_processes_is_tied_whole_and_the_same(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2}
    more = {} if kind == "gpt2" else {"max_position_embeddings": 32, "tie_word_embeddings": kind == "phi3"}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, vocab_size=32, **sizes, **more, **special)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    alone = tuned(tmp_path / "model", tmp_path / "alone")
    (tmp_path / "both").mkdir()
    together(tune, tmp_path / "model", tmp_path / "both", seconds=120)
    found = load_decoder(tmp_path / "both" / "saved")
    assert (found.lm_head is None) == (kind != "gpt_neox")
    assert [row["loss"] for row in rows(tmp_path / "both")] == pytest.approx(
        [row["loss"] for row in rows(tmp_path / "alone")], rel=1e-4
    )
    ids = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(found.logits(found(ids)), alone.logits(alone(ids)), rtol=1e-3, atol=1e-3)
