"""Official: everything must hold, and any one thing that does not makes a test unofficial and says so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from orchestrator.evidence import Crew, Evidence
from orchestrator.manifest import parse_manifest
from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, DETAIL
from orchestrator.plan import plan
from orchestrator.record import Record
from orchestrator.rules import load_round
from orchestrator.supervise import Outcome
from tests.made_records import board
from tests.real_loadgen import order_of
from tests.test_record import mllog
from workers.library import Library
from workers.tasks import open_task

TIME_BUDGET_S = 15

ROUND = load_round("v6.1")
LOADGEN_SHA256 = next(iter(ROUND.loadgen.sha256))
WEIGHTS_SHA256 = "5" * 64
COUNT = ROUND.benchmark("resnet").accuracy_sample_count


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
    torn: bool = False

    def __post_init__(self) -> None:
        self.outcome.result = {"loadgen_sha256": LOADGEN_SHA256, "loadgen_file": "mlperf_loadgen.so"}
        worker = {"device": "cuda", "model_hash": "m", "weights_sha256": WEIGHTS_SHA256, "weights": "w.pth"}
        own = {"library": self.library.digest}
        self.facts = [{"name": f"worker-{i}", "node": f"10.0.0.{i}", **worker, **own} for i in range(2)]
        mode = "PerformanceOnly" if self.test == "performance" else "AccuracyOnly"
        self.log = {"loadgen_version": "6.0.17 @ d6147c7eb7", "effective_scenario": "Server"}
        self.log |= {"effective_test_mode": mode, "power_begin": "11-23-2026 00:00:00.000"}
        self.log |= {"power_end": "11-23-2026 00:10:00.000"}
        if self.test == "performance":
            self.log |= {"result_validity": "VALID", "result_completed_samples_per_sec": 1000.0}
        self.manifest = {
            "name": "official",
            "round": "v6.1",
            "suite": "datacenter,edge",  # where the benchmark has a Server scenario
            "division": "closed",
            "benchmark": "resnet",
            "scenarios": ["Server"],
            "task": {"name": "imagenet", "count": COUNT, "sha256": self.library.digest},
            "backend": {
                "engine": "torch",
                "model": "resnet50",
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
        text = "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n"
        path.write_text(text[: len(text) // 2] if self.torn else text)


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


def ended(status: Literal["failed", "interrupted"]) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.outcome.status, case.outcome.reason = status, "why"

    return change


BROKEN: list[tuple[Callable[[Case], None], str]] = [
    (setting("manifest", "loadgen", "min_duration", value=1000), "min_duration: the test may end after 1000"),
    (setting("manifest", "loadgen", "schedule_rng_seed", value=1), "seeds: "),
    (setting("manifest", "suite", value="datacenter"), "suite: resnet is not in the datacenter suite"),
    (having("commit", {"commit": None, "dirty": None}), "code: LoadGrid does not run from a git checkout"),
    (having("commit", {"commit": "ab" * 20, "dirty": True}), "code: .* changes over commit abababababab"),
    (fact("code", "another"), "code: a worker's LoadGrid is not the one on this host"),
    (setting("log", "loadgen_version", value="6.0.15"), "loadgen: LoadGen 6.0.15 is not the round's own"),
    (setting("log", "loadgen_version", value=None), "loadgen: its version and the hash .* are not known"),
    (told("loadgen_sha256", "0" * 64), "loadgen_file: .* none of the published builds"),
    (told("loadgen_sha256", None), "loadgen: its version and the hash .* are not known"),
    (setting("log", "result_validity", value="INVALID"), "LoadGen's verdict is not VALID"),
    (setting("log", "result_validity", value=None), "LoadGen's verdict is not VALID"),
    (having("extra_log", mllog("error_x", "bad", is_error=True)), "LoadGen logged an error: error_x: bad"),
    (having("extra_log", mllog("result_validity", "INVALID")), "log: .* different values: result_validity"),
    (having("extra_log", mllog("num_errors", 0)[:-9]), "log: LoadGen's is cut short"),
    (setting("log", "early_stopping_met", value=False), "log: LoadGen's says VALID, and early_stopping_met"),
    (without("log", "effective_scenario"), "log: a part of LoadGen's .* show effective_scenario$"),
    (setting("log", "effective_target_latency_percentile", value=0.5), "LoadGen's log shows .* 0.5 instead"),
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


def test_an_accuracy_below_its_target_is_not_official(case: Make) -> None:
    record = case(test="accuracy", wrong_answers=COUNT // 2).record()
    assert record.accuracy is not None and not record.accuracy.reached
    assert record.unofficial_because[0].startswith("accuracy 50 is below the target ")


def test_an_accuracy_log_that_cannot_be_scored_fails_the_test(case: Make) -> None:
    record = case(test="accuracy", torn=True).record()
    assert record.status == "failed" and record.official is False
    assert record.reason.startswith("the accuracy could not be scored: ")


def test_an_accuracy_test_without_its_detail_log_is_not_official(case: Make) -> None:
    made = case(test="accuracy")
    made.log = {}
    assert made.record().official is False


def test_an_accuracy_test_whose_detail_log_ends_too_early_is_not_official(case: Make) -> None:
    made = case(test="accuracy")
    del made.log["power_end"]
    (because,) = made.record().unofficial_because
    assert because == "log: a part of LoadGen's is missing: it does not show power_end"
