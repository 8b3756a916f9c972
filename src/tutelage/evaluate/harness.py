"""A model of ours as an `LM` of lm-evaluation-harness, which is an extra: nothing else imports this file.

Requests mean here what they mean to its Hugging Face backend (the same ids, the same cuts, the same ends), so the same
checkpoint gets the same numbers; they are answered by our engine, where what requests begin with alike is read once.
Strings are all the harness knows: with a chat template, a special token that somebody wrote into a question counts as
one, as it does there. `tutelage evaluate` gives ids instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tutelage.core.errors import UsageError
from tutelage.core.records import digest
from tutelage.generate.engine import Request, complete
from tutelage.generate.generator import Sampling, seed_of
from tutelage.generate.local import LocalGenerator, open_model
from tutelage.generate.score import Row
from tutelage.tokens.chat import render_text

TAKEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Settings of a generation that are passed on; another one is refused."""


class TutelageLM(TemplateLM):  # type: ignore[misc]
    """Answers the three kinds of request of lm-evaluation-harness.

    Args:
        pretrained: a generator, or a reference to a model: a folder of Hugging Face files, `hf:org/name`.
        max_gen_toks: tokens of an answer where a task names no number.
        seed: of what is sampled; an answer depends on it, on its prompt and on which answer to that prompt it is.
    """

    backend = "causal"

    def __init__(self, pretrained: LocalGenerator | str, max_gen_toks: int = 256, seed: int = 0, **_: Any) -> None:
        super().__init__()
        self.generator = open_model(pretrained) if isinstance(pretrained, str) else pretrained
        self.max_gen_toks, self.seed = int(max_gen_toks), int(seed)
        self.truncated = 0
        """Requests that lost their beginning because they did not fit the context, as the harness has it."""

    # ----------------------------------------------------------------------------------------------- what it is made of

    @property
    def eot_token_id(self) -> int:
        return self.generator.tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        return self.generator.tokenizer.bos

    @property
    def max_length(self) -> int:
        return self.generator.decoder.config.max_position_embeddings

    @property
    def tokenizer_name(self) -> str:
        """A fingerprint of tokenizer and template, so that requests kept for another one are never taken."""
        tokenizer = self.generator.tokenizer
        return str(digest([tokenizer.describe(), tokenizer.template]))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise UsageError(f"this model has one chat template, none named {chat_template!r}", key="chat_template")
        return self.generator.tokenizer.template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return render_text(chat_history, self.generator.tokenizer, add_generation_prompt)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused: the harness keeps answers under the request alone, and would serve one model's as another's
        (its issues 2715 and 4063). `tutelage evaluate` keeps them under the model's own hash."""
        if getattr(cache_hook, "dbdict", None) is not None:
            raise UsageError(
                "the cache of lm-evaluation-harness does not know which model answered (its issue 2715)",
                key="use_cache",
                todo="Leave use_cache out; `tutelage evaluate` keeps answers by the model's hash",
            )
        self.cache_hook = cache_hook

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokenizer = self.generator.tokenizer
        framed = add_special_tokens
        if framed is None:
            framed = not has_bos_prefix(string, tokenizer.decode([self.prefix_token_id], skip_special=False))
        return tokenizer.encode_marked(string, framed=framed)

    # ---------------------------------------------------------------------------------------------------- the requests

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        rows = [self._row(read, said) for _, read, said in requests]
        return [(found.logprob, found.greedy) for found in self.generator.weigh(rows)]

    def _row(self, read: list[int], said: list[int]) -> Row:
        """What does not fit loses its beginning."""
        if len(said) > self.max_length:
            raise UsageError(f"a continuation of {len(said)} tokens is longer than the context of {self.max_length}")
        over = max(0, len(read) + len(said) - 1 - self.max_length)
        self.truncated += over > 0
        return Row(tuple(read[over:]), tuple(said))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        rows: list[Row] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for read, said in map(make_disjoint_window, windows):
                rows.append(Row(tuple(read), tuple(said)))
                owners.append(place)
        totals = [0.0] * len(requests)
        for owner, found in zip(owners, self.generator.weigh(rows), strict=True):
            totals[owner] += found.logprob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        eos = self.generator.tokenizer.decode([self.eot_token_id], skip_special=False)
        asked: list[Request] = []
        stops: list[list[str]] = []
        seen: dict[str, int] = {}
        for request in requests:
            context, given = request.args
            settings = normalize_gen_kwargs(given, self.max_gen_toks)
            until = handle_stop_sequences(settings.pop("until", None), eos=eos)
            sampling = _sampling(settings, [each for each in until if each], self.seed)
            room = self.max_length - sampling.max_tokens
            if room < 1:
                raise UsageError(
                    f"an answer of {sampling.max_tokens} tokens leaves no room for a prompt in the context of "
                    f"{self.max_length}",
                    key="max_gen_toks",
                )
            ids = self.tok_encode(context) or [self.prefix_token_id]
            self.truncated += len(ids) > room
            sample = seen[context] = seen.get(context, -1) + 1
            asked.append(Request(tuple(ids[-room:]), sampling, seed_of(self.seed, context, sample)))
            stops.append(until)
        need = max((len(each.prompt) + each.sampling.max_tokens for each in asked), default=0)
        done = complete(self.generator.engine(need), asked) if asked else []
        texts = [self.generator.tokenizer.decode(each.tokens) for each in done]
        return [postprocess_generated_text(text, until, None) for text, until in zip(texts, stops, strict=True)]


def _sampling(settings: Mapping[str, Any], until: Sequence[str], seed: int) -> Sampling:
    """A task's settings of a generation. Raises UsageError for one that means nothing here."""
    known = dict(settings)
    most, sampled = int(known.pop("max_gen_toks")), bool(known.pop("do_sample", False))
    known.pop("max_length", None)
    taken = {name: known.pop(name) for name in TAKEN if known.get(name) is not None}
    if left := sorted(name for name, value in known.items() if value is not None):
        raise UsageError(f"{left[0]!r} is no setting of a generation here", key="generation_kwargs")
    if not sampled:
        taken = {"temperature": 0.0, **{name: taken[name] for name in taken if name == "repetition_penalty"}}
    return Sampling(max_tokens=most, seed=seed, stop=tuple(until), **taken)
