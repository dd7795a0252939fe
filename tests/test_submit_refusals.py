"""`loadgrid submit`: what is refused, with which words, and that nothing is left then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.paths import (
    ACCURACY_LOG,
    ACCURACY_TXT,
    DETAIL,
    MANIFEST,
    RECORD,
    USER_CONF,
    VERIFY_PERFORMANCE,
)
from orchestrator.peak_probe import PROBE
from orchestrator.record import RecordError, read_record
from orchestrator.submission.build import Built, SubmitError, Wishes, submit
from orchestrator.submission.own_source import NOT_HERE
from orchestrator.submission.refusal import SAFE_NAME
from tests.made_runs import made_run, made_system, rerecord

TIME_BUDGET_S = 60


def build(folder: Path, *runs: Path, system: dict[str, Any] | None = None, **wishes: Any) -> Built:
    return submit(runs, made_system(folder, **(system or {})), folder / "tree", Wishes(**wishes))


def refusal(folder: Path, *runs: Path, **wishes: Any) -> str:
    """Why nothing was made; and nothing was."""
    before = {path for path in folder.iterdir() if path.suffix != ".json"}
    with pytest.raises(SubmitError) as error:
        build(folder, *runs, **wishes)
    assert {path for path in folder.iterdir() if path.suffix != ".json"} == before
    return str(error.value)


# Evidence

CHANGED = [
    ("SingleStream-performance", DETAIL),
    ("SingleStream-performance", USER_CONF),
    ("SingleStream-accuracy", ACCURACY_LOG),
    ("SingleStream-accuracy", ACCURACY_TXT),
    ("SingleStream-TEST01", VERIFY_PERFORMANCE),
    ("SingleStream-TEST04", "audit.config"),
]


@pytest.mark.parametrize(("test", "name"), CHANGED)
def test_a_file_that_changed_after_its_record_is_refused_by_name(
    tmp_path: Path, test: str, name: str
) -> None:
    run = made_run(tmp_path / "runs")
    with open(run / test / name, "a") as file:
        file.write(" ")
    text = refusal(tmp_path, run)
    assert str(run / test / name) in text and "changed after its record" in text


def test_a_file_that_is_gone_or_a_link_is_refused_by_name(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    path = run / "SingleStream-performance" / DETAIL
    path.rename(tmp_path / "elsewhere.txt")
    assert f"{path} is missing or no plain file" in refusal(tmp_path, run)
    path.symlink_to(tmp_path / "elsewhere.txt")
    assert f"{path} is missing or no plain file" in refusal(tmp_path, run)


def test_a_manifest_that_changed_after_the_run_is_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    (run / MANIFEST).write_text((run / MANIFEST).read_text() + "\n")
    assert f"{run / MANIFEST} is not the manifest" in refusal(tmp_path, run)
    (run / MANIFEST).unlink()
    assert f"{run / MANIFEST} is missing" in refusal(tmp_path, run)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/../../b", ""])
def test_a_record_cannot_name_files_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    run = made_run(tmp_path / "runs")
    path = run / "SingleStream-performance" / RECORD
    body = json.loads(path.read_text())
    body["files"][name] = "0" * 64
    path.write_text(json.dumps(body))
    assert "outside of its folder" in refusal(tmp_path, run)


def test_a_hash_line_of_another_log_is_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    folder = run / "SingleStream-accuracy"
    (folder / ACCURACY_TXT).write_text(f"accuracy=76.5%\nhash={'0' * 64}\n")
    rerecord(folder)
    assert "has the hash of another log" in refusal(tmp_path, run)


def test_what_keeps_records_from_being_official_is_told_once_with_its_tests(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", official=False, unofficial_because=["min_duration: too short"])
    text = refusal(tmp_path, run)
    name = f"{run.name}/SingleStream-performance"
    assert text.count("min_duration: too short") == 1 and name in text and "--draft" in text


def test_a_record_that_says_only_that_it_is_not_official_is_refused_too(tmp_path: Path) -> None:
    assert "the record is not official" in refusal(tmp_path, made_run(tmp_path / "runs", official=False))


# What belongs together


def test_the_newest_tests_are_taken_and_the_others_are_told(tmp_path: Path) -> None:
    first = made_run(tmp_path / "runs")
    second = made_run(tmp_path / "again", started="2026-02-01T00:00:00+0000")
    second = second.rename(second.with_name("made-20260201-000000"))
    built = build(tmp_path, tmp_path / "runs", tmp_path / "again")
    kinds = ("performance", "accuracy", "TEST01", "TEST04")
    taken = [
        f"{first.name}/SingleStream-{kind}: {second.name}/SingleStream-{kind} is taken" for kind in kinds
    ]
    assert sorted(built.left_out) == sorted([*taken, NOT_HERE])
    text = (built.root / "closed/ACME/results/sys-1/resnet50/SingleStream/README.md").read_text()
    assert f"{second.name}/SingleStream-performance, 2026-02-01" in text and f"{first.name}/" not in text


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"hashes": {"manifest": None, "library": "0" * 64}}, "data set"),
        ({"versions": {"commit": "0" * 40}}, "commit of LoadGrid"),
        ({"loadgen": {"sha256": "0" * 64}}, "LoadGen"),
    ],
)
def test_a_mix_in_one_cell_is_refused(tmp_path: Path, fields: dict[str, Any], what: str) -> None:
    run = made_run(tmp_path / "runs")
    folder = run / "SingleStream-accuracy"
    if hashes := fields.get("hashes"):
        hashes["manifest"] = read_record(folder / RECORD).hashes["manifest"]
    rerecord(folder, **fields)
    assert f"resnet SingleStream: the tests do not have the same {what}" in refusal(tmp_path, run)


def test_tests_of_different_manifests_are_refused(tmp_path: Path) -> None:
    first = made_run(tmp_path / "runs", tests=("performance",))
    second = made_run(tmp_path / "more", tests=("accuracy",), name="other")
    assert "do not have the same manifest" in refusal(tmp_path, first, second)


def test_compliance_that_was_verified_against_another_run_is_refused(tmp_path: Path) -> None:
    first = made_run(tmp_path / "runs")
    second = made_run(
        tmp_path / "again", tests=("performance", "accuracy"), started="2026-02-01T00:00:00+0000"
    )
    assert "was verified against the tests of its own run" in refusal(tmp_path, first, second)


@pytest.mark.parametrize(
    ("what", "value"), [("round_name", "v1.1"), ("division", "open"), ("suite", "datacenter,edge")]
)
def test_one_tree_is_of_one_round_division_and_suite(tmp_path: Path, what: str, value: str) -> None:
    first = made_run(tmp_path / "runs")
    second = made_run(tmp_path / "more", **{what: value})  # type: ignore[arg-type]
    assert f"the records are of several {what.removesuffix('_name')}s" in refusal(tmp_path, first, second)


def test_all_results_of_a_system_are_of_one_framework(tmp_path: Path) -> None:
    first = made_run(tmp_path / "runs")
    second = made_run(tmp_path / "more", benchmark="bert-99")
    worker = read_record(second / "SingleStream-accuracy" / RECORD).workers[0]
    other = worker.model_copy(update={"facts": {**worker.facts, "engine": "onnx"}})
    for folder in second.iterdir():
        if folder.is_dir():
            rerecord(folder, workers=[other])
    assert "do not have the same framework" in refusal(tmp_path, first, second)


@pytest.mark.parametrize("lacking", ["performance", "accuracy"])
def test_a_result_needs_both_tests(tmp_path: Path, lacking: str) -> None:
    run = made_run(tmp_path / "runs")
    rerecord(run / f"SingleStream-{lacking}", status="failed", reason="the disk was full")
    text = refusal(tmp_path, run)
    assert f"resnet SingleStream: no finished {lacking} test" in text and "the disk was full" in text


def test_a_probe_is_never_taken_however_new_it_is(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    probe = made_run(tmp_path / "probes", tests=("performance",), started="2026-02-01T00:00:00+0000")
    probe = probe.rename(probe.with_name("made-peak-20260201-000000"))
    why = f"{PROBE.rule}: {PROBE.why} [{PROBE.source}]"
    rerecord(probe / "SingleStream-performance", official=False, unofficial_because=[why])
    built = build(tmp_path, tmp_path / "runs", tmp_path / "probes")
    assert f"{probe.name}/SingleStream-performance: a probe of loadgrid peak" in built.left_out
    text = (built.root / "closed/ACME/results/sys-1/resnet50/SingleStream/README.md").read_text()
    assert run.name in text and probe.name not in text


def test_a_compliance_test_without_a_verdict_is_left_out_and_missing(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    folder = run / "SingleStream-TEST01"
    audit = read_record(folder / RECORD).audit
    assert audit is not None
    rerecord(folder, audit=audit.model_copy(update={"passed": None, "reason": "not verified: no log"}))
    built = build(tmp_path, run)
    assert any("it has no verdict (not verified: no log)" in line for line in built.left_out)
    assert "resnet SingleStream: TEST01 (`loadgrid run --compliance`)" in built.missing


# What must be told


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"facts": {"retrainig": "No"}}, "retrainig: no field"),
        ({"facts": {"bert-99.retraining": "No"}}, "bert-99.retraining: no field"),
        ({"models": {"": "tinynet"}}, "the closed division has the reference's models only"),
        ({"implementation": "my code"}, "the implementation 'my code'"),
        ({"submitter": "../ACME"}, "the submitter '../ACME'"),
        ({"submitter": ".ACME"}, "the submitter '.ACME'"),
        ({"status": "soon"}, "status"),
        ({"code": Path("nowhere")}, "--code nowhere is no folder"),
        ({"calibration": Path("nowhere")}, "--calibration nowhere is no file"),
    ],
)
def test_wrong_words_are_told(tmp_path: Path, wishes: dict[str, Any], told: str) -> None:
    assert told in refusal(tmp_path, made_run(tmp_path / "runs"), **wishes)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"submitter": None}, "who submits?"),
        ({"division": "open"}, "division is 'open', but the records are of closed"),
        ({"system_type": "datacenter"}, "system_type is 'datacenter', but the records are of edge"),
        ({"framework": None}, "framework is missing"),
        ({"name": "my system"}, "the system's file 'my system'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    assert told in refusal(tmp_path, made_run(tmp_path / "runs"), system=values)


def test_what_no_record_says_is_asked_for_by_name(tmp_path: Path) -> None:
    onnx = "{{engine: onnx, model: {model}, weights: net.onnx}}"
    run = made_run(tmp_path / "runs", division="open", backend=onnx, model="resnet50")
    text = refusal(tmp_path, run, system={"division": "open"})
    assert "--fact retraining=..." in text and "--fact weight_data_types=..." in text
    assert "starting_weights_filename" not in text
    draft = build(tmp_path, run, system={"division": "open"}, draft=True)
    cell = draft.root / "open/ACME/results/DRAFT-sys-1/resnet50/SingleStream"
    assert json.loads((cell / "measurements.json").read_text())["retraining"] == "unknown (draft)"


@pytest.mark.parametrize("formats", ["int8", "fp16, INT8", "fp8", "nvfp4", "uint8"])
def test_quantised_weights_need_a_calibration_document(tmp_path: Path, formats: str) -> None:
    run = made_run(tmp_path / "runs")
    facts = {"weight_data_types": formats}
    assert "--calibration FILE" in refusal(tmp_path, run, facts=facts)
    document = tmp_path / "calibration.txt"
    document.write_text("= How we calibrated\n")
    built = build(tmp_path, run, facts=facts, calibration=document)
    told = built.root / "closed/ACME/documentation/calibration.adoc"
    assert told.read_text() == "= How we calibrated\n"


@pytest.mark.parametrize("formats", ["fp32", "fp16", "bf16"])
def test_weights_that_are_not_quantised_need_none(tmp_path: Path, formats: str) -> None:
    built = build(tmp_path, made_run(tmp_path / "runs"), facts={"weight_data_types": formats})
    told = (built.root / "closed/ACME/documentation/calibration.adoc").read_text()
    assert "No network of this submission was calibrated" in told and f" {formats}." in told


def test_inference_is_for_edge_and_needs_something_to_infer(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", ("Offline",), suite="datacenter", benchmark="3d-unet-99")
    system = {"system_type": "datacenter"}
    assert "in suite edge only" in refusal(tmp_path, run, system=system, infer=True)
    run = made_run(tmp_path / "more", ("Offline",))
    assert "nothing can be inferred" in refusal(tmp_path, run, infer=True)


def test_multistream_is_not_inferred_without_an_estimate(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    path = run / "SingleStream-performance" / DETAIL
    few = '"early_stopping_latency_ms", "value": 0'  # what LoadGen writes below 662 queries
    path.write_text(path.read_text().replace('"early_stopping_latency_ms", "value": 1200000', few))
    rerecord(path.parent)
    built = build(tmp_path, run, infer=True)
    assert [cell.scenario for cell in built.cells] == ["SingleStream", "Offline"]
    assert built.missing == ("resnet: scenario MultiStream is required in suite edge",)


def test_code_with_links_blanks_or_large_files_is_refused(tmp_path: Path) -> None:
    run, own = made_run(tmp_path / "runs"), tmp_path / "own"
    (own / "deep").mkdir(parents=True)
    (own / "deep/two words.py").write_text("x")
    assert "two words.py has a blank" in refusal(tmp_path, run, code=own)
    (own / "deep/two words.py").rename(own / "one.py")
    (own / "link.py").symlink_to(run / MANIFEST)
    assert "link.py is a link" in refusal(tmp_path, run, code=own)
    (own / "link.py").unlink()
    with open(own / "large.bin", "wb") as file:
        file.truncate(50_000_000)
    assert "large.bin has 50000000 bytes or more" in refusal(tmp_path, run, code=own)


# Where it is written


def test_a_folder_with_anything_in_it_is_not_written_to(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    (tmp_path / "tree").mkdir()
    build(tmp_path, run)  # an empty one is fine
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tree").rglob("*")}
    assert "is not empty" in refusal(tmp_path, run)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "tree").rglob("*")}


def test_what_a_killed_try_left_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "tree.partial").mkdir()
    assert "tree.partial is left of a try" in refusal(tmp_path, made_run(tmp_path / "runs"))
    assert (tmp_path / "tree.partial").is_dir()


def test_a_fault_while_writing_leaves_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.submission.build.code_readme", full)
    run = made_run(tmp_path / "runs", entries=400)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path, run)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "sys-1.json"] == before


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_any_bytes_as_a_record_are_one_message(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / RECORD).write_bytes(raw)
    with pytest.raises((SubmitError, RecordError)):
        submit([folder], folder / "system.json", folder / "tree")


@given(st.text(max_size=20))
@settings(max_examples=50)
def test_no_name_leaves_its_folder(name: str) -> None:
    if SAFE_NAME.fullmatch(name):
        assert Path(name).name == name and not name.startswith(".") and " " not in name
