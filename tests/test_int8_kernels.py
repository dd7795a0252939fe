"""The Triton kernels of int8 networks against exact integers, byte by byte.

On a GPU as it is; on a CPU with Triton through its interpreter, which takes minutes for the whole network:
TRITON_INTERPRET=1 python -m pytest tests/test_int8_kernels.py
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.made_int8 import made_scales, norms_as_trained, pictures
from tests.triton_here import CUDA, DEVICE, INTERPRETED, needs_triton
from workers.models import open_model
from workers.models.int8_conv import ConvShape, Int8Conv, Tensors
from workers.models.int8_tiles import Table, Tiles, Ways, candidates
from workers.models.resnet50_int8 import Int8ResNet50, pack

TIME_BUDGET_S = 300

pytestmark = needs_triton()

# images; H, W, PITCH, C, R, S, STRIDE, PAD, P, Q, N, C2, STRIDE2, RES; BM, BN, BK
CASES: dict[str, tuple[int, tuple[int, ...], tuple[int, int, int]]] = {
    "1x1": (3, (7, 7, 128, 128, 1, 1, 1, 0, 7, 7, 128), (128, 64, 64)),
    "1x1 of one step, few rows": (2, (5, 5, 64, 64, 1, 1, 1, 0, 5, 5, 64), (64, 64, 64)),
    "1x1 and a shortcut": (3, (7, 7, 64, 64, 1, 1, 1, 0, 7, 7, 128, 0, 1, 1), (64, 128, 64)),
    "1x1 of stride 2": (3, (6, 6, 64, 64, 1, 1, 2, 0, 3, 3, 64), (64, 64, 64)),
    "3x3": (3, (7, 7, 128, 128, 3, 3, 1, 1, 7, 7, 64), (128, 64, 128)),
    "3x3 of two steps a tap": (2, (9, 9, 128, 128, 3, 3, 1, 1, 9, 9, 64), (64, 64, 64)),
    "3x3 of stride 2, 8 to 4": (3, (8, 8, 64, 64, 3, 3, 2, 1, 4, 4, 64), (64, 64, 64)),
    "3x3 of stride 2, 14 to 7": (2, (14, 14, 64, 64, 3, 3, 2, 1, 7, 7, 128), (64, 64, 64)),
    "1x1 and a projection": (2, (7, 7, 64, 64, 1, 1, 1, 0, 7, 7, 128, 64, 1, 0), (64, 128, 64)),
    "1x1 and a strided projection": (3, (7, 7, 64, 64, 1, 1, 1, 0, 7, 7, 128, 128, 2, 0), (128, 64, 64)),
    "1x1 and a narrower projection": (3, (7, 7, 128, 128, 1, 1, 1, 0, 7, 7, 128, 64, 2, 0), (128, 64, 128)),
    "the first layer": (2, (15, 15, 16, 64, 4, 1, 1, 0, 12, 12, 64), (128, 64, 64)),
}


def made_layer(case: str, seed: int, exact: bool) -> tuple[Int8Conv, Tensors, int]:
    """A layer with random weights, its inputs, and the number of images.

    `exact`: powers of two as scales, so that float32 rounds nothing away but where all of its bits are used.
    """
    images, words, _ = CASES[case]
    shape = ConvShape(*words)
    made = torch.Generator().manual_seed(seed)

    def integers(*size: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, 128, size, generator=made, dtype=torch.int16).to(torch.int8)

    spread = 40 / (shape.steps**0.5 * 73 * 64)  # outputs all over 0 to 127
    mult = spread * torch.exp(0.3 * torch.randn(shape.N, generator=made))
    bias = 20 * torch.randn(shape.N, generator=made)
    if exact:
        mult = torch.full((shape.N,), 2.0 ** round(math.log2(spread)))
        bias = bias.round() + 0.5  # a shortcut of halves makes ties of it, to be rounded to even
    weights = (integers(shape.N, shape.steps, low=-127), mult, bias)
    layer = Int8Conv("out", case, "", "x", shape, weights)
    low = -128 if shape.PITCH < shape.C else 0  # pixels have negatives, activations none
    held = {"x": integers(images, shape.H, shape.W, shape.PITCH, low=low)}
    if shape.RES:
        layer.res, layer.res_mult = "res", 0.5 if exact else 0.37
        held["res"] = integers(images, shape.P, shape.Q, shape.N)
    if shape.C2:
        layer.add_second("x2", integers(shape.N, shape.C2, low=-127), mult if exact else mult * 0.7)
        held["x2"] = integers(images, shape.P * shape.STRIDE2, shape.Q * shape.STRIDE2, shape.C2)
    return layer, held, images


def computed(layer: Int8Conv, held: Tensors, images: int, tiles: Tiles) -> torch.Tensor:
    """The kernel's output; it must write all of its rows and nothing beyond them."""
    from workers.models.resnet50_launch import launch

    there = {name: one.to(DEVICE) for name, one in held.items()}
    size = layer.shape.out_bytes(images)
    there["out"] = torch.full((size + 4096,), -77, dtype=torch.int8, device=DEVICE)
    launch(layer.to(DEVICE), tiles, there, images, asm=True)
    out = there["out"].cpu()
    assert (out[size:] == -77).all() and (out[:size] >= 0).all()
    return out[:size].view(images, layer.shape.P, layer.shape.Q, layer.shape.N)


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_has_every_bit_of_the_exact_one(case: str) -> None:
    layer, held, images = made_layer(case, 5, exact=True)
    expected = layer(held)
    assert expected.float().std() > 5
    tiles = Tiles(*CASES[case][2], warps=4, stages=3, through_l1=int(layer.shape.R > 1))
    assert torch.equal(computed(layer, held, images, tiles), expected)


@pytest.mark.parametrize("case", CASES)
def test_scales_as_they_come_are_rounded_alike_but_for_a_step_now_and_then(case: str) -> None:
    """The emulation rounds a product and sum once, as the GPU does; the interpreter rounds twice."""
    layer, held, images = made_layer(case, 6, exact=False)
    expected = layer(held).to(torch.int16)
    tiles = Tiles(*CASES[case][2], warps=4, stages=3)
    off = (computed(layer, held, images, tiles).to(torch.int16) - expected).abs()
    assert off.max() <= 1 and (off > 0).double().mean() < 1e-3


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("case", ["3x3", "1x1 and a shortcut", "1x1 and a strided projection"])
def test_other_tiles_compute_the_same(case: str) -> None:
    layer, held, images = made_layer(case, 7, exact=False)
    # A second each to compile; tuning compares all of them.
    found = [computed(layer, held, images, tiles) for tiles in candidates(layer.shape)[:5]]
    assert len(found) > 3 and all(torch.equal(one, found[0]) for one in found)


def test_photos_are_packed_and_pooled_exactly() -> None:
    from workers.models import int8_kernels as kernels

    made = torch.Generator().manual_seed(3)
    photos = torch.randint(0, 256, (2, 224, 224, 3), generator=made, dtype=torch.uint8)
    pads = torch.tensor([-4, -12, -24] * 4 + [0] * 4, dtype=torch.int8)
    size = 2 * 115 * 115 * 16
    out = torch.full((size,), 99, dtype=torch.int8, device=DEVICE)
    kernels.pack_photos[(104, 2)](photos.to(DEVICE), pads.to(DEVICE), out, BLOCK=2048)
    assert torch.equal(out.cpu().view(2, 115, 115, 16), pack(photos, pads))

    x = torch.randint(0, 128, (3, 12, 12, 64), generator=made).to(torch.int8)
    out = torch.full((3 * 36 * 64 + 64,), -5, dtype=torch.int8, device=DEVICE)
    kernels.max_pool[(2,)](x.to(DEVICE), out, 3 * 36, H=12, W=12, C=64, BM=64)
    pooled = torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2).float(), 3, 2, 1).permute(0, 2, 3, 1)
    assert torch.equal(out[:-64].cpu().view(3, 6, 6, 64).float(), pooled) and (out[-64:] == -5).all()

    x = torch.randint(0, 128, (3, 49, 512), generator=made).to(torch.int8)
    mean = torch.empty((3, 512), dtype=torch.float16, device=DEVICE)
    kernels.mean_pool[(3, 2)](x.to(DEVICE), mean, 0.01 / 49, AREA=49, C=512, BLOCK=256)
    torch.testing.assert_close(mean.cpu(), (x.float().sum(1) * (0.01 / 49)).half(), rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def network() -> Int8ResNet50:
    folded: Any = norms_as_trained(open_model("resnet50", {}))
    folded.fold()
    return Int8ResNet50(folded, made_scales(folded, [pictures(4, 2)]), torch.device(DEVICE))


def test_every_layer_of_the_network_computes_the_exact_integers_of_its_inputs(
    network: Int8ResNet50,
) -> None:
    """Each of the same inputs: end to end one step that rounds otherwise flips more and more of them."""
    from workers.models.resnet50_launch import Launches

    photos = pictures(1 if INTERPRETED else 5, 3).to(DEVICE)
    launches = Launches(network, Table())
    seen: list[tuple[str, int, float]] = []

    def compare(layer: Int8Conv, held: Tensors, n: int) -> None:
        shape = layer.shape
        shapes = {
            layer.x: (n, shape.H, shape.W, shape.PITCH),
            layer.res: (n, shape.P, shape.Q, shape.N),
            layer.x2: (n, shape.P * shape.STRIDE2, shape.Q * shape.STRIDE2, shape.C2),
            layer.name: (n, shape.P, shape.Q, shape.N),
        }
        given = {name: held[name][: math.prod(size)].view(size) for name, size in shapes.items() if name}
        off = (given[layer.name].to(torch.int16) - layer(given).to(torch.int16)).abs()
        seen.append((layer.name, int(off.max()), float((off > 0).double().mean())))

    launches.watch = compare
    means = launches.means(photos)
    assert len(seen) == 49 and means.shape == (len(photos), 2048) and means.float().std() > 0
    assert not [one for one in seen if one[1] > 1 or one[2] > 1e-4]


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("ways", [Ways(lanes=2), Ways(chunk=16), Ways(lanes=2, chunk=5), Ways(asm=False)])
def test_every_way_through_the_layers_comes_to_the_same(network: Int8ResNet50, ways: Ways) -> None:
    from workers.models.resnet50_launch import Launches

    photos = pictures(64, 3).to(DEVICE)
    expected = Launches(network, Table()).means(photos)
    assert torch.equal(Launches(network, Table(ways=ways)).means(photos), expected)


def test_memory_that_became_too_small_is_kept_for_graphs_alone(network: Int8ResNet50) -> None:
    from workers.models.resnet50_launch import Launches

    launches = Launches(network, Table())
    for size in (16, 32, 64):
        launches._buffer(0, "out0", size)
    assert not launches._outgrown
    if CUDA:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            launches._buffer(0, "out0", 64).zero_()
        launches._buffer(0, "out0", 128)
        assert [kept.numel() for kept in launches._outgrown] == [64]


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_graphs_of_several_sizes_share_memory_and_answer_alike(network: Int8ResNet50) -> None:
    photos = pictures(8, 3).to(DEVICE)
    expected = {n: network.scores(photos[:n]).clone() for n in (8, 3)}
    stream, graphs = torch.cuda.Stream(), {}
    for n in expected:
        with torch.cuda.stream(stream):
            network.scores(photos[:n])
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = network.scores(photos[:n])
        graphs[n] = (graph, out)
    for n in (3, 8, 3):
        graph, out = graphs[n]
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected[n])
