"""A model of ours as a generator: texts in, texts out, on the engine; and likelihoods with the prompt read once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError, UsageError
from tutelage.core.records import Example, Message, Response
from tutelage.generate.engine import Completion, Engine, Request, complete
from tutelage.generate.generator import Sampling, Scored, check_choices, is_text, seed_of, split_spaces, too_long
from tutelage.generate.score import Row, Weighed, weigh, weigh_in_torch
from tutelage.model import checkpoint
from tutelage.model.cache import round_up
from tutelage.model.kernels import full_width
from tutelage.model.steps import NativeSteps
from tutelage.model.transformer import Decoder
from tutelage.tokens import tokenizer as tokenizers
from tutelage.tokens.chat import closing, render, text_of
from tutelage.tokens.tokenizer import Tokenizer


class LocalGenerator:
    """A decoder and its tokenizer; implements Generator. The decoder may be in training: its weights are used as is.

    A prompt that leaves no room in the context for an answer gets finish `error`, and why; in `loglikelihood` what is
    too long loses its beginning, as in lm-evaluation-harness.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str = "local",
        eos: Collection[int] | None = None,
        max_batch: int = 64,
    ) -> None:
        if tokenizer.size > decoder.config.vocab_size:
            raise ConfigError(f"the tokenizer has {tokenizer.size} tokens, the model only {decoder.config.vocab_size}")
        self.decoder, self.tokenizer, self.name = decoder, tokenizer, name
        self.eos = frozenset(tokenizer.stops if eos is None else eos)
        self.max_batch = max_batch
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
        rows = [self._row(prompt, choice) for prompt, each in zip(prompts, choices, strict=True) for choice in each]
        weighed = iter(zip(rows, self.weigh(rows), strict=True))
        return [[_scored(choice, *next(weighed)) for choice in each] for each in choices]

    @torch.no_grad()
    def weigh(self, rows: Sequence[Row]) -> list[Weighed]:
        """Weigh continuations given as tokens, in order; what they begin with alike is read once.

        Raises UsageError for one that is empty, does not fit the context, or is not of this vocabulary.
        """
        context, size = self.decoder.config.max_position_embeddings, self.decoder.config.vocab_size
        for row in rows:
            if not row.read or not row.said:
                raise UsageError("a continuation needs at least one token, and one before it")
            if len(row.tokens) > context:
                raise UsageError(f"a sequence of {len(row.tokens)} tokens is longer than the context of {context}")
            if not 0 <= min(*row.read, *row.said) <= max(*row.read, *row.said) < size:
                raise UsageError(f"token ids must be within 0 .. {size - 1}")
        if not rows:
            return []
        steps = self.engine(max(len(row.tokens) for row in rows)).steps
        if isinstance(steps, NativeSteps):
            return weigh(steps.native, rows)
        return weigh_in_torch(self.decoder, rows, self.max_batch)

    def _row(self, prompt: Example, choice: str) -> Row:
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
        start = min(max(0, len(ids) - limit - 1), read - 1)  # the last token is weighed, not read
        if len(ids) - start > limit + 1:
            raise UsageError(f"a choice of {len(ids) - read} tokens is longer than the context of {limit}")
        return Row(tuple(ids[start:read]), tuple(ids[read:]))

    def _text(self, text: str) -> list[int]:
        return render((Message(role="text", content=text),), self.tokenizer)


def _scored(choice: str, row: Row, weighed: Weighed) -> Scored:
    return Scored(logprob=weighed.logprob, tokens=len(row.said), characters=len(choice), greedy=weighed.greedy)


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
