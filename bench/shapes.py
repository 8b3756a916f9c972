"""The models of the benches: shapes S and M, their operations, and what this machine can do with their matrices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tutelage.model.transformer import Decoder

STEP_TOKENS = 8192
"""Tokens per optimizer step on both sides."""


class Shape(NamedTuple):
    """A Llama with tied embeddings."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context: int = 256

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the products of a block, as a fused implementation computes them; then of the head."""
        rows = (self.heads + 2 * self.kv_heads) * (self.width // self.heads)
        block = [(self.width, rows), (self.width, self.width), (self.width, 2 * self.feed_forward)]
        return [*block, (self.feed_forward, self.width), (self.width, self.vocabulary)]

    @property
    def parameters(self) -> int:
        """Weights that a token is multiplied with; tied, so the embedding counts once, as the head."""
        *block, head = (inputs * outputs for inputs, outputs in self.matrices)
        return self.layers * sum(block) + head

    @property
    def inference(self) -> float:
        """Operations of a token's forward: 2N."""
        return 2.0 * self.parameters

    @property
    def training(self) -> float:
        """Operations of a token's forward and backward: 6N."""
        return 6.0 * self.parameters


SHAPES = {
    "S": Shape(6, 256, 4, 1, 768, 4096),
    "M": Shape(8, 512, 8, 2, 1408, 8192),
}


def build(shape: Shape, seed: int = 0) -> Decoder:
    """A decoder of random weights."""
    from tutelage.model.transformer import Decoder, DecoderConfig

    config = DecoderConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
    )
    return Decoder(config, seed=seed)


def save(shape: Shape, folder: Path, tokenizer: Path | None = None) -> Path:
    """Write random weights as Hugging Face files, which both sides load; with a tokenizer's files beside them."""
    from tutelage.model import checkpoint

    checkpoint.save(build(shape), folder, tokenizer)
    return folder


def token_rows(shape: Shape, rows: int, length: int | None = None, seed: int = 0) -> np.ndarray:
    """Random token ids [rows, length], the context long by default; special ones (below 16) left out."""
    generator = np.random.default_rng(seed)
    return generator.integers(16, shape.vocabulary, (rows, length or shape.context), dtype=np.int64)


def gemm_rate(shape: Shape, rows: int = 2048, precision: str = "float32", seconds: float = 1.5) -> float:
    """Operations per second of the best matrix product: 2048^3, or `rows` tokens through the model's own matrices.

    Each is repeated for its share of `seconds` and counted at its fastest: what the machine can do.
    """
    import torch

    sizes = [(2048, 2048, 2048)]
    sizes += [(rows, inputs, outputs) for inputs, outputs in shape.matrices]
    kind = getattr(torch, precision)
    best = 0.0
    with torch.no_grad():
        for number, inputs, outputs in sizes:
            left, right = torch.rand(number, inputs, dtype=kind), torch.rand(outputs, inputs, dtype=kind)
            end, repeated = time.perf_counter() + seconds / len(sizes), 0
            while repeated < 3 or time.perf_counter() < end:
                started = time.perf_counter()
                torch.nn.functional.linear(left, right)
                best = max(best, 2.0 * number * inputs * outputs / (time.perf_counter() - started))
                repeated += 1
    return best
