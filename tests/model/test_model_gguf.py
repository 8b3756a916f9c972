"""GGUF: what is written is what the model is, and llama.cpp says with it what our engine says."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.core.errors import ConfigError, MissingExtra, UsageError
from tutelage.core.records import Example
from tutelage.generate.engine import Engine, Request, complete
from tutelage.generate.generator import Sampling
from tutelage.generate.local import LocalGenerator
from tutelage.model import gguf
from tutelage.model.checkpoint import to_hf
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import Tokenizer, learn

TEXT = "to be or not to be, that is the question. It's 42 or 1234 houses; we'll see.\n\n  And käse? Yes! "
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, biased, llama3": {"attention_bias": True, "mlp_bias": True, "rope_scaling": LLAMA3},
    "llama, yarn": {"rope_scaling": YARN | {"beta_fast": 3.0}},
    "mistral, linear": {"model_type": "mistral", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "qwen2, yarn": {"model_type": "qwen2", "attention_bias": True, "rope_scaling": YARN | {"attention_factor": 1.3}},
    "qwen3": {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": False},
    "qwen3, dynamic": {"model_type": "qwen3", "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return learn([TEXT * 5], 320, 2)


def make(words: Tokenizer, changes: dict[str, Any]) -> Decoder:
    """A model with opinions, whose gains and biases matter, and that prefers tokens of plain ASCII text."""
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 500.0}
    decoder = Decoder(DecoderConfig(**{"vocab_size": words.size + 3, **shape, **heads, **changes}), seed=3)
    draw = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        parameter.data = parameter.data * (3 if parameter.dim() > 1 else 1)
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    assert words.pieces is not None
    shown = torch.tensor([piece != b"" and piece.isascii() for piece in words.pieces] + [False] * 3)
    decoder.head_weight.data *= shown[:, None]
    return decoder


@pytest.mark.parametrize("name", MODELS)
def test_the_file_holds_the_model(name: str, words: Tokenizer, tmp_path: Path) -> None:
    reader_of = pytest.importorskip("gguf").GGUFReader
    decoder = make(words, MODELS[name])
    config = decoder.config
    for file in ("one", "two"):
        gguf.write(decoder, tmp_path / f"{file}.gguf", words, name="small", licence="permissive")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one.gguf", "two.gguf"]
    file = reader_of(tmp_path / "one.gguf")
    told = {key: field.contents() for key, field in file.fields.items()}
    family = "llama" if config.model_type == "mistral" else config.model_type
    assert told["general.architecture"] == family and told["general.license"] == "permissive"
    assert told[f"{family}.attention.head_count_kv"] == 2 and told[f"{family}.context_length"] == 128
    assert told["tokenizer.ggml.pre"] == "gpt-2" and told["tokenizer.ggml.eot_token_id"] == words.end
    assert told["tokenizer.ggml.tokens"][words.size :] == [f"[PAD{words.size + place}]" for place in range(3)]
    tensors = {each.name: torch.tensor(each.data) for each in file.tensors}
    theirs = to_hf(decoder, paired=family == "llama")
    assert len(tensors.keys() - {"rope_freqs.weight"}) == len(theirs)
    assert torch.equal(tensors["token_embd.weight"], theirs["model.embed_tokens.weight"])
    assert torch.equal(tensors["blk.1.attn_k.weight"], theirs["model.layers.1.self_attn.k_proj.weight"])
    assert ("output.weight" in tensors) == (not config.tie_word_embeddings)

    gguf.write(decoder, tmp_path / "half.gguf", words, precision="f16")
    half = {each.name: torch.tensor(each.data) for each in reader_of(tmp_path / "half.gguf").tensors}
    assert half["blk.0.ffn_up.weight"].dtype == torch.float16 and half["output_norm.weight"].dtype == torch.float32


def test_what_llama_cpp_cannot_read_is_refused(
    words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "m.gguf"
    for changes, key in (
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen2", "attention_bias": True, "rope_scaling": LLAMA3}, "rope_scaling"),
        ({"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate"),
    ):
        with pytest.raises(ConfigError, match=r"llama\.cpp's") as error:
            gguf.write(make(words, changes), file, words)
        assert error.value.key == key
    small = make(words, {})
    with pytest.raises(ConfigError, match="the model only 300"):
        gguf.write(Decoder(dataclasses.replace(small.config, vocab_size=300)), file, words)
    small.layers[0].mlp.down_proj.weight.data[0, 0] = 1e6
    with pytest.raises(UsageError, match=r"blk\.0\.ffn_down\.weight holds numbers too large"):
        gguf.write(small, file, words, precision="f16")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"-e '.*\[gguf\]'"):
        gguf.write(small, file, words)
    assert list(tmp_path.iterdir()) == []


def retold(words: Tokenizer, **changes: Any) -> Tokenizer:
    """The tokenizer with parts of its file exchanged."""
    import json

    from tokenizers import Tokenizer as Core

    told = words.describe()
    told |= {key: value for key, value in changes.items() if key != "model"}
    told["model"] |= changes.get("model", {})
    return Tokenizer(Core.from_str(json.dumps(told)), words.config)


def test_the_split_is_named_or_refused(words: Tokenizer) -> None:
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    inner = bytes_ | {"use_regex": False}

    def split(pattern: str) -> dict[str, Any]:
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        return {"type": "Sequence", "pretokenizers": [step, inner]}

    patterns = {name: pattern for pattern, name in gguf.SPLITS.items()}
    assert gguf.split_name(words) == "gpt-2"
    assert gguf.split_name(retold(words, pre_tokenizer=bytes_)) == "gpt-2"
    qwen = retold(words, pre_tokenizer=split(patterns["qwen2"]), normalizer={"type": "NFC"})
    assert gguf.split_name(qwen) == "qwen2"
    llama = split(patterns["llama-bpe"])
    assert gguf.split_name(retold(words, pre_tokenizer=llama, model={"ignore_merges": True})) == "llama-bpe"
    for changes in (
        {"pre_tokenizer": llama},
        {"pre_tokenizer": split(r"\w+")},
        {"pre_tokenizer": bytes_ | {"add_prefix_space": True}},
        {"normalizer": {"type": "Lowercase"}},
    ):
        with pytest.raises(ConfigError, match="no name for the way"):
            gguf.split_name(retold(words, **changes))
    with pytest.raises(ConfigError, match="only byte-level"):
        gguf.split_name(retold(words, decoder={"type": "ByteFallback"}))


def test_a_vocabulary_that_joins_digits_is_no_gpt2() -> None:
    assert not gguf._joins_numbers([b"42nd"[2:], b" 4", b"1", "²".encode(), b"the", "è".encode()])
    for joined in (b"42", "²³".encode(), " 4²".encode(), "²".encode()[1:] + b"1"):
        assert gguf._joins_numbers([b"the", joined])


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    """llama.cpp in a wheel. Without it these tests are skipped, except in CI, where they fail."""
    try:
        import xllamacpp
    except ImportError:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs xllamacpp and gguf for the test of GGUF files")
        pytest.skip("no llama.cpp here: pip install xllamacpp")
    pytest.importorskip("gguf")
    return xllamacpp


def serve(llama_cpp: Any, file: Path) -> Any:
    settings = llama_cpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.verbosity, settings.warmup = 128, 1, 0, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return llama_cpp.Server(settings)


TEXTS = (
    "to be or not to be",
    "It's 42, or 1234567890!  we'll  see\n\n\n  that\t is",
    "käse? ½²³ 1½ ١٢٣ 👍 'twas ''sd @#!? x.",
    " 7 77 777",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_says_what_the_engine_says(name: str, llama_cpp: Any, words: Tokenizer, tmp_path: Path) -> None:
    decoder = make(words, MODELS[name])
    gguf.write(decoder, tmp_path / "m.gguf", words)
    server = serve(llama_cpp, tmp_path / "m.gguf")
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 90, (6,), generator=draw).tolist()
    prompts = [torch.randint(words.size, (length,), generator=draw).tolist() for length in lengths]
    engine = Engine(decoder, eos=words.stops)
    sampling = Sampling(max_tokens=24, temperature=0)
    asked: list[tuple[Any, list[int]]] = [(prompt, prompt) for prompt in prompts]
    asked += [(text, [words.bos, *words.encode(text)]) for text in TEXTS]
    done = complete(engine, [Request(ids, sampling) for _, ids in asked])
    for (prompt, ids), ours in zip(asked, done, strict=True):
        theirs = server.handle_completions({"prompt": prompt, "max_tokens": 24, "temperature": 0, "n_probs": 1})
        said = theirs["choices"][0]["logprobs"]["content"]
        assert theirs["usage"]["prompt_tokens"] == len(ids)
        assert [each["id"] for each in said] == ours.tokens
        torch.testing.assert_close([each["logprob"] for each in said], ours.logprobs, rtol=0, atol=1e-3)
    assert len({token for each in done for token in each.tokens}) > 12


@pytest.mark.slow
def test_llama_cpp_reads_the_chat_template(llama_cpp: Any, words: Tokenizer, tmp_path: Path) -> None:
    decoder = make(words, {})
    gguf.write(decoder, tmp_path / "m.gguf", words)
    prompt = Example.ask("what is the question?")
    request = {"messages": [{"role": "user", "content": "what is the question?"}], "max_tokens": 20, "temperature": 0}
    theirs = serve(llama_cpp, tmp_path / "m.gguf").handle_chat_completions(request)
    generator = LocalGenerator(decoder, words)
    ours = generator.generate([prompt], Sampling(max_tokens=20, temperature=0))[0][0]
    assert theirs["usage"]["prompt_tokens"] == len(generator.ids_of(prompt))
    assert theirs["choices"][0]["message"]["content"] == ours.message.content
