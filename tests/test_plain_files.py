"""Pipes, devices, links and folders that may not be read, wherever files come from anybody or go anywhere."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.accuracy import AccuracyError, AccuracyScore, read_accuracy_log, write_accuracy_txt
from orchestrator.audit_answers import write_baseline
from orchestrator.check.finding import Finding, context_of
from orchestrator.check.gate import judge
from orchestrator.check.report import as_json, page
from orchestrator.cli import app
from orchestrator.loadgen_logs import read_run
from orchestrator.loadgen_summary import read_summary
from orchestrator.logs import LogError, read_detail
from orchestrator.paths import (
    ACCURACY_LOG,
    DETAIL,
    SUMMARY,
    write_atomically,
    write_json,
    write_new,
    write_output,
)
from orchestrator.plain_files import open_plain, read_plain
from orchestrator.power.spl import SplError, read_spl
from orchestrator.record import LARGEST_BYTES, RecordError, read_record
from orchestrator.results.gather import gather
from orchestrator.submission.data_files import GivenError, read_given
from tests import made_logs, made_results
from tests.made_trees import made_tree

TIME_BUDGET_S = 20

Maker = Callable[[Path], None]
ENDLESS: list[Maker] = [os.mkfifo, lambda path: path.symlink_to("/dev/zero")]


@pytest.mark.parametrize("make", ENDLESS, ids=["pipe", "device"])
def test_what_has_no_end_is_refused_by_every_reader_and_never_waited_for(tmp_path: Path, make: Maker) -> None:
    path = tmp_path / "file.yaml"
    make(path)
    readers: list[tuple[Callable[[Path], Any], type[Exception]]] = [
        (open_plain, OSError),
        (read_detail, LogError),
        (read_summary, LogError),
        (lambda path: list(read_accuracy_log(path)), AccuracyError),
        (lambda path: list(read_spl(path)), SplError),
        (read_record, RecordError),
        (read_given, GivenError),
    ]
    for read, error in readers:
        with pytest.raises(error, match="not a regular file"):
            read(path)


@pytest.mark.parametrize("name", [DETAIL, SUMMARY, ACCURACY_LOG])
def test_a_folder_with_a_pipe_for_a_log_is_an_error_with_its_name(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(LogError, match=f"{name}: not a regular file"):
        read_run(tmp_path)


def test_a_persons_own_run_may_be_linked_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "logs.txt").write_text(made_logs.detail("6.0.17", "Offline", {}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / DETAIL).symlink_to(tmp_path / "logs.txt")
    assert read_run(tmp_path / "run").scenario == "Offline"


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain(path, 4)


def test_a_record_of_absurd_size_or_depth_is_none(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"[" * 200_000)
    with pytest.raises(RecordError, match="is not JSON"):
        read_record(path)
    with open(path, "wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with pytest.raises(RecordError, match="more than"):
        read_record(path)


# Writing


def test_a_pipe_and_what_stdout_may_be_are_written_into_and_stay(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, b"table")
    reader.join(timeout=10)
    assert got == [b"table"] and pipe.is_fifo()
    source, sink = os.pipe()
    stdout = tmp_path / "stdout"
    stdout.symlink_to(f"/proc/self/fd/{sink}")  # as /dev/stdout is of `... | less`
    write_output(stdout, b"table")
    os.close(sink)
    with open(source, "rb") as file:
        assert file.read() == b"table"
    assert stdout.is_symlink() and sorted(os.listdir(tmp_path)) == ["pipe", "stdout"]


def test_what_goes_to_a_redirected_stdout_comes_after_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("before\n")
    write = "from pathlib import Path; from orchestrator.paths import write_output; "
    write += "write_output(Path('/dev/stdout'), b'table')"
    with open(tmp_path / "all.txt", "ab") as file:
        subprocess.run([sys.executable, "-c", write], stdout=file, check=True)
    assert (tmp_path / "all.txt").read_text() == "before\ntable"


def test_the_schema_goes_through_a_persons_link_and_replaces_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("kept.json")
    CliRunner().invoke(app, ["schema", "--out", "link.json"])
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "kept.json").stat().st_size > 100
    (tmp_path / "null").symlink_to("/dev/null")
    CliRunner().invoke(app, ["schema", "--out", "null"])
    assert (tmp_path / "null").is_symlink() and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_persons_own_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for link, target in (("one", "kept/one"), ("two", "one"), ("loop", "loop")):
        (tmp_path / link).symlink_to(tmp_path / target)
    for data in (b"new", b"changed"):
        write_output(tmp_path / "two", data)
        assert (tmp_path / "kept" / "one").read_bytes() == data
    assert (tmp_path / "one").is_symlink() and (tmp_path / "two").is_symlink()
    with pytest.raises(OSError, match="symbolic links"):
        write_output(tmp_path / "loop", b"data")


def test_a_link_that_may_not_be_followed_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to("theirs")

    def refuses(path: Path) -> os.stat_result:  # as of a stranger's link in a folder like /tmp
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuses)
        with pytest.raises(PermissionError, match="link"):
            write_output(tmp_path / "link", b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs" and len(os.listdir(tmp_path)) == 2


PLANTED: dict[str, Maker] = {
    "a link to a file": lambda path: path.symlink_to(path.parent.parent / "theirs"),
    "a link to nothing": lambda path: path.symlink_to(path.parent.parent / "none"),
    "a link to a folder": lambda path: path.symlink_to(path.parent.parent),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/full"),
    "a pipe": os.mkfifo,
}


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Path]:
    """A run's folder, beside which nothing may change."""
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "ours").mkdir()
    yield tmp_path / "ours"
    assert sorted(os.listdir(tmp_path)) == ["ours", "theirs"]
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def baseline(path: Path) -> None:
    log = path.with_name("log")
    log.write_text('[\n{"seq_id": 0, "qsl_idx": 3, "data": "00"}\n]\n')
    assert write_baseline(log, frozenset([3]), path) == 1
    log.unlink()


SCORE = AccuracyScore("top1", 1.0, "%", 1, 1, "line", "sum")
WRITERS: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "any file": (lambda path: write_atomically(path, b"data"), b"data"),
    "JSON": (lambda path: write_json(path, 1), b"1\n"),
    "a score": (
        lambda path: write_accuracy_txt(path, SCORE),
        b"line\nhash=sum\n",
    ),
    "a baseline": (baseline, b'[\n{"seq_id": 0, "qsl_idx": 3, "data": "00"}\n]\n'),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("planted", PLANTED)
def test_what_somebody_put_into_a_runs_folder_is_replaced_and_never_written_through(
    ours: Path, planted: str, writer: str
) -> None:
    write, wanted = WRITERS[writer]
    path = ours / "file"
    PLANTED[planted](path)
    write(path)
    assert stat.S_ISREG(os.lstat(path).st_mode) and path.read_bytes() == wanted
    assert os.listdir(ours) == ["file"]


@pytest.mark.parametrize("writer", [*WRITERS, "a new file"])
@pytest.mark.parametrize("planted", PLANTED)
def test_what_somebody_put_at_a_temporary_name_is_passed_by(
    ours: Path, monkeypatch: pytest.MonkeyPatch, planted: str, writer: str
) -> None:
    foreseen = iter(["first", "second", "third"])
    monkeypatch.setattr(secrets, "token_hex", lambda count: next(foreseen))
    for name in ("first", "second"):
        PLANTED[planted](ours / f".file.loadgrid-{name}")
    (ours / ".file.partial").symlink_to(ours.parent / "none")
    known = [(name, os.lstat(ours / name)) for name in sorted(os.listdir(ours))]
    write, wanted = WRITERS.get(writer, (lambda path: write_new(path, b"new"), b"new"))
    write(ours / "file")
    assert (ours / "file").read_bytes() == wanted
    (ours / "file").unlink()
    assert [(name, os.lstat(ours / name)) for name in sorted(os.listdir(ours))] == known


@pytest.mark.parametrize("planted", PLANTED)
def test_a_new_file_takes_no_name_that_somebody_has(ours: Path, planted: str) -> None:
    PLANTED[planted](ours / "file")
    before = os.lstat(ours / "file")
    with pytest.raises(FileExistsError):
        write_new(ours / "file", b"new")
    assert os.lstat(ours / "file").st_ino == before.st_ino and os.listdir(ours) == ["file"]


def test_a_new_file_is_made_where_there_are_no_hard_links(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuses)
    write_new(ours / "file", b"new")
    assert (ours / "file").read_bytes() == b"new" and os.listdir(ours) == ["file"]
    PLANTED["a link to nothing"](ours / "other")
    with pytest.raises(FileExistsError):
        write_new(ours / "other", b"new")
    assert sorted(os.listdir(ours)) == ["file", "other"]


def test_files_have_the_mode_that_the_person_wants(ours: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_atomically(ours / "one", b"")
        write_new(ours / "two", b"")
    finally:
        os.umask(previous)
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in ours.iterdir()} == {0o640}


# Trees


@pytest.mark.parametrize("name", [DETAIL, SUMMARY, ACCURACY_LOG])
def test_results_takes_no_log_from_outside_of_the_tree(tmp_path: Path, name: str) -> None:
    inner = made_results.result(tmp_path / "tree/closed/Acme", "box/bert-99/Offline", 10.5)
    outer = made_results.result(tmp_path / "else/closed/Acme", "box/bert-99/Offline", 77.5)
    log = inner / "performance/run_1" / name
    log.unlink(missing_ok=True)
    log.symlink_to(outer / "performance/run_1" / name)
    (outer / "performance/run_1" / ACCURACY_LOG).touch()
    (row,) = gather([tmp_path / "tree"], "v1.0").rows
    assert row.results[0].value is None
    assert f"closed/Acme/results/box/bert-99/Offline/performance/run_1/{name} leads out of the tree" in (
        row.results[0].remarks
    )


def test_results_goes_on_after_a_log_that_is_a_pipe(tmp_path: Path) -> None:
    for model in ("bert-99", "rnnt"):
        folder = made_results.result(tmp_path / "closed/Acme", f"box/{model}/Offline", 10.5)
    (folder / "performance/run_1" / DETAIL).unlink()
    os.mkfifo(folder / "performance/run_1" / DETAIL)
    (row,) = gather([tmp_path], "v1.0").rows
    assert [one.value for one in row.results] == [10.5, None]
    assert any("not a regular file" in remark for remark in row.results[1].remarks)


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make a folder one that may not be read or searched, as chmod 000 does for all but root."""

    def guarded(call: Callable[..., Any], itself: bool) -> Callable[..., Any]:
        def guard(path: Any, *rest: Any, **named: Any) -> Any:
            told = Path(path) if isinstance(path, str | Path) else Path()
            if folder in told.parents or (itself and told == folder):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *rest, **named)

        return guard

    for name, itself in (("stat", False), ("lstat", False), ("open", False), ("listdir", True)):
        monkeypatch.setattr(os, name, guarded(getattr(os, name), itself))
    monkeypatch.setattr(os, "scandir", guarded(os.scandir, True))


@pytest.mark.parametrize("depth", range(1, 6))
def test_results_goes_on_after_a_folder_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    for submitter in ("Acme", "Zeta"):
        made_results.system(tmp_path / "closed" / submitter, "box")
        made_results.result(tmp_path / "closed" / submitter, "box/bert-99/Offline", 10.5)
    parts = ("Zeta", "results", "box", "bert-99", "Offline", "performance")
    shut = tmp_path.joinpath("closed", *parts[: depth + (depth > 4)])
    forbid(monkeypatch, shut)
    gathered = gather([tmp_path], "v1.0")
    assert gathered.rows[0].submitter == "Acme" and gathered.rows[0].results[0].value == 10.5
    remarks = [*gathered.remarks, *(r for row in gathered.rows for one in row.results for r in one.remarks)]
    assert any("Permission denied" in remark and "Zeta" in remark for remark in remarks)


@pytest.mark.parametrize("below", ["", "results", "results/2x-made-gpu", "results/2x-made-gpu/3d-unet-99"])
def test_check_goes_on_after_a_folder_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    tree = made_tree(tmp_path / "tree", "v6.1-datacenter")
    shutil.copytree(tree.submission, shut := tree.submission.with_name("Shut"))
    (tree.submission / "src" / ".hidden").write_text("x")
    forbid(monkeypatch, shut / below)
    found = judge(context_of(tree.root, "v6.1"))
    told = [(one.rule, one.path) for one in found]
    assert told.count(("unreadable", f"closed/Shut/{below}".rstrip("/"))) == 1
    assert ("dotfile", "closed/Made/src/.hidden") in told


def test_the_report_names_twenty_findings_of_a_rule_in_a_folder_and_counts_the_others(tmp_path: Path) -> None:
    context = context_of(tmp_path, "v6.1")
    many = [Finding("odd", f"closed/Acme/src/{n}", f"name {n}", f"rename {n}", "unseen") for n in range(5000)]
    many.append(Finding("odd", "closed/Acme/other/x", "name x", "rename x", "unseen"))
    lines = list(page(context, many, None, []))
    assert sum("odd: " in line for line in lines) == 22
    assert any("and 4980 more in this folder" in line for line in lines)
    assert lines[-1].startswith("5001 findings")
    told = as_json(context, many, None, [])
    assert told.count('"rule"') == 22 and '"all": 5001' in told


def test_submit_refuses_a_pipe_for_its_facts(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "facts.yaml")
    words = ["submit", str(tmp_path), "--system", "x", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--facts", str(tmp_path / "facts.yaml")])
    assert done.exit_code == 2 and "not a regular file" in done.output
