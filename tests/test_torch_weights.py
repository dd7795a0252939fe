"""What a model may ask of the torch engine, weights from a file, hashes and seeds that no device changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workers import models
from workers.backends import BackendError
from workers.backends import torch_weights as weights
from workers.backends.torch_network import TorchOptions, load_network
from workers.models import seeded
from workers.models.seeded import fill_uniform_

TIME_BUDGET_S = 20
OPTIONS: dict[str, Any] = {}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


class Hooked(nn.Module):
    """A network that uses everything that a model may have."""

    full_precision = ("sums",)

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.sums = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.zeros(6, 4, device=device, dtype=dtype))
        self.dtypes: list[torch.dtype] = []

    def load_published(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"table": state["emb"], **{k: v for k, v in state.items() if k != "emb"}}

    def fold(self) -> None:
        self.dtypes = [self.layer.weight.dtype, self.table.dtype]
        self.layer.weight = nn.Parameter(self.layer.weight * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    return Hooked()


def build_on(
    options: Mapping[str, Any], channels_last: bool, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    return Hooked(device, dtype)


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._MODELS, "hooked", __name__)


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_is_built_in_place_hashed_then_folded_then_converted(device: str) -> None:
    made = load_network(TorchOptions(model="hooked", precision="fp16", device=device), {}, 1)
    module = made._module
    assert isinstance(module, Hooked)
    assert module.dtypes == [torch.float32, torch.float16]  # the table was made in its precision
    assert {p.device.type for p in module.parameters()} == {device}
    assert (module.layer.weight.dtype, module.sums.weight.dtype) == (torch.float16, torch.float32)
    assert not any(p.requires_grad for p in module.parameters())
    plain = load_network(TorchOptions(model="hooked", precision="fp16", device="cpu"), {}, 1)
    assert made.facts["model_hash"] == plain.facts["model_hash"]


@pytest.mark.parametrize("zipped", [True, False])
def test_published_weights_are_mapped_whatever_their_format(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "published.pt"
    state = {**Hooked().state_dict(), "emb": torch.arange(24.0).reshape(6, 4)}
    del state["table"]
    torch.save({"epoch": 3, "state_dict": state}, file, _use_new_zipfile_serialization=zipped)
    made = load_network(TorchOptions(model="hooked", weights=str(file)), {}, 1)
    module = made._module
    assert isinstance(module, Hooked) and module.table.flatten().tolist() == list(range(24))
    assert torch.equal(module.layer.weight, 2 * state["layer.weight"])


def test_a_published_name_that_is_missing_is_told(tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    torch.save(Hooked().state_dict(), file)
    with pytest.raises(BackendError, match=r"other.pt does not fit the model: it holds no 'emb'"):
        load_network(TorchOptions(model="hooked", weights=str(file)), {}, 1)


@pytest.mark.parametrize(
    ("found", "change"),
    [
        ("quantised numbers (qint8)", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
        ("complex numbers (complex64)", lambda t: t.to(torch.complex64)),
        ("whole numbers (int8)", lambda t: t.to(torch.int8)),
        ("truth numbers (bool)", lambda t: t.to(torch.bool)),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch deprecates quantised tensors; files of them remain
def test_numbers_of_another_kind_are_refused(
    tmp_path: Path, found: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    file = tmp_path / "other.pt"
    state = {**Hooked().state_dict(), "emb": torch.ones(6, 4)}
    del state["table"]
    torch.save({**state, "layer.weight": change(state["layer.weight"])}, file)
    with pytest.raises(BackendError, match=re.escape(f"layer.weight holds {found} where the model has fl")):
        load_network(TorchOptions(model="hooked", weights=str(file)), {}, 1)
    torch.save({**state, "layer.weight": state["layer.weight"].bfloat16()}, file)
    load_network(TorchOptions(model="hooked", weights=str(file)), {}, 1)


def test_kernels_of_two_and_three_dimensions_are_laid_out_channels_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convolutions = nn.ModuleList([nn.Conv2d(2, 4, 3), nn.Conv3d(2, 4, 3)])
    monkeypatch.setattr("tests.test_torch_weights.build_on", lambda *_: convolutions)
    load_network(TorchOptions(model="hooked", channels_last=True), {}, 1)
    flat, deep = (part.weight for part in convolutions)
    assert flat.is_contiguous(memory_format=torch.channels_last)
    assert deep.is_contiguous(memory_format=torch.channels_last_3d)


# Hashes


def summed(tensor: torch.Tensor) -> str:
    module = nn.Module()
    module.table = nn.Parameter(tensor, requires_grad=False)
    return weights.model_hash(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_the_hash_of_a_large_tensor_hears_every_change(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(weights, "SUMMED_FROM_BYTES", 100)
    monkeypatch.setattr(weights, "SUM_CHUNK_WORDS", 16)  # several chunks, and bytes after the last word
    table = torch.from_numpy(rng.integers(0, 200, 333)).to(dtype)
    known = {summed(table), summed(table.reshape(3, 111)), summed(table.flip(0))}
    assert len(known) == 3 and summed(table.clone()) in known
    for place in range(len(table)):
        changed = table.clone()
        changed[place] += 1
        known.add(summed(changed))
    assert len(known) == 3 + len(table)
    one, other = 3, 200
    changed = table.clone()
    changed[one], changed[other] = table[other] + 1, table[one] + 1
    known.add(summed(changed))
    assert len(known) == 4 + len(table)


def test_the_hash_does_not_depend_on_where_a_tensor_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SUMMED_FROM_BYTES", 100)
    table = torch.randn(1001, generator=torch.Generator().manual_seed(1)).half()
    expected = summed(table)
    assert summed(torch.cat([table[:3], table])[3:]) == expected  # no longer at a multiple of eight bytes
    assert summed(torch.stack([table, table], 1)[:, 0]) == expected  # not in one piece
    for device in DEVICES:
        assert summed(table.to(device)) == expected


# Seeded values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_seeded_values_depend_on_seed_and_place_only(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    def filled(seed: int, device: str = "cpu") -> torch.Tensor:
        table = torch.empty(100, 30, dtype=dtype, device=device)
        fill_uniform_(table, 0.25, seed)
        return table.cpu()

    first = filled(5)
    monkeypatch.setattr(seeded, "CHUNK", 7)
    assert all(torch.equal(filled(5, device), first) for device in DEVICES)
    assert not torch.equal(filled(6), first)


def test_seeded_values_are_spread_evenly() -> None:
    table = torch.empty(1 << 18)
    fill_uniform_(table, 2.0, 3)
    assert table.min() >= -2.0 and table.max() < 2.0
    shares = torch.histc(table, 16, -2, 2) / len(table)
    # Standard deviation of a share: sqrt(1/16 * 15/16 / 2^18) = 0.0005.
    assert (shares - 1 / 16).abs().max() < 0.003
    pairs = (table[:-1] * table[1:]).mean()
    assert abs(float(pairs)) < 0.02  # neighbours know nothing of each other: standard deviation 0.0026
