"""How a run ends before its end: signals to the driver, kill -9 of the driver or of the test process."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.paths import DETAIL, USER_CONF
from orchestrator.record import read_record
from orchestrator.stop import SAME_WISH_S, Interrupted, Stop, heard_later
from tests.processes import PATIENCE, alive, command_line, eventually, short_folder
from tests.program import LOADGRID, Program, manifest
from tests.ray_nodes import LocalRay, clean_environment

TIME_BUDGET_S = 125

# From the signal to the end; the first of the two is for a run that has no Ray of its own to end.
END_LIMIT_S = 5.0 * PATIENCE
# The first terminal that the leader of a session opens is its own: it hears of the hang-up.
HANG_UP = """
import os, sys
tty = os.open(sys.argv[1], os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(tty, fd)
os.execv(sys.argv[2], sys.argv[2:])
"""
SIGTERM_WHILE_RAY_ENDS = """
import os, signal
from orchestrator import cluster
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
cluster.connect("local", 1)
node = cluster.ray._private.worker._global_node
end = node.kill_all_processes
def signalled(*args, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    end(*args, **options)
node.kill_all_processes = signalled
cluster.disconnect()
os.kill(os.getpid(), signal.SIGTERM)
"""
# One that waits for a test process longer than any pause of a busy machine may be.
PATIENT_LOADGRID = """
from orchestrator import cli, supervise
supervise.LEAVE_S = 300.0
cli.main()
"""
LONG = {"duration_ms": 60_000, "qps": 100, "batch_us": 4000, "limit_ms": 2000}


def logged(program: Program, test: str) -> bool:
    """Whether LoadGen has written of this running test to the disk; its logger does so a moment later."""
    return any(":::MLLOG" in log.read_text() for log in program.runs.glob(f"*/{test}.partial/{DETAIL}"))


def interrupted(
    program: Program,
    test: str,
    number: signal.Signals,
    limit_s: float = END_LIMIT_S,
    group: bool = False,
) -> None:
    """Signal a running test; all that must hold after it."""
    program.wait_said(": running")
    assert eventually(lambda: logged(program, test), 20.0), "LoadGen writes its log while it runs"
    sent = program.signal(number, group)
    assert program.end(limit_s + 10) == 130, program.said
    assert time.monotonic() - sent < limit_s, program.said
    program.nothing_left_in(5.0)
    record = program.record(test)
    assert (record.status, record.reason) == ("interrupted", f"{number.name} received")
    assert record.official is False
    assert f"the test was interrupted: {number.name} received" in record.unofficial_because
    folder = program.test_folder(test)
    assert (folder / USER_CONF).stat().st_size > 0
    assert ":::MLLOG" in (folder / DETAIL).read_text()  # LoadGen's own log, as far as it came
    assert "INTERRUPTED" in program.said and "Traceback" not in program.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_a_signal_ends_a_test_of_local_workers_with_a_record(
    tmp_path: Path, scenario: str, number: signal.Signals
) -> None:
    file = manifest(tmp_path, scenarios=scenario, **LONG)
    with Program(tmp_path, "run", file) as program:
        interrupted(program, f"{scenario}-performance", number)


def test_a_signal_in_offline_ends_a_test_on_a_cluster_that_stays(tmp_path: Path, local_ray: LocalRay) -> None:
    file = manifest(tmp_path, scenarios="Offline", where="ray", **{**LONG, "batch_us": 20_000_000})
    arguments = ["run", file, "--address", local_ray.address]
    with Program(tmp_path, *arguments, env=local_ray.env) as program:
        interrupted(program, "Offline-performance", signal.SIGINT)  # with batches of 20 s in the engine
    assert local_ray.node.alive
    assert eventually(lambda: not actors_of(local_ray), 5.0)


def test_a_signal_in_server_ends_the_local_ray_too(tmp_path: Path) -> None:
    file = manifest(tmp_path, scenarios="Server", where="ray", **LONG)
    with Program(tmp_path, "run", file) as program:
        interrupted(program, "Server-performance", signal.SIGTERM)


def test_a_signal_that_ends_ray_itself_at_once_leaves_a_record_all_the_same(tmp_path: Path) -> None:
    """As `timeout` and batch systems do; Ray itself waits for 60 s then, and ends the driver."""
    file = manifest(tmp_path, scenarios="Server", where="ray", **LONG)
    with Program(tmp_path, "run", file) as program:
        interrupted(program, "Server-performance", signal.SIGTERM, 25.0 * PATIENCE, group=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_while_ray_ends_costs_neither_the_table_nor_the_report(
    tmp_path: Path, number: signal.Signals
) -> None:
    with Program(tmp_path, "run", manifest(tmp_path, where="ray")) as program:
        program.wait_said("Was the driver the limit?")  # the last of the test's own lines
        program.signal(number)
        assert program.end(20.0) == 130, program.said
        assert f"{number.name} received after the last test" in program.said
        assert "1 of 1 test good" in program.said
        record = program.record("Server-performance")
        assert (record.status, record.result.valid) == ("finished", True)
        (run,) = program.runs.iterdir()
        assert (run / "report.html").is_file()
        program.nothing_left_in(5.0)


def test_sigterm_is_heard_while_ray_ends_its_processes_and_after(tmp_path: Path) -> None:
    """Ray's core leaves this signal to the kernel then, which would end the program without a word."""
    folder = short_folder()
    env = {**clean_environment(), "RAY_TMPDIR": str(folder)}
    try:
        command = [sys.executable, "-c", SIGTERM_WHILE_RAY_ENDS]
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert (ended.returncode, ended.stdout.split()) == (0, ["heard", "heard"]), ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_while_ray_starts_or_workers_load_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    file = manifest(tmp_path, where="ray", **LONG)
    with Program(tmp_path, "run", file) as program:
        program.wait_said("preparing Ray" if number == signal.SIGINT else "preparing workers")
        assert eventually(lambda: bool(program.below("raylet")), 10.0)
        sent = program.signal(number)
        assert program.end(20.0) == 130, program.said
        assert time.monotonic() - sent < END_LIMIT_S
        assert program.said.endswith(f"interrupted: {number.name} received")
        assert "Traceback" not in program.said
        program.nothing_left_in(5.0)
        assert not program.runs.exists()


def test_a_second_signal_does_not_wait_for_a_test_process_that_hangs(tmp_path: Path) -> None:
    patient = (sys.executable, "-c", PATIENT_LOADGRID)
    with Program(tmp_path, "run", manifest(tmp_path, **LONG), command=patient) as program:
        program.wait_said(": running")
        (child,) = program.below("orchestrator.testrun")
        os.kill(child, signal.SIGSTOP)
        program.signal(signal.SIGINT)
        time.sleep(SAME_WISH_S + 0.2)
        assert program.process.poll() is None, program.said
        program.signal(signal.SIGINT)
        assert program.end(END_LIMIT_S) == 130
        program.nothing_left_in(5.0)
        assert program.said.endswith("interrupted: SIGINT received")


def test_the_first_signal_asks_a_running_test_and_interrupts_everything_else() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        stop = Stop().listen()
        with stop.patience():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop() == "SIGTERM received"
            os.kill(os.getpid(), signal.SIGINT)  # at once: passed on twice, as by a shell
            stop._since_s -= SAME_WISH_S
            with pytest.raises(Interrupted, match="SIGTERM received"):
                os.kill(os.getpid(), signal.SIGINT)
        stop = Stop().listen()
        with pytest.raises(Interrupted, match="SIGINT received"):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_that_is_heard_later_cuts_nothing_short_but_a_second_wish_does() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    wished: list[str] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under `nohup`
    try:
        Stop().listen()
        with pytest.raises(Interrupted, match="SIGTERM received"), heard_later(lambda: wished.append("now")):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # at once: passed on twice, as by a shell
            assert wished == []
            time.sleep(SAME_WISH_S)
            os.kill(os.getpid(), signal.SIGINT)
            assert wished == ["now"]
        with heard_later(lambda: wished.append("never")):
            pass
        assert wished == ["now"] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_terminal_that_closes_ends_a_test_with_a_record(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [LOADGRID, "run", str(manifest(tmp_path, **LONG))]
    process = subprocess.Popen(
        [sys.executable, "-c", HANG_UP, os.ttyname(theirs), *command],
        cwd=tmp_path,
        env={**clean_environment(), "LOADGRID_CACHE": str(tmp_path / "cache")},
        start_new_session=True,
    )
    try:
        said = b""
        while b"running" not in said:
            assert select.select([ours], (), (), 20.0 * PATIENCE)[0], said
            said += os.read(ours, 4096)
        os.close(theirs)  # not before: a terminal that nobody has open cannot be read
        os.close(ours)
        assert process.wait(END_LIMIT_S) == 130
    finally:
        process.kill()
        process.wait()
    (file,) = tmp_path.glob("runs/*/*/record.json")
    assert read_record(file).reason == "SIGHUP received"


def test_who_ignores_a_hang_up_goes_on_ignoring_it() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        Stop().listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# kill -9


@pytest.mark.parametrize("moment", ["preparing Ray", ": running"])
def test_a_killed_driver_with_a_local_ray_leaves_no_process(tmp_path: Path, moment: str) -> None:
    with Program(tmp_path, "run", manifest(tmp_path, where="ray", **LONG)) as program:
        program.wait_said(moment)
        assert eventually(lambda: bool(program.below("raylet/raylet")), 10.0)
        assert len(program.left()) > 3
        program.signal(signal.SIGKILL)
        program.nothing_left_in(10.0)


def test_a_killed_driver_leaves_the_cluster_and_no_actor(tmp_path: Path, local_ray: LocalRay) -> None:
    file = manifest(tmp_path, where="ray", **LONG)
    arguments = ["run", file, "--address", local_ray.address]
    with Program(tmp_path, *arguments, env=local_ray.env) as program:
        program.wait_said(": running")
        assert len(actors_of(local_ray)) == 2
        program.signal(signal.SIGKILL)
        assert eventually(lambda: not actors_of(local_ray), 5.0)
        program.nothing_left_in(5.0)
    assert local_ray.node.alive


def test_a_killed_test_process_fails_the_test_with_a_message_and_the_next_one_runs(tmp_path: Path) -> None:
    long = manifest(tmp_path, name="killed", **LONG)
    with Program(tmp_path, "run", long, manifest(tmp_path)) as program:
        program.wait_said(": running")
        (child,) = program.below("orchestrator.testrun")
        os.kill(child, signal.SIGKILL)
        assert program.end(20.0) == 4, program.said
        program.nothing_left_in(5.0)
        record = program.record("Server-performance", "killed")
        assert record.status == "failed"
        assert record.reason == "the test process died (signal SIGKILL)"
        assert "the test process died (signal SIGKILL)" in " ".join(program.said.split())
        assert program.record("Server-performance").result.valid is True


def actors_of(ray_here: LocalRay) -> list[int]:
    pids = ray_here.node.pids
    return [pid for pid in pids if alive(pid) and command_line(pid).startswith("ray::RayWorker")]
