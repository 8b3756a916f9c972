"""Bits per byte of a text: comparable between tokenizers, unlike perplexity per token."""

from __future__ import annotations

import math

from tutelage.core.records import Example
from tutelage.evaluate.suite import prompt_of
from tutelage.evaluate.suites.figure import Figure, unknown
from tutelage.generate.generator import Scored


def read(item: Example, scored: Scored) -> Figure:
    """The figure of one document: `bits_per_byte`, and the sums behind it, from which a corpus' figure is made.

    Bytes are those that were weighed: an endpoint may leave the first token of a text out.
    """
    text = prompt_of(item)
    size = len(text[len(text) - scored.characters :].encode())
    if not size or not math.isfinite(scored.logprob):
        why = "the text has no finite log-likelihood" if size else "no token of it could be weighed"
        return unknown(why if text else "the text is empty")
    bits = -scored.logprob / math.log(2)
    scores = {"bits_per_byte": bits / size, "bits": bits, "bytes": float(size), "tokens": float(scored.tokens)}
    return Figure(bits / size, "answered", "", scores)
