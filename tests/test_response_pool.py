"""QuerySampleResponse objects of the real module, written through memory."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.dispatch import Completion
from orchestrator.loadgen import import_loadgen
from orchestrator.response_pool import ResponsePool, _looks_like_values

TIME_BUDGET_S = 5


def completions(rng: np.random.Generator) -> list[Completion]:
    """Lumps of every shape: equal sizes, own sizes and places, empty responses, more than the pool holds."""
    found = []
    for n in (1, 7, 64, 300, 5):
        ids = rng.integers(1, 2**47, n, dtype=np.uint64)
        blob = rng.integers(0, 256, 12 * n, dtype=np.uint8)
        sizes = rng.integers(0, 12, n)
        found.append(Completion(ids, blob, None, 12))
        found.append(Completion(ids, blob[::-1].copy(), None, 12))
        found.append(Completion(ids, np.repeat(blob, 9), None, 108))
        found.append(Completion(ids, blob, rng.permutation(n) * 12, sizes))
        found.append(Completion(ids, np.empty(0, np.uint8), None, 0))
    return found


def reported(scattered: bool, lumps: list[Completion]) -> list[list[tuple[int, bytes]]]:
    """What LoadGen would read: each response's id and bytes."""
    real = import_loadgen(None)
    seen: list[tuple[int, bytes]] = []
    module: Any = SimpleNamespace(
        QuerySampleResponse=real.QuerySampleResponse,
        QuerySamplesComplete=lambda rs: seen.extend((r.id, ctypes.string_at(r.data, r.size)) for r in rs),
    )
    pool = ResponsePool(module, 32)
    assert pool.scattered
    if not scattered:
        pool.scattered, pool._memory = False, None
    found = []
    for lump in lumps:
        pool.complete(lump)
        found.append(list(seen))
        seen.clear()
    assert pool.scattered is scattered
    return found


def test_the_pool_reports_by_memory_what_it_reports_by_attributes(rng: np.random.Generator) -> None:
    lumps = completions(rng)
    fast = reported(True, lumps)
    assert fast == reported(False, lumps)
    for lump, rows in zip(lumps, fast, strict=True):
        assert [row[0] for row in rows] == lump.ids.tolist()
        sizes = np.broadcast_to(lump.sizes, len(rows))
        offsets = np.cumsum(sizes) - sizes if lump.offsets is None else lump.offsets
        blob = lump.blob.tobytes()
        assert [row[1] for row in rows] == [blob[a : a + n] for a, n in zip(offsets, sizes, strict=True)]


@pytest.mark.parametrize(
    ("address", "plausible"),
    [
        (0x5555_DEAD_BEE8, True),  # x86-64
        (0xAAAA_D654_3210, True),  # aarch64's heap; its maps lie at 0xffff...
        (0xF_FFFF_D654_3210, True),  # aarch64 with 52 bits
        (2**56, False),
        (0xFFFF_8000_0000_0000, False),
        (8, False),
        (0xAAAA_D654_3211, False),
    ],
)
def test_addresses_of_every_64_bit_machine_are_plausible(
    monkeypatch: pytest.MonkeyPatch, address: int, plausible: bool
) -> None:
    response = SimpleNamespace(id=0, data=0, size=0)

    class Memory:  # stands for ctypes.c_uint64: at any address lies the response
        def __mul__(self, words: int) -> Memory:
            return self

        def from_address(self, at: int) -> list[int]:
            assert at == address
            return [response.id, response.data, response.size]

    monkeypatch.setattr("orchestrator.response_pool.ctypes", SimpleNamespace(c_uint64=Memory()))
    assert _looks_like_values(np.array([address], np.uint64), [response]) is plausible
