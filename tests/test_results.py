"""`loadgrid results`: rows out of trees of every layout, against published figures; damaged trees."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results.gather import Gathered, gather
from orchestrator.results.reading import LINE_BYTES
from orchestrator.results.rows import NO_CATEGORY, NO_SUITE, Result, Row
from orchestrator.results.scores import scores
from orchestrator.results.table import as_csv, as_json
from orchestrator.results.trees import TreeError
from tests import made_logs, made_results

TIME_BUDGET_S = 30

SAMPLES = Path(__file__).resolve().parent.parent.parent / "shared" / "samples"


def found(gathered: Gathered) -> dict[tuple[str, str, str], Result]:
    """Results by suite, model and scenario of a tree with one system of each kind."""
    return {(row.suite, one.model, one.scenario): one for row in gathered.rows for one in row.results}


def only_row(root: Path, round_name: str = "v1.0") -> Row:
    (row,) = gather([root], round_name).rows
    return row


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_results.round_of_v1_0(tmp_path_factory.mktemp("trees") / "inference_results_v1.0")


def test_a_row_per_system_and_in_the_open_division_per_model_by_suite_division_and_category(
    tree: Path,
) -> None:
    rows = gather([tree]).rows
    told = [(*row.table, row.submitter, row.machine.name, row.model) for row in rows]
    assert told == [
        ("v1.0", "datacenter", "closed", "available", "Acme", "Big Box", ""),
        ("v1.0", "datacenter", "open", "available", "Acme", "big", "efficientnet-lite0"),
        ("v1.0", "datacenter", "open", "available", "Acme", "big", "mobilenet-v1-0.25"),
        ("v1.0", "edge", "closed", "preview", "Zeta", "small", ""),
        ("v1.0", "edge", "open", "available", "Acme", "big", "efficientnet-lite0"),
        ("v1.0", "edge", "open", "available", "Acme", "big", "mobilenet-v1-0.25"),
    ]


def test_a_result_has_figure_unit_accuracy_power_and_where_it_was_inferred_from(tree: Path) -> None:
    results = found(gather([tree]))
    offline = results["datacenter", "resnet50", "Offline"]
    assert (offline.benchmark, offline.value, offline.unit) == ("resnet", 304876.0, "samples/s")
    assert offline.accuracy == {"acc": "76.456"} and offline.valid and not offline.remarks
    assert offline.power is not None and (offline.power.value, offline.power.unit) == (3200.5, "W")
    assert offline.location == "closed/Acme/results/big/resnet50/Offline"
    server = results["datacenter", "resnet50", "Server"]
    assert (server.value, server.unit, server.power) == (259993.64, "queries/s", None)
    assert results["datacenter", "bert-99", "Offline"].accuracy == {"F1": "90.38"}
    stream = results["edge", "resnet50", "SingleStream"]
    assert (stream.value, stream.unit) == (3.03682, "ms")
    inferred = results["edge", "resnet50", "Offline"]
    assert (round(inferred.value or 0, 3), inferred.inferred_from) == (333.333, "SingleStream")
    many = results["edge", "resnet50", "MultiStream"]
    assert (many.value, many.unit) == (12, "streams")
    assert results["datacenter", "efficientnet-lite0", "Offline"].benchmark == "resnet"


def test_processors_and_accelerators_are_counted_over_all_nodes_and_a_dash_is_none(tree: Path) -> None:
    rows = {row.submitter: row for row in gather([tree]).rows if row.division == "closed"}
    big, small = rows["Acme"].machine, rows["Zeta"].machine
    assert (big.nodes, big.processors, big.accelerators, big.accelerators_per_node) == (2, 4, 16, 8)
    assert (small.accelerator, small.accelerators, small.notes) == ("", 0, "watercooled")


def test_links_are_paths_in_the_tree_or_under_a_base_url_and_only_of_what_is_there(tree: Path) -> None:
    here, there = gather([tree]), gather([tree], base_url="https://example.com/v1.0/")
    row = next(row for row in here.rows if row.model == "efficientnet-lite0")
    assert (row.details, row.code) == ("open/Acme/results/big", "open/Acme/code/efficientnet-lite0")
    (small,) = [row for row in there.rows if row.submitter == "Zeta"]
    assert (small.details, small.code) == ("https://example.com/v1.0/closed/Zeta/results/small", "")


@pytest.mark.parametrize("below", ["", "closed", "closed/Acme"])
def test_a_tree_may_be_a_repository_a_division_or_a_submitter(tree: Path, below: str) -> None:
    rows = gather([tree / below]).rows
    assert {row.submitter for row in rows} == ({"Acme"} if below.endswith("Acme") else {"Acme", "Zeta"})
    assert {row.round for row in rows} == {"v1.0"}
    assert any(one.location == "closed/Acme/results/big/resnet50/Offline" for r in rows for one in r.results)


def test_without_a_name_the_round_is_that_of_the_logs_and_is_remarked(tmp_path: Path) -> None:
    submission = tmp_path / "closed" / "Acme"
    made_results.system(submission, "box")
    made_results.result(submission, "box/resnet50/Offline", 10.5, version="1.1")
    gathered = gather([tmp_path])
    assert {row.round for row in gathered.rows} == {"v1.1"} and "LoadGen 1.1" in gathered.remarks[0]


@pytest.mark.parametrize(
    ("name", "told"),
    [("inference_results_v0.7", "v0.7"), ("submissions_inference_1_1", "v1.1"), ("v5.1", "v5.1"),
     ("my_v6.0_copy", "v6.0"), ("loadgrid_v1.2", "v1.0"), ("run_1_0", "v1.0"), ("v1.0.1", "v1.0")],
)  # fmt: skip
def test_a_folder_name_is_taken_for_a_round_only_if_there_may_be_such_a_round(
    tmp_path: Path, name: str, told: str
) -> None:
    submission = tmp_path / name / "closed" / "Acme"
    made_results.system(submission, "box")
    made_results.result(submission, "box/resnet50/Offline", 10.5)  # with the LoadGen of v1.0
    gathered = gather([tmp_path / name])
    assert gathered.rows[0].round == told
    assert bool(gathered.remarks) == (name in ("loadgrid_v1.2", "run_1_0", "v1.0.1"))


def test_of_five_server_runs_of_v0_7_the_lowest_counts_and_later_rounds_read_one(tmp_path: Path) -> None:
    submission = tmp_path / "closed" / "Acme"
    made_results.system(submission, "box")
    for number, value in enumerate([50.5, 40.25, 60.5, 45.5, 44.5], 1):
        made_results.result(submission, "box/resnet/Server", value, run=f"run_{number}")
    of_five = only_row(tmp_path, "v0.7").results[0]
    assert of_five.value == 40.25 and "lowest of 5 runs" in of_five.remarks[0]
    assert only_row(tmp_path, "v1.0").results[0].value == 50.5


def test_the_logs_of_v0_5_without_mllog_lines_are_read_and_the_system_has_no_suite(tmp_path: Path) -> None:
    submission = tmp_path / "inference_results_v0.5" / "closed" / "Acme"
    made_results.system(submission, "box", system_type=None)
    folder = submission / "results/box/resnet/Offline/performance/run_1"
    shown = made_logs.summary("Offline", "Samples per second: 1234.5")
    made_logs.write(folder, made_logs.detail_as_text(scenario="Offline"), shown)
    (row,) = gather([submission]).rows
    assert row.table == ("v0.5", NO_SUITE, "closed", "available")
    assert (row.results[0].value, row.results[0].unit) == (1234.5, "samples/s")


def test_since_v6_0_code_is_in_src_and_custom_models_are_named_by_the_submitter(tmp_path: Path) -> None:
    submission = tmp_path / "open" / "Acme"
    made_results.system(submission, "box", division="open")
    made_results.result(submission, "box/my-net/Offline", 10.5, version="6.0.17")
    (submission / "results/box/my-net/Offline/measurements.json").write_text('{"weight_data_types": "fp8"}')
    (submission / "model_mapping.json").write_text('{"my-net": "resnet50"}')
    (submission / "src").mkdir()
    row = only_row(tmp_path, "v6.1")
    (one,) = row.results
    assert (one.benchmark, one.model, row.model, one.weight_data_types) == (
        "resnet",
        "my-net",
        "my-net",
        "fp8",
    )
    assert row.code == "open/Acme/src"


# What is missing or damaged


def test_a_system_without_a_description_still_has_a_row_that_says_so(tmp_path: Path) -> None:
    made_results.result(tmp_path / "closed" / "Acme", "box/resnet50/Offline", 10.5)
    row = only_row(tmp_path)
    assert (row.suite, row.machine.category, row.machine.name) == (NO_SUITE, NO_CATEGORY, "box")
    assert row.remarks == ("no description of the system: there is no closed/Acme/systems/box.json",)
    assert row.results[0].value == 10.5


def test_an_invalid_test_is_no_result_but_is_told(tmp_path: Path) -> None:
    submission = tmp_path / "closed" / "Acme"
    made_results.system(submission, "box")
    made_results.result(submission, "box/resnet50/Offline", 10.5, result_validity="INVALID",
                        result_invalid_reason="Min duration not met")  # fmt: skip
    # The detail log's first verdict counts, which made_logs writes: so the verdict is changed in place.
    path = submission / "results/box/resnet50/Offline/performance/run_1/mlperf_log_detail.txt"
    path.write_text(path.read_text().replace('"value": "VALID"', '"value": "INVALID"'))
    (one,) = only_row(tmp_path).results
    assert (one.value, one.valid, one.invalid_value) == (None, False, 10.5)
    assert any("INVALID: Min duration not met" in remark for remark in one.remarks)


def test_what_is_missing_is_said_with_its_path_and_nothing_else_is_lost(tmp_path: Path) -> None:
    submission = tmp_path / "closed" / "Acme"
    made_results.system(submission, "box")
    made_results.result(submission, "box/resnet50/Server", 10.5)
    (submission / "results/box/bert-99/Offline").mkdir(parents=True)
    (submission / "results/box/rnnt/Offline/performance/run_1").mkdir(parents=True)
    (submission / "results/box/dlrm-99/Offline/accuracy/accuracy.txt").mkdir(parents=True)
    results = {one.model: one for one in only_row(tmp_path).results}
    assert results["resnet50"].value == 10.5 and not results["resnet50"].remarks
    assert any(
        "no closed/Acme/results/box/bert-99/Offline/performance" in r for r in results["bert-99"].remarks
    )
    assert any("no LoadGen logs here" in remark for remark in results["rnnt"].remarks)
    assert not any(str(tmp_path) in remark for one in results.values() for remark in one.remarks)
    assert any("accuracy.txt is not a file" in remark for remark in results["dlrm-99"].remarks)


def test_links_out_of_the_tree_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "box.json").write_text('{"system_name": "stolen"}')
    (secret / "accuracy.txt").write_text("accuracy=99.9%\n")
    root = tmp_path / "tree"
    folder = made_results.result(root / "closed" / "Acme", "box/resnet50/Offline", 10.5)
    (folder / "accuracy/accuracy.txt").unlink()
    (folder / "accuracy/accuracy.txt").symlink_to(secret / "accuracy.txt")
    (root / "closed/Acme/systems").symlink_to(secret)
    made_results.result(tmp_path / "closed" / "Other", "x/resnet50/Server", 99.5)
    (root / "closed/Acme/results/box/resnet50/Server").symlink_to(
        tmp_path / "closed/Other/results/x/resnet50/Server"
    )
    row = only_row(root)
    told = as_json(Gathered((row,), ()))
    assert "stolen" not in told and "99.9" not in told and "99.5" not in told
    assert told.count("leads out of the tree") >= 2


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("victim")
    made_results.system(root / "open" / "Acme", "box")
    made_results.result(root / "open" / "Acme", "box/own/Offline", 10.5)
    (root / "open" / "Acme" / "model_mapping.json").write_text("{}")
    return root


FILES = {
    "system": "systems/box.json",
    "mapping": "model_mapping.json",
    "accuracy": "results/box/own/Offline/accuracy/accuracy.txt",
    "detail": "results/box/own/Offline/performance/run_1/mlperf_log_detail.txt",
    "summary": "results/box/own/Offline/performance/run_1/mlperf_log_summary.txt",
}


@settings(max_examples=25)
@given(junk=st.binary(max_size=300), where=st.sampled_from(sorted(FILES)))
def test_no_bytes_in_any_file_end_in_a_traceback(victim: Path, junk: bytes, where: str) -> None:
    path = victim / "open" / "Acme" / FILES[where]
    sound = path.read_bytes()
    path.write_bytes(junk)
    try:
        gathered = gather([victim], "v6.1")
    finally:
        path.write_bytes(sound)
    assert len(gathered.rows) == 1
    assert as_csv(gathered) and json.loads(as_json(gathered))


@pytest.mark.parametrize(
    "values",
    [
        {"number_of_nodes": None, "accelerators_per_node": "eight"},
        {"status": 7, "system_type": ["edge"], "system_name": None, "framework": ["a", "b"]},
        {"status": "sold out", "system_type": "server", "number_of_nodes": -1},
        {"number_of_nodes": True, "hw_notes": {"a": 1}, "host_processor_model_name": 5.5},
    ],
)
def test_odd_values_in_a_description_are_remarks(tmp_path: Path, values: dict[str, object]) -> None:
    submission = tmp_path / "closed" / "Acme"
    made_results.system(submission, "box", **values)
    made_results.result(submission, "box/resnet50/Offline", 10.5)
    gathered = gather([tmp_path], "v1.0")
    assert gathered.rows[0].results[0].value == 10.5
    assert json.loads(as_json(gathered)) and as_csv(gathered)
    assert gathered.rows[0].machine.nodes in (None, 2)


def test_a_path_that_is_no_tree_is_refused_with_what_would_be_one(tmp_path: Path) -> None:
    (tmp_path / "closed" / "Acme").mkdir(parents=True)
    for path, word in (
        (tmp_path, "SUBMITTER/results"),
        (tmp_path / "no", "not there"),
        (Path(__file__), "folder"),
    ):
        with pytest.raises(TreeError, match=word):
            gather([path], "v1.0")
    (tmp_path / "closed/Acme/results/box/resnet50/Offline").mkdir(parents=True)
    with pytest.raises(TreeError, match="give --round"):
        gather([tmp_path])


# Accuracy


@pytest.mark.parametrize(
    ("line", "benchmark", "told"),
    [
        ("accuracy=76.152%, good=38076, total=50000", "resnet", {"acc": "76.152"}),
        ("mAP=20.010%", "ssd-large", {"mAP": "20.010"}),
        ("Word Error Rate: 7.44%, accuracy=92.5545%", "rnnt", {"WER accuracy": "92.5545"}),
        ('{"exact_match": 83.1, "f1": 90.38}', "bert-99", {"F1": "90.38"}),
        ("AUC=80.166%.", "dlrm-99", {"AUC": "80.166"}),
        ("Accuracy: mean = 0.86161, kidney = 0.93", "3d-unet-99", {"DICE": "0.86161"}),
        ("{'Car': [56.2], 'Total': 54.25}", "pointpainting", {"mAP": "54.25"}),
        (
            "{'rouge1': 44.4, 'rouge2': 22.0, 'rougeL': 28.6, 'gen_len': 281, 'tokens_per_sample': 301.1}",
            "llama2-70b-99",
            {"ROUGE1": "44.4", "ROUGE2": "22.0", "ROUGEL": "28.6", "TOKENS_PER_SAMPLE": "301.1"},
        ),
        ("Accuracy Results: {'FID_SCORE': '23.9', 'CLIP_SCORE': '31.7'}", "stable-diffusion-xl",
         {"CLIP_SCORE": "31.7", "FID_SCORE": "23.9"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("round_name", ["v0.7", "v5.1"])
def test_accuracy_is_read_as_the_benchmarks_own_scripts_write_it(
    line: str, benchmark: str, told: dict[str, str], round_name: str
) -> None:
    assert scores(["loading", line, "hash=00ff", "accuracy=1%"], benchmark, round_name) == told


def test_of_a_text_without_a_figure_nothing_is_taken() -> None:
    assert scores(["accuracy=... of 5", "mean = 0.5", "AUC=1.2.3", "hash=00ff"], "resnet", "v5.1") == {}


def test_the_pattern_of_a_round_that_is_known_goes_before_the_general_ones() -> None:
    lines = ["mAP=12.5", "accuracy=76.1%", "accuracy=76.2%"]
    assert scores(lines, "resnet", "v1.0") == {"acc": "76.2"}
    assert scores(["'rouge1': 44.5"], "resnet", "v1.0") == {"ROUGE1": "44.5"}


def test_an_endless_line_is_cut_and_does_not_hide_what_follows(tmp_path: Path) -> None:
    text = "x" * (3 * LINE_BYTES) + "\naccuracy=76.5%"
    folder = made_results.result(tmp_path / "closed/Acme", "box/resnet50/Offline", 10.5, accuracy=text)
    assert folder.is_dir() and only_row(tmp_path).results[0].accuracy == {"acc": "76.5"}


# Published figures


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the published samples are not beside this checkout")
def test_every_published_sample_has_its_published_figure() -> None:
    rows = [row for name in ("v1.0", "v2.0") for row in gather([SAMPLES / name]).rows]
    results = {(row.round, one.location): one for row in rows for one in row.results}
    with open(SAMPLES / "MANIFEST.csv", newline="") as file:
        published = list(csv.DictReader(file))
    for sample in published:
        # Six digits are in the detail log, which checkers read since v1.0; the manifest has the summary's.
        location = os.path.dirname(sample["summary_path_under_round_dir"]).removesuffix("/performance/run_1")
        one = results[sample["round"], location]
        unit = sample["unit"].removesuffix(" p90").removesuffix(" p99").split(" ")[0]
        assert one.value == pytest.approx(float(sample["expected_metric"]), rel=1e-5), location
        assert (one.unit, one.valid) == (unit, True)
        assert one.accuracy
    assert len(published) == 8
