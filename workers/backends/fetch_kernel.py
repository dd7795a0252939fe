"""The Triton kernel with which a GPU fetches samples from pinned host memory by itself.

Import this only where there is Triton, which CPU installs of torch do not have.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Programs that go on until all is there, so that so many of them at most take time from what computes beside
# them. Of PCIe's latency times its rate, about 100 KB, each holds WORDS in flight.
PROGRAMS = 32
WARPS = 8
WORDS = 4096
# The widest load of a thread, in 4-byte words.
WIDE = 4


@triton.jit(do_not_specialize=["samples", "parts"])
def fetch(OUT, TABLE, samples, parts, WORDS: tl.constexpr, ALIGNED: tl.constexpr):
    """OUT int32; TABLE int64 (samples, 3): a source's address, its place in OUT and its size, both in words.

    Sources begin at multiples of 16 bytes and can be read up to one. ALIGNED: places and sizes are such too.
    Each sample is taken in `parts`, each by one program.
    """
    for item in range(tl.program_id(0), samples * parts, tl.num_programs(0)):
        row = TABLE + 3 * (item // parts).to(tl.int64)
        source, to, size = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        each = (tl.cdiv(size, parts) + 3) // 4 * 4
        first = (item % parts) * each
        count = tl.minimum(size - first, each)
        words = tl.multiple_of((source + 4 * first).to(tl.pointer_type(tl.int32)), 16)
        place = OUT + to + first
        if ALIGNED:
            place = tl.multiple_of(place, 16)
        for at in range(0, count, WORDS):
            at = tl.multiple_of(at, WORDS)
            i = at + tl.arange(0, WORDS)
            # Whole quads, as the compiler can then load each at once.
            wide = i // 4 < tl.cdiv(count, 4)
            x = tl.load(words + i, mask=wide, cache_modifier=".cg")
            tl.store(place + i, x, mask=wide if ALIGNED else i < count)


def launch(
    table: torch.Tensor,
    samples: int,
    most_words: int,
    out: torch.Tensor,
    aligned: bool,
    programs: int = PROGRAMS,
) -> None:
    """Fetch what the first rows of `table` say into `out`, int32; samples have `most_words` at most."""
    parts = max(1, min(-(-4 * programs // max(samples, 1)), -(-most_words // WORDS)))
    fetch[(programs,)](out, table, samples, parts, WORDS=WORDS, ALIGNED=aligned, num_warps=WARPS)
