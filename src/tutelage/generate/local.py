"""A model of ours as a generator: texts in, texts out, on the engine; and likelihoods with the prompt read once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError, UsageError
from tutelage.core.records import Example, Message, Response
from tutelage.generate.engine import Completion, Engine, Request, complete
from tutelage.generate.generator import Sampling, Scored, check_choices, is_text, seed_of, split_spaces, too_long
from tutelage.model import checkpoint
from tutelage.model.cache import Cache, round_up
from tutelage.model.kernels import full_width
from tutelage.model.transformer import Decoder
from tutelage.tokens import tokenizer as tokenizers
from tutelage.tokens.chat import closing, render, text_of
from tutelage.tokens.tokenizer import Tokenizer


class _Choice(NamedTuple):
    """A choice as tokens: `read` stands before it, `said` is weighed."""

    prompt: int
    choice: int
    read: tuple[int, ...]
    said: tuple[int, ...]


class LocalGenerator:
    """A decoder and its tokenizer; implements Generator. The decoder may be in training: its weights are used as is.

    A prompt that leaves no room in the context for an answer gets finish `error`, and why; in `loglikelihood` what is
    too long gets an `error` too, or with `cut` loses its beginning, as in lm-evaluation-harness.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str = "local",
        eos: Collection[int] | None = None,
        max_batch: int = 64,
        cut: bool = False,
    ) -> None:
        if tokenizer.size > decoder.config.vocab_size:
            raise ConfigError(f"the tokenizer has {tokenizer.size} tokens, the model only {decoder.config.vocab_size}")
        self.decoder, self.tokenizer, self.name = decoder, tokenizer, name
        self.eos = frozenset(tokenizer.stops if eos is None else eos)
        self.max_batch, self.cut = max_batch, cut
        self._engine: Engine | None = None

    def ids_of(self, prompt: Example) -> list[int]:
        """A prompt as token ids, ready to be continued."""
        return render(prompt.messages, self.tokenizer, open_assistant=True)

    def engine(self, capacity: int) -> Engine:
        """An idle engine whose slots hold at least so many tokens; kept for the next call."""
        context = self.decoder.config.max_position_embeddings
        if self._engine is None or self._engine.busy or self._engine.capacity < min(capacity, context):
            size = min(round_up(capacity), context)
            self._engine = Engine(
                self.decoder, eos=self.eos, max_batch=self.max_batch, capacity=size, tokenizer=self.tokenizer
            )
        return self._engine

    def generate(self, prompts: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """`sampling.n` responses per prompt; each depends on the model, its prompt and the seed only."""
        context = self.decoder.config.max_position_embeddings
        read = [tuple(self.ids_of(prompt)) for prompt in prompts]
        fits = [len(ids) < context for ids in read]
        requests = [
            Request(ids, sampling, seed_of(sampling.seed, ids, sample))
            for ids, fit in zip(read, fits, strict=True)
            if fit
            for sample in range(sampling.n)
        ]
        need = max((len(request.prompt) for request in requests), default=0) + sampling.max_tokens
        done = iter(zip(requests, complete(self.engine(need), requests), strict=True))
        return [
            [self._response(*next(done)) if fit else self._refusal(ids) for _ in range(sampling.n)]
            for ids, fit in zip(read, fits, strict=True)
        ]

    def _response(self, request: Request, done: Completion) -> Response:
        ended = bool(done.tokens) and done.tokens[-1] in self.eos
        text = done.text if request.sampling.stop else self.tokenizer.decode(done.tokens[:-1] if ended else done.tokens)
        return Response(
            message=Message(role="assistant", content=text),
            finish=done.finish,
            usage={"prompt_tokens": len(request.prompt), "completion_tokens": len(done.tokens)},
            generator=self.name,
            seed=request.seed,
            tokens=tuple(done.tokens),
            logprobs=tuple(done.logprobs),
        )

    def _refusal(self, ids: Sequence[int]) -> Response:
        return Response(
            message=Message(role="assistant"),
            finish="error",
            usage={"prompt_tokens": len(ids), "completion_tokens": 0},
            generator=self.name,
            error=too_long(len(ids), self.decoder.config.max_position_embeddings),
        )

    @torch.no_grad()
    def loglikelihood(self, prompts: Sequence[Example], choices: Sequence[Sequence[str]]) -> list[list[Scored]]:
        """Log-probabilities of choices; a prompt that several choices share is read once.

        In a chat a choice is a whole answer: the token that ends the turn belongs to it, else a choice would never be
        less likely than a longer one that begins with it. After verbatim text nothing is added.
        """
        check_choices(prompts, choices)
        rows: list[_Choice] = []
        found: dict[tuple[int, int], Scored] = {}
        for i, (prompt, each) in enumerate(zip(prompts, choices, strict=True)):
            for j, choice in enumerate(each):
                row = self._tokens(prompt, choice, i, j)
                if isinstance(row, _Choice):
                    rows.append(row)
                else:
                    found[i, j] = Scored(
                        logprob=-math.inf, tokens=row, characters=len(choice), greedy=None, error=self._too_long(row)
                    )
        for batch in _batches(rows, self.max_batch, self.decoder.config.max_position_embeddings):
            for row, (logprob, greedy) in zip(batch, self._weigh(batch), strict=True):
                characters = len(choices[row.prompt][row.choice])
                found[row.prompt, row.choice] = Scored(
                    logprob=logprob, tokens=len(row.said), characters=characters, greedy=greedy
                )
        return [[found[i, j] for j in range(len(each))] for i, each in enumerate(choices)]

    def _too_long(self, tokens: int) -> str:
        return too_long(tokens, self.decoder.config.max_position_embeddings)

    def _tokens(self, prompt: Example, choice: str, i: int, j: int) -> _Choice | int:
        """The tokens of a choice behind its prompt; their number where they do not fit."""
        if is_text(prompt):
            before, whole = split_spaces("".join(map(text_of, prompt.messages)), choice)
            read = len(self._text(before))
            ids = self._text(before + whole)
            read = min(read, len(ids) - 1)  # a merge across the border: weigh the last token at least
        else:
            ids = self.ids_of(prompt)
            read = len(ids)
            ids = ids + self.tokenizer.encode(choice) + list(closing(self.tokenizer))
        limit = self.decoder.config.max_position_embeddings
        if len(ids) > limit + 1 and not self.cut:
            return len(ids)
        start = min(max(0, len(ids) - limit - 1), read - 1)  # the last token is weighed, not read
        if len(ids) - start > limit + 1:
            raise UsageError(f"a choice of {len(ids) - read} tokens is longer than the context of {limit}")
        return _Choice(i, j, tuple(ids[start:read]), tuple(ids[read:]))

    @torch.no_grad()
    def rolling(self, prompts: Sequence[Example], stride: int = 0) -> list[Scored]:
        """The log-probability of whole texts, in windows of the context that each weigh their last `stride` tokens.

        0 is the context: every token is weighed behind at least one, as lm-evaluation-harness's rolling does. A smaller
        stride gives every token at least context - stride others before it, and costs context / stride as much.
        Raises UsageError for a stride beyond the context.
        """
        limit = self.decoder.config.max_position_embeddings
        if not 0 <= stride <= limit:
            raise UsageError(f"a stride is at most the context of {limit} tokens, got {stride}")
        rows, sizes = [], []
        for place, prompt in enumerate(prompts):
            ids = self._text("".join(map(text_of, prompt.messages)))
            mine = [
                _Choice(place, 0, tuple(ids[begin : begin + 1 + skip]), tuple(ids[begin + 1 + skip : end + 1]))
                for begin, skip, end in windows(len(ids) - 1, limit, stride or limit)
            ]
            rows += mine
            sizes.append(len(ids) - 1)
        totals = [0.0] * len(prompts)
        for batch in _batches(rows, self.max_batch, limit):
            for row, (logprob, _) in zip(batch, self._weigh(batch), strict=True):
                totals[row.prompt] += logprob
        return [
            Scored(
                logprob=total, tokens=size, characters=sum(len(each.content) for each in prompt.messages), greedy=None
            )
            for total, size, prompt in zip(totals, sizes, prompts, strict=True)
        ]

    def _text(self, text: str) -> list[int]:
        return render((Message(role="text", content=text),), self.tokenizer)

    def _weigh(self, rows: Sequence[_Choice]) -> list[tuple[float, bool]]:
        """Read each distinct prompt once, then all choices but their last tokens, each behind a copy of its prompt."""
        decoder, device = self.decoder, self.decoder.device
        slots: dict[tuple[int, ...], list[int]] = {}
        for slot, row in enumerate(rows):
            slots.setdefault(row.read, []).append(slot)
        lengths = [len(prompt) for prompt in slots]
        said = max(len(row.said) for row in rows)
        config = decoder.config
        shape = (config.num_hidden_layers, len(rows), config.num_key_value_heads, max(lengths) + said - 1)
        cache = Cache(*shape, config.head_dim, device=device, dtype=decoder.head_weight.dtype)
        ids = torch.tensor([[token for prompt in slots for token in prompt]], device=device)
        where = cache.prefill([each[0] for each in slots.values()], lengths) if said > 1 else None
        read = decoder(ids, lengths=lengths, cache=where)[0, torch.tensor(lengths).cumsum(0) - 1]
        state = torch.empty(len(rows), said, config.hidden_size, device=device, dtype=read.dtype)
        for index, (prompt, each) in enumerate(slots.items()):
            state[torch.tensor(each), 0] = read[index]
            if said > 1:
                cache.copy(each[0], each[1:], len(prompt))
        targets = torch.zeros(len(rows), said, dtype=torch.long)
        for slot, row in enumerate(rows):
            targets[slot, : len(row.said)] = torch.tensor(row.said)
        targets = targets.to(device)
        if said > 1:
            starts = torch.tensor([len(row.read) for row in rows], device=device)
            state[:, 1:] = decoder(targets[:, :-1], cache=cache.extend(starts, said - 1, cache.capacity))
        inside = torch.arange(said) < torch.tensor([len(row.said) for row in rows])[:, None]
        chosen, best = _judge(decoder, state[inside.to(device)], targets[inside.to(device)])
        sizes = [len(row.said) for row in rows]
        return [
            (float(logprob.sum()), bool(greedy.all()))
            for logprob, greedy in zip(torch.split(chosen.double(), sizes), torch.split(best, sizes), strict=True)
        ]


def windows(count: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(first token read, tokens read before those weighed, last token weighed) of each window over a text of `count`
    tokens behind one that begins it; the last window is as wide as the others and weighs what is left."""
    found, done = [], 0
    while done < count:
        end = min(count, done + (stride if done else context))
        begin = max(0, end - context)
        found.append((begin, done - begin, end))
        done = end
    return found


def _judge(decoder: Decoder, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and whether it was the likeliest."""
    chosen, best = [], []
    for states, wanted in zip(torch.split(hidden, 512), torch.split(targets, 512), strict=True):
        logs = torch.log_softmax(decoder.logits(states), -1)
        chosen.append(logs.gather(1, wanted[:, None])[:, 0])
        best.append(logs.argmax(-1) == wanted)
    return torch.cat(chosen), torch.cat(best)


def _batches(rows: Sequence[_Choice], most: int, context: int) -> Iterator[list[_Choice]]:
    """Rows of like length together, and rows that share a prompt: at most 4 * `most`, or 8,192 tokens with padding."""
    batch: list[_Choice] = []
    read = said = 0
    for row in sorted(rows, key=lambda row: (len(row.said), len(row.read), row.read)):
        read, said = max(read, len(row.read)), max(said, len(row.said))
        full = len(batch) == 4 * most or (read + said) * (len(batch) + 1) > 8192 or read + said - 1 > context
        if batch and full:
            yield batch
            batch, read, said = [], len(row.read), len(row.said)
        batch.append(row)
    if batch:
        yield batch


def open_model(ref: str, root: Root | None = None, **options: Any) -> LocalGenerator:
    """Open `model:<id>`, `hf:org/name` or a directory of Hugging Face files as a generator.

    Raises CorruptArtifact where a sealed file is no longer what was sealed.
    """
    if ref.startswith("model:"):
        if root is None:
            raise UsageError(f"{ref!r} needs a root", todo="Give --root")
        artifact = refs.resolve_artifact(ref, root).verified()
        path, name = artifact.path, artifact.ref
    else:
        path, name = checkpoint.locate(ref), ref
    return load(path, name=name, **options)


def load(path: Path, *, name: str, **options: Any) -> LocalGenerator:
    """The generator in a folder of Hugging Face files, frozen."""
    full_width()
    decoder = checkpoint.load_decoder(path).eval().requires_grad_(False)
    tokenizer = tokenizers.load(path)
    return LocalGenerator(decoder, tokenizer, name=name, **{"eos": checkpoint.stop_ids(path) or None, **options})
