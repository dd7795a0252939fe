"""`loadgrid describe-system`: what it writes, asks for, keeps and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from orchestrator import cluster, system_command
from orchestrator.cli import app
from orchestrator.submission.data_files import GivenError, read_given
from orchestrator.submission.layout import layout_of
from orchestrator.submission.system import problems, read_system
from tests.made_hosts import eight_gpus, virtual

TIME_BUDGET_S = 15

ANSWERS = """
division: closed
submitter: ACME
status: available
system_type: datacenter
system_name: ACME server
host_memory_configuration: 2x 16 GB DDR5
host_storage_type: NVMe SSD
host_networking_topology: N/A
cooling: on   # the word, not a truth value
framework: PyTorch 2.8
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system_command, "read_host", virtual)
    monkeypatch.chdir(tmp_path)


def describe(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["describe-system", *arguments])


def written(name: str = "system.json") -> dict[str, Any]:
    return read_system(Path(name)).values


def test_what_no_tool_knows_is_asked_for_with_meaning_and_example() -> None:
    told = describe()
    assert told.exit_code == 1
    assert "12 fields to fill in" not in told.stdout and "10 fields to fill in: in system.json" in told.stdout
    for words in (
        "submitter",
        "the organisation, as its folder is named",
        "ACME",
        "Air-cooled",
        "may stay empty",
    ):
        assert words in told.stdout
    values = written()
    assert values["cooling"] == values["submitter"] == "" and values["accelerators_per_node"] == "0"
    assert set(json.loads(Path("system.hosts.json").read_text())) == {"found", "hosts"}


@pytest.mark.parametrize("round_name", ["v1.0", "v1.1", "v6.1"])
def test_with_answers_nothing_is_missing_in_any_round(round_name: str) -> None:
    Path("given.yaml").write_text(ANSWERS)
    told = describe("--given", "given.yaml", "--round", round_name, "--out", "new/dgx.json")
    assert told.exit_code == 0, told.stdout
    values = written("new/dgx.json")
    assert problems(values, layout_of(round_name), "closed", "acme") == []
    assert values["cooling"] == "on" and values["number_of_nodes"] == 1


def test_a_second_run_keeps_what_a_person_wrote_and_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("given.yaml").write_text(ANSWERS)
    describe("--given", "given.yaml")
    values = written()
    Path("system.json").write_text(json.dumps({**values, "host_processor_model_name": "mine", "other": "x"}))
    monkeypatch.setattr(system_command, "read_host", eight_gpus)
    told = describe()
    assert told.exit_code == 0
    after = written()
    assert after["host_processor_model_name"] == "mine" and after["other"] == "x"
    assert after["accelerator_model_name"] == "NVIDIA H100 80GB HBM3" and after["cooling"] == "on"
    assert 'kept "mine", found "Intel(R) Xeon(R) Platinum 8480C"' in told.stdout
    assert 'accelerator_model_name: was "N/A", now found "NVIDIA H100 80GB HBM3"' in told.stdout


def test_ecc_that_is_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    off = {**eight_gpus(), "gpus": eight_gpus()["gpus"].replace("Enabled, Enabled", "Disabled, Disabled")}
    monkeypatch.setattr(system_command, "read_host", lambda: off)
    Path("given.yaml").write_text(ANSWERS)
    told = describe("--given", "given.yaml")
    assert told.exit_code == 0 and "accelerator_memory_configuration says that ECC is off" in told.stdout


def test_the_network_division_gets_its_fields() -> None:
    Path("given.json").write_text('{"division": "network", "nic_sut": "ConnectX-6"}')
    told = describe("--given", "given.json")
    assert told.exit_code == 1 and "network_protocol" in told.stdout
    assert written()["is_network"] == "true" and written()["nic_sut"] == "ConnectX-6"


def test_every_node_of_a_cluster_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"name": name, "address": name, "facts": {**eight_gpus(), "host": name}} for name in ("a", "b")]
    left = []
    monkeypatch.setattr(cluster, "connect", lambda address: left.append(address))
    monkeypatch.setattr(cluster, "disconnect", lambda: left.append("left"))
    monkeypatch.setattr(cluster, "ask_nodes", lambda look, timeout_s: nodes)
    assert describe("--address", "10.0.0.1:6379").exit_code == 1
    assert written()["number_of_nodes"] == 2 and left == ["10.0.0.1:6379", "left"]
    del nodes[1]["facts"]
    nodes[1]["error"] = "no answer in 60 s"
    told = describe("--address", "auto", "--out", "other.json")
    assert isinstance(told.exception, cluster.ClusterError) and "node b (b)" in str(told.exception)
    assert left[-1] == "left" and not Path("other.json").exists()


def test_bad_files_are_refused_and_left_as_they_were() -> None:
    Path("given.yaml").write_text("submiter: ACME")
    told = describe("--given", "given.yaml")
    assert told.exit_code == 2 and "did you mean submitter?" in " ".join(told.stderr.split())
    assert describe("--given", "none.yaml").exit_code == 2 and not Path("system.json").exists()
    Path("system.json").write_text("{broken")
    assert describe().exit_code == 2 and Path("system.json").read_text() == "{broken"
    Path("folder.json").mkdir()
    assert describe("--out", "folder.json").exit_code == 2
    assert describe("--out", "given.yaml/x.json").exit_code == 2
    Path("ok.json").write_text("{}")
    Path("ok.hosts.json").write_text("[]")
    assert describe("--out", "ok.json").exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.yaml", b"- 1", "must hold fields"),
        ("a.yaml", b"a: [1]", "line 1: a field is one text"),
        ("a.yaml", b"a: 1\nb: {", "line 2 is not YAML"),
        ("a.yaml", b"a: 1\na: 2", "line 2: the field a stands here a second time"),
        ("a.yaml", b"a: \xff", "not text in UTF-8"),
        ("a.yaml", b"[\n" * 2000, "is not YAML"),
        ("a.yaml", b"a: *x", "is not YAML"),
        ("a.json", b"[]", "must hold fields"),
        ("a.json", b'{"a": true}', "neither a text nor a number"),
        ("a.json", b'{"a": {"b": 1}}', "neither a text nor a number"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'{"a": 1, "a": 2}', "a second time"),
        ("a.json", b" " * 1_000_001, "more than"),
    ],
)
def test_given_fields_that_cannot_be_used_are_said(name: str, content: bytes, says: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(GivenError, match=says) as error:
        read_given(Path(name))
    assert name in str(error.value)


def test_given_values_are_text_as_written() -> None:
    Path("a.yaml").write_text("a: yes\nb: 1e3\nc: 12:30\nd:\ne: 007\nf: 'x: y'\n")
    assert read_given(Path("a.yaml")) == {
        "a": "yes",
        "b": "1e3",
        "c": "12:30",
        "d": "",
        "e": "007",
        "f": "x: y",
    }
    Path("a.json").write_text('{"a": 8, "b": null, "c": 1.50}')
    assert read_given(Path("a.json")) == {"a": "8", "b": "", "c": "1.50"}
    Path("e.yaml").write_text("")
    assert read_given(Path("e.yaml")) == {}
    with pytest.raises(GivenError, match="cannot be read"):
        read_given(Path(os.curdir))


@settings(max_examples=40)
@given(st.binary(max_size=60), st.sampled_from(["fuzz.yaml", "fuzz.json"]))
def test_any_bytes_are_fields_or_a_message(content: bytes, name: str) -> None:
    Path(name).write_bytes(content)
    try:
        assert all(isinstance(value, str) for value in read_given(Path(name)).values())
    except GivenError as error:
        assert name in str(error)
