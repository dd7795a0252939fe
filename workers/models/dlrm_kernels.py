"""Triton kernels of the 8-bit DLRM: bottom, gather and products of features, layers of the top, its last two.

Import this only where there is Triton, which CPU installs of torch do not have. Each layer is
y = sum * mult[n] + bias[n], ReLU, stored in the scale of what reads it. Every kernel is one launch without
host work, made to be captured in a CUDA graph.

On an H100 at 270,336 pairs, a pair: bottom 0.7 ns, interact 1.7 ns (2.4 TB/s), the top's layers 1.2, 1.7 and
0.9 ns (815 to 1237 TFLOP/s), last 0.4 ns; all in one graph 6.3 ns.
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
@triton.jit
def _stored(y, KIND: tl.constexpr):
    """Values in their scale, as KIND; int8 only of values that are not negative.

    The conversion to e4m3 saturates on sm_90 (cvt.rn.satfinite): a clamp would be a fifth of a layer's end.
    """
    if tl.int8 == KIND:
        z = (tl.minimum(y, 127.0) + 0.5).to(KIND)
    else:
        z = y.to(KIND)
    return z


@triton.jit(do_not_specialize=["total"])
def bottom(
    rows, w1, m1, b1, w2, m2, b2, w3, m3, b3, left, wide, total, inv_left, inv_wide,
    PITCH: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, PART: tl.constexpr,
):
    """Counts -> log -> 16-512-256-128, to `left` int8 [total, 128] and to columns 0..127 of `wide`.

    w1 is [16, 512] (rows 13..15 zero), w2 [256, 512], w3 [128, 256]: k contiguous, as wgmma wants e4m3.
    Nothing between the layers leaves the registers but through shared memory.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    live = m < total
    k = tl.arange(0, 16)
    at = rows + m.to(tl.int64)[:, None] * PITCH + k[None, :]
    counts = tl.load(at, mask=live[:, None] & (k < 13)[None, :], other=0)
    x = tl.log(counts.to(tl.float32) + 1.0).to(tl.float16)
    n2 = tl.arange(0, 256)
    n3 = tl.arange(0, 128)
    part = tl.arange(0, PART)
    acc = tl.zeros((BM, 256), tl.float32)
    for start in range(0, 512, PART):
        n1 = start + part
        first = tl.dot(x, tl.load(w1 + k[:, None] * 512 + n1[None, :]))
        h = tl.maximum(first * tl.load(m1 + n1)[None, :] + tl.load(b1 + n1)[None, :], 0.0)
        a = _stored(h, w2.dtype.element_ty)
        w = tl.load(w2 + n2[:, None] * 512 + n1[None, :])
        acc = tl.dot(a, tl.trans(w), acc)
    h = tl.maximum(acc * tl.load(m2 + n2)[None, :] + tl.load(b2 + n2)[None, :], 0.0)
    a = _stored(h, w3.dtype.element_ty)
    w = tl.load(w3 + n3[:, None] * 256 + n2[None, :])
    y = tl.dot(a, tl.trans(w))
    y = tl.maximum(y * tl.load(m3 + n3)[None, :] + tl.load(b3 + n3)[None, :], 0.0)
    inside = live[:, None]
    long = m.to(tl.int64)[:, None]
    tl.store(left + long * 128 + n3[None, :], _stored(y * inv_left, tl.int8), mask=inside)
    tl.store(wide + long * WIDTH + n3[None, :], _stored(y * inv_wide, wide.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total"])
def interact(
    rows, table, left, firsts, lasts, mult, wide, total,
    PITCH: tl.constexpr, WIDTH: tl.constexpr, B: tl.constexpr,
):
    """27 vectors a pair, the first from `left`, 26 from `table` -> 351 products and a zero in `wide`.

    One batched product of 32 x 128 by 128 x 32 a pair; mult [32, 32] is scale_i * scale_j / scale of `wide`.
    Product j of row i goes to column 128 + i (i - 1) / 2 + j. An index outside of its table reads the table's
    nearest row. `firsts` and `lasts` are those of table f - 1 at place f.
    """
    pair = tl.program_id(0) * B + tl.arange(0, B)
    f = tl.arange(0, 32)
    d = tl.arange(0, 128)
    here = pair < total
    live = here[:, None] & (f < 27)[None, :]
    long = pair.to(tl.int64)
    at = rows + long[:, None] * PITCH + 12 + f[None, :]
    index = tl.load(at, mask=live & (f > 0)[None, :], other=0)
    index = tl.maximum(tl.minimum(index, tl.load(lasts + f)[None, :]), 0)
    place = index.to(tl.int64) + tl.load(firsts + f)[None, :]
    row = tl.where((f == 0)[None, :], left + long[:, None] * 128, table + place * 128)
    x = tl.load(row[:, :, None] + d[None, None, :], mask=live[:, :, None], other=0)
    g = tl.dot(x, tl.permute(x, (0, 2, 1)), out_dtype=tl.int32)
    y = g.to(tl.float32) * tl.load(mult + f[:, None] * 32 + f[None, :])[None, :, :]
    c = 128 + f[:, None] * (f[:, None] - 1) // 2 + f[None, :]
    # Row 27 holds nothing but the zero of column 479.
    keep = ((f[:, None] > f[None, :]) & (f < 27)[:, None]) | ((f == 27)[:, None] & (f == 0)[None, :])
    to = wide + long[:, None, None] * WIDTH + c[None, :, :]
    tl.store(to, _stored(y, wide.dtype.element_ty), mask=here[:, None, None] & keep[None, :, :])


@triton.jit(do_not_specialize=["rows"])
def layer(
    A, W, MULT, BIAS, OUT, rows, N: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr,
):
    """relu(A [rows, K] @ W [N, K].T * MULT + BIAS) -> OUT [rows, N], all three by TMA.

    PROGRAMS programs stay: the next tile's loads run under the last one's end. Neighbours share A's rows; W
    lies in L2 whole. Beyond K both read zeros.
    """
    WIDE: tl.constexpr = N // BN
    tiles = tl.cdiv(rows, BM) * WIDE
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        m = (tile // WIDE) * BM
        n = (tile % WIDE) * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            acc = tl.dot(A.load([m, k]), W.load([n, k]).T, acc)
        cols = n + tl.arange(0, BN)
        y = tl.maximum(acc * tl.load(MULT + cols)[None, :] + tl.load(BIAS + cols)[None, :], 0.0)
        OUT.store([m, n], _stored(y, OUT.dtype))


@triton.jit(do_not_specialize=["rows"])
def last(
    A, W, MULT, BIAS, V, C, out, rows, N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):
    """sigmoid(relu(A @ W.T * MULT + BIAS) . V + C) -> out float32 [rows]."""
    m = tl.program_id(0) * BM
    acc = tl.zeros((BM, N), tl.float32)
    for k in range(0, K, BK):
        acc = tl.dot(A.load([m, k]), W.load([0, k]).T, acc)
    cols = tl.arange(0, N)
    y = tl.maximum(acc * tl.load(MULT + cols)[None, :] + tl.load(BIAS + cols)[None, :], 0.0)
    s = tl.sum(y * tl.load(V + cols)[None, :], 1) + tl.load(C)
    at = m + tl.arange(0, BM)
    tl.store(out + at, 1.0 / (1.0 + tl.exp(-s)), mask=at < rows)
# fmt: on
