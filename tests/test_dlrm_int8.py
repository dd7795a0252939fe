"""DLRM in 8 bits: tables made in pieces, fp32 rows where they came from, scales, the engine, what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.manifest import parse_manifest
from orchestrator.submission.facts import implementation, quantised
from tests.drive_backend import wait
from tests.made_dlrm import CPU, NARROW, made_folded, made_int8, made_pairs, made_scales, made_state
from workers.backends import BackendError, Batch, open_backend, torch_calibration
from workers.backends.torch_weights import model_hash
from workers.models import SIZING, ModelError, dlrm_tables, open_model
from workers.models.dlrm_int8 import E4M3, INTERACTION, Int8Dlrm, log_odds, stored, tensor_names
from workers.models.quantise import TOP
from workers.models.scales import read_scales
from workers.tasks import open_task

TIME_BUDGET_S = 20
pytestmark = pytest.mark.usefixtures("one_thread")

TORCH = {"engine": "torch", "model": "dlrm", "threads": 1, **NARROW}
INT8 = {**TORCH, "precision": "int8"}


def seeded(dtype: torch.dtype) -> Any:
    torch.manual_seed(1)
    return open_model("dlrm", NARROW, False, (CPU, dtype))


# Tables


def of_each_row(tables: Any) -> torch.Tensor:
    """The value of a step for each row of the tables, (rows, 1)."""
    return tables.scales.repeat_interleave(torch.tensor(tables.rows))[:, None]


@pytest.mark.parametrize("pieces", [1 << 22, 70])
def test_seeded_tables_in_int8_are_the_fp32_ones_to_half_a_step(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dlrm_tables, "_COPY_ROWS", pieces)
    exact, eight = seeded(torch.float32).emb_l, seeded(torch.int8).emb_l
    assert eight.table.dtype is torch.int8 and eight.table.shape == exact.table.shape
    each = of_each_row(eight)
    assert ((eight.table * each - exact.table).abs() <= each / 2 * 1.0001).all()
    for part, whole, scale in zip(
        eight.table.split(eight.rows), exact.table.split(eight.rows), eight.scales, strict=True
    ):
        assert part.abs().max() == TOP and torch.isclose(whole.abs().max(), scale * TOP)
    indices = made_pairs(50, NARROW["rows"], 2)[:, 13:]
    indices[0], indices[1] = -1, 2_000_000_000
    found, wanted = eight(indices, 5), exact(indices, 5)
    assert found.shape == wanted.shape and torch.equal(
        found[:, 1:27], wanted[:, 1:27]
    )  # fp32, nothing is lost


@pytest.mark.parametrize("pieces", [1 << 22, 70])
def test_a_checkpoints_tables_are_quantised_as_they_are_read(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dlrm_tables, "_COPY_ROWS", pieces)
    state = made_state(NARROW)
    exact, eight = made_folded(NARROW, torch.float32).emb_l, made_folded(NARROW, torch.int8).emb_l
    each = of_each_row(eight)
    assert ((eight.table * each - exact.table).abs() <= each / 2 * 1.0001).all()
    indices = made_pairs(50, NARROW["rows"], 2)[:, 13:]
    assert torch.equal(eight(indices, 0)[:, 1:], exact(indices, 0)[:, 1:])
    model = seeded(torch.int8)
    before = state["emb_l.4.weight"].clone()
    model.load_state_dict(state)
    assert torch.equal(state["emb_l.4.weight"], before)


def test_a_checkpoint_that_does_not_fit_int8_tables_is_refused(tmp_path: Path) -> None:
    def why(**other: torch.Tensor) -> str:
        torch.save({**made_state(NARROW), **other}, tmp_path / "w.pt")
        with pytest.raises(BackendError) as caught:
            backend = open_backend({**INT8, "weights": str(tmp_path / "w.pt")}, task(), 1)
            backend.load()
        return str(caught.value)

    bad = made_state(NARROW)["emb_l.2.weight"].clone()
    bad[3, 4] = float("nan")
    assert "emb_l.2.weight holds values that are not finite" in why(**{"emb_l.2.weight": bad})
    assert "emb_l.3.weight has the shape (3, 16) instead of" in why(**{"emb_l.3.weight": torch.zeros(3, 16)})
    whole = torch.zeros(bad.shape, dtype=torch.int8)
    assert "holds whole numbers (int8) where the model has floating-point" in why(**{"emb_l.2.weight": whole})
    assert "backend.scales is missing" in why()


def test_the_hash_is_of_the_quantised_tables_and_their_scales() -> None:
    first, again = seeded(torch.int8), seeded(torch.int8)
    assert model_hash(first) == model_hash(again) != model_hash(seeded(torch.float32))
    again.emb_l.scales[7] *= 1.5
    assert model_hash(first) != model_hash(again)


# The network


def test_8_bits_answer_nearly_as_fp32_does() -> None:
    exact, eight = made_folded(NARROW, torch.float32), made_int8(NARROW, CPU)
    batch = (made_pairs(2000, NARROW["rows"], 5), torch.tensor([2000]))
    wanted, found = exact.scores(batch), eight.scores(batch)
    assert found.shape == (2000,) and wanted.std() > 0.05
    told = exact.agreement(found, wanted)
    assert 0 < told["error"] < 0.2 and 0.98 < told["cosine"] < 1 and told["samples"] == 2000
    both = torch.corrcoef(torch.stack([found, wanted]))[0, 1].item()
    assert told["cosine"] == pytest.approx(both, abs=1e-5) and 0.9 < told["top1"] <= 1
    # And the network that 8 bits are calibrated with and held against is the fp32 one.
    assert torch.equal(made_folded(NARROW, torch.int8).scores(batch), exact.scores(batch))


def test_each_pair_is_answered_by_itself_and_padding_disturbs_nobody() -> None:
    eight = made_int8(NARROW, CPU)
    rows = made_pairs(40, NARROW["rows"], 6)
    padded = torch.cat([rows, torch.full((9, 39), -(2**31), dtype=torch.int32)])
    padded[45:] = 2**31 - 1
    answers = eight(padded, torch.tensor([30, 10, 0]))
    assert answers.shape == (49,) and answers.dtype == torch.float32
    assert torch.allclose(answers[:40], eight(rows), atol=1e-6)


def test_values_are_rounded_and_saturated_as_the_kernels_do() -> None:
    y = torch.tensor([0.0, 0.49, 0.5, 1.5, 126.6, 900.0])
    assert stored(y, torch.int8).tolist() == [0, 0, 1, 2, 127, 127]
    assert stored(torch.tensor([-9e9, 17.1, 9e9]), E4M3).tolist() == [-448, 18, 448]


def test_the_largest_values_of_the_calibration_are_the_last_of_their_formats() -> None:
    folded = made_folded(NARROW, torch.int8)
    rows = [made_pairs(200, NARROW["rows"], seed) for seed in (1, 2)]
    scales = made_scales(folded, rows)
    assert list(scales.activations) == tensor_names(folded) and not scales.corrections
    eight = Int8Dlrm(folded, scales, CPU)
    made = [eight.emulated(some) for some in rows]
    assert max(int(one["left"].max()) for one in made) in (126, 127)
    assert max(float(one[INTERACTION].float().abs().max()) for one in made) >= 416


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"activations": {"bot_l.0": 1.0}}, "scales do not fit"),
        ({"corrections": {"bot_l.0": [1.0]}}, "which those of model 'dlrm' do not"),
    ],
)
def test_scales_of_another_network_are_refused(change: dict[str, Any], told: str) -> None:
    folded = made_folded(NARROW, torch.int8)
    with pytest.raises(ModelError, match=told):
        folded.quantised(made_scales(folded, [made_pairs(9, NARROW["rows"], 1)], **change), CPU)


def test_the_8_bit_network_knows_the_size_of_its_tables(tmp_path: Path) -> None:
    from tests import made_criteo

    options = made_criteo.write(tmp_path / "data", 3, seed=1)
    library = open_task("criteo", options).prepare(tmp_path / "cache")
    rows = [index + 1 for index in library.array("largest").tolist()]
    made_int8({**NARROW, "rows": rows}, CPU).check_library(library)
    rows[9] -= 1
    with pytest.raises(ModelError, match=f"table 9 has {rows[9]} rows and the data set index {rows[9]}"):
        made_int8({**NARROW, "rows": rows}, CPU).check_library(library)


# The engine, and what is told


def task() -> Any:
    return open_task("criteo", {"generated": 2})


def test_the_engine_computes_it_and_sizes_seeded_weights_without_a_file() -> None:
    backend = open_backend(INT8, task(), 2)
    facts = backend.load()
    samples = [memoryview(made_pairs(n, NARROW["rows"], n).numpy().tobytes()) for n in (30, 50)]
    backend.submit(Batch(np.arange(2), samples, None))
    (done,) = wait(backend)
    backend.close()
    assert done.responses.sizes is not None and done.responses.sizes.tolist() == [120, 200]
    answers = done.responses.blob.view(np.float32)
    assert len(answers) == 80 and ((answers > 0) & (answers < 1)).all()
    assert facts["weight_data_types"] == Int8Dlrm.weight_data_types
    assert any("int8, symmetric, one scale a table" in line for line in facts["calibration"]["numbers"])
    assert facts["scales"] == "of random samples" and facts["calibration"]["method"] == "max"
    again = open_backend(INT8, task(), 2)
    assert again.load()["scales_sha256"] == facts["scales_sha256"]
    again.close()


MANIFEST = """
name: narrow
round: v1.0
suite: datacenter
division: open
benchmark: dlrm-99
scenarios: [Offline]
task: {name: criteo, generated: 6}
backend: {engine: torch, model: dlrm, precision: int8, weights: w.pt, scales: s.json, options: OPTIONS}
workers: {where: local, max_batch: 2}
"""


def test_scales_by_loadgrid_calibrate_are_those_of_the_run(
    calibrate: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(made_state(NARROW), tmp_path / "w.pt")
    manifest = tmp_path / "m.yaml"
    manifest.write_text(MANIFEST.replace("OPTIONS", str(NARROW)))

    with monkeypatch.context() as early:  # refused before any weights are loaded
        early.setattr(torch_calibration, "load_folded", None)
        code, said = calibrate(manifest, "--method", "mse")
    assert code != 0 and "found by method max, not by mse" in said and not (tmp_path / "s.json").exists()
    code, said = calibrate(manifest, "--compare", "2")
    assert code == 0 and "3 generated samples: for sizing, never official" in said
    scales = read_scales((tmp_path / "s.json").read_bytes())
    assert scales.agreement is not None and scales.agreement["error"] < 0.3 and scales.agreement["top1"] > 0.9
    files = {"weights": str(tmp_path / "w.pt"), "scales": str(tmp_path / "s.json")}
    backend = open_backend({**INT8, **files, "scales_sha256": scales.sha256()}, task(), 2)
    facts = backend.load()
    backend.close()
    assert facts["model_hash"] == scales.model_hash and facts["scales"] == "s.json"


def test_a_submission_names_both_formats_of_the_weights() -> None:
    facts = {"model": "dlrm", "scales": "s.json", "weight_data_types": Int8Dlrm.weight_data_types}
    performance = SimpleNamespace(
        manifest=parse_manifest(MANIFEST.replace("OPTIONS", str(NARROW)).encode()),
        model_facts=facts,
        record=SimpleNamespace(division="closed"),
    )
    cell: Any = SimpleNamespace(performance=performance, benchmark="dlrm-99")
    told = implementation(cell, {})
    formats = "int8 (tables), fp8 e4m3 (perceptrons), fp16 (first layer), fp32 (last layer)"
    assert told["weight_data_types"] == formats and quantised(cell, told)
    assert f"quantised after training to {formats} by the scales of s.json" in told["weight_transformations"]
    own = implementation(cell, {"weight_data_types": "mixed"})
    assert own["weight_data_types"] == "mixed" and quantised(cell, own)
    facts["scales"] = SIZING
    assert "by scales of random samples, for sizing" in implementation(cell, {})["weight_transformations"]


def test_log_odds_are_of_a_click_and_finite() -> None:
    found = log_odds(torch.tensor([0.5, 0.75, 1.0]))
    assert torch.allclose(found[:2], torch.tensor([1.0, 3.0]).log()) and found.isfinite().all()
