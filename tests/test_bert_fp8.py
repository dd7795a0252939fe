"""BERT in FP8: the network against its own fp32, its scales, spans, and `loadgrid calibrate` for SQuAD."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.findings_data import calibration_findings
from orchestrator.manifest import load_manifest, parse_manifest
from orchestrator.preflight import absent_files
from orchestrator.rules import load_round
from orchestrator.submission.calibrated import calibrated
from tests import made_squad
from tests.drive_backend import wait
from tests.made_bert import COUNTS, bert_scales, made_batch, made_bert
from workers.backends import BackendError, Batch, open_backend
from workers.models import EIGHT_BITS, SIZING, ModelError, bert_fp8
from workers.models.scales import read_scales
from workers.tasks import open_task

TIME_BUDGET_S = 30
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
OPTIONS = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32}
FP8 = {"engine": "torch", "model": "bert-large", "precision": "fp8", "threads": 1, **OPTIONS}
MANIFEST = """
name: narrow
round: v1.0
suite: datacenter
division: DIVISION
benchmark: bert-99
scenarios: [Offline]
task: {name: squad, TASK}
backend: {engine: torch, model: bert-large, precision: fp8, threads: 1, scales: s.json, options: OPTIONS}
workers: {where: local, max_batch: 2}
"""
OFFICIAL = "5a4ace54371313359193a661d653731115fc749c6ed92812ada1f74d4b1b708a"


def text(task: str = "path: data", division: str = "open") -> str:
    options = "{" + ", ".join(f"{key}: {value}" for key, value in OPTIONS.items()) + "}"
    return MANIFEST.replace("OPTIONS", options).replace("TASK", task).replace("DIVISION", division)


# The network


def test_it_answers_much_as_fp32_does_and_rows_of_no_sample_change_nothing() -> None:
    folded = made_bert()
    rows, counts = made_batch()
    network = folded.quantised(bert_scales(folded, made_batch(seed=3)), CPU)
    found = network(rows, counts)
    told = folded.agreement(network.scores((rows, counts)), folded.scores((rows, counts)))
    assert told["samples"] == len(COUNTS) and told["cosine"] > 0.98 and 0 < told["error"] < 0.15
    assert found.dtype is torch.float32 and found.shape == (sum(COUNTS), 2)
    more = torch.cat([rows, rows[:5]]), torch.tensor([*COUNTS, 0, 0])
    torch.testing.assert_close(network(*more)[: sum(COUNTS)], found, atol=1e-5, rtol=0)
    alone = network(rows[7:72], torch.tensor([65]))
    torch.testing.assert_close(alone, found[7:72], atol=0.05, rtol=0)  # sums of other shapes round otherwise


def test_a_scale_makes_the_largest_value_of_all_batches_448() -> None:
    folded = made_bert()
    batches = [made_batch(seed=seed) for seed in (3, 4, 5)]
    heard: list[tuple[int, int]] = []
    found = folded.calibrated(batches, "max", True, lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)] and found["corrections"] == {}
    parts = ("qkv", "out", "ffn1", "ffn2")
    assert list(found["activations"]) == [f"layer.{number}.{part}" for number in (0, 1) for part in parts]
    most: list[float] = []
    hook = folded.bert.encoder["layer"][1].output.dense.register_forward_pre_hook(
        lambda module, given: most.append(float(given[0].abs().max()))
    )
    for batch in batches:
        folded(*batch)
    hook.remove()
    assert found["activations"]["layer.1.ffn2"] == pytest.approx(max(most) / 448)
    network = folded.quantised(bert_scales(folded, *batches), CPU)
    for layer in network.layers:
        assert layer.ffn1.weight.dtype is torch.float8_e4m3fn and layer.ffn1.weight.float().abs().max() == 448


def test_scales_of_another_network_are_refused() -> None:
    folded = made_bert()
    scales = bert_scales(folded, made_batch())
    fewer = {name: value for name, value in scales.activations.items() if name != "layer.1.out"}
    for change, told in (
        ({"activations": fewer}, "1 differ, first 'layer.1.out'"),
        ({"corrections": {"layer.0.qkv": [0.0]}}, "correct biases"),
    ):
        with pytest.raises(ModelError, match=told):
            folded.quantised(scales.model_copy(update=change), CPU)


def test_what_a_gpu_cannot_compute_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    folded, cuda = made_bert(), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ModelError, match="from compute capability 8.9 on; this one has 8.0"):
        bert_fp8._kernels(folded, cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "workers.models.bert_kernels", raising=False)
    with pytest.raises(ModelError, match="a CUDA build of torch brings Triton along"):
        bert_fp8._kernels(folded, cuda)
    folded.bert.encoder["layer"][0].attention.self.heads = 4
    with pytest.raises(ModelError, match="hidden / heads a power of 2 from 16 on"):
        bert_fp8._kernels(folded, cuda)


# How alike


def test_scores_are_a_samples_own_logits_and_nothing_beyond() -> None:
    logits = torch.arange(14.0).view(7, 2)
    found = bert_fp8.scores(logits, torch.tensor([2, 0, 3]))
    assert found.shape == (3, 512, 2)
    assert found[0, :2].tolist() == logits[:2].tolist() and found[2, :3].tolist() == logits[2:5].tolist()
    assert found[0, 2:].isnan().all() and found[1].isnan().all() and found[2, 3:].isnan().all()


def test_the_best_span_begins_before_it_ends_and_is_not_too_long() -> None:
    logits = torch.zeros(50, 2)
    logits[3, 1] = logits[40, 0] = 9  # the end lies before the start
    logits[5, 0], logits[34, 1], logits[35, 1] = 8, 4, 5  # 30 tokens; 31
    assert bert_fp8.best_span(logits) == (5, 34)


def test_agreement_counts_spans_and_is_blind_to_what_a_softmax_does_not_see() -> None:
    made = torch.Generator().manual_seed(3)
    counts = torch.tensor([40, 9, 1])
    logits = torch.randn(50, 2, generator=made, dtype=torch.float64)
    exact = bert_fp8.scores(logits, counts)
    told = bert_fp8.agreement(exact + torch.tensor([5.0, -3.0]), exact)
    assert told["samples"] == 3 and told["top1"] == told["start"] == told["end"] == 1
    assert told["error"] < 1e-6
    other = bert_fp8.scores(torch.randn(50, 2, generator=made, dtype=torch.float64), counts)
    told = bert_fp8.agreement(other, exact)
    assert told["top1"] < 0.5 and abs(told["cosine"]) < 0.5 and told["error"] > 0.5


# The engine


def answers(options: dict[str, Any], count: int = 3) -> tuple[dict[str, Any], np.ndarray]:
    """A backend's facts and its logits for made questions."""
    task = open_task("squad", {"generated": 1})
    backend = open_backend(options, task, 4)
    facts = backend.load()
    backend.submit(Batch(np.arange(count), task.warm_up_samples(count), None))
    (done,) = wait(backend)
    backend.close()
    return facts, done.responses.blob.view(np.float32).reshape(count, 384, 2)


def test_seeded_weights_can_be_sized_without_a_file_and_say_so() -> None:
    (facts, found), (again, _) = answers(FP8), answers(FP8, 1)
    _, exact = answers({**FP8, "precision": "fp32"})
    assert facts["scales"] == SIZING and facts["calibration"]["generated"] is True
    assert facts["scales_sha256"] == again["scales_sha256"] and "kernels" not in facts
    assert any("e4m3" in line for line in facts["calibration"]["numbers"])
    there = exact[..., 0] > -9000
    off = np.abs(found - exact)[there]
    assert ((found[..., 0] > -9000) == there).all() and 0 < off.max() < 0.5 * np.abs(exact[there]).max()


def test_other_precisions_of_8_bits_are_refused() -> None:
    assert EIGHT_BITS["bert-large"] == "fp8"
    with pytest.raises(BackendError, match="int8 is for model dlrm or resnet50"):
        answers({**FP8, "precision": "int8"})


# loadgrid calibrate


def test_the_references_list_makes_scales_that_a_run_takes(
    calibrate: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    made_squad.write(tmp_path / "data", 12, seed=1)
    listing, file = tmp_path / "features.txt", tmp_path / "m.yaml"
    listing.write_text("7\n2\n0\n")
    file.write_text(text())
    code, said = calibrate(file, listing, "--method", "mse")
    assert code == 3 and "bert-large in fp8 are found by method max, not by mse" in said
    code, said = calibrate(file, listing, "--compare", 4)
    assert code == 0 and "made from the 3 samples of features.txt" in said
    assert "the same best answer for" in said and "of 4 other samples; cosine of the scores" in said
    data = (tmp_path / "s.json").read_bytes()
    made = read_scales(data)
    assert made.method == "max" and made.corrections == {} and made.samples.list == "features.txt"
    assert made.samples.list_sha256 == hashlib.sha256(listing.read_bytes()).hexdigest()
    assert made.agreement is not None and made.agreement.keys() == {
        "samples", "top1", "start", "end", "cosine", "error",
    }  # fmt: skip
    assert made.agreement["samples"] == 4 and made.agreement["cosine"] > 0.9
    facts, _ = answers({**FP8, "scales": str(tmp_path / "s.json"), "scales_sha256": made.sha256()}, 1)
    assert facts["calibration"]["agreement"] == made.agreement


# Evidence


@pytest.mark.parametrize("name", ["v1.0", "v1.1", "v6.1"])
def test_the_references_list_is_known_to_every_round(name: str) -> None:
    closed = parse_manifest(text(division="closed").encode())
    found = load_round(name)
    listed = {"list": "l.txt", "task": "squad", "count": 100}
    made = [{"calibration": {**listed, "list_sha256": sha256}} for sha256 in (OFFICIAL, "e" * 64)]
    assert not list(calibration_findings(found, closed, made[:1]))
    (other,) = calibration_findings(found, closed, made)
    assert "calibration.txt" in other.why or "bert_calibration_features.txt" in other.why


def test_the_calibration_document_tells_of_fp8() -> None:
    facts = answers(FP8, 1)[0]

    class Cell:
        benchmark, scenario, model_facts = "bert-99", "Offline", facts

        @property
        def performance(self) -> Any:
            return self

    document = calibrated([Cell()])  # type: ignore[list-item]
    assert document is not None and "== bert-99 Offline" in document
    assert "* Weights: FP8 e4m3, one scale a tensor" in document and "biases: fp16" in document
    assert "largest that the format holds" in document and "Biases: as they were." in document
    assert "made by each worker from random samples" in document and "loadgrid calibrate" not in document
    assert facts["weight_data_types"].startswith("fp8 e4m3 (encoder), fp16 (")


def test_the_sizing_manifest_asks_for_what_there_is() -> None:
    sizing = Path(__file__).parents[1] / "manifests" / "sizing"
    manifest, other = (load_manifest(sizing / name) for name in ("bert-fp8.yaml", "bert.yaml"))
    assert manifest.backend_options()["precision"] == "fp8" and not list(absent_files(manifest))
    assert manifest.task == other.task and manifest.workers == other.workers
