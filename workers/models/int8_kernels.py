"""Triton kernels of int8 networks: a convolution as one matrix product, and the small kernels around it.

Import this only where there is Triton, which CPU installs of torch do not have. Activations are int8, NHWC;
weights int8 [N, R * S * C], K contiguous. Everything but the batch is a compile-time constant, so that a
division by an image's size costs a multiplication. Every kernel is one launch without host work, made to be
captured in a CUDA graph.

Under TRITON_INTERPRET=1 the same source runs on a CPU, without its pieces of assembly (ASM = 0).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Triton 3.6 copies 16 bytes to shared memory past the L1 cache, whatever cache_modifier says. A kernel that
# holds this line is compiled with the copies through it.
MARK = tl.constexpr("mov.b32 $0, $1; // copies through L1")


def _through_l1(backend: Any, stages: dict[str, Any], options: Any, language: Any, capability: Any) -> None:
    make = stages["ptx"]

    def ptx(src: Any, metadata: Any) -> str:
        text: str = make(src, metadata)
        if "copies through L1" not in text:
            return text
        return text.replace("cp.async.cg.shared.global", "cp.async.ca.shared.global")

    stages["ptx"] = ptx


if hasattr(triton.knobs.runtime, "add_stages_inspection_hook"):  # without it CA is slower, and as right
    triton.knobs.runtime.add_stages_inspection_hook = _through_l1

# 4 float32 -> 4 bytes: round to nearest even, saturate to -128..127. 6 instructions where Triton's own
# conversion takes about 14 (two clamps, one conversion, byte shuffles).
PACK = tl.constexpr("""{
    .reg .b32 a, b, c, d, t;
    cvt.rni.s32.f32 a, $1; cvt.rni.s32.f32 b, $2; cvt.rni.s32.f32 c, $3; cvt.rni.s32.f32 d, $4;
    cvt.pack.sat.s8.s32.b32 t, d, c, 0;
    cvt.pack.sat.s8.s32.b32 $0, b, a, t;
}""")
# A float32 between 0 and 127 plus this has the number, rounded to nearest even, as its lowest byte.
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2**23

# y + shortcut * res_mult. A byte 0..127 as the upper mantissa of 128.0 is 128 + byte: one byte shuffle, where
# the conversion has an eighth of the rate. In one piece with y, so that bytes change layout and not floats.
ADD = tl.constexpr("""{
    .reg .b32 a, b, c, d;
    prmt.b32 a, $4, 0x43000000, 0x7044; prmt.b32 b, $4, 0x43000000, 0x7144;
    prmt.b32 c, $4, 0x43000000, 0x7244; prmt.b32 d, $4, 0x43000000, 0x7344;
    fma.rn.f32 $0, a, $9, $5; fma.rn.f32 $1, b, $10, $6; fma.rn.f32 $2, c, $11, $7; fma.rn.f32 $3, d, $12, $8;
}""")
ADD_WORDS = tl.constexpr("=f,=f,=f,=f,r,f,f,f,f,f,f,f,f")


# fmt: off
@triton.jit
def project(
    x2, w2, pixel, n, C2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
    """The 1x1 convolution of a shortcut, float32 [BM, BN]; `pixel` of x2 belongs to each row."""
    k = tl.arange(0, BK)
    a_at = x2 + ((pixel * C2)[:, None] + k[None, :])
    b_at = w2 + (n[:, None] * C2 + k[None, :])
    acc = tl.zeros((BM, BN), tl.int32)
    for i in range(C2 // BK):
        a = tl.load(a_at + i * BK)
        b = tl.load(b_at + i * BK)
        acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
    return acc.to(tl.float32)


@triton.jit
def taps_inside(
    top, left, H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, S: tl.constexpr, BM: tl.constexpr,
):
    """int32 [BM]; bit r * S + s: that tap of the window, whose corner is given, lies inside of the image."""
    valid = tl.zeros((BM,), tl.int32)
    for bit in tl.static_range(R * S):
        h = top + bit // S
        v = left + bit % S
        valid += ((h >= 0) & (h < H) & (v >= 0) & (v < W)).to(tl.int32) << bit
    return valid


@triton.jit
def convolve(
    a_at, b_at, valid, W: tl.constexpr, PITCH: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, PAD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
    """The sums over a window, int32 [BM, BN]; `a_at`, `b_at`: the first BK bytes of each row and channel."""
    acc = tl.zeros((BM, BN), tl.int32)
    for i in range(C // BK * R * S):  # all taps of some channels, then of the next: they share pixels
        tap = i % (R * S)
        c = i // (R * S) * BK
        offset = ((tap // S) * W + tap % S) * PITCH + c
        if PAD > 0:
            a = tl.load(a_at + offset, mask=((valid >> tap) & 1)[:, None] != 0, other=0)
        else:
            a = tl.load(a_at + offset)
        b = tl.load(b_at + (tap * C + c))
        acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
    return acc


@triton.jit
def add_shortcut(y, shortcut, res_mult, BM: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr):
    """y + (128 + shortcut) * res_mult."""
    if ASM:
        rate = tl.zeros((BM, BN), tl.float32) + res_mult
        return tl.inline_asm_elementwise(
            ADD, ADD_WORDS, [shortcut, y, rate], dtype=tl.float32, is_pure=True, pack=4
        )
    else:  # noqa: RET505 - Triton compiles one of the two
        bits = (shortcut.to(tl.int32) << 16) | 0x43000000
        return tl.fma(bits.to(tl.float32, bitcast=True), res_mult, y)


@triton.jit
def to_bytes(y, ASM: tl.constexpr):
    """float32 from 0 on -> int8, rounded to nearest even, at most 127."""
    if ASM:
        return tl.inline_asm_elementwise(PACK, "=r,r,r,r,r", [y], dtype=tl.int8, is_pure=True, pack=4)
    else:  # noqa: RET505
        return (tl.minimum(y, 127.0) + ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit(do_not_specialize=["M"])
def conv(
    x, w, mult, bias, res, x2, w2, mult2, out, res_mult, M,
    H: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr, C: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    P: tl.constexpr, Q: tl.constexpr, N: tl.constexpr,
    C2: tl.constexpr, STRIDE2: tl.constexpr, RES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, CA: tl.constexpr, ASM: tl.constexpr,
):
    """out[m, n] = int8(relu(acc * mult[n] + bias[n] (+ acc2 * mult2[n]) (+ res[m, n] * res_mult))).

    acc: x [images, H, W, PITCH] convolved with w; C bytes from a tap's pixel on are contiguous (PITCH of them
    but in ResNet's first layer, whose taps are 4 pixels wide). acc2, where C2 > 0: x2 [images, P * STRIDE2,
    Q * STRIDE2, C2] through a 1x1 with STRIDE2: the projection shortcut. M = images * P * Q. One program
    computes BM rows by BN channels, BK bytes of K at a time. CA: x and w pass through the L1 cache, where the
    taps of a 3x3 find pixels again; else each tap fetches its pixels from L2, which at tiles of 128 x 128 is
    slower than the arithmetic.
    """
    pid = tl.program_id(0)
    if CA and ASM:
        pid = tl.inline_asm_elementwise(MARK, "=r,r", [pid], dtype=tl.int32, is_pure=True, pack=1)
    TILES_N: tl.constexpr = N // BN
    m = (pid // TILES_N) * BM + tl.arange(0, BM)
    n = (pid % TILES_N) * BN + tl.arange(0, BN)
    inside = (m < M)[:, None]
    at = m[:, None] * N + n[None, :]
    row = tl.minimum(m, M - 1)  # rows beyond the end read the last one: no mask in the loop
    image = row // (P * Q)
    p = (row % (P * Q)) // Q
    q = row % Q
    if RES:  # asked for early, needed late
        shortcut = tl.load(res + at, mask=inside, other=0)
    if C2 > 0:
        pixel = (image * (P * STRIDE2) + p * STRIDE2) * (Q * STRIDE2) + q * STRIDE2
        projected = project(x2, w2, pixel, n, C2, BM, BN, min(BK, C2))

    if R == 1 and STRIDE == 1:
        start = row * PITCH
    else:
        start = ((image * H + p * STRIDE - PAD) * W + q * STRIDE - PAD) * PITCH
    if PAD > 0:
        valid = taps_inside(p * STRIDE - PAD, q * STRIDE - PAD, H, W, R, S, BM)
    else:
        valid = row
    k = tl.arange(0, BK)
    a_at = x + (start[:, None] + k[None, :])
    b_at = w + (n[:, None] * (R * S * C) + k[None, :])
    acc = convolve(a_at, b_at, valid, W, PITCH, C, R, S, PAD, BM, BN, BK)

    shift = tl.load(bias + n)
    if RES:
        shift -= 128.0 * res_mult  # see ADD
    y = tl.fma(acc.to(tl.float32), tl.load(mult + n)[None, :], shift[None, :])
    if C2 > 0:
        y = tl.fma(projected, tl.load(mult2 + n)[None, :], y)
    if RES:
        y = add_shortcut(y, shortcut, res_mult, BM, BN, ASM)
    tl.store(out + at, to_bytes(tl.maximum(y, 0.0), ASM), mask=inside)


@triton.jit
def pack_photos(photos, pads, out, BLOCK: tl.constexpr):
    """uint8 [n, 224, 224, 3] -> int8 [n, 115, 115, 16]: pixels - 128, 2x2 of them side by side, 4 spare.

    `pads` int8 [16] stands around the photo. See resnet50_int8.pack, which is the same in plain torch.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1)
    c = at % 16
    h = ((at // 16) // 115) * 2 + c // 6 - 3
    v = ((at // 16) % 115) * 2 + (c // 3) % 2 - 3
    inside = at < 115 * 115 * 16
    pixel = inside & (c < 12) & (h >= 0) & (h < 224) & (v >= 0) & (v < 224)
    u = tl.load(photos + image * (224 * 224 * 3) + (h * 224 + v) * 3 + c % 3, mask=pixel, other=0)
    pad = tl.load(pads + c).to(tl.int32)
    z = tl.where(pixel, u.to(tl.int32) - 128, pad).to(tl.int8)
    tl.store(out + image * (115 * 115 * 16) + at, z, mask=inside)


@triton.jit(do_not_specialize=["M"])
def max_pool(x, out, M, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BM: tl.constexpr):
    """3x3, stride 2, padding 1 over int8 [images, H, W, C] without negatives; M = images * H/2 * W/2."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, C)
    image = m // (H // 2 * (W // 2))
    p = (m // (W // 2)) % (H // 2)
    q = m % (W // 2)
    best = tl.zeros((BM, C), tl.int8)
    for tap in tl.static_range(9):
        h = p * 2 - 1 + tap // 3
        v = q * 2 - 1 + tap % 3
        ok = (m < M) & (h >= 0) & (v >= 0)  # H and W are even: no tap lies beyond the far edges
        y = tl.load(x + (((image * H + h) * W + v) * C)[:, None] + c[None, :], mask=ok[:, None], other=0)
        best = tl.maximum(best, y)
    tl.store(out + m[:, None] * C + c[None, :], best, mask=(m < M)[:, None])


@triton.jit
def mean_pool(x, out, scale, AREA: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """int8 [images, AREA, C] -> float16 [images, C], times `scale` (which holds 1 / AREA)."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = x + tl.program_id(0) * (AREA * C) + c
    total = tl.zeros((BLOCK,), tl.float32)  # at most 49 * 127: exact
    for i in tl.static_range(AREA):
        total += tl.load(at + i * C).to(tl.float32)
    tl.store(out + tl.program_id(0) * C + c, (total * scale).to(tl.float16))
# fmt: on
