"""The files of one result, from its tests' folders to their places in the tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from orchestrator.audit import FIRST_HALF
from orchestrator.paths import (
    BASELINE_TXT,
    COMPLIANCE_TXT,
    DETAIL,
    SUMMARY,
    USER_CONF,
    VERIFY_ACCURACY,
    VERIFY_PERFORMANCE,
)
from orchestrator.submission.accuracy_files import write_log, write_scored
from orchestrator.submission.gather import Evidence, Test, inside
from orchestrator.submission.layout import POWER_FILES, RUN, SPL, Layout
from orchestrator.submission.refusal import SubmitError
from orchestrator.submission.writer import TreeWriter

LOGS = (SUMMARY, DETAIL)
ANSWERS = "TEST01"  # the one compliance test with an accuracy folder
RANGING, POWER = "ranging", "power"
POWER_SETTINGS = ("analyzer_table", "power_settings")  # rule since v2.0: at one of the measurements' levels


def write_results(
    tree: TreeWriter, layout: Layout, base: PurePosixPath, system: str, model: str, cell: Evidence
) -> None:
    """results and compliance of one cell, below `base` (division/submitter)."""
    place = base / layout.results(system, model, cell.scenario)
    _copy(tree, cell.performance, LOGS, place / "performance" / RUN)
    _copy(tree, cell.accuracy, LOGS, place / "accuracy")
    write_scored(tree, cell.accuracy, place / "accuracy")
    if has_power(cell.performance):
        _write_power(tree, cell.performance, place / "performance")
    for name, test in cell.audits.items():
        own = base / layout.compliance(system, model, cell.scenario, name)
        _write_audit(tree, cell, name, test, own)


def _write_audit(tree: TreeWriter, cell: Evidence, name: str, test: Test, place: PurePosixPath) -> None:
    _copy(tree, test, LOGS, place / "performance" / RUN)
    verdict = _with_verdict(cell, name)
    if verdict is not None:
        _copy(tree, verdict, (VERIFY_PERFORMANCE,), place)
    if name != ANSWERS:
        return
    _copy(tree, test, (VERIFY_ACCURACY,), place)
    digest = write_log(tree, test, place / "accuracy")
    # What truncate_accuracy_log.py leaves of a test that is not scored: the hash alone.
    tree.write(place / "accuracy" / "accuracy.txt", f"hash={digest}\n")
    scored = [text for text in (BASELINE_TXT, COMPLIANCE_TXT) if text in test.record.files]
    _copy(tree, test, scored, place / "accuracy")


def _with_verdict(cell: Evidence, name: str) -> Test | None:
    """Whose folder holds verify_performance.txt: TEST04-A's lies with TEST04-B, which has none there."""
    if name in FIRST_HALF:
        return cell.audits.get(FIRST_HALF[name])
    return None if name in FIRST_HALF.values() else cell.audits[name]


def has_power(test: Test) -> bool:
    """Whether the performance test was run under a power meter."""
    return (test.folder / POWER).is_dir()


def _write_power(tree: TreeWriter, test: Test, place: PurePosixPath) -> None:
    _copy(tree, test, (SPL,), place / RUN)
    _copy(tree, test, [f"{RANGING}/{name}" for name in (*LOGS, SPL)], place)
    _copy(tree, test, [f"{POWER}/{name}" for name in POWER_FILES], place)


def write_settings(tree: TreeWriter, place: PurePosixPath, cell: Evidence) -> None:
    """user.conf as it ran, and what describes the power meter's settings."""
    _copy(tree, cell.performance, (USER_CONF,), place)
    for path in _power_settings(cell.performance.folder):
        _copy(tree, cell.performance, (path.name,), place)


def _power_settings(folder: Path) -> Iterator[Path]:
    for stem in POWER_SETTINGS:
        yield from sorted(folder.glob(f"{stem}.*"))


def _copy(tree: TreeWriter, test: Test, names: tuple[str, ...] | list[str], place: PurePosixPath) -> None:
    """Copies of files that the record names, and so has the hashes of."""
    for name in names:
        digest = test.record.files.get(name)
        if digest is None:
            raise SubmitError(f"{inside(test, name)} is not among the files that its record names")
        tree.copy(inside(test, name), place / name, digest)
