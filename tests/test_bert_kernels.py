"""The Triton kernels of BERT in FP8 against plain torch.

On a GPU as it is; on a CPU with Triton through its interpreter:
TRITON_INTERPRET=1 python -m pytest tests/test_bert_kernels.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.drive_backend import wait
from tests.made_bert import bert_scales, made_batch, made_bert
from tests.triton_here import CUDA, DEVICE, INTERPRETED, needs_triton
from workers.backends import Batch, open_backend
from workers.models import bert_plain
from workers.models.bert_fp8 import Product
from workers.models.bert_places import Places
from workers.tasks import open_task

TIME_BUDGET_S = 60

pytestmark = needs_triton()
# Of the benchmark's network, and a narrow one whose rows are no power of two.
SIZES = [(1024, 16), (96, 6)]
INVERSE = torch.tensor([40.0])


@pytest.fixture(autouse=True)
def true_e4m3(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of Triton 3.6 loses carries into e4m3's exponent (127.4 becomes 64) and makes
    numbers of nothing (1e-9 becomes 0.01)."""
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(x: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        if str(wanted) != "fp8e4nv":
            return convert(x, given, wanted, rounding)
        return torch.from_numpy(x).to(bert_plain.FP8).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", converted)


def random(*shape: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    return (spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).half()


def made_norm(hidden: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(hidden, eps=1e-12).requires_grad_(False)
    norm.weight.copy_(1 + random(hidden, seed=8, spread=0.3).float())
    norm.bias.copy_(random(hidden, seed=9, spread=0.3).float())
    return norm.half()


def both(name: str, *given: Any) -> tuple[Any, Any]:
    """What the kernel computes and what plain torch does, on the CPU."""
    from workers.models import bert_kernels

    def moved(one: Any) -> Any:
        if isinstance(one, tuple):
            return tuple(map(moved, one))
        if isinstance(one, nn.Module):
            return made_norm(one.normalized_shape[0]).to(DEVICE)
        return one.to(DEVICE) if isinstance(one, torch.Tensor) else one

    found: Callable[..., Any] = getattr(bert_kernels, name)
    answer = found(*map(moved, given))
    home = tuple(one.cpu() for one in answer) if isinstance(answer, tuple) else answer.cpu()
    return home, getattr(bert_plain, name)(*given)


def same_e4m3(found: torch.Tensor, expected: torch.Tensor, near: float = 2**-9) -> None:
    """But for the neighbouring number, or one as `near`, now and then, where rounding is a close thing."""
    assert found.dtype is expected.dtype is bert_plain.FP8
    a, b = found.float(), expected.float()
    assert ((a - b).abs() <= b.abs() / 8 + near).all()
    assert (a != b).double().mean() < 0.02


@pytest.mark.parametrize(("hidden", "heads"), SIZES)
@pytest.mark.parametrize("rows", [14, 5])
def test_a_sum_is_normalised_and_quantised(hidden: int, heads: int, rows: int) -> None:
    y, x = random(rows, hidden, seed=1), random(rows, hidden, seed=2, spread=3)
    for inverse in (None, INVERSE):
        found, expected = both("add_norm", y, x, made_norm(hidden), inverse)
        torch.testing.assert_close(found[0], expected[0], atol=2e-3, rtol=1e-3)
        if inverse is not None:
            same_e4m3(found[1], expected[1])


@pytest.mark.parametrize(("hidden", "heads"), SIZES)
def test_the_rows_of_three_tables_are_added_and_normalised(hidden: int, heads: int) -> None:
    rows, counts = made_batch((9, 8, 3))
    tables = tuple(random(n, hidden, seed=n) for n in (100, 512, 2))
    words, places, segments = tables
    positions = Places(counts, rows, packed=True).positions
    given = (rows, positions, (words, segments, places), made_norm(hidden), INVERSE)
    found, expected = both("embed_norm", *given)
    torch.testing.assert_close(found[0], expected[0], atol=2e-3, rtol=1e-3)
    same_e4m3(found[1], expected[1])


@pytest.mark.parametrize("shape", [(3, 4096), (7, 48)])
def test_gelu_is_the_exact_one_and_what_is_too_large_becomes_the_largest(shape: tuple[int, int]) -> None:
    x = random(*shape, seed=4, spread=4)
    x[0, 0], x[0, 1] = 60, -60
    found, expected = both("gelu", x, INVERSE)
    same_e4m3(found, expected)
    assert found[0, 0].float() == 448 and found[0, 1].float() == 0


@pytest.mark.parametrize(("hidden", "heads"), [(128, 2), (96, 6)])
def test_every_row_attends_to_its_own_sample_alone(hidden: int, heads: int) -> None:
    """Samples of nothing, of one token, of a block and a bit, and rows of no sample after them."""
    counts = torch.tensor([7, 0, 130, 1, 64, 0, 0])
    total = int(counts.sum())
    qkv = random(total + 6, 3 * hidden, seed=5)
    ends = Places(counts, qkv, packed=True).ends
    found, expected = both("attend", qkv, ends, heads, INVERSE)
    same_e4m3(found[:total], expected[:total], 0.1)  # the kernel's shares are fp16: 40 * 4 * 2^-11


def test_the_network_by_kernels_answers_as_by_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the network errors add up: what is compared are logits, and their distance to fp32's."""
    from workers.models import bert_kernels

    folded = made_bert()
    rows, counts = made_batch()
    total = len(rows)
    plain = folded.quantised(bert_scales(folded, (rows, counts)), torch.device("cpu"))
    kernels = folded.quantised(bert_scales(folded, (rows, counts)), torch.device(DEVICE))
    monkeypatch.setattr(kernels, "kernels", bert_kernels)
    more = torch.cat([rows, rows[:3]]).to(DEVICE), torch.tensor([*counts.tolist(), 0, 0]).to(DEVICE)
    found = kernels(*more)[:total].cpu()
    expected, exact = plain(rows, counts), folded(rows, counts)

    def off(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm() / b.norm())

    assert off(expected, exact) < 0.15
    assert off(found, expected) < 0.05


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 33, 256])
@pytest.mark.parametrize(("inner", "outer"), [(1024, 3072), (4096, 1024), (32, 64)])
def test_products_are_those_of_the_numbers_in_e4m3(rows: int, inner: int, outer: int) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(inner, outer)
    here, there = (Product(linear, 5 / 448, torch.device(name)) for name in ("cpu", "cuda"))
    assert torch.equal(here.weight.view(torch.uint8), there.weight.cpu().view(torch.uint8))
    x = bert_plain.quantise(torch.randn(rows, inner), here.inverse)
    found, expected = there(x.cuda()).cpu().float(), here(x).float()
    assert (found - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_the_engine_answers_on_a_gpu_as_on_a_cpu() -> None:
    options = {"engine": "torch", "model": "bert-large", "precision": "fp8", "layers": 2, "hidden": 128}
    options |= {"heads": 2, "intermediate": 256}
    task = open_task("squad", {"generated": 1})
    samples, found = task.warm_up_samples(5), {}
    for device, graphs in (("cpu", False), ("cuda", False), ("cuda", True)):
        backend = open_backend({**options, "device": device, "cuda_graphs": graphs}, task, 8)
        facts = backend.load()
        backend.warm_up()
        backend.submit(Batch(np.arange(5), samples, None))
        (done,) = wait(backend)
        backend.close()
        logits = done.responses.blob.view(np.float32).reshape(5, 384, 2)
        found[device, graphs] = facts["scales_sha256"], np.where(logits < -9000, 0, logits)
        assert ("kernels" in facts) == (device == "cuda")
    (sha256, exact), *others = found.values()
    for other, logits in others:
        assert other == sha256
        assert np.linalg.norm(logits - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_graph_answers_other_rows_than_it_was_captured_with() -> None:
    folded = made_bert()
    batches = [made_batch((30, 34), 3), made_batch((60, 3, 1), 4)]
    network = folded.quantised(bert_scales(folded, *batches), torch.device("cuda"))
    rows, counts = torch.zeros(64, 2, dtype=torch.int32).cuda(), torch.zeros(4, dtype=torch.int64).cuda()

    def fill(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        rows.copy_(batch[0])
        counts.zero_()
        counts[: len(batch[1])] = batch[1].cuda()

    fill(batches[0])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        network(rows, counts)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = network(rows, counts)
    for batch in (*batches, batches[0]):
        fill(batch)
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(out, network(rows, counts), atol=1e-5, rtol=0)
