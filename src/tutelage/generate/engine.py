"""A pure stepping core that samples from the very weights in training: no thread, no clock, no randomness of its own.

Every step reads one new token of each running sequence, takes in waiting prompts (equal ones are read once, and in C
also what different ones begin with alike), and draws one token for each. Running sequences always lie in the first
slots of the cache: one that ends is replaced by the last. What a request gets depends on its prompt and seed.

Neighbours enter through rounding alone: in torch by the size of the products; in C (model/native.py) logits are a row's
own to the bit, and only a neighbour that asks for a cut or a penalty changes how all are drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import UsageError
from tutelage.core.records import Finish
from tutelage.generate.generator import Sampling
from tutelage.model.prefix import LEAST, shared
from tutelage.model.sample import Draw
from tutelage.model.steps import Steps, steps_for
from tutelage.model.transformer import Decoder
from tutelage.tokens.tokenizer import StreamDecoder, Tokenizer

COLDEST = 1e-6
"""Lower temperatures count as this one, which takes the likeliest token as surely and overflows nothing."""
_NONE: Mapping[int, Tensor] = MappingProxyType({})


class Grammar(Protocol):
    """What an answer must follow, token by token; kept by one request alone."""

    failed: str
    """Why it can not be followed on; the answer ends then, with finish `error`."""

    def allowed(self) -> Tensor:
        """[vocabulary] bool: which tokens may come next; those that end the answer where it is whole."""
        ...

    def take(self, number: int) -> None:
        """This token has come."""
        ...


class Request(NamedTuple):
    """One sequence to continue. `sampling.n` is not read: one request is one sample."""

    prompt: Sequence[int]
    sampling: Sampling = Sampling()
    seed: int | None = None
    """None: `sampling.seed`."""
    text: bool = False
    """Whether tokens bring their text; implied by stop strings."""
    salt: str = ""
    """Only prompts of the same salt are read together, so that none can tell what another begins with."""
    priority: int = 0
    """The higher, the sooner it is let in; what runs is not interrupted."""
    grammar: Grammar | None = None
    """What the answer must follow."""
    top_logprobs: int = 0
    """So many likeliest tokens are told with each token."""


class Token(NamedTuple):
    """One new token of one request."""

    request: int
    id: int
    logprob: float
    """Nats, under softmax(logits / temperature) of the whole vocabulary, before any penalty or cut; at temperature 0
    under softmax(logits)."""
    text: str = ""
    """What may be shown now: whole characters, and nothing that may yet become a stop string."""
    hidden: Mapping[int, Tensor] = _NONE
    """Layer -> [width]: the states this token was predicted from, for the layers asked for."""
    finish: Finish | None = None
    own: str = ""
    """What this token adds to the text, whether or not it may be shown yet."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place with their log-probabilities, as `logprob` is meant."""


class Completion(NamedTuple):
    """All tokens of one request, with the end token if there was one."""

    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    text: str


@dataclass(slots=True)
class _Row:
    """A running request."""

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    noise: Tensor
    layers: tuple[int, ...]
    stream: StreamDecoder | None
    limit: int
    """Tokens it may get: what was asked for, as far as there is room."""
    request: Request
    held: str = ""
    count: int = 0


class Engine:
    """Continuous batching over a cache of `max_batch` slots of `capacity` tokens (default: the model's context).

    The weights may change while nothing runs. `int8`: on a CPU, with its matrices rounded to int8: faster for few rows,
    and another model by a little.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        eos: Collection[int] = (),
        max_batch: int = 64,
        capacity: int | None = None,
        tokenizer: Tokenizer | None = None,
        prefill_tokens: int = 4096,
        int8: bool = False,
    ) -> None:
        config = decoder.config
        context = config.max_position_embeddings
        self.decoder, self.eos, self.tokenizer = decoder, frozenset(eos), tokenizer
        self.max_batch, self.capacity = max_batch, min(capacity or context, context)
        self.prefill_tokens = prefill_tokens
        self._steps = steps_for(decoder, max_batch, self.capacity, int8=int8)
        weight = decoder.head_weight
        self._dtype = weight.dtype
        self._lengths = torch.zeros(max_batch, dtype=torch.long, device=weight.device)
        self._last = torch.zeros(max_batch, dtype=torch.long, device=weight.device)
        self._noise = torch.zeros(max_batch, self.capacity + 1, device=weight.device)
        self._counts = torch.zeros(max_batch, dtype=torch.long, device=weight.device)
        self._seen = torch.zeros(max_batch, self.capacity + 1, dtype=torch.long, device=weight.device)
        self._rows: list[_Row] = []
        self._waiting: deque[_Row] = deque()
        self._next = 0
        self._how = Draw(None)
        self._least: list[tuple[int, int]] = []

    @property
    def steps(self) -> Steps:
        """The model and its cache; for others while the engine is idle."""
        return self._steps

    @property
    def busy(self) -> bool:
        """Whether any request runs or waits."""
        return bool(self._rows or self._waiting)

    def submit(self, request: Request, layers: Sequence[int] = ()) -> int:
        """Queue a request; returns its number. `layers`: hidden states wanted with each token.

        Raises UsageError for a prompt that is empty, longer than the context, or not of this vocabulary, and for a
        layer that is not there.
        """
        prompt, sampling = tuple(request.prompt), request.sampling
        self.decoder.check_layers(layers)
        if not prompt:
            raise UsageError("a prompt needs at least one token")
        if len(prompt) > self.capacity:
            raise UsageError(f"a prompt of {len(prompt)} tokens is longer than the context of {self.capacity}")
        if not 0 <= min(prompt) <= max(prompt) < self.decoder.config.vocab_size:
            raise UsageError(f"token ids must be within 0 .. {self.decoder.config.vocab_size - 1}")
        needs_text = request.text or bool(sampling.stop)
        if needs_text and self.tokenizer is None:
            raise UsageError("text and stop strings need an engine with a tokenizer")
        stream = self.tokenizer.stream() if needs_text and self.tokenizer is not None else None
        seed = sampling.seed if request.seed is None else request.seed
        limit = min(sampling.max_tokens, self.capacity + 1 - len(prompt))
        row = _Row(self._next, prompt, sampling, self._uniforms(seed, sampling), tuple(layers), stream, limit, request)
        place = len(self._waiting)
        while place and self._waiting[place - 1].request.priority < request.priority:
            place -= 1
        self._waiting.insert(place, row)
        self._next += 1
        return row.number

    def cancel(self, request: int) -> None:
        """Forget a request, wherever it is; its slot is free for the next step. Unknown numbers are ignored."""
        self._waiting = deque(row for row in self._waiting if row.number != request)
        for slot, row in enumerate(self._rows):
            if row.number == request:
                self._retire(slot)
                self._describe()
                return

    @torch.no_grad()
    def step(self) -> list[Token]:
        """Advance every running request by one token, admitting waiting ones first; [] when there is nothing to do."""
        running = len(self._rows)
        fresh = self._admit()
        rows = self._rows
        if not rows:
            return []
        taps = sorted({layer for row in rows for layer in row.layers})
        prompts: dict[tuple[int, ...], list[int]] = {}
        for slot, row in enumerate(rows[running:], running):
            prompts.setdefault(row.prompt, []).append(slot)
        logits, states = self._steps.read(self._last[:running], self._lengths[:running], prompts, taps)
        self._lengths[:running] += 1
        if fresh:
            self._describe()
        count = len(rows)
        how = self._drawn(count)
        tops = self._tops(logits)
        ids, logprobs = self._steps.draw(logits, how)
        if how.seen is not None:
            self._seen[:count].scatter_(1, self._lengths[:count, None], ids[:, None])
        self._last[:count] = ids
        self._counts[:count] += 1
        return self._deliver(ids.tolist(), logprobs.tolist(), states, tops)

    # ------------------------------------------------------------------------------------------------------- admission

    def _admit(self) -> bool:
        """Move waiting requests into free slots, within a step's budget of prompt tokens; True if any came in.

        Those that come in together are of the first one's salt: what prompts share is found among them alone, and no
        tenant can tell from the time its answer takes what another's prompt begins with.
        """
        read: set[tuple[int, ...]] = set()
        budget, before = self.prefill_tokens, len(self._rows)
        latest: tuple[int, ...] = ()
        salt, passed = self._waiting[0].request.salt if self._waiting else "", deque[_Row]()
        while self._waiting and len(self._rows) < self.max_batch:
            row = self._waiting[0]
            if row.request.salt != salt:
                if passed and passed[0].request.priority != row.request.priority:
                    break
                passed.append(self._waiting.popleft())
                continue
            if passed and passed[0].request.priority != row.request.priority:
                break  # what may go first goes first
            cost = 0 if row.prompt in read else len(row.prompt)
            if cost and self._steps.shares:
                alike = shared(latest, row.prompt)
                cost -= alike if alike >= LEAST else 0
            if cost > budget and read:
                break
            budget, latest = budget - cost, row.prompt
            read.add(row.prompt)
            slot = len(self._rows)
            self._rows.append(self._waiting.popleft())
            self._lengths[slot] = len(row.prompt)
            self._noise[slot, : len(row.noise)] = row.noise
            self._counts[slot] = 0
            if row.sampling.repetition_penalty != 1:
                self._seen[slot] = row.prompt[0]  # what a longer neighbour makes room for says nothing new
                self._seen[slot, : len(row.prompt)] = torch.tensor(row.prompt)
        self._waiting.extendleft(reversed(passed))
        return len(self._rows) > before

    def _uniforms(self, seed: int, sampling: Sampling) -> Tensor:
        """One number in [0, 1) for each token the request may draw, by the seed alone; -1: it takes the likeliest."""
        if sampling.temperature == 0:
            return torch.full((min(sampling.max_tokens, self.capacity + 1),), -1.0)
        source = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1)))
        return torch.from_numpy(source.random(min(sampling.max_tokens, self.capacity + 1), dtype=np.float32))

    # -------------------------------------------------------------------------------------------------------- drawing

    def _describe(self) -> None:
        """What the running rows ask of the draw, as tensors; made anew when rows come or go."""
        asked = [row.sampling for row in self._rows]
        device = self._last.device

        def column(values: list[float], neutral: float, dtype: torch.dtype) -> Tensor | None:
            off = all(value == neutral for value in values)
            return None if off else torch.tensor(values, dtype=dtype, device=device)

        self._least = [(slot, each.min_tokens) for slot, each in enumerate(asked) if each.min_tokens]
        greedy = [each.temperature == 0 for each in asked]
        self._how = Draw(
            uniforms=None if all(greedy) else self._noise,
            cold=column([1 / max(each.temperature or 1.0, COLDEST) for each in asked], 1.0, self._dtype),
            greedy=torch.tensor(greedy, device=device) if any(greedy) and not all(greedy) else None,
            top_k=column([each.top_k for each in asked], 0, torch.long),
            top_p=column([each.top_p for each in asked], 1.0, self._dtype),
            min_p=column([each.min_p for each in asked], 0.0, self._dtype),
            repetition_penalty=column([each.repetition_penalty for each in asked], 1.0, self._dtype),
        )

    def _drawn(self, count: int) -> Draw:
        how = self._how
        if how.uniforms is not None:
            how = how._replace(uniforms=self._noise[:count].gather(1, self._counts[:count, None])[:, 0])
        if how.repetition_penalty is not None:
            span = max(len(row.prompt) + row.count for row in self._rows)
            how = how._replace(seen=self._seen[:count, :span])
        early = [slot for slot, least in self._least if self._rows[slot].count < least]
        ruled = [(slot, row.request.grammar) for slot, row in enumerate(self._rows) if row.request.grammar is not None]
        if (early and self.eos) or ruled:
            banned = torch.zeros(count, self.decoder.config.vocab_size, dtype=torch.bool, device=self._last.device)
            for slot, grammar in ruled:
                banned[slot] = ~grammar.allowed().to(banned.device)
            if early:
                banned[torch.tensor(early)[:, None], torch.tensor(sorted(self.eos))] = True
            how = how._replace(banned=banned)
        return how

    def _tops(self, logits: Tensor) -> dict[int, tuple[tuple[int, float], ...]]:
        """Slot -> its likeliest tokens, for those who asked for them; the logits are not touched."""
        found = {}
        for slot, row in enumerate(self._rows):
            if row.request.top_logprobs:
                cold = 1 / max(row.sampling.temperature, COLDEST) if row.sampling.temperature else 1.0
                told = (logits[slot, : self.decoder.config.vocab_size] * cold).log_softmax(-1)
                values, ids = told.topk(min(row.request.top_logprobs, len(told)))
                found[slot] = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return found

    # ------------------------------------------------------------------------------------------------------- delivery

    def _deliver(
        self,
        ids: list[int],
        logprobs: list[float],
        states: dict[int, Tensor],
        tops: Mapping[int, tuple[tuple[int, float], ...]],
    ) -> list[Token]:
        tokens, ended = [], []
        for slot, (row, number, logprob) in enumerate(zip(self._rows, ids, logprobs, strict=True)):
            row.count += 1
            finish: Finish | None = None
            if number in self.eos:
                finish = "stop"
            elif row.count >= row.limit:
                finish = "length"
            if row.request.grammar is not None:
                if finish != "stop":
                    row.request.grammar.take(number)
                finish = "error" if row.request.grammar.failed else finish
            text = own = ""
            if row.stream is not None:
                own = row.stream.push(number) + (row.stream.close() if finish is not None else "")
                text, finish = _text(row, own, finish)
            hidden = {layer: states[layer][slot] for layer in row.layers} if row.layers else _NONE
            tokens.append(Token(row.number, number, logprob, text, hidden, finish, own, tops.get(slot, ())))
            if finish is not None:
                ended.append(slot)
        if ended:
            for slot in reversed(ended):
                self._retire(slot)
            self._describe()
        return tokens

    def _retire(self, slot: int) -> None:
        """Free a slot; the last running row moves into it."""
        last = len(self._rows) - 1
        row = self._rows.pop()
        if slot == last:
            return
        self._rows[slot] = row
        self._steps.copy(last, [slot], len(row.prompt) + row.count)
        for state in (self._lengths, self._last, self._noise, self._counts, self._seen):
            state[slot] = state[last]


def _text(row: _Row, own: str, finish: Finish | None) -> tuple[str, Finish | None]:
    """What of a row's text may leave now. A stop string ends it; what may become one is held until it is decided."""
    text = row.held + own
    found = [place for place in (text.find(stop) for stop in row.sampling.stop) if place >= 0]
    if found:
        return text[: min(found)], "stop"
    if finish is not None:
        return text, finish
    hold = max((_overlap(text, stop) for stop in row.sampling.stop), default=0)
    row.held = text[len(text) - hold :]
    return text[: len(text) - hold], None


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def complete(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Run requests to their ends and return them in their order. The engine must be idle.

    Long prompts go first, so that rows which run together are of similar length.
    """
    if engine.busy:
        raise UsageError("the engine is at work on other requests")
    order = sorted(range(len(requests)), key=lambda place: -len(requests[place].prompt))
    numbers = {place: engine.submit(requests[place]) for place in order}
    done = {number: Completion([], [], "length", "") for number in numbers.values()}
    while engine.busy:
        for number, token, logprob, text, _, finish, *_ in engine.step():
            so_far = done[number]
            so_far.tokens.append(token)
            so_far.logprobs.append(logprob)
            if text or finish is not None:
                done[number] = so_far._replace(text=so_far.text + text, finish=finish or "length")
    return [done[numbers[place]] for place in range(len(requests))]
