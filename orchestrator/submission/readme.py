"""README.md of a result: what was measured and how somebody else repeats it, from the record alone. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.loadgen_metrics import Metric
from orchestrator.phrases import accuracy, plural, unit
from orchestrator.record import Record
from orchestrator.rules import Benchmark, Round
from orchestrator.submission.gather import Evidence, Test

DRAFT = "DRAFT, NOT A RESULT"
MANIFEST_NAME = "manifest.yaml"
# Of a worker: what it says of itself and not of the pace of one run.
QUERIES_COME = {
    "in place": "read where they lie in LoadGen's memory (`loadgen: {in_place: true}`)",
    "lists": "as the lists that LoadGen's Python module makes",
}
_NOT_SHOWN = {"pid", "host", "node", "warm_up", "versions", "gpu_ids", "library"}


@dataclass(frozen=True)
class Described:
    """One result, as its README tells it: `model` is the network's own name, `code` where the code lies."""

    found: Round
    cell: Evidence
    model: str
    implementation: Mapping[str, str]
    metric: Metric | None
    system: str
    code: str
    draft_because: tuple[str, ...] = ()

    @property
    def benchmark(self) -> Benchmark:
        """The round's benchmark."""
        return self.found.benchmark(self.cell.benchmark)

    @property
    def record(self) -> Record:
        """The performance test's record."""
        return self.cell.performance.record


def readme(told: Described) -> str:
    """The whole text."""
    record = told.record
    title = f"# {told.cell.benchmark} {told.cell.scenario}, round {record.round}, {record.division} division"
    parts = [
        *_draft(told),
        title,
        f"System {told.system}, suite {record.suite}. Measured {record.started} by LoadGrid "
        f"{record.versions.get('loadgrid')}, run `{record.run}`.",
        *_inferred(told),
        _measured(told),
        _result(told),
        _repeat(told),
        _environment(told),
        _workers(told),
        _tests(told),
        "## The manifest\n\nEverything that was asked for, word for word as it ran (sha256 "
        f"{record.hashes.get('manifest')}):",
        _fenced(told.cell.performance.manifest.raw.decode("utf-8-sig"), "yaml"),
        "## user.conf\n\nWhat LoadGen read is in `user.conf` here: the manifest and the round's rules.",
    ]
    return "\n\n".join(parts) + "\n"


def _draft(told: Described) -> Iterator[str]:
    if told.draft_because:
        yield f"**{DRAFT}. These figures must not be submitted or published:**"
        yield "\n".join(f"* {reason}" for reason in told.draft_because)


def _inferred(told: Described) -> Iterator[str]:
    source = told.cell.inferred_from
    if source:
        yield (
            f"**Inferred from {source}.** No {told.cell.scenario} test was run: as the edge suite's rules "
            f"allow, the logs here are copies of those of {source}, and the result below follows from them."
        )


def _measured(told: Described) -> str:
    benchmark, record = told.benchmark, told.record
    facts = told.cell.performance.model_facts
    rows = {
        "Benchmark": f"{benchmark.task}, reference model {benchmark.model}",
        "Data set": _data_set(told),
        "Network": told.model,
        "Weights": f"{told.implementation['starting_weights_filename']} (sha256 "
        f"{facts.get('weights_sha256') or 'not known'})",
        "Weights, number format": told.implementation["weight_data_types"],
        "Weights, transformations": told.implementation["weight_transformations"],
        "Inputs, number format": told.implementation["input_data_types"],
        "Retraining": told.implementation["retraining"],
        "Prepared data set": f"sha256 {record.hashes.get('library')}",
        "Samples reach the workers": _payload(record),
        "Security of the links": record.security,
    }
    if facts.get("scales"):
        made = f"{facts['scales']} (sha256 {facts.get('scales_sha256')}), see the calibration document"
        rows["Scales of the quantised network"] = made
    return "## What was measured\n\n" + _table(rows)


def _data_set(told: Described) -> str:
    task, wanted = told.cell.performance.manifest.task, told.benchmark
    if task.name == wanted.reference.task:
        return wanted.dataset
    return f"task {task.name}, which is not the benchmark's own ({wanted.dataset})"


def _payload(record: Record) -> str:
    if record.payload_mode == "value":
        return "by value: the sample's bytes travel from LoadGen's host inside of the timed window"
    approval = f"; approved: {record.index_approval}" if record.index_approval else ""
    return f"by index: each worker's host holds the loaded samples in its memory{approval}"


def _result(told: Described) -> str:
    rows = {}
    if told.metric is not None:
        rows["Performance"] = (
            f"{told.metric.value:.10g} {unit(told.metric.unit)} ({told.metric.name}, `{told.metric.key}`)"
        )
    rows["LoadGen's verdict"] = {True: "VALID", False: "INVALID", None: "none"}[told.record.result.valid]
    got = told.cell.accuracy.record.accuracy
    if got is not None:
        rows["Accuracy"] = f"{accuracy(told.cell.accuracy.record)} ({got.metric}; target {got.target:g})"
    for name, test in told.cell.audits.items():
        audit = test.record.audit
        if audit is not None:
            verdict = {True: "PASS: ", False: "FAIL: ", None: ""}[audit.passed]
            rows[name] = f"{verdict}{audit.reason}"
    text = "## What to expect\n\n" + _table(rows)
    return text + (
        "\n\nLoadGen's figures differ a little from run to run; the accuracy does not, on the same devices "
        "and with the same batches."
    )


def _repeat(told: Described) -> str:
    record, manifest = told.record, told.cell.performance.manifest
    commit = record.versions.get("commit") or "not known"
    dirty = " (with changes that are in no commit)" if record.versions.get("dirty") else ""
    steps = [
        f"1. Get LoadGrid {record.versions.get('loadgrid')}, git commit `{commit}`{dirty}, and install it; "
        f"`{told.code}/README.md` of this submission says how. Python {record.versions.get('python')}.",
        f"2. Save the manifest below as `{MANIFEST_NAME}`; its relative paths begin in its own folder. "
        + _sources(told),
        *([f"3. {_own_loadgen(told)}"] if manifest.loadgen.path else []),
    ]
    options = " --compliance" if told.cell.audits and not _names_audits(manifest.runs) else ""
    where = " --address HOST:PORT" if manifest.workers.where == "ray" else ""
    last = [
        f"Prepare the data set: `loadgrid prepare {MANIFEST_NAME}`. It must print "
        f"`task.sha256: {record.hashes.get('library')}`.",
        f"Look at what will run: `loadgrid plan {MANIFEST_NAME}{options}`, and at the cluster: "
        f"`loadgrid doctor {MANIFEST_NAME}`.",
        f"Run: `loadgrid run {MANIFEST_NAME}{options}{where}`. This result is of {record.scenario}.",
    ]
    steps += [f"{len(steps) + number}. {text}" for number, text in enumerate(last, 1)]
    return "## How to repeat it\n\n" + "\n".join(steps)


def _names_audits(runs: tuple[str, ...]) -> bool:
    return any(run.startswith("TEST") for run in runs)


def _sources(told: Described) -> str:
    task = told.cell.performance.manifest.task
    data = f"`task.path` (here `{task.path}`) is the data set's folder or file. "
    weights = getattr(told.cell.performance.manifest.backend, "weights", None)
    network = (
        f"`backend.weights` (here `{weights}`) is the file of weights, its sha256 as above."
        if weights
        else ""
    )
    if scales := getattr(told.cell.performance.manifest.backend, "scales", None):
        network += f" `backend.scales` (here `{scales}`) is what `loadgrid calibrate` made of them."
    return ((data if task.path else f"Task {task.name} makes its own samples. ") + network).strip()


def _own_loadgen(told: Described) -> str:
    loadgen = told.found.loadgen
    built = f"mlcommons/inference {loadgen.tag or ''} ({loadgen.revision or ''})".replace("  ", " ")
    return (
        f"Build LoadGen's Python module from {built} and give its folder as `loadgen.path` (here "
        f"`{told.cell.performance.manifest.loadgen.path}`)."
    )


def _environment(told: Described) -> str:
    record = told.record
    rows = {
        "LoadGen": f"{record.loadgen.get('version')}, `{record.loadgen.get('file')}`, sha256 "
        f"{record.loadgen.get('sha256')}",
        "Seeds": ", ".join(f"{name} {value}" for name, value in record.seeds.items()),
        "LoadGen's queries": QUERIES_COME.get(str(record.driver.get("issue")), "not known how they come"),
    }
    rows |= {name: str(value) for name, value in record.versions.items() if value is not None}
    return "## Environment: the host of LoadGen\n\n" + _table(rows)


def _workers(told: Described) -> str:
    """Workers that are alike in one row."""
    groups: dict[str, list[str]] = {}
    for worker in told.record.workers:
        facts = {"device": worker.device} | {k: v for k, v in worker.facts.items() if k not in _NOT_SHOWN}
        facts |= {f"version of {k}": v for k, v in worker.facts.get("versions", {}).items()}
        shown = _table({key: str(value) for key, value in facts.items() if value not in (None, "", [], {})})
        groups.setdefault(shown, []).append(worker.name)
    parts = [
        f"{plural(len(names), 'worker')} ({', '.join(names)}):\n\n{shown}" for shown, names in groups.items()
    ]
    placed = told.cell.performance.manifest.workers
    where = f"`workers.where: {placed.where}`, placement {placed.placement}, max_batch {placed.max_batch}"
    return f"## Environment: the workers\n\n{where}.\n\n" + "\n\n".join(parts)


def _tests(told: Described) -> str:
    """Which run each part came from: they need not be of one."""
    rows = {name: _origin(test) for name, test in _named(told.cell).items()}
    return "## Where the parts come from\n\n" + _table(rows)


def _named(cell: Evidence) -> dict[str, Test]:
    return {"performance": cell.performance, "accuracy": cell.accuracy, **cell.audits}


def _origin(test: Test) -> str:
    return f"{test.name}, {test.record.started}, {test.record.wall_s:g} s"


def _table(rows: Mapping[str, Any]) -> str:
    def cell(text: Any) -> str:
        return " ".join(str(text).split()).replace("|", "\\|")

    lines = ["| | |", "|---|---|", *(f"| {cell(name)} | {cell(text)} |" for name, text in rows.items())]
    return "\n".join(lines)


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
