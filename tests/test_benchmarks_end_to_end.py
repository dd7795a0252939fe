"""Every benchmark the whole way: data made in its true layout on disk, prepared, asked by LoadGen, scored.

The networks are the benchmarks' own with few features and seeded weights, so the scores mean nothing; that
they come out, and in the checkers' form, is what is looked at. Real weights: tests/test_example_*.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.paths import ACCURACY_TXT
from orchestrator.record import Record
from orchestrator.rules import load_round
from tests import made_brats, made_coco, made_criteo, made_imagenet, made_kits, made_librispeech, made_squad
from tests.program import Program

TIME_BUDGET_S = 240

SEED = 20211005


@dataclass(frozen=True)
class Case:
    """A benchmark small enough for one core: how its data is made, and what shrinks its task and network."""

    benchmark: str
    round: str
    suite: str
    task: str
    write: Callable[..., dict[str, Any]]
    samples: int
    model: str
    options: dict[str, Any]
    shrink: dict[str, Any]
    max_batch: int = 3
    payload: str = "index"

    @property
    def runs(self) -> list[str]:
        """Both kinds of test where a sample is a number of rows, and of one task where it is not."""
        return (
            ["performance", "accuracy"] if self.round == "v1.1" or self.task == "imagenet" else ["accuracy"]
        )


CASES = {
    case.model: case
    for case in (
        Case(
            "resnet", "v1.0", "datacenter", "imagenet", made_imagenet.write, 5, "resnet50", {"width": 8}, {},
        ),
        Case(
            "ssd-large", "v1.0", "datacenter", "coco-1200", made_coco.write, 3, "ssd-resnet34",
            {"image_size": 400}, {"image_size": 400}, 1, "value",
        ),
        Case("ssd-small", "v1.0", "edge", "coco-300", made_coco.write, 4, "ssd-mobilenet", {}, {}),
        Case(
            "3d-unet-99", "v1.0", "datacenter", "brats", made_brats.write, 2, "3d-unet-brats",
            {"features": 4}, {}, 1,
        ),
        Case(
            "3d-unet-99", "v6.1", "datacenter", "kits", made_kits.write, 2, "3d-unet-kits",
            {"features": 4, "window": made_kits.WINDOW}, {}, 1,
        ),
        Case(
            "rnnt", "v1.1", "datacenter", "librispeech", made_librispeech.write, 5, "rnnt",
            {"encoder_n_hidden": 32, "pred_n_hidden": 16, "joint_n_hidden": 32}, {},
        ),
        Case(
            "bert-99", "v1.1", "edge", "squad", made_squad.write, 6, "bert-large",
            {"layers": 2, "hidden": 64, "heads": 2, "intermediate": 128}, {}, 4, "value",
        ),
        Case(
            "dlrm-99", "v1.1", "datacenter", "criteo", made_criteo.write, 6, "dlrm",
            {"rows": list(made_criteo.SMALL_TABLES), "dim": 8, "bottom": [16], "top": [16]}, {}, 4,
        ),
    )
}  # fmt: skip


def manifest_of(case: Case, folder: Path) -> dict[str, Any]:
    """The manifest of a case whose data is written below `folder`."""
    options = case.write(folder / "data" / case.model, case.samples, SEED)
    return {
        "name": case.model,
        "round": case.round,
        "suite": case.suite,
        "division": "open",
        "benchmark": case.benchmark,
        "scenarios": ["Offline"],
        "runs": case.runs,
        "task": {**options, "name": case.task, **case.shrink},
        "backend": {"engine": "torch", "model": case.model, "threads": 1, "options": case.options},
        "workers": {"where": "local", "count": 1, "max_batch": case.max_batch},
        "dispatch": {"payload": case.payload},
        "loadgen": {
            "performance_sample_count_override": 2,
            "min_duration": 100,
            "Offline": {"target_qps": 30, "min_query_count": 1},
        },
    }


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The finished program after `loadgrid run` of a folder that holds a manifest for each benchmark."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "all").mkdir()
    for name, case in CASES.items():
        text = yaml.safe_dump(manifest_of(case, folder), sort_keys=False)
        (folder / "all" / f"{name}.yaml").write_text(text)
    with Program(folder, "run", "all") as program:
        program.end(float(TIME_BUDGET_S))
        yield program


def records(campaign: Program, name: str) -> list[Record]:
    """Of every test of a case, the accuracy test last."""
    return [campaign.record(f"Offline-{run}", name) for run in CASES[name].runs]


@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_runs_from_its_data_on_disk_to_its_official_metric(campaign: Program, name: str) -> None:
    case = CASES[name]
    assert "Traceback" not in campaign.said
    found = records(campaign, name)
    accuracy = found[-1]
    for record in found:
        assert (record.status, record.reason, record.losses) == ("finished", "", []), campaign.said
        assert record.payload_mode == case.payload and record.late_answers == 0
    benchmark = load_round(case.round).benchmark(case.benchmark)
    assert accuracy.accuracy is not None
    assert accuracy.accuracy.metric == benchmark.accuracy.metric
    assert accuracy.accuracy.target == benchmark.accuracy.target
    text = (campaign.test_folder("Offline-accuracy", name) / ACCURACY_TXT).read_text()
    seen = [m for line in text.splitlines() if (m := re.match(benchmark.accuracy.pattern, line))]
    assert [float(m[1]) for m in seen] == [accuracy.accuracy.value]
    assert re.search(r"^hash=[0-9a-f]{64}$", text, re.MULTILINE)


@pytest.mark.parametrize("name", CASES)
def test_a_record_says_what_keeps_it_from_being_official(campaign: Program, name: str) -> None:
    accuracy = records(campaign, name)[-1]
    because = "\n".join(accuracy.unofficial_because)
    assert "seeded" in because and "task.sha256" in because
    assert not accuracy.official


def test_workers_and_driver_had_one_data_set_each(campaign: Program) -> None:
    for name in ("resnet50", "bert-large", "dlrm"):
        performance, accuracy = records(campaign, name)
        assert performance.hashes["library"] == accuracy.hashes["library"]
        assert performance.workers[0].model_hash == accuracy.workers[0].model_hash
