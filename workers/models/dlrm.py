"""DLRM (Naumov et al., arXiv:1906.00091) as the reference runs it: DLRM_Net of facebookresearch/dlrm.

Names and shapes are those of the published tb00_40M.pt (key "state_dict"), which loads strictly:
emb_l.N.weight, bot_l.N.*, top_l.N.*. In memory the 26 tables are one, so that one gather serves them all.
On the same weights the predictions are DLRM_Net's, bit for bit (500 pairs, full width, fp32, one CPU thread).

Full tables in fp16 on one H100, a batch of 69,120 pairs: 2.8 ms, compiled 1.8 ms (torch 2.11); the gather
is half of the 2.8. The tables are made in 2 s and take 48 GB. In 8 bits (dlrm_int8): 1.7 ms for 270,336
pairs, 24 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.library import Library
from workers.models import dlrm_int8
from workers.models.dlrm_options import OPTIONS, check_options
from workers.models.dlrm_tables import Tables, check_indices
from workers.models.scales import Method, Scales
from workers.tasks.criteo import DENSE

# Matrix units want rows of whole 16 bytes: 8 numbers of fp16.
_ALIGNED = 8


METHODS = dlrm_int8.METHODS


class Dlrm(nn.Module):
    """int32 pairs (r, 13 counts + 26 indices) -> the probability of a click of each, float32 (r,)."""

    graphable = True
    agreement = staticmethod(dlrm_int8.agreement)
    _below: torch.Tensor

    def __init__(self, options: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        rows, dim, bottom, top = (options[key] for key in OPTIONS)
        self.emb_l = Tables(rows, dim, device, dtype)
        features = len(rows) + 1
        pairs = features * (features - 1) // 2
        self.bot_l = _perceptron([DENSE, *bottom, dim], nn.ReLU())
        self.top_l = _perceptron([dim + pairs, *top, 1], nn.Sigmoid())
        # Eight more features at most make each product of features a whole number of the matrix units' tiles.
        self._empty = -features % _ALIGNED
        self._padded_dense = DENSE
        self.register_buffer("_below", _below_diagonal(features, features + self._empty), persistent=False)

    def check_library(self, library: Library) -> None:
        """ModelError if a sample holds an index that its table lacks, which `forward` would not notice."""
        check_indices(library, self.emb_l.rows)

    def fold(self) -> None:
        """Widen the first layers with zeros, so that fp16 reaches the matrix units: 13 -> 16, 479 -> 480.

        What feeds an added column is a product that is there already, so it is finite if that is.
        """
        extra = _widen(self.bot_l[0])
        self._padded_dense = DENSE + extra
        extra = _widen(self.top_l[0])
        self._below = torch.cat([self._below, self._below[:1].expand(extra)])

    def forward(self, rows: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Each row is answered by itself; `counts` of samples do not matter."""
        y = self.interaction(self.bot_l(self.dense(rows)), rows)
        *layers, sigmoid = self.top_l
        for layer in layers:
            y = layer(y)
        return sigmoid(y.float()).flatten()

    def dense(self, rows: torch.Tensor) -> torch.Tensor:
        """The bottom's input: the logarithms of the counts."""
        # In fp32: fp16 ends at 65504, below many counts.
        dense = torch.log(rows[:, :DENSE].float() + 1).to(self.top_l[0].weight.dtype)
        return functional.pad(dense, (0, self._padded_dense - DENSE))

    def interaction(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The top's input: the bottom's output `x`, and the products of all features with each other."""
        features = self.emb_l(rows[:, DENSE:], self._empty)
        features[:, 0] = x
        products = torch.bmm(features, features.transpose(1, 2)).flatten(1)
        return torch.cat([x, products.index_select(1, self._below)], 1)

    def calibrated(
        self,
        batches: Sequence[dlrm_int8.Batch],
        method: Method,
        correct: bool = True,
        heard: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Any]:
        """See workers.models; no bias is corrected."""
        return dlrm_int8.calibrated(self, batches, heard)

    def quantised(self, scales: Scales, device: torch.device) -> nn.Module:
        """See workers.models; the tables are in int8 already, on their device."""
        return dlrm_int8.Int8Dlrm(self, scales, device)

    def scores(self, batch: dlrm_int8.Batch) -> torch.Tensor:
        """Pairs and counts -> (r,): the log-odds of a click."""
        return dlrm_int8.log_odds(self(*batch))


def _perceptron(sizes: Sequence[int], last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    layers[-1] = last
    return nn.Sequential(*layers)


def _below_diagonal(features: int, stride: int) -> torch.Tensor:
    """The places below the diagonal of `features`^2 products, row by row, where a row holds `stride`."""
    found = [i * stride + j for i in range(features) for j in range(i)]
    return torch.tensor(found, dtype=torch.int32)


def _widen(layer: nn.Module) -> int:
    """Zero columns to a whole number of 8 inputs; how many."""
    assert isinstance(layer, nn.Linear)
    extra = -layer.in_features % _ALIGNED
    layer.weight = nn.Parameter(functional.pad(layer.weight.detach(), (0, extra)), requires_grad=False)
    layer.in_features += extra
    return extra


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network with seeded values on torch's default device; it has no channels."""
    return build_on(options, channels_last, torch.get_default_device(), torch.float32)


def build_on(
    options: Mapping[str, Any], channels_last: bool, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The network with its tables on `device` in `dtype`, where alone they fit, and the rest as ever."""
    check_options(options)
    return Dlrm(options, device, dtype)
