"""MultiStream in a real LoadGen of the old rounds, in a process of its own, and what it did to the ns.

Run as a program: `python -m tests.old_multistream MODULE_FOLDER OUT_FOLDER SETTINGS_JSON`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.fixed_interval import Settings
from orchestrator.loadgen import import_loadgen
from orchestrator.logs import DetailLog, read_detail

MANIFEST = """
name: streams
round: {round}
suite: edge
division: open
benchmark: resnet
scenarios: [MultiStream]
runs: [performance]
task: {{name: "null", count: 200}}
backend: {{engine: echo, service_time_per_sample_us: 1000}}
workers: {{where: local, count: 1, max_batch: 8}}
loadgen:
  performance_sample_count_override: 200
  min_duration: 300
  min_query_count: 30
  MultiStream: {{samples_per_query: 4}}
"""
# The attributes of the module's TestSettings that have other names in Settings.
OF_MULTISTREAM = ("samples_per_query", "target_qps", "target_latency_percentile", "max_async_queries")
EVENT = re.compile(r'\{"name":"(Scheduling|QueryInterval|Sample)".*\}')


@dataclass
class Asked:
    """One query of the real LoadGen, times in ns of its trace."""

    looked_ns: int  # when it looked for the next tick
    tick_ns: int
    issued_ns: int
    done_ns: int


@dataclass
class RealTest:
    """What the real LoadGen loaded, asked and logged."""

    loaded: list[list[int]]
    issued: list[list[int]]
    queries: list[Asked]
    start_ns: int
    detail: DetailLog
    answers: list[dict[str, Any]]
    summary: str


def settings(**changes: Any) -> Settings:
    """Settings of a short test: 100 queries of 5 of 100 loaded samples, 100 a second."""
    values: dict[str, Any] = {
        "samples_per_query": 5,
        "target_qps": 100.0,
        "target_latency_percentile": 0.99,
        "max_async_queries": 1,
        "min_duration_ms": 0,
        "max_duration_ms": 0,
        "min_query_count": 100,
        "max_query_count": 0,
        "performance_sample_count_override": 0,
        "qsl_rng_seed": 7322528924094909334,
        "sample_index_rng_seed": 1570999273408051088,
        "schedule_rng_seed": 3507442325620259414,
    }
    return Settings(**{**values, **changes})


def run_real(
    module: Path, folder: Path, s: Settings, *, count: int, at_once: int, slow: dict[int, float] | None = None
) -> RealTest:
    """Run the module; query `q` takes `slow[q]` seconds, the others none."""
    folder.mkdir(parents=True)
    wanted = {"settings": vars(s), "count": count, "at_once": at_once, "slow": slow or {}}
    command = [sys.executable, "-m", "tests.old_multistream", str(module), str(folder), json.dumps(wanted)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "told.json").read_text())
    queries, start_ns = _traced(folder / "mlperf_log_trace.json", s)
    return RealTest(
        loaded=told["loaded"],
        issued=told["issued"],
        queries=queries,
        start_ns=start_ns,
        detail=read_detail(folder / "mlperf_log_detail.txt"),
        answers=json.loads((folder / "mlperf_log_accuracy.json").read_text()),
        summary=(folder / "mlperf_log_summary.txt").read_text(),
    )


def _traced(path: Path, s: Settings) -> tuple[list[Asked], int]:
    """The queries from the trace, whose other lines are not all JSON, and when the clock started."""
    looked, ticks = [], []
    asked: dict[int, Asked] = {}
    for line in path.read_text().splitlines():
        if EVENT.match(line) is None:
            continue
        event = json.loads(line.removesuffix(","))
        at_ns, more = round(event["ts"] * 1000), event.get("args", {})
        if event["name"] == "Scheduling":
            looked.append(at_ns)
        elif event["name"] == "QueryInterval":
            ticks.append(at_ns)
        elif "query_seq" in more:
            issued, done = (at_ns + int(more[key]) for key in ("issue_start_ns", "complete_ns"))
            asked[int(more["query_seq"])] = Asked(0, at_ns, issued, done)
    looked.sort()
    for number, query in asked.items():
        query.looked_ns = looked[number]
    start_ns = min(ticks) - int(1 / s.target_qps * 1e9)
    return [asked[number] for number in sorted(asked)], start_ns


def main() -> None:
    """Run one test and write what was loaded and issued."""
    module_folder, out, text = sys.argv[1:]
    wanted = json.loads(text)
    m = import_loadgen(Path(module_folder))
    s = m.TestSettings()
    s.scenario = m.TestScenario.MultiStream
    s.mode = m.TestMode.AccuracyOnly if wanted["settings"].pop("accuracy") else m.TestMode.PerformanceOnly
    for name, value in wanted["settings"].items():
        attribute = f"multi_stream_{name}" if name in OF_MULTISTREAM else name
        if hasattr(s, attribute):
            setattr(s, attribute, value)
        elif value:  # the binding lacks it, the conf reader does not
            conf = Path(out, "user.conf")
            conf.write_text(f"*.MultiStream.{name} = {value}\n")
            assert s.FromConfig(str(conf), "any", "MultiStream") == 0
    slow = {int(query): seconds for query, seconds in wanted["slow"].items()}
    loaded: list[list[int]] = []
    issued: list[list[int]] = []

    def issue(samples: list[Any]) -> None:
        time.sleep(slow.get(len(issued), 0.0))
        issued.append([sample.index for sample in samples])
        answer = array("I", issued[-1])
        at, size = answer.buffer_info()[0], answer.itemsize
        m.QuerySamplesComplete(
            [m.QuerySampleResponse(sample.id, at + i * size, size) for i, sample in enumerate(samples)]
        )

    sut = m.ConstructSUT(issue, lambda: None, lambda latencies: None)
    qsl = m.ConstructQSL(wanted["count"], wanted["at_once"], lambda x: loaded.append(list(x)), lambda x: None)
    log = m.LogSettings()
    log.log_output.outdir = out
    log.log_output.copy_summary_to_stdout = False
    log.enable_trace = True
    m.StartTestWithLogSettings(sut, qsl, s, log)
    Path(out, "told.json").write_text(json.dumps({"loaded": loaded, "issued": issued}))


if __name__ == "__main__":
    main()
