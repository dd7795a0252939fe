"""The official checker's process: what it is told, how much it may say, and that nothing of it runs on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from orchestrator.check import official
from orchestrator.check.official import OfficialError, run_official
from tests.made_checkouts import checkout
from tests.processes import PATIENCE, all_pids, command_line, eventually

TIME_BUDGET_S = 30

LIMIT_S = 30.0
HAS_A_CHILD = """
import os, subprocess, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", os.environ["CHILD"]])
time.sleep(60)
"""
# Who starts the tests in the background has SIGINT ignored for all of them.
RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from orchestrator.check.official import run_official
run_official(Path(sys.argv[1]), Path(sys.argv[1]), "v6.1", 60)
"""


def runs(mark: str) -> bool:
    return any(mark in command_line(pid) for pid in all_pids())


def gone(*marks: str) -> bool:
    return not any(map(runs, marks))


def test_the_time_limit_ends_the_checker_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHILD", mark := f"child-{os.getpid()}")
    seen = []
    monkeypatch.setattr(official, "_hold_cap", lambda said: seen.append(runs(mark)))
    limit_s = 2 * PATIENCE
    with pytest.raises(OfficialError, match=f"did not end in {limit_s:g} s"):
        run_official(checkout(tmp_path, HAS_A_CHILD), tmp_path, "v6.1", limit_s)
    assert any(seen)
    assert eventually(partial(gone, mark), LIMIT_S)  # killed already, but a process takes its time to go


def test_whatever_ends_loadgrid_nothing_of_the_checker_is_left(tmp_path: Path) -> None:
    where, started = checkout(tmp_path, HAS_A_CHILD), []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        mark, places = f"child-{os.getpid()}-{number.name}", tmp_path / number.name
        places.mkdir()
        environment = {**os.environ, "CHILD": mark, "TMPDIR": str(places)}
        command = [sys.executable, "-c", RUN, str(where)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        started.append((process, number, mark, places))
    for process, number, mark, places in started:
        assert eventually(partial(runs, mark), LIMIT_S)
        assert runs(str(places))
        process.send_signal(number)
    for process, _, mark, places in started:
        process.wait(LIMIT_S * PATIENCE)
        assert eventually(partial(gone, mark, str(places)), LIMIT_S)
        assert not list(places.iterdir())


def test_what_is_for_ray_is_kept_from_the_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/secret")
    where = checkout(tmp_path, "import os; sys.exit(any(name.startswith('RAY_') for name in os.environ))")
    assert run_official(where, tmp_path, "v6.1", LIMIT_S).passed


def test_a_checker_that_says_too_much_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "SAID_LIMIT_BYTES", 1 << 20)
    with pytest.raises(OfficialError, match="said more than 1 MiB"):
        run_official(checkout(tmp_path, "while True: print('x' * 100_000)"), tmp_path, "v6.1", LIMIT_S)
