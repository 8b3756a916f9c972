"""Weights in and out: equal logits with transformers both ways, equal bytes, and one clear error for every damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError, CorruptArtifact, NotFound, UsageError
from tutelage.model import checkpoint
from tutelage.model.heads import RewardModel, ValueModel
from tutelage.model.transformer import Decoder, DecoderConfig

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rope_theta": 777.0}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}),
    ("qwen3", {"head_dim": 16}),
    ("qwen2", {}),
    ("mistral", {"sliding_window": None}),
]


def ids() -> torch.Tensor:
    return torch.randint(61, (3, 40), generator=torch.Generator().manual_seed(0))


def shake(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("family", "extra"), FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers_both_ways(family: str, extra: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family, **SHAPE, **extra)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = checkpoint.load_decoder(tmp_path / "theirs")
    expected = theirs(ids()).logits
    torch.testing.assert_close(ours.logits(ours(ids())), expected, rtol=0, atol=1e-4)

    checkpoint.save(ours, tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(back) is type(theirs)
    torch.testing.assert_close(back(ids()).logits, expected, rtol=0, atol=1e-4)
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("theirs", "ours"))
    assert all(torch.equal(before[name], after[name]) for name in before.keys() | after.keys())


@torch.no_grad()
def test_reward_models_equal_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = RewardModel(Decoder(DecoderConfig(**SHAPE)))
    shake(model)
    checkpoint.save(model, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, pad_token_id=0).eval()
    last = ids().clamp(min=1)
    torch.testing.assert_close(theirs(last).logits[:, 0], model(last), rtol=0, atol=1e-5)
    again = checkpoint.load(tmp_path)
    assert isinstance(again, RewardModel)
    assert torch.equal(again(last), model(last))
    packed = again(last.view(1, -1), lengths=[40, 40, 40])
    torch.testing.assert_close(packed, model(last))


def test_heads() -> None:
    decoder = Decoder(DecoderConfig(**SHAPE))
    assert not RewardModel(decoder)(ids()).any()
    critic = ValueModel(decoder)
    shake(critic)
    values = critic(ids().view(1, -1), lengths=[40, 40, 40])
    assert values.shape == (1, 120)
    torch.testing.assert_close(values.view(3, 40), critic(ids()))


def test_a_saved_model_comes_back_and_has_the_same_bytes(tmp_path: Path) -> None:
    decoder = Decoder(DecoderConfig(**SHAPE, tie_word_embeddings=False), seed=5)
    for name in ("one", "two"):
        checkpoint.save(decoder, tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    again = checkpoint.load_decoder(tmp_path / "one")
    assert again.config == decoder.config
    ours, theirs = decoder.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(parameter.requires_grad for parameter in again.parameters())
    scored = checkpoint.load(tmp_path / "one", head="scalar")
    assert isinstance(scored, RewardModel)
    with pytest.raises(UsageError, match="no head"):
        checkpoint.load(tmp_path / "one", head="vector")


def test_shards_are_read(tmp_path: Path) -> None:
    decoder = Decoder(DecoderConfig(**SHAPE))
    checkpoint.save(decoder, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    again = checkpoint.load_decoder(tmp_path)
    assert torch.equal(again(ids()), decoder(ids()))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CorruptArtifact, match=r"model-00002-of-00002.safetensors: the file is missing"):
        checkpoint.load(tmp_path)


def damaged(path: Path, change: str) -> None:
    file = path / "model.safetensors"
    name = "model.layers.1.self_attn.k_proj.weight"
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        return
    if change == "noise":
        file.write_bytes(b"\xff" * 500)
        return
    tensors = load_file(file)
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)
    elif change == "shape":
        tensors[name] = torch.zeros(32, 32)
    elif change == "nan":
        tensors[name][0, 0] = torch.nan
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", "not readable as safetensors"),
        ("noise", "not readable as safetensors"),
        ("missing", "tensor model.layers.1.self_attn.k_proj.weight is missing"),
        ("extra", "tensor model.layers.2.mlp.up_proj.weight does not belong"),
        ("shape", r"k_proj.weight has shape \(32, 32\), not \(16, 32\)"),
        ("nan", "k_proj.weight holds values that are not finite"),
    ],
)
def test_damage_is_one_clear_error(change: str, message: str, tmp_path: Path) -> None:
    checkpoint.save(Decoder(DecoderConfig(**SHAPE)), tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(CorruptArtifact, match=message):
        checkpoint.load(tmp_path)


def test_what_is_no_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model here"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CorruptArtifact, match="not JSON"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="'gpt2' is not supported"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(DecoderConfig(**SHAPE).to_hf()))
    with pytest.raises(NotFound, match="no safetensors"):
        checkpoint.load(tmp_path)
    with pytest.raises(NotFound, match="no such model folder"):
        checkpoint.locate(str(tmp_path / "nowhere"))


def test_an_import_is_sealed_once(tmp_path: Path) -> None:
    checkpoint.save(Decoder(DecoderConfig(**SHAPE)), tmp_path / "somewhere", generation={"eos_token_id": [3, 1]})
    root = Root(tmp_path / "root").create()
    first = checkpoint.import_model(str(tmp_path / "somewhere"), root)
    again = checkpoint.import_model(str(tmp_path / "somewhere"), root)
    assert first.ref == again.ref
    assert len(root.list("model")) == 1
    first.verify()
    assert checkpoint.stop_ids(first.path) == [3, 1]
    checkpoint.load_decoder(first.path)
