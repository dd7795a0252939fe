"""A campaign whose program is killed at any moment and resumed, until all is done: the evidence it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from orchestrator.children import ROOT
from orchestrator.paths import CAMPAIGN, EARLIER, MANIFEST, RECORD
from orchestrator.phrases import verdict
from orchestrator.record import read_record
from tests.processes import eventually
from tests.program import Program, manifest
from tests.ray_nodes import clean_environment

TIME_BUDGET_S = 60
KILLS = 3
# A program that does all says some twenty lines; kills come after so many of them, and so much later.
LINES, LATER_S = 18, 0.4
TESTS = {"one/Server-performance", "one/Server-accuracy", "two/Offline-performance"}


def good_records(runs: Path) -> dict[str, bytes]:
    """Every finished and good record by its place, with its bytes; each file of its folder is as recorded."""
    found = {}
    for path in sorted(runs.glob(f"*/*/{RECORD}")):
        record, name = read_record(path), path.parent.name
        if ".partial" in name or EARLIER in name:
            continue
        assert record.status == "finished" and verdict(record).good, (name, record.reason)
        assert {p.name for p in path.parent.iterdir() if p.is_file()} == {RECORD, *record.files}
        of = json.loads((path.parents[1] / CAMPAIGN).read_bytes())["manifest"]
        assert f"{of}/{name}" not in found
        found[f"{of}/{name}"] = path.read_bytes()
    return found


def moments(seed: int) -> Iterator[tuple[int, float]]:
    """Lines that a program says before its kill, one number in each part of them; seconds from there."""
    rng = np.random.default_rng(seed)
    for part in range(KILLS):
        yield int((part + rng.random()) * LINES / KILLS), float(rng.random() * LATER_S)


def has_ended(program: Program) -> bool:
    return program.process.poll() is not None


def has_said(program: Program, lines: int) -> bool:
    return len(program.lines) >= lines or has_ended(program)


def own_copy_of_the_code(folder: Path) -> dict[str, str]:
    """An environment in which the program runs a copy: an edit during the test would be a reason to rerun."""
    for package in ("orchestrator", "workers"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return {**clean_environment(), "PYTHONPATH": str(folder)}


def test_killed_at_any_moment_a_campaign_loses_the_test_in_flight_at_most(tmp_path: Path, seed: int) -> None:
    folder, runs = tmp_path / "all", tmp_path / "runs"
    folder.mkdir()
    env = own_copy_of_the_code(tmp_path / "code")
    manifest(folder, name="one", runs="performance, accuracy")
    manifest(folder, name="two", scenarios="Offline", sample_us=1200)
    kept: dict[str, bytes] = {}
    for lines, later_s in moments(seed):
        with Program(tmp_path, "run", folder, "--resume", "--json", env=env) as program:
            eventually(partial(has_said, program, lines), 30.0, 0.01)
            eventually(partial(has_ended, program), later_s, 0.01)
            program.process.kill()
            program.process.wait()
            program.nothing_left_in(5.0)  # nobody writes any more
            said = [json.loads(line) for line in program.lines if line.startswith("{") and line.endswith("}")]
        now = good_records(runs)
        # What was done stays, byte by byte; what was told to have ended is there; nothing half is.
        assert kept.items() <= now.items(), program.said
        assert {f"{s['manifest']}/{s['test']}" for s in said if s["event"] == "test_ended"} <= set(now)
        kept = now
        print(f"killed {later_s:.2f} s after {lines} lines: done {sorted(now)}")
    with Program(tmp_path, "run", folder, "--resume", env=env) as program:
        assert program.end(30.0) == 0, program.said
    table = program.said[program.said.index("─ campaign ") :]
    assert f"3 of 3 tests good{f', {len(kept)} done before' if kept else ''}" in table
    rows = [line.split() for line in table.splitlines() if line.startswith(("one  ", "two  "))]
    assert {f"{row[0]}/{row[1]}": row[-1] for row in rows} == {
        test: "before" if test in kept else "now" for test in TESTS
    }
    last = good_records(runs)
    assert set(last) == TESTS and kept.items() <= last.items()
    # One run of each manifest, whatever else lies there.
    assert len({path.parent for path in runs.glob(f"*/{MANIFEST}")}) == 2
