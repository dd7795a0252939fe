"""The real LoadGen in a test process: every scenario in both modes, and every way such a process can end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.loadgen import LoadGenError, import_loadgen
from orchestrator.logs import read_detail
from orchestrator.order import Channel
from orchestrator.supervise import Hooks, _Supervisor, run_test
from tests.processes import PATIENCE, alive, eventually
from tests.real_loadgen import (
    SAMPLES,
    ThreadFleet,
    check_accuracy_log,
    failed,
    finished,
    long_order,
    order_of,
    running_tests,
)
from workers.tasks.null import NullTask

TIME_BUDGET_S = 45

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
OLD_LOADGENS: list[Path | None] = [
    Path(p) for p in os.environ.get("LOADGRID_OLD_LOADGEN", "").split(":") if p
]
# Scenarios and modes


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_performance_test_is_valid(tmp_path: Path, scenario: str) -> None:
    order = order_of(tmp_path, scenario)
    outcome = finished(order)
    assert outcome.losses == [] and [w["name"] for w in outcome.workers] == ["w0", "w1"]
    assert outcome.result["completion"] == "scatter"
    assert (outcome.result["issue_lateness"] is not None) == (scenario == "Server")
    assert int(outcome.board.stage("latency").sum()) == outcome.board.total("completed")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_accuracy_test_answers_every_sample_with_its_own_bytes(tmp_path: Path, scenario: str) -> None:
    order = order_of(tmp_path, scenario, "accuracy")
    finished(order)
    check_accuracy_log(Path(order.out_dir), 8 if scenario == "MultiStream" else 1)


def test_in_value_mode_the_bytes_travel_and_every_sample_is_answered(tmp_path: Path) -> None:
    library = NullTask({"count": SAMPLES, "sample_bytes": 20_000}).prepare(tmp_path)
    order = order_of(tmp_path, "Offline", "accuracy", payload="value", library=str(library.folder))
    finished(order)
    check_accuracy_log(Path(order.out_dir))


def test_in_the_network_division_each_sample_is_a_message_and_the_nodes_are_named(tmp_path: Path) -> None:
    library = NullTask({"count": SAMPLES, "sample_bytes": 100}).prepare(tmp_path)
    order = order_of(
        tmp_path, "Offline", "accuracy", payload="value", library=str(library.folder), network=True
    )
    board = finished(order).board
    check_accuracy_log(Path(order.out_dir))
    name = read_detail(Path(order.out_dir) / "mlperf_log_detail.txt").values["sut_name"]
    assert "Network SUT" in name
    assert all(f"w{i}@{socket.gethostname()}" in name for i in range(2))
    frames = [board.counter(worker, "frames") for worker in range(2)]
    assert frames == [board.counter(worker, "samples") for worker in range(2)]
    assert sum(frames) == SAMPLES


# Over TCP, with keys


@pytest.mark.parametrize("security", ["curve", "none"])
def test_a_lost_worker_costs_no_sample_and_is_told(tmp_path: Path, security: str) -> None:
    fleet = ThreadFleet(3)
    hooks = Hooks()
    kills = iter([1])

    def on_tick(board: Any) -> None:
        if board.total("completed") > 100:
            for worker in kills:
                fleet.kill(worker)
                fleet._lost.append((f"w{worker}", "its process died"))

    hooks.on_tick = on_tick
    order = order_of(
        tmp_path,
        "Server",
        workers=fleet.seats(),
        local=None,
        security=security,
        on_loss="reissue",
    )
    outcome = finished(order, fleet, hooks)
    assert [(loss["worker"], loss["reason"]) for loss in outcome.losses] == [("w1", "its process died")]
    assert outcome.board.counter(1, "alive") == 0


# Refusals


def test_settings_that_do_not_read_back_are_each_named(tmp_path: Path) -> None:
    wanted = {"server_target_qps": 7.5, "min_duration_ms": 1000, "min_query_count": 99, "no_such_setting": 3}
    reason = failed(order_of(tmp_path, "Server", expected=wanted))
    assert "server_target_qps is 1000.0 instead of 7.5" in reason
    assert "min_query_count is 1 instead of 99" in reason
    assert "no_such_setting does not exist" in reason
    assert "min_duration_ms" not in reason


def test_a_folder_without_a_module_is_a_clear_error(tmp_path: Path) -> None:
    reason = failed(order_of(tmp_path, "Server", loadgen_path=str(tmp_path / "nowhere")))
    assert "no mlperf_loadgen module" in reason and "nowhere" in reason
    broken = tmp_path / Path(str(import_loadgen(None).__file__)).name
    broken.write_bytes(b"no module at all")
    with pytest.raises(LoadGenError, match="cannot be imported"):
        import_loadgen(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"conf_file": "/nowhere/user.conf"}, "could not read /nowhere/user.conf: No such file"),
        ({"attributes": {"no_such_setting": 1}}, "no setting no_such_setting"),
        ({"attributes": {"qsl_rng_seed": 1.5}}, "qsl_rng_seed of this LoadGen cannot be 1.5"),
        ({"backend": {"engine": "ecco"}}, "did you mean 'echo'"),
        ({"backend": {"service_time_us": -1.0}}, "service times"),
        ({"local": None, "address": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    if changes.get("local", 0) is None:
        changes = {**changes, "workers": ThreadFleet(1).seats()}
    assert told in failed(order_of(tmp_path, "Server", **changes))


CALLBACK_SCRIPT = """
import os, sys, time
from pathlib import Path
from orchestrator.loadgen import Callbacks, LoadGen
from orchestrator.query_samples import columns
which, folder = sys.argv[1:]
def good(*arguments): return "a name"
def bad(*arguments): raise ValueError("from " + which)
def caught(error): print(type(error).__name__, error, flush=True); os._exit(42)
calls = {name: bad if name == which else good for name in ("issue", "load", "unload", "name")}
if which != "name": calls["name"] = None
if which == "unload": calls["issue"] = lambda samples: lg.module.QuerySamplesComplete(
    [lg.module.QuerySampleResponse(i, 0, 0) for i in columns(samples)[0].tolist()])
lg = LoadGen(None)
settings = lg.settings("null", "Offline", "accuracy", Path(folder) / "user.conf", {}, {})
lg.run(settings, Callbacks(**calls, on_error=caught), 10, 10, Path(folder))
"""


@pytest.mark.parametrize("callback", ["issue", "load", "unload", "name"])
def test_an_exception_in_a_callback_is_told_and_never_reaches_loadgen(tmp_path: Path, callback: str) -> None:
    (tmp_path / "user.conf").write_text("*.Offline.min_duration = 10\n")
    command = [sys.executable, "-c", CALLBACK_SCRIPT, callback, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout.strip()) == (42, f"ValueError from {callback}"), done.stderr


# Ends


@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_an_abort_ends_a_test_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str) -> None:
    # Whatever lies where somebody stands is no module of ours.
    for name in ("select.py", "orchestrator.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    asked: list[float] = []

    def stop() -> str | None:
        # The test runs: this is asked again after it has answered something.
        if outcome_board and outcome_board[0].total("completed") > 50:
            asked.append(time.monotonic())
            return "interrupted by the user"
        return None

    outcome_board: list[Any] = []
    hooks = Hooks(on_tick=lambda board: outcome_board.append(board) if not outcome_board else None, stop=stop)
    outcome = run_test(long_order(tmp_path, scenario), None, hooks)
    assert time.monotonic() - asked[0] < 2 * PATIENCE
    assert (outcome.status, outcome.reason) == ("interrupted", "interrupted by the user")
    assert running_tests() == []


def test_a_test_process_that_is_killed_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "running":
            os.kill(running_tests()[0], signal.SIGKILL)

    outcome = run_test(long_order(tmp_path, "Server"), None, Hooks(on_event=on_event))
    assert outcome.status == "failed" and "the test process died (signal SIGKILL)" in outcome.reason


def test_an_error_in_the_drivers_own_hooks_leaves_no_process(tmp_path: Path) -> None:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "running":
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_test(long_order(tmp_path, "Offline"), None, Hooks(on_event=on_event))
    assert time.monotonic() - begun < 10 * PATIENCE and running_tests() == []


@pytest.mark.parametrize("moment", ["before the order", "while it starts", "while it runs"])
def test_a_test_process_without_a_driver_ends_within_a_second(tmp_path: Path, moment: str) -> None:
    driver = _Supervisor(long_order(tmp_path, "Offline"), None, Hooks())
    if moment != "before the order":
        driver.channel.send(**driver.order.model_dump())
    if moment == "while it runs":
        heard: list[str] = []
        while "running" not in heard:
            heard += [message["event"] for message in driver.channel.receive()]
    else:
        assert eventually(lambda: bool(running_tests()), 5, every_s=0.01)
    driver.channel.sock.close()
    limit_s = 1.0 if moment == "while it runs" else 5.0  # Python itself has to start first
    assert eventually(lambda: not alive(driver.child.pid), limit_s, every_s=0.01)
    assert driver.child.wait() == 4


def test_many_tests_leave_no_descriptors_behind(tmp_path: Path) -> None:
    counts = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        failed(order_of(folder, "Server", loadgen_path=str(tmp_path / "nowhere")))
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] == counts[2]


def test_what_comes_with_the_first_message_is_not_lost() -> None:
    ours, theirs = socket.socketpair()
    driver, test = Channel(ours), Channel(theirs)
    driver.send(event="order")
    driver.send(event="lost", worker="w0")
    ours.sendall(b'{"event": "ab')
    assert test.first() == {"event": "order"}
    assert test.complete() == [{"event": "lost", "worker": "w0"}]
    ours.sendall(b'ort"}\n')
    assert test.receive() == [{"event": "abort"}]
    driver.sock.close()
    assert test.receive() == [] and test.closed
    theirs.close()


# LoadGen of the old rounds


@pytest.fixture(params=OLD_LOADGENS or [None], ids=lambda path: path.parent.name if path else "none")
def old_loadgen(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("LOADGRID_OLD_LOADGEN names no folder of a LoadGen module built from v1.0 or v1.1")
    return request.param


@pytest.mark.parametrize("scenario", ["SingleStream", "Server", "Offline"])
@pytest.mark.parametrize("test", ["performance", "accuracy"])
def test_a_loadgen_of_the_old_rounds_runs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_loadgen: Path, scenario: str, test: str
) -> None:
    # It would obey this one if it saw it.
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 77\n*.*.mode = 3\n")
    monkeypatch.chdir(tmp_path)
    order = order_of(tmp_path, scenario, test, loadgen_path=str(old_loadgen))
    attributes = dict(order.attributes)
    if scenario == "SingleStream":
        # Its conf reader takes whole milliseconds only, and its attribute whole nanoseconds.
        attributes["single_stream_expected_latency_ns"] = 50_000.0
    expected = {**order.expected, "test05": False}
    order = order.model_copy(update={"expected": expected, "attributes": attributes})
    finished(order)
    if test == "accuracy":
        check_accuracy_log(Path(order.out_dir))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"expected": {"accuracy_sample_count_override": 5}}, "does not exist and should be 5"),
        ({"attributes": {"test05": True}}, "no setting test05"),
        ({"network": True}, "no ConstructQDL"),
        ({"scenario": "MultiStream"}, "multi_stream_expected_latency_ns does not exist"),
    ],
)
def test_an_old_loadgen_refuses_what_it_lacks(
    tmp_path: Path, old_loadgen: Path, changes: dict[str, Any], told: str
) -> None:
    scenario = changes.get("scenario", "Server")
    rest = {name: value for name, value in changes.items() if name != "scenario"}
    assert told in failed(order_of(tmp_path, scenario, loadgen_path=str(old_loadgen), **rest))
