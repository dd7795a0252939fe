"""The Triton kernel that fetches samples from the host's memory, byte by byte.

On a GPU as it is; on a CPU with Triton through its interpreter:
TRITON_INTERPRET=1 python -m pytest tests/test_fetch_kernel.py
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
import torch

TIME_BUDGET_S = 30

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (CUDA or INTERPRETED),
    reason="needs Triton, and a CUDA device or TRITON_INTERPRET=1",
)
DEVICE = "cpu" if INTERPRETED else "cuda"
AROUND = 64

CASES = {
    "photos": [150_528] * 3,
    "pairs": [156 * n for n in (270, 1, 700, 0, 33)],
    "one word": [4],
    "one small sample of whole quads": [16],
    "more samples than programs": [48, 4, 0, 80] * 20,
    "a sample that many programs share": [1_000_000],
    "the last part of a sample is empty": [4 * 4 * 9],
}


@pytest.mark.parametrize("programs", [3, 32])
@pytest.mark.parametrize("case", CASES)
def test_every_byte_arrives_and_none_around_it_changes(case: str, programs: int) -> None:
    from workers.backends import fetch_kernel

    rng = np.random.default_rng(5)
    sizes = np.array(CASES[case])
    padded = -(-sizes // 16) * 16
    memory = torch.empty(int(padded.sum()) + 16, dtype=torch.uint8, pin_memory=not INTERPRETED)
    memory.copy_(torch.from_numpy(rng.integers(0, 256, len(memory), np.uint8)))
    at = -memory.data_ptr() % 16 + np.cumsum(padded) - padded
    order = rng.permutation(len(sizes))
    at, sizes = at[order], sizes[order]
    starts = np.cumsum(sizes) - sizes
    rows = np.stack([memory.data_ptr() + at, starts // 4, sizes // 4], axis=1)
    table = torch.from_numpy(rows).to(DEVICE)
    out = torch.full((int(sizes.sum()) // 4 + AROUND,), -7, dtype=torch.int32, device=DEVICE)
    bytes_ = memory.numpy()
    wanted = np.concatenate([bytes_[a : a + n] for a, n in zip(at, sizes, strict=True)])
    for aligned in {False, not (sizes % 16).any()}:
        out.fill_(-7)
        most = int(sizes.max()) // 4
        fetch_kernel.launch(table, len(sizes), most, out, bool(aligned), programs)
        found = out.cpu()
        assert np.array_equal(found[:-AROUND].numpy().view(np.uint8), wanted)
        assert (found[-AROUND:] == -7).all()


@pytest.mark.skipif(not CUDA or INTERPRETED, reason="needs a CUDA device")
def test_no_number_of_samples_is_compiled_anew() -> None:
    from workers.backends import fetch_kernel

    memory = torch.zeros(1 << 16, dtype=torch.uint8, pin_memory=True)
    out = torch.zeros(1 << 16, dtype=torch.int32, device=DEVICE)

    def run(n: int) -> int:
        rows = np.array([[memory.data_ptr() + 16 * i, 4 * i, 4] for i in range(n)])
        fetch_kernel.launch(torch.from_numpy(rows).to(DEVICE), n, 4, out, True)
        cache, *_ = fetch_kernel.fetch.device_caches[torch.cuda.current_device()]
        return len(cache)

    first = run(1)
    assert [run(n) for n in (2, 16, 17, 128, 1000, 1024)] == [first] * 6
