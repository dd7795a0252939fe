"""A small perceptron for tests and for trying engines: any tensor in, ten scores out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

OPTIONS = {"input_shape": [16], "hidden": 32}


class Perceptron(nn.Module):
    """(n, ...) with `inputs` numbers a sample -> (n, 10)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes."""
        return self.last(torch.relu(self.first(x.flatten(1))))


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network for samples of `input_shape`; it has no channels."""
    return Perceptron(math.prod(options["input_shape"]), int(options["hidden"]))
