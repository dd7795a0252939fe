"""systems/SYSTEM.json: what each round's checker refuses, what it only logs, what the rules say besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.submission.layout import layout_of
from orchestrator.submission.system import (
    FIELDS,
    NETWORK_FIELDS,
    POWER_FIELDS,
    SystemError,
    SystemProblem,
    must_be_filled,
    problems,
    read_hosts,
    read_system,
    required,
)
from tests.made_hosts import filled

TIME_BUDGET_S = 10

OLD, OLDER, NEW = layout_of("v1.1"), layout_of("v1.0"), layout_of("v6.1")
NETWORK = {**dict.fromkeys(NETWORK_FIELDS, "1"), "is_network": "true", "division": "network"}


def fields(layout: Any) -> dict[str, Any]:
    return {field.name: field for field in required(layout)}


def found(layout: Any, folder: Any = "closed", without: Any = "", **more: Any) -> list[SystemProblem]:
    values = filled(fields(layout), **{"division": folder, "accelerator_model_name": "H200", **more})
    values.pop(without, None)
    return problems(values, layout, folder, "ACME")


def fatal(layout: Any, folder: Any = "closed", without: Any = "", **more: Any) -> set[str]:
    return {problem.field for problem in found(layout, folder, without, **more) if problem.fatal}


def test_the_fields_are_those_of_the_checkers() -> None:
    """33 before v5.0 (16 before v1.0), 35 since, 26 of which must say something; 13 for the network."""
    assert [len(required(layout_of(name))) for name in ("v0.7", "v1.0", "v1.1", "v5.1", "v6.1")] == [
        16,
        33,
        33,
        35,
        35,
    ]
    assert sum(must_be_filled(field, NEW) for field in required(NEW)) == 26
    assert not any(must_be_filled(field, OLD) for field in required(OLD))
    assert len(NETWORK_FIELDS) == 13 and len(POWER_FIELDS) == 14
    assert set(fields(NEW)) - set(fields(OLD)) == {"host_network_card_count", "system_type_detail"}


def test_a_filled_description_has_no_problem() -> None:
    for layout in (OLDER, OLD, NEW):
        assert found(layout) == []
    assert found(NEW, "network", **NETWORK) == []
    assert found(NEW, "open") == []


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.key_since])
def test_a_missing_field_is_fatal_where_the_round_demands_it(name: str) -> None:
    assert name in fatal(NEW, without=name)
    assert (name in fatal(OLD, without=name)) == (name in fields(OLD))


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.filled_since])
@pytest.mark.parametrize("empty", ["", 0])
def test_what_must_say_something_may_not_be_empty_or_the_number_0(name: str, empty: Any) -> None:
    told = [one for one in found(NEW, **{name: empty}) if one.fatal]
    assert {one.field for one in told} == {name}
    assert empty == "" or 'write the text "0"' in told[0].message or name in ("division", "submitter")


def test_no_accelerators_are_the_text_0() -> None:
    for layout in (OLD, NEW):
        assert fatal(layout, accelerators_per_node="0") == set()
    assert fatal(OLD, accelerators_per_node=0) == set()


def test_older_rounds_take_empty_texts_and_are_told_of_holes_in_the_table() -> None:
    assert (
        found(OLD, host_networking="", cooling="", accelerators_per_node="0", accelerator_model_name="") == []
    )
    assert [(one.field, one.fatal) for one in found(OLD, system_name="")] == [("system_name", False)]


@pytest.mark.parametrize("status", ["Available", "PREVIEW", "rdi"])
def test_a_status_counts_whatever_its_case(status: str) -> None:
    assert found(NEW, status=status) == found(OLD, status=status) == []


def test_a_status_or_system_type_of_another_spelling_is_fatal_and_the_near_one_told() -> None:
    for layout in (OLD, NEW):
        for name, wrong, near in (
            ("status", "availble", "available"),
            ("system_type", "Datacenter", "datacenter"),
            ("system_type", "datacenter, edge", "datacenter,edge"),
            ("system_type", "data center", "datacenter"),
        ):
            told = [one for one in found(layout, **{name: wrong}) if one.field == name]
            assert told[0].fatal and f'did you mean "{near}"' in told[0].message
        assert fatal(layout, status=None) == {"status"} and fatal(layout, system_type=["edge"]) == {
            "system_type"
        }
        assert found(layout, system_type="edge,datacenter") == []


def test_a_division_is_exact_before_v5_and_a_submitter_never_is() -> None:
    for layout, exact in ((OLD, True), (NEW, False)):
        own = {"division": "Closed", "submitter": "acme", "accelerator_model_name": "H200"}
        values = filled(fields(layout), **own)
        assert [one.field for one in problems(values, layout, "closed", "ACME")] == ["division"] * exact
        assert {one.field for one in problems(values, layout, "open", "B")} == {"division", "submitter"}
        assert problems({**values, "division": "closed"}, layout, "closed", None) == []


def test_counts_are_whole_numbers_as_numbers_or_text() -> None:
    assert found(NEW, number_of_nodes="2", host_processors_per_node="2", accelerators_per_node="16") == []
    for wrong, refused in (
        ("two", True),
        ("1.5", True),
        (2.5, False),
        (-1, False),
        (True, False),
        ("8 (GPU)", True),
    ):
        told = found(NEW, number_of_nodes=wrong)
        assert {one.field for one in told} == {"number_of_nodes"}
        assert any(one.fatal for one in told) == refused, wrong
        assert not any(one.fatal for one in found(OLD, number_of_nodes=wrong))
    assert found(NEW, number_of_nodes="0") and not found(NEW, host_processor_core_count="64; 96")


def test_texts_are_never_null_where_an_older_checker_joins_them() -> None:
    joined = {
        "system_name",
        "host_processor_model_name",
        "accelerator_model_name",
        "framework",
        "operating_system",
    }
    for name in fields(OLD):
        told = [one for one in found(OLD, **{name: None}) if one.field == name]
        assert told, name
        refused = joined | {"hw_notes", "status", "system_type", "submitter", "division"}
        assert any(one.fatal for one in told) == (name in refused), name
    assert fatal(OLD, accelerator_model_name=8) == {"accelerator_model_name"}
    assert fatal(NEW, accelerator_model_name=8) == set()


def test_notes_that_are_no_texts_end_the_newer_checker_only_when_it_joins_them() -> None:
    assert fatal(NEW, hw_notes=None, sw_notes="x") == set()
    assert fatal(NEW, hw_notes=["x"], sw_notes="x") == {"hw_notes"}
    assert fatal(NEW, hw_notes="", sw_notes=["x"]) == {"sw_notes"}
    assert fatal(OLD, sw_notes=None) == set() and fatal(OLD, sw_notes=["x"]) == {"sw_notes"}


@pytest.mark.parametrize("value", ["false", "true", True, False, "", None])
def test_is_network_must_be_absent_from_closed_and_open(value: Any) -> None:
    """The text "false" demands the 13 fields, a JSON boolean ends the checker; an empty one passes it."""
    for division in ("closed", "open"):
        told = found(NEW, division, is_network=value)
        assert "is_network" in {one.field for one in told}
        assert any(one.fatal for one in told) == (value not in ("", None))
    with_all = {**NETWORK, "division": "open", "is_network": value}
    assert ("is_network" in fatal(NEW, "open", **with_all)) == isinstance(value, bool)


def test_the_network_division_wants_the_text_true_and_its_fields_and_a_datacenter() -> None:
    for value in ("false", True, None, ""):
        assert fatal(NEW, "network", **{**NETWORK, "is_network": value}) >= {"is_network"}
    assert fatal(NEW, "network", without="is_network", **NETWORK) == {"is_network"}
    assert fatal(NEW, "network", without="nic_sut", **NETWORK) == {"nic_sut"}
    empty = found(NEW, "network", **{**NETWORK, "nic_sut": ""})
    assert [(one.field, one.fatal) for one in empty] == [("nic_sut", False)]
    edge = found(NEW, "network", **{**NETWORK, "system_type": "edge"})
    assert [(one.field, one.fatal) for one in edge] == [("system_type", False)]


def test_what_breaks_the_csv_is_told() -> None:
    for more in (
        {"system_name": 'a "big" one'},
        {"hw_notes": "two\nlines"},
        {"host_processor_core_count": "64 (A), 96 (B)"},
        {"cooling": "air\0"},
    ):
        for layout in (OLD, NEW):
            assert [(one.field, one.fatal) for one in found(layout, **more)] == [(next(iter(more)), False)]
    assert found(NEW, framework="TensorRT 10, CUDA 12", cooling='"air"') == []


@pytest.mark.parametrize("text", ["HBM3, ECC disabled", "ECC: off", "ECC is off", "non-ECC", "no ECC"])
def test_ecc_off_is_told_for_datacenter_systems(text: str) -> None:
    for layout in (OLD, NEW):
        told = found(layout, accelerator_memory_configuration=text)
        assert [(one.field, one.fatal) for one in told] == [("accelerator_memory_configuration", False)]
        assert found(layout, accelerator_memory_configuration=text, system_type="edge") == []
        for fine in ("ECC on", "HBM3, ECC enabled", "ECC state not reported", "Multi-bit ECC"):
            assert found(layout, accelerator_memory_configuration=fine) == []
    later = found(NEW, accelerator_memory_configuration="ECC enabled, ECC disabled after the next reset")
    assert len(later) == 1


def test_keys_that_an_older_checker_does_not_know_are_logged_with_the_near_one() -> None:
    told = found(OLD, host_network_card_count="1", accelerator_on_chip_memories="x")
    assert [(one.field, one.fatal, one.logged) for one in told] == [
        ("host_network_card_count", False, True),
        ("accelerator_on_chip_memories", False, True),
    ]
    assert "did you mean accelerator_on-chip_memories?" in told[1].message
    assert found(OLD, filesystem="ext4", network_speed_mbit="") == []
    assert found(NEW, anything="x") == []


def test_an_answer_that_is_none_is_told() -> None:
    for none in ("undefined", "TBD", "  ", "?"):
        assert [(one.field, one.fatal) for one in found(NEW, cooling=none)] == [("cooling", False)]
    assert found(NEW, cooling="N/A") == []


def test_a_description_is_read_and_its_repeated_fields_are_named(tmp_path: Path) -> None:
    path = tmp_path / "dgx.json"
    path.write_text('{"status": "rdi", "status": "available", "number_of_nodes": 2}')
    read = read_system(path)
    assert (read.name, read.values, read.repeated) == (
        "dgx", {"status": "available", "number_of_nodes": 2}, ("status",)
    )  # fmt: skip
    assert read_hosts(path) == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1 is not JSON"),
        (b"[1]", "must hold fields"),
        (b'{\n"a": }', "line 2 is not JSON"),
        (b'{"a": "\xff"}', "not text in UTF-8"),
        (b"[" * 100_000, "json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json"),
        (b" " * 1_000_001, "no description"),
    ],
)
def test_what_is_no_description_is_said_with_its_file(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(SystemError, match=says) as error:
        read_system(path)
    assert str(path) in str(error.value)


def test_folders_links_and_missing_files_are_no_descriptions(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    for name, says in ((".", "is no file"), ("none.json", "is not there"), ("link.json", "is a link")):
        with pytest.raises(SystemError, match=says):
            read_system(tmp_path / name)


def test_a_damaged_list_of_hosts_is_said(tmp_path: Path) -> None:
    for content in ("[]", "{}", '{"found": {}, "hosts": [1]}', '{"found": [], "hosts": []}'):
        (tmp_path / "x.hosts.json").write_text(content)
        with pytest.raises(SystemError, match="x.hosts.json"):
            read_hosts(tmp_path / "x.json")


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(
    st.dictionaries(st.sampled_from([*FIELDS, *NETWORK_FIELDS, "other"]), _ANY, max_size=6),
    st.sampled_from([OLD, NEW]),
)
def test_any_values_are_judged(values: dict[str, Any], layout: Any) -> None:
    base = filled(fields(layout)) if len(values) % 2 else {}
    told = problems({**base, **values}, layout, "closed", "ACME")
    assert json.dumps([one.message for one in told])
    assert all(one.field in {*base, *values, *fields(layout), *NETWORK_FIELDS} for one in told)
