"""Asks a Ray cluster what it is, in a process of its own.

How long Ray tries an address at which nobody answers (two minutes, measured) cannot be bounded from inside.
Started as `python -m orchestrator.probe ADDRESS CPUS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NODE_TIMEOUT_S = 15.0
# A Ray that answers does so in a few seconds; one that starts here needs up to twenty on a busy machine.
JOIN_LIMIT_S = 25.0
START_LIMIT_S = 60.0
LEAVE_S = 3.0


def ask(address: str, num_cpus: int, limit_s: float | None = None) -> dict[str, Any]:
    """What the cluster tells, `nodes`, `here` and `auth`, or `error`; in `limit_s` or a little more."""
    limit = limit_s or (START_LIMIT_S if address == "local" else JOIN_LIMIT_S)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "orchestrator.probe", address, str(num_cpus)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    ) as child:
        try:
            said, _ = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            _end(child)
            return {"error": f"Ray did not answer in {limit:g} s"}
    return last_object(said)


def _end(child: subprocess.Popen[str]) -> None:
    """End the child and what it started: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=LEAVE_S)


def last_object(said: str) -> dict[str, Any]:
    """The object in the last line: Ray itself may have printed before it."""
    lines = said.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else None
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {"error": "the process that asked Ray died without an answer"}


def main() -> None:
    """Join, look, leave, print."""
    from orchestrator import cluster  # Ray is wanted in the child alone

    address, num_cpus = sys.argv[1], int(sys.argv[2])
    told: dict[str, Any]
    try:
        cluster.connect(address, num_cpus=num_cpus)
        told = {
            "nodes": cluster.probe_nodes(NODE_TIMEOUT_S),
            "here": cluster.node_address(),
            "auth": os.environ.get("RAY_AUTH_MODE", "disabled"),
        }
        cluster.disconnect()
    except cluster.ClusterError as error:
        told = {"error": str(error)}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
