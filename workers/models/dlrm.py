"""DLRM (Naumov et al., arXiv:1906.00091) as the reference runs it: DLRM_Net of facebookresearch/dlrm.

Names and shapes are those of the published tb00_40M.pt (key "state_dict"), which loads strictly:
emb_l.N.weight, bot_l.N.*, top_l.N.*. In memory the 26 tables are one, so that one gather serves them all.
On the same weights the predictions are DLRM_Net's, bit for bit (500 pairs, full width, fp32, one CPU thread).

Full tables in fp16 on one H100, a batch of 69,120 pairs: 2.8 ms, compiled 1.8 ms (torch 2.11); the gather
is half of the 2.8. The tables are made in 2 s and take 48 GB.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.library import Library
from workers.models import ModelError
from workers.models.seeded import fill_uniform_
from workers.tasks.criteo import DENSE, TABLE_ROWS

# As main.py (get_backend) has them; bottom and top: sizes of the layers between input and output.
OPTIONS: dict[str, Any] = {
    "rows": list(TABLE_ROWS),
    "dim": 128,
    "bottom": [512, 256],
    "top": [1024, 1024, 512, 256],
}
_COPY_ROWS = 1 << 22  # at a time, from a checkpoint that may be of another type and on another device
# Without a checkpoint the tables hold this seed's values, rows of length 1 at most.
_TABLE_SEED = 1
# Matrix units want rows of whole 16 bytes: 8 numbers of fp16.
_ALIGNED = 8


class Tables(nn.Module):
    """Embedding tables stored as one, that are loaded and saved as `N.weight` each."""

    def __init__(self, rows: Sequence[int], dim: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows = list(rows)
        self.table = nn.Parameter(_empty_table(sum(rows), dim, device, dtype), requires_grad=False)
        firsts = torch.tensor([0, *rows[:-1]], dtype=torch.int64).cumsum(0)
        # 64 bits: torch.compile multiplies places by `dim` in the type that they have.
        self.register_buffer("firsts", firsts, persistent=False)
        self.register_buffer("lasts", torch.tensor(rows, dtype=torch.int32) - 1, persistent=False)
        if not self.table.is_meta:
            fill_uniform_(self.table, 1 / math.sqrt(dim), _TABLE_SEED)

    def _parts(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        for number, part in enumerate(self.table.split(self.rows)):
            yield f"{prefix}{number}.weight", part

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, part in self._parts(prefix):
            destination[name] = part.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Copy each table into its place: a checkpoint of 96 GB is never twice in memory."""
        mine = dict(self._parts(prefix))
        missing_keys += [name for name in mine if name not in state_dict]
        if strict:
            unexpected_keys += [name for name in state_dict if name.startswith(prefix) and name not in mine]
        for name in mine.keys() & state_dict.keys():
            given = state_dict[name]
            if given.shape != mine[name].shape:
                shapes = f"{tuple(given.shape)} instead of {tuple(mine[name].shape)}"
                error_msgs.append(f"{name} has the shape {shapes}")
                continue
            with torch.no_grad():
                for to, part in zip(mine[name].split(_COPY_ROWS), given.split(_COPY_ROWS), strict=True):
                    to.copy_(part)

    def forward(self, indices: torch.Tensor, empty: int) -> torch.Tensor:
        """int32 (r, tables) -> (r, 1 + tables + empty, dim); places 0 and the last `empty` hold what comes.

        An index outside its table, as padded rows may have, reads the table's nearest row.
        """
        inside = torch.minimum(indices, self.lasts).clamp_(min=0) + self.firsts
        places = functional.pad(inside, (1, empty))
        return functional.embedding(places, self.table)


class Dlrm(nn.Module):
    """int32 pairs (r, 13 counts + 26 indices) -> the probability of a click of each, float32 (r,)."""

    graphable = True
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
        if "largest.npy" not in library.files:  # made samples: their answers mean nothing
            return
        largest, rows = library.array("largest").tolist(), self.emb_l.rows
        if len(largest) != len(rows):
            raise ModelError(f"model 'dlrm' has {len(rows)} tables, the data set {len(largest)} features")
        for number, (index, size) in enumerate(zip(largest, rows, strict=True)):
            if index >= size:
                wrong = f"table {number} has {size} rows and the data set index {index}"
                mend = "set backend.options.rows and task.max_ind_range to those of the weights"
                raise ModelError(f"model 'dlrm': {wrong}; {mend}")

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
        kind = self.top_l[0].weight.dtype
        # In fp32: fp16 ends at 65504, below many counts.
        dense = torch.log(rows[:, :DENSE].float() + 1).to(kind)
        if self._padded_dense != DENSE:
            dense = functional.pad(dense, (0, self._padded_dense - DENSE))
        x = self.bot_l(dense)
        features = self.emb_l(rows[:, DENSE:], self._empty)
        features[:, 0] = x
        products = torch.bmm(features, features.transpose(1, 2)).flatten(1)
        chosen = products.index_select(1, self._below)
        y = torch.cat([x, chosen], 1)
        *layers, sigmoid = self.top_l
        for layer in layers:
            y = layer(y)
        return sigmoid(y.float()).flatten()


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


def _empty_table(rows: int, dim: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Memory for the tables; ModelError if this machine's cannot hold them, before it is swamped."""
    size = rows * dim * dtype.itemsize
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        if device.type == "cpu" and size > memory:
            raise RuntimeError(f"this machine has {memory / 1e9:.0f} GB")
        return torch.empty(rows, dim, device=device, dtype=dtype)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise ModelError(
            f"model 'dlrm': its tables of {rows} rows take {size / 1e9:.1f} GB in {dtype} on {device}: {why}"
            "; use precision: fp16 on a GPU of 80 GB, or smaller tables (backend.options.rows)"
        ) from None


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network with seeded values on torch's default device; it has no channels."""
    return build_on(options, channels_last, torch.get_default_device(), torch.float32)


def build_on(
    options: Mapping[str, Any], channels_last: bool, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The network with its tables on `device` in `dtype`, where alone they fit, and the rest as ever."""
    for key in ("rows", "bottom", "top"):
        value = options[key]
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(type(n) is int and n > 0 for n in value)
        ):
            raise ModelError(
                f"model 'dlrm': backend.options.{key} must be a list of positive numbers, not {value!r}"
            )
    if type(options["dim"]) is not int or options["dim"] < 1:
        raise ModelError(
            f"model 'dlrm': backend.options.dim must be a positive number, not {options['dim']!r}"
        )
    return Dlrm(options, device, dtype)
