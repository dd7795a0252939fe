"""Who asks the questions of a test: LoadGen, or our own generator of the one scenario that LoadGen dropped.

What is below (exchange, Dispatcher, workers) does not know which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from orchestrator.dispatch import Completion
from orchestrator.fixed_interval import OWN_FILE, Settings
from orchestrator.loadgen import Callbacks, LoadGen, ResponsePool, file_sha256
from orchestrator.metronome import Metronome
from orchestrator.old_logs import generator_sha256
from orchestrator.order import TestOrder
from orchestrator.room import Room, room_for_query
from orchestrator.settings import offline_samples_per_query

# What says how many samples an Offline query has (settings.offline_samples_per_query).
OFFLINE_SIZE = ("performance_issue_unique", "min_duration_ms", "offline_expected_qps", "min_query_count")


class Asker(Protocol):
    """One test's questions."""

    def complete(self, completion: Completion) -> None:
        """Take a lump of answers."""

    def settle(self) -> None:
        """Read the settings; an error here is one before anything began."""

    def run(self, callbacks: Callbacks, out_dir: Path) -> None:
        """Ask until the test is over and its logs are written in `out_dir`."""

    def facts(self) -> dict[str, Any]:
        """What the record says of who asked."""


def has_one_query(order: TestOrder) -> bool:
    """Whether all samples come at once."""
    return order.scenario == "Offline" and order.test == "performance"


class OfficialAsker:
    """LoadGen, which decides when."""

    def __init__(self, order: TestOrder) -> None:
        self._order = order
        self._loadgen = LoadGen(Path(order.loadgen_path) if order.loadgen_path else None)
        self._pool = ResponsePool(self._loadgen.module)
        self._settings: Any = None
        self._room: Room | None = None
        self.complete = self._pool.complete  # not a method of ours: it is called for every frame

    def settle(self) -> None:
        """Let LoadGen read its configuration, and compare what it took."""
        o = self._order
        self._settings = self._loadgen.settings(
            o.conf_model, o.scenario, o.test, Path(o.conf_file), o.attributes, o.expected
        )

    def run(self, callbacks: Callbacks, out_dir: Path) -> None:
        """LoadGen's StartTest."""
        o = self._order
        if has_one_query(o):
            asked = {name: getattr(self._settings, name) for name in OFFLINE_SIZE}
            samples = offline_samples_per_query(asked, o.performance_count)
            # Workers in this process have large pieces of their own, which malloc() should give back.
            self._room = room_for_query(samples, copies=o.local is None)
        self._loadgen.run(self._settings, callbacks, o.sample_count, o.performance_count, out_dir)

    def facts(self) -> dict[str, Any]:
        """Which module it was."""
        module, room = self._loadgen.module, self._room
        return {
            "loadgen_sha256": file_sha256(module),
            "loadgen_file": Path(str(module.__file__)).name,
            "completion": "scatter" if self._pool.scattered else "attributes",
            "room": None if room is None else {"samples": room.samples, "copies": room.copies},
        }


class FixedIntervalAsker:
    """Our own generator; mlperf_loadgen need not be installed."""

    def __init__(self, order: TestOrder) -> None:
        self._order = order
        self._metronome = Metronome()
        self.complete = self._metronome.complete

    def settle(self) -> None:
        """Nothing has to be read: the order has all."""

    def run(self, callbacks: Callbacks, out_dir: Path) -> None:
        """The test at its fixed interval."""
        o = self._order
        settings = Settings.of(o.expected, accuracy=o.test == "accuracy")
        self._metronome.run(settings, callbacks, o.sample_count, o.performance_count, out_dir)

    def facts(self) -> dict[str, Any]:
        """Which code it was."""
        return {
            "loadgen_sha256": generator_sha256(),
            "loadgen_file": OWN_FILE,
            "completion": "fixed interval",
        }


def open_asker(order: TestOrder) -> Asker:
    """The asker that an order wants."""
    return FixedIntervalAsker(order) if order.asker == "fixed_interval" else OfficialAsker(order)
