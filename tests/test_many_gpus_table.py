"""What manifests/sizing/many_gpus.sh says of its figures; what measures them is `loadgrid bench`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TIME_BUDGET_S = 10

SCRIPT = Path(__file__).parents[1] / "manifests" / "sizing" / "many_gpus.sh"


def row(workers: int, qps: float, *valid: bool) -> dict[str, Any]:
    """A Server line of `loadgrid bench scale --json`."""
    nothing = dict.fromkeys(
        ("efficiency", "idle", "tail", "driver_cpu", "p99_ms", "p99s_ms", "stood_still_ms")
    )
    own = {"scenario": "Server", "workers": workers, "offered_qps": qps, "samples_per_s": qps}
    return {**nothing, **own, "valid": list(valid)}


def table(folder: Path, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Of each row "of linear" and "x one alone, held"."""
    (folder / "scale-net.json").write_text(json.dumps(rows))
    code = re.search(r"^TABLE=\$\(cat <<'P'\n(.*?)^P$", SCRIPT.read_text(), re.DOTALL | re.MULTILINE)
    assert code is not None
    command = [sys.executable, "-I", "-S", "-c", code[1], "scale", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    heads, *lines = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    # "rounds" is Offline's, and empty.
    assert heads[5:8] == ["of linear", "rounds", "x one alone, held"]
    return [(line[5], line[6]) for line in lines]


@pytest.mark.parametrize(
    ("single", "linear"),
    [
        ([row(1, 100, True), row(1, 125, False)], ["0.8-1", "0.64-0.8", "1-1.25"]),
        ([row(1, 100, True), row(1, 125, True, False)], ["0.8-1", "0.64-0.8", "1-1.25"]),
        ([row(1, 100, True)], ["-", "-", "-"]),
        ([row(1, 90, False), row(1, 100, True)], ["-", "-", "-"]),
    ],
)
def test_server_is_compared_with_one_worker_only_where_more_was_too_much_for_it(
    tmp_path: Path, single: list[dict[str, Any]], linear: list[str]
) -> None:
    many = [row(8, 800, True), row(8, 640, True), row(8, 1200, True), row(8, 2000, False)]
    shown = table(tmp_path, [*single, *many])[len(single) :]
    assert shown == [*zip(linear, ["1", "0.8", "1.5"], strict=True), ("-", "-")]


def test_without_a_valid_single_nothing_is_compared(tmp_path: Path) -> None:
    assert table(tmp_path, [row(1, 100, False), row(8, 800, True)]) == [("-", "-")] * 2
