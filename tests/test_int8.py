"""Quantising to int8: scales, exact integers, ResNet-50 against its own fp32, tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.made_int8 import made_scales, norms_as_trained, pictures
from workers.models import EIGHT_BITS, ModelError, open_model
from workers.models.int8_conv import accumulate
from workers.models.int8_tiles import (
    PIPELINE_BYTES,
    TABLE,
    Device,
    Table,
    Tiles,
    Ways,
    candidates,
    default_tiles,
    read_table,
    with_entry,
)
from workers.models.quantise import TOP, activation_scales, agreement, quantise_weights
from workers.models.resnet50_int8 import Int8ResNet50, float_scores, pack, tensor_names
from workers.models.scales import read_scales

TIME_BUDGET_S = 30
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
H100 = Device("NVIDIA H100 80GB HBM3", "9.0", 132)


@pytest.fixture(scope="module")
def folded() -> Any:
    """A narrow network: what is tested are the ways of numbers, not how good they are."""
    model: Any = norms_as_trained(open_model("resnet50", {"width": 4}))
    model.fold()
    return model


# Scales


@given(seed=st.integers(0, 999), spread=st.floats(1e-3, 1e3), shape=st.sampled_from([(3, 5), (2, 4, 3, 3)]))
def test_a_weight_is_within_half_a_step_of_its_channels_scale(
    seed: int, spread: float, shape: tuple[int, ...]
) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread
    steps, scale = quantise_weights(w)
    assert steps.dtype is torch.int8 and (steps.flatten(1).abs().amax(1) == TOP).all()
    back = steps.double() * scale.view(-1, *[1] * (w.dim() - 1))
    assert ((back - w.double()).abs().flatten(1).amax(1) <= scale / 2 * (1 + 1e-9)).all()


def test_a_channel_of_zeros_stays_one() -> None:
    steps, scale = quantise_weights(torch.zeros(2, 3))
    assert (steps == 0).all() and (scale > 0).all()


def test_mse_gives_up_an_outlier_that_max_keeps() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1)).abs()
    lonely = torch.cat([values, torch.tensor([40.0])])

    def run(batch: torch.Tensor, observe: Any) -> torch.Tensor:
        observe("only", batch)
        return batch

    kept = activation_scales(run, [lonely, values], "max")["only"]
    assert kept == 0.314961  # 40 / 127 to six digits, for what rounds with it
    assert activation_scales(run, [lonely, values], "mse")["only"] < kept / 1.5
    assert activation_scales(run, [values - 100], "mse")["only"] > 0  # never above zero: any scale will do


def test_agreement_is_not_taken_in_by_a_favourite_class() -> None:
    made = torch.Generator().manual_seed(2)
    exact = torch.randn(50, 10, generator=made)
    exact[:, 3] += 100
    other = torch.randn(50, 10, generator=made)
    other[:, 3] += 100
    assert agreement(exact, exact) == {"samples": 50.0, "top1": 1.0, "cosine": pytest.approx(1), "error": 0.0}
    told = agreement(other, exact)
    assert told["top1"] == 1.0 and abs(told["cosine"]) < 0.3


# The file


def test_a_file_of_scales_reads_back_as_it_was_written(folded: Any) -> None:
    corrections = {"conv1": [0.5, -1.25, 0.0, 3.0]}
    scales = made_scales(folded, [pictures(1, 4)], corrections=corrections, agreement={"top1": 0.99})
    assert read_scales(scales.written()) == scales
    assert scales.written() == read_scales(scales.written()).written()
    assert json.loads(scales.written())["activations"].keys() == set(tensor_names(folded))


@settings(max_examples=30)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode), st.just(b"[" * 9999)))
def test_what_is_no_file_of_scales_is_told_so(data: bytes) -> None:
    with pytest.raises(ModelError, match="it is no file of scales"):
        read_scales(data)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("activations", {"conv1": 0.0}, "activations.conv1"),
        ("activations", {"conv1": 1e-300}, "activations.conv1"),
        ("activations", {"conv1": 1e300}, "activations.conv1"),
        ("activations", {"conv1": "1"}, "activations.conv1"),
        ("corrections", {"conv1": [None]}, "corrections.conv1.0"),
        ("format", "loadgrid-scales-9", "format"),
        ("more", 1, "more"),
    ],
)
def test_a_wrong_value_in_the_file_is_named(folded: Any, key: str, value: Any, told: str) -> None:
    body = json.loads(made_scales(folded, [pictures(1, 4)]).written())
    with pytest.raises(ModelError, match=rf"it is no file of scales \({told}"):
        read_scales(json.dumps({**body, key: value}).encode())


# Exact integers


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    side=st.integers(3, 6),
    window=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    channels=st.integers(1, 9),
)
def test_sums_are_the_integers(seed: int, side: int, window: int, stride: int, channels: int) -> None:
    made = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (2, side, side, channels), generator=made).to(torch.int8)
    w = torch.randint(-127, 128, (3, window * window * channels), generator=made).to(torch.int8)
    pad = window // 2
    found = accumulate(x, w, (window, window), stride, pad)
    padded = functional.pad(x.long(), (0, 0, pad, pad, pad, pad))
    for p in range(found.shape[1]):
        for q in range(found.shape[2]):
            seen = padded[:, p * stride : p * stride + window, q * stride : q * stride + window].flatten(1)
            assert (found[:, p, q].long() == seen @ w.long().T).all()


def test_the_first_layer_sees_the_pixels_less_their_mean(folded: Any) -> None:
    """Its 4x4 over squares of pixels - 128 is the 7x7 over pixels - mean, to which the bias comes."""
    network = Int8ResNet50(folded, made_scales(folded, [pictures(1, 4)]), CPU)
    photos = pictures(1, 5)
    first = network.layers[0]
    found = first.before_cut({"photos": pack(photos, network.pads)})
    steps, scale = quantise_weights(folded.conv1.weight)
    w = steps.double() * scale.view(-1, 1, 1, 1)
    x = photos.permute(0, 3, 1, 2).double() - folded._mean
    exact = functional.conv2d(x, w, folded.conv1.bias.double(), 2, 3).permute(0, 2, 3, 1)
    off = (found * (exact.abs().max() / found.abs().max()) - exact).abs()
    inner = off[:, 2:-2, 2:-2]
    assert inner.max() < 1e-4 * exact.abs().max()
    assert off.max() < 0.05 * exact.abs().max()  # around the photo the mean is rounded to whole pixels


# ResNet-50


def test_the_quantised_network_answers_much_as_fp32_does_and_corrected_biases_keep_the_means(
    folded: Any,
) -> None:
    batches = [pictures(1, 6), pictures(1, 7)]
    photos = torch.cat(batches)
    heard: list[tuple[int, int]] = []
    parts = folded.calibrated(batches, "mse", True, lambda done, total: heard.append((done, total)))
    assert heard[0] == (1, 104) and heard[-1] == (104, 104) and len(heard) == 104
    corrected = folded.quantised(made_scales(folded, [photos], **parts, method="mse"), CPU)
    exact = float_scores(folded, photos, lambda name, values: None)
    assert torch.allclose(exact, folded.scores(photos), atol=1e-4)
    found = corrected.scores(photos)
    told = agreement(found, exact)
    assert told["cosine"] > 0.85 and told["error"] < 0.5
    plain = folded.quantised(made_scales(folded, [photos], **parts | {"corrections": {}}), CPU)

    def shift(scores: torch.Tensor) -> float:
        return float((scores.mean(0) - exact.mean(0)).norm())

    assert shift(found) < 0.05 * shift(plain.scores(photos))
    assert (corrected(photos[:1]) == found[:1].argmax(1)).all() and corrected(photos[:1]).dtype is torch.int64


def test_scales_and_corrections_do_not_hang_on_the_order_of_sums(folded: Any) -> None:
    """As another number of threads makes it; other batches do so on a machine with one core too."""
    photos = pictures(4, 8)
    whole, halves = (folded.calibrated(list(photos.split(size)), "mse") for size in (4, 2))
    assert whole == halves


def test_scales_of_another_network_are_refused(folded: Any) -> None:
    scales = made_scales(folded, [pictures(1, 4)])
    fewer = {name: value for name, value in scales.activations.items() if name != "layer2.0.conv1"}
    for change, told in (
        ({"activations": fewer}, "1 differ, first 'layer2.0.conv1'"),
        ({"corrections": {"conv9": [0.0]}}, "'conv9', which the network does not have"),
        ({"corrections": {"conv1": [0.0]}}, "correct 1 channels of conv1, which has 4"),
    ):
        with pytest.raises(ModelError, match=told):
            folded.quantised(scales.model_copy(update=change), CPU)


def test_every_network_that_says_so_can_be_quantised() -> None:
    narrow: dict[str, dict[str, Any]] = {
        "bert-large": {"layers": 1, "hidden": 4, "heads": 1, "vocab": 2},
        "dlrm": {"rows": 26 * [2], "dim": 2, "bottom": [2], "top": [2]},
        "resnet50": {"width": 1},
    }
    for name in EIGHT_BITS:
        assert {"calibrated", "quantised", "scores", "fold"} <= set(dir(open_model(name, narrow[name])))


# Tiles


@pytest.fixture(scope="module")
def shapes() -> dict[str, Any]:
    """The shape of each kind of layer of the benchmark's network."""
    torch.manual_seed(1)
    model: Any = open_model("resnet50", {})
    model.fold()
    model.requires_grad_(False)
    from workers.models.resnet50_int8 import _layers

    layers = _layers(model, dict.fromkeys(tensor_names(model), 0.02))
    assert len(layers) == 49
    by_kind: dict[str, Any] = {}
    for layer in layers:
        assert by_kind.setdefault(layer.kind, layer.shape) == layer.shape, layer.kind
    return by_kind


def test_every_kind_of_layer_has_tiles_that_cover_it(shapes: dict[str, Any]) -> None:
    assert len(shapes) == 24
    known = read_table(H100, "resnet50")
    for kind, shape in shapes.items():
        tuned = [known.tiles_for(kind, shape, n) for n in (1, 32, 100, 256)]
        for tiles in (default_tiles(shape), *candidates(shape), *tuned):
            bm, bn, bk, warps, stages, _ = tiles
            assert shape.N % bn == 0 and shape.C % bk == 0 and shape.C2 % min(bk, shape.C2 or bk) == 0
            assert bm % 64 == 0 and warps in (4, 8) and 1 <= stages <= 4
            assert (bm + bn) * bk * stages <= PIPELINE_BYTES


def test_a_tuned_table_is_found_by_its_device_or_one_like_it(shapes: dict[str, Any], tmp_path: Path) -> None:
    shape, file = shapes["l3.2"], tmp_path / "tiles.json"
    tuned = Table(
        H100.name, Ways(lanes=2), {"l3.2": {64: Tiles(64, 64, 64, 4, 3), 256: Tiles(256, 64, 64, 8, 3)}}
    )
    body = with_entry({"tuned": []}, Device("other", "8.0", 108), "resnet50", Table(), {})
    body = with_entry(body, H100, "resnet50", Table(), {})
    body = with_entry(body, H100, "resnet50", tuned, {"triton": "3.6.0"})  # replaces the entry before
    assert len(body["tuned"]) == 2
    file.write_text(json.dumps(body))
    assert read_table(H100, "resnet50", file) == tuned
    assert read_table(Device("NVIDIA H200", "9.0", 132), "resnet50", file) == tuned
    assert [tuned.tiles_for("l3.2", shape, n).bm for n in (1, 64, 150, 170, 999)] == [64, 64, 64, 256, 256]
    assert tuned.tiles_for("l4.2", shapes["l4.2"], 64) == default_tiles(shapes["l4.2"])
    for device, network in ((Device("H20", "9.0", 78), "resnet50"), (H100, "bert")):
        assert read_table(device, network, file) == Table()


def test_the_kept_table_is_whole() -> None:
    for entry in json.loads(TABLE.read_text())["tuned"]:
        device = Device(entry["device"], entry["capability"], entry["multiprocessors"])
        assert read_table(device, entry["network"]).of == entry["device"]
