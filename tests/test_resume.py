"""Campaigns: which tests are done and stay, which run again and why, and what a resumed run leaves."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as Terminal

from orchestrator.campaign import run_campaign
from orchestrator.campaign_files import (
    Campaign,
    Ended,
    InUseError,
    found_in,
    newest_campaign,
    planned_tests,
)
from orchestrator.campaignview import show_campaign_end
from orchestrator.continuing import kept_of
from orchestrator.fixed_interval import OWN_FILE
from orchestrator.manifest import load_manifest, parse_manifest
from orchestrator.paths import CAMPAIGN, DETAIL, MANIFEST, RECORD
from orchestrator.plan import TestSpec, plan
from orchestrator.present import VERSIONS, Present, present_of
from orchestrator.provenance import code_sha256
from orchestrator.quiet import Quiet
from orchestrator.record import Audit, Record, Result, read_record
from orchestrator.resume import Found, reasons_to_run
from orchestrator.rules import load_round
from orchestrator.stop import Stop
from orchestrator.submission.gather import _folders
from tests import made_records as made
from tests.program import manifest
from workers.library import Library

TIME_BUDGET_S = 30

OLD = """
round: v1.0
suite: datacenter
division: open
benchmark: resnet
scenarios: [Server, Offline]
runs: [performance, accuracy, TEST01, TEST04-A, TEST04-B, TEST05]
task: {name: 'null'}
backend: {engine: echo}
loadgen: {min_duration: 1000, Server: {target_qps: 10}, Offline: {target_qps: 10}}
"""
# By hand from audit_verify.py: what each test's verdict is about.
COMPARED = {
    "performance": (),
    "accuracy": (),
    "TEST01": ("performance", "accuracy"),
    "TEST04-A": ("TEST04-B",),
    "TEST04-B": ("TEST04-A",),
    "TEST05": ("performance",),
}
PRESENT = Present(
    manifest="m",
    library="l",
    weights="w",
    loadgens={"": "g", OWN_FILE: "own"},
    commit="c",
    versions=dict.fromkeys(VERSIONS, "1"),
)


def specs_of(text: str = OLD) -> list[TestSpec]:
    shown = parse_manifest(text.encode())
    return plan(shown, load_round(shown.round))


SPECS = specs_of()


plain_record = cache(made.record)  # each makes a board, which is a file


def good(spec: TestSpec, **changed: Any) -> Record:
    """A good record of a test, made on what PRESENT says."""
    kind = "compliance" if spec.is_audit else spec.mode
    audit = None
    if spec.is_audit:
        waits = spec.test == "TEST04-A"
        audit = Audit(test=spec.test, passed=None if waits else True, reason="", against="", awaited=waits)
    plain = plain_record(spec.scenario, spec.mode)
    workers = [w.model_copy(update={"facts": w.facts | {"weights_sha256": "w"}}) for w in plain.workers]
    values: dict[str, Any] = {
        "test": spec.name,
        "kind": kind,
        "audit": audit,
        "digest": spec.digest,
        "hashes": {"manifest": "m", "library": "l"},
        "loadgen": {"file": "mlperf_loadgen.so", "sha256": "g"},
        "versions": PRESENT.versions | {"commit": "c", "dirty": True},
        "workers": workers,
    }
    return plain.model_copy(update=values | changed)


def other_workers(record: Record) -> dict[str, Any]:
    first, *rest = record.workers
    return {"workers": [first, *(w.model_copy(update={"facts": {"weights_sha256": "x"}}) for w in rest)]}


# What makes a test run again, each with a word of the reason ...
RELEVANT: dict[str, Callable[[Record], dict[str, Any]]] = {
    "manifest": lambda r: {"hashes": r.hashes | {"manifest": "x"}},
    "data set": lambda r: {"hashes": r.hashes | {"library": "x"}},
    "settings": lambda r: {"digest": "x"},
    "weights": other_workers,
    "LoadGen is": lambda r: {"loadgen": r.loadgen | {"sha256": "x"}},
    "LoadGen is another one": lambda r: {"loadgen": {"file": OWN_FILE, "sha256": "g"}},
    "commit": lambda r: {"versions": r.versions | {"commit": None}},
    "code": lambda r: {"versions": r.versions | {"code": "x"}},
    "numpy was 0 and is 1": lambda r: {"versions": r.versions | {"numpy": "0"}},
    "FAILED": lambda r: {"status": "failed", "reason": "it died"},
    "INTERRUPTED": lambda r: {"status": "interrupted", "reason": "SIGINT received"},
}
# ... and what does not.
IRRELEVANT: list[Callable[[Record], dict[str, Any]]] = [
    lambda r: {"started": "another day", "wall_s": 1.0},
    lambda r: {"run": "another"},
    lambda r: {"versions": r.versions | {"platform": "another kernel", "dirty": False}},
    lambda r: {"hashes": r.hashes | {"library_expected": "later"}},
    lambda r: {"loadgen": r.loadgen | {"path": "elsewhere", "file": "mlperf_loadgen.abi3.so"}},
    lambda r: {"official": not r.official, "unofficial_because": ["x"]},
]
NAMES = [spec.name for spec in SPECS]


@given(
    relevant=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(sorted(RELEVANT)), max_size=4),
    irrelevant=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(range(len(IRRELEVANT)))),
    absent=st.sets(st.sampled_from(NAMES), max_size=3),
    damaged=st.sets(st.sampled_from(NAMES), max_size=2),
)
def test_a_test_is_skipped_if_and_only_if_nothing_relevant_has_changed(
    relevant: dict[str, str], irrelevant: dict[str, int], absent: set[str], damaged: set[str]
) -> None:
    found = {}
    for spec in SPECS:
        record = good(spec)
        if spec.name in irrelevant:
            record = record.model_copy(update=IRRELEVANT[irrelevant[spec.name]](record))
        if spec.name in relevant:
            record = record.model_copy(update=RELEVANT[relevant[spec.name]](record))
        if spec.name not in absent:
            found[spec.name] = Found(record, "it was edited" if spec.name in damaged else "")
    why = reasons_to_run(SPECS, found, PRESENT)
    touched = {*relevant, *absent, *damaged}
    assert list(why) == [spec.name for spec in SPECS if spec.name in why]
    for spec in SPECS:
        sources = [f"{spec.scenario}-{test}" for test in COMPARED[spec.test]]
        if spec.test == "TEST04-A":  # the first of two: the second, never run, is compared with it as it is
            sources = [name for name in sources if name not in absent]
        again = [name for name in sources if name in touched]
        assert (spec.name in why) == (spec.name in touched or bool(again)), (spec.name, why)
        if spec.name in absent:
            assert why[spec.name] == ""
        elif spec.name in relevant:
            assert relevant[spec.name] in why[spec.name]
        elif spec.name in damaged:
            assert why[spec.name] == "it was edited"
        elif again:
            assert all(name in why[spec.name] for name in again)


def test_a_bad_verdict_is_no_done_test() -> None:
    bad: dict[str, dict[str, Any]] = {
        "performance": {"result": made.invalid(["too slow"])},
        "accuracy": {"accuracy": made.score(2)},
        "TEST05": {"audit": Audit(test="TEST05", passed=False, reason="slower", against="")},
        "TEST01": {"audit": None},
    }
    for test, changed in bad.items():
        spec = next(s for s in SPECS if s.test == test)
        why = reasons_to_run([spec], {spec.name: Found(good(spec, **changed))}, PRESENT)
        assert why[spec.name].startswith("it was "), why


def test_weights_that_cannot_be_told_are_not_taken_as_the_same() -> None:
    spec = SPECS[0]
    for weights, same in (("w", True), ("", False), (None, False), ("x", False)):
        present = Present(**vars(PRESENT) | {"weights": weights})
        assert (not reasons_to_run([spec], {spec.name: Found(good(spec))}, present)) is same


def test_the_present_names_weights_loadgen_and_code(tmp_path: Path) -> None:
    class Opened:
        digest = "d"

    text = OLD.replace("{engine: echo}", "{engine: torch, model: resnet50, weights: w.pth}")
    (tmp_path / "w.pth").write_bytes(b"abc")
    file = tmp_path / "m.yaml"
    file.write_text(text)
    opened: Library = Opened()  # type: ignore[assignment]
    seen = present_of(load_manifest(file), opened)
    assert seen.weights == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert len(seen.loadgens[""]) == len(seen.loadgens[OWN_FILE]) == 64
    assert seen.versions["code"] == code_sha256()
    (tmp_path / "w.pth").unlink()
    assert present_of(load_manifest(file), opened).weights == ""
    file.write_text(text.replace("w.pth", f"w.pth, weights_sha256: {'a' * 64}"))
    assert present_of(load_manifest(file), opened).weights == "a" * 64
    file.write_text(f"{OLD.replace('loadgen: {', 'loadgen: {path: none, ')}")
    seen = present_of(load_manifest(file), opened)
    assert (seen.weights, seen.loadgens[""]) == (None, "")


# What lies in a runs folder


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[" * 100_000, b"[]", b"{}", b'{"schema": "loadgrid.campaign/1", "campaign": 3}', None],
)
def test_whatever_lies_in_a_runs_folder_is_no_campaign(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "run").mkdir()
    if content is None:
        (tmp_path / "run" / CAMPAIGN).mkdir()
    else:
        (tmp_path / "run" / CAMPAIGN).write_bytes(content)
    assert newest_campaign(tmp_path, ["echoes"]) is None
    assert newest_campaign(tmp_path / "none", ["echoes"]) is None


def test_the_newest_campaign_of_these_manifests_goes_on_and_links_are_not_followed(tmp_path: Path) -> None:
    shown = load_manifest(manifest(tmp_path))
    runs = tmp_path / "runs"
    for name in ("20260101-000000-aaaa", "20260301-000000-aaaa", "20260201-000000-aaaa"):
        Campaign(runs, name).begin(shown)
    newest = newest_campaign(runs, ["other", "echoes"])
    assert newest is not None and newest.name == "20260301-000000-aaaa"
    folder = newest.folder_of(shown)
    assert folder is not None and json.loads((folder / CAMPAIGN).read_text())["campaign"] == newest.name
    assert newest_campaign(runs, ["other"]) is None
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "run").symlink_to(folder)
    assert newest_campaign(linked, ["echoes"]) is None
    (folder / MANIFEST).write_text("another")
    assert newest.folder_of(shown) is None and newest.has_run(shown)
    assert Campaign(runs, newest.name).folder_of(shown) is None  # not resumed


def test_what_lies_in_a_tests_place_is_looked_at(tmp_path: Path) -> None:
    one, two, *_ = SPECS
    found = found_in(tmp_path, SPECS)
    assert found == {}
    (tmp_path / one.name).write_text("a file")
    (tmp_path / two.name).symlink_to(tmp_path)
    assert {there.trouble for there in found_in(tmp_path, SPECS).values()} == {
        "what lies in its place is no folder"
    }
    (tmp_path / one.name).unlink()
    folder = tmp_path / one.name
    folder.mkdir()
    assert "record cannot be read" in found_in(tmp_path, [one])[one.name].trouble
    (folder / "log").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for files, fine in (({"log": sha256}, True), ({"log": "x"}, False), ({"../x": sha256}, False)):
        (folder / RECORD).write_bytes(good(one, files=files).to_json())
        assert (found_in(tmp_path, [one])[one.name].trouble == "") is fine
    (folder / RECORD).write_bytes(good(two).to_json())
    assert two.name in found_in(tmp_path, [one])[one.name].trouble


def test_the_end_of_a_campaign_is_one_table(tmp_path: Path) -> None:
    ended = [
        Ended("one", tmp_path, [made.record(), made.record("Offline", official=True)], frozenset(), []),
        Ended("two", tmp_path, [made.record(result=made.invalid(["too slow"]))], frozenset(), []),
        Ended("three", tmp_path, [made.record(kind="accuracy")], frozenset({"Server-accuracy"}), []),
        Ended("four", None, [], frozenset(), ["Offline-performance"]),
    ]
    file = io.StringIO()
    show_campaign_end("20260101-000000-aaaa", ended, Terminal(file=file, width=80))
    head, *rows = [line for line in file.getvalue().splitlines() if line.strip()]
    assert "3 of 5 tests good, 1 done before" in head
    cells = [row.split() for row in rows if "-performance" in row or "-accuracy" in row]
    assert [(row[0], row[1], row[2]) for row in cells] == [
        ("one", "Server-performance", "VALID"),
        ("one", "Offline-performance", "VALID"),
        ("two", "Server-performance", "INVALID"),
        ("three", "Server-accuracy", "REACHED"),
        ("four", "Offline-performance", "–"),
    ]
    assert [row[-1] for row in cells] == ["now", "now", "now", "before", "run"]
    assert cells[1][-2] == "yes"


# Real runs


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    return []


def run(file: Path, campaign: Campaign, notes: list[str]) -> tuple[int, set[str]]:
    """The exit code, and the tests that were run and not kept."""
    notes.clear()
    shown = load_manifest(file)
    code = run_campaign(shown, campaign.runs_dir, "local", Quiet(notes.append), Stop(), campaign)
    (ended,) = campaign.ended
    assert not ended.not_run
    return code, {record.test for record in ended.records} - ended.done_before


def resumed(runs: Path) -> Campaign:
    newest = newest_campaign(runs, ["echoes"])
    assert newest is not None
    return newest


def test_a_rerun_performance_test_takes_its_compliance_test_along(tmp_path: Path, notes: list[str]) -> None:
    runs = tmp_path / "runs"
    file = manifest(tmp_path, runs="performance, TEST04", count=1000, qps=4000, duration_ms=200)
    first = Campaign(runs)
    everything = {"Server-performance", "Server-TEST04"}
    assert run(file, first, notes) == (0, everything)
    (folder,) = runs.iterdir()
    assert run(file, resumed(runs), notes) == (0, set())
    assert any("2 tests done before" in note for note in notes)
    old = read_record(folder / "Server-TEST04" / RECORD)
    with open(folder / "Server-performance" / DETAIL, "ab") as log:
        log.write(b"\n")
    assert run(file, resumed(runs), notes) == (0, {"Server-performance", "Server-TEST04"})
    assert any(f"{DETAIL} is not the file that its record names" in note for note in notes)
    assert any("Server-TEST04 runs again: Server-performance runs again" in note for note in notes)
    assert read_record(folder / "Server-TEST04.earlier-1" / RECORD) == old
    assert read_record(folder / "Server-TEST04" / RECORD).started >= old.started
    # Neither what was set aside nor half a test is evidence for a submission.
    shutil.copytree(folder / "Server-TEST04", folder / "Server-TEST04.partial")
    assert {path.name for path in _folders(runs)} == everything


def test_every_test_that_runs_after_a_kill_gets_its_reason(tmp_path: Path, notes: list[str]) -> None:
    """Killed in the first of three tests, before the second manifest."""
    one, two = (
        load_manifest(manifest(tmp_path, name=name, runs="performance, accuracy, TEST01"))
        for name in ("one", "two")
    )
    specs = plan(one, load_round(one.round))
    begun = Campaign(tmp_path / "runs")
    folder = begun.begin(one, [spec.name for spec in specs])
    (folder / f"{specs[0].name}.partial").mkdir()
    campaign = newest_campaign(tmp_path / "runs", ["one", "two"])
    assert campaign is not None
    with contextlib.ExitStack() as held:
        kept = kept_of(campaign, one, specs, Quiet(notes.append), held)
        assert kept.left == specs
    never = ", ".join(spec.name for spec in specs[1:])
    one_begun = f"{specs[0].name} runs again: it had begun and never ended"
    assert notes == [one_begun, f"{never} run: they had not begun"]
    for told in (campaign, begun):  # a campaign that is not resumed runs everything without a word
        kept_of(told, two, plan(two, load_round(two.round)), Quiet(notes.append), held)
    assert notes[2:] == ["all tests of two run: the campaign had not begun it"]
    assert planned_tests(folder) == [spec.name for spec in specs]


def test_a_changed_manifest_runs_in_a_folder_of_its_own(tmp_path: Path, notes: list[str]) -> None:
    runs, file = tmp_path / "runs", manifest(tmp_path, duration_ms=300)
    old = Campaign(runs).begin(load_manifest(file))
    file.write_text(f"{file.read_text()}# a word more\n")
    assert run(file, resumed(runs), notes) == (0, {"Server-performance"})
    assert any("echoes has changed" in note for note in notes)
    (record,) = runs.glob(f"*/*/{RECORD}")
    assert record.parents[1] != old and (record.parents[1] / MANIFEST).read_bytes() == file.read_bytes()
    assert {path.name for path in old.iterdir()} == {CAMPAIGN, MANIFEST}


def test_two_programs_do_not_write_into_one_run(tmp_path: Path, notes: list[str]) -> None:
    shown, campaign = load_manifest(manifest(tmp_path)), Campaign(tmp_path / "runs")
    folder = campaign.begin(shown)
    with campaign.writing(folder), pytest.raises(InUseError, match="another loadgrid run writes into it"):
        run(shown.path, resumed(tmp_path / "runs"), notes)
    assert not list(folder.glob("Server-*"))


def test_a_result_of_nothing_is_not_kept() -> None:
    spec = SPECS[0]
    none = Result(valid=None, metric="x", value=None, unit="", reasons=[])
    assert reasons_to_run([spec], {spec.name: Found(good(spec, result=none))}, PRESENT) == {
        spec.name: "it was NO VERDICT"
    }
