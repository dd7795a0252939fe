"""LoadGen's queries read where they lie, with the real module; and when they are not."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator import issue_in_place
from orchestrator.evidence import _driver
from orchestrator.issue_in_place import (
    ISSUE_QUERY,
    IssueTable,
    SampleReader,
    _try,
    issue_table,
    samples_at,
)
from orchestrator.loadgen import import_loadgen
from orchestrator.query_samples import packed
from tests.program import Program, manifest
from tests.real_loadgen import check_accuracy_log, finished, order_of

TIME_BUDGET_S = 20
ROOT = Path(__file__).parent.parent
COUNT = 2500  # lists become bytes in pieces of 1,024
# One process is one LoadGen test. Each sample is answered with its index, as soon as it is issued.
WHOLE_TEST = f"""
import os, sys
from pathlib import Path
import numpy as np
from orchestrator.dispatch import Completion
from orchestrator.loadgen import Callbacks, LoadGen
from orchestrator.query_samples import columns
from orchestrator.response_pool import ResponsePool

way, scenario, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
loadgen = LoadGen(None, in_place=way == "in place")
pool = ResponsePool(loadgen.module)

def issue(samples):
    ids, indices = columns(samples)
    pool.complete(Completion(ids, indices.astype("<u4").view(np.uint8), None, 4))

conf = folder / "user.conf"
conf.write_text("*.Server.target_qps = 100000\\n")
attributes = {{"server_coalesce_queries": True}}
settings = loadgen.settings("null", scenario, "accuracy", conf, attributes, {{}})
loadgen.run(settings, Callbacks(issue, lambda _: None, lambda _: None), {COUNT}, {COUNT}, folder, {COUNT})
print(loadgen.issue, flush=True)
os._exit(0)
"""


def table_of_ours() -> IssueTable:
    table = issue_table(import_loadgen(None))
    assert table is not None
    return table


@contextlib.contextmanager
def vector_of(samples: bytes) -> Iterator[int]:
    """The address of a std::vector with these samples, which has capacity for more."""
    held = ctypes.create_string_buffer(samples + b"capacity", len(samples) + 8)
    begin = ctypes.addressof(held)
    vector = (ctypes.c_uint64 * 3)(begin, begin + len(samples), begin + len(held))
    yield ctypes.addressof(vector)


def numbered(n: int) -> bytes:
    return packed([(i + 1) << 40 for i in range(n)], range(n))


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_the_samples_of_a_vector_are_those_between_its_begin_and_end(n: int) -> None:
    with vector_of(numbered(n)) as vector:
        assert samples_at(vector).tobytes() == numbered(n)


@pytest.mark.parametrize("expected", [0, 999, 1000, 1001])
def test_queries_are_copied_whether_or_not_there_is_memory_for_the_first(expected: int) -> None:
    reader, kept = SampleReader(expected), []
    for n in (1000, 7, 1):
        with vector_of(numbered(n)) as vector:
            kept.append(reader.read(vector))
    assert [bytes(samples) for samples in kept] == [numbered(n) for n in (1000, 7, 1)]


PAGES = """
import ctypes, resource, sys
from orchestrator import issue_in_place
from orchestrator.query_samples import SAMPLE_BYTES

samples, free = int(sys.argv[1]), int(sys.argv[2])
issue_in_place.available_memory_bytes = lambda: free
held = ctypes.create_string_buffer(samples * SAMPLE_BYTES)
begin = ctypes.addressof(held)
vector = (ctypes.c_uint64 * 3)(begin, begin + len(held), begin + len(held))
reader = issue_in_place.SampleReader(samples)
ctypes.memset(held, 1, len(held))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
kept = reader.read(ctypes.addressof(vector))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(("free_bytes", "touched"), [(64 << 20, False), ((64 << 20) - 1, True)])
def test_the_first_query_finds_its_memory_unless_that_would_be_more_than_a_quarter(
    free_bytes: int, touched: bool
) -> None:
    command = [sys.executable, "-c", PAGES, str(1 << 20), str(free_bytes)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    # 16 MB are 4,096 pages.
    assert (int(found.stdout) > 4000) is touched and (touched or int(found.stdout) < 100)


def test_a_sut_issues_in_place_for_as_long_as_it_is_asked_to() -> None:
    module, table = import_loadgen(None), table_of_ours()
    lists: list[Any] = []
    in_place: list[bytes] = []
    errors: list[BaseException] = []

    def issue(_sut: int, vector: int) -> None:
        in_place.append(samples_at(vector).tobytes())

    sut = module.ConstructFastSUT(lambda *issued: lists.append(issued), lambda: None)
    with table.issued_in_place(sut, issue, errors.append):
        _try(IssueTable(issue_in_place._word(sut), table.functions), sut)
        assert (in_place, lists) == ([packed(*issue_in_place.TRIED)], [])
    _try(IssueTable(issue_in_place._word(sut), table.functions), sut)
    module.DestroyFastSUT(sut)
    assert (len(in_place), lists, errors) == (1, [issue_in_place.TRIED], [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_query_raises_all_the_same_is_heard() -> None:
    module, table = import_loadgen(None), table_of_ours()
    sut = module.ConstructFastSUT(lambda *_: None, lambda: None)
    errors: list[BaseException] = []
    hook = sys.unraisablehook

    def interrupted(_sut: int, _vector: int) -> None:
        raise KeyboardInterrupt

    with table.issued_in_place(sut, interrupted, errors.append):
        _try(IssueTable(issue_in_place._word(sut), table.functions), sut)
    module.DestroyFastSUT(sut)
    assert [type(error) for error in errors] == [KeyboardInterrupt] and sys.unraisablehook is hook


def test_the_rest_of_a_suts_functions_stay_the_modules_own() -> None:
    module, table = import_loadgen(None), table_of_ours()
    sut = module.ConstructFastSUT(lambda *_: None, lambda: None)

    def functions() -> Sequence[int]:
        address = issue_in_place._word(sut)
        return issue_in_place._words(address - 16, address + table.functions * 8).tolist()

    own = functions()
    with table.issued_in_place(sut, lambda *_: None, lambda _: None):
        differ = [a != b for a, b in zip(own, functions(), strict=True)]
    assert [i - 2 for i, other in enumerate(differ) if other] == [ISSUE_QUERY] and functions() == own
    module.DestroyFastSUT(sut)


# When it is not certain where the functions are


class Module:
    """The real module, whose SUTs are not all as expected."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return self._changes.get(name, getattr(import_loadgen(None), name))


def test_of_a_module_whose_two_kinds_of_sut_do_not_differ_as_expected_nothing_is_called() -> None:
    real, called = import_loadgen(None), []

    def fast_too(_issue: Any, flush: Any) -> int:
        return int(real.ConstructFastSUT(lambda *lists: called.append(lists), flush))

    assert issue_table(Module(ConstructSUT=fast_too, DestroySUT=real.DestroyFastSUT)) is None  # type: ignore[arg-type]
    assert called == []


def test_tables_outside_the_modules_file_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert issue_table(Module(__file__=os.__file__)) is None  # type: ignore[arg-type]
    assert issue_table(Module(__file__="/no/such file (deleted)")) is None  # type: ignore[arg-type]
    monkeypatch.setattr(issue_in_place, "_memory_of", lambda _: ([], [range(2**47)]))
    assert issue_table(import_loadgen(None)) is None


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "/proc/self/maps"), IndexError("2**60"), ValueError()]
)
def test_where_the_look_fails_lists_are_issued(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_module: Any) -> None:
        raise error

    monkeypatch.setattr(issue_in_place, "_memory_of", fail)
    assert issue_table(import_loadgen(None)) is None


def test_a_class_of_more_functions_than_are_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issue_in_place, "MOST_FUNCTIONS", table_of_ours().functions - 1)
    assert issue_table(import_loadgen(None)) is None


NO_MEMORY = """
import resource
from orchestrator import issue_in_place
issue_in_place.available_memory_bytes = lambda: 1 << 50
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
issue_in_place.SampleReader(1 << 30)
"""


def test_memory_that_cannot_be_had_costs_no_test() -> None:
    found = subprocess.run([sys.executable, "-c", NO_MEMORY], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_trial_that_hears_something_else_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issue_in_place, "_try", lambda *_: None)
    assert issue_table(import_loadgen(None)) is None


# A whole test


@pytest.mark.parametrize("scenario", ["Server", "Offline", "MultiStream"])
@pytest.mark.parametrize("way", ["in place", "lists"])
def test_either_way_every_sample_is_answered_with_its_own_bytes(
    tmp_path: Path, scenario: str, way: str
) -> None:
    found = subprocess.run(
        [sys.executable, "-c", WHOLE_TEST, way, scenario, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{way}\n", "")
    logged = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    assert [int(one["qsl_idx"]) for one in logged] == [
        int.from_bytes(bytes.fromhex(one["data"]), "little") for one in logged
    ]
    # Of MultiStream's last query LoadGen fills up what is missing with samples that were asked before.
    assert {one["qsl_idx"] for one in logged} == set(range(COUNT))


@pytest.mark.parametrize("way", ["in place", "lists"])
def test_the_record_says_how_queries_came(tmp_path: Path, way: str) -> None:
    order = order_of(tmp_path, "Offline", "accuracy", in_place=way == "in place")
    outcome = finished(order)
    check_accuracy_log(Path(order.out_dir))
    assert _driver(outcome)["issue"] == way


@pytest.mark.parametrize(("word", "come"), [("in_place: true", "in place"), ("in_place: false", "lists")])
def test_queries_come_as_the_manifest_says(tmp_path: Path, word: str, come: str) -> None:
    file = manifest(tmp_path)
    file.write_text(file.read_text().replace("loadgen:\n", f"loadgen:\n  {word}\n"))
    with Program(tmp_path, "run", file) as program:
        assert program.end(20) == 0, program.said
        assert program.record("Server-performance").driver["issue"] == come
