"""A DLRM to quantise: weights as DLRM's own initialisation draws them, tables that are bell-shaped, pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from workers.models import open_model
from workers.models.scales import Scales
from workers.tasks.criteo import TABLE_ROWS, random_rows

NARROW: dict[str, Any] = {
    "rows": [min(rows, 300) for rows in TABLE_ROWS],
    "dim": 16,
    "bottom": [32, 24],
    "top": [64, 40, 24],
}
CPU = torch.device("cpu")


def made_pairs(count: int, rows: list[int], seed: int) -> torch.Tensor:
    """int32 (count, 39) within tables of `rows`."""
    found = random_rows(np.random.default_rng(seed), count)
    found[:, 13:] %= np.array(rows)
    return torch.from_numpy(found)


def made_state(options: dict[str, Any], seed: int = 1) -> dict[str, torch.Tensor]:
    """A checkpoint by the published names; torch's own values would give scores that are all alike."""
    made = torch.Generator().manual_seed(seed)
    state = open_model("dlrm", options).state_dict()
    for name, value in state.items():
        size = torch.randn(value.shape, generator=made)
        if name.startswith("emb_l"):
            state[name] = 0.15 * size
        else:
            state[name] = size * (2 / sum(value.shape) if value.dim() == 2 else 1 / len(value)) ** 0.5
    return state


def made_folded(options: dict[str, Any], dtype: torch.dtype, device: torch.device = CPU) -> Any:
    """The folded network with such weights, its tables of `dtype` on `device`."""
    model: Any = open_model("dlrm", options, False, (device, dtype))
    model.load_state_dict(made_state(options), strict=True)
    model.eval().requires_grad_(False).fold()
    return model


def made_scales(folded: Any, batches: list[torch.Tensor], **more: Any) -> Scales:
    """Scales of a folded network's own making."""
    parts = folded.calibrated([(rows, torch.tensor([len(rows)])) for rows in batches], "max")
    about = {"model": "dlrm", "model_hash": "0" * 64, "weights": "w", "method": "max", "samples": {}}
    return Scales(**{**about, **parts, **more})


def made_int8(options: dict[str, Any], device: torch.device) -> Any:
    """The network in 8 bits on `device`, calibrated on 300 pairs."""
    folded = made_folded(options, torch.int8, device)
    scales = made_scales(folded, [made_pairs(300, options["rows"], 9)])
    found: nn.Module = folded.quantised(scales, device)
    return found
