"""Runs within a power measurement: a fake client and meter around stand-in tests, and around LoadGen."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign import Session, SetUpError, run_campaign
from orchestrator.manifest import Manifest, ManifestError, parse_manifest
from orchestrator.manifest_power import PowerSection
from orchestrator.paths import DETAIL, SUMMARY
from orchestrator.power import workload
from orchestrator.power.measure import measure, why_no_server
from orchestrator.power.spl import read_spl
from orchestrator.preflight import check_files, not_here
from orchestrator.quiet import Quiet
from orchestrator.record import Power, read_record
from orchestrator.stop import Stop
from orchestrator.submission.layout import POWER_FILES
from orchestrator.supervise import Outcome
from orchestrator.timings import Board
from orchestrator.verdict import doubts_about_power
from tests.fake_ptd import FakePtd
from tests.made_logs import detail
from tests.processes import all_pids, command_line, eventually
from tests.program import Program, manifest

TIME_BUDGET_S = 90

CLIENT = Path(__file__).with_name("fake_power_client.py")
COMMAND = [sys.executable, str(CLIENT)]
WAITS = [sys.executable, "-c", "import signal; signal.pause()"]
LIMIT_S = 80.0


class Tests:
    """Stands in for the campaign: notes what is asked, and leaves logs as a test of no length would."""

    __test__ = False

    def __init__(self, fail: str = "", during: Callable[[], None] = lambda: None) -> None:
        self.asked: list[tuple[str, Path]] = []
        self.fail, self.during = fail, during
        self.reason: str | None = None  # why it was told to stop

    def __call__(self, mode: str, folder: Path, stop: Callable[[], str | None]) -> Outcome:
        self.asked.append((mode, folder))
        now = datetime.now(UTC).strftime("%m-%d-%Y %H:%M:%S.%f")
        (folder / DETAIL).write_text(detail("6.0.17", "Server", {"power_begin": now, "power_end": now}))
        (folder / SUMMARY).write_text(f"{mode}\n")
        self.during()
        if self.fail == "waits":
            eventually(lambda: stop() is not None, LIMIT_S, every_s=0.01)
            self.reason = stop()
            return Outcome("interrupted", Board(1), self.reason or "")
        return Outcome("failed", Board(1), "all workers are lost") if self.fail == mode else done()


def done() -> Outcome:
    return Outcome("finished", Board(1))


def section(port: int = 1, client: list[str] = COMMAND) -> PowerSection:
    return PowerSection(client=tuple(client), address="127.0.0.1", port=port, ntp="ntp.example")


def measured(
    folder: Path, tests: Tests, client: list[str] = COMMAND, stop: Callable[[], str | None] = lambda: None
) -> tuple[Outcome | None, str]:
    """A measurement of the test in `folder`/Server-performance with a meter of its own."""
    (folder / "Server-performance").mkdir()
    with FakePtd() as ptd:
        power = section(ptd.port, client)
        return measure(power, folder, folder / "Server-performance", "Server-performance", tests, stop)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_client_has_the_test_run_twice_and_its_files_lie_beside_the_logs(tmp_path: Path) -> None:
    tests, folder = Tests(), tmp_path / "Server-performance"
    outcome, trouble = measured(tmp_path, tests)
    assert (trouble, outcome and outcome.status) == ("", "finished")
    assert tests.asked == [("ranging", folder / "ranging"), ("testing", folder)]
    logs = [DETAIL, SUMMARY, "spl.txt"]
    wanted = [*logs, *(f"ranging/{name}" for name in logs), *(f"power/{name}" for name in POWER_FILES)]
    assert files_below(folder) == sorted([*wanted, "power_client.txt", "ptd_out.txt"])
    for place, mode in ((folder, "testing"), (folder / "ranging", "ranging")):
        assert (place / SUMMARY).read_text() == f"{mode}\n"
        marks = {reading.mark for reading in read_spl(place / "spl.txt")}
        assert marks == {f"2026-01-01_00-00-00_Server-performance_{mode}"}
    assert [path.name for path in tmp_path.iterdir()] == ["Server-performance"]


@pytest.mark.parametrize(
    ("fault", "runs", "words"),
    [
        ("ends at once", 0, "left before the ranging run (exit code 0; its last words: client [CRITICAL] "),
        ("one run", 1, "left before the testing run (exit code 0; its last words: "),
        ("another log", 2, f"{DETAIL} of run_1 is not the one that the run wrote"),
        ("no spl", 2, "the power client left no 2026-01-01_00-00-00_Server-performance/run_1/spl.txt"),
    ],
)
def test_a_client_that_does_not_measure_is_told_by_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, runs: int, words: str
) -> None:
    monkeypatch.setenv("FAKE_POWER_FAULT", fault)
    tests = Tests()
    outcome, trouble = measured(tmp_path, tests)
    assert words in trouble
    assert (len(tests.asked), outcome is not None) == (runs, runs == 2)
    folder = tmp_path / "Server-performance"
    assert not (folder / "power").exists() and (folder / "power_client").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["Server-performance"]


@pytest.mark.parametrize(("mode", "where"), [("ranging", "in the ranging run: "), ("testing", "")])
def test_a_run_that_fails_is_the_reason_and_the_client_is_told(tmp_path: Path, mode: str, where: str) -> None:
    tests = Tests(fail=mode)
    outcome, trouble = measured(tmp_path, tests)
    assert trouble == f"{where}all workers are lost"
    assert tests.asked[-1][0] == mode
    assert outcome is None if where else outcome is not None
    said = (tmp_path / "Server-performance" / "power_client.txt").read_text()
    assert f"loadgrid: the test did not run: {trouble}" in said


def test_a_run_whose_client_dies_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setenv("FAKE_POWER_FAULT", "dies when told")
    monkeypatch.setenv("FAKE_POWER_FIFO", str(fifo))
    tests = Tests("waits", during=lambda: print(fifo.write_text("now")))
    outcome, trouble = measured(tmp_path, tests)
    assert outcome is None
    assert tests.reason is not None and tests.reason in trouble
    assert "the power client left during the ranging run (exit code 3; its last words: " in trouble
    assert "[CRITICAL] the fake died" in trouble


def test_a_wish_to_stop_ends_the_client(tmp_path: Path) -> None:
    tests, mark = Tests(), f"mark-{os.getpid()}"
    outcome, trouble = measured(tmp_path, tests, [*WAITS, mark], lambda: "SIGINT received")
    assert (outcome, trouble, tests.asked) == (None, "SIGINT received", [])
    assert not [pid for pid in all_pids() if mark in command_line(pid)]


def test_a_client_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    outcome, trouble = measured(tmp_path, Tests(), ["no-such-client"])
    assert outcome is None
    assert trouble == (
        "the power client left before the ranging run "
        "(exit code 127; its last words: no-such-client: No such file or directory)"
    )


# A driver whose client never asks for a run, and has a child.
DRIVER = """
import sys
from pathlib import Path
from orchestrator.manifest_power import PowerSection
from orchestrator.power.measure import measure
folder = Path(sys.argv[1])
power = PowerSection(client=tuple(sys.argv[2:]), address="127.0.0.1", port=1, ntp="n")
measure(power, folder, folder / "test", "test", None, lambda: None)
"""
HAS_A_CHILD = "import os, sys, signal; os.fork(); signal.pause()"


def test_a_killed_driver_leaves_neither_client_nor_its_children(tmp_path: Path) -> None:
    mark, places = f"mark-{os.getpid()}", tmp_path / "places"
    places.mkdir()
    (tmp_path / "test").mkdir()
    client = [sys.executable, "-c", HAS_A_CHILD, mark]
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), *client], env={**os.environ, "TMPDIR": str(places)}
    ) as driver:
        # The driver, the watcher, the client and its child.
        assert eventually(lambda: sum(mark in command_line(pid) for pid in all_pids()) == 4, LIMIT_S)
        assert len(list(places.iterdir())) == 1
        driver.kill()
    assert eventually(lambda: not any(mark in command_line(pid) for pid in all_pids()), LIMIT_S)
    assert not list(places.iterdir())


def test_a_workload_without_its_loadgrid_fails_with_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-P", workload.__file__, str(tmp_path / "gone")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("loadgrid: the test did not run: ") and "Traceback" not in ran.stderr


# The manifest


def with_power(folder: Path, power: str, **wanted: Any) -> Manifest:
    file = manifest(folder, **wanted)
    file.write_text(f"{file.read_text()}power: {power}\n")
    return parse_manifest(file.read_bytes(), file)


def test_the_command_may_be_a_list_or_a_line_and_never_meets_a_shell(tmp_path: Path) -> None:
    line = with_power(tmp_path, "{client: \"python3 'a b'/client.py; $x\", address: h, ntp: n}").power
    words = with_power(tmp_path, "{client: [python3, a b/client.py;, $x], address: h, ntp: n}").power
    assert line is not None and line == words
    assert (line.client, line.port) == (("python3", "a b/client.py;", "$x"), 4950)


@pytest.mark.parametrize(
    ("power", "words"),
    [
        ('{client: "a \'", address: h, ntp: n}', "power.client: is no command line (No closing quotation)"),
        ('{client: "", address: h, ntp: n}', "power.client: must not be empty"),
        ("{client: a, address: -x, ntp: n}", 'power.address: "-x" does not match'),
        ("{client: a, address: h}", "power.ntp: is missing"),
        ("{client: a, address: h, ntp: n, documents: [a/b.txt]}", "power.documents[0]: is neither analyzer"),
        ("{client: a, address: h, ntp: n, port: 70000}", "power.port: must be at most 65535"),
    ],
)
def test_a_wrong_section_is_told_with_its_line(tmp_path: Path, power: str, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        with_power(tmp_path, power)
    assert re.search(rf"echoes\.yaml:\d+: {re.escape(words)}", str(caught.value))


def test_power_needs_a_performance_test(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="power: does nothing without a performance test"):
        with_power(tmp_path, "{client: a, address: h, ntp: n}", runs="accuracy")


def test_a_missing_client_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "client.py").touch()
    here = with_power(tmp_path, f"{{client: [{sys.executable}, client.py], address: h, ntp: n}}")
    check_files(here, "local")
    assert not_here([here]) is None
    absent = with_power(tmp_path, f"{{client: {sys.executable} gone/client.py, address: h, ntp: n}}")
    with pytest.raises(ManifestError, match=r"power\.client: no such file: .*/gone/client\.py"):
        check_files(absent, "local")
    assert "gone/client.py" in (not_here([absent]) or "")
    text = f"{{client: {sys.executable}, address: h, ntp: n, documents: [power_settings.md]}}"
    with pytest.raises(ManifestError, match=r"power\.documents: no such file: .*/power_settings\.md"):
        check_files(with_power(tmp_path, text), "local")
    unknown = with_power(tmp_path, "{client: no-such-client, address: h, ntp: n}")
    with pytest.raises(ManifestError, match=r"power\.client: no such program: no-such-client"):
        check_files(unknown, "local")


def test_a_power_server_that_does_not_answer_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        power = section(server.getsockname()[1])
        assert why_no_server(power) is None
    loaded = with_power(tmp_path, "{client: a, address: h, ntp: n}")
    with pytest.raises(SetUpError, match=r"no power server answers at 127\.0\.0\.1:\d+: Connection refused"):
        Session(loaded, "local", Quiet(print), power=power).__enter__()


def test_figures_of_other_meters_or_of_several_systems_are_not_official() -> None:
    known: dict[str, Any] = {"value": 1.0, "unit": "W", "average_w": 1.0, "samples": 1, "window_s": 1.0}
    real = Power(**known, meter="YokogawaWT310, version 1.11.1-69286632-20240907")
    assert doubts_about_power("v6.1", real, ["10.0.0.2"]) == doubts_about_power("v1.0", None, ["h"]) == []
    assert "v1.0 measures one system" in doubts_about_power("v1.0", real, ["10.0.0.2"])[0]
    assert "the meter is not said" in doubts_about_power("v6.1", Power(**known, meter=None), [])[0]


# The whole


def test_loadgrid_measures_the_performance_test_with_the_real_loadgen(tmp_path: Path) -> None:
    with FakePtd() as ptd:
        (tmp_path / "analyzer_table.md").write_text("made up\n")
        documents = "documents: [analyzer_table.md]"
        server = f"address: 127.0.0.1, port: {ptd.port}, ntp: n"
        power = f"{{client: {sys.executable} {CLIENT}, {server}, {documents}}}"
        file = with_power(tmp_path, power, runs="performance, accuracy", duration_ms=400).path
        with Program(tmp_path, "run", file) as program:
            program.end(LIMIT_S)
    record, folder = program.record("Server-performance"), program.test_folder("Server-performance")
    assert record.status == "finished", program.said
    found = record.power
    assert found is not None and found.unit == "W" and 300 <= found.value <= 340
    assert found.samples >= 5 and found.window_s >= 0.4
    assert (found.meter, found.measured) == ("FakeMeter, version 0.0.0-fake", "wall measurement by PTDaemon")
    assert any("none that the power checker takes" in why for why in record.unofficial_because)
    assert f"{found.value:.4g} W: mean over {found.samples} readings" in program.said
    assert "wall measurement by PTDaemon (FakeMeter, version 0.0.0-fake)" in program.said
    assert len(ptd.meter.measured) == 2
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files_below(folder)}
    del hashes["record.json"]
    assert record.files == hashes
    assert {
        "spl.txt",
        "analyzer_table.md",
        "ranging/spl.txt",
        f"ranging/{DETAIL}",
        "power/server.json",
    } <= set(record.files)
    accuracy = program.test_folder("Server-accuracy")
    assert program.record("Server-accuracy").power is None
    assert not {"power", "ranging", "spl.txt"} & {path.name for path in accuracy.iterdir()}


class Hasty(Quiet):
    """Wishes to stop as soon as the power client is started."""

    stop = Stop()

    def preparing(self, what: str) -> None:
        if "the power measurement" in what:
            self.stop.reason = "SIGINT received"


def test_an_interrupt_leaves_a_record_and_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    watcher, client = Hasty(print), f"[{sys.executable}, -c, 'import signal; signal.pause()']"
    with FakePtd() as ptd:
        power = f"{{client: {client}, address: 127.0.0.1, port: {ptd.port}, ntp: n}}"
        code = run_campaign(with_power(tmp_path, power), tmp_path / "runs", "local", watcher, watcher.stop)
    assert code == 130
    (file,) = tmp_path.glob("runs/*/Server-performance/record.json")
    record = read_record(file)
    assert (record.status, record.reason, record.power) == ("interrupted", "SIGINT received", None)
    assert record.files.keys() == {"user.conf", "power_client.txt"}
    assert not [pid for pid in all_pids() if "Server-performance.power." in command_line(pid)]
