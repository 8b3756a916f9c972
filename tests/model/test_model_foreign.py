"""Architectures of transformers behind our interface: packed, cached, trained, saved; refused where they must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError, CorruptArtifact, NotFound, UsageError
from tutelage.generate.engine import Engine, Request, complete
from tutelage.generate.generator import Sampling
from tutelage.model import checkpoint
from tutelage.model.foreign import ForeignDecoder
from tutelage.model.logprob import sequence_logprobs
from tutelage.train.batch import token_batch
from tutelage.train.loop import Run, fit
from tutelage.train.objectives import NextToken
from tutelage.train.optim import Optimizer, Rates, Schedule

transformers = pytest.importorskip("transformers")
VOCABULARY, CONTEXT = 90, 48
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "gpt_neox": {"hidden_dropout": 0.1, "attention_dropout": 0.1},  # LayerNorm, biases, partial rotation, parallel
    "olmo2": {},  # norms behind, and over whole queries and keys
    "phi3": {"tie_word_embeddings": True},  # fused matrices
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT},  # learned positions, tied
}
LENGTHS = [5, 17, 30, 1, 9]


def write(path: Path, kind: str, **changes: Any) -> Any:
    """A small random model of a kind as its files, with opinions; returns transformers' own model."""
    names = SHAPE if kind != "gpt2" else {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**names, **KINDS.get(kind, {}), **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data * (6 if parameter.dim() > 1 else 1) + 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(path)
    return model


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp(request.param)
    return write(path, request.param), path


def packed_ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))


def test_packed_padded_and_tapped_is_alone(pair: tuple[Any, Path]) -> None:
    theirs, path = pair
    ours = checkpoint.load_decoder(path)
    assert isinstance(ours, ForeignDecoder) and ours.config.model_type == theirs.config.model_type
    ids = packed_ids()
    with torch.no_grad():
        alone = [theirs(each[None], output_hidden_states=True) for each in ids[0].split(LENGTHS)]
        hidden, taps = ours(ids, lengths=LENGTHS, taps=(0, 2, 3))
        torch.testing.assert_close(
            ours.logits(hidden)[0], torch.cat([each.logits[0] for each in alone]), atol=1e-4, rtol=0
        )
        for layer in (0, 2):
            states = torch.cat([each.hidden_states[layer][0] for each in alone])
            torch.testing.assert_close(taps[layer][0], states, atol=1e-5, rtol=0)
        assert taps[3].shape == hidden.shape and not torch.allclose(taps[3], hidden)
        batch = ids[:, :40].view(4, 10)
        torch.testing.assert_close(ours.logits(ours(batch)), theirs(batch).logits, atol=1e-4, rtol=0)
    with pytest.raises(UsageError, match="no layer 4"):
        ours(ids, lengths=LENGTHS, taps=(4,))
    with pytest.raises(UsageError, match="longer than the context of 48"):
        ours(ids, lengths=None)


def test_gradients_are_theirs(pair: tuple[Any, Path]) -> None:
    theirs, path = pair
    ours, ids = checkpoint.load_decoder(path).train(), packed_ids()
    sequence_logprobs(ours, ids, LENGTHS)[0].sum().backward()
    theirs.zero_grad()
    for each in ids[0].split(LENGTHS):
        logs = theirs(each[None]).logits[0, :-1].log_softmax(-1)
        (logs.gather(1, each[1:, None]).sum() + 0 * logs.sum()).backward()
    found = dict(ours.model.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-3, atol=1e-3)


def test_greedy_equals_transformers(pair: tuple[Any, Path]) -> None:
    theirs, path = pair
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 20, (7,), generator=draw).tolist()
    prompts = [torch.randint(VOCABULARY, (length,), generator=draw).tolist() for length in lengths]
    engine = Engine(checkpoint.load_decoder(path), max_batch=4)
    done = complete(engine, [Request(prompt, Sampling(max_tokens=12, temperature=0)) for prompt in prompts])
    rest = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for prompt, ours in zip(prompts, done, strict=True):
        ids = torch.tensor([prompt])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **rest)
        assert out[0, len(prompt) :].tolist() == ours.tokens
    assert len({token for each in done for token in each.tokens}) > 8


class Same:
    """One micro-batch for ever."""

    def __iter__(self) -> Any:
        rows = np.split(packed_ids()[0].numpy(), np.cumsum(LENGTHS)[:-1])
        batch = token_batch([row for row in rows if len(row) > 1])
        while True:
            yield [batch]

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Any) -> None:
        pass


def test_it_is_trained_saved_and_read_again(pair: tuple[Any, Path], tmp_path: Path) -> None:
    _, path = pair
    model = checkpoint.load_decoder(path)
    before = model.clone()
    named = {name for name, _ in model.named_parameters()}
    assert {matrix.name for matrix in model.matrices()} <= named and "embed_tokens.weight" in named
    optimizer = Optimizer(model, Rates(), Schedule(), 20)
    fit(model, Same(), NextToken(), optimizer, run=Run(20, tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]

    for name in ("one", "two"):
        checkpoint.save(model, tmp_path / name, generation={"eos_token_id": [3, 1]})
    assert all(
        (tmp_path / "two" / each.name).read_bytes() == each.read_bytes() for each in (tmp_path / "one").iterdir()
    )
    assert load_file(tmp_path / "one" / "model.safetensors").keys() == load_file(path / "model.safetensors").keys()
    assert checkpoint.stop_ids(tmp_path / "one") == [3, 1]
    checkpoint.save(model, tmp_path / "cut", shard_bytes=20_000)
    ids = packed_ids()
    with torch.no_grad():
        hidden = model(ids, lengths=LENGTHS)
        assert not torch.allclose(before(ids, lengths=LENGTHS), hidden)
        for name in ("one", "cut"):
            again = checkpoint.load_decoder(tmp_path / name)
            assert torch.equal(again(ids, lengths=LENGTHS), hidden)
        before.copy_from(model)
        assert torch.equal(before(ids, lengths=LENGTHS), hidden)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one").eval()
        logits = theirs(ids[:, : LENGTHS[0]]).logits
        torch.testing.assert_close(model.logits(hidden[:, : LENGTHS[0]]), logits, atol=1e-4, rtol=0)


def test_an_import_is_sealed(tmp_path: Path) -> None:
    from tutelage.tokens.tokenizer import learn

    words = learn(["to be or not to be " * 3], 280)
    write(tmp_path / "theirs", "olmo2", vocab_size=words.size)
    words.save(tmp_path / "theirs")
    made = checkpoint.import_model(str(tmp_path / "theirs"), Root(tmp_path / "root").create())
    assert isinstance(checkpoint.load_decoder(made.path), ForeignDecoder)
    with pytest.raises(ConfigError, match="a reward model needs one of our architectures, not 'olmo2'"):
        checkpoint.load_reward(made.path)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma2", {"head_dim": 8}, "soft cap on attention scores"),
        ("phi3", {"sliding_window": 16}, "attends to 16 tokens of a context of 48"),
        ("cohere", {"logit_scale": 0.5}, "scales its logits"),
        ("phi", {}, "a head that is not one matrix"),
        ("falcon", {"alibi": True}, r"ALiBi"),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["full_attention"] * 3}, "s_aux"),
        ("mamba", {}, "layers of kind linear_attention"),
        ("bloom", {}, "do not attend as transformers' interface says"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, kind, **changes)
    with pytest.raises(ConfigError, match=message) as error:
        checkpoint.load(tmp_path)
    assert kind in str(error.value) or kind == "gpt_oss"


def test_no_decoder_and_no_known_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ConfigError, match="an encoder beside the decoder"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    with pytest.raises(ConfigError, match="does not say how long its context is"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(NotFound, match="no safetensors weights here"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody", "auto_map": {"AutoConfig": "run.Me"}}))
    (tmp_path / "run.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(ConfigError, match="transformers cannot open this architecture"):
        checkpoint.load(tmp_path)
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'nobody' is not supported.*pip install -e '\.\[hf\]'"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [("missing", "q_proj.weight is missing"), ("extra", "more.weight does not belong"), ("nan", "not finite")],
)
def test_damage_is_one_clear_error(change: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, "olmo2")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.q_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["model.layers.1.more.weight"] = torch.zeros(2)
    else:
        tensors[name][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CorruptArtifact, match=message):
        checkpoint.load(tmp_path)
    file.write_bytes(b"\xff" * 500)
    with pytest.raises(CorruptArtifact):
        checkpoint.load(tmp_path)


def test_a_model_that_is_otherwise_inside_is_found_by_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.model import foreign

    write(tmp_path, "phi3")
    for name, how in (("attend", "packed"), ("attend_cached", "continued from a cache")):
        honest = getattr(foreign, name)
        with monkeypatch.context() as patch:
            patch.setattr(foreign, name, lambda *given, honest=honest: honest(*given) * 1.05)
            with pytest.raises(ConfigError, match=f"phi3 gives other logits {how} than alone"):
                checkpoint.load(tmp_path)
    checkpoint.load(tmp_path)


def test_llama_cpp_has_no_file_of_it_from_here(pair: tuple[Any, Path], tmp_path: Path) -> None:
    from tutelage.model import gguf
    from tutelage.tokens.tokenizer import learn

    with pytest.raises(ConfigError, match="is not written as GGUF here"):
        gguf.write(checkpoint.load_decoder(pair[1]), tmp_path / "model.gguf", learn(["a b c"] * 9, 320))
