"""What the driver tells the test process, and what it hears back: a JSON object a line over a socketpair."""

from __future__ import annotations

import json
import signal
import socket
import threading
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

# The driver handles them and tells the test process. Who ends a job (Ray, Slurm, systemd) sends SIGTERM to
# all of its processes at once: leaving by it would make an interrupted test a failed one.
LEFT_TO_THE_DRIVER = (signal.SIGINT, signal.SIGTERM)


class Seat(BaseModel):
    """A worker as the test needs to know it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    public_key: str = ""
    warm_up: list[tuple[int, float]] = []  # empty for local workers, which tell it themselves
    max_batch: int
    slots: int = 1  # batches that its engine takes in at once
    near: bool = False  # on LoadGen's own host: its large answers may lie in memory that both see


class LocalWorker(BaseModel):
    """A worker that lives in the test process itself (`workers: {where: local}`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: str
    task_options: dict[str, Any]
    backend: dict[str, Any]
    batch_deadline_ns: int
    cache: str
    needs_library: bool
    note_order: bool = False


class TestOrder(BaseModel):
    """Everything the test process needs; it reads no manifest and no rules."""

    __test__ = False
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    epoch: int
    out_dir: str
    asker: Literal["loadgen", "fixed_interval"] = "loadgen"
    loadgen_path: str | None
    in_place: bool
    conf_model: str
    scenario: str
    test: Literal["performance", "accuracy"]
    conf_file: str
    attributes: dict[str, Any]
    expected: dict[str, Any]
    sample_count: int
    performance_count: int
    network: bool
    payload: Literal["index", "value"]
    library: str | None
    security: Literal["curve", "none"]
    address: str
    ports: tuple[int, int] | None
    io_threads: int
    on_loss: Literal["fail", "reissue"]
    workers: list[Seat]
    local: LocalWorker | None = None
    attach_timeout_s: float = 60.0
    schedule_seed: int = 0
    target_qps: float = 0.0
    limit_ns: int | None = None

    @property
    def coalesced(self) -> bool:
        """Whether LoadGen merges the queries that are overdue when it issues."""
        merged = bool(self.expected.get("server_coalesce_queries"))
        return merged and self.scenario == "Server" and not self.network


class Channel:
    """JSON lines over one end of a socketpair; sending is safe from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()
        self._buffer = b""
        self.closed = False

    def fileno(self) -> int:
        """For select()."""
        return self.sock.fileno()

    def send(self, **message: Any) -> None:
        """Send one message; a peer that is gone is seen when reading."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            try:
                self.sock.sendall(data)
            except OSError:
                self.closed = True

    def receive(self) -> list[dict[str, Any]]:
        """Wait for data; the messages that are complete by then. `closed` is set at the end of file."""
        self._read()
        return self.complete()

    def _read(self) -> None:
        """Wait for data, or for the end of file."""
        try:
            data = self.sock.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self.closed = True
        self._buffer += data

    def complete(self) -> list[dict[str, Any]]:
        """The messages that have arrived whole, without waiting."""
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def first(self) -> dict[str, Any] | None:
        """Wait for the first message, None if the peer is gone; what came with it stays for complete()."""
        while b"\n" not in self._buffer:
            self._read()
            if self.closed:
                return None
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message
