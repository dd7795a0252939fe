"""What stands between the products of BERT in FP8, in plain torch: for CPUs, and to hold the kernels against.

Everything is computed in fp32 from fp16, and rounded where the kernels round it. `inverse` is one over an
e4m3 tensor's scale.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

TOP = 448.0  # e4m3's largest
FP8 = torch.float8_e4m3fn


def quantise(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """To e4m3; what is beyond its largest value becomes it."""
    return (x.float() * inverse).clamp(-TOP, TOP).to(FP8)


def _normalised(
    x: torch.Tensor, norm: nn.LayerNorm, inverse: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    found = functional.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
    out = found.half()
    return out, out if inverse is None else quantise(found, inverse)


def add_norm(
    y: torch.Tensor, x: torch.Tensor, norm: nn.LayerNorm, inverse: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """LayerNorm(x + y), fp16 (R, H), and the same in e4m3 where there is an `inverse`."""
    return _normalised(x.float() + y.float(), norm, inverse)


def embed_norm(
    rows: torch.Tensor,
    positions: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    norm: nn.LayerNorm,
    inverse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the rows of three tables (words, segments, positions), normalised: fp16 and e4m3 (R, H)."""
    words, segments, places = tables
    total = words[rows[:, 0]].float() + segments[rows[:, 1]].float() + places[positions].float()
    return _normalised(total, norm, inverse)


def gelu(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The exact GELU, in e4m3."""
    return quantise(functional.gelu(x.float()), inverse)


def attend(qkv: torch.Tensor, ends: torch.Tensor, heads: int, inverse: torch.Tensor) -> torch.Tensor:
    """Attention within each sample: fp16 (R, 3 H) and Places.ends -> e4m3 (R, H); rows of no sample are 0."""
    hidden = qkv.shape[1] // 3
    out = torch.zeros((len(qkv), hidden), device=qkv.device)
    bounds = ends.tolist()
    for start, end in itertools.pairwise(bounds):
        if end > start:
            q, k, v = qkv[start:end].float().view(end - start, 3, heads, -1).permute(1, 2, 0, 3)
            found = functional.scaled_dot_product_attention(q, k, v)
            out[start:end] = found.transpose(0, 1).reshape(end - start, hidden)
    return quantise(out, inverse)
