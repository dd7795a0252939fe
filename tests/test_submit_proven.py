"""`loadgrid submit` trusts no record: verdict, figure, accuracy, reasons and system beside what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.paths import ACCURACY_TXT, DETAIL, RECORD, VERIFY_PERFORMANCE
from orchestrator.record import LossRecord, Record, read_record
from orchestrator.submission.build import Built, SubmitError, Wishes, submit
from tests.made_runs import made_run, made_system, rerecord

TIME_BUDGET_S = 30

PERFORMANCE, ACCURACY, AUDIT = (f"SingleStream-{test}" for test in ("performance", "accuracy", "TEST01"))


def build(folder: Path, run: Path, system: dict[str, Any] | None = None, **wishes: Any) -> Built:
    return submit([run], made_system(folder, **(system or {})), folder / "tree", Wishes(**wishes))


def refusal(folder: Path, run: Path, system: dict[str, Any] | None = None) -> str:
    with pytest.raises(SubmitError) as error:
        build(folder, run, system)
    assert not (folder / "tree").exists()
    return str(error.value)


def of(run: Path, test: str) -> Record:
    return read_record(run / test / RECORD)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    rerecord(path.parent)


def test_an_accuracy_that_accuracy_txt_does_not_have_is_refused_with_both_values(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    score = of(run, ACCURACY).accuracy
    assert score is not None
    rerecord(run / ACCURACY, accuracy=score.model_copy(update={"value": 99.5}))
    text = refusal(tmp_path, run)
    assert "the accuracy is 99.5 percent, in accuracy.txt it is 76.5" in text


@pytest.mark.parametrize("changed", [{"target": 10.0}, {"reached": False}])
def test_a_target_of_the_records_own_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    run = made_run(tmp_path / "runs")
    score = of(run, ACCURACY).accuracy
    assert score is not None
    rerecord(run / ACCURACY, accuracy=score.model_copy(update=changed))
    assert "the target" in refusal(tmp_path, run)


def test_a_score_in_no_form_of_the_round_is_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    rewrite(run / ACCURACY / ACCURACY_TXT, "accuracy=76.5%", "top-1: 76.5")
    assert "accuracy.txt has none in its form" in refusal(tmp_path, run)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"VALID"', '"INVALID"', f"the verdict is VALID, in {DETAIL} it is INVALID"),
        ("910000", "110000", "is 0.91 ms, in mlperf_log_detail.txt it is 0.11 ms"),
    ],
)
def test_a_verdict_or_a_figure_that_the_log_does_not_have_is_refused_with_both(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    run = made_run(tmp_path / "runs")
    rewrite(run / PERFORMANCE / DETAIL, old, new)
    text = refusal(tmp_path, run)
    assert told in text and str(run / PERFORMANCE / RECORD) in text


def test_a_compliance_test_that_did_not_pass_is_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    rewrite(run / AUDIT / VERIFY_PERFORMANCE, "TEST PASS", "TEST FAIL")
    assert "TEST01 passed, and verify_performance.txt has no TEST PASS" in refusal(tmp_path, run)


LOSS = LossRecord(worker="worker-0", at_s=1.0, reason="it died", moved=3)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"losses": [LOSS]}, "loss: worker worker-0 was lost (it died)"),
        ({"worker_differences": ["torch differs"]}, "workers: torch differs"),
        ({"payload_mode": "value"}, "payload: the record says value"),
        ({"index_approval": "me"}, "approved: me"),
        ({"versions": {"commit": None}}, "its commit is not known"),
        ({"hashes": {"library": "0" * 64}}, "data set: the prepared data set does not have the hash"),
    ],
)
def test_a_record_that_calls_itself_official_by_hand_is_refused_and_drafted(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    run = made_run(tmp_path / "runs")
    manifest = of(run, PERFORMANCE).hashes["manifest"]
    if "hashes" in changed:
        changed = {"hashes": {**changed["hashes"], "manifest": manifest}}
    for folder in run.iterdir():
        if folder.is_dir():
            rerecord(folder, **changed)
    assert told in refusal(tmp_path, run)
    built = build(tmp_path, run, draft=True)
    assert any(told in reason for reason in built.draft_because)
    cell = built.root / "closed/ACME/results/DRAFT-sys-1/resnet50/SingleStream"
    assert told in (cell / "README.md").read_text()


def test_rules_that_the_manifest_breaks_are_seen_whatever_the_record_says(tmp_path: Path) -> None:
    echo = "{{engine: echo}}"
    run = made_run(tmp_path / "runs", backend=echo)
    facts = {"weight_data_types": "none", "weight_transformations": "none"}
    with pytest.raises(SubmitError, match="engine echo computes nothing"):
        build(tmp_path, run, facts=facts)


def test_index_to_several_hosts_needs_an_approval(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    on(run, ("node-a", "node-b"))
    assert "payload: index to other hosts (node-a, node-b)" in refusal(
        tmp_path, run, {"number_of_nodes": "2"}
    )


def on(run: Path, nodes: tuple[str, ...], test: str = "*", device: str = "NVIDIA H100") -> None:
    for folder in run.glob(f"SingleStream-{test}"):
        worker = read_record(folder / RECORD).workers[0]
        workers = [
            worker.model_copy(update={"name": f"w{i}", "node": node, "device": device})
            for i, node in enumerate(nodes)
        ]
        rerecord(folder, workers=workers)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"number_of_nodes": "4"}, "number_of_nodes is 4, but the workers of"),
        ({"accelerators_per_node": "0"}, "accelerators_per_node is 0, but"),
    ],
)
def test_a_system_that_the_records_contradict_is_refused_and_drafted_with_a_remark(
    tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    run = made_run(tmp_path / "runs")
    assert told in refusal(tmp_path, run, values)
    built = build(tmp_path, run, values, draft=True)
    assert any(told in remark for remark in built.remarks)


def test_what_looks_odd_beside_the_records_is_a_remark(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    on(run, ("node-b", "node-b"), "accuracy")
    values = {"accelerators_per_node": "16", "accelerator_model_name": "TPU v9"}
    remarks = " | ".join(build(tmp_path, run, values).remarks)
    for told in (
        "1 x 16 accelerators are described",
        'does not name the device of made-20260101-000000/SingleStream-performance, "NVIDIA H100"',
        "SingleStream-accuracy ran on node-b",
        "SingleStream-accuracy had 2 workers",
    ):
        assert told in remarks


def test_the_system_of_the_records_has_no_remark(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    remarks = build(tmp_path, run, {"accelerator_model_name": "NVIDIA H100-SXM-80GB"}).remarks
    assert [remark for remark in remarks if "accelerator" in remark or "node" in remark] == []


def test_what_failed_in_a_draft_is_missing(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", official=False, unofficial_because=["tried"])
    rewrite(run / PERFORMANCE / DETAIL, '"VALID"', '"INVALID"')
    result = of(run, PERFORMANCE).result.model_copy(update={"valid": False})
    rerecord(run / PERFORMANCE, result=result)
    rewrite(run / ACCURACY / ACCURACY_TXT, "76.5", "70.5")
    score, audit = of(run, ACCURACY).accuracy, of(run, AUDIT).audit
    assert score is not None and audit is not None
    rerecord(run / ACCURACY, accuracy=score.model_copy(update={"value": 70.5, "reached": False}))
    rerecord(run / AUDIT, audit=audit.model_copy(update={"passed": False, "reason": "too fast"}))
    missing = build(tmp_path, run, draft=True).missing
    assert "resnet SingleStream: a VALID performance test (LoadGen's verdict is not VALID)" in missing
    assert "resnet SingleStream: a TEST01 that passes (too fast)" in missing
    assert any("(it is 70.5)" in text for text in missing)
