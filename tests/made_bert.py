"""A narrow BERT whose every weight matters, rows for it, and scales of its own making."""

from __future__ import annotations

from typing import Any

import torch

from workers.models import open_model
from workers.models.scales import Scales

NARROW = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 64, "vocab": 100}
COUNTS = (7, 65, 2, 20)


def made_bert(seed: int = 1) -> Any:
    """Folded. Its layers' contributions are small beside what goes past them, as training leaves them."""
    torch.manual_seed(seed)
    model: Any = open_model("bert-large", NARROW).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "LayerNorm.weight" in name:
            torch.nn.init.normal_(parameter, 0.9, 0.1)
        else:
            torch.nn.init.normal_(parameter, std=0.1 if "dense" in name else 0.3)
    model.fold()
    return model


def made_batch(counts: tuple[int, ...] = COUNTS, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows int32 (R, 2) and counts int64 (n,)."""
    made = torch.Generator().manual_seed(seed)
    words = torch.randint(0, NARROW["vocab"], (sum(counts),), generator=made)
    segments = torch.randint(0, 2, (sum(counts),), generator=made)
    return torch.stack([words, segments], 1).int(), torch.tensor(counts)


def bert_scales(folded: Any, *batches: tuple[torch.Tensor, torch.Tensor], **more: Any) -> Scales:
    """Scales of a folded network's own making."""
    parts = folded.calibrated(batches)
    about = {"model": "bert-large", "model_hash": "0" * 64, "weights": "seeded", "method": "max"}
    return Scales(**{"samples": {}, **about, **parts, **more})
