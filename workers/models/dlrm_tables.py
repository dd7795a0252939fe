"""The embedding tables of DLRM: one tensor for all, in floating point or in int8.

In int8 each table has one scale: its largest absolute value is step 127. The 26 published tables take 24 GB
so (96 GB in fp32, 48 GB in fp16), are made piece by piece where they will lie, and are never there in another
format. What calibration and the comparison with fp32 need of the fp32 rows is read from where they came from:
the mapped checkpoint, or the seed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.library import Library
from workers.models import ModelError
from workers.models.quantise import TOP
from workers.models.seeded import fill_uniform_, uniform_at

_COPY_ROWS = 1 << 22  # at a time, from a checkpoint that may be of another type and on another device
# Without a checkpoint the tables hold this seed's values, rows of length 1 at most.
_TABLE_SEED = 1

# int64 (r, tables), inside of the tables -> their fp32 rows (r, tables, dim).
Rows = Callable[[torch.Tensor], torch.Tensor]


class Tables(nn.Module):
    """Embedding tables stored as one, that are loaded and saved as `N.weight` each.

    In int8 `scales` holds the value of a step of each table, and `forward` gives the fp32 rows all the same.
    """

    firsts: torch.Tensor
    lasts: torch.Tensor

    def __init__(self, rows: Sequence[int], dim: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows = list(rows)
        self.table = nn.Parameter(_empty_table(sum(rows), dim, device, dtype), requires_grad=False)
        firsts = torch.tensor([0, *rows[:-1]], dtype=torch.int64).cumsum(0)
        # 64 bits: torch.compile multiplies places by `dim` in the type that they have.
        self.register_buffer("firsts", firsts, persistent=False)
        self.register_buffer("lasts", torch.tensor(rows, dtype=torch.int32) - 1, persistent=False)
        self._bound = 1 / math.sqrt(dim)
        self._exact: Rows = self._seeded_rows
        if self.table.is_meta:
            return
        if dtype is torch.int8:
            self.register_buffer("scales", torch.ones(len(self.rows)), persistent=False)
            for number in range(len(self.rows)):
                self._quantise(number, lambda number=number: self._seeded_pieces(number))
        else:
            fill_uniform_(self.table, self._bound, _TABLE_SEED)

    @property
    def in_int8(self) -> bool:
        """Whether the tables are quantised."""
        return self.table.dtype is torch.int8

    def _parts(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        for number, part in enumerate(self.table.split(self.rows)):
            yield f"{prefix}{number}.weight", part

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Of tables in int8 the names, shapes and kind alone, by which a checkpoint is compared."""
        for name, part in self._parts(prefix):
            destination[name] = torch.empty(part.shape, device="meta") if self.in_int8 else part.detach()

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
        for number, name in enumerate(mine):
            if (given := state_dict.get(name)) is None:
                continue
            if given.shape != mine[name].shape:
                shapes = f"{tuple(given.shape)} instead of {tuple(mine[name].shape)}"
                error_msgs.append(f"{name} has the shape {shapes}")
            elif self.in_int8:
                if not self._quantise(number, lambda given=given: self._given_pieces(given)):
                    error_msgs.append(f"{name} holds values that are not finite, which int8 cannot hold")
            else:
                with torch.no_grad():
                    for to, part in zip(mine[name].split(_COPY_ROWS), given.split(_COPY_ROWS), strict=True):
                        to.copy_(part)
        if self.in_int8 and mine.keys() <= state_dict.keys():
            self._exact = _rows_of([state_dict[name] for name in mine])

    @torch.no_grad()
    def _quantise(self, number: int, pieces: Callable[[], Iterable[torch.Tensor]]) -> bool:
        """Fill table `number` from its fp32 `pieces`, which are asked for twice; False if one is not finite.

        One fp32 product and a rounding: the same steps on a CPU and on a GPU, so the same model_hash.
        """
        most = 1e-12
        for piece in pieces():
            low, high = torch.aminmax(piece)
            found = max(-float(low), float(high))
            if not math.isfinite(found):
                return False
            most = max(most, found)
        inverse = torch.tensor(TOP / most, device=self.table.device)
        start = int(self.firsts[number])
        for piece in pieces():
            steps = (piece * inverse).round_().clamp_(-TOP, TOP)
            self.table[start : start + len(piece)].copy_(steps)
            start += len(piece)
        self.get_buffer("scales")[number] = most / TOP
        return True

    def _given_pieces(self, given: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in given.split(_COPY_ROWS):
            yield part.to(self.table.device, torch.float32)

    def _seeded_pieces(self, number: int) -> Iterator[torch.Tensor]:
        dim, first, rows = self.table.shape[1], int(self.firsts[number]), self.rows[number]
        for start in range(0, rows, _COPY_ROWS):
            piece = torch.empty((min(_COPY_ROWS, rows - start), dim), device=self.table.device)
            fill_uniform_(piece, self._bound, _TABLE_SEED, (first + start) * dim)
            yield piece

    def _seeded_rows(self, inside: torch.Tensor) -> torch.Tensor:
        dim = self.table.shape[1]
        places = (inside + self.firsts).unsqueeze(-1) * dim + torch.arange(dim, device=inside.device)
        return uniform_at(places, self._bound, _TABLE_SEED)

    def forward(self, indices: torch.Tensor, empty: int) -> torch.Tensor:
        """int32 (r, tables) -> (r, 1 + tables + empty, dim); places 0 and the last `empty` hold what comes.

        An index outside its table, as padded rows may have, reads the table's nearest row.
        """
        inside = torch.minimum(indices, self.lasts).clamp_(min=0)
        if self.in_int8:
            return functional.pad(self._exact(inside.long()), (0, 0, 1, empty))
        places = functional.pad(inside + self.firsts, (1, empty))
        return functional.embedding(places, self.table)


def _rows_of(tables: Sequence[torch.Tensor]) -> Rows:
    """Rows of tables on the host; of mapped ones only what is asked for is read."""

    def rows(inside: torch.Tensor) -> torch.Tensor:
        places = inside.cpu()
        found = [table[places[:, number]].float() for number, table in enumerate(tables)]
        return torch.stack(found, 1).to(inside.device)

    return rows


def check_indices(library: Library, rows: Sequence[int]) -> None:
    """ModelError if a sample holds an index that its table of `rows` lacks, which no kernel would notice."""
    if "largest.npy" not in library.files:  # made samples: their answers mean nothing
        return
    largest = library.array("largest").tolist()
    for number, (index, size) in enumerate(zip(largest, rows, strict=True)):
        if index >= size:
            wrong = f"table {number} has {size} rows and the data set index {index}"
            mend = "set backend.options.rows and task.max_ind_range to those of the weights"
            raise ModelError(f"model 'dlrm': {wrong}; {mend}")


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
            "; use precision: fp16 or int8 on a GPU of 80 GB, or smaller tables (backend.options.rows)"
        ) from None
