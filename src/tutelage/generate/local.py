"""A model of ours as a generator: texts in, texts out, on the engine; and likelihoods with the prompt read once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError, UsageError
from tutelage.core.records import Example, Message, Response, digest
from tutelage.generate.engine import Completion, Engine, Request, complete
from tutelage.generate.generator import Sampling, Scored, check_choices, is_text, seed_of, split_spaces, too_long
from tutelage.generate.score import Row, Weighed, weigh, weigh_in_torch
from tutelage.model import checkpoint, library
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
        self._identity: tuple[object, str] | None = None

    @property
    def identity(self) -> str:
        """A hash of what answers follow from beside prompt, sampling and code: the weights as they are now, tokenizer,
        template, ends, and what computes. Hashing takes a second for a few hundred million weights, once."""
        marks = tuple((each.data_ptr(), each._version) for each in self.decoder.parameters())
        if self._identity is None or self._identity[0] != marks or self._learns:
            self._identity = marks, self._hashed()
        return self._identity[1]

    @property
    def _learns(self) -> bool:
        return any(each.requires_grad for each in self.decoder.parameters())  # some optimizers mark nothing

    def _hashed(self) -> str:
        total = hashlib.sha256()
        for name, tensor in self.decoder.state_dict().items():
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.detach().to("cpu").contiguous().view(torch.uint8).numpy())
        config = getattr(self.decoder, "config", None)
        beside = [repr(config), self.tokenizer.describe(), self.tokenizer.config, sorted(self.eos), self.cut]
        computes = [torch.__version__, library.identity(), str(self.decoder.device)]
        return str(digest([total.hexdigest(), *beside, *computes]))

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
        planned = [
            (self._row(prompt, choice), choice)
            for prompt, each in zip(prompts, choices, strict=True)
            for choice in each
        ]
        weighed = iter(self.weigh([row for row, _ in planned if isinstance(row, Row)]))
        found = iter([self._scored(row, choice, weighed) for row, choice in planned])
        return [[next(found) for _ in each] for each in choices]

    def _scored(self, row: Row | int, choice: str, weighed: Iterator[Weighed]) -> Scored:
        if isinstance(row, int):
            why = too_long(row, self.decoder.config.max_position_embeddings)
            return Scored(logprob=-math.inf, tokens=row, characters=len(choice), greedy=None, error=why)
        logprob, greedy = next(weighed)
        return Scored(logprob=logprob, tokens=len(row.said), characters=len(choice), greedy=greedy)

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
        texts = ["".join(map(text_of, prompt.messages)) for prompt in prompts]
        ids = [self._text(text) for text in texts]
        cut = [windows(len(each) - 1, limit, stride or limit) for each in ids]
        rows = [
            Row(tuple(each[begin : begin + 1 + skip]), tuple(each[begin + 1 + skip : end + 1]))
            for each, mine in zip(ids, cut, strict=True)
            for begin, skip, end in mine
        ]
        weighed = iter(self.weigh(rows))
        totals = [sum(next(weighed).logprob for _ in mine) for mine in cut]
        return [
            Scored(logprob=total, tokens=len(each) - 1, characters=len(text), greedy=None)
            for total, each, text in zip(totals, ids, texts, strict=True)
        ]

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

    def _row(self, prompt: Example, choice: str) -> Row | int:
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
        return Row(tuple(ids[start:read]), tuple(ids[read:]))

    def _text(self, text: str) -> list[int]:
        return render((Message(role="text", content=text),), self.tokenizer)


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
