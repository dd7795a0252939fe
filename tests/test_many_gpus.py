"""manifests/sizing/many_gpus.sh: what it runs and leaves behind, with a program in LoadGrid's place."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.processes import alive, all_pids, end_processes, eventually

TIME_BUDGET_S = 15
SCRIPT = Path(__file__).parents[1] / "manifests" / "sizing" / "many_gpus.sh"
# Notes its words, a line each; then does what the test wants of it.
STUB = '#!/bin/bash\nprintf "%s\\n" "$@" >>"$STUB_WORDS"; echo "$$" >>"$STUB_PID"; eval "${STUB_DOES:-}"\n'
SLEEPS = "exec sleep 60"
MANIFEST = """
round: v6.1
division: open
suite: datacenter
benchmark: resnet
scenarios: [Offline]
task: {name: imagenet, path: data}
backend: {engine: torch, model: resnet50, weights: w.pth}
"""


class Script:
    """The script in a folder of its own whose name has a space, from where paths are relative."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a folder"
        self.words, self.pids = self.folder / "words", self.folder / "pids"
        self.folder.mkdir()
        stub = folder / "bin" / "loadgrid"
        stub.parent.mkdir()
        stub.write_text(STUB)
        stub.chmod(0o755)
        own = {"OUT": "out", "STATE": "state", "MODELS": "resnet50", "STUB_WORDS": str(self.words)}
        own |= {"STUB_PID": str(self.pids), "PATH": f"{stub.parent}:{os.environ['PATH']}", "GPUS": "2"}
        self.env = {**os.environ, **own}

    def begin(self, *parts: str, **env: str) -> subprocess.Popen[str]:
        """In a process group of its own, as a shell gives it one."""
        self.pids.unlink(missing_ok=True)
        return subprocess.Popen(
            [SCRIPT, *parts],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def run(self, *parts: str, **env: str) -> tuple[int, str]:
        """Its exit status, and what it said."""
        with self.begin(*parts, **env) as started:
            said = started.communicate(timeout=60)[0]
        return started.returncode, said

    def stub(self) -> int:
        """The program's pid, once it has begun."""
        assert eventually(lambda: self.pids.exists() and self.pids.read_text().endswith("\n"), 20.0)
        return int(self.pids.read_text().split()[-1])

    def asked(self, option: str) -> list[str]:
        """What followed the option, each time that it was given."""
        words = self.words.read_text().splitlines()
        return [words[i + 1] for i, word in enumerate(words) if word == option]


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    made = Script(tmp_path)
    yield made
    end_processes(pid for pid in all_pids() if started_by(made, pid))


def started_by(script: Script, pid: int) -> bool:
    """Whether the process was started with this test's words file in its environment."""
    try:
        return f"STUB_WORDS={script.words}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_it_ends_its_step_too(script: Script, number: signal.Signals) -> None:
    with script.begin("scale", "slowed", STUB_DOES=SLEEPS) as started:
        stub = script.stub()
        if number == signal.SIGINT:
            os.killpg(started.pid, number)  # as a terminal does
        else:
            started.send_signal(number)
        said = started.communicate(timeout=30)[0]
    assert started.returncode == 130 and "interrupted" in said and not alive(stub)
    assert "--slowed" not in script.words.read_text()


def test_a_step_that_failed_shows_in_the_exit_status_and_the_next_ones_run(script: Script) -> None:
    status, said = script.run("scale", "slowed", STUB_DOES='[[ "$*" = *--slowed* ]] || exit 3')
    assert status == 1 and "scale-resnet50: exit 3" in said and "slowed-resnet50: exit 0" in said
    assert script.run("scale:a model.yaml", GPUS="3")[0] == 0
    assert script.asked("--workers") == ["1,2", "2", "1,2,3"], "no more workers than GPUs, none twice"
    assert (script.folder / "out" / "scale-a model.json").exists()


@pytest.mark.parametrize(
    ("parts", "gpus", "told"),
    [
        (["scale", "scales"], "2", "scales is no part"),
        (["roofline", "slowed"], "0", "slowed needs GPUs, and GPUS is 0"),
        (["full"], "many", "GPUS is 'many', which is no number"),
    ],
)
def test_nothing_runs_where_a_part_cannot(script: Script, parts: list[str], gpus: str, told: str) -> None:
    status, said = script.run(*parts, GPUS=gpus)
    assert status == 2 and told in said and not script.words.exists()


def test_a_run_of_full_length_that_was_killed_is_said_to_have_died_and_begins_anew(script: Script) -> None:
    (script.folder / "m.yaml").write_text(MANIFEST)
    status, said = script.run("full", "poll", FULL_MODEL="m.yaml", POLL_S="0", STUB_DOES=SLEEPS)
    assert status == 0 and "still runs" in said, said
    state = script.folder / "state"
    full = yaml.safe_load((state / "full.yaml").read_text())
    assert full["task"]["path"] == str(script.folder / "data")
    assert full["backend"]["weights"] == str(script.folder / "w.pth")
    status, said = script.run("full", FULL_MODEL="m.yaml")
    assert status == 1 and "has one already" in said
    os.killpg(int((state / "pid").read_text()), signal.SIGKILL)
    assert eventually(lambda: not any(started_by(script, pid) for pid in all_pids()), 10.0)
    status, said = script.run("poll")
    assert status == 1 and "poll: died" in said
    status, said = script.run("full", "poll", FULL_MODEL="m.yaml")
    assert status == 0 and "poll: ended, exit 0" in said, said
    assert len(list(script.folder.glob("state.died-*/state/full.yaml"))) == 1


def test_of_two_runs_that_begin_at_once_one_runs_and_the_other_says_so(script: Script) -> None:
    (script.folder / "m.yaml").write_text(MANIFEST)
    env = {"FULL_MODEL": "m.yaml", "STUB_DOES": SLEEPS}
    both = [script.begin("full", FULL_S=seconds, **env) for seconds in ("600", "700")]
    said = [one.communicate(timeout=60)[0] for one in both]
    state = script.folder / "state"
    first = [one.returncode for one in both].index(0)
    assert both[1 - first].returncode == 1, said
    assert ("another did at the same time" in said[1 - first]) or ("has one already" in said[1 - first]), said
    full = yaml.safe_load((state / "full.yaml").read_text())
    assert full["loadgen"]["min_duration"] == (600_000, 700_000)[first]
    assert script.asked("--runs-dir") == [str(state / "runs")], "one run"
    assert not list(state.glob("full.yaml.*"))


def test_a_signal_to_all_of_a_run_of_full_length_leaves_its_exit_status(script: Script) -> None:
    (script.folder / "m.yaml").write_text(MANIFEST)
    ends = "trap 'exit 130' TERM; sleep 60 & wait"
    assert script.run("full", FULL_MODEL="m.yaml", STUB_DOES=ends)[0] == 0
    script.stub()
    os.killpg(int((script.folder / "state" / "pid").read_text()), signal.SIGTERM)
    status, said = script.run("poll")
    assert status == 1 and "poll: ended, exit 130" in said, said


def test_a_poll_that_cannot_copy_the_evidence_says_so_and_fails(script: Script) -> None:
    (script.folder / "m.yaml").write_text(MANIFEST)
    leaves = 'mkdir "$4/r" && head -c 9000000 /dev/zero >"$4/r/mlperf_log_detail.txt"'
    assert script.run("full", FULL_MODEL="m.yaml", STUB_DOES=leaves)[0] == 0
    out = script.folder / "out"
    stale = out / "full" / "r" / "Server-performance.partial"
    stale.mkdir(parents=True)
    status, said = script.run("poll")
    assert status == 0 and "poll: ended, exit 0" in said, said
    assert (out / "full" / "r" / "mlperf_log_detail.txt").stat().st_size == 9_000_000
    assert not stale.exists(), "of an earlier poll"
    (script.folder / "bare").mkdir()
    (script.folder / "bare" / "full").write_text("no folder")
    status, said = script.run("poll", OUT="bare")
    assert status == 1 and "ended, exit 0, and its files could not be copied" in said, said
