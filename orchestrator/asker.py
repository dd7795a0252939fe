"""Who asks the questions of a test: LoadGen, or our own generator of the one scenario that LoadGen dropped.

What is below (exchange, Dispatcher, workers) does not know which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from orchestrator.dispatch import Completion
from orchestrator.fixed_interval import OWN_FILE, Settings
from orchestrator.loadgen import Callbacks, LoadGen, file_sha256
from orchestrator.metronome import Metronome
from orchestrator.old_logs import generator_sha256
from orchestrator.order import TestOrder
from orchestrator.response_pool import ResponsePool
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


class OfficialAsker:
    """LoadGen, which decides when."""

    def __init__(self, order: TestOrder) -> None:
        self._order = order
        self._loadgen = LoadGen(Path(order.loadgen_path) if order.loadgen_path else None, order.in_place)
        self._pool = ResponsePool(self._loadgen.module)
        self._settings: Any = None
        self.complete = self._pool.complete  # not a method of ours: it is called for every frame

    def settle(self) -> None:
        """Let LoadGen read its configuration, and compare what it took."""
        o = self._order
        self._settings = self._loadgen.settings(
            o.conf_model, o.scenario, o.test, Path(o.conf_file), o.attributes, o.expected
        )

    def run(self, callbacks: Callbacks, out_dir: Path) -> None:
        """LoadGen's StartTest."""
        o, first_query = self._order, 0
        if o.scenario == "Offline" and o.test == "performance":
            asked = {name: getattr(self._settings, name) for name in OFFLINE_SIZE}
            first_query = offline_samples_per_query(asked, o.performance_count)
        counts = o.sample_count, o.performance_count
        self._loadgen.run(self._settings, callbacks, *counts, out_dir, first_query)

    def facts(self) -> dict[str, Any]:
        """Which module it was."""
        module = self._loadgen.module
        return {
            "loadgen_sha256": file_sha256(module),
            "loadgen_file": Path(str(module.__file__)).name,
            "completion": "scatter" if self._pool.scattered else "attributes",
            "issue": self._loadgen.issue,
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
