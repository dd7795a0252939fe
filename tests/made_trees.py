"""Small submission trees without a fault, MADE and not measured, for a fault to be put into.

Logs: tests/made_cell_logs.py. What is in a tree is what submission.md (sections 2 to 4) says belongs there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.audit_performance import compare
from orchestrator.logs import read_detail
from orchestrator.paths import ACCURACY_TXT, DETAIL, VERIFY_ACCURACY, VERIFY_PERFORMANCE
from orchestrator.rules import Benchmark, Round, load_round
from orchestrator.submission.layout import MAPPING, Layout, layout_of
from tests import made_cell_logs as logs

SUBMITTER = "Made"
SYSTEM = "2x-made-gpu"
IMPLEMENTATION = "loadgrid"
README = """# {model}, {scenario}

Made for a test: nothing was measured. To repeat the run:

    pip install loadgrid
    loadgrid run manifests/{model}.yaml --compliance
"""


@dataclass(frozen=True)
class Kind:
    """What a tree is of: a round, a division, a suite, a benchmark (as its folder is named), scenarios."""

    round: str
    division: str
    suite: str
    model: str
    scenarios: tuple[str, ...]


KINDS = {
    "v1.0-datacenter": Kind("v1.0", "closed", "datacenter", "resnet50", ("Server", "Offline")),
    "v1.0-edge": Kind("v1.0", "closed", "edge", "ssd-small", ("SingleStream", "MultiStream", "Offline")),
    "v1.0-open": Kind("v1.0", "open", "edge", "resnet50", ("Offline",)),
    "v1.1-datacenter": Kind("v1.1", "closed", "datacenter", "bert-99", ("Server", "Offline")),
    "v1.1-edge": Kind("v1.1", "closed", "edge", "bert-99", ("SingleStream", "Offline")),
    "v6.1-edge": Kind("v6.1", "closed", "edge", "resnet", ("SingleStream", "MultiStream", "Offline")),
    "v6.1-datacenter": Kind("v6.1", "closed", "datacenter", "3d-unet-99", ("Offline",)),
    "v6.1-network": Kind("v6.1", "network", "datacenter", "3d-unet-99", ("Offline",)),
    "v6.1-open": Kind("v6.1", "open", "edge", "my-resnet", ("Offline",)),
}


@dataclass(frozen=True)
class MadeTree:
    """A tree that was made: where its parts lie."""

    root: Path
    kind: Kind

    @property
    def rules(self) -> Round:
        return load_round(self.kind.round)

    @property
    def layout(self) -> Layout:
        return layout_of(self.kind.round)

    @property
    def benchmark(self) -> Benchmark:
        return self.rules.benchmark("resnet" if self.kind.model == "my-resnet" else self.kind.model)

    @property
    def submission(self) -> Path:
        """The submitter's folder."""
        return self.root / self.kind.division / SUBMITTER

    @property
    def system_json(self) -> Path:
        return self.submission / "systems" / f"{SYSTEM}.json"

    def scenario(self, scenario: str | None = None) -> str:
        """This scenario, or the tree's first."""
        return scenario or self.kind.scenarios[0]

    def cell(self, scenario: str | None = None) -> Path:
        """A result's folder."""
        where = self.layout.results(SYSTEM, self.kind.model, self.scenario(scenario))
        return self.submission / where

    def performance(self, scenario: str | None = None) -> Path:
        """The folder of the performance test's logs."""
        return self.cell(scenario) / "performance" / "run_1"

    def accuracy(self, scenario: str | None = None) -> Path:
        """The folder of the accuracy test's logs."""
        return self.cell(scenario) / "accuracy"

    def measurements(self, scenario: str | None = None) -> Path:
        """The folder of user.conf and README.md."""
        where = self.layout.measurements(SYSTEM, self.kind.model, self.scenario(scenario))
        return self.submission / where

    def implementation_json(self, scenario: str | None = None) -> Path:
        name = self.layout.implementation_json(SYSTEM, IMPLEMENTATION, self.scenario(scenario))
        return self.measurements(scenario) / name

    def compliance(self, test: str, scenario: str | None = None) -> Path:
        """The folder of a compliance test."""
        where = self.layout.compliance(SYSTEM, self.kind.model, self.scenario(scenario), test)
        return self.submission / where

    def compliance_tests(self, scenario: str | None = None) -> tuple[str, ...]:
        """The compliance tests of a scenario; none in the open division."""
        if self.kind.division == "open":
            return ()
        return self.rules.compliance_tests(self.benchmark.name, self.scenario(scenario))


def made_tree(root: Path, kind: str) -> MadeTree:
    """A tree of one of KINDS, without a fault."""
    tree = MadeTree(root, KINDS[kind])
    write(tree.system_json, json.dumps(system_values(tree.kind), indent=2))
    for scenario in tree.kind.scenarios:
        _write_cell(tree, scenario)
    _write_code(tree)
    return tree


def write(path: Path, text: str) -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def change_json(path: Path, **values: Any) -> None:
    """Change keys of a JSON object; None takes a key away."""
    whole = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in whole.items() if value is not None}))


def system_values(kind: Kind) -> dict[str, Any]:
    """A system's description with every field of every round, each with something in it."""
    text = dict.fromkeys(SYSTEM_TEXT, "made")
    values: dict[str, Any] = {"division": kind.division, "submitter": SUBMITTER, "status": "available"}
    values |= {"system_name": "Made system", "system_type": kind.suite, "number_of_nodes": 1}
    values |= {"host_processors_per_node": 2, "host_processor_core_count": 32, "accelerators_per_node": 2}
    if kind.round == "v6.1":
        values |= {"host_network_card_count": "2x 100 Gbit Ethernet", "system_type_detail": "made"}
    if kind.division == "network":
        values |= {"is_network": "true"} | dict.fromkeys(NETWORK_TEXT, "made")
    return values | text


SYSTEM_TEXT = [
    "host_processor_model_name",
    "host_memory_capacity",
    "host_storage_capacity",
    "host_storage_type",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "framework",
    "operating_system",
    "other_software_stack",
    "host_processor_frequency",
    "host_processor_caches",
    "host_memory_configuration",
    "host_processor_interconnect",
    "host_networking",
    "host_networking_topology",
    "accelerator_frequency",
    "accelerator_host_interconnect",
    "accelerator_interconnect",
    "accelerator_interconnect_topology",
    "accelerator_memory_configuration",
    "accelerator_on-chip_memories",
    "cooling",
    "hw_notes",
    "sw_notes",
]
NETWORK_TEXT = [
    "network_type",
    "network_media",
    "network_rate",
    "nic_loadgen",
    "number_nic_loadgen",
    "net_software_stack_loadgen",
    "network_protocol",
    "number_connections",
    "nic_sut",
    "number_nic_sut",
    "net_software_stack_sut",
    "network_topology",
]
IMPLEMENTATION_VALUES = {
    "input_data_types": "int8",
    "retraining": "N",
    "starting_weights_filename": "made.onnx",
    "weight_data_types": "int8",
    "weight_transformations": "quantization",
}


def _write_cell(tree: MadeTree, scenario: str) -> None:
    rules, benchmark, division = tree.rules, tree.benchmark, tree.kind.division
    values = logs.performance(rules, benchmark, scenario, division)
    logs.write(tree.performance(scenario), rules, values)
    logs.write_accuracy(tree.accuracy(scenario), rules, benchmark, scenario, division)
    folder = tree.measurements(scenario)
    write(folder / "user.conf", f"*.{scenario}.target_qps = {logs.RATE_PER_S}\n")
    write(folder / "README.md", README.format(model=tree.kind.model, scenario=scenario))
    write(tree.implementation_json(scenario), json.dumps(IMPLEMENTATION_VALUES, indent=2))
    lines = [f"*.*.{name} = {value}\n" for name, value in rules.seeds.items()]
    write(folder / "mlperf.conf", "".join(["# Made for a test\n", *lines]))
    if not tree.layout.one_tree:
        write(folder / "calibration_process.adoc", "See calibration.md.\n")
    for test in tree.compliance_tests(scenario):
        _write_compliance(tree, scenario, test)


def _write_compliance(tree: MadeTree, scenario: str, test: str) -> None:
    rules, benchmark, folder = tree.rules, tree.benchmark, tree.compliance(test, scenario)
    values = logs.compliance(rules, benchmark, scenario, test, tree.kind.division)
    logs.write(folder / "performance" / "run_1", rules, values)
    if test == "TEST04-A":  # judged when TEST04-B is there; the verdict lies in the folder of A
        return
    paired = test == "TEST04-B"
    against = (
        tree.compliance("TEST04-A", scenario) / "performance/run_1" if paired else tree.performance(scenario)
    )
    logs_read = [read_detail(path / DETAIL) for path in (against, folder / "performance/run_1")]
    verdict = compare(rules, test, scenario, *logs_read).text
    place = tree.compliance("TEST04-A", scenario) if paired else folder
    write(place / VERIFY_PERFORMANCE, verdict)
    if test == "TEST01":
        write(folder / VERIFY_ACCURACY, VERIFIED_ANSWERS.format(count=benchmark.accuracy_sample_count))
        digest = logs.write_answers(folder / "accuracy", benchmark.accuracy_sample_count, first=7)
        write(folder / "accuracy" / ACCURACY_TXT, f"hash={digest}\n")


VERIFIED_ANSWERS = """Verifying accuracy. This might take a while...
Reading accuracy mode results...
Reading performance mode results...
num_acc_log_entries = {count}
num_acc_log_duplicate_keys = 0
num_acc_log_data_mismatch = 0
num_perf_log_entries = 1003
num_perf_log_qsl_idx_match = 1003
num_perf_log_data_mismatch = 0
num_missing_qsl_idxs = 0
TEST PASS
"""


def _write_code(tree: MadeTree) -> None:
    if not tree.layout.one_tree:
        folder = tree.submission / "code" / tree.kind.model / IMPLEMENTATION
        write(folder / "README.md", "Made for a test.\n")
        write(tree.submission / "calibration.md", "# Calibration\n\nMade for a test.\n")
        return
    write(tree.submission / "src" / "README.md", "Made for a test.\n")
    write(tree.submission / "documentation" / "calibration.md", "# Calibration\n\nMade for a test.\n")
    if tree.kind.suite == "datacenter":
        write(tree.submission / "documentation" / "bandwidth.md", "# Bandwidth\n\nMade for a test.\n")
    if tree.kind.division == "network":
        write(tree.submission / "documentation" / "network.md", "# Network\n\nMade for a test.\n")
    if tree.kind.division == "open":
        write(tree.submission / MAPPING, json.dumps({tree.kind.model: "resnet"}))
