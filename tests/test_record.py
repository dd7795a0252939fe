"""From LoadGen's logs to a record: what is read, what makes it official, how it is kept, which code made it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import paths
from orchestrator.evidence import Crew, Evidence
from orchestrator.logs import PREFIX, LogError, read_detail
from orchestrator.manifest import parse_manifest
from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, DETAIL, RunPaths, cache_dir, write_atomically
from orchestrator.plan import plan
from orchestrator.provenance import commit_of, versions
from orchestrator.record import Record, RecordError, read_record
from orchestrator.rules import load_round
from orchestrator.supervise import Outcome
from tests import made_records
from tests.made_records import board
from tests.real_loadgen import order_of
from workers.library import Library
from workers.tasks import open_task

TIME_BUDGET_S = 15

ROUND = load_round("v6.1")
LOADGEN_SHA256 = next(iter(ROUND.loadgen.sha256))
WEIGHTS_SHA256 = "5" * 64
COUNT = ROUND.benchmark("resnet").accuracy_sample_count


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


# Official


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """As many samples as the round's data set has; the label of each is its index."""
    task = open_task("null", {"count": COUNT})
    return task.prepare(tmp_path_factory.mktemp("library"))


@dataclass
class Case:
    """A closed test of two workers that is official in every respect; tests break one of them."""

    folder: Path
    library: Library
    test: str = "performance"
    manifest: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=lambda: Outcome("finished", board([600, 400])))
    log: dict[str, Any] = field(default_factory=dict)
    extra_log: str = ""
    facts: list[dict[str, Any]] = field(default_factory=list)
    commit: dict[str, Any] = field(default_factory=lambda: {"commit": "ab" * 20, "dirty": False})
    remote: list[str] = field(default_factory=list)
    wrong_answers: int = 0

    def __post_init__(self) -> None:
        self.outcome.result = {"loadgen_sha256": LOADGEN_SHA256, "loadgen_file": "mlperf_loadgen.so"}
        worker = {"device": "cuda", "model_hash": "m", "weights_sha256": WEIGHTS_SHA256, "weights": "w.pth"}
        own = {"library": self.library.digest}
        self.facts = [{"name": f"worker-{i}", "node": f"10.0.0.{i}", **worker, **own} for i in range(2)]
        self.log = {"loadgen_version": "6.0.17 @ d6147c7eb7"}
        if self.test == "performance":
            self.log |= {"result_validity": "VALID", "result_completed_samples_per_sec": 1000.0}
        self.manifest = {
            "name": "official",
            "round": "v6.1",
            "suite": "datacenter,edge",  # where the benchmark has a Server scenario
            "division": "closed",
            "benchmark": "resnet",
            "scenarios": ["Server"],
            "task": {"name": "null", "count": COUNT, "sha256": self.library.digest},
            "backend": {
                "engine": "torch",
                "model": "m",
                "weights": "w.pth",
                "weights_sha256": WEIGHTS_SHA256,
            },
            "workers": {"count": 2, "num_gpus": 1},
            "dispatch": {},
            "loadgen": {"Server": {"target_qps": 1000}},
        }

    def record(self) -> Record:
        manifest = parse_manifest(json.dumps(self.manifest).encode(), "official.yaml")
        spec = next(s for s in plan(manifest, ROUND) if s.test == self.test)
        order = order_of(self.folder, "Server", self.test, name=spec.name, local=None)
        out = Path(order.out_dir)
        lines = {**self.log, spec.result_key: 1000.0 if self.test == "performance" else None}
        text = "".join(mllog(key, value) for key, value in lines.items() if value is not None)
        (out / DETAIL).write_text(text + self.extra_log)
        if self.test == "accuracy":
            self._write_answers(out / ACCURACY_LOG)
        evidence = Evidence(manifest, ROUND, self.commit, self.library, "official-1")
        return evidence.record(spec, order, self.outcome, Crew(self.facts, [], self.remote), "now")

    def _write_answers(self, path: Path) -> None:
        answers = np.arange(COUNT, dtype="<i4")
        answers[: self.wrong_answers] += 1
        entries = (
            {"seq_id": i, "qsl_idx": i, "data": answers[i].tobytes().hex().upper(), "token_count": 0}
            for i in range(COUNT)
        )
        path.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")


Make = Callable[..., Case]


@pytest.fixture
def case(tmp_path: Path, library: Library) -> Iterator[Make]:
    yield lambda **values: Case(tmp_path, library, **values)


def test_a_test_in_which_everything_holds_is_official(case: Make) -> None:
    record = case().record()
    assert record.unofficial_because == []
    assert record.official is True
    assert record.result.value == 1000.0 and record.result.valid is True


def test_an_accuracy_test_in_which_everything_holds_is_official(case: Make, tmp_path: Path) -> None:
    record = case(test="accuracy").record()
    assert (record.official, record.unofficial_because) == (True, [])
    assert record.accuracy is not None
    assert (record.accuracy.value, record.accuracy.good, record.accuracy.total) == (100.0, COUNT, COUNT)
    assert "hash=" in (tmp_path / "out" / ACCURACY_TXT).read_text()


def loss(case: Case) -> None:
    case.outcome.losses = [{"worker": "worker-1", "at_ns": 5, "reason": "cut off", "moved": 3}]


def setting(*keys: str, value: Any) -> Callable[[Case], None]:
    """Sets what these keys lead to, in the case's `manifest` or in another dictionary of it."""

    def change(case: Case) -> None:
        place = getattr(case, keys[0])
        for key in keys[1:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def without(*keys: str) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        place = getattr(case, keys[0])
        for key in keys[1:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


def having(name: str, value: Any) -> Callable[[Case], None]:
    return lambda case: setattr(case, name, value)


def fact(key: str, value: Any) -> Callable[[Case], None]:
    return lambda case: case.facts[1].update({key: value})


def told(key: str, value: Any) -> Callable[[Case], None]:
    return lambda case: case.outcome.result.update({key: value})


def ended(status: str) -> Callable[[Case], None]:
    return lambda case: setattr(case, "outcome", replace(case.outcome, status=status, reason="why"))


BROKEN: list[tuple[Callable[[Case], None], str]] = [
    (setting("manifest", "loadgen", "min_duration", value=1000), "min_duration: the test may end after 1000"),
    (setting("manifest", "loadgen", "schedule_rng_seed", value=1), "seeds: "),
    (setting("manifest", "suite", value="datacenter"), "suite: resnet is not in the datacenter suite"),
    (having("commit", {"commit": None, "dirty": None}), "code: LoadGrid does not run from a git checkout"),
    (having("commit", {"commit": "ab" * 20, "dirty": True}), "code: .* changes over commit abababababab"),
    (setting("log", "loadgen_version", value="6.0.15"), "loadgen: LoadGen 6.0.15 is not the round's own"),
    (setting("log", "loadgen_version", value=None), "loadgen: its version and the hash .* are not known"),
    (told("loadgen_sha256", "0" * 64), "loadgen_file: .* none of the published builds"),
    (told("loadgen_sha256", None), "loadgen: its version and the hash .* are not known"),
    (setting("log", "result_validity", value="INVALID"), "LoadGen's verdict is not VALID"),
    (setting("log", "result_validity", value=None), "LoadGen's verdict is not VALID"),
    (having("extra_log", mllog("error_x", "bad", is_error=True)), "LoadGen logged an error: error_x: bad"),
    (loss, r"loss: worker worker-1 was lost \(cut off\)"),
    (ended("failed"), "the test failed: why"),
    (ended("interrupted"), "the test was interrupted: why"),
    (fact("weights_sha256", "6" * 64), "checkpoint: not every worker showed weights with the hash"),
    (fact("weights_sha256", None), "checkpoint: not every worker showed weights with the hash"),
    (having("facts", []), "checkpoint: not every worker showed weights with the hash"),
    (fact("library", "7" * 64), "data set: a worker's data set is not the one on this host"),
    (without("manifest", "task", "sha256"), "data set: task.sha256 is not given"),
    (setting("manifest", "task", "sha256", value="8" * 64), "data set: .* not have the hash task.sha256"),
    (without("manifest", "backend", "weights_sha256"), "checkpoint: backend.weights_sha256 is not given"),
    (having("remote", ["node-b"]), r"payload: payload index to other hosts \(node-b\)"),
    (setting("manifest", "backend", value={"engine": "echo"}), "model: engine echo computes nothing"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_one_thing_that_does_not_hold_makes_it_unofficial(
    case: Make, change: Callable[[Case], None], reason: str
) -> None:
    made = case()
    change(made)
    record = made.record()
    assert record.official is False
    (because,) = record.unofficial_because
    assert re.match(reason, because)


def test_seeded_weights_are_never_official(case: Make) -> None:
    made = case()
    made.manifest["backend"] = {"engine": "torch", "model": "m"}
    for one in made.facts:
        one |= {"weights": "seeded", "weights_sha256": None}
    record = made.record()
    assert record.official is False
    assert any("seeded" in because for because in record.unofficial_because)


def test_an_accuracy_below_its_target_or_without_answers_is_not_official(case: Make, tmp_path: Path) -> None:
    record = case(test="accuracy", wrong_answers=COUNT // 2).record()
    assert record.accuracy is not None and not record.accuracy.reached
    assert record.unofficial_because[0].startswith("accuracy 50 is below the target ")


def test_an_accuracy_log_that_cannot_be_scored_fails_the_test(case: Make) -> None:
    made = case(test="accuracy")
    made._write_answers = lambda path: path.write_text("[\n")  # type: ignore[method-assign]
    record = made.record()
    assert record.status == "failed" and record.official is False
    assert record.reason.startswith("the accuracy could not be scored: ")


def test_an_accuracy_test_without_its_detail_log_is_not_official(case: Make) -> None:
    made = case(test="accuracy")
    made.log = {}
    assert made.record().official is False


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
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    clean = {"commit": head, "dirty": False}
    assert commit_of(tmp_path) == clean
    inside = tmp_path / "installed"
    inside.mkdir()
    assert commit_of(inside) == none  # somebody else's repository around it says nothing about it
    (tmp_path / "code.py").write_text("2")
    assert commit_of(tmp_path) == {"commit": head, "dirty": True}
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "new.py").write_text("untracked")
    assert commit_of(tmp_path) == {"commit": head, "dirty": True}
    (tmp_path / "new.py").unlink()
    other = tmp_path / "installed"
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook of another repository
    assert commit_of(tmp_path) == {"commit": head, "dirty": True}  # the new folder is untracked
    assert commit_of(tmp_path)["commit"] == head
    monkeypatch.setenv("PATH", str(inside))  # no git at all
    assert commit_of(tmp_path) == none


def test_versions_name_python_and_every_library_that_matters() -> None:
    found = versions()
    assert found["mlcommons-loadgen"] == "6.0.17"
    assert all(
        found[name] for name in ("python", "platform", "loadgrid", "ray", "pyzmq", "numpy", "pydantic")
    )
