"""`loadgrid prepare`: the data set ready before a run, with progress, its hash, and going on after an end."""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console as Terminal

from orchestrator import cli, prepare
from orchestrator.campaign import Session
from orchestrator.console import Console
from orchestrator.manifest import load_manifest
from orchestrator.plan import plan
from orchestrator.preparing import Preparing
from orchestrator.quiet import Quiet
from orchestrator.rules import load_round
from orchestrator.stop import Interrupted
from tests.made_records import shown
from workers.library import Library, LibraryWriter, prepare_library

TIME_BUDGET_S = 10

MANIFEST = """
name: NAME
round: v6.1
suite: edge
division: open
benchmark: resnet
scenarios: [Offline]
task: {name: "null", count: 300, sample_bytes: 100}
backend: {engine: echo}
workers: {where: local}
"""


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def digest(self) -> str:
        found = re.search(r"^task\.sha256: ([0-9a-f]{64})$", self.out, re.MULTILINE)
        assert found, self.out
        return found[1]


Call = Callable[..., Said]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Call]:
    """`loadgrid prepare` in this process, with a cache of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "40")  # narrower than a hash

    def called(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["loadgrid", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return Said(int(left.value.code or 0), said.out, said.err)

    yield called
    for number, handler in before.items():
        signal.signal(number, handler)


def written(folder: Path, name: str = "one", **changes: str) -> Path:
    text = MANIFEST.replace("NAME", name)
    for old, new in changes.items():
        text = text.replace(f"{old}:", new)
    (folder / f"{name}.yaml").write_text(text)
    return folder / f"{name}.yaml"


class Slow:
    """A task of 30 samples; the job `stops_at` ends the program as Ctrl-C does."""

    def __init__(self, stops_at: int | None) -> None:
        self.stops_at = stops_at
        self.made: list[int] = []

    def make(self, job: int) -> bytes:
        if job == self.stops_at:
            raise Interrupted("SIGINT received")
        self.made.append(job)
        return b"%d" % job

    def build(self, writer: LibraryWriter) -> None:
        writer.add_all(range(30), self.make)

    def prepare(self, cache: Path) -> Library:
        return prepare_library(cache / "slow", "slow", self.build)


def test_a_data_set_is_prepared_once_then_checked(call: Call, tmp_path: Path) -> None:
    first = call(written(tmp_path))
    assert first.code == 0
    flat = " ".join(first.out.split())
    assert "one: data set null" in flat and "samples 300" in flat and ": prepared" in flat
    assert str(tmp_path / "cache" / "null-300x100-0") in first.out.replace("\n", "").replace(" ", "")
    library = Library.open(tmp_path / "cache" / "null-300x100-0")
    assert first.digest == library.digest
    total = sum(path.stat().st_size for path in library.folder.iterdir() if path.name != "library.json")
    assert f"{total:,}" in first.out
    again = call(written(tmp_path))
    assert again.digest == first.digest
    assert "every byte is checked" in " ".join(again.out.split())


def test_a_damaged_data_set_is_one_message(call: Call, tmp_path: Path) -> None:
    call(written(tmp_path))
    with open(tmp_path / "cache" / "null-300x100-0" / "samples.bin", "r+b") as file:
        file.write(b"other")
    said = call(written(tmp_path))
    assert said.code == 2
    assert "one.yaml:8: task: " in said.err and "samples.bin is damaged" in said.err


def test_the_hash_in_the_manifest_is_compared(call: Call, tmp_path: Path) -> None:
    digest = call(written(tmp_path)).digest
    assert call(written(tmp_path, "right", count=f"sha256: {digest}, count:")).code == 0
    said = call(written(tmp_path, "wrong", count=f"sha256: {'a' * 64}, count:"))
    assert said.code == 2
    assert f"wrong.yaml:8: task.sha256: the prepared data set has {digest}" in said.err


def test_a_folder_is_prepared_manifest_by_manifest_and_a_shared_data_set_once(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "all").mkdir()
    written(tmp_path / "all", "a")
    written(tmp_path / "all", "b")
    written(tmp_path / "all", "c", count="nosuch:")
    written(tmp_path / "all", "d", count="seed: 1, count:")
    said = call(tmp_path / "all")
    assert said.code == 2, "one of them cannot be prepared"
    assert "no option 'nosuch'" in said.err and said.err.count("loadgrid:") == 1
    assert said.out.count("preparing data set null") == 3
    assert "b: the same data set" in said.out
    assert (tmp_path / "cache" / "null-300x100-1").is_dir()


def test_an_interrupted_prepare_says_what_is_kept_and_goes_on(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, goes_on = Slow(20), Slow(None)
    monkeypatch.setattr(prepare, "open_task", lambda *_: stopped)
    said = call(written(tmp_path), written(tmp_path, "never"))
    assert said.code == 130
    assert "SIGINT received" in said.err and "the same command goes on from there" in said.err
    assert "never" not in said.out
    monkeypatch.setattr(prepare, "open_task", lambda *_: goes_on)
    said = call(written(tmp_path))
    assert said.code == 0
    assert "20 samples of an earlier prepare were kept" in " ".join(said.out.split())
    assert sorted(goes_on.made) == list(range(20, 30))


def test_a_run_shows_how_far_its_data_set_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "open_task", lambda *_: Slow(None))
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    heard: list[tuple[str, int, int]] = []

    class Watcher(Quiet):
        def progressed(self, step: str, done: int, total: int) -> None:
            heard.append((step, done, total))

    with Session(load_manifest(written(tmp_path)), "local", Watcher()):
        pass
    assert heard[0] == ("preparing", 0, 30)
    assert heard[-2:] == [("preparing", 30, 30), ("written", 30, 30)]


def test_what_a_data_set_breaks_is_told_once_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "open_task", lambda *_: Slow(None))
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    file = written(tmp_path)
    file.write_text(f"{file.read_text()}loadgen: {{performance_sample_count_override: 40}}\n")
    loaded = load_manifest(file)
    loaded = loaded.model_copy(update={"task": loaded.task.model_copy(update={"sha256": "0" * 64})})
    specs = [spec.model_copy(update={"broken_rules": []}) for spec in plan(loaded, load_round(loaded.round))]
    heard: list[str] = []
    for told in (specs, ()):
        with Session(loaded, "local", Quiet(heard.append), specs=told):
            pass
    said = [text for text in heard if "unofficial" in text]
    assert len(said) == 1 and said[0].startswith("the results will be unofficial: ")
    for part in (
        "the hash task.sha256",
        "40 samples are to be drawn (performance_sample_count_override, or else the round's count), "
        "the data set has 30",
        "the data set has 30 samples instead of 50000",
    ):
        assert said[0].count(part) == 1


# What is shown


class Screen:
    """A Console that writes into memory, and its clock."""

    def __init__(self, tty: bool = False) -> None:
        self.now_s = 0.0
        self.file = io.StringIO()
        self.terminal = Terminal(file=self.file, width=100, force_terminal=tty, color_system=None)
        self.console = Console(self.terminal, lambda: self.now_s, lambda: "12:00:00")


def test_a_log_gets_a_line_at_the_start_and_then_about_every_ten_seconds() -> None:
    screen = Screen()
    screen.console.preparing("data set imagenet")
    for second in range(31):
        screen.now_s = float(second)
        screen.console.progressed("preparing", second * 100, 5000)
    lines = screen.file.getvalue().splitlines()
    assert lines[:3] == [
        "12:00:00 preparing data set imagenet",
        "12:00:00 data set imagenet: 0 of 5,000 samples",
        "12:00:00 data set imagenet: 1,000 of 5,000 samples, about 40 s left",
    ]
    assert len(lines) == 5


def test_checking_says_nothing_in_a_log_while_it_is_quick() -> None:
    screen = Screen()
    screen.console.preparing("data set imagenet")
    screen.console.progressed("checking", 1, 10)
    assert len(screen.file.getvalue().splitlines()) == 1
    screen.console.progressed("waiting", 0, 0)
    assert "another process prepares it" in screen.file.getvalue()


def test_a_terminal_shows_a_bar_and_no_lines() -> None:
    screen = Screen(tty=True)
    try:
        screen.console.preparing("data set imagenet")
        screen.now_s = 10.0
        screen.console.progressed("preparing", 2500, 5000)
        view = shown(screen.console.view(), width=100)
    finally:
        screen.console.close()
    assert "preparing data set imagenet" in view and "2,500 of 5,000 samples" in view
    assert "█" * 15 in view and "█" * 16 not in view


def test_the_time_left_is_reckoned_from_this_prepares_own_pace() -> None:
    doing = Preparing("data set brats", 0.0)
    doing.heard("continuing", 60, 60, 5.0)
    assert doing.words(5.0) == "60 of 60 samples kept from an earlier prepare"
    doing.heard("preparing", 60, 100, 10.0)
    assert doing.words(10.5) == "60 of 100 samples"
    doing.heard("preparing", 80, 100, 20.0)
    assert doing.words(20.0) == "80 of 100 samples, about 10 s left"
    doing.heard("checking", 2_000_000, 8_000_000, 30.0)
    doing.heard("checking", 4_000_000, 8_000_000, 32.0)
    assert doing.words(32.0) == "4.0 MB of 8.0 MB checked, about 4 s left"
