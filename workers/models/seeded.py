"""Seeded values for tensors too large to be drawn on the host: the same numbers on every device."""

from __future__ import annotations

import torch

CHUNK = 1 << 24  # elements at a time; its 64-bit integers take 128 MiB each
# The steps of splitmix64 (Steele, Lea, Flood 2014) as signed integers, on which torch computes.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = 0xBF58476D1CE4E5B9 - (1 << 64)
_LEVELS = 1 << 24  # as many as float32 tells apart


@torch.no_grad()
def fill_uniform_(tensor: torch.Tensor, bound: float, seed: int, first: int = 0) -> None:
    """Fill a contiguous tensor, where it lies, with values spread evenly over [-bound, bound).

    torch's own generators give other numbers on a GPU than on a CPU, and a worker's weights must be those of
    every other. Here each value is a hash of its place: integers, then one float32 product, rounded alike
    everywhere. `first` is the place of the first element, where `tensor` is a piece of what is too large.
    """
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        begin = first + start
        places = torch.arange(begin, begin + part.numel(), dtype=torch.int64, device=tensor.device)
        part.copy_(uniform_at(places, bound, seed))


def uniform_at(places: torch.Tensor, bound: float, seed: int) -> torch.Tensor:
    """float32: the values that fill_uniform_ gives to these places; `places`, int64, are overwritten."""
    place = places.add_(1 + (seed << 40)).mul_(_STEP)
    mixed = place.bitwise_xor_(place >> 30).mul_(_MIX)
    level = (mixed.bitwise_xor_(mixed >> 31) & (_LEVELS - 1)).sub_(_LEVELS // 2)
    return level.to(torch.float32).mul_(2 * bound / _LEVELS)
