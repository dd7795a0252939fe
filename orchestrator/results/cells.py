"""One result of a tree: the figure, the accuracy, the power of a folder results/SYSTEM/MODEL/SCENARIO."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.loadgen_logs import holds_logs, read_run
from orchestrator.loadgen_metrics import Metric, RoundNumber
from orchestrator.loadgen_run import LoadgenRun, round_of
from orchestrator.logs import LogError
from orchestrator.paths import ACCURACY_TXT
from orchestrator.power.figures import PowerError, power_figure
from orchestrator.results.reading import LOGS, Unreadable, inside, json_object, strays, text_lines, told_path
from orchestrator.results.rows import SCENARIOS, Power, Result
from orchestrator.results.scores import scores
from orchestrator.submission.guessed_models import guessed_model
from orchestrator.submission.layout import MAPPING, POWER_FILES, RUN, SPL, layout_of
from orchestrator.submission.tree import Cell

# Server was run five times up to v0.7 and its result is the lowest: inference rules v0.5, "MLPerf Inference
# Benchmark" (Reddi et al., 2020), IV.
LAST_ROUND_OF_FIVE: RoundNumber = (0, 7)
NEWEST_GUESSES_SINCE: RoundNumber = (5, 0)
# Names that the checkers of v0.7 to v6.1 map (model_mapping).
_OFFICIAL = {
    "resnet50": "resnet",
    "mobilenet": "resnet",
    "ssd-mobilenet": "ssd-small",
    "llama3_1-405b": "llama3.1-405b",
    "llama3_1-8b": "llama3.1-8b",
    "llama3_1-8b-edge": "llama3.1-8b-edge",
}
# A part of a model's name -> the benchmark, in the newest checker besides those of guessed_model.
_GUESSED = {"llama3_1-405b": "llama3.1-405b"}
RETINANET_SINCE: RoundNumber = (2, 1)  # which the checkers put in ssd-resnet34's place
_UNITS = {"samples/query": "streams"}  # as the tables call the old MultiStream's
_SECONDS = "wan-2.2"  # its latency is published in seconds (SPECIAL_UNIT_DICT of the newest checker)
REMARKS_OF_LOGS = 5


@dataclass(frozen=True)
class _Figure:
    metric: Metric | None = None
    run: LoadgenRun | None = None
    remarks: tuple[str, ...] = ()


def result_of(cell: Cell, round_name: str) -> Result:
    """What a cell holds; whatever is missing or damaged is a remark."""
    root, number = cell.submission.root, round_of(round_name)
    scenario = next((name for name in SCENARIOS if name.lower() == cell.scenario.lower()), cell.scenario)
    remarks = [] if scenario in SCENARIOS else [f"{cell.scenario} is no scenario"]
    benchmark = official_name(cell, number)
    figure = _figure(cell, scenario, round_name)
    accuracy, told = _accuracy(cell, benchmark, round_name)
    power, power_told = _power(cell, scenario, round_name)
    metric, valid = figure.metric, figure.run.valid if figure.run else None
    value, unit = (metric.value, _UNITS.get(metric.unit, metric.unit)) if metric else (None, "")
    if benchmark.startswith(_SECONDS) and value is not None and unit == "ms":
        value, unit = value / 1000, "s"
    return Result(
        benchmark=benchmark,
        model=cell.model,
        scenario=scenario,
        value=value if valid else None,
        unit=unit,
        valid=valid,
        metric=metric.name if metric else "",
        key=metric.key if metric else "",
        invalid_value=None if valid else value,
        inferred_from=metric.inferred_from if metric else None,
        accuracy=accuracy,
        power=power,
        weight_data_types=_precision(cell, round_name),
        location=told_path(root, cell.path),
        remarks=(*remarks, *figure.remarks, *told, *power_told),
    )


def official_name(cell: Cell, number: RoundNumber) -> str:
    """The benchmark that a model stands for, as the round's checker names it."""
    model = cell.model
    if model in _OFFICIAL:
        return model if model == "mobilenet" and number < LAST_ROUND_OF_FIVE else _OFFICIAL[model]
    if model == "ssd-resnet34":
        return "retinanet" if number >= RETINANET_SINCE else "ssd-large"
    if cell.submission.division != "open":
        return model
    try:
        told = json_object(cell.submission.root, cell.submission.path / MAPPING).get(model)
    except Unreadable:  # most submissions have none
        told = None
    if isinstance(told, str) and told:
        return _OFFICIAL.get(told, told)
    newest = number >= NEWEST_GUESSES_SINCE
    guessed = guessed_model(model, layout_of("v6.1" if newest else "v1.0"))
    return next((name for part, name in _GUESSED.items() if newest and part in guessed), guessed)


def _figure(cell: Cell, scenario: str, round_name: str) -> _Figure:
    """The result of the performance test, or of the lowest of five."""
    root, shown = cell.submission.root, told_path(cell.submission.root, cell.path)
    try:
        folders, remarks = _performance_folders(cell, scenario, round_name)
    except OSError as error:
        return _Figure(remarks=(f"{shown} cannot be read: {error.strerror}",))
    found = []
    for folder in folders:
        if outside := strays(root, folder):
            remarks += [f"{path} leads out of the tree" for path in outside]
            continue
        try:
            run = read_run(folder, round_name, read_answers=False)
        except LogError as error:
            remarks.append(_relative(str(error), root))
            continue
        found.append(_judged(run, scenario, round_name, told_path(cell.path, folder)))
    if not found:
        return _Figure(remarks=(*remarks, f"no performance result in {shown}"))
    worst = min(found, key=_rank)
    values = sorted({one.metric.value for one in found if one.metric})
    if len(values) > 1:
        remarks.append(
            f"the lowest of {len(found)} runs, as rules up to v0.7 have it; the highest: {values[-1]:g}"
        )
    return _Figure(worst.metric, worst.run, (*remarks, *worst.remarks))


def _rank(figure: _Figure) -> tuple[bool, float]:
    """An invalid run decides, then one without a figure, then the lowest."""
    valid = figure.run is not None and figure.run.valid is True
    return (valid, figure.metric.value if figure.metric else float("-inf"))


def _performance_folders(cell: Cell, scenario: str, round_name: str) -> tuple[list[Path], list[str]]:
    parent = cell.performance.parent
    if scenario == "Server" and round_of(round_name) <= LAST_ROUND_OF_FIVE:
        runs = [parent / f"run_{number}" for number in range(1, 6)]
        there = [folder for folder in runs if folder.is_dir()]
        missing = [folder.name for folder in runs if folder not in there]
        remarks = (
            [f"five runs of Server are wanted; missing: {', '.join(missing)}"] if there and missing else []
        )
        return there, remarks
    if cell.performance.is_dir():
        return [cell.performance], []
    if holds_logs(parent):
        return [parent], ["the logs of the performance test lie in performance, not in performance/run_1"]
    what = "performance/run_1" if parent.is_dir() else "performance"
    return [], [f"there is no {told_path(cell.submission.root, cell.path)}/{what}"]


def _judged(run: LoadgenRun, scenario: str, round_name: str, where: str) -> _Figure:
    """A run's figure for the scenario of its folder, inferred if the log is another's."""
    remarks = [f"{where}: {text}" for text in run.remarks if _tells_of_the_result(text)][:REMARKS_OF_LOGS]
    if run.valid is False:
        remarks.append(
            f"{where}: LoadGen calls the test INVALID: {'; '.join(run.reasons) or 'no reason is logged'}"
        )
    same = run.scenario == scenario or (run.scenario, scenario) == ("Server", "Interactive")
    metric = run.metric if same or run.scenario is None else run.inferred(scenario, round_name)
    if not same and run.scenario and metric is None:
        remarks.append(f"{where}: the log is of {run.scenario}, from which {scenario} cannot be inferred")
    elif metric is None and run.valid is not None:
        remarks.append(f"{where}: the log does not hold the result of {run.scenario or 'any scenario'}")
    return _Figure(metric, run, tuple(remarks))


def _tells_of_the_result(remark: str) -> bool:
    """Whether a reader of the table should know what was remarked on a log."""
    return not remark.startswith(("power_", "the power phases", "test_datetime"))


def _accuracy(cell: Cell, benchmark: str, round_name: str) -> tuple[dict[str, str], list[str]]:
    root = cell.submission.root
    try:
        found = scores(text_lines(root, cell.accuracy / ACCURACY_TXT), benchmark, round_name)
    except Unreadable as error:
        return {}, [str(error)]
    shown = told_path(root, cell.accuracy / ACCURACY_TXT)
    return found, [] if found else [f"{shown} holds no accuracy of {benchmark}"]


def _power(cell: Cell, scenario: str, round_name: str) -> tuple[Power | None, list[str]]:
    root, folder = cell.submission.root, cell.performance.parent
    if not os.path.isdir(folder / "power") or not inside(root, folder / "power"):
        return None, []
    outside = strays(root, folder / RUN, (*LOGS, SPL)) + strays(root, folder / "power", POWER_FILES)
    if outside:
        return None, [f"no power figure: {', '.join(outside)} lead out of the tree"]
    try:
        figure = power_figure(round_name, scenario, folder)
    except PowerError as error:
        return None, [f"no power figure: {_relative(str(error), root)}"]
    return Power(figure.value, figure.unit), []


def _precision(cell: Cell, round_name: str) -> str:
    """The data type of the weights, from the implementation's description: any *.json that names one."""
    folder = cell.measurements(layout_of(round_name))
    try:
        names = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError:
        return ""
    for path in names[:REMARKS_OF_LOGS]:
        try:
            told: Any = json_object(cell.submission.root, path).get("weight_data_types")
        except Unreadable:
            continue
        if isinstance(told, dict):  # of a benchmark with several networks
            told = ", ".join(f"{part} {kind}" for part, kind in told.items())
        if isinstance(told, str):
            return re.sub(r"\s+", " ", told).strip()
    return ""


def _relative(text: str, root: Path) -> str:
    """A message without this machine's own path of the tree."""
    return text.replace(f"{root}/", "")
