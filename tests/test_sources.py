"""Data sets' files: a library's name tells two data sets apart, and bad JSON is one sentence."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from workers.tasks import TaskError
from workers.tasks.sources import listing_digest, read_json

TIME_BUDGET_S = 10


def data_set(folder: Path, contents: str) -> list[Path]:
    """Two files whose names, sizes and times are those of any other such data set."""
    folder.mkdir()
    files = [folder / "a.bin", folder / "b.bin"]
    for file in files:
        file.write_text(contents)
        os.utime(file, (1, 1))
    return files


def test_folders_of_other_data_and_the_same_times_have_other_names(tmp_path: Path) -> None:
    one, two = data_set(tmp_path / "one", "1"), data_set(tmp_path / "two", "2")
    assert listing_digest("x", one) != listing_digest("x", two)
    assert listing_digest("x", one) == listing_digest("x", one) != listing_digest("y", one)


def test_a_folder_whose_files_were_changed_under_their_old_times_has_another_name(tmp_path: Path) -> None:
    files = data_set(tmp_path / "set", "1")
    before = listing_digest("x", files)
    time.sleep(0.02)  # the kernel's clock of files goes in steps of some milliseconds
    files[1].write_text("2")
    os.utime(files[1], (1, 1))
    assert listing_digest("x", files) != before
    before = listing_digest("x", files)
    data_set(tmp_path / "new", "3")
    shutil.rmtree(tmp_path / "set")
    (tmp_path / "new").rename(tmp_path / "set")
    assert listing_digest("x", files) != before


def test_a_name_does_not_follow_the_way_that_leads_to_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = data_set(tmp_path / "set", "1")
    (tmp_path / "link").symlink_to("set")
    monkeypatch.chdir(tmp_path)
    for way in (tmp_path / "link", Path("set"), Path("link")):
        assert listing_digest("x", [way / file.name for file in files]) == listing_digest("x", files)


def test_file_names_may_be_of_any_bytes(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff\xfe")
    file.touch()
    assert listing_digest("x", [file])


def test_the_names_of_many_files_cost_microseconds_each(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.bin" for number in range(2000)]
    for file in files:
        file.touch()
    began = time.perf_counter()
    listing_digest("x", files)
    assert (time.perf_counter() - began) / len(files) < 200e-6  # measured: 6 us


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"é": [1, null]}', encoding="utf-8")
    assert read_json("t", tmp_path / "x.json") == {"é": [1, None]}


@pytest.mark.parametrize(
    "content",
    [b"", b"[1,", b"\xff\xff", b'"\xe9"', b"[" * 200_000, b'{"a":' * 200_000, b"9" * 9999],
    ids=["empty", "cut", "binary", "latin", "lists", "objects", "long number"],
)
def test_a_file_that_is_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(
        TaskError, match=r"task 't': .*x\.json cannot be read as JSON: .*; if it is damaged, bring"
    ) as told:
        read_json("t", tmp_path / "x.json", "vocabulary")
    assert told.value.option == "vocabulary" and len(str(told.value)) < 400


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"none\.json cannot be read as JSON: No such file"):
        read_json("t", tmp_path / "none.json")
    with pytest.raises(TaskError, match="cannot be read as JSON: Is a directory"):
        read_json("t", tmp_path)
