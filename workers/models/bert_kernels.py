"""Triton kernels of BERT in FP8: all that stands between two products, each in one pass over memory.

Import this only where there is Triton, which CPU installs of torch do not have. The functions are those of
bert_plain. Rows are tokens, all samples back to back. What feeds a product is written in e4m3; `inverse`, one
over its scale, lies on the device, so other scales need no new compilation. Nothing waits for the device, and
all shapes but the number of rows are compile-time constants: a batch can be captured in a CUDA graph.

Under TRITON_INTERPRET=1 the same source runs on a CPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

from workers.models.bert_places import POSITIONS
from workers.models.bert_plain import FP8

# The fastest of several on an H100 at 12,308 rows: 57 us (4 rows by 4 warps: 121), 53 us (2048: 61), 66 us
# (128 x 64: 72).
NORM_ROWS, NORM_WARPS = 2, 2
FLAT, FLAT_WARPS = 4096, 4
ATTEND_ROWS, ATTEND_COLUMNS, ATTEND_WARPS, ATTEND_STAGES = 64, 64, 4, 2
LOG2_E = math.log2(math.e)


# fmt: off
@triton.jit
def _to_e4m3(x, inverse):
    return tl.minimum(tl.maximum(x * inverse, -448.0), 448.0).to(tl.float8e4nv)


@triton.jit
def _normalised(x, inside, gamma, beta, eps, H: tl.constexpr):
    mean = tl.sum(x, 1) / H
    centred = tl.where(inside[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / H
    return centred * tl.math.rsqrt(variance + eps)[:, None] * gamma[None, :] + beta[None, :]


@triton.jit
def add_norm_rows(
    y_at, x_at, gamma_at, beta_at, inverse, out, q, eps,
    H: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, QUANT: tl.constexpr,
):
    """out = LayerNorm(x + y), and q the same in e4m3; ROWS rows of H a program."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = columns < H
    at = rows[:, None] * H + columns[None, :]
    y = tl.load(y_at + at, mask=inside[None, :], other=0.0).to(tl.float32)
    x = tl.load(x_at + at, mask=inside[None, :], other=0.0).to(tl.float32)
    gamma = tl.load(gamma_at + columns, mask=inside, other=0.0).to(tl.float32)
    beta = tl.load(beta_at + columns, mask=inside, other=0.0).to(tl.float32)
    z = _normalised(x + y, inside, gamma, beta, eps, H)
    tl.store(out + at, z.to(out.dtype.element_ty), mask=inside[None, :])
    if QUANT:
        tl.store(q + at, _to_e4m3(z, tl.load(inverse)), mask=inside[None, :])


@triton.jit
def embed_norm_row(
    tokens, positions, words, segments, places, gamma_at, beta_at, inverse, out, q, eps,
    H: tl.constexpr, BLOCK: tl.constexpr,
):
    """LayerNorm of the sum of a row of each table; a token is int32 (word, segment)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < H
    word = tl.load(tokens + 2 * row).to(tl.int64)
    segment = tl.load(tokens + 2 * row + 1).to(tl.int64)
    place = tl.load(positions + row)
    x = tl.load(words + word * H + columns, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(segments + segment * H + columns, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(places + place * H + columns, mask=inside, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_at + columns, mask=inside, other=0.0).to(tl.float32)
    beta = tl.load(beta_at + columns, mask=inside, other=0.0).to(tl.float32)
    z = _normalised(x[None, :], inside, gamma, beta, eps, H)
    at = row * H + columns[None, :]
    tl.store(out + at, z.to(out.dtype.element_ty), mask=inside[None, :])
    tl.store(q + at, _to_e4m3(z, tl.load(inverse)), mask=inside[None, :])


@triton.jit
def gelu_flat(x_at, inverse, out, BLOCK: tl.constexpr):
    """out = e4m3(GELU(x)), BLOCK elements a program.

    erfc by Abramowitz and Stegun 7.1.26, |error| < 1.5e-7: libdevice's erf would take as long as the memory.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_at + at).to(tl.float32)
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail = 0.5 * x * series * tl.math.exp2(z * z * -1.4426950408889634)
    tl.store(out + at, _to_e4m3(tl.where(x > 0.0, x - tail, tail), tl.load(inverse)))


@triton.jit
def attend_rows(
    qkv, ends, inverse, out, scale_log2,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):
    """out = e4m3(softmax(q k / sqrt(WIDTH)) v): M rows of one head of one sample a program, N keys at a time.

    The softmax goes along with the sums (Milakov and Gimelshein, arXiv 1805.02867), in powers of 2.
    """
    head = tl.program_id(1)
    sample = tl.program_id(2)
    start = tl.load(ends + sample)
    count = tl.load(ends + sample + 1) - start
    first = tl.program_id(0) * M
    if first < count:
        width = tl.arange(0, WIDTH)
        mine = first + tl.arange(0, M)
        base = qkv + start.to(tl.int64) * (3 * HIDDEN) + head * WIDTH
        q_at = base + mine[:, None] * (3 * HIDDEN) + width[None, :]
        q = tl.load(q_at, mask=mine[:, None] < count, other=0.0)
        most = tl.full((M,), -1e30, tl.float32)
        total = tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, WIDTH), tl.float32)
        for other in range(0, count, N):
            theirs = other + tl.arange(0, N)
            at = base + theirs[:, None] * (3 * HIDDEN) + width[None, :]
            inside = theirs[:, None] < count
            k = tl.load(at + HIDDEN, mask=inside, other=0.0)
            v = tl.load(at + 2 * HIDDEN, mask=inside, other=0.0)
            s = tl.dot(q, tl.trans(k)) * scale_log2
            s = tl.where(theirs[None, :] < count, s, -1e30)
            now = tl.maximum(most, tl.max(s, 1))
            p = tl.math.exp2(s - now[:, None])
            old = tl.math.exp2(most - now)
            total = total * old + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * old[:, None])
            most = now
        acc = acc * (1.0 / total)[:, None]
        to = (start.to(tl.int64) + mine)[:, None] * HIDDEN + head * WIDTH + width[None, :]
        tl.store(out + to, _to_e4m3(acc, tl.load(inverse)), mask=mine[:, None] < count)
# fmt: on


def facts() -> dict[str, Any]:
    """What a record says of the kernels."""
    return {"triton": str(triton.__version__)}


def add_norm(
    y: torch.Tensor, x: torch.Tensor, norm: nn.LayerNorm, inverse: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See bert_plain."""
    rows, hidden = x.shape
    at_once = 1 if rows % NORM_ROWS else NORM_ROWS
    out = torch.empty_like(x)
    q = out if inverse is None else torch.empty_like(x, dtype=FP8)
    add_norm_rows[(rows // at_once,)](
        y,
        x,
        norm.weight,
        norm.bias,
        norm.weight if inverse is None else inverse,  # what the kernel was compiled without is never read
        out,
        q,
        norm.eps,
        H=hidden,
        BLOCK=triton.next_power_of_2(hidden),
        ROWS=at_once,
        QUANT=inverse is not None,
        num_warps=NORM_WARPS,
    )
    return out, q


def embed_norm(
    rows: torch.Tensor,
    positions: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    norm: nn.LayerNorm,
    inverse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See bert_plain."""
    hidden = tables[0].shape[1]
    out = torch.empty((len(rows), hidden), dtype=tables[0].dtype, device=rows.device)
    q = torch.empty_like(out, dtype=FP8)
    embed_norm_row[(len(rows),)](
        rows,
        positions,
        *tables,
        norm.weight,
        norm.bias,
        inverse,
        out,
        q,
        norm.eps,
        H=hidden,
        BLOCK=triton.next_power_of_2(hidden),
        num_warps=NORM_WARPS,
    )
    return out, q


def gelu(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """See bert_plain."""
    out = torch.empty_like(x, dtype=FP8)
    block = math.gcd(x.numel(), FLAT)
    gelu_flat[(x.numel() // block,)](x, inverse, out, BLOCK=block, num_warps=FLAT_WARPS)
    return out


def attend(qkv: torch.Tensor, ends: torch.Tensor, heads: int, inverse: torch.Tensor) -> torch.Tensor:
    """See bert_plain, but rows of no sample are not written: they hold what lay there."""
    hidden = qkv.shape[1] // 3
    width = hidden // heads
    out = torch.empty((len(qkv), hidden), dtype=FP8, device=qkv.device)
    # The longest sample is not known without waiting for the device: programs beyond a sample's end leave.
    attend_rows[(triton.cdiv(POSITIONS, ATTEND_ROWS), heads, len(ends) - 1)](
        qkv,
        ends,
        inverse,
        out,
        width**-0.5 * LOG2_E,
        HIDDEN=hidden,
        WIDTH=width,
        M=ATTEND_ROWS,
        N=ATTEND_COLUMNS,
        num_warps=ATTEND_WARPS,
        num_stages=ATTEND_STAGES,
    )
    return out
