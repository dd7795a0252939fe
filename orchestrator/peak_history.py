"""What a search has found: its tests, those of earlier programs too, and the files that tell it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.campaign import EXIT_INVALID
from orchestrator.campaign_files import Campaign, found_in
from orchestrator.manifest import Manifest, ManifestError, load_manifest
from orchestrator.paths import EARLIER, MANIFEST, RECORD, write_atomically, write_json
from orchestrator.peak_manifest import NAME_LETTERS, SUFFIX, Batching, batching_of, manifest_at
from orchestrator.peak_probe import late_of, own_value, performance_spec, seen_of, trouble_of
from orchestrator.peak_search import Seen
from orchestrator.phrases import verdict
from orchestrator.plan import PlanError, TestSpec
from orchestrator.present import Present
from orchestrator.record import Record, RecordError, read_record
from orchestrator.resume import changes

PEAK_FILE = "peak.yaml"
HISTORY_FILE = "peak.json"
SCHEMA = "loadgrid.peak/1"


@dataclass(frozen=True)
class Row:
    """One test of the evidence. `confirms`: of full length; `before`: done by an earlier program."""

    record: Record
    folder: Path
    seen: Seen
    batching: Batching
    confirms: bool
    before: bool

    @property
    def of(self) -> tuple[float, Batching]:
        """What was tested."""
        return self.seen.value, self.batching


@dataclass
class Found:
    """What a search came to. `confirmed` is the newest test of the result's value; None: there is no result.

    `result_key`: the name of the round's metric in LoadGen's log. `most_full`: how many tests of full length
    a campaign may have.
    """

    scenario: str
    usual: Batching
    early_stopping: bool
    result_key: str
    most_full: int
    probes: list[Row] = field(default_factory=list)
    full: list[Row] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    batching: Batching | None = None
    not_tried: list[str] = field(default_factory=list)
    confirmed: Row | None = None
    folder: Path | None = None
    file: Path | None = None
    trouble: str = ""
    exit_code: int = EXIT_INVALID

    @property
    def rows(self) -> list[Row]:
        """Every test, probes first."""
        return self.probes + self.full


def tests_before(
    campaign: Campaign,
    manifest: Manifest,
    scenario: str,
    present: Callable[[Manifest], Present],
    by_percentile: bool,
) -> Iterator[Row]:
    """The full-length tests of a campaign that still count, in their order, be they set aside by a rerun."""
    for folder in campaign.folders(f"{manifest.name[:NAME_LETTERS]}{SUFFIX}"):
        with contextlib.suppress(ManifestError, PlanError, OSError):
            there = load_manifest(folder / MANIFEST)
            value = own_value(performance_spec(there, scenario))
            batching = batching_of(there)
            made = manifest_at(manifest, scenario, value, batching)
            if made.raw != there.raw:
                continue  # of a search of this manifest as it was before a change
            spec = performance_spec(made, scenario)
            for test, record in _records(folder, spec):
                if trouble_of(record, made) or any(changes(spec, record, present(made))):
                    continue
                seen = seen_of(record, spec, test, not by_percentile)
                yield Row(record, test, seen, batching, confirms=True, before=True)


def _records(folder: Path, spec: TestSpec) -> Iterator[tuple[Path, Record]]:
    """The records of one test in a run folder, the one in its place last, if its files are as they were."""
    for aside in sorted(folder.glob(f"{spec.name}{EARLIER}*")):
        with contextlib.suppress(RecordError):
            yield aside, read_record(aside / RECORD)
    there = found_in(folder, [spec]).get(spec.name)
    if there is not None and there.record is not None and not there.trouble:
        yield folder / spec.name, there.record


def settle(found: Found, manifest: Manifest) -> None:
    """Take the highest value all of whose full-length tests were VALID, and write it beside the probes.

    peak.yaml goes again when its value is contradicted and there is no other; peak.json lists every test.
    """
    if found.folder is None or not found.full:
        return
    failed = {row.of for row in found.full if not row.seen.held}
    held = [row for row in found.full if row.of not in failed]
    best = max((row.seen.value for row in held), default=0.0)
    # The newest of its tests; where two kinds of batches hold the same, that of the last one.
    found.confirmed = next((row for row in reversed(held) if row.seen.value == best), None)
    file = found.folder / PEAK_FILE
    found.file = None
    if found.confirmed is not None:
        raw = manifest_at(manifest, found.scenario, *found.confirmed.of).raw
        found.file = file
        if not file.exists() or file.read_bytes() != raw:
            write_atomically(file, raw)
    else:
        file.unlink(missing_ok=True)
    write_json(found.folder / HISTORY_FILE, _history(found, found.folder / HISTORY_FILE))


def _history(found: Found, file: Path) -> dict[str, Any]:
    """Every test, after those that the file knew and that count no more: the code or the data has changed."""
    tests = _tests(found)
    known = {_name(test) for test in tests}
    gone = [test | {"counts": False} for test in _tests_in(file) if _name(test) not in known]
    return {
        "schema": SCHEMA,
        "scenario": found.scenario,
        "reported": None if found.confirmed is None else found.confirmed.seen.value,
        "result_key": found.result_key,
        "tests": gone + tests,
    }


def _tests(found: Found) -> list[dict[str, Any]]:
    return [
        {
            "value": row.seen.value,
            "length": "full" if row.confirms else "probe",
            **vars(row.batching),
            "verdict": verdict(row.record).word if row.record.status == "finished" else "ended",
            "result": row.record.result.value,
            "late": late_of(row.record, row.folder)[0] if found.scenario == "Server" else None,
            "started": row.record.started,
            "folder": f"{row.folder.parent.name}/{row.folder.name}",
            "counts": True,
        }
        for row in found.rows
    ]


def _tests_in(file: Path) -> list[dict[str, Any]]:
    try:
        body = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    tests = body.get("tests") if isinstance(body, dict) else None
    return [test for test in tests if isinstance(test, dict)] if isinstance(tests, list) else []


def _name(test: dict[str, Any]) -> str:
    """What a test is known by, also when its folder was set aside by a rerun."""
    return json.dumps([test.get("value"), test.get("started"), str(test.get("folder")).split("/")[0]])
