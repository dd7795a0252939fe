"""Manifests: what good ones mean, and that every bad one is one message with file, line and field."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.manifest import (
    Manifest,
    ManifestError,
    error_at,
    load_manifest,
    manifest_schema,
    parse_manifest,
)
from tests.processes import PATIENCE

TIME_BUDGET_S = 15.0

GOOD = """\
round: v6.1
suite: edge
division: open
benchmark: resnet50
scenarios: [Offline, Server]
task:
  name: imagenet-photos
  path: photos
  count: 20
backend: {engine: torch, model: efficientnet-lite0, weights: w/lite0.pt, options: {depth: 3}}
workers: {count: 2}
dispatch:
  payload: index
loadgen:
  min_duration: 2000
  Server: {target_qps: 100}
"""


def _error(text: str | bytes) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text.encode() if isinstance(text, str) else text, "manifests/x.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("manifests/x.yaml")
    return caught.value


def test_a_good_manifest_is_read_with_its_bytes_lines_and_defaults(tmp_path: Path) -> None:
    file = tmp_path / "my run.yaml"
    file.write_text(GOOD)
    manifest = load_manifest(file)
    assert manifest.name == "my-run"
    assert manifest.benchmark == "resnet"
    assert manifest.scenarios == ("Offline", "Server")
    assert manifest.runs == ("performance", "accuracy")
    assert (manifest.path, manifest.raw) == (file, GOOD.encode())
    assert manifest.lines["dispatch.payload"] == 13
    assert manifest.lines["dispatch"] == 12
    assert manifest.dispatch.security == "curve"


def test_relative_paths_start_in_the_manifests_folder(tmp_path: Path) -> None:
    manifest = parse_manifest(GOOD.encode(), tmp_path / "x.yaml")
    assert manifest.task_options() == {"count": 20, "path": str(tmp_path / "photos")}
    backend = manifest.backend_options()
    assert backend["weights"] == str(tmp_path / "w" / "lite0.pt")
    assert (backend["depth"], backend["engine"]) == (3, "torch")
    assert "options" not in backend
    assert manifest.resolve("/data/x") == "/data/x"
    assert manifest.resolve("package:foolbox/data") == "package:foolbox/data"
    own = GOOD.replace("  min_duration: 2000", "  path: ../own")
    assert parse_manifest(own.encode(), tmp_path / "x.yaml").loadgen_folder() == str(tmp_path / "../own")


def test_a_scenarios_words_beat_the_words_for_every_scenario() -> None:
    text = GOOD.replace("Server: {target_qps: 100}", "Server: {target_qps: 100, min_duration: 5000}")
    manifest = parse_manifest(text.encode())
    assert manifest.conf_words("Server") == {"min_duration": 5000, "target_qps": 100.0}
    assert manifest.conf_words("Offline") == {"min_duration": 2000}


@pytest.mark.parametrize(
    ("division", "on_loss"), [("open", "reissue"), ("closed", "fail"), ("network", "fail")]
)
def test_only_the_open_division_goes_on_after_a_loss_by_default(division: str, on_loss: str) -> None:
    text = GOOD.replace("division: open", f"division: {division}")
    assert parse_manifest(text.encode()).on_loss == on_loss
    other = text.replace("  payload: index", "  on_loss: reissue")
    assert parse_manifest(other.encode()).on_loss == "reissue"


# What is replaced in GOOD, by what, the line and field of the message, and a piece of it.
BAD = [
    (
        "payload: index",
        "payload: indx",
        13,
        "dispatch.payload",
        'not one of index, value; did you mean "index"?',
    ),
    ("payload: index", "paylod: index", 13, "dispatch.paylod", 'did you mean "payload"?'),
    ("engine: torch", "engine: toch", 10, "backend.engine", 'did you mean "torch"?'),
    ("engine: torch, ", "", 10, "backend.engine", "is missing"),
    ("torch, model", "echo, model", 10, "backend.model", 'does nothing for engine "echo"; it is for torch'),
    ("engine: torch", "engine: torch, response_bytes: 4", 10, "backend.response_bytes", "it is for echo"),
    ("depth: 3", "weights: 3", 10, "backend.options.weights", "write it under backend"),
    ("qps: 100", "qps: -1", 16, "loadgen.Server.target_qps", "must be above 0, not -1"),
    ("qps: 100", "qps: 1.0e+30", 16, "loadgen.Server.target_qps", "must be at most 100000000"),
    ("qps: 100", "qps: .nan", 16, "loadgen.Server.target_qps", "finite"),
    ("qps: 100", "qps: -.inf", 16, "loadgen.Server.target_qps", "finite"),
    ("qps: 100", "qps: 1e999", 16, "loadgen.Server.target_qps", "finite"),
    ("qps: 100", 'qps: "100"', 16, "loadgen.Server.target_qps", 'must be a number, not "100"'),
    ("target_qps: 100", "target_latency: 7.5", 16, "loadgen.Server.target_latency", "whole number"),
    ("target_qps", "samples_per_query", 16, "loadgen.Server.samples_per_query", "it is one of MultiStream"),
    ("target_qps", "targt_qps", 16, "loadgen.Server.targt_qps", 'did you mean "target_qps"?'),
    ("target_qps", "qsl_rng_seed", 16, "loadgen.Server.qsl_rng_seed", "write it under loadgen"),
    ("min_duration", "target_qps", 15, "loadgen.target_qps", "write it under loadgen.MultiStream or"),
    (
        "Server: {",
        "MultiStream: {",
        16,
        "loadgen.MultiStream.target_qps",
        "not a word of MultiStream in round v6.1",
    ),
    ("Server: {", "Sever: {", 16, "loadgen.Sever", 'did you mean "Server"?'),
    ("min_duration: 2000", "min_duration: 1.5", 15, "loadgen.min_duration", "of milliseconds, not 1.5"),
    ("min_duration: 2000", "min_duration: 3s", 15, "loadgen.min_duration", 'of milliseconds, not "3s"'),
    ("min_duration: 2000", "min_query_count: true", 15, "loadgen.min_query_count", "whole number, not true"),
    (
        "min_duration: 2000",
        "min_duration: 9999999999",
        15,
        "loadgen.min_duration",
        "must be at most 604800000",
    ),
    ("min_duration: 2000", "print_timestamps: 2", 15, "loadgen.print_timestamps", "not one of 0, 1"),
    ("min_duration: 2000", "qsl_rng_seed: 18446744073709551616", 15, "loadgen.qsl_rng_seed", "at most"),
    ("round: v6.1", "round: V6.1", 1, "round", 'did you mean "v6.1"?'),
    ("round: v6.1", "round: 6.1", 1, "round", 'did you mean "v6.1"?'),
    ("round: v6.1", "round: null", 1, "round", "must be text"),
    ("resnet50", "resnet5", 4, "benchmark", 'did you mean "resnet50"?'),
    ("resnet50", "dlrm-99", 4, "benchmark", "is not one of resnet"),
    ("[Offline, Server]", "[Offline, Sever]", 5, "scenarios[1]", 'did you mean "Server"?'),
    ("[Offline, Server]", "[Offline, Offline]", 5, "scenarios[1]", "a second time"),
    ("[Offline, Server]", "[]", 5, "scenarios", "must not be empty"),
    ("[Offline, Server]", "Offline", 5, "scenarios", "must be a list"),
    (
        "suite: edge",
        "suite: edge\nsuite: edge",
        3,
        "",
        'key "suite" stands here a second time; the first is in line 2',
    ),
    ("suite: edge\n", "", 1, "suite", "is missing"),
    ("suite: edge", "suite: edge\nname: ..", 3, "name", "does not match"),
    ("suite: edge", "suite: edge\nname: a/b", 3, "name", "does not match"),
    ("suite: edge", "suite: edge\naccuracy_target: -1", 3, "accuracy_target", "at least 0"),
    ("division: open", "division: open\n1: x", 4, "", "a key must be a short text, 1 is not"),
    ("division: open", "division: open\n<<: {a: 1}", 4, "<<", "not a known key"),
    ("count: 20", "sha256: abc", 9, "task.sha256", "does not match"),
    ("name: imagenet-photos", "name: ../x", 7, "task.name", "does not match"),
    ("count: 20", "count: !!python/object/apply:os.system [x]", 9, "", "tag"),
    ("count: 20", "count: !mine 3", 9, "", "tag"),
    ("count: 2}", "count: 0}", 11, "workers.count", "must be at least 1, not 0"),
    ("count: 2}", "count: 2, num_cpus: 9e-5}", 11, "workers.num_cpus", "must be 0, or 0.0001 and more"),
    ("count: 2}", "count: 2, num_gpus: 1.5}", 11, "workers.num_gpus", "must be whole above 1"),
    ("count: 2}", "where: local, num_gpus: 1}", 11, "workers.num_gpus", "does nothing"),
    ("count: 2}", "- 2}", 11, "", "not YAML"),
    ("payload: index", "ports: [9000]", 13, "dispatch.ports[1]", "is missing"),
    ("payload: index", "ports: [9000, 8000]", 13, "dispatch.ports", "[lowest, highest]"),
    (
        "payload: index",
        "payload: value\n  index_approval: by WG",
        14,
        "dispatch.index_approval",
        "does nothing",
    ),
    ("  payload: index", "  - index", 12, "dispatch", "must be a mapping of fields, not a list"),
    ("payload: index", "listen: 'a b'", 13, "dispatch.listen", "does not match"),
    ("  payload: index", "  payload: *nobody", 13, "", "alias *nobody is not defined above"),
    ("  count: 20", "  count: &me [*me]", 9, "", "alias *me refers to itself"),
]


@pytest.mark.parametrize(("old", "new", "line", "field", "says"), BAD)
def test_bad_input_is_one_message_with_line_and_field(
    old: str, new: str, line: int, field: str, says: str
) -> None:
    assert old in GOOD
    error = _error(GOOD.replace(old, new, 1))
    assert (error.line, error.field) == (line, field), str(error)
    assert says in str(error)


def test_the_first_problem_of_the_file_is_told() -> None:
    error = _error(GOOD.replace("payload: index", "payload: x").replace("suite: edge", "suite: x"))
    assert (error.line, error.field) == (2, "suite")


def test_a_misspelt_field_is_told_before_the_missing_one() -> None:
    error = _error(GOOD.replace("suite: edge", "suit: edge"))
    assert (error.line, error.field) == (2, "suit")
    assert 'did you mean "suite"?' in str(error)


def test_what_shows_later_is_told_at_the_fields_line() -> None:
    manifest = parse_manifest(GOOD.encode(), "x.yaml")
    assert str(error_at(manifest, "task.path", "no photos there")) == "x.yaml:8: task.path: no photos there"
    assert (
        str(error_at(manifest, "workers.max_batch", "too many")) == "x.yaml:11: workers.max_batch: too many"
    )


def test_the_message_has_the_form_that_editors_understand() -> None:
    error = _error(GOOD.replace("payload: index", "payload: indx"))
    wanted = 'manifests/x.yaml:13: dispatch.payload: "indx" is not one of index, value; did you mean "index"?'
    assert str(error) == wanted


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty"),
        (b"---\n", "is empty"),
        (b"just text\n", "must be a mapping"),
        (b"{}\n", "is missing"),
        (b"\xff\xfe\x00a", "UTF-8"),
        (b"a: b\nc: \xe4\n", "UTF-8"),
        (b"a: \x00\n", "character"),
        (b"\x00" * 100, "character"),
        (b"a: [1, 2\nb: 3\n", "not YAML"),
        (b"a: b: c\n", "not YAML"),
        (b"a: 1\n---\nb: 2\n", "second document"),
        (b'a: "\\UFFFFFFFF"\n', "not YAML"),
        (b'a: "\\uD800"\n', "surrogate"),
        (b"a: " + b"9" * 5000 + b"\n", "a: is not a known key"),
        (b"[" * 5000, "nested deeper"),
        (b"- " * 5000, "nested deeper"),
        (b"a: 1\n" * 30000, "larger than 128 KiB"),
        (b"a: [" + b"1, " * 20000 + b"1]\n", "more than 10000 values"),
        (b"\xef\xbb\xbfround: v6.1\n", "is missing"),
    ],
)
def test_what_is_no_manifest_at_all_is_one_message(raw: bytes, says: str) -> None:
    assert says in str(_error(raw))


def test_billion_laughs_are_refused_before_anything_is_built() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 19)]
    started = time.monotonic()
    error = _error("\n".join(lines))
    assert "more than 10000 values with its aliases written out" in str(error)
    assert time.monotonic() - started < 1 * PATIENCE


def test_aliases_cannot_nest_deeper_than_written_text() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 40)]
    assert "nested deeper than 20 levels" in str(_error("\n".join(lines)))


def test_an_alias_is_as_good_as_what_it_stands_for() -> None:
    text = GOOD.replace("Server: {target_qps: 100}", "Server: &s {target_qps: 100}\n  Offline: *s")
    assert parse_manifest(text.encode()).loadgen.Offline.target_qps == 100


def test_yaml_words_that_surprise_stay_text() -> None:
    text = GOOD.replace("count: 20", "a: no\n  b: 010\n  c: 1:30\n  d: 1e3\n  e: 2026-01-01\n  f: 0x1F")
    options = parse_manifest(text.encode()).task.options
    assert options == {"a": "no", "b": 10, "c": "1:30", "d": 1000.0, "e": "2026-01-01", "f": 31}


def test_files_that_cannot_be_read_are_one_message(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(ManifestError, match=says):
            load_manifest(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest("a\0b")


def test_a_manifest_cannot_be_changed() -> None:
    manifest = parse_manifest(GOOD.encode())
    with pytest.raises(ValueError, match="frozen"):
        manifest.division = "closed"


def _properties(schema: Any, where: str = "") -> Any:
    if isinstance(schema, dict):
        for name, body in schema.get("properties", {}).items():
            yield f"{where}.{name}", body
        for key, value in schema.items():
            yield from _properties(value, f"{where}.{key}")


def test_every_field_of_the_schema_says_what_it_means() -> None:
    schema = manifest_schema()
    fields = list(_properties(schema))
    assert len(fields) > 100
    assert [where for where, body in fields if len(body.get("description", "")) < 10] == []
    assert "name" not in schema["required"]
    assert "resnet50" in schema["properties"]["benchmark"]["enum"]
    assert schema["properties"]["round"]["enum"] == ["v1.0", "v1.1", "v6.1"]
    assert schema["additionalProperties"] is False


def _outcome(raw: bytes) -> Manifest | ManifestError:
    try:
        return parse_manifest(raw, "x.yaml")
    except ManifestError as error:
        assert "\n" not in str(error)
        return error


QUICK = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
KEYS = st.sampled_from(
    [
        "round",
        "suite",
        "division",
        "task",
        "backend",
        "engine",
        "loadgen",
        "Server",
        "target_qps",
        "ports",
        "runs",
    ]
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["v6.1", "edge", "open", "resnet", "echo", "torch", "curve"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=6), inner, max_size=5)
    ),
    max_leaves=12,
)


@QUICK
@given(st.binary(max_size=200))
@example(b"&a a: *a")
@example(b"? ? ? a")
def test_any_bytes_give_a_manifest_or_a_manifest_error(raw: bytes) -> None:
    assert isinstance(_outcome(raw), Manifest | ManifestError)


@QUICK
@given(st.text(alphabet="{}[]&*!|>'\"%@`#:-?, \n\tab1.<~", max_size=60))
def test_any_yaml_like_text_gives_a_manifest_or_a_manifest_error(text: str) -> None:
    assert isinstance(_outcome(text.encode()), Manifest | ManifestError)


@QUICK
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 12), st.binary(max_size=6))
def test_a_damaged_manifest_gives_a_manifest_or_a_manifest_error(at: int, cut: int, put: bytes) -> None:
    raw = GOOD.encode()
    assert isinstance(_outcome(raw[:at] + put + raw[at + cut :]), Manifest | ManifestError)


@QUICK
@given(st.dictionaries(st.sampled_from(sorted(Manifest.model_fields)), VALUES, max_size=6))
def test_any_values_in_the_fields_give_a_manifest_or_a_manifest_error(values: dict[str, Any]) -> None:
    raw = yaml.safe_dump({**yaml.safe_load(GOOD), **values}, allow_unicode=True).encode()
    assert isinstance(_outcome(raw), Manifest | ManifestError)


@QUICK
@given(st.sampled_from(["task", "backend", "workers", "dispatch", "loadgen"]), st.data())
def test_any_value_in_a_sections_field_gives_a_manifest_or_a_manifest_error(section: str, data: Any) -> None:
    good = yaml.safe_load(GOOD)
    good[section][data.draw(st.sampled_from(manifest_fields_of(section)))] = data.draw(VALUES)
    raw = yaml.safe_dump(good, allow_unicode=True).encode()
    assert isinstance(_outcome(raw), Manifest | ManifestError)


@cache
def manifest_fields_of(section: str) -> list[str]:
    """The keys that a section of the schema knows, whatever the engine."""
    schema = manifest_schema()
    wanted = {
        "task": ["TaskSection"],
        "backend": ["EchoBackend", "TorchBackend", "OnnxBackend", "Ctranslate2Backend"],
        "loadgen": ["LoadgenSection"],
    }
    definitions = wanted.get(section, [f"{section.capitalize()}Section"])
    return [name for part in definitions for name in schema["$defs"][part]["properties"]]
