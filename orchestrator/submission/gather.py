"""From folders to cells: records found, checked against their files, and one chosen for every test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.manifest import Manifest, parse_manifest
from orchestrator.paths import EARLIER, MANIFEST, RECORD
from orchestrator.peak_probe import is_probe
from orchestrator.record import Record, read_record
from orchestrator.rules import Round, load_round
from orchestrator.submission.refusal import SubmitError, several

PARTIAL = ".partial"  # of a test that was interrupted (orchestrator/paths.py)
LARGEST_MANIFEST_BYTES = 4 << 20  # far above what the reader of manifests takes


@dataclass(frozen=True)
class Test:
    """One finished test: its folder, its record, and the manifest that it ran from."""

    __test__ = False
    folder: Path
    record: Record
    manifest: Manifest

    @property
    def name(self) -> str:
        """How messages call it: the run's folder and the test's."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def kind(self) -> str:
        """performance, accuracy, or the compliance test's name."""
        if self.record.kind != "compliance":
            return self.record.kind
        return self.record.audit.test if self.record.audit else self.folder.name.rpartition("-")[2]

    @property
    def model_facts(self) -> dict[str, Any]:
        """What the first worker said of itself; the others' computed the same (see worker_differences)."""
        return self.record.workers[0].facts if self.record.workers else {}


@dataclass(frozen=True)
class Evidence:
    """One cell: a benchmark in a scenario. `inferred_from`: the scenario that the logs are really of."""

    benchmark: str
    scenario: str
    performance: Test
    accuracy: Test
    audits: dict[str, Test] = field(default_factory=dict)
    inferred_from: str | None = None

    @property
    def tests(self) -> list[Test]:
        """Every test of it."""
        return [self.performance, self.accuracy, *self.audits.values()]


@dataclass(frozen=True)
class Gathered:
    """All that goes into a tree: cells of one round, suite and division; and what was not taken, and why."""

    round: Round
    suite: str
    division: str
    cells: list[Evidence]
    left_out: list[str]


def gather(given: Sequence[Path]) -> Gathered:
    """The cells of the records below `given`; SubmitError says what does not go together."""
    folders = list(dict.fromkeys(folder for path in given for folder in _folders(path)))
    left_out: list[str] = []
    failed: dict[tuple[str, str], list[str]] = {}
    records: list[tuple[Path, Record]] = []
    for folder in folders:
        record = read_record(folder / RECORD)
        if record.status == "finished":
            records.append((folder, record))
        else:
            told = f"{folder.parent.name}/{folder.name}: the test {record.status} ({record.reason})"
            left_out.append(told)
            failed.setdefault((record.benchmark, record.scenario), []).append(told)
    if not records:
        raise SubmitError("none of the tests has finished: " + several(left_out))
    for what in ("round", "division", "suite"):
        seen = sorted({getattr(record, what) for _, record in records})
        if len(seen) > 1:
            raise SubmitError(
                f"the records are of several {what}s ({', '.join(seen)}), and a tree is of one; "
                "name the runs of one only, and make a tree for each"
            )
    found = load_round(records[0][1].round)
    wanted = _wanted(records, found, left_out)
    manifests: dict[bytes, Manifest] = {}
    cells = _cells([_opened(*each, manifests) for each in wanted], left_out, failed)
    _refuse_several_systems(cells)
    return Gathered(found, records[0][1].suite, records[0][1].division, cells, left_out)


def _folders(path: Path) -> Iterator[Path]:
    """The test folders at or below a path; links are not followed."""
    if path.name == RECORD and path.is_file():
        path = path.parent
    if not path.is_dir():
        raise SubmitError(f"{path} is no folder of records (a run's folder, as `loadgrid run` leaves it)")
    none = True
    for place, names, files in os.walk(path.resolve(), onerror=_refuse_unreadable):
        names[:] = sorted(name for name in names if PARTIAL not in name and EARLIER not in name)
        if RECORD in files:
            none = False
            names.clear()
            yield Path(place)
    if none:
        raise SubmitError(f"{path} holds no {RECORD}, neither in itself nor below")


def _refuse_unreadable(error: OSError) -> None:
    raise error


def _wanted(
    records: list[tuple[Path, Record]], found: Round, left_out: list[str]
) -> list[tuple[Path, Record]]:
    """Without probes, compliance tests that nobody judged, and those of open, which asks for none."""
    wanted = []
    for folder, record in records:
        name, audit = f"{folder.parent.name}/{folder.name}", record.audit
        if is_probe(record):
            left_out.append(f"{name}: a probe of loadgrid peak")
        elif record.kind == "compliance" and record.division == "open":
            left_out.append(f"{name}: the open division has no compliance tests")
        elif record.kind == "compliance" and (audit is None or (audit.passed is None and not audit.awaited)):
            left_out.append(f"{name}: it has no verdict ({audit.reason if audit else 'no verification'})")
        else:
            wanted.append((folder, record))
    if not wanted:
        raise SubmitError(f"no performance and no accuracy test of round {found.name} among the records")
    return wanted


def _opened(folder: Path, record: Record, manifests: dict[bytes, Manifest]) -> Test:
    """The test with its manifest, which must be the one that the record names; `manifests` are those read."""
    place = next((p / MANIFEST for p in (folder.parent, folder) if (p / MANIFEST).is_file()), None)
    if place is None:
        raise SubmitError(f"{folder.parent / MANIFEST} is missing: without it nobody can repeat the run")
    with open(place, "rb") as file:
        raw = file.read(LARGEST_MANIFEST_BYTES)
    if hashlib.sha256(raw).hexdigest() != record.hashes.get("manifest"):
        raise SubmitError(f"{place} is not the manifest that {folder / RECORD} names: it was changed since")
    if raw not in manifests:
        manifests[raw] = parse_manifest(raw, place)
    return Test(folder, record, manifests[raw])


def check_files(test: Test) -> None:
    """SubmitError where a file of the test is not the one that its record names, by sha256."""
    for name, digest in test.record.files.items():
        path = inside(test, name)
        if path.resolve() != test.folder.resolve() / name or not path.is_file():
            raise SubmitError(f"{path} is missing or no plain file, but {RECORD} names it")
        with open(path, "rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
        if seen != digest:
            raise SubmitError(
                f"{path} was changed after its record was written (sha256 {seen[:12]}... instead of "
                f"{digest[:12]}...); only what LoadGen wrote can be submitted: run the test again"
            )


def inside(test: Test, name: str) -> Path:
    """A file of the test's folder; SubmitError where its name leads out of it."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise SubmitError(f"{test.folder / RECORD} names a file outside of its folder: {name!r}")
    return test.folder / name


def _cells(
    tests: list[Test], left_out: list[str], failed: dict[tuple[str, str], list[str]]
) -> list[Evidence]:
    """One cell for each benchmark and scenario, in the records' order."""
    groups: dict[tuple[str, str], list[Test]] = {}
    for test in tests:
        groups.setdefault((test.record.benchmark, test.record.scenario), []).append(test)
    return [_cell(*name, group, left_out, failed.get(name, [])) for name, group in groups.items()]


def _cell(
    benchmark: str, scenario: str, tests: list[Test], left_out: list[str], failed: list[str]
) -> Evidence:
    by_kind: dict[str, list[Test]] = {}
    for test in sorted(tests, key=lambda test: (_began(test.record), test.record.run), reverse=True):
        by_kind.setdefault(test.kind, []).append(test)
    where = f"{benchmark} {scenario}"
    for kind in ("performance", "accuracy"):
        if kind not in by_kind:
            raise SubmitError(
                f"{where}: no finished {kind} test among the records; a result needs both, "
                "`runs: [performance, accuracy]` in the manifest makes them"
                + (f". Not taken: {several(failed)}" if failed else "")
            )
    # Compliance was verified against the tests beside it, so the performance test's run comes first.
    run = by_kind["performance"][0].folder.parent
    chosen = {}
    for kind, candidates in by_kind.items():
        chosen[kind] = next((test for test in candidates if test.folder.parent == run), candidates[0])
        others = [test.name for test in candidates if test is not chosen[kind]]
        left_out += [f"{name}: {chosen[kind].name} is taken" for name in others]
    performance, accuracy = chosen.pop("performance"), chosen.pop("accuracy")
    cell = Evidence(benchmark, scenario, performance, accuracy, dict(sorted(chosen.items())))
    _refuse_mix(where, cell)
    return cell


def _began(record: Record) -> float:
    """When the test began, s since 1970, whatever the host's time zone was then; 0 where it does not say."""
    try:
        return datetime.fromisoformat(record.started).timestamp()
    except ValueError:
        return 0.0


def _refuse_mix(where: str, cell: Evidence) -> None:
    """Tests of one cell are of one manifest, data set, network, LoadGen and code."""
    for what, of in _SAME.items():
        kinds: dict[str, list[str]] = {}
        for test in cell.tests:
            kinds.setdefault(of(test), []).append(test.name)
        if len(kinds) > 1:
            told = "; ".join(f"{several(names)}: {value[:16]}" for value, names in kinds.items())
            raise SubmitError(
                f"{where}: the tests do not have the same {what} ({told}); a result is of one, so name the "
                "runs that belong together, or run the missing tests again"
            )
    for test in cell.audits.values():
        against = cell.accuracy if test.kind == "TEST01" else None
        for other in (cell.performance, against):
            if other is not None and other.folder.parent != test.folder.parent:
                raise SubmitError(
                    f"{where}: {test.name} was verified against the tests of its own run, not against "
                    f"{other.name}; run them together (`loadgrid run --compliance`)"
                )


def _of_workers(test: Test, fact: str) -> str:
    return ", ".join(sorted({str(worker.facts.get(fact)) for worker in test.record.workers}))


_SAME = {
    "manifest": lambda test: str(test.record.hashes.get("manifest")),
    "data set": lambda test: str(test.record.hashes.get("library")),
    "weights": lambda test: _of_workers(test, "weights_sha256"),
    "scales": lambda test: _of_workers(test, "scales_sha256"),
    "network": lambda test: ", ".join(sorted({worker.model_hash for worker in test.record.workers})),
    "LoadGen": lambda test: str(test.record.loadgen.get("sha256")),
    "commit of LoadGrid": lambda test: str(test.record.versions.get("commit")),
    "worker code": lambda test: _of_workers(test, "code"),
}


def _refuse_several_systems(cells: Iterable[Evidence]) -> None:
    """One system and one framework for all results of a suite (rules, Consistency)."""
    for what, of in (
        ("framework (engine)", lambda test: _of_workers(test, "engine")),
        ("kind of device", lambda test: ", ".join(sorted({w.device for w in test.record.workers}))),
    ):
        kinds: dict[str, list[str]] = {}
        for cell in cells:
            for test in cell.tests:
                kinds.setdefault(of(test), []).append(test.name)
        if len(kinds) > 1:
            told = "; ".join(f"{value}: {several(names, 3)}" for value, names in kinds.items())
            raise SubmitError(
                f"the tests do not have the same {what} ({told}); all results of a system are of one: make a "
                "tree for each, with a system description of its own"
            )
