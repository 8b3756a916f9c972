"""What a stage can be told that trains one decoder, of any size: precision, what is kept for the backward, ranks."""

from __future__ import annotations

from typing import Literal

import torch

from tutelage.core.errors import ConfigError
from tutelage.model.transformer import Decoder
from tutelage.train.device import ranks
from tutelage.train.loop import Training
from tutelage.train.parallel import divided


class Scalable(Training):
    """Training of a decoder that may be large."""

    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """What the layers multiply in; weights, optimizer, residual stream and head stay fp32. `auto`: what the plan
    measured to be faster on this machine, fp32 where nothing was planned."""
    activations: Literal["auto", "keep", "recompute"] = "keep"
    """What the forward leaves for the backward: everything, or each layer's input alone, at the price of a second
    forward. `auto`: recompute where the plan finds that everything would not fit; keep where nothing was planned."""

    def placed(self, model: Decoder, device: torch.device) -> Decoder:
        """The model on its device, computing as told, divided among the ranks.

        Raises ConfigError for what another architecture, or an adapter on several ranks, cannot do.
        """
        told = {"precision": self.precision == "bf16", "activations": self.activations == "recompute"}
        for key in (key for key, asked in told.items() if asked and type(model) is not Decoder):
            raise ConfigError(f"a model of another architecture has no choice of {key}", key=key)
        if self.lora and ranks() > 1:
            raise ConfigError("an adapter learns in one process", key="lora", todo="Leave out --ranks, or `lora: 0`")
        model.bf16, model.recompute = self.precision == "bf16", self.activations == "recompute"
        return divided(model.to(device))
