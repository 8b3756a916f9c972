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
from tutelage.tokens.tokenizer import learn

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 3.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "none": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, stated": YARN | {"attention_factor": 0.8, "beta_slow": 0.5},
    "yarn, mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 12}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
}


def ids() -> torch.Tensor:
    return torch.randint(61, (3, 40), generator=torch.Generator().manual_seed(0))


def shake(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers_both_ways(family: str, scaling: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    kind, extra = FAMILIES[family]
    rope = SCALINGS[scaling] | {"rope_theta": 500.0}
    config = transformers.AutoConfig.for_model(kind, **SHAPE, **extra, rope_parameters=rope)
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


def test_a_scaling_must_be_known_and_whole() -> None:
    for scaling in SCALINGS.values():
        for key in {"factor", "original_max_position_embeddings", "low_freq_factor"} & scaling.keys():
            less = {name: value for name, value in scaling.items() if name != key}
            with pytest.raises(ConfigError, match=f"needs a number above 0 as {key}") as error:
                DecoderConfig.from_hf({"model_type": "qwen2", **SHAPE, "rope_scaling": less})
            assert error.value.key == f"rope_scaling.{key}"
    for change, message in (({"rope_type": "longrope"}, "'longrope'"), ({"partial_rotary_factor": 0.5}, "part of")):
        with pytest.raises(ConfigError, match=message):
            DecoderConfig.from_hf({"model_type": "llama", **SHAPE, "rope_parameters": change})


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


def files_of(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


def test_shards_are_written_and_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    decoder = Decoder(DecoderConfig(**SHAPE))
    shake(decoder)
    checkpoint.save(decoder, tmp_path / "whole")
    for name in ("one", "two"):
        checkpoint.save(decoder, tmp_path / name, shard_bytes=12_000)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    shards = sorted(tmp_path.glob("one/*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-0000{len(shards)}.safetensors"
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "one" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert {name: shard.name for shard in shards for name in load_file(shard)} == index["weight_map"]
    assert all(sum(tensor.nbytes for tensor in load_file(shard).values()) <= 12_000 for shard in shards)

    with torch.no_grad():
        expected = decoder.logits(decoder(ids()))
        again = checkpoint.load_decoder(tmp_path / "one")
        assert torch.equal(again.logits(again(ids())), expected)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one").eval()
        torch.testing.assert_close(theirs(ids()).logits, expected, rtol=0, atol=1e-4)

    checkpoint.save(decoder, tmp_path / "one")  # another cut leaves nothing of the last one
    assert files_of(tmp_path / "one") == files_of(tmp_path / "whole")
    checkpoint.save(decoder, tmp_path / "one", shard_bytes=1)
    assert len(list(tmp_path.glob("one/*.safetensors"))) == len(whole)
    shards = sorted(tmp_path.glob("two/*.safetensors"))
    shards[1].unlink()
    with pytest.raises(CorruptArtifact, match=f"{shards[1].name}: the file is missing"):
        checkpoint.load(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match="not an index of shards"):
        checkpoint.load(tmp_path / "two")


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
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Mine"]}))
    with pytest.raises(ConfigError, match="the architecture None is not supported"):
        checkpoint.load(tmp_path)
    good = DecoderConfig(**SHAPE).to_hf()
    for key, value, message in (
        ("hidden_size", "wide", "at least 1, found 'wide'"),
        ("num_key_value_heads", 0, "at least 1, found 0"),
        ("vocab_size", None, "lacks vocab_size"),
        ("rope_scaling", "linear", "not the keys of a rotary scaling"),
        ("hidden_act", "gelu", "is not silu"),
        ("model_type", ["llama"], "is not supported"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(good | {key: value}))
        with pytest.raises(ConfigError, match=message) as error:
            checkpoint.load(tmp_path)
        assert error.value.key == key
    (tmp_path / "config.json").write_text(json.dumps(good))
    with pytest.raises(NotFound, match="no safetensors"):
        checkpoint.load(tmp_path)
    with pytest.raises(NotFound, match="no such model folder"):
        checkpoint.locate(str(tmp_path / "nowhere"))


def test_a_hub_that_is_not_reached_is_said_in_our_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound) as error:
        checkpoint.locate("hf:no/model")
    assert "not in this machine's cache, and the hub could not be reached. Check the network" in str(error.value)
    assert "Error" not in str(error.value)


def test_an_import_is_sealed_once(tmp_path: Path) -> None:
    words = learn(["to be or not to be " * 3], 280, 2)
    words.save(tmp_path / "words")
    decoder = Decoder(DecoderConfig(**SHAPE | {"vocab_size": words.size}))
    root = Root(tmp_path / "root").create()
    checkpoint.save(decoder, tmp_path / "mute")
    with pytest.raises(NotFound, match=r"no tokenizer here.*save_pretrained"):
        checkpoint.import_model(str(tmp_path / "mute"), root)
    checkpoint.save(decoder, tmp_path / "somewhere", tmp_path / "words", generation={"eos_token_id": [3, 1]})
    first = checkpoint.import_model(str(tmp_path / "somewhere"), root)
    again = checkpoint.import_model(str(tmp_path / "somewhere"), root)
    assert first.ref == again.ref
    assert len(root.list("model")) == 1
    first.verify()
    assert checkpoint.stop_ids(first.path) == [3, 1]
    checkpoint.load_decoder(first.path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    words = learn(["to be or not to be " * 3], 280, 2)
    words.save(tmp_path / "words")
    decoder = Decoder(DecoderConfig(**SHAPE))
    with pytest.raises(ConfigError, match=f"the tokenizer has {words.size} tokens, the model only 61"):
        checkpoint.save(decoder, tmp_path / "model", tmp_path / "words")
    checkpoint.save(decoder, tmp_path / "other")
    words.save(tmp_path / "other")
    root = Root(tmp_path / "root").create()
    with pytest.raises(ConfigError, match=f"the tokenizer has {words.size} tokens, the model only 61") as error:
        checkpoint.import_model(str(tmp_path / "other"), root)
    assert error.value.file == tmp_path / "other" / "tokenizer.json" and not root.list("model")
