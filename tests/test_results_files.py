"""`loadgrid results`: the CSV, the JSON and the command."""

from __future__ import annotations

import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Done

from orchestrator.cli import app
from orchestrator.results.gather import gather
from orchestrator.results.table import as_csv, as_json, five_digits, number_shown
from tests import made_results

TIME_BUDGET_S = 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_results.round_of_v1_0(tmp_path_factory.mktemp("trees") / "inference_results_v1.0")


@pytest.mark.parametrize(
    ("figure", "told"),
    [("76.456", "76.456"), ("44.454250", "44.454"), ("0.861665", "0.86166"), ("0.861675", "0.86168"),
     ("23217939", "23217939"), ("100.0", "100.0")],
)  # fmt: skip
def test_accuracy_is_shown_to_five_figures_half_to_even(figure: str, told: str) -> None:
    assert five_digits(figure) == told


def test_numbers_are_shown_with_thousands_apart_and_as_many_decimals_as_tell_something() -> None:
    shown = [number_shown(value) for value in (259993.64, 304876.0, 3.03682, 0.497828)]
    assert shown == ["259,993.64", "304,876", "3.037", "0.4978"]


def loadgrid(*words: str) -> Done:
    return CliRunner().invoke(app, ["results", *words], env={"COLUMNS": "120"})


def test_the_csv_has_a_line_for_each_row_and_no_cell_that_is_a_formula(tree: Path, tmp_path: Path) -> None:
    table = list(csv.DictReader(io.StringIO(as_csv(gather([tree])))))
    assert [line["System"] for line in table] == ["Big Box", "big", "big", "small", "big", "big"]
    big = table[0]
    assert big["resnet Offline (samples/s)"] == "304876" and big["resnet Offline accuracy"] == "acc 76.456"
    assert big["resnet Offline power"] == "3200.5 W" and big["bert-99 Offline (samples/s)"] == "25000.5"
    assert big["resnet SingleStream (ms)"] == "" and big["Accelerators"] == "16"
    assert table[3]["Remarks"] == "resnet50 Offline: inferred from SingleStream"
    evil = tmp_path / "closed" / "=HYPERLINK(1)"
    made_results.system(evil, "box", system_name='@SUM(1), "quoted"\n', framework="+1", hw_notes="-2")
    made_results.result(evil, "box/resnet50/Offline", 10.5)
    (line,) = csv.DictReader(io.StringIO(as_csv(gather([tmp_path], "v1.0"))))
    assert line["Submitter"] == "'=HYPERLINK(1)" and line["System"] == '\'@SUM(1), "quoted"'
    assert (line["Software"], line["Notes"]) == ("'+1", "'-2")


def test_the_json_has_the_documented_fields(tree: Path) -> None:
    told = json.loads(as_json(gather([tree])))
    assert (told["schema"], told["remarks"]) == ("loadgrid-results-1", [])
    row, one = told["rows"][0], told["rows"][0]["results"][-1]
    names = "round suite division category submitter system system_id nodes processor processors_per_node"
    names += " processors processor_cores accelerator accelerators_per_node accelerators software"
    names += " operating_system model_used"
    assert list(row) == [*names.split(), "notes", "details", "code", "results", "remarks"]
    fields = "benchmark model scenario value unit valid metric key invalid_value inferred_from accuracy"
    assert list(one) == [*fields.split(), "weight_data_types", "location", "power", "remarks"]


def test_the_command_writes_all_three_and_shows_the_table_without_them(tree: Path, tmp_path: Path) -> None:
    names = ["out.csv", "out.json", "out.html"]
    options = [word for name in names for word in (f"--{name[4:]}", str(tmp_path / name))]
    done = loadgrid(str(tree), *options)
    assert done.exit_code == 0 and all(f"{name}: 6 rows" in done.stdout for name in names)
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")
    shown = loadgrid(str(tree / "closed" / "Acme"))
    assert (
        "resnet (resnet50) Offline: 304,876 samples/s, 3,200.50 W" in shown.stdout
        and "16 x A100" in shown.stdout
    )


def test_the_command_writes_to_where_a_persons_link_leads_and_into_their_pipe(
    tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.csv").symlink_to("kept.csv")
    reading, writing = os.pipe()
    words = [str(tree), "--csv", str(tmp_path / "out.csv"), "--json", f"/proc/self/fd/{writing}"]
    with open(reading, "rb") as pipe, ThreadPoolExecutor(1) as threads:
        read = threads.submit(pipe.read)
        done = loadgrid(*words)
        os.close(writing)
        assert done.exit_code == 0 and json.loads(read.result(10))["schema"] == "loadgrid-results-1"
    assert (tmp_path / "out.csv").is_symlink() and (tmp_path / "kept.csv").read_text().count("\n") > 6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere is not there"),
        ([str(Path(__file__).parent), "--round", "first"], "is not one of v0.5"),
        ([".", "--base-url", "javascript:alert(1)"], "http"),
        ([".", "--csv", "no/such/folder.csv"], "no/such is not a folder"),
    ],
)
def test_wrong_words_of_the_command_are_one_message(words: list[str], told: str) -> None:
    done = loadgrid(*words)
    assert done.exit_code == 2 and told in " ".join(done.output.replace("│", " ").split())
