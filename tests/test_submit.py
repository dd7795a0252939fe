"""`loadgrid submit`: what lies where in a round's tree, and what its files say. Logs and scores are stubs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from orchestrator.paths import ACCURACY_LOG, BASELINE_TXT, COMPLIANCE_TXT
from orchestrator.provenance import code_sha256
from orchestrator.record import read_record
from orchestrator.rules import load_round, round_names
from orchestrator.settings import attributes_of, table
from orchestrator.submission.build import Built, Wishes, submit
from orchestrator.submission.facts import INPUTS
from orchestrator.submission.layout import POWER_FILES
from orchestrator.submission.mlperf_conf import mlperf_conf
from orchestrator.submission.own_source import NOT_HERE
from tests.made_runs import made_run, made_system, rerecord
from workers.tasks import _TASKS

TIME_BUDGET_S = 60

LOGS = ("mlperf_log_detail.txt", "mlperf_log_summary.txt")
FACTS = {"retraining": "No", "input_data_types": "uint8"}


def build(folder: Path, *runs: Path, system: dict[str, Any] | None = None, **wishes: Any) -> Built:
    return submit(runs, made_system(folder, **(system or {})), folder / "tree", Wishes(**wishes))


def files_of(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def results(place: str, audits: dict[str, set[str]]) -> Iterator[str]:
    for log in LOGS:
        yield f"{place}/performance/run_1/{log}"
        yield f"{place}/accuracy/{log}"
    yield from (f"{place}/accuracy/accuracy.txt", f"{place}/accuracy/{ACCURACY_LOG}")
    for folder, own in audits.items():
        yield from (f"{folder}/{name}" for name in own)
        yield from (f"{folder}/performance/run_1/{log}" for log in LOGS)


TEST01 = {
    "verify_performance.txt",
    "verify_accuracy.txt",
    f"accuracy/{ACCURACY_LOG}",
    "accuracy/accuracy.txt",
}
VERIFIED = {"verify_performance.txt"}


def test_a_closed_tree_of_v6_1_has_every_file_of_a_result_in_its_folder(tmp_path: Path) -> None:
    scenarios = ("SingleStream", "MultiStream", "Offline")
    built = build(tmp_path, made_run(tmp_path / "runs", scenarios))
    base = "closed/ACME"
    wanted = {f"{base}/systems/sys-1.json", f"{base}/documentation/calibration.adoc"}
    wanted |= {f"{base}/src/resnet50/loadgrid/README.md"}
    for scenario in scenarios:
        place = f"{base}/results/sys-1/resnet50/{scenario}"
        wanted |= {f"{base}/src/resnet50/loadgrid/manifests/{scenario}.yaml"}
        wanted |= {
            f"{place}/{name}" for name in ("measurements.json", "README.md", "user.conf", "mlperf.conf")
        }
        wanted |= set(results(place, {f"{place}/TEST01": TEST01, f"{place}/TEST04": VERIFIED}))
    assert files_of(built.root) == wanted
    assert (built.missing, built.left_out, built.originals) == ((), (NOT_HERE,), None)
    assert [(cell.model, cell.scenario) for cell in built.cells] == [
        ("resnet50", s) for s in sorted(scenarios)
    ]


def test_a_closed_tree_of_v1_0_has_trees_of_its_own_for_measurements_compliance_and_code(
    tmp_path: Path,
) -> None:
    run = made_run(tmp_path / "runs", ("Server", "Offline"), round_name="v1.0", suite="datacenter")
    built = build(tmp_path, run, system={"round_name": "v1.0", "system_type": "datacenter"})
    base, wanted = "closed/ACME", set()
    for scenario in ("Server", "Offline"):
        cell = f"sys-1/resnet50/{scenario}"
        beside = ("README.md", "user.conf", "mlperf.conf", "calibration_process.adoc")
        names = (*beside, f"sys-1_loadgrid_{scenario}.json")
        wanted |= {f"{base}/measurements/{cell}/{name}" for name in names}
        own = f"{base}/compliance/{cell}"
        # The verdict on the pair lies with its second half, and the tree wants it with the first.
        audits = {f"{own}/TEST01": TEST01, f"{own}/TEST04-A": VERIFIED, f"{own}/TEST04-B": set()}
        wanted |= set(results(f"{base}/results/{cell}", {**audits, f"{own}/TEST05": VERIFIED}))
        wanted |= {f"{base}/code/resnet50/loadgrid/manifests/{scenario}.yaml"}
    wanted |= {f"{base}/code/resnet50/loadgrid/README.md", f"{base}/systems/sys-1.json"}
    assert files_of(built.root) == wanted | {f"{base}/calibration.md"}
    assert built.missing == ()


@pytest.mark.parametrize(
    ("benchmark", "folder"),
    [("resnet", "resnet50"), ("ssd-small", "ssd-mobilenet"), ("ssd-large", "ssd-resnet34"), ("rnnt", "rnnt"),
     ("bert-99", "bert-99"), ("3d-unet-99.9", "3d-unet-99.9")],
)  # fmt: skip
def test_folders_have_the_names_that_the_rules_list(tmp_path: Path, benchmark: str, folder: str) -> None:
    run = made_run(tmp_path / "runs", ("SingleStream",), round_name="v1.1", benchmark=benchmark)
    built = build(tmp_path, run, system={"round_name": "v1.1"}, facts=FACTS)
    assert [cell.model for cell in built.cells] == [folder]
    assert (built.root / f"closed/ACME/code/{folder}/loadgrid").is_dir()
    assert built.missing == (f"{benchmark}: scenario Offline is required in suite edge",)


def test_a_long_accuracy_log_is_cut_as_the_official_tool_does_and_kept_whole_beside_the_tree(
    tmp_path: Path,
) -> None:
    run = made_run(tmp_path / "runs", entries=400)
    whole = (run / "SingleStream-accuracy" / ACCURACY_LOG).read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    built = build(tmp_path, run)
    cell = built.root / "closed/ACME/results/sys-1/resnet50/SingleStream"
    # truncate_file of truncate_accuracy_log.py
    assert (cell / "accuracy" / ACCURACY_LOG).read_bytes() == whole[:4096] + b"\n\n...\n\n" + whole[-4096:]
    assert (cell / "accuracy/accuracy.txt").read_text().endswith(f"%\nhash={digest}\n")
    assert (cell / "TEST01/accuracy/accuracy.txt").read_text() == f"hash={digest}\n"
    assert built.originals == tmp_path / "tree.originals"
    assert (built.originals / f"{digest}.json").read_bytes() == whole
    listed = (built.originals / "sha256sums.txt").read_text().splitlines()
    places = [f"closed/ACME/results/sys-1/resnet50/SingleStream/{part}accuracy" for part in ("TEST01/", "")]
    assert listed == [f"{digest}  {digest}.json"]  # both logs are alike, so one file
    told = (built.originals / "places.txt").read_text().splitlines()
    assert told == [f"{digest}.json  {place}/{ACCURACY_LOG}" for place in places]


def test_the_scores_of_the_fallback_lie_beside_the_answers_of_test01(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    folder = run / "SingleStream-TEST01"
    for name in (BASELINE_TXT, COMPLIANCE_TXT):
        (folder / name).write_text("accuracy=76.5%\n")
    rerecord(folder)
    built = build(tmp_path, run)
    beside = built.root / "closed/ACME/results/sys-1/resnet50/SingleStream/TEST01/accuracy"
    assert {path.name for path in beside.iterdir()} == {
        ACCURACY_LOG, "accuracy.txt", BASELINE_TXT, COMPLIANCE_TXT,
    }  # fmt: skip


def test_power_folders_go_where_the_checkers_look(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    folder = run / "SingleStream-performance"
    for part, names in (("power", POWER_FILES), ("ranging", (*LOGS, "spl.txt")), (".", ("spl.txt",))):
        (folder / part).mkdir(exist_ok=True)
        for name in names:
            (folder / part / name).write_text("made by hand\n")
    rerecord(folder)
    built = build(tmp_path, run)
    performance = built.root / "closed/ACME/results/sys-1/resnet50/SingleStream/performance"
    wanted = {f"power/{name}" for name in POWER_FILES}
    wanted |= {f"{part}/{name}" for part in ("ranging", "run_1") for name in (*LOGS, "spl.txt")}
    assert files_of(performance) == wanted


def test_measurements_say_what_the_records_know_and_what_is_told(tmp_path: Path) -> None:
    facts = {"retraining": "said for all", "resnet.retraining": "said for resnet"}
    built = build(tmp_path, made_run(tmp_path / "runs"), facts=facts)
    cell = built.root / "closed/ACME/results/sys-1/resnet50/SingleStream"
    assert json.loads((cell / "measurements.json").read_text()) == {
        "input_data_types": "uint8",
        "retraining": "said for resnet",
        "starting_weights_filename": "net.pth",
        "weight_data_types": "fp16",
        "weight_transformations": "loaded into LoadGrid's PyTorch network resnet50, cast to fp16",
    }


def test_the_readme_tells_how_to_repeat_the_run(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs")
    built = build(tmp_path, run)
    cell = built.root / "closed/ACME/results/sys-1/resnet50/SingleStream"
    text = (cell / "README.md").read_text()
    manifest = (run / "manifest.yaml").read_text()
    for said in (
        manifest, "f" * 40, "loadgrid prepare manifest.yaml", "loadgrid run manifest.yaml --compliance",
        "d" * 64, "a" * 64, "0.91 ms (early-stopping estimate", "76.5 %", "torch | 2.8.0", "6.0.17",
        "NVIDIA H100", "ImageNet 2012 validation", "LoadGen's queries | read where they lie",
    ):  # fmt: skip
        assert said in text, said
    assert "DRAFT" not in text and str(tmp_path) not in text
    beside = built.root / "closed/ACME/src/resnet50/loadgrid"
    assert (beside / "manifests/SingleStream.yaml").read_text() == manifest
    assert "git checkout " + "f" * 40 in (beside / "README.md").read_text()


def test_the_input_types_that_we_tell_are_those_of_the_tasks() -> None:
    for task, dtype in INPUTS.items():
        spec = find_spec(_TASKS[task][0])
        assert spec is not None and spec.origin is not None
        # What a library's meta says, or the default of the option that it says it by.
        assert re.search(f'"dtype"[:,] "{dtype}"', Path(spec.origin).read_text()), task


# mlperf.conf

READ = """
import json, sys
import mlperf_loadgen as loadgen
answers = []
for case in json.load(open(sys.argv[1])):
    settings = loadgen.TestSettings()
    code = settings.FromConfig(case["conf"], case["model"], case["scenario"], 2)
    answers.append({"code": code, "seen": {name: getattr(settings, name) for name in case["names"]}})
print(json.dumps(answers))
"""


def test_loadgen_reads_our_mlperf_conf_to_the_settings_of_the_plan(tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = []
    expected = []
    for name in round_names():
        found, conf = load_round(name), tmp_path / f"{name}.conf"
        conf.write_text(mlperf_conf(found))
        for benchmark in found.benchmarks.values():
            for scenario in found.scenarios:
                words = found.conf_words(benchmark.name, scenario)
                known = {word: value for word, value in words.items() if word in table(found, scenario)}
                wanted = attributes_of(found, scenario, known)
                # LoadGen 6 has no MultiStream of a fixed interval, so no words of it.
                old = ("multi_stream_target_qps", "multi_stream_max_async_queries")
                wanted = {attribute: value for attribute, value in wanted.items() if attribute not in old}
                cases.append({
                    "conf": str(conf), "model": benchmark.conf_model_name, "scenario": scenario,
                    "names": list(wanted),
                })  # fmt: skip
                expected.append({"code": 0, "seen": wanted})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-c", READ, str(tmp_path / "cases.json")]
    told = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=60, env=dict(os.environ)
    )
    assert told.returncode == 0, told.stderr[-2000:]
    for case, seen, wanted_here in zip(cases, json.loads(told.stdout), expected, strict=True):
        assert seen == wanted_here, case


@pytest.mark.parametrize("round_name", round_names())
def test_our_mlperf_conf_has_the_seeds_that_old_loadgens_read_there(round_name: str) -> None:
    text = mlperf_conf(load_round(round_name))
    for seed, value in load_round(round_name).seeds.items():
        assert f"\n*.*.{seed} = {value}\n" in text
    assert len(text.splitlines()) == len(set(text.splitlines()) - {""}) + text.count("\n\n")


# Inference between scenarios


def test_edge_takes_offline_from_the_stream_in_v1_0(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", round_name="v1.0")
    built = build(tmp_path, run, system={"round_name": "v1.0"}, infer=True)
    assert [(c.scenario, c.inferred_from, c.result) for c in built.cells] == [
        ("SingleStream", None, "0.9 ms"), ("Offline", "SingleStream", "1250 samples/s"),
    ]  # fmt: skip
    assert built.missing == ()
    cell = "closed/ACME/{}/sys-1/resnet50/{}/"
    for part in ("results", "compliance"):
        copies = [
            files_of(built.root / cell.format(part, scenario)) for scenario in ("Offline", "SingleStream")
        ]
        assert copies[0] == copies[1]
    text = (built.root / cell.format("measurements", "Offline") / "README.md").read_text()
    assert "**Inferred from SingleStream.**" in text
    assert (built.root / cell.format("measurements", "Offline") / "sys-1_loadgrid_Offline.json").is_file()


def test_edge_takes_multistream_and_offline_from_the_stream_in_v6_1(tmp_path: Path) -> None:
    built = build(tmp_path, made_run(tmp_path / "runs"), infer=True)
    told = {cell.scenario: (cell.inferred_from, cell.result) for cell in built.cells}
    assert told == {
        "SingleStream": (None, "0.91 ms"),
        "MultiStream": ("SingleStream", "9.6 ms"),  # 8 x early_stopping_latency_ms
        "Offline": ("SingleStream", "1250 samples/s"),
    }


def test_offline_comes_from_multistream_where_there_is_one(tmp_path: Path) -> None:
    built = build(tmp_path, made_run(tmp_path / "runs", ("SingleStream", "MultiStream")), infer=True)
    told = {cell.scenario: (cell.inferred_from, cell.result) for cell in built.cells}
    assert told["Offline"] == ("MultiStream", "1600 samples/s")
    assert told["MultiStream"][0] is None


# Divisions and drafts


def test_a_model_of_its_own_has_its_name_and_a_mapping_in_open(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", division="open", model="tinynet")
    facts = {"retraining": "trained from scratch"}
    built = build(tmp_path, run, system={"division": "open"}, facts=facts, notes="a note", status="preview")
    base = built.root / "open/ACME"
    assert json.loads((base / "model_mapping.json").read_text()) == {"tinynet": "resnet"}
    assert (base / "results/sys-1/tinynet/SingleStream/measurements.json").is_file()
    told = json.loads((base / "systems/sys-1.json").read_text())
    assert (told["sw_notes"], told["status"]) == ("a note. Model used: resnet: tinynet", "preview")
    assert built.missing == ()


@pytest.mark.parametrize(
    ("used", "folder"), [("mobilenet-v3", "mobilenet-v3"), ("tinynet", "resnet50"), (None, "resnet50")]
)
def test_v1_x_has_a_models_own_name_where_its_checker_takes_it_for_the_benchmark(
    tmp_path: Path, used: str | None, folder: str
) -> None:
    run = made_run(tmp_path / "runs", division="open", round_name="v1.1")
    models = {"": used} if used else {}
    system = {"division": "open", "round_name": "v1.1"}
    built = build(tmp_path, run, system=system, facts={"retraining": "No"}, models=models)
    assert [cell.model for cell in built.cells] == [folder]
    assert not (built.root / "open/ACME/model_mapping.json").exists()
    told = json.loads((built.root / "open/ACME/systems/sys-1.json").read_text())
    assert told["sw_notes"] == (f"Model used: resnet: {used}" if used else "")


def test_the_network_division_has_its_place_and_a_statement_on_bandwidth(tmp_path: Path) -> None:
    run = made_run(
        tmp_path / "runs", ("Offline",), suite="datacenter", division="network", benchmark="3d-unet-99"
    )
    path = tmp_path / "path.txt"
    path.write_text("NIC to memory to accelerator.")
    system = {"division": "network", "system_type": "datacenter"}
    diagram = tmp_path / "network.md"
    diagram.write_text("# The network")
    built = build(tmp_path, run, system=system, data_path=path, documents=[diagram])
    assert (built.root / "network/ACME/documentation/network.md").read_text() == "# The network"
    assert (built.root / "network/ACME/results/sys-1/3d-unet-99/Offline/TEST01").is_dir()
    text = (built.root / "network/ACME/documentation/bandwidth.adoc").read_text()
    assert "NIC to memory to accelerator." in text and "|3d-unet-99 |Offline |5000" in text
    assert [line.partition(":")[0] for line in built.missing] == ["bandwidth"]  # no NICs were described


def test_a_draft_is_branded_in_its_paths_its_system_and_its_documents(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", official=False, unofficial_because=["min_duration: too short"])
    built = build(tmp_path, run, draft=True)
    assert (built.root / "DRAFT.md").read_text().startswith("# DRAFT, NOT A RESULT")
    assert built.system == "DRAFT-sys-1"
    told = json.loads((built.root / "closed/ACME/systems/DRAFT-sys-1.json").read_text())
    assert told["system_name"] == "DRAFT, NOT A RESULT: One node"
    assert told["sw_notes"] == "DRAFT, NOT A RESULT"
    cell = built.root / "closed/ACME/results/DRAFT-sys-1/resnet50/SingleStream"
    text = (cell / "README.md").read_text()
    assert text.startswith("**DRAFT, NOT A RESULT.") and "* min_duration: too short\n" in text
    assert [reason.partition(" [")[0] for reason in built.draft_because] == ["min_duration: too short"]


def test_the_users_own_code_is_copied_without_what_tools_leave(tmp_path: Path) -> None:
    own = tmp_path / "own"
    for name in ("kernel/fast.cu", "kernel/__init__.py", ".git/config", "__pycache__/x.pyc", ".env"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("x")
    built = build(tmp_path, made_run(tmp_path / "runs"), code=own, implementation="h100-fp16")
    place = built.root / "closed/ACME/src/resnet50/h100-fp16"
    assert files_of(place / "source") == {"kernel/fast.cu", "kernel/__init__.py"}
    assert {line.partition(":")[0] for line in built.left_out if line != NOT_HERE} == {
        f"{own}/.git", f"{own}/.env", f"{own}/__pycache__",
    }  # fmt: skip


@pytest.mark.parametrize("round_name", ["v1.1", "v6.1"])
def test_the_source_that_ran_is_in_the_tree_byte_for_byte(tmp_path: Path, round_name: str) -> None:
    run = made_run(tmp_path / "runs", round_name=round_name)
    for file in run.glob("*/record.json"):
        rerecord(file.parent, versions={**read_record(file).versions, "code": code_sha256()})
    built = build(tmp_path, run)
    assert NOT_HERE not in built.left_out
    place = built.root / "closed/ACME" / ("src" if round_name == "v6.1" else "code")
    assert code_sha256(place / "loadgrid") == code_sha256()
    assert (place / "loadgrid/orchestrator/rounds/v6.1.yaml").is_file()
    assert "`../../loadgrid`" in (place / "resnet50/loadgrid/README.md").read_text()
