"""What all tests share: seeds, a local Ray, a cluster of two hosts, time budgets, a look for what is left."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from tests import two_hosts as lan
from tests.processes import (
    MARK,
    PATIENCE,
    alive,
    all_pids,
    command_line,
    descendants,
    end_processes,
    eventually,
    has_open_below,
    mark_of,
    my_tag,
    short_folder,
)
from tests.ray_nodes import QUIET_RAY, LocalRay, ray_on_this_machine

SEED = int(os.environ.get("LOADGRID_TEST_SEED", "20260721"))
TOKEN = secrets.token_hex(16)  # Ray's, for this test run
STRAY_LIMIT_S = 10.0  # how long what a test started may take to end by itself

hypothesis.settings.register_profile(
    "loadgrid",
    derandomize=True,  # the same cases every time; what it finds stays found
    deadline=None,  # two shared cores: a slow case says nothing
    database=None,
    max_examples=100,
)
hypothesis.settings.load_profile("loadgrid")

# Everything that the tests start, directly or not, carries the mark. Ray reads the rest when it is imported:
# with a token set by the tests themselves, a token file of the user's changes nothing.
RAY_FOLDER = short_folder()  # of a Ray that a test starts for itself
os.environ.update({MARK: my_tag(), "RAY_TMPDIR": str(RAY_FOLDER), **QUIET_RAY})
os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
os.environ.pop("RAY_ADDRESS", None)
# Under nohup SIGHUP is ignored, by every program that a test starts too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_unconfigure() -> None:
    """Also of the process that only hands tests out to others."""
    shutil.rmtree(RAY_FOLDER, ignore_errors=True)


def pytest_report_header() -> str:
    return f"LOADGRID_TEST_SEED={SEED}, hypothesis derandomized, LOADGRID_TEST_PATIENCE={PATIENCE:g}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """This test's seed, the same in every run; shown with the output when the test fails."""
    value = zlib.crc32(request.node.nodeid.encode(), SEED & 0xFFFFFFFF)
    print(f"seed {value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Real clusters


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "part(here, reason): needs something that may not be installed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("part"):
        here, reason = mark.args
        if not here:
            _not_possible(reason)


def _not_possible(reason: str) -> None:
    """In CI nothing is skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"cannot run here: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A machine that does other things too makes torch's threads wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def calibrate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str]]]:
    """`loadgrid calibrate` with a cache of its own: its exit code, and what it said, as one line."""
    import torch

    from orchestrator import cli

    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()

    def called(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["loadgrid", "calibrate", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return int(left.value.code or 0), " ".join((said.out + said.err).split())

    yield called
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[LocalRay]:
    """One real Ray here: `.address` for `ray.init` and `--address`, `.env` for a subprocess that uses it."""
    with ray_on_this_machine(TOKEN) as ray_here:
        yield ray_here
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()


@pytest.fixture(scope="session")
def two_hosts_of_the_session() -> Iterator[lan.Hosts]:
    """The hosts behind `two_hosts`; a test asks for that one."""
    reason = lan.why_not()
    if reason is not None:
        _not_possible(reason)
    with lan.hosts_on_one_machine(2, TOKEN) as hosts:
        hosts.form_cluster()
        yield hosts


@pytest.fixture
def two_hosts(two_hosts_of_the_session: lan.Hosts) -> Iterator[lan.Hosts]:
    """Two hosts and one Ray over both, whole when a test starts; one that leaves programs on them fails."""
    hosts = two_hosts_of_the_session
    hosts.form_cluster()
    yield hosts
    eventually(lambda: not any(host.strays for host in hosts.hosts), STRAY_LIMIT_S)
    left = {pid: f"on host {host.name}: {command_line(pid)}" for host in hosts.hosts for pid in host.strays}
    end_processes(left)
    for host in hosts.hosts:
        host.forget_ended()
    if left:
        pytest.fail("the test left programs running:\n  " + "\n  ".join(left.values()))


# Time budgets

_spent_s: dict[Path, float] = defaultdict(float)
_shared_s = 0.0  # what starting session fixtures took within the present test: no file's own


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    global _shared_s
    begun = time.monotonic()
    try:
        return (yield)
    finally:
        if fixturedef.scope == "session":
            _shared_s += time.monotonic() - begun


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    global _shared_s
    if call.when != "teardown":
        _spent_s[item.path] += call.duration - _shared_s
        _shared_s = 0.0
    return (yield)


@pytest.fixture(scope="module", autouse=True)
def time_budget(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file whose tests took longer than its TIME_BUDGET_S fails."""
    yield
    budget_s = getattr(request.module, "TIME_BUDGET_S", None)
    spent_s = _spent_s[request.path]
    if budget_s is not None and spent_s > budget_s * PATIENCE:
        allowed = f"{budget_s * PATIENCE:g} s (TIME_BUDGET_S x LOADGRID_TEST_PATIENCE)"
        pytest.fail(f"{request.path.name} took {spent_s:.1f} s; its budget is {allowed}")


# Nothing is left


def _left_running() -> dict[int, str]:
    """What this run started and still runs: by its mark, by descent, or by the logs of a Ray."""
    mine = {os.getpid(), os.getppid()}
    marked = {pid for pid in all_pids() if mark_of(pid) == my_tag()} | descendants(os.getpid())
    # Ray's agents write over their environment, and outlive a killed Ray by up to a minute (measured).
    agents = {pid for pid in all_pids() if has_open_below(pid, RAY_FOLDER)}
    return {pid: command_line(pid) for pid in (marked | agents) - mine if _counts(pid)}


def _counts(pid: int) -> bool:
    # What lives until Python itself has ended: multiprocessing's own tracker, and torch.compile's helpers.
    kept = "multiprocessing.resource_tracker", "torch/_inductor/compile_worker"
    return alive(pid) and not any(word in command_line(pid) for word in kept)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The run fails when a process of the tests outlives them; what killed runs left is removed first."""
    for name in lan.remove_leftovers():
        print(f"removed what a killed test run had left: {name}")
    yield
    eventually(lambda: not _left_running(), STRAY_LIMIT_S, every_s=0.2)
    left = _left_running()
    end_processes(left)
    if left:
        pytest.fail("the tests left processes running (now ended):\n  " + "\n  ".join(left.values()))
