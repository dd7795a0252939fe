"""Results trees as they are published, of every layout, small: systems, logs, accuracy, power."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import made_logs

RATES = {
    "Offline": "result_samples_per_second",
    "Server": "result_scheduled_samples_per_sec",
    "SingleStream": "result_90.00_percentile_latency_ns",
    "MultiStream": "effective_samples_per_query",
}
SYSTEM = {
    "division": "closed",
    "status": "available",
    "system_type": "datacenter",
    "number_of_nodes": "2",
    "host_processor_model_name": "EPYC 7742",
    "host_processors_per_node": "2",
    "host_processor_core_count": "64",
    "accelerator_model_name": "A100",
    "accelerators_per_node": "8",
    "framework": "TensorRT 7.2",
    "operating_system": "Ubuntu 20.04",
    "hw_notes": "watercooled",
    "sw_notes": "",
}
HASH = "hash=" + 64 * "0"


def system(submission: Path, name: str, **values: Any) -> None:
    """A system's description; a value of None leaves the field out."""
    told = SYSTEM | {"submitter": submission.name, "system_name": name} | values
    folder = submission / "systems"
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in told.items() if value is not None}
    (folder / f"{name}.json").write_text(json.dumps(kept))


def result(
    submission: Path,
    cell: str,
    value: float,
    version: str = ".5a1",
    run: str = "run_1",
    log: str = "",
    accuracy: str = "accuracy=76.456%, good=38228, total=50000",
    **more: Any,
) -> Path:
    """A result: `cell` is SYSTEM/MODEL/SCENARIO, `log` the scenario of its log where that is another."""
    folder = submission / "results" / cell
    scenario = log or next(name for name in RATES if name.lower() == folder.name.lower())
    results = {RATES[scenario]: value} | more
    detail = made_logs.detail(version, scenario, results)
    summary = made_logs.summary(scenario, "", verdict="VALID").replace("samples_per_query : 1\n", "")
    made_logs.write(folder / "performance" / run, detail, summary)
    (folder / "accuracy").mkdir(exist_ok=True)
    (folder / "accuracy" / "accuracy.txt").write_text(f"{accuracy}\n{HASH}\n")
    return folder


def power(folder: Path, watts: float) -> None:
    """Readings of a meter within the window that `made_logs.detail` names."""
    for name in ("client.json", "server.json"):
        path = folder / "performance" / "power" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"timezone": 0}')
    rows = [
        f"Time,03-08-2021 00:0{minute}:10.000,Watts,{watts},Volts,230,Amps,1,PF,0.9,Mark,m_testing\n"
        for minute in range(1, 9)
    ]
    (folder / "performance" / "run_1" / "spl.txt").write_text("".join(rows))


def round_of_v1_0(root: Path) -> Path:
    """A tree of v1.0: two submitters, closed and open, both suites, power, an inferred result."""
    closed, other, opened = root / "closed" / "Acme", root / "closed" / "Zeta", root / "open" / "Acme"
    system(closed, "big", system_name="Big Box")
    result(closed, "big/resnet50/Offline", 304876.0)
    result(closed, "big/resnet50/Server", 259993.64)
    result(closed, "big/bert-99/Offline", 25000.5, accuracy='{"exact_match": 83.1, "f1": 90.38}')
    power(closed / "results/big/resnet50/Offline", 3200.5)
    bare = {"number_of_nodes": "1", "accelerators_per_node": "0", "accelerator_model_name": "-"}
    system(other, "small", system_type="edge", status="preview", **bare)
    result(other, "small/resnet50/singlestream", 3036820)
    result(other, "small/resnet50/offline", 3036820, log="SingleStream", result_mean_latency_ns=3000000)
    result(other, "small/resnet50/multistream", 12)
    system(opened, "big", division="open", system_type="datacenter,edge")
    result(opened, "big/efficientnet-lite0/offline", 900.25)
    result(opened, "big/mobilenet-v1-0.25/offline", 1800.25)
    (opened / "code" / "efficientnet-lite0").mkdir(parents=True)
    (closed / "code" / "resnet50").mkdir(parents=True)
    return root
