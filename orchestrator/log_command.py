"""`loadgrid log`: what a run's LoadGen logs say, for people and as JSON. What is done with grep otherwise."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.loadgen_logs import LoadgenRun, LogError, holds_logs, read_run
from orchestrator.loadgen_run import Latencies
from orchestrator.named_round import named_round, other_round

REMARKS_SHOWN = 10
# What a log holds may come from anywhere; it shall not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

Folders = Annotated[
    list[Path],
    typer.Argument(help="Folders with LoadGen's logs; of other folders, all runs below.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a run and line.")]
RoundName = Annotated[
    str | None, typer.Option("--round", help="Whose metric, e.g. v1.0; default: the LoadGen's own round.")
]


def show(folders: Folders, as_json: AsJson = False, round_name: RoundName = None) -> None:
    """Show what LoadGen's logs say: result, verdict, seeds, settings, and what is missing or damaged."""
    shown = 0
    try:
        name = None if round_name is None else named_round(round_name)
        for folder in (run for given in folders for run in runs_below(given)):
            run = read_run(folder, name)
            if name and (remark := other_round(run, name)):
                run = replace(run, remarks=(*run.remarks, remark))
            told = json.dumps(run.as_dict()) if as_json else "\n".join(page(run))
            typer.echo(("\n" if shown and not as_json else "") + told)
            shown += 1
    except LogError as error:
        raise typer.BadParameter(str(error)) from None


def runs_below(folder: Path) -> Iterator[Path]:
    """The folder itself if it holds logs, else every folder below that does; LogError if there is none."""
    if not folder.is_dir():
        raise LogError(f"{folder} is not a folder")
    if holds_logs(folder):
        yield folder
        return
    none = True
    for path, names, _ in os.walk(folder):
        names.sort()
        if holds_logs(Path(path)):
            none = False
            yield Path(path)
    if none:
        raise LogError(f"{folder}: no LoadGen logs here or below")


def page(run: LoadgenRun) -> list[str]:
    """A run as lines of text."""
    rows = [
        ("LoadGen", _joined(run.loadgen_version, run.loadgen_revision)),
        ("scenario, mode", _joined(run.scenario, run.mode)),
        ("SUT", run.sut_name),
        ("result", _result(run)),
        ("verdict", {True: "VALID", False: "INVALID", None: None}[run.valid]),
        *(("", reason) for reason in run.reasons),
        ("checks", _pairs(vars(run.checks), lambda met: "met" if met else "NOT MET")),
        ("early stopping", run.early_stopping.words),
        ("rates a second", _pairs(vars(run.rates), lambda rate: f"{rate:.10g}")),
        ("latency, ms", _latencies(run.latencies)),
        ("query latency, ms", _latencies(run.query_latencies)),
        ("first token, ms", _latencies(run.first_token_latencies)),
        ("a token, ms", _latencies(run.token_latencies)),
        ("intervals", _pairs({f"p{p:g}": n for p, n in run.intervals.items()}, str)),
        ("counts", _pairs(vars(run.counts), str)),
        ("seeds", _pairs(vars(run.seeds), str)),
        ("started", f"{run.started} (local time)" if run.started else None),
        ("power phase", _power(run)),
        ("errors", None if run.error_count is None else str(run.error_count)),
        *(("", error) for error in run.errors[:REMARKS_SHOWN]),
        ("warnings", None if run.warning_count is None else str(run.warning_count)),
        ("accuracy log", _accuracy(run)),
        *(("remark", remark) for remark in run.remarks),
    ]
    lines = [str(run.folder)] + [f"  {name:18} {told}" for name, told in rows if told]
    return [_CONTROL.sub("?", line) for line in lines]


def _joined(*parts: str | None) -> str | None:
    return ", ".join(part for part in parts if part) or None


def _pairs(values: Mapping[str, Any], words: Any) -> str:
    told = {name.replace("_", " "): value for name, value in values.items() if value is not None}
    return ", ".join(f"{name} {words(value)}" for name, value in told.items())


def _result(run: LoadgenRun) -> str | None:
    metric = run.metric
    if metric is None:
        return None
    return f"{metric.value:.10g} {metric.unit} ({metric.name}; {metric.key})"


def _power(run: LoadgenRun) -> str | None:
    power = run.power
    if power is None:
        return None
    return f"{power.begin} to {power.end} {power.clock or ''} ({power.duration_s:g} s)"


def _latencies(found: Latencies) -> str:
    named = {"min": found.min_ns, "mean": found.mean_ns, "max": found.max_ns}
    named |= {f"p{p:g}": latency_ns for p, latency_ns in found.percentiles_ns.items()}
    return _pairs(named, lambda latency_ns: f"{latency_ns / 1e6:.6g}")


def _accuracy(run: LoadgenRun) -> str | None:
    log = run.accuracy_log
    if log is None:
        return None
    return f"{log.size_bytes} bytes" + (f", {log.entries} entries" if log.entries is not None else "")
