"""The command line: exit codes, and that bad input is one message before anything starts."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import orchestrator
from orchestrator import campaign, cli, cluster
from orchestrator.manifest import manifest_schema
from orchestrator.paths import MANIFEST
from orchestrator.record import Record, read_record
from orchestrator.stop import Interrupted
from tests.processes import descendants
from tests.program import PHOTOS, manifest
from tests.test_manifest import BAD, GOOD

TIME_BUDGET_S = 60

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [[], ["run"], ["plan"], ["prepare"], ["calibrate"], ["doctor"], ["schema"], ["bench"]]
COMMANDS += [["bench", "null"], ["bench", "sweep"], ["bench", "offline"]]


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one message of standard error, its frame and line breaks gone."""
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", self.err).split())


Call = Callable[..., Said]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Call]:
    """The program in this process; it runs in an empty folder and may not touch Ray."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def no_ray(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(cluster, "connect", no_ray)

    def called(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["loadgrid", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return Said(int(left.value.code or 0), said.out, said.err)

    yield called
    for number, handler in before.items():
        signal.signal(number, handler)


def refused(call: Call, *arguments: str | Path, code: int = 2) -> str:
    """The message of a call that started nothing and left nothing."""
    children, files = descendants(os.getpid()), set(os.listdir())
    said = call(*arguments)
    assert said.code == code, said
    assert set(os.listdir()) - files <= {"cache"}
    assert descendants(os.getpid()) <= children
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("loadgrid: "), said.err
    return lines[0].removeprefix("loadgrid: ")


# What is said of the program itself


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "loadgrid")
def test_every_command_explains_itself(call: Call, command: list[str]) -> None:
    said = call(*command, "--help")
    assert said.code == 0
    assert "Usage: " in said.out and "--help" in said.out


def test_the_version_is_the_packages(call: Call) -> None:
    assert call("--version").out == f"loadgrid {orchestrator.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'?"),
        (["run"], "Missing argument 'manifests'"),
        (["run", "--adress", "local", "x.yaml"], "No such option: --adress"),
        (["bench", "null", "--qps", "many"], "--qps': Input should be a valid number"),
        (["bench", "null", "--workers", "0"], "--workers': Input should be greater than or equal to 1"),
    ],
)
def test_wrong_usage_is_one_message(call: Call, arguments: list[str], says: str) -> None:
    said = call(*arguments)
    assert said.code == 2
    assert says in said.message


def test_the_schema_for_editors_is_the_one_in_the_repository(call: Call) -> None:
    kept = ROOT / "manifests" / "manifest.schema.json"
    assert json.loads(kept.read_text()) == manifest_schema(), "run `loadgrid schema --out` on that file"
    assert json.loads(call("schema").out) == manifest_schema()
    assert call("schema", "--out", "new.json").code == 0
    assert Path("new.json").read_text() == kept.read_text()
    first = (ROOT / "manifests" / "quickstart.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={kept.name}"


# Bad manifests


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(("old", "new", "line", "field", "says"), BAD)
def test_a_bad_manifest_is_one_message_and_starts_nothing(
    call: Call, command: str, old: str, new: str, line: int, field: str, says: str
) -> None:
    Path("bad.yaml").write_text(GOOD.replace(old, new, 1))
    message = refused(call, command, "bad.yaml")
    assert message.startswith(f"bad.yaml:{line}: {field}")
    assert says in message


@pytest.mark.parametrize("command", ["run", "plan"])
def test_what_is_no_manifest_is_one_message(call: Call, command: str) -> None:
    laughs = ["a0: &a0 [lol, lol, lol]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 18))]
    for text, says in (
        ("a: [1\nb: 2", "bad.yaml:2: is not YAML"),
        ("\n".join(laughs), "values with its aliases written out"),
        ("", "bad.yaml: is empty"),
    ):
        Path("bad.yaml").write_text(text)
        assert says in refused(call, command, "bad.yaml")
    assert refused(call, command, "none.yaml") == "none.yaml: no such file"
    assert refused(call, command, ".").startswith("bad.yaml: is empty"), "a folder is every manifest in it"
    Path("bad.yaml").rename("bad.yml")
    assert refused(call, command, ".") == ".: is a folder without a manifest (*.yaml)"


def test_a_good_manifest_beside_a_bad_one_does_not_run(call: Call) -> None:
    Path("bad.yaml").write_text(GOOD.replace("resnet50", "resnet5"))
    good = manifest(Path("."))
    assert 'did you mean "resnet50"?' in refused(call, "run", good, "bad.yaml")


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("imagenet-photos", "imagenet-fotos", 10, "task.name", "did you mean 'imagenet-photos'?"),
        ("path: photos", "path: photos\n  cout: 3", 12, "task.cout", "did you mean 'count'?"),
        ("path: photos", "path: photos\n  count: many", 12, "task.count", "must be int, not 'many'"),
        ("path: photos", "pattern: x", 9, "task.path", "needs the option 'path'"),
        ("lite0\n", "lite9\n", 14, "backend.model", "did you mean 'efficientnet-lite0'?"),
    ],
)
def test_an_unknown_task_option_or_model_is_told_at_its_line(
    call: Call, command: str, old: str, new: str, line: int, field: str, says: str
) -> None:
    assert old in PHOTOS
    Path("photos.yaml").write_text(PHOTOS.replace(old, new, 1))
    message = refused(call, command, "photos.yaml")
    assert message.startswith(f"photos.yaml:{line}: {field}: ")
    assert says in message


# Bad data, weights and folders


def photos_manifest(photos: dict[str, bytes] | None, weights: bool = True, where: str = "ray") -> Path:
    if photos is not None:
        Path("photos").mkdir(exist_ok=True)
        for name, data in photos.items():
            Path("photos", name).write_bytes(data)
    if weights:
        Path("weights.pth").write_bytes(b"not looked into here")
    Path("photos.yaml").write_text(PHOTOS.replace("count: 1", f"count: 1\n  where: {where}"))
    return Path("photos.yaml")


@pytest.mark.parametrize("where", ["ray", "local"])
@pytest.mark.parametrize(
    ("photos", "says"),
    [
        (None, "is no folder; set task.path"),
        ({}, "holds no file that matches '*.jpg'"),
        ({"cat.jpg": b"x"}, "cat.jpg has no label in its name"),
        ({"cat_281.jpg": b"\xff\xd8\xff half a picture"}, "cat_281.jpg is damaged or not a picture"),
        ({"cat_281.jpg": b""}, "cat_281.jpg is damaged or not a picture"),
    ],
)
def test_missing_empty_or_damaged_data_is_one_message(
    call: Call, where: str, photos: dict[str, bytes] | None, says: str
) -> None:
    message = refused(call, "run", photos_manifest(photos, where=where))
    assert message.startswith("photos.yaml:11: task.path: ")
    assert says in message


@pytest.mark.parametrize("where", ["ray", "local"])
def test_missing_weights_are_told_before_anything_starts_where_the_workers_are_here(
    call: Call, where: str
) -> None:
    message = refused(call, "run", photos_manifest({}, weights=False, where=where))
    assert message.startswith("photos.yaml:15: backend.weights: no such file: ")
    file = Path("photos.yaml")
    file.write_text(file.read_text().replace("weights.pth", "package:no_such_package/weights.pth"))
    assert "'no_such_package' is not installed" in refused(call, "run", file)


def test_a_missing_loadgen_folder_is_told_before_anything_starts(call: Call) -> None:
    file = manifest(Path("."))
    file.write_text(file.read_text().replace("loadgen:", "loadgen:\n  path: own-loadgen"))
    assert refused(call, "run", file).startswith("echoes.yaml:13: loadgen.path: no such folder: ")


@pytest.mark.parametrize("runs", ["file", "file/runs", "locked/runs"])
def test_runs_that_cannot_be_written_are_told_before_anything_starts(
    call: Call, runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("x")
    Path("locked").mkdir()
    # Root may write anywhere, and tests may run as root.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    said = call("run", manifest(Path(".")), "--runs-dir", runs)
    assert said.code == 2
    assert f"Invalid value for --runs-dir: no run can be written to {runs}: " in said.message
    assert "file is not a folder" in said.message or "no permission to write in" in said.message
    assert not os.listdir("locked")


# What runs


def records_of(name: str = "echoes") -> list[Record]:
    return [read_record(path) for path in sorted(Path("runs").glob(f"{name}-*/*/record.json"))]


def test_a_plan_shows_settings_and_broken_rules_and_runs_nothing(call: Call) -> None:
    said = call("plan", manifest(Path("."), scenarios="Offline, Server", runs="performance, accuracy"))
    assert said.code == 0
    for words in ("Offline-performance", "Server-accuracy", "2,000 queries/s offered", "99 % within 500 ms"):
        assert words in " ".join(said.out.split())
    assert "min_duration: the test may end after 500 ms; the round asks for 600000 ms" in said.out
    assert not Path("runs").exists()


def test_a_folders_plan_is_one_table_and_runs_nothing(call: Call) -> None:
    Path("all").mkdir()
    manifest(Path("all"), name="one")
    manifest(Path("all"), name="two", scenarios="Offline")
    said = call("plan", "all")
    assert said.code == 0
    flat = " ".join(said.out.split())
    assert "2 manifests, 2 tests, one after the other" in flat
    assert "broken: " in flat and "All green" not in flat
    suite = ROOT / "manifests/edge-v6.1"
    assert "Server-performance" not in flat and "All green" in call("plan", suite, "--compliance").out
    assert not Path("runs").exists()


def test_valid_tests_end_with_zero_and_never_touch_ray(call: Call) -> None:
    runs = "performance, accuracy"
    file = manifest(Path("."), runs=runs)
    Path("more").mkdir()
    # Two workers answer the 1,100 samples of Offline in 0.66 s: not before min_duration.
    manifest(Path("more"), name="other", scenarios="Offline", runs=runs, sample_us=1200)
    said = call("run", file, "more")
    assert said.code == 0, said
    records = records_of() + records_of("other")
    assert {record.status for record in records} == {"finished"}
    assert [r.test for r in records if r.result.valid] == ["Server-performance", "Offline-performance"]
    assert [record.accuracy.value for record in records if record.accuracy] == [100.0, 100.0]
    assert {record.security for record in records} == {"in-process"}
    (folder,) = Path("runs").glob("echoes-*")
    assert (folder / MANIFEST).read_bytes() == file.read_bytes()
    assert "cluster" not in said.out and "preparing Ray" not in said.out


def test_the_worst_of_several_runs_decides(call: Call) -> None:
    """An INVALID test (1), an accuracy below its target (1), a failed test (4), and what cannot begin (2)."""
    late = manifest(Path("."), name="late", sample_us=4000, limit_ms=1, qps=100)
    wrong = manifest(Path("."), name="wrong", runs="accuracy")
    wrong.write_text(f"accuracy_target: 100.5\n{wrong.read_text()}")
    good = manifest(Path("."), name="good")
    said = call("run", late, good)
    assert said.code == 1
    assert [r.result.valid for name in ("late", "good") for r in records_of(name)] == [False, True]
    assert call("run", wrong).code == 1
    (record,) = records_of("wrong")
    assert record.accuracy is not None and not record.accuracy.reached

    Path("own").mkdir()
    broken = manifest(Path("."), name="broken")
    broken.write_text(broken.read_text().replace("loadgen:", "loadgen:\n  path: own"))
    empty = photos_manifest({}, where="local")
    said = call("run", empty, broken, good)
    assert said.code == 4
    assert "photos.yaml:11: task.path: " in said.err
    (record,) = records_of("broken")
    assert record.status == "failed" and "no mlperf_loadgen module" in record.reason
    assert len(records_of("good")) == 2


def test_codes_follow_from_records() -> None:
    assert campaign.exit_code([], interrupted=False) == 0
    assert campaign.exit_code([], interrupted=True) == 130


@pytest.mark.parametrize("key", ["model_hash", "library"])
def test_workers_that_do_not_compute_the_same_are_refused(key: str, call: Call) -> None:
    fleet = cluster.RayFleet.__new__(cluster.RayFleet)
    same = {"model_hash": "aa", "library": "bb", "device": "cpu"}
    fleet.facts = [{"name": f"worker-{i}", **same} for i in range(3)]
    fleet._refuse_unequal()
    fleet.facts[2][key] = "cc"

    def run() -> int:
        fleet._refuse_unequal()
        return 0

    assert cli._guarded(run) == 3
    with pytest.raises(cluster.ClusterError, match=f"{key} differs: .*: worker-0, worker-1; cc: worker-2"):
        fleet._refuse_unequal()


def test_a_machine_without_memory_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise MemoryError("Unable to allocate 3.64 TiB for an array")

    assert cli._guarded(run) == 3
    said = capsys.readouterr().err
    assert said == "loadgrid: not enough memory: Unable to allocate 3.64 TiB for an array\n"


def faulty(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


def test_a_fault_of_loadgrid_is_one_line_and_its_traceback_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cli._guarded(faulty(ValueError("two\nlines"))) == 3
    (kept,) = tmp_path.iterdir()
    assert capsys.readouterr().err == (
        "loadgrid: unexpected error: ValueError: two lines "
        f"(this is a fault of LoadGrid, please report it with {kept})\n"
    )
    text = kept.read_text()
    assert text.startswith("Traceback") and "raise error" in text and kept.stat().st_mode & 0o077 == 0


def test_a_fault_is_told_where_no_file_can_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert cli._guarded(faulty(ZeroDivisionError("by zero"))) == 3
    said = capsys.readouterr().err
    assert said.endswith("ZeroDivisionError: by zero (this is a fault of LoadGrid, please report it)\n")


@pytest.mark.parametrize("error", [SystemExit(5), typer.Exit(7), typer.Abort(), typer.BadParameter("x")])
def test_whoever_ends_the_program_on_purpose_is_not_kept_from_it(error: BaseException) -> None:
    with pytest.raises(type(error)) as left:
        cli._guarded(faulty(error))
    assert left.value is error


def test_an_interrupt_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._guarded(faulty(KeyboardInterrupt())) == 130
    made_of_it = SystemError("returned a result with an exception set")
    made_of_it.__cause__ = Interrupted("SIGTERM received")
    assert cli._guarded(faulty(made_of_it)) == 130
    assert capsys.readouterr().err == "loadgrid: interrupted\nloadgrid: interrupted: SIGTERM received\n"
