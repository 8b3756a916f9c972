"""Byte-level BPE in Hugging Face files: learned from the corpus, loaded from any of them.

Any text can be encoded, nothing is ever unknown, and no text can forge a special token: `encode` treats `<|end|>` in a
user's message as the seven characters it is. Reference: Sennrich et al. 2016; byte-level as in GPT-2.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from tutelage.core.artifact import Artifact
from tutelage.core.config import Config
from tutelage.core.errors import ConfigError, DataError, NotFound
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Example, read_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage

BOS, EOS, PAD, END = "<|bos|>", "<|eos|>", "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIALS = (BOS, EOS, PAD, *(f"<|{role}|>" for role in ROLES), END)
"""Special tokens in the order of their ids, from 0."""

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
  {%- if message['role'] == 'text' %}
    {{- message['content'] }}
  {%- else %}
    {{- '<|' + message['role'] + '|>' }}
    {%- if message['role'] == 'assistant' %}
      {%- generation %}
        {{- message['content'] + '<|end|>' }}
      {%- endgeneration %}
    {%- else %}
      {{- message['content'] + '<|end|>' }}
    {%- endif %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages and messages[-1]['role'] != 'text' %}
  {{- '<|assistant|>' }}
{%- endif %}"""

PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Words with the space before them, single digits (numbers are copied digit by digit), runs of signs, blanks."""


class Tokenizer:
    """A tokenizer of Hugging Face files, with its chat template. Immutable; safe to share between threads."""

    def __init__(self, core: Core, config: Mapping[str, Any]) -> None:
        self._marked = core
        self._plain = Core.from_str(core.to_str())
        self._plain.encode_special_tokens = True
        self.config = dict(config)
        self.size: int = core.get_vocab_size(with_added_tokens=True)
        eos = self._special("eos_token")
        if eos is None:
            raise DataError("the tokenizer names no eos_token", file="tokenizer_config.json", key="eos_token")
        self.eos: int = eos
        bos, pad, end = self._special("bos_token"), self._special("pad_token"), core.token_to_id(END)
        self.bos: int = eos if bos is None else bos
        self.pad: int = eos if pad is None else pad
        self.end: int = eos if end is None else end

    def _special(self, name: str) -> int | None:
        token = self.text_of(name)
        return None if token == "" else self._marked.token_to_id(token)

    def text_of(self, name: str) -> str:
        """The text of a special token named in the configuration, such as `bos_token`; empty when there is none."""
        value = self.config.get(name)
        return str(value["content"] if isinstance(value, Mapping) else value or "")

    @property
    def template(self) -> str | None:
        """The jinja2 source of the chat template."""
        found = self.config.get("chat_template")
        if isinstance(found, list):  # several named ones, as some models have
            named = {each["name"]: each["template"] for each in found}
            found = named.get("default")
        return found

    @property
    def stops(self) -> list[int]:
        """The ids that end an answer."""
        return [self.end, self.eos] if self.end != self.eos else [self.eos]

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text. Special tokens written in it stay text."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return [list(found.ids) for found in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_marked(self, text: str, framed: bool = False) -> list[int]:
        """Ids of text in which special tokens count as such: only for templates, never for what people wrote.

        `framed`: with the tokens that the tokenizer's own files put around a text, if any.
        """
        return list(self._marked.encode(text, add_special_tokens=framed).ids)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""
        return str(self._marked.decode([int(each) for each in ids], skip_special_tokens=skip_special))

    def describe(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        return dict(json.loads(self._marked.to_str()))

    def stream(self) -> StreamDecoder:
        """A decoder that is fed one id at a time and gives out whole characters only."""
        return StreamDecoder(self)

    @cached_property
    def specials(self) -> dict[int, str]:
        """Special tokens: id -> text."""
        added = self._marked.get_added_tokens_decoder()
        return {number: str(token.content) for number, token in added.items() if token.special}

    @cached_property
    def pieces(self) -> list[bytes] | None:
        """The bytes of each id (special tokens have none); None when the tokenizer is not byte-level."""
        decoder = self.describe().get("decoder") or {}
        if decoder.get("type") != "ByteLevel":
            return None
        table = _byte_of()
        added = self._marked.get_added_tokens_decoder()
        found = []
        for number in range(self.size):
            if number in added:
                found.append(b"" if added[number].special else str(added[number].content).encode())
            else:
                found.append(bytes(table[char] for char in self._marked.id_to_token(number) or ""))
        return found

    def bytes_of(self, number: int) -> bytes | None:
        """The bytes of an id, which may be no whole characters; None when the tokenizer is not byte-level."""
        if self.pieces is None:
            return None
        return self.pieces[number] if number < len(self.pieces) else b""

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into a folder."""
        path.mkdir(parents=True, exist_ok=True)
        (path / "tokenizer.json").write_text(self._marked.to_str(pretty=False), encoding="utf-8")
        named = {name: self.text_of(name) for name in ("bos_token", "eos_token", "pad_token") if self.text_of(name)}
        for file, content in (("tokenizer_config.json", self.config), ("special_tokens_map.json", named)):
            (path / file).write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


class StreamDecoder:
    """Ids to text one at a time. A character leaves when its last byte is there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = tokenizer.pieces
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._core = tokenizer._marked
        self._other = None if self._pieces is not None else decoders.DecodeStream(skip_special_tokens=True)

    def push(self, number: int) -> str:
        """The text that became whole with this id; may be empty."""
        if self._pieces is not None:
            # a model may have more tokens than its tokenizer: the others say nothing
            return self._bytes.decode(self._pieces[number] if number < len(self._pieces) else b"")
        assert self._other is not None
        return self._other.step(self._core, number) or ""

    def close(self) -> str:
        """What is left: U+FFFD for an unfinished character, else nothing."""
        return self._bytes.decode(b"", final=True)


def load(path: str | Path | Artifact) -> Tokenizer:
    """The tokenizer in a folder of Hugging Face files (a tokenizer or a model artifact, or any download)."""
    folder = path.path if isinstance(path, Artifact) else Path(path)
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        todo = "Put the tokenizer's files beside the model: `AutoTokenizer.save_pretrained` of transformers writes them"
        raise NotFound("no tokenizer here", file=file, todo=todo)
    try:
        core = Core.from_file(str(file))
    except Exception as error:  # the library raises the bare class
        raise DataError(f"not a tokenizer: {error}", file=file) from None
    config: dict[str, Any] = {}
    if settings.is_file():
        try:
            config = json.loads(settings.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"not JSON: {error}", file=settings) from None
    template = folder / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    return Tokenizer(core, config)


def learn(texts: Iterable[str], vocabulary: int = 2048, least: int = 2) -> Tokenizer:
    """Learn merges from texts until there are `vocabulary` tokens; a pair must occur `least` times.

    The same texts in the same order give the same tokenizer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < len(alphabet) + len(SPECIALS):
        raise ConfigError(f"a byte-level vocabulary has at least {len(alphabet) + len(SPECIALS)}", key="vocabulary")
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=least,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [text for text in SPECIALS if text not in (BOS, EOS, PAD)],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": TEMPLATE,
    }
    return Tokenizer(core, config)


def _byte_of() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table), reversed."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return table | {chr(256 + place): byte for place, byte in enumerate(hidden)}


class TokenizerConfig(Config):
    """Settings of the stage `tokenizer`."""

    vocabulary: int = 2048
    """Number of tokens, special tokens included."""
    least: int = 2
    """How often a pair must occur to be merged."""
    characters: int = 20_000_000
    """Learn from at most so many characters, taken evenly over the corpus; 0 means all."""


def _cost(config: TokenizerConfig, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Counting pieces of text, and merging what different words there are."""
    corpus = sizes.get("corpus", {})
    dialogues = corpus.get("dialogues", 9e3) * (corpus.get("prompt_tokens", 20.0) + corpus.get("answer_tokens", 7.0))
    characters = corpus.get("characters", 4e6) + 3.5 * dialogues
    if config.characters:
        characters = min(characters, config.characters)
    seconds = 0.05 + 1.1e-7 * characters + 3e-6 * corpus.get("words", 1e5)
    return Cost(seconds=seconds, memory=2e8 + 8 * characters, sizes={"vocabulary": config.vocabulary})


@stage(
    makes="tokenizer",
    config=TokenizerConfig,
    inputs={"corpus": Input(kind="corpus", default="prepare", help="the text to learn merges from")},
    cost=_cost,
)
def tokenizer(config: TokenizerConfig, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Learn a byte-level BPE vocabulary from the training text of a corpus."""
    texts = list(training_text(inputs.corpus))
    if not texts:
        raise DataError("the corpus has no training text", file=inputs.corpus.path)
    total = sum(map(len, texts))
    if config.characters and total > config.characters:
        every = total / config.characters
        texts = [texts[int(place * every)] for place in range(int(len(texts) / every))]
    context.say.note("learning merges", characters=sum(map(len, texts)), vocabulary=config.vocabulary)
    found = learn(texts, config.vocabulary, config.least)
    context.check()
    found.save(out)
    sample = texts[:: max(1, len(texts) // 1000)]
    count = sum(map(len, found.encode_batch(sample)))
    return {
        "vocabulary": found.size,
        "characters": sum(map(len, texts)),
        "characters_per_token": sum(map(len, sample)) / count if count else None,
    }


def training_text(corpus: Artifact) -> Iterator[str]:
    """What a vocabulary is learned from: documents of the training split and the turns of its dialogues."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(corpus.file("documents.parquet"), columns=["text", "split"])
    for text, split in zip(table["text"].to_pylist(), table["split"].to_pylist(), strict=True):
        if split == "train":
            yield text
    for example in read_jsonl(corpus.file("dialogues.jsonl"), Example):
        if example.tags.get("split") == "train":
            yield from (message.content for message in example.messages if message.content)
