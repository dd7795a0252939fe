"""LoadGen's logs as they are read, records and folders as they are kept, and by which code they were made."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import paths
from orchestrator.logs import PREFIX, LogError, read_detail
from orchestrator.paths import DETAIL, RunPaths, cache_dir, write_atomically
from orchestrator.provenance import commit_of, versions
from orchestrator.record import RecordError, read_record
from tests import made_records

TIME_BUDGET_S = 15


def mllog(key: str, value: Any, **metadata: Any) -> str:
    return PREFIX + json.dumps({"key": key, "value": value, "metadata": metadata}) + "\n"


# LoadGen's detail log


def detail(tmp_path: Path, text: str | bytes) -> Any:
    path = tmp_path / DETAIL
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_detail(path)


def test_the_first_value_of_a_key_counts_and_errors_are_kept(tmp_path: Path) -> None:
    log = detail(
        tmp_path,
        "not LoadGen's\n"
        + mllog("result_validity", "VALID")
        + mllog("result_validity", "INVALID")
        + mllog("error_runtime", "it broke", is_error=True)
        + mllog("warning_generic_message", "beware", is_warning=True)
        + mllog("result_invalid_reason", "")
        + mllog("result_invalid_reason", "Min duration")
        + mllog("result_99.00_percentile_latency_ns", 2_500_000),
    )
    assert log.valid is True
    assert log.errors == ["error_runtime: it broke"]
    assert log.warnings == ["warning_generic_message: beware"]
    assert log.reasons == ["Min duration"]
    assert log.percentiles_ms() == {"p99": 2.5}


def test_a_log_that_was_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    whole = mllog("loadgen_version", "6.0.17") + mllog("result_validity", "VALID")
    for cut in range(len(whole) + 1):
        log = detail(tmp_path, whole[:cut])
        assert log.valid is (True if cut >= len(whole) - 1 else None)
        assert log.values.get("loadgen_version") in (None, "6.0.17")


def test_numbers_that_are_none_are_not_numbers(tmp_path: Path) -> None:
    lines = {"nan": "NaN", "infinite": "1e999", "minus": "-Infinity", "huge": "9" * 400}
    text = "".join(f'{PREFIX}{{"key": "{key}", "value": {value}}}\n' for key, value in lines.items())
    log = detail(tmp_path, text + mllog("text", "12") + mllog("flag", True) + mllog("fine", 12))
    assert {key: log.number(key) for key in log.values} == dict.fromkeys(log.values) | {"fine": 12.0}


@pytest.mark.parametrize(
    "line",
    [
        *("5", "[1]", "null", '"x"', "{}", "[" * 100_000, '{"key": "a"}', '{"key": ["a"], "value": 1}'),
        '{"key": "a", "value": 1, "metadata": [1]}',
        '{"key": "a", "value": 1, "metadata": 3}',
    ],
)
def test_a_line_of_another_shape_is_passed_over(tmp_path: Path, line: str) -> None:
    log = detail(tmp_path, PREFIX + line + "\n" + mllog("result_validity", "INVALID"))
    assert log.valid is False


@given(
    raw=st.binary(max_size=300)
    | st.lists(st.text(max_size=40)).map(lambda t: (PREFIX + "\n".join(t)).encode())
)
def test_any_bytes_are_a_log(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    detail(tmp_path_factory.getbasetemp(), raw + PREFIX.encode() + raw)


def test_a_missing_log_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=f"{DETAIL}: No such file"):
        read_detail(tmp_path / DETAIL)


# record.json


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = made_records.record()
    path = tmp_path / "record.json"
    path.write_bytes(record.to_json())
    assert read_record(path) == record
    assert next(iter(json.loads(path.read_text()))) == "schema"


def test_numbers_that_are_none_stay_out_of_the_file() -> None:
    record = made_records.record(driver=made_records.driver(cpu_share=math.nan, cpu_us_per_sample=math.inf))
    body = json.loads(record.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert body["driver"]["cpu_share"] is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: b"[]", "is not a loadgrid.record/1"),
        (lambda text: text.replace(b"loadgrid.record/1", b"loadgrid.record/9"), "is not a loadgrid.record/1"),
        (lambda text: text.replace(b'"official": false', b'"official": "no!"'), "official: "),
        (lambda text: text.replace(b'"wall_s"', b'"wall_h"'), "wall_"),
        (lambda text: b"\xff" + text, "is not JSON"),
    ],
)
def test_what_is_no_record_is_an_error_with_file_and_field(
    tmp_path: Path, change: Callable[[bytes], bytes], says: str
) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(change(made_records.record().to_json()))
    with pytest.raises(RecordError, match=f"record.json.*{says}"):
        read_record(path)
    with pytest.raises(RecordError, match="No such file"):
        read_record(tmp_path / "none.json")


# Files


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "record.json"

    def crash(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", crash) if broken == "fsync" else (Path, "replace", crash)))
        with pytest.raises(OSError, match="no space"):
            write_atomically(path, b"half")
        assert os.listdir(tmp_path) == []
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", crash) if broken == "fsync" else (Path, "replace", crash)))
        with pytest.raises(OSError, match="no space"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["record.json"]


def test_a_tests_folder_appears_when_it_is_whole_and_nothing_is_overwritten(tmp_path: Path) -> None:
    test = RunPaths(tmp_path).test("Server-performance")
    for attempt in range(3):
        folder = test.begin()
        assert folder == test.partial and os.listdir(folder) == []
        (folder / "log").write_text(str(attempt))
    assert not test.final.exists()
    test.finish()
    found = {path.name: (path / "log").read_text() for path in tmp_path.iterdir()}
    assert found == {
        "Server-performance": "2",
        "Server-performance.partial-1": "0",
        "Server-performance.partial-2": "1",
    }
    test.begin()
    (test.partial / "log").write_text("other")
    with pytest.raises(OSError, match="not empty"):
        test.finish()
    assert (test.final / "log").read_text() == "2"


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths.time, "strftime", lambda _: "20260101-000000")
    names = [RunPaths.new(tmp_path / "runs", "quick").root.name for _ in range(3)]
    assert names == ["quick-20260101-000000", "quick-20260101-000000-2", "quick-20260101-000000-3"]


def test_prepared_data_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGRID_CACHE", "/somewhere/else")
    assert cache_dir() == Path("/somewhere/else")
    monkeypatch.delenv("LOADGRID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_dir() == Path("/caches/loadgrid")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "loadgrid"


# Which code


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True, env=kept
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_codes_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = {"commit": None, "dirty": None}
    assert commit_of(tmp_path) == none
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) == none  # nothing committed yet
    clean = committed_code(tmp_path)
    assert commit_of(tmp_path) == clean
    inside = tmp_path / "installed"
    inside.mkdir()
    assert commit_of(inside) == none  # somebody else's repository around it says nothing about it
    git(inside, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(inside / ".git"))  # as in a hook of another repository
    assert commit_of(tmp_path) == clean
    monkeypatch.setenv("PATH", str(inside))  # no git at all
    assert commit_of(tmp_path) == none


def committed_code(folder: Path) -> dict[str, Any]:
    """A checkout with two packages and a note; what commit_of says of it."""
    for package in ("orchestrator", "workers"):
        (folder / package).mkdir()
        (folder / package / "code.py").write_text("1")
    (folder / "notes.md").write_text("1")
    (folder / ".gitignore").write_text("build/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return {"commit": git(folder, "rev-parse", "HEAD"), "dirty": False}


@pytest.mark.parametrize(
    ("change", "dirty"),
    [
        ("edited", True),
        ("edited where git was told not to look", True),
        ("workers/new.py", True),
        ("workers/build/__init__.py", True),  # which git ignores, and Python imports
        ("workers/fast.so", True),
        ("deleted", True),
        ("runs/made/record.json", False),
        ("dgx.json", False),
        ("workers/notes.txt", False),
        ("workers/__pycache__/code.cpython-311.pyc", False),
    ],
)
def test_only_other_code_makes_a_checkout_another_than_its_commit(
    tmp_path: Path, change: str, dirty: bool
) -> None:
    git(tmp_path, "init", "-q")
    clean = committed_code(tmp_path)
    git(tmp_path, "config", "status.showUntrackedFiles", "no")
    code = tmp_path / "workers" / "code.py"
    if change == "deleted":
        code.unlink()
    elif change.startswith("edited"):
        if change != "edited":
            git(tmp_path, "update-index", "--skip-worktree", "workers/code.py")
        code.write_text("2")
    else:
        (tmp_path / change).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / change).write_text("new")
    assert commit_of(tmp_path) == {**clean, "dirty": dirty}


def test_versions_name_python_and_every_library_that_matters() -> None:
    found = versions()
    assert found["mlcommons-loadgen"] == "6.0.17"
    assert all(
        found[name] for name in ("python", "platform", "loadgrid", "ray", "pyzmq", "numpy", "pydantic")
    )
