"""`manifests/sizing/value_mode.py`: bare pipes between two hosts, and LoadGrid's rows beside them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import two_hosts as lan

TIME_BUDGET_S = 30
SCRIPT = Path(__file__).parent.parent / "manifests/sizing/value_mode.py"


@pytest.fixture(scope="module")
def script() -> Any:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.parametrize("security", ["none", "curve"])
def test_bare_pipes_carry_something_between_the_hosts(
    two_hosts: lan.Hosts, script: Any, security: str
) -> None:
    assert 0.005 < script.pipes(two_hosts, security, 150_000, 2) < 50


def test_a_test_between_the_hosts_is_a_row(
    two_hosts: lan.Hosts, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = SimpleNamespace(payload_bytes=150_000, seconds=0.5, workers=1, qps=[100], security=["curve"])
    script.through_loadgrid(two_hosts, chosen, {"two hosts": script.PLACES["two hosts"]})
    (row,) = capsys.readouterr().out.splitlines()
    assert row.startswith("two hosts  curve        100/s offered") and "GB/s" in row
    assert two_hosts.hosts[0].address in row or two_hosts.hosts[1].address in row


def test_a_wrong_rate_is_told_in_a_line() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--qps", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and "--qps: 0 is less than 1" in done.stderr
    assert "Traceback" not in done.stderr
