"""Adapters: equal to PEFT both ways, merged without loss, beside a base that no one touches; damage is said so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError, CorruptArtifact, NotFound, UsageError
from tutelage.model import checkpoint, peft
from tutelage.model.lora import TARGETS, Lora, LoraLinear, adapt, adapters, merge
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
FAMILIES = [("llama", {}), ("mistral", {"sliding_window": None}), ("qwen2", {}), ("qwen3", {"head_dim": 16})]
SOME = ("q_proj", "v_proj", "up_proj")


def ids() -> torch.Tensor:
    return torch.randint(61, (3, 40), generator=torch.Generator().manual_seed(0))


def shaken(decoder: Decoder) -> Decoder:
    """An adapter that says something."""
    draw = torch.Generator().manual_seed(1)
    for layer in adapters(decoder).values():
        layer.lora_B.data = 0.2 * torch.randn(layer.lora_B.shape, generator=draw)
    return decoder


def adapted_of(settings: Lora, seed: int = 0, **shape: Any) -> Decoder:
    return shaken(adapt(Decoder(DecoderConfig(**SHAPE | shape)), settings, seed))


@pytest.mark.parametrize(("family", "extra"), FAMILIES)
@torch.no_grad()
def test_logits_equal_peft_both_ways(family: str, extra: dict[str, Any], tmp_path: Path) -> None:
    transformers, theirs = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = transformers.AutoConfig.for_model(family, **SHAPE, **extra)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "base")
    base = checkpoint.load_decoder(tmp_path / "base")

    ours = shaken(adapt(base, Lora(4, 12.0, TARGETS, rslora=family == "qwen2"), seed=3))
    peft.save_adapter(ours, tmp_path / "ours", "somewhere")
    expected = ours.logits(ours(ids()))
    assert float((expected - base.logits(base(ids()))).abs().max()) > 0.01
    loaded = theirs.PeftModel.from_pretrained(model, tmp_path / "ours").eval()
    torch.testing.assert_close(loaded(ids()).logits, expected, rtol=0, atol=1e-4)
    model = loaded.unload()

    wanted = theirs.LoraConfig(r=3, lora_alpha=5, target_modules=list(SOME), task_type="CAUSAL_LM")
    other = theirs.get_peft_model(model, wanted).eval()
    for name, parameter in other.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.2)
    other.save_pretrained(tmp_path / "theirs")
    found = peft.load_adapter(tmp_path / "theirs", base)
    torch.testing.assert_close(found.logits(found(ids())), other(ids()).logits, rtol=0, atol=1e-4)

    peft.save_adapter(found, tmp_path / "again", str(tmp_path / "base"))
    files = [(tmp_path / each / peft.TENSORS).read_bytes() for each in ("theirs", "again")]
    assert files[0] == files[1]
    one, two = (json.loads((tmp_path / each / checkpoint.ADAPTER).read_text()) for each in ("theirs", "again"))
    one["target_modules"], one["base_model_name_or_path"] = list(SOME), str(tmp_path / "base")
    assert {key: one[key] for key in two} == two


@torch.no_grad()
def test_a_reward_model_keeps_its_head_beside_the_adapter(tmp_path: Path) -> None:
    transformers, theirs = pytest.importorskip("transformers"), pytest.importorskip("peft")
    adapted = adapted_of(Lora(4, 8.0))
    checkpoint.save(checkpoint.RewardModel(Decoder(DecoderConfig(**SHAPE))), tmp_path / "base")
    score = torch.randn(1, 32)
    peft.save_adapter(adapted, tmp_path / "adapter", score=score)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", pad_token_id=0)
    model = theirs.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    last = ids().clamp(min=1)
    torch.testing.assert_close(model(last).logits, adapted(last)[:, -1] @ score.t(), rtol=0, atol=1e-4)


def test_gradients_are_those_of_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(6, 10).double().requires_grad_(False)
    layer = LoraLinear(base, {"q_proj": (0, 4), "v_proj": (7, 10)}, Lora(2, 3.0), draw)
    layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=draw, dtype=torch.float64)
    x = torch.randn(5, 6, generator=draw, dtype=torch.float64, requires_grad=True)

    def product(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        layer.lora_A.data, layer.lora_B.data = a, b
        low = torch.nn.functional.linear(x, base.weight, base.bias)
        q, v = x @ a[:2].t() @ b[:4].t(), x @ a[2:].t() @ b[4:].t()
        return low + 1.5 * torch.cat([q, torch.zeros(5, 3, dtype=torch.float64), v], 1)

    expected = product(x, layer.lora_A, layer.lora_B)
    inputs = (x, layer.lora_A, layer.lora_B)
    weight = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad((found * weight).sum(), inputs), theirs, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_the_base_is_shared_and_nothing_changes_at_first() -> None:
    base = Decoder(DecoderConfig(**SHAPE, attention_bias=True))
    adapted = adapt(base, Lora(4, 8.0, SOME), seed=1)
    assert torch.equal(adapted(ids()), base(ids()))
    assert all(parameter.requires_grad for parameter in base.parameters())
    learning = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(learning) == 8 and all("lora_" in name for name in learning)
    shared = dict(base.named_parameters())
    assert all(
        parameter.data_ptr() == shared[name].data_ptr()
        for name, parameter in adapted.named_parameters()
        if name not in learning
    )
    same, other = adapt(base, Lora(4, 8.0, SOME), seed=1), adapt(base, Lora(4, 8.0, SOME), seed=2)
    one, two, three = (each.layers[1].self_attn.qkv_proj.lora_A for each in (adapted, same, other))
    assert torch.equal(one, two) and not torch.equal(one, three) and float(one.detach().abs().max()) <= 32**-0.5
    with pytest.raises(UsageError, match="has an adapter already"):
        adapt(adapted, Lora(4, 8.0))
    with pytest.raises(UsageError, match="is called 'query'"):
        adapt(base, Lora(4, 8.0, ("query",)))


@torch.no_grad()
def test_merging_is_exact_and_touches_nothing(tmp_path: Path) -> None:
    base = Decoder(DecoderConfig(**SHAPE, tie_word_embeddings=False))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = shaken(adapt(base, Lora(4, 12.0)))
    merged = merge(adapted)
    torch.testing.assert_close(merged.logits(merged(ids())), adapted.logits(adapted(ids())), rtol=0, atol=1e-5)
    assert not adapters(merged) and merge(merged) is merged
    assert merged.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    checkpoint.save(merged, tmp_path)
    assert torch.equal(checkpoint.load_decoder(tmp_path)(ids()), merged(ids()))


@pytest.mark.parametrize("frozen", ["embed_tokens", "norm"])
def test_frozen_weights_get_no_gradient_and_change_no_other(frozen: str) -> None:
    from tutelage.model.logprob import logprobs

    found = []
    for freeze in (False, True):
        decoder = Decoder(DecoderConfig(**SHAPE))
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(not (freeze and frozen in name))
        hidden = decoder(ids()).flatten(0, 1)
        logprobs(decoder, hidden, ids().flatten())[0].sum().backward()
        found.append({name: parameter.grad for name, parameter in decoder.named_parameters()})
    for name, grad in found[0].items():
        assert grad is not None
        assert found[1][name] is None if frozen in name else torch.equal(found[1][name], grad)


# ------------------------------------------------------------------------------------------------------------ bad input


def spoilt(path: Path, change: str) -> None:
    file, config = path / peft.TENSORS, path / checkpoint.ADAPTER
    values, name = json.loads(config.read_text()), "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"
    tensors = load_file(file)
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors[name.replace("lora_A.weight", "lora_magnitude_vector")] = torch.zeros(16)
    elif change == "shape":
        tensors[name] = torch.zeros(4, 31)
    elif change == "nan":
        tensors[name][0, 0] = torch.nan
    elif change == "dora":
        values["use_dora"] = True
    elif change == "type":
        values["peft_type"] = "IA3"
    elif change == "bias":
        values["bias"] = "all"
    elif change == "target":
        values["target_modules"] = ["q_proj", "lm_head"]
    elif change == "rank":
        values["r"] = "four"
    elif change == "layers":
        values["layers_to_transform"] = [0]
    save_file(tensors, file)
    config.write_text("[" if change == "json" else json.dumps(values))
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-64])
    elif change == "pickle":
        file.rename(path / "adapter_model.bin")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("missing", CorruptArtifact, "layers.1.self_attn.k_proj.lora_A.weight is missing"),
        ("extra", CorruptArtifact, "lora_magnitude_vector does not belong"),
        ("shape", CorruptArtifact, r"k_proj.lora_A.weight has shape \(4, 31\), this model needs \(4, 32\)"),
        ("nan", CorruptArtifact, "not finite"),
        ("cut", CorruptArtifact, "not readable as safetensors"),
        ("json", CorruptArtifact, "not JSON"),
        ("dora", ConfigError, "'use_dora': this is more than plain LoRA"),
        ("layers", ConfigError, "'layers_to_transform': this is more than plain LoRA"),
        ("type", ConfigError, "type 'IA3' is not LoRA"),
        ("bias", ConfigError, "biases of its own"),
        ("target", ConfigError, "no matrix of a block is called 'lm_head'"),
        ("rank", ConfigError, "'r': expected a number above 0, found 'four'"),
        ("pickle", NotFound, "adapter's tensors are missing.*safe_serialization"),
    ],
)
def test_damage_is_one_clear_error(change: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    adapted = adapted_of(Lora(4, 8.0))
    peft.save_adapter(adapted, tmp_path)
    spoilt(tmp_path, change)
    base = Decoder(DecoderConfig(**SHAPE))
    with pytest.raises(error, match=message):
        peft.load_adapter(tmp_path, base)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    peft.save_adapter(adapted_of(Lora(4, 8.0)), tmp_path)
    for shape in ({"hidden_size": 64}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}):
        with pytest.raises(UsageError, match=r"made for other weights.*Give the model"):
            peft.load_adapter(tmp_path, Decoder(DecoderConfig(**SHAPE | shape)))
    with pytest.raises(UsageError, match="made for other weights"):
        peft.load_adapter(tmp_path, Decoder(DecoderConfig(**SHAPE), seed=1))
    (tmp_path / peft.BASE).unlink()  # as PEFT saves it: nobody can tell
    peft.load_adapter(tmp_path, Decoder(DecoderConfig(**SHAPE), seed=1))
    for shape in ({"hidden_size": 64}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}):
        with pytest.raises(CorruptArtifact, match=r"Give the model|is missing"):
            peft.load_adapter(tmp_path, Decoder(DecoderConfig(**SHAPE | shape)))
    with pytest.raises(UsageError, match="no adapter"):
        peft.save_adapter(Decoder(DecoderConfig(**SHAPE)), tmp_path / "none")
    with pytest.raises(NotFound, match="no adapter here"):
        peft.load_adapter(tmp_path / "none", Decoder(DecoderConfig(**SHAPE)))


def test_an_imported_adapter_is_a_merged_model_with_its_base_as_input(tmp_path: Path) -> None:
    words = learn(["to be or not to be " * 3], 280, 2)
    words.save(tmp_path / "words")
    base = Decoder(DecoderConfig(**SHAPE | {"vocab_size": words.size}))
    checkpoint.save(base, tmp_path / "base", tmp_path / "words", generation={"eos_token_id": [3, 1]})
    adapted = shaken(adapt(base, Lora(4, 8.0)))
    peft.save_adapter(adapted, tmp_path / "adapter")
    root = Root(tmp_path / "root").create()
    under = checkpoint.import_model(str(tmp_path / "base"), root, licence="non-commercial")
    with pytest.raises(UsageError, match=r"this is an adapter.*--base"):
        checkpoint.import_model(str(tmp_path / "adapter"), root)
    made = peft.import_adapter(str(tmp_path / "adapter"), root, under.ref, licence="permissive")
    assert peft.import_adapter(str(tmp_path / "adapter"), root, str(tmp_path / "base"), licence="permissive") != made
    assert peft.import_adapter(str(tmp_path / "adapter"), root, under.ref, licence="permissive").ref == made.ref
    assert made.manifest.inputs == {"base": under.ref} and made.metrics == {"base_known": True}
    checkpoint.save(Decoder(base.config, seed=1), tmp_path / "wrong", tmp_path / "words")
    with pytest.raises(UsageError, match="made for other weights"):
        peft.import_adapter(str(tmp_path / "adapter"), root, str(tmp_path / "wrong"))
    assert made.manifest.licences == ["non-commercial", "permissive"]
    assert checkpoint.stop_ids(made.path) == [3, 1]
    whole = checkpoint.load_decoder(made.path)
    torch.testing.assert_close(whole(ids()), adapted(ids()), rtol=0, atol=1e-5)
    kept = peft.load_adapter(made.path / "adapter", checkpoint.load_decoder(under.path))
    assert torch.equal(kept(ids()), adapted(ids()))


def test_an_adapter_learns_in_half_precision_too() -> None:
    def gradients(bf16: bool) -> list[torch.Tensor]:
        decoder = adapted_of(Lora(4, 8.0))
        decoder.bf16 = bf16
        decoder(ids()).square().mean().backward()
        found = [parameter.grad for parameter in decoder.parameters() if parameter.requires_grad]
        assert all(each is not None and each.dtype == torch.float32 for each in found)
        return [each for each in found if each is not None]

    exact, rough = (torch.cat([each.flatten() for each in gradients(bf16)]) for bf16 in (False, True))
    assert 1e-5 < float((rough - exact).norm() / exact.norm()) < 0.1
