"""`loadgrid peak` over a simulated system: what it runs, keeps, resumes and tells; and for real, once."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from orchestrator.campaign_files import newest_campaign
from orchestrator.continuing import kept_of
from orchestrator.manifest import ManifestError, load_manifest, parse_manifest
from orchestrator.paths import DETAIL, EARLIER, MANIFEST, RECORD
from orchestrator.peak_history import Found
from orchestrator.peak_manifest import batching_of, manifest_at
from orchestrator.peak_probe import is_hopeless, performance_spec, probe_manifest, probe_of, scenario_of
from orchestrator.plan import PlanError, plan
from orchestrator.quiet import Quiet
from orchestrator.record import Result, read_record
from orchestrator.rules import load_round
from tests import old_multistream as streams
from tests.processes import eventually
from tests.program import Program
from tests.program import manifest as program_manifest
from tests.simulated_session import MS, SERVER, System, in_place, search, told, written
from tests.test_resume_killed import own_copy_of_the_code

TIME_BUDGET_S = 90

INTERRUPTED = {"status": "interrupted", "reason": "SIGINT received"}


@pytest.fixture
def system(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> System:
    return in_place(System(rng), monkeypatch, tmp_path)


# What it finds


def test_it_reports_the_rate_that_a_full_length_test_held(system: System, tmp_path: Path) -> None:
    found = search(written(tmp_path), tmp_path / "runs")
    peak = system.queue(1).peak()
    assert found.exit_code == 0 and found.confirmed is not None and found.file is not None
    rate = found.confirmed.seen.value
    assert 0.98 * peak < rate < 1.004 * peak
    assert sum(not row.confirms for row in found.rows) <= 12
    # The record of the full length, and the manifest beside the evidence, have the rate; the user's has not.
    record = read_record(found.confirmed.folder / RECORD)
    assert record.result.valid and record.settings["server_target_qps"] == rate
    assert record.settings["min_query_count"] == 270_336 and record.settings["min_duration_ms"] == 60_000
    made = load_manifest(found.file)
    assert made.loadgen.Server.target_qps == rate and made.scenarios == ("Server", "Offline")
    assert made.raw == (found.confirmed.folder.parent / MANIFEST).read_bytes()
    assert record.hashes["manifest"] == hashlib.sha256(made.raw).hexdigest()
    assert (tmp_path / "echoes.yaml").read_text() == SERVER
    # `loadgrid run` of that manifest with --resume has this test done, and goes on with the others.
    campaign = newest_campaign(tmp_path / "runs", [made.name])
    assert campaign is not None
    with ExitStack() as held:
        specs = plan(made, load_round(made.round))
        kept = kept_of(campaign, made, specs, Quiet(), held)
        assert list(kept.done) == ["Server-performance"] and len(kept.left) == 3
    # No probe is official, and every one is where it is said to be.
    probes = [row.record for row in found.rows if not row.confirms]
    assert all(any(why.startswith("probe:") for why in record.unofficial_because) for record in probes)
    assert not any(why.startswith("probe:") for why in record.unofficial_because)
    assert system.sessions == 1
    text = told(found)
    same = [row.seen.held for row in found.full if row.seen.value == rate]
    own = f"{found.confirmed.record.result.value:,.6g} (result_completed_samples_per_sec)"
    tests = "1 of 1 full-length test" if len(same) == 1 else "2 of 2 full-length tests"
    words = f"{rate:,.10g} queries/s offered, {tests} at this value VALID"
    assert all(same) and len(same) <= 2
    assert f"Highest VALID: {words}; LoadGen's result is {own}; not official" in text
    assert "limit 15 ms" in text
    # What is no verdict of LoadGen's is not called one, and whose count it is is marked.
    ended = next(row for row in found.probes if is_hopeless(row.record))
    late = f"{ended.record.course.late:,}"  # type: ignore[union-attr]
    assert f"{ended.seen.value:,.10g} probe ended – {late} *" in text
    assert "*: the driver's count, from issue" in text and f"{found.low:,.10g} queries/s, not at" in text


def test_a_rate_that_no_full_length_test_held_is_not_reported(system: System, tmp_path: Path) -> None:
    invalid = Result(valid=False, metric="throughput", value=1.0, unit="queries/s", reasons=["late"])
    system.faults = {number: {"result": invalid} for number in range(4, 40)}
    manifest = written(tmp_path)
    found = search(manifest, tmp_path / "runs", probes=4)
    assert found.low > 0 and found.confirmed is None and found.file is None and found.exit_code == 1
    assert sum(row.confirms for row in found.rows) == 4
    text = told(found)
    assert (
        "No result: at no value was every test of full length VALID. If a machine had" in text
        and "Highest" not in text
    )
    assert "The 4 tests of full length that a search may have are used up" in text
    assert not list((tmp_path / "runs").glob("*/peak.yaml"))


def test_other_batches_are_tried_at_the_edge_and_kept_where_they_hold_more(
    system: System, tmp_path: Path
) -> None:
    system.values |= {"batch_s": 1 * MS, "sample_s": 0.25 * MS}
    system.most_batch = 4
    notes: list[str] = []
    text = SERVER.replace("max_batch: 1", "max_batch: 2")
    found = search(written(tmp_path, text), tmp_path / "runs", tune=True, probes=40, notes=notes)
    assert found.confirmed is not None and found.batching is not None and found.batching.max_batch == 4
    assert system.queue(2).capacity < found.confirmed.seen.value < system.queue(4).capacity
    made = load_manifest(str(found.file))
    assert made.workers.max_batch == 4 and made.loadgen.Server.target_qps == found.confirmed.seen.value
    assert "batch8 is not tried: out of memory" in notes
    assert any("batch4" in name for name in system.ran) and "with batch4" in told(found)


def test_what_no_probe_was_left_for_is_said(system: System, tmp_path: Path) -> None:
    found = search(written(tmp_path), tmp_path / "runs", tune=True, probes=5)
    assert found.not_tried and f"Not tried, for no probe was left (--probes): {found.not_tried[0]}" in told(
        found
    )


def test_multistream_of_an_old_round_is_searched_by_whole_numbers(system: System, tmp_path: Path) -> None:
    text = streams.MANIFEST.format(round="v1.0").replace("query: 4", "query: 40, target_qps: 20")
    found = search(written(tmp_path, text), tmp_path / "runs")
    assert found.confirmed is not None and found.confirmed.seen.value == 47  # (3 + 47) ms of 50
    assert load_manifest(str(found.file)).loadgen.MultiStream.samples_per_query == 47
    assert len(found.rows) <= 7 and "Highest VALID: 47 samples a query, 2 of 2 full" in told(found)


@pytest.mark.parametrize(
    ("words", "qps", "expected"),
    [
        # A tenth of 600 s and of 270,336 queries.
        ("min_duration: 600000, min_query_count: 270336", 1e4, (60_000, 27_033)),
        # Ten times the 459 queries that prove anything, and 200 latency limits.
        ("min_duration: 600000, min_query_count: 100", 1e4, (60_000, 4_590)),
        ("min_duration: 600000, target_latency: 1000", 1e4, (200_000, 4_590)),
        # Never longer than the test itself.
        ("min_duration: 2000, target_latency: 1000", 1e4, (2_000, 4_590)),
        ("min_duration: 2000, min_query_count: 300", 100, (2_000, 300)),
    ],
)
def test_a_probe_is_a_tenth_of_the_test_and_long_enough_to_judge_by(
    tmp_path: Path, words: str, qps: float, expected: tuple[int, int]
) -> None:
    text = SERVER.replace("target_qps: 300, min_query_count: 270336", f"target_qps: 300, {words}")
    manifest = written(tmp_path, text)
    changed = probe_manifest(manifest, "Server", qps, batching_of(manifest))
    spec = probe_of(changed, "Server", batching_of(manifest), 1)
    assert (spec.settings["min_duration_ms"], spec.settings["min_query_count"]) == expected
    assert spec.settings["server_target_qps"] == qps and spec.name == f"Server-{qps:g}-again"
    assert changed.stop_when_hopeless and "probe" in {finding.rule for finding in spec.broken_rules}


# Going on


def names(found: Found) -> list[tuple[str, float]]:
    return [(row.record.test, row.seen.value) for row in found.rows]


def test_wherever_it_is_interrupted_it_goes_on_and_repeats_nothing(system: System, tmp_path: Path) -> None:
    manifest = written(tmp_path)
    whole = search(manifest, tmp_path / "whole")
    assert whole.confirmed is not None
    system.queues.clear()
    count, runs = len(system.ran), tmp_path / "runs"
    for number in (0, len(whole.rows) // 2, len(whole.rows) - 1):
        # The search reaches this test anew, for it never gets further.
        again = len(set(system.ran[count:]))
        system.faults = {len(system.ran) + number - again + (again > 0): INTERRUPTED}
        found = search(manifest, runs, resume=True)
        assert len(found.rows) == number
        assert found.exit_code == 4 and "it was interrupted" in found.trouble
    system.faults = {}
    last = search(manifest, runs, resume=True)
    assert last.exit_code == 0 and last.confirmed is not None
    assert names(last) == names(whole) and last.confirmed.seen == whole.confirmed.seen
    ran = len(system.ran)
    assert names(search(manifest, runs, resume=True)) == names(whole) and len(system.ran) == ran
    done = [path.parent.name for path in runs.glob(f"*/*/{RECORD}")]
    assert sum(EARLIER in name for name in done) == 3 and len(done) == 3 + len(whole.rows)


def test_what_has_changed_since_is_probed_again_and_said(system: System, tmp_path: Path) -> None:
    manifest, runs, notes = written(tmp_path), tmp_path / "runs", []  # type: ignore[var-annotated]
    first = search(manifest, runs)
    ran = len(system.ran)
    (first.rows[0].folder / DETAIL).write_text("changed\n")
    again = search(manifest, runs, resume=True, notes=notes)
    assert len(system.ran) == ran + 1 and names(again) == names(first)
    test = first.rows[0].record.test
    assert f"{test} runs again: {DETAIL} is not the file that its record names" in notes
    # A manifest that was changed is another search.
    changed = written(tmp_path, SERVER.replace("count: 20", "count: 30"))
    other = search(changed, runs, resume=True, probes=2, notes=notes)
    assert other.folder != first.folder and not any(row.before for row in other.rows)


def test_a_new_search_takes_nothing_from_an_old_one(system: System, tmp_path: Path) -> None:
    manifest = written(tmp_path)
    first, second = (search(manifest, tmp_path / "runs", probes=2) for _ in range(2))
    assert first.folder != second.folder and not any(row.before for row in second.rows)


# Manifests


def test_the_found_manifest_is_the_users_with_other_values_and_absolute_paths(tmp_path: Path) -> None:
    text = SERVER.replace("task: {name: 'null', count: 20}", "task: {name: imagenet, path: photos}")
    text = text.replace(
        "backend: {engine: echo, service_time_us: 1000}", "backend: {engine: onnx, weights: w}"
    )
    manifest = written(tmp_path, text)
    made = manifest_at(manifest, "Server", 1843.2, batching_of(manifest))
    again = parse_manifest(made.raw, tmp_path / "elsewhere" / "peak.yaml")
    for one in (made, again):
        assert one.loadgen.Server.target_qps == 1843.2 and one.name == "echoes-at-peak"
        assert one.task_options() == manifest.task_options()
        assert one.backend_options() == manifest.backend_options()
        assert one.workers == manifest.workers and one.runs == manifest.runs
    assert manifest_at(manifest, "Server", 1843.2, batching_of(manifest)).raw == made.raw
    own, found = (performance_spec(m, "Server").settings for m in (manifest, made))
    assert {k: v for k, v in own.items() if found[k] != v} == {"server_target_qps": 300.0}


def test_what_has_no_peak_is_refused_in_words() -> None:
    def scenario(text: str) -> str:
        return scenario_of(parse_manifest(text.encode()))

    with pytest.raises(PlanError, match="has no MultiStream of a fixed interval: a query has 8 samples"):
        scenario(streams.MANIFEST.format(round="v6.1"))
    with pytest.raises(ManifestError, match="scenarios: has no scenario with a peak"):
        scenario(SERVER.replace("[Server, Offline]", "[Offline]"))
    with pytest.raises(ManifestError, match="runs: names no performance"):
        scenario(SERVER.replace("[performance, accuracy]", "[accuracy]"))
    assert scenario(streams.MANIFEST.format(round="v1.1")) == "MultiStream"


# The program


def has_ended_or_done(program: Program, tests: int) -> bool:
    return program.process.poll() is not None or program.said.count(" files in ") >= tests


def test_killed_and_resumed_the_program_ends_with_a_confirmed_rate(tmp_path: Path) -> None:
    file = program_manifest(tmp_path, batch_us=500, max_batch=1, workers=1, qps=1000, duration_ms=500)
    arguments = ("peak", file, "--resume", "--probes", 2, "--keep-batches")
    env = own_copy_of_the_code(tmp_path / "code")
    with Program(tmp_path, *arguments, env=env) as program:
        eventually(partial(has_ended_or_done, program, 1), 40.0, 0.01)
        program.process.kill()
        program.process.wait()
        program.nothing_left_in(5.0)
    [folder] = program.runs.glob("echoes-peak-*")
    kept = {
        path: path.read_bytes() for path in folder.glob(f"Server-[0-9]*/{RECORD}") if ".p" not in str(path)
    }
    assert kept
    with Program(tmp_path, *arguments, env=env) as program:
        code = program.end(60.0)
    said = program.said
    assert code in (0, 1), said  # 1: this machine stalled in every test
    assert kept.items() <= {path: path.read_bytes() for path in kept}.items() and "before" in said
    records = [read_record(path) for path in sorted(program.runs.glob(f"echoes-at-peak-*/*/{RECORD}"))]
    valid = [record.settings["server_target_qps"] for record in records if record.result.valid]
    assert code or valid
    if code == 0:
        [line] = [line for line in said.splitlines() if line.startswith("Highest")]
        [rate] = [value for value in valid if f": {value:,.10g} queries/s offered" in line]
        assert json.dumps(rate) in (folder / "peak.yaml").read_text()


def test_the_real_multistream_of_an_old_round_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    text = streams.MANIFEST.format(round="v1.0").replace("min_query_count: 30", "min_query_count: 100")
    words = "samples_per_query: 4, target_qps: 200, target_latency_percentile: 90"
    manifest = written(tmp_path, text.replace("samples_per_query: 4", words))
    found = search(manifest, tmp_path / "runs", probes=2)
    assert found.exit_code in (0, 1), found.trouble  # 1: this machine stalled even with few samples
    held = {row.seen.value: row.seen.held for row in found.rows}
    # One worker at 1 ms a sample has room for 4 in 5 ms and never for 8.
    assert 4 in held and not any(valid for number, valid in held.items() if number > 5)
    assert (found.confirmed is not None) == (found.exit_code == 0)
    assert all(row.record.status == "finished" and not row.record.official for row in found.rows)
