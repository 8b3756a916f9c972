"""JSON under a schema, token by token: which tokens may come next so that the answer stays one that fulfils it.

llguidance (Moskal et al., Microsoft; derivatives of regular expressions and an Earley parser over the tokens' bytes)
gives the mask. What of a schema it does not know it refuses by name, and so do we.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import MissingExtra, UsageError
from tutelage.tokens.tokenizer import Tokenizer

COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write each value: spaces between values would let an answer go on for ever."""
LONGEST_SCHEMA = 65_536
"""Characters."""


class JsonGrammar:
    """Where one answer stands."""

    def __init__(self, matcher: Any, size: int, ends: Collection[int], end: int) -> None:
        self._matcher, self._ends, self._end = matcher, sorted(ends), end
        self._mask = np.zeros((1, (size + 31) // 32), dtype=np.int32)
        self._size = size
        self.failed = ""
        """Why the schema can not be followed on, where it can not."""

    def allowed(self) -> Tensor:
        """[vocabulary] bool: which tokens may come next; those that end the answer where it is whole, or has failed."""
        found, whole = np.zeros(self._size, dtype=bool), True
        if not self.failed and not self._matcher.is_stopped():
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            self._check()
            found = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")[: self._size].astype(bool)
            whole = bool(found[self._end])
        if not self.failed and not whole and not found.any():
            self.failed = "no token goes on"
        found[self._ends] = whole or bool(self.failed)
        return torch.from_numpy(found)

    def take(self, number: int) -> None:
        """This token has come."""
        if not self.failed:
            self._matcher.consume_token(number)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            self.failed = _short(self._matcher)


def grammar_for(
    tokenizer: Tokenizer, ends: Collection[int], schema: dict[str, Any] | None, size: int | None = None
) -> JsonGrammar:
    """A fresh grammar for one answer; None: any object. `ends`: tokens that end it; `size`: of the model's vocabulary.

    Raises UsageError for a schema that is none, is too large, or asks for what llguidance does not know.
    """
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "llguidance", "train") from None
    text = json.dumps({"type": "object"} if schema is None else schema)
    if len(text) > LONGEST_SCHEMA:
        raise UsageError(f"a schema has at most {LONGEST_SCHEMA} characters", key="response_format")
    total, end = size or tokenizer.size, min(ends)
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=COMPACT)
    except ValueError as error:
        raise UsageError(f"not a JSON schema: {_line(error)}", key="response_format") from None
    matcher = LLMatcher(_vocabulary(tokenizer, total, end), grammar, log_level=0)
    if matcher.is_error():
        raise UsageError(f"the schema can not be followed: {_short(matcher)}", key="response_format")
    return JsonGrammar(matcher, total, ends, end)


class _Words:
    """The tokens' bytes, as llguidance asks for them."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], end: int) -> None:
        self.eos_token_id, self.bos_token_id = end, None
        self.tokens = pieces
        self.special_token_ids = sorted(tokenizer.specials)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("texts, not bytes")
        return self._tokenizer.encode(text)


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, size: int, end: int) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    pieces = tokenizer.pieces
    if pieces is None:
        raise UsageError("JSON under a schema needs a byte-level tokenizer", key="response_format")
    specials = tokenizer.specials
    named = [piece or specials.get(place, "").encode() for place, piece in enumerate(pieces)]
    named += [b""] * (size - len(named))
    return LLTokenizer(TokenizerWrapper(_Words(tokenizer, named, end)), n_vocab=size, eos_token=end)


def _short(matcher: Any) -> str:
    return _line(matcher.get_error())


def _line(error: object) -> str:
    return str(error).splitlines()[0][:200] if str(error) else "no reason given"
