"""A stand-in for SPEC PTDaemon: its text protocol over TCP, with readings that are made up.

The commands and replies are those in the `ptd_messages` of published results (v1.0 Krai, v5.1 Lenovo). It can
also be started as MLCommons' power server starts PTDaemon: `fake_ptd.py -l LOG -p PORT ... TYPE DEVICE`.
"""

from __future__ import annotations

import socketserver
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

WATTS = (300.0, 340.0, 320.0)  # one after the other
RAMP_UP_S = 0.001  # from Go to the first reading
IDENTITY = (
    "FakeMeter,1000,1,1,1,1,0,0,1,version=0.0.0-fake,OS=none,mode=power,1,1,1,0,0,no_cal_date,FAKE;NONE;0;0"
)


@dataclass
class Meter:
    """What the daemon remembers; readings are computed when asked for, so nothing has to wait or tick."""

    log: Path | None = None
    mark: str = ""
    interval_s: float = 1.0
    began_s: float = 0.0
    ended_s: float | None = None
    measured: list[str] = field(default_factory=list)

    def readings(self) -> list[str]:
        """The lines of a measurement, as `RL` gives them: without its mark."""
        lines: list[str] = []
        end_s, at_s = self.ended_s or time.time(), self.began_s + RAMP_UP_S
        while at_s <= end_s:
            stamp = datetime.fromtimestamp(at_s, UTC).strftime("%m-%d-%Y %H:%M:%S.%f")[:-3]
            watts = WATTS[len(lines) % len(WATTS)]
            amps = watts / 230 / 0.98
            lines.append(f"Time,{stamp},Watts,{watts:.6f},Volts,230.000000,Amps,{amps:.6f},PF,0.980000")
            at_s += self.interval_s
        return lines

    def answer(self, command: str) -> str:
        """The reply to one command."""
        word, *rest = command.split(",")
        fixed = {"Hello": "Hello, PTDaemon here!", "Identify": IDENTITY}
        fixed |= {"RR": "Ranges,0,20.000000,0,300.000000", "Uncertainty": "Uncertainty,0.1,0.1,0.1,1,1,0,0"}
        if word in fixed:
            return fixed[word]
        if word == "SR":
            return f"Range {rest[0]} changed"
        if word == "Go":
            self.interval_s, self.mark = int(rest[0]) / 1000, rest[2]
            self.began_s, self.ended_s = time.time(), None
            most = f"maximum 500000 samples at {rest[0]}ms with {rest[1]} rampup samples"
            return f"Starting untimed measurement, {most}"
        if word == "Stop":
            return self.stop()
        if word == "Watts":
            return f"Watts,{WATTS[-1]},{min(WATTS)},{max(WATTS)},1,0,1"
        if command == "RL":
            lines = self.readings()
            return "\r\n".join([f"Last {len(lines)} samples", *lines])
        if word == "RL":
            return "Error: Invalid number of parameters"
        return "Error: Unknown command"

    def stop(self) -> str:
        if not self.mark or self.ended_s is not None:
            return "Error: no measurement to stop"
        self.ended_s = time.time()
        self.measured.append(self.mark)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.writelines(f"{line},Mark,{self.mark}\n" for line in self.readings())
        return "Stopping untimed measurement"


class FakePtd(socketserver.ThreadingTCPServer):
    """The daemon on a port of this host; a context manager that serves meanwhile."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int = 0, log: Path | None = None) -> None:
        self.meter = Meter(log)
        super().__init__(("127.0.0.1", port), Conversation)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def __enter__(self) -> FakePtd:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Conversation(socketserver.StreamRequestHandler):
    """One connection: a command a line, a reply each."""

    def handle(self) -> None:
        assert isinstance(self.server, FakePtd)
        for line in self.rfile:
            reply = self.server.meter.answer(line.decode().strip())
            self.wfile.write(reply.encode() + b"\r\n")


if __name__ == "__main__":
    words = sys.argv[1:]
    FakePtd(int(words[words.index("-p") + 1]), Path(words[words.index("-l") + 1])).serve_forever()
