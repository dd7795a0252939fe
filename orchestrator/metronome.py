"""The measured loop of our own MultiStream: wait for the tick, issue, wait for the answer.

It stands where LoadGen's StartTest does: the same callbacks, the same Dispatcher below, its own logs. It
knows real time; what to do when is Schedule's business.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from orchestrator.dispatch import Completion
from orchestrator.fixed_interval import LoggedSamples, Schedule, Settings
from orchestrator.loadgen import Callbacks
from orchestrator.old_draw import SampleSet, query_starts, sample_sets
from orchestrator.old_logs import OldLogs
from orchestrator.query_samples import packed

PR_SET_TIMERSLACK = 29  # linux/prctl.h
WRONG_CLOCKS, DOUBTFUL_CLOCKS = 0.01, 0.001  # v1.0.1: an error, a warning
CLOCK_LOOKS = 5


class Metronome:
    """One MultiStream test; `complete` is called from the dispatcher's thread, all else from one other."""

    def __init__(self) -> None:
        self._asking: _Asking | None = None

    def complete(self, completion: Completion) -> None:
        """Book a lump of answers: the time is that of the call, as in LoadGen."""
        now_ns = time.monotonic_ns()
        current = self._asking
        if current is None:
            raise ValueError("an answer came before any question")
        current.complete(completion, now_ns)

    def run(
        self, settings: Settings, callbacks: Callbacks, count: int, performance_count: int, out_dir: Path
    ) -> None:
        """Run the test over a data set of `count` samples; returns when the logs are written."""
        at_once = settings.performance_sample_count_override or performance_count
        n = settings.samples_per_query
        sets = sample_sets(count, at_once, n, settings.qsl_rng_seed)
        _wake_promptly()
        with OldLogs(out_dir) as logs:
            logs.header(settings, count, performance_count)
            first_sample = 0
            for drawn in sets if settings.accuracy else sets[:1]:
                logs.detail("loaded_qsl_set", drawn.indices)
                callbacks.load(drawn.indices.tolist())
                began = _both_clocks()
                self._asking = _Asking(settings, drawn, logs, first_sample)
                schedule = self._asking.run(callbacks)
                first_sample += schedule.issued * n
                if not settings.accuracy:
                    _compare_clocks(logs, began, _both_clocks())
                    logs.result(settings, schedule.result(), at_once)
                callbacks.unload(drawn.indices.tolist())


class _Asking:
    """One sample set: its queries, asked and answered."""

    def __init__(self, settings: Settings, drawn: SampleSet, logs: OldLogs, first_sample: int) -> None:
        self._settings = settings
        self._indices = drawn.indices.astype(np.uint32)
        self._logs = logs
        self._first_sample = first_sample
        generated = settings.generated_queries(len(drawn.indices))
        self._starts = query_starts(
            drawn,
            settings.samples_per_query,
            settings.sample_index_rng_seed,
            generated,
            kind=settings.kind,
            same=settings.performance_issue_same_index,
        )
        logs.queries_made(settings, generated)
        self._positions = np.arange(settings.samples_per_query, dtype=np.uint64)
        self._finished: SimpleQueue[int] = SimpleQueue()
        logging = not settings.accuracy and settings.logged_share() > 0
        self._chosen = LoggedSamples(settings) if logging else None
        self._logged: dict[int, np.ndarray] = {}  # query -> which of its samples' answers are kept
        self._schedule = Schedule(settings, generated)

    def run(self, callbacks: Callbacks) -> Schedule:
        """Ask until the schedule says stop, wait for the last answer."""
        schedule, stop = self._schedule, None
        began_s = time.time()
        schedule.begin(time.monotonic_ns())
        while stop is None:
            self._wait_for_room()
            tick_ns = schedule.next_tick(time.monotonic_ns())
            self._sleep_until(tick_ns)
            now_ns = time.monotonic_ns()
            query = schedule.issue(now_ns)
            self._ask(query, callbacks)
            stop = schedule.stop(now_ns)
        while schedule.outstanding:
            self._finished.get()
        if stop.error or not self._settings.accuracy:
            key = "error_runtime" if stop.error else "generic_message"
            self._logs.detail(key, stop.why, error=stop.error)
        self._logs.power_window(began_s, schedule.last_done_ns - schedule.start_ns)
        return schedule

    def _wait_for_room(self) -> None:
        while self._schedule.blocker() is not None:
            self._finished.get()

    @staticmethod
    def _sleep_until(tick_ns: int) -> None:
        while (left_ns := tick_ns - time.monotonic_ns()) > 0:
            time.sleep(left_ns * 1e-9)

    def _ask(self, query: int, callbacks: Callbacks) -> None:
        n = self._settings.samples_per_query
        if self._chosen is not None:
            self._logged[query] = self._chosen.of_next_query()
        start = int(self._starts[query])
        ids = self._positions + np.uint64(query * n)
        callbacks.issue(packed(ids, self._indices[start : start + n]))

    def complete(self, completion: Completion, now_ns: int) -> None:
        """Book answers, keep those that are logged, tell the waiting thread which queries are done."""
        finished = self._schedule.complete(completion.ids, now_ns)
        if self._settings.accuracy or self._logged:
            self._log_answers(completion)
        for query in finished:
            self._logged.pop(query, None)
            self._finished.put(query)

    def _log_answers(self, completion: Completion) -> None:
        n = self._settings.samples_per_query
        sizes = np.broadcast_to(completion.sizes, len(completion.ids))
        offsets = completion.offsets if completion.offsets is not None else np.cumsum(sizes) - sizes
        rows = []
        for sample, at, size in zip(completion.ids.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            query, position = divmod(sample, n)
            if self._settings.accuracy or self._logged[query][position]:
                index = int(self._indices[int(self._starts[query]) + position])
                data = completion.blob[at : at + size].tobytes()
                rows.append((self._first_sample + sample, index, data))
        self._logs.answers(rows)


def _both_clocks() -> tuple[int, int]:
    """The steady and the system's clock at one moment, in ns: of several looks the quickest.

    Between two readings a busy machine may pause for longer than clocks that are set differ.
    """
    looks = []
    for _ in range(CLOCK_LOOKS):
        before_ns, wall_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after_ns - before_ns, (before_ns + after_ns) // 2, wall_ns))
    _, steady_ns, wall_ns = min(looks)
    return steady_ns, wall_ns


def _compare_clocks(logs: OldLogs, began: tuple[int, int], ended: tuple[int, int]) -> None:
    """The steady clock against the one on the wall: one that was set during the test makes it doubtful."""
    steady_ns, wall_ns = (after - before for before, after in zip(began, ended, strict=True))
    off = abs(steady_ns / wall_ns - 1) if wall_ns else 0.0
    if off > DOUBTFUL_CLOCKS:
        wrong = off > WRONG_CLOCKS
        key = "error_runtime" if wrong else "warning_generic_message"
        text = f"The steady clock and the system's clock differ by {100 * off:.2f} % over the test."
        logs.detail(key, text, error=wrong, warning=not wrong)


def _wake_promptly() -> None:
    """Let this thread's sleeps end in time: Linux ends them up to 50 us late, to end several at once."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
