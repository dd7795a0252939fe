"""What a worker's large weights take, told by the plan: exact, without torch, and only where it is known."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console as Terminal

from orchestrator import doctor
from orchestrator.checks import FAIL, OK
from orchestrator.manifest import Manifest, ManifestError, load_manifest, manifest_files, parse_manifest
from orchestrator.plan import plan
from orchestrator.planview import show_plan, weights_held
from orchestrator.preflight import check_names
from orchestrator.rules import load_round
from orchestrator.suiteview import Part, show_campaign
from tests.made_dlrm import NARROW
from workers.backends.torch_network import PRECISIONS, TorchOptions, load_folded
from workers.models import large_weights, open_model
from workers.models.dlrm_options import NUMBER_BYTES

TIME_BUDGET_S = 20

MANIFESTS = Path(__file__).resolve().parent.parent / "manifests"
MANIFEST = """
name: tables
round: v1.1
suite: datacenter
division: open
benchmark: dlrm-99
scenarios: [Offline]
task: {name: criteo, generated: 8}
backend: {engine: torch, model: dlrm, precision: PRECISION, options: OPTIONS}
workers: {WORKERS}
"""
GPUS = "where: ray, num_gpus: 1"


def made(precision: str = "fp16", workers: str = GPUS, options: Any = "{}") -> Manifest:
    text = MANIFEST.replace("PRECISION", precision).replace("OPTIONS", str(options))
    return parse_manifest(text.replace("WORKERS", workers).encode())


def parts_of(*manifests: Manifest) -> list[Part]:
    return [Part(manifest, plan(manifest, load_round(manifest.round))) for manifest in manifests]


def planned(manifest: Manifest, available: int = 10**12) -> str:
    file = io.StringIO()
    (part,) = parts_of(manifest)
    show_plan(manifest, part.specs, Terminal(file=file, width=200, highlight=False), available)
    return " ".join(file.getvalue().split())


def of_folder(*manifests: Manifest) -> str:
    file = io.StringIO()
    show_campaign("all", parts_of(*manifests), Terminal(file=file, width=300, highlight=False))
    return " ".join(file.getvalue().split())


@pytest.mark.parametrize("precision", list(NUMBER_BYTES))
def test_the_figure_is_that_of_the_tables_as_the_engine_makes_them(precision: str) -> None:
    options = TorchOptions(model="dlrm", precision=precision)
    module, _ = load_folded(options, NARROW, torch.device("cpu"), PRECISIONS[precision])
    tables: Any = module.emb_l
    assert large_weights("dlrm", NARROW, precision) == ("embedding tables", tables.table.nbytes)


def test_beside_the_tables_a_dlrm_is_nothing() -> None:
    model = open_model("dlrm", {}, False, (torch.device("meta"), torch.float32))
    parts = {name: weight.numel() for name, weight in model.named_parameters()}
    found = large_weights("dlrm", {}, "int8")
    assert (
        found == ("embedding tables", parts.pop("emb_l.table")) and 4 * sum(parts.values()) < found[1] / 1000
    )


@pytest.mark.parametrize(
    ("precision", "workers", "told"),
    [
        ("fp16", GPUS, "48 GB of embedding tables in the GPU memory of each worker"),
        ("int8", GPUS, "24 GB of embedding tables in the GPU memory of each worker"),
        ("int8", f"{GPUS}, count: 8", "24 GB of embedding tables in the GPU memory of each worker"),
        ("int8", "where: ray, num_gpus: 0.25, count: 3", "each worker; 72 GB on a GPU that 3 of them share"),
        ("int8", "where: ray, num_gpus: 0.5, count: 1", "in the GPU memory of each worker"),
        ("fp32", "where: ray, num_gpus: 0", "96 GB of embedding tables in the host memory of each worker"),
        ("int8", "where: local", "24 GB of embedding tables in this machine's memory"),
        ("int8", "where: local, count: 4", "tables for each worker, 96 GB in this machine's memory"),
    ],
)
def test_a_plan_says_what_the_tables_take_and_where(precision: str, workers: str, told: str) -> None:
    manifest = made(precision, workers)
    assert (weights_held(manifest) or "").endswith(told)
    text = planned(manifest)
    assert f"memory {weights_held(manifest)} data criteo" in text and "NOT FIT" not in text


def test_a_plan_says_that_tables_do_not_fit_where_it_knows_the_memory() -> None:
    local = made("fp16", "where: local, count: 2")
    text = planned(local, 60 * 10**9)
    assert "The workers' embedding tables: 96 GB, but only 60 GB are free here: THEY WILL NOT FIT" in text
    assert "backend.options, precision" in text
    assert "WILL NOT FIT" not in planned(made("fp16"), 10**9 * 30)  # which GPU it will be is not known


def test_doctor_compares_the_tables_of_all_workers_with_the_memory_of_this_machine() -> None:
    two = made("int8", "where: ray, num_gpus: 0, count: 2")
    (found,) = doctor._weights_here("local", two, 40 * 10**9)
    assert found.status == FAIL and "48 GB of embedding tables for 2 workers, 40 GB free" in found.seen
    assert [check.status for check in doctor._weights_here("local", two, 60 * 10**9)] == [OK]
    assert not list(doctor._weights_here("head:6379", two, 1))  # other machines hold them
    assert not list(doctor._weights_here("local", made("int8"), 1))  # GPUs do


@pytest.mark.parametrize(
    "options", ["{rows: [3, 0]}", "{rows: all}", "{dim: 0}", f"{{dim: {10**400}}}", "{width: 2}"]
)
def test_a_plan_is_silent_where_the_options_make_no_network(options: str) -> None:
    assert weights_held(made(options=options)) is None
    assert " memory " not in planned(made(options=options)).partition("lost worker")[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [("{rows: [3, 4]}", "rows must be 26 numbers"), ("{dim: 0}", "dim must be a positive")],
)
def test_such_options_are_refused_with_their_line_before_anything_starts(options: str, told: str) -> None:
    with pytest.raises(ManifestError, match=rf":\d+: backend\.options: .*{told}"):
        check_names(made(options=options))
    check_names(made())


def test_a_plan_is_silent_where_only_the_built_network_could_tell() -> None:
    files = manifest_files([MANIFESTS / "datacenter-v1.1"])
    told = {manifest.benchmark: weights_held(manifest) for manifest in map(load_manifest, files)}
    assert {name for name, held in told.items() if held} == {"dlrm-99", "dlrm-99.9"} and len(told) > 5
    assert weights_held(load_manifest(MANIFESTS / "echo.yaml")) is None


def test_a_folders_plan_says_it_once_for_those_that_take_the_same() -> None:
    folder = [load_manifest(file) for file in manifest_files([MANIFESTS / "datacenter-v1.1"])]
    assert of_folder(*folder).count("48 GB of embedding tables") == 1
    names = "datacenter-v1.1-dlrm-99, datacenter-v1.1-dlrm-99.9: 48 GB of embedding tables in the GPU memory"
    assert names in of_folder(*folder)


def test_a_driver_without_torch_tells_it() -> None:
    program = """
import sys
sys.modules["torch"] = None
sys.argv = ["loadgrid", "plan", sys.argv[1]]
from orchestrator.cli import main
main()
"""
    file = MANIFESTS / "sizing" / "dlrm-int8.yaml"
    told = subprocess.run(
        [sys.executable, "-c", program, str(file)], check=True, capture_output=True, text=True
    )
    assert "24 GB of embedding tables" in told.stdout
