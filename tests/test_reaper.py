"""Who ends a local Ray: after a killed driver everything of Ray's, after an orderly end nothing but that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import children, reaper
from orchestrator.reaper import MARK, Reaper
from tests.processes import alive, end_processes, eventually

TIME_BUDGET_S = 30
ROOT = Path(__file__).parents[1]
# Ray's daemon stands still while Ray is told to end: its own wait for that has no limit.
STANDS_STILL = """
import os, signal
from orchestrator import cluster
from orchestrator.reaper import descendants
from tests.processes import command_line
cluster.SHUTDOWN_S = 1.0
cluster.connect("local", 1)
still = [pid for pid in descendants(os.getpid()) if "raylet/raylet " in command_line(pid)]
for pid in still:
    os.kill(pid, signal.SIGSTOP)
cluster.disconnect()
print(len(still), "stood still,", len(descendants(os.getpid())), "left")
"""
SIGNALLED = """
import os, signal, threading
from orchestrator import cluster
from orchestrator.reaper import descendants
from orchestrator.stop import Interrupted, Stop
Stop().listen()
cluster.connect("local", 1)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    cluster.disconnect()
except Interrupted as told:
    print(f"{told}, {len(descendants(os.getpid()))} left")
"""
SLEEP = ("-c", "import time; time.sleep(60)")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    end_processes(process.pid for process in found if process.poll() is None)
    for process in found:
        process.wait()


@pytest.fixture
def ray_folder(tmp_path: Path) -> Path:
    """A folder that is taken for Ray's, with a script that goes on for long."""
    folder = tmp_path / "ray"
    folder.mkdir()
    (folder / "agent.py").write_text(SLEEP[1])
    return folder


def sleeper(started: list[subprocess.Popen[bytes]], *words: str) -> subprocess.Popen[bytes]:
    started.append(subprocess.Popen([sys.executable, *(words or SLEEP)]))
    return started[-1]


def test_an_orderly_end_ends_what_ray_left_and_nothing_else(
    ray_folder: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "GRACE_S", 0.2)
    before, older = sleeper(started), sleeper(started, str(ray_folder / "agent.py"))
    armed = Reaper(ray_folder)
    marked = sleeper(started)
    armed.unmark()
    assert MARK not in os.environ
    agent, other = sleeper(started, "-u", str(ray_folder / "agent.py")), sleeper(started)
    assert eventually(lambda: reaper._runs_ray(agent.pid, str(ray_folder)), 5)
    armed.note()
    later = sleeper(started, str(ray_folder / "agent.py"))  # of another Ray that has begun meanwhile
    armed.disarm()
    assert eventually(lambda: not alive(marked.pid) and not alive(agent.pid), 10)
    assert alive(before.pid) and alive(other.pid) and alive(later.pid)
    assert alive(older.pid), "another Ray of this process, begun before"
    assert armed._process.returncode == 0


def test_a_driver_that_dies_takes_only_ray_along(
    ray_folder: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    armed = Reaper(ray_folder)
    marked = sleeper(started)
    armed.unmark()
    agent, other = sleeper(started, str(ray_folder / "agent.py")), sleeper(started)
    assert eventually(lambda: reaper._runs_ray(agent.pid, str(ray_folder)), 5)
    # The reaper looks every two seconds: it must have seen the agent, whose mark is gone.
    assert not eventually(lambda: False, reaper.LOOK_EVERY_S + 0.2)
    os.close(armed._pipe)  # what the driver's death does
    assert eventually(lambda: not alive(marked.pid) and not alive(agent.pid), 5)
    assert armed._process.wait(30) == 0 and alive(other.pid)


@pytest.mark.parametrize(
    ("script", "said"),
    [(STANDS_STILL, "1 stood still, 0 left"), (SIGNALLED, "SIGTERM received, 0 left")],
    ids=["stands still", "signalled"],
)
def test_whatever_happens_while_a_local_ray_ends_nothing_of_it_is_left(script: str, said: str) -> None:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == said


def test_two_rays_have_different_marks(ray_folder: Path) -> None:
    first, second = Reaper(ray_folder), Reaper(ray_folder)
    assert first._mark != second._mark and os.environ[MARK] == second._mark
    first.disarm()
    assert os.environ[MARK] == second._mark
    second.disarm()
    assert MARK not in os.environ


@pytest.mark.parametrize("python_path", [None, "", "x::y", ":"])
def test_no_module_of_the_current_folder_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_path: str | None
) -> None:
    evil = tmp_path / "orchestrator"
    evil.mkdir()
    for name in ("__init__", "reaper", "nullsut", "testrun", "children"):
        (evil / f"{name}.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    if python_path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", python_path)
    Reaper(tmp_path).disarm()
    command, env = children.command("orchestrator.children"), children.environment()
    assert subprocess.run(command, env=env, check=True, timeout=20).returncode == 0
    assert not (tmp_path / "taken").exists()
    assert "" not in env["PYTHONPATH"].split(os.pathsep)


def test_no_child_gets_rays_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert "secret" not in children.environment().values()
