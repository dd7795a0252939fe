"""Where the rows of packed samples lie: what all layers of BERT's encoder share."""

from __future__ import annotations

import torch
from torch.nn import functional

from workers.models.lengths import group_by_length, padded_rows

POSITIONS = 512


class Places:
    """Where each sample's rows lie, for all layers of one batch; made without a wait if `packed`.

    `positions` int64 (R,) within each sample; `ends` int32 (n + 1,): sample i's rows are ends[i]:ends[i + 1].
    """

    def __init__(self, counts: torch.Tensor, rows: torch.Tensor, packed: bool) -> None:
        ends = counts.cumsum(0)
        at = torch.arange(len(rows), device=counts.device)
        # Rows beyond the last sample count on from it; they mean nothing, but must stay inside the table.
        sample = torch.searchsorted(ends, at, right=True).clamp_(max=len(counts) - 1)
        self.positions = (at - (ends - counts)[sample]).clamp_(0, POSITIONS - 1).to(rows.device)
        self.packed = packed
        self.ends = functional.pad(ends, (1, 0)).to(torch.int32)
        self.groups = [] if packed else _groups(counts, rows.device)


def _groups(counts: torch.Tensor, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Samples of like length: row numbers int64 (g, longest), and which of these are the sample's own.

    The latter is None where all are equally long. `counts` lies on the host (see host_counts).
    """
    lengths = counts.numpy()
    found: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for group in group_by_length(lengths):
        if group.length:
            index, own = (torch.from_numpy(part) for part in padded_rows(lengths, group))
            found.append((index.to(device), None if bool(own.all()) else own.to(device)))
    return found
