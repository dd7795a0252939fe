"""`loadgrid bench`: how fast the path itself is, with a null model through real Ray actors, TCP and CURVE.

What an engine loses on the path is measured by bench_engine.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as Terminal
from rich.table import Table

from orchestrator import bench_engine, bench_scale, children
from orchestrator.campaign import EXIT_FAILED, EXIT_INVALID
from orchestrator.journey import pauses_in_words
from orchestrator.logs import read_detail
from orchestrator.manifest_fields import MOST_WORKERS
from orchestrator.manifest_types import MOST_QPS
from orchestrator.null_path import LIMIT_MS, OPTIONS, SAMPLES, Bench, NullPath
from orchestrator.paths import DETAIL, USER_CONF
from orchestrator.peak_search import PeakSearch, Seen
from orchestrator.plan import TestSpec
from orchestrator.quiet import as_typed, bench_folder, noter
from orchestrator.record import Record
from orchestrator.timings import STAGES
from workers.tasks import MOST_SAMPLE_BYTES

app = typer.Typer(no_args_is_help=True, help="Measure the path itself with a null model, or an engine.")
app.command()(bench_engine.engine)
app.command()(bench_scale.scale)

# The sweep ends when the bracket is this narrow.
SWEEP_RESOLUTION = 0.03
KB = 1024
# LoadGen asks so many times what an Offline test's target_qps and min_duration make.
OFFLINE_SLACK = 1.1

Workers = Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Worker actors.")]
Duration = Annotated[float, typer.Option(min=0.5, max=bench_engine.MOST_S, help="Seconds of each test.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
PayloadBytes = Annotated[
    int,
    typer.Option(
        min=0, max=MOST_SAMPLE_BYTES, help="0: only indices travel; else value mode with this size."
    ),
]
ResponseBytes = Annotated[int, typer.Option(min=0, help="Bytes answered per sample.")]
Security = Annotated[str, typer.Option(help="curve or none.")]
MaxBatch = Annotated[int, typer.Option(min=1, max=65536, help="Most samples in a batch.")]
AddressOption = Annotated[str, typer.Option(help="Ray: local, auto or HOST:PORT.")]
IoThreads = Annotated[
    int,
    typer.Option(min=0, max=64, help="ZeroMQ threads of the test process; 0: 1, or 4 with payload bytes."),
]

NumCpus = Annotated[
    float, typer.Option(min=0, help="CPUs of a node for each, as its Ray counts them; 0: any node.")
]


def figures(record: Record, offered_qps: float, path: NullPath, duration_s: float) -> dict[str, Any]:
    """The figures of one test through the path."""
    p = record.result.percentiles_ms
    qps = record.result.value or 0.0
    moved = path.payload_bytes + path.response_bytes
    found = {
        "offered_qps": offered_qps,
        "completed_qps": round(qps, 1),
        "valid": bool(record.result.valid),
        "reasons": record.result.reasons,
        "p50_ms": p.get("p50"),
        "p99_ms": p.get("p99"),
        "p999_ms": p.get("p99.9"),
        "driver_cpu_us_per_sample": record.driver["cpu_us_per_sample"],
        "driver_cpu_share": record.driver["cpu_share"],
        "max_rss_bytes": record.driver["max_rss_bytes"],
        "issue_late_p99_ms": (record.driver["issue_lateness"] or {}).get("p99_ms"),
        "pauses": record.driver.get("pauses"),
        "stages_ms": _stages(record),
        "gigabytes_per_s": round(qps * moved / 1e9, 4),
        "workers": path.workers,
        "nodes": sorted({worker.node for worker in record.workers}),
        "duration_s": duration_s,
        "security": path.security,
        "payload_bytes": path.payload_bytes,
        "response_bytes": path.response_bytes,
    }
    if record.status != "finished":
        found["failed"] = as_typed(record.reason, OPTIONS)
    return found


def _stages(record: Record) -> dict[str, dict[str, float | None]]:
    """p50 and p99 in ms of each stage of the path, the worst worker's."""
    worst: dict[str, dict[str, float | None]] = {}
    for stage in STAGES:
        seen = [w.stages[stage] for w in record.workers if w.stages[stage]["p99_ms"] is not None]
        top = max(seen, key=lambda s: s["p99_ms"], default=None)
        worst[stage] = {"p50": top["p50_ms"], "p99": top["p99_ms"]} if top else {"p50": None, "p99": None}
    return worst


def in_process(spec: TestSpec, test_folder: Path, response_bytes: int, duration_s: float) -> dict[str, Any]:
    """The same LoadGen test against a null model inside one process."""
    with tempfile.TemporaryDirectory(prefix="loadgrid-null-") as out:
        order = {
            "conf_model": spec.conf_model,
            "scenario": spec.scenario,
            "conf_file": str(test_folder / USER_CONF),
            "attributes": spec.attributes,
            "out_dir": out,
            "count": SAMPLES,
            "response_bytes": min(response_bytes, 64 * KB),
        }
        limit_s = duration_s * 4 + 60
        try:
            done = subprocess.run(
                children.command("orchestrator.nullsut"),
                env=children.environment(),
                input=json.dumps(order),
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"it did not end within {limit_s:g} s"}
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["it died"])[-1]}
        told = json.loads(done.stdout)
        detail = read_detail(Path(out) / DETAIL)
    p = detail.percentiles_ms()
    return {
        "completed_qps": round(detail.number(spec.result_key) or 0.0, 1),
        "valid": bool(detail.valid),
        "p50_ms": p.get("p50"),
        "p99_ms": p.get("p99"),
        "p999_ms": p.get("p99.9"),
        "driver_cpu_us_per_sample": round(told["cpu_us_per_sample"], 4),
        "max_rss_bytes": told["max_rss_bytes"],
    }


@app.command()
def null(
    workers: Workers = 4,
    qps: Annotated[
        list[float],
        typer.Option(
            min=1, max=MOST_QPS, help="Queries a second that LoadGen offers; can be given several times."
        ),
    ] = [100_000],  # noqa: B006 - typer reads it, nobody writes it
    duration_s: Duration = 10,
    payload_bytes: PayloadBytes = 0,
    response_bytes: ResponseBytes = 4,
    security: Security = "curve",
    max_batch: MaxBatch = 2048,
    io_threads: IoThreads = 0,
    num_cpus: NumCpus = 0,
    address: AddressOption = "local",
    as_json: AsJson = False,
) -> None:
    """Server through Ray actors, TCP and CURVE at given rates, and LoadGen alone beside each."""
    path = NullPath(workers, payload_bytes, response_bytes, security, max_batch, io_threads, num_cpus)
    rows = []
    with bench_folder() as folder, Bench(path, address, Path(folder), noter(as_json)) as bench:
        for rate in qps:
            record, spec, test_folder = bench.test("Server", rate, duration_s)
            row = figures(record, rate, path, duration_s)
            alone = row["inprocess"] = in_process(spec, test_folder, response_bytes, duration_s)
            row["ratio"] = {key: _ratio(row[key], alone.get(key)) for key in ("completed_qps", "p99_ms")}
            rows.append(row)
            if as_json:
                _show([row], as_json)  # what is measured is told before anything else can go wrong
        if not as_json:
            _show(rows, as_json)
    if any("failed" in row for row in rows):
        raise typer.Exit(EXIT_FAILED)
    raise typer.Exit(0 if all(row["valid"] for row in rows) else EXIT_INVALID)


@app.command()
def sweep(
    workers: Workers = 4,
    start_qps: Annotated[float, typer.Option(min=1, max=MOST_QPS, help="First rate tried.")] = 50_000,
    duration_s: Duration = 5,
    payload_bytes: PayloadBytes = 0,
    response_bytes: ResponseBytes = 4,
    security: Security = "curve",
    max_batch: MaxBatch = 2048,
    io_threads: IoThreads = 0,
    num_cpus: NumCpus = 0,
    address: AddressOption = "local",
    as_json: AsJson = False,
) -> None:
    """The highest VALID rate at a 15 ms limit: by a bracket, whose upper end has two tries."""
    path = NullPath(workers, payload_bytes, response_bytes, security, max_batch, io_threads, num_cpus)
    rows: list[dict[str, Any]] = []
    with bench_folder() as folder, Bench(path, address, Path(folder), noter(as_json)) as bench:

        def holds(qps: float) -> bool:
            rows.append(figures(bench.test("Server", qps, duration_s)[0], qps, path, duration_s))
            if "failed" in rows[-1] and not any(row["valid"] for row in rows):
                # Not a rate that is too high: whatever it was, no rate was measured.
                _show(rows, as_json)
                raise typer.Exit(EXIT_FAILED)
            noter(as_json)(f"{qps:,.0f} queries/s: {'VALID' if rows[-1]['valid'] else 'INVALID'}")
            return bool(rows[-1]["valid"])

        best = highest(holds, start_qps)
        if as_json:
            print(json.dumps({"highest_valid_qps": best, "tests": rows}), flush=True)
        else:
            _show(sorted(rows, key=lambda r: r["offered_qps"]), False)
            Terminal().print(
                f"highest VALID rate: [bold]{best:,.0f}[/bold] queries/s ({duration_s:g} s tests)"
            )
    raise typer.Exit(0 if best else EXIT_INVALID)


def highest(holds: Callable[[float], bool], start: float) -> float:
    """The highest rate found to hold, to within SWEEP_RESOLUTION; 0.0 if none does."""
    search = PeakSearch(start, resolution=SWEEP_RESOLUTION)
    while (rate := search.next()) is not None:
        search.add(Seen(rate, holds(rate)))
    return search.low


@app.command()
def offline(
    samples: Annotated[
        int,
        typer.Option(
            min=1, max=int(MOST_QPS * OFFLINE_SLACK), help="Samples in LoadGen's one Offline query."
        ),
    ] = 10_000_000,
    workers: Workers = 4,
    response_bytes: ResponseBytes = 4,
    security: Security = "curve",
    max_batch: MaxBatch = 2048,
    address: AddressOption = "local",
    as_json: AsJson = False,
) -> None:
    """One huge Offline query: how soon the first answer comes, and how many samples a second follow."""
    path = NullPath(workers, 0, response_bytes, security, max_batch, 0)
    with bench_folder() as folder, Bench(path, address, Path(folder), noter(as_json)) as bench:
        record = bench.test("Offline", samples / OFFLINE_SLACK, 1.0)[0]
    start = record.driver["start_s"]
    found = {
        "samples": record.driver["issued"],
        "samples_per_s": round(record.result.value or 0.0, 1),
        "response_path": record.driver["response_path"],
        "gigabytes_per_s": round((record.result.value or 0.0) * response_bytes / 1e9, 3),
        "first_answer_s": start["first_answer"],
        "issue_s": start["first_issue"],
        "driver_cpu_us_per_sample": record.driver["cpu_us_per_sample"],
        "max_rss_bytes": record.driver["max_rss_bytes"],
        "workers": workers,
    }
    if as_json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:26} {value:,}" if isinstance(value, int | float) else f"{key:26} {value}")
    raise typer.Exit(0 if record.status == "finished" else EXIT_INVALID)


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 3) if one and other else None


COLUMNS = {
    "offered_qps": "offered/s",
    "completed_qps": "done/s",
    "valid": "VALID",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "driver_cpu_us_per_sample": "CPU us",
    "gigabytes_per_s": "GB/s",
}


def _show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    shape = f"{rows[0]['workers']} workers, {rows[0]['duration_s']:g} s a test"
    table = Table(title=f"null model, {shape}, limit {LIMIT_MS} ms at p99")
    shown = [key for key in COLUMNS if key != "gigabytes_per_s" or any(row["payload_bytes"] for row in rows)]
    for key in shown:
        table.add_column(COLUMNS[key], justify="right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in shown))
        if "inprocess" in row:
            table.add_row(*(_cell(row["inprocess"].get(key)) for key in shown), style="dim")
    Terminal().print(table)
    for row in rows:
        if not row["valid"]:
            why = f"failed: {row['failed']}" if "failed" in row else f"is INVALID: {' '.join(row['reasons'])}"
            Terminal().print(f"{row['offered_qps']:,.0f}/s {why}", style="dim", markup=False)
        if told := pauses_in_words(row["pauses"]):
            Terminal().print(f"{row['offered_qps']:,.0f}/s: {told}", style="dim", markup=False)
    Terminal().print(f"workers on {', '.join(rows[0]['nodes'])}", style="dim")
    if any("inprocess" in row for row in rows):
        Terminal().print(
            "second row: the same LoadGen test against a null model inside one process", style="dim"
        )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)
