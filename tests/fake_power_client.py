"""A stand-in for the MLCommons power client and server: talks to a PTDaemon, runs the workload twice.

It takes the real client's options and leaves the real client's files. FAKE_POWER_FAULT makes it misbehave.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

INTERVAL_MS = 50  # the real server's is 1000: too few readings in a test of a second
LOGS = ("mlperf_log_detail.txt", "mlperf_log_summary.txt")
FAULT = os.environ.get("FAKE_POWER_FAULT", "")


class Ptd:
    """The connection to PTDaemon."""

    def __init__(self, address: str, port: int) -> None:
        try:
            self._socket = socket.create_connection((address, port))
        except OSError as error:
            leave(f"Could not connect to the server {address}:{port} {error}")
        self._lines = self._socket.makefile("r", newline="\r\n")
        self.messages: list[dict[str, str]] = []

    def ask(self, command: str) -> str:
        self._socket.sendall(command.encode() + b"\r\n")
        reply = self.line()
        self.messages.append({"cmd": command, "reply": reply})
        return reply

    def line(self) -> str:
        return self._lines.readline().rstrip("\r\n")

    def readings(self, mark: str) -> str:
        count = int(self.ask("RL").split()[1])
        return "".join(f"{self.line()},Mark,{mark}\n" for _ in range(count))


def say(text: str) -> None:
    print(f"client [INFO] {text}", flush=True)


def leave(text: str, code: int = 1) -> NoReturn:
    print(f"client [CRITICAL] {text}", flush=True)
    sys.exit(code)


def measured_logs(folder: Path, began_s: float, ended_s: float) -> Path:
    """The folder below whose logs were written in this time, as their power_begin and power_end tell."""
    for file in sorted(folder.rglob(LOGS[0])):
        times = {}
        for line in file.read_text().splitlines():
            for key in ("power_begin", "power_end"):
                if f'"{key}"' in line:
                    told = json.loads(line.removeprefix(":::MLLOG"))["value"]
                    at = datetime.strptime(told, "%m-%d-%Y %H:%M:%S.%f").replace(tzinfo=UTC)
                    times[key] = at.timestamp()
        if len(times) == 2 and began_s < times["power_begin"] and times["power_end"] < ended_s:
            return file.parent
    leave(f"Expected {folder} to be a directory containing loadgen logs, but it is not")


def run(ptd: Ptd, options: argparse.Namespace, session: str, out: Path, mode: str) -> dict[str, list[float]]:
    """One run under measurement; when its phases began."""
    mark, folder = f"{session}_{mode}", out / ("run_1" if mode == "testing" else mode)
    phases = [time.time()]
    ptd.ask(f"Go,{INTERVAL_MS},0,{mark}")
    phases.append(time.time())
    say(f"Running the workload {options.workload!r}")
    if FAULT == "dies when told":
        subprocess.Popen(options.workload, shell=True)
        Path(os.environ["FAKE_POWER_FIFO"]).read_text()  # until somebody writes there
        leave("the fake died", 3)
    subprocess.run(options.workload, shell=True, check=True)
    phases.append(time.time())
    ptd.ask("Stop")
    phases.append(time.time())
    logs = measured_logs(options.logs, phases[1], phases[2])
    folder.mkdir()
    for name in LOGS:
        shutil.copy(logs / name, folder)
    (folder / "spl.txt").write_text(ptd.readings(mark))
    return {mode: phases}


def keep(out: Path, session: str, ptd: Ptd, phases: dict[str, list[float]]) -> None:
    """The files of the client and of the server."""
    power = out / "power"
    power.mkdir()
    for name in ("client.log", "server.log", "ptd_logs.txt"):
        (power / name).write_text("made by tests/fake_power_client.py\n")
    runs = [out / folder / name for folder in ("ranging", "run_1") for name in LOGS]
    digests = {str(path.relative_to(out)): hashlib.sha1(path.read_bytes()).hexdigest() for path in runs}
    told: dict[str, Any] = {
        "version": "1.0", "timezone": 0, "uuid": {"client": str(uuid.uuid4())}, "session_name": session,
        "phases": phases,
    }  # fmt: skip
    (power / "client.json").write_text(json.dumps({**told, "results": digests}))
    (power / "server.json").write_text(json.dumps({**told, "ptd_messages": ptd.messages}))
    (out / "run_1" / "ptd_out.txt").write_text("Analyzer 1:\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    for short, name in (("-a", "address"), ("-n", "ntp"), ("-w", "workload"), ("-l", "label")):
        parser.add_argument(short, dest=name, required=True)
    parser.add_argument("-p", dest="port", type=int, default=4950)
    parser.add_argument("-L", dest="logs", type=Path, required=True)
    parser.add_argument("-o", dest="out", type=Path, required=True)
    options = parser.parse_args()
    if options.logs in (options.out, *options.out.parents):
        leave("OUTDIR should not be the INDIR subdirectory")
    if not options.label.replace("-", "").replace("_", "").isalnum():
        leave("invalid label")
    if FAULT == "ends at once":
        leave("Could not synchronize with the server", 0)
    ptd = Ptd(options.address, options.port)
    for command in ("Hello", "Identify", "RR", "SR,V,Auto", "SR,A,Auto"):
        ptd.ask(command)
    session = f"2026-01-01_00-00-00_{options.label}"
    out = options.out / session
    out.mkdir()
    phases = run(ptd, options, session, out, "ranging")
    if FAULT == "one run":
        leave("one run is enough", 0)
    ptd.ask("SR,V,253.000000")
    ptd.ask("SR,A,1.650000")
    phases |= run(ptd, options, session, out, "testing")
    if FAULT == "another log":
        (out / "run_1" / LOGS[0]).write_text("of another test\n")
    keep(out, session, ptd, phases)
    if FAULT == "no spl":
        (out / "run_1" / "spl.txt").unlink()


if __name__ == "__main__":
    main()
