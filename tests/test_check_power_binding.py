"""Power in `check`: readings, logs and both sides' accounts of one measurement; the power supplies' file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.check.finding import context_of
from orchestrator.check.gate import judge
from orchestrator.check.power_binding import HASHED, power_binding
from orchestrator.paths import DETAIL
from orchestrator.submission.layout import POWER_FILES, SPL
from tests.log_faults import found, tree_of
from tests.made_trees import MadeTree, made_tree
from tests.test_check_consistency import BEGIN, measured, readings

TIME_BUDGET_S = 20

V1, V6 = "v1.1-datacenter", "v6.1-datacenter"
TEST_S, RANGING_S = 1615161605.233, 1615158005.233  # power_begin of made_cell_logs, and an hour before
PTD = (
    "03-07-2021 23:00:00.100: Go with mark 's_ranging'\n"
    "03-07-2021 23:00:02.100: ERROR: Bad watts reading nan from WT310\n"
    "03-07-2021 23:10:10.100: Completed test\n"
    "03-08-2021 00:00:00.100: Go with mark 's_testing'\n"
)


@pytest.fixture(params=[V1, V6])
def told(request: pytest.FixtureRequest) -> Iterator[tuple[MadeTree, Path]]:
    """A MADE measurement whose client.json and server.json say everything, as the power client's do."""
    tree = tree_of(request.param)
    with measured(tree) as top:
        (top / "power" / "ptd_logs.txt").write_text(PTD)
        # volts x amperes x factor as the watts: 310 and 300
        for run, amps in (("ranging", 1.4976), ("run_1", 1.4493)):
            path = top / run / SPL
            path.write_text(path.read_text().replace("Amps,1.0", f"Amps,{amps}"))
        account(top)
        yield tree, top


def account(top: Path, **changed: Any) -> None:
    for side in ("client", "server"):
        hashed = {name: hashlib.sha1((top / name).read_bytes()).hexdigest() for name in HASHED}
        phases = {
            mode: [[begin - 10, 0], [begin - 5, 0], [begin + 700, 0], [begin + 710, 0]]
            for mode, begin in (("ranging", RANGING_S), ("testing", TEST_S))
        }
        body = {
            "session_name": "s", "timezone": 0, "results": hashed, "phases": phases,
            "uuid": {"client": "C", "server": "S"},
        }  # fmt: skip
        (top / "power" / f"{side}.json").write_text(json.dumps(body | changed.get(side, {})))


def test_a_measurement_that_fits_together_has_no_finding(told: tuple[MadeTree, Path]) -> None:
    assert found(power_binding, told[0]) == {}


def again(top: Path, name: str, text: str) -> None:
    """Another text, and hashes of it: what remains is in the text itself."""
    (top / name).write_text(text)
    account(top)


def off(side: str, **changed: Any) -> Callable[[Path], None]:
    return lambda top: account(top, **{side: changed})


def later(path: Path) -> None:
    path.write_text(readings(BEGIN, 601, 301.0, "s_testing"))


AWAY = {mode: [[0, 0]] * 4 for mode in ("ranging", "testing")}
FAULTS: list[tuple[str, Callable[[Path], None]]] = [
    ("power-hash", lambda top: later(top / "run_1" / SPL)),
    ("power-hash", off("client", results=dict.fromkeys(HASHED, "0" * 40))),
    ("power-uuid", off("client", uuid={"client": "x", "server": "S"})),
    ("power-phases", off("client", phases=AWAY)),
    ("power-phases", off("server", phases={"ranging": [], "testing": "never"})),
    ("power-daemon-error", lambda top: again(top, "power/ptd_logs.txt", PTD + "03-08-2021: ERROR: lost\n")),
]


@pytest.mark.parametrize(("rule", "fault"), FAULTS)
def test_accounts_that_contradict_are_found(
    told: tuple[MadeTree, Path], rule: str, fault: Callable[[Path], None]
) -> None:
    tree, top = told
    fault(top)
    assert found(power_binding, tree)[rule] == ("error" if tree.kind.round == "v6.1" else "unseen")


def test_hashes_that_are_in_neither_account_are_missed(told: tuple[MadeTree, Path]) -> None:
    tree, top = told
    account(top, client={"results": {}}, server={"results": {}})
    assert "power-hash" in found(power_binding, tree)


def test_watts_that_are_not_the_product_are_found(told: tuple[MadeTree, Path]) -> None:
    tree, top = told
    path = top / "run_1" / SPL
    again(top, f"run_1/{SPL}", path.read_text().replace("Watts,300.0", "Watts,291.0"))
    assert found(power_binding, tree) == {"power-product": "unseen"}


def test_readings_that_were_cut_out_are_found(told: tuple[MadeTree, Path]) -> None:
    tree, top = told
    lines = (top / "run_1" / SPL).read_text().splitlines(keepends=True)
    again(top, f"run_1/{SPL}", "".join(lines[:300] + lines[305:]))
    assert found(power_binding, tree) == {"power-gap": "unseen"}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    raw=st.binary(max_size=200)
    | st.sampled_from([b'{"phases": {"ranging": [[1e400]]}, "results": 3}', b"[" * 999]),
    name=st.sampled_from([*(f"power/{name}" for name in POWER_FILES), f"run_1/{SPL}", f"ranging/{DETAIL}"]),
)
def test_no_bytes_break_these_checks(raw: bytes, name: str) -> None:
    tree = tree_of(V6)
    with measured(tree) as top:
        (top / name).write_bytes(raw)
        found(power_binding, tree)


# Power supplies, and what closed and network trees cannot say

SUPPLY = "{PowerCapacityWatts: 2000}"
GOOD = f"rack:\n  node:\n    PSUs: [{SUPPLY}, {SUPPLY}]\n    Min PSUs Needed: 1\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> MadeTree:
    return made_tree(tmp_path_factory.mktemp("tree"), V6)


def rules(tree: MadeTree) -> dict[str, str]:
    return {one.rule: one.official for one in judge(context_of(tree.root, tree.kind.round))}


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        (GOOD.encode(), {}),
        (b"a: [1\n", {"nameplate-unreadable": "error"}),
        (b"\xff\xfe\x00", {"nameplate-unreadable": "error"}),
        (b"\0", {"nameplate-unreadable": "error"}),
        (b"[" * 5000, {"nameplate-unreadable": "error"}),
        (b"only text", {"nameplate-field": "unseen"}),
        (GOOD.replace("Needed: 1", "Needed: two").encode(), {"nameplate-field": "unseen"}),
        (GOOD.replace("2000", "much").encode(), {"nameplate-field": "unseen"}),
    ],
)
def test_power_supplies_that_the_checker_cannot_read_or_add_up_are_found(
    tree: MadeTree, raw: bytes, seen: dict[str, str]
) -> None:
    system = next(tree.root.glob("closed/*/systems/*.json"))
    path = system.with_name(f"{system.stem}_power.yaml")
    path.write_bytes(raw)
    try:
        assert rules(tree) == seen
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("told", "seen"), [("Yes, 3 epochs", {"retraining": "unseen"}), ("N", {}), ("We don\u2019t retrain", {})]
)
def test_a_retrained_network_is_found_in_closed(tree: MadeTree, told: str, seen: dict[str, str]) -> None:
    path = next(tree.root.glob("closed/*/results/*/*/*/measurements.json"))
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"retraining": told}))
    try:
        assert rules(tree) == seen
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ({"accelerators_per_node": "8", "accelerator_model_name": "N/A"}, {"system-field": "unseen"}),
        ({"accelerators_per_node": "0", "accelerator_model_name": "TPU"}, {"system-field": "unseen"}),
        ({"accelerators_per_node": "0", "accelerator_model_name": "N/A"}, {}),
    ],
)
def test_accelerators_have_a_number_and_a_name(
    tree: MadeTree, values: dict[str, str], seen: dict[str, str]
) -> None:
    path = next(tree.root.glob("closed/*/systems/*.json"))
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | values))
    try:
        assert rules(tree) == seen
    finally:
        path.write_text(before)
