"""The only importer of mlperf_loadgen. What bites, measured on 6.0.17 and on v1.0.1 and r1.1 ("old"):

- One configuration a process: FromConfig (conf_type 1) works once; a failed first call uses the chance up.
- FromConfig never raises: a missing file gives -2, an unknown model or scenario 0. So settings are read back.
- Seeds in user.conf are ignored without a word: they are set as attributes, after FromConfig. (Old reads
  them.)
- An exception in a callback aborts the process: every callback is contained here.
- StartTest reads `audit.config` from the working directory unless another path is named: it always is. Old
  cannot be told another path, so it runs only where none lies but the test's own.
- Ids are pointers that LoadGen reuses; completing a stale one completes another sample, or crashes.
- A response's buffer is read during QuerySamplesComplete only.
- The embedded settings are wrong for rounds v1.0 and v1.1: rounds/*.yaml carries the overrides.
- ConstructQDL has only the slow callback, and is needed for "Network SUT" names.
- Old has no FirstTokenComplete (by this it is known here), takes a third callback for latencies, brings no
  settings of its own, lacks some attributes of TestSettings, and holds a latency as an integer where 6.0.17
  holds a float; its conf reader takes whole milliseconds. Its version is told in the detail log only: v1.0.1
  calls itself ".5a1".
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.issue_in_place import SampleReader, issue_table
from orchestrator.query_samples import packed
from workers.protocol import Buffer

# Old reads it from a conf file and has no attribute that shows it: its detail log does (audit.validate).
OLD_HIDES = {"accuracy_log_sampling_target"}
# Samples of lists that become bytes at a time: 0.15 ms, and with 16 times as many a fast engine would wait.
PIECE = 1024


class LoadGenError(Exception):
    """LoadGen cannot be used as asked; the text says what to do."""


def import_loadgen(path: Path | None) -> ModuleType:
    """Import `mlperf_loadgen`: the installed one, or the module that lies in folder `path`."""
    if path is None:
        try:
            return importlib.import_module("mlperf_loadgen")
        except ImportError as error:
            raise LoadGenError(
                f"mlperf_loadgen cannot be imported ({error}); pip install mlcommons-loadgen"
            ) from None
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        file = path / f"mlperf_loadgen{suffix}"
        if not file.is_file():
            continue
        loader = importlib.machinery.ExtensionFileLoader("mlperf_loadgen", str(file))
        spec = importlib.util.spec_from_file_location("mlperf_loadgen", file, loader=loader)
        assert spec is not None
        try:
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
        except ImportError as error:
            raise LoadGenError(f"{file} cannot be imported: {error}") from None
        sys.modules["mlperf_loadgen"] = module
        return module
    wanted = f"mlperf_loadgen{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    raise LoadGenError(
        f"loadgen.path: no mlperf_loadgen module for Python {platform.python_version()} in {path}; "
        f"build the round's own tag and put {wanted} there"
    )


def file_sha256(module: ModuleType) -> str:
    """Hash of the module's file: two LoadGens of one version are not always one LoadGen."""
    return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()


def _give_up(error: BaseException) -> None:
    print(f"error in a LoadGen callback: {error}", file=sys.stderr, flush=True)
    os._exit(1)


@dataclass(frozen=True)
class Callbacks:
    """What LoadGen calls: the issue of QuerySamples, load and unload of indices, and the node names.

    `on_error` hears of an exception in one of them and has to end the test from outside: LoadGen's thread
    stands still from then on, because it must not go on with samples that are not there.
    """

    issue: Callable[[Buffer], None]
    load: Callable[[Sequence[int]], None]
    unload: Callable[[Sequence[int]], None]
    name: Callable[[], str] | None = None  # given: a Network SUT
    on_error: Callable[[BaseException], None] = _give_up


class LoadGen:
    """One test of one LoadGen module; one instance a process."""

    def __init__(self, path: Path | None, in_place: bool = True) -> None:
        self.module = import_loadgen(path)
        self.old = not hasattr(self.module, "FirstTokenComplete")
        self._latencies = (_no_latencies,) if self.old else ()
        self._table = issue_table(self.module, *self._latencies) if in_place else None
        self.issue = "lists"  # how queries come: as the module makes them, or "in place"

    def settings(
        self,
        model: str,
        scenario: str,
        test: str,
        conf: Path,
        attributes: dict[str, Any],
        expected: dict[str, Any],
    ) -> Any:
        """TestSettings from `conf` and `attributes`; LoadGenError lists all that is not as `expected`."""
        m = self.module
        settings = m.TestSettings()
        kind = () if self.old else (1,)
        code = settings.FromConfig(str(conf), model, scenario, *kind)
        if code:
            raise LoadGenError(f"LoadGen could not read {conf}: {os.strerror(abs(code))} (code {code})")
        settings.scenario = _member(m.TestScenario, scenario, "scenario")
        mode = "AccuracyOnly" if test == "accuracy" else "PerformanceOnly"
        settings.mode = _member(m.TestMode, mode, "mode")
        for name, value in attributes.items():
            _set(settings, name, value)
        wrong = [text for name, value in expected.items() if (text := self._wrong(settings, name, value))]
        if wrong:
            raise LoadGenError("LoadGen did not take the settings: " + "; ".join(wrong))
        return settings

    def _wrong(self, settings: Any, name: str, value: Any) -> str | None:
        """How a setting differs from what was planned, None if it does not."""
        if not hasattr(settings, name):
            # What an old LoadGen cannot do it does not do: that is what 0 and False say.
            lacking = f"{name} does not exist and should be {value!r}"
            return None if self.old and (not value or name in OLD_HIDES) else lacking
        seen = getattr(settings, name)
        return None if _same(seen, value) else f"{name} is {seen!r} instead of {value!r}"

    def run(
        self,
        settings: Any,
        callbacks: Callbacks,
        count: int,
        performance_count: int,
        out_dir: Path,
        first_query: int = 0,
    ) -> None:
        """Run the test; returns when LoadGen has written its logs. The data set has `count` samples.

        `first_query`: as many samples its first query has, if it is large.
        """
        m = self.module
        log = m.LogSettings()
        log.log_output.outdir = str(out_dir)
        log.log_output.copy_summary_to_stdout = False
        log.enable_trace = False
        # A path of our own: by default an audit.config in the working directory would be obeyed.
        audit: tuple[str, ...] = (str(out_dir / "audit.config"),)
        if self.old:
            audit = ()
            # In the test's own folder nobody but the plan of a compliance test puts one.
            if Path("audit.config").exists() and not Path.cwd().samefile(out_dir):
                raise LoadGenError(
                    f"an audit.config lies in {Path.cwd()}, and this LoadGen would obey it: remove it"
                )
        sut, destroy = self._construct(callbacks)
        in_place = self._in_place(sut, callbacks, first_query)
        load, unload = (_contained(f, callbacks.on_error) for f in (callbacks.load, callbacks.unload))
        qsl = m.ConstructQSL(count, performance_count, load, unload)
        try:
            with in_place:
                m.StartTestWithLogSettings(sut, qsl, settings, log, *audit)
        finally:
            m.DestroyQSL(qsl)
            destroy(sut)

    def _construct(self, callbacks: Callbacks) -> tuple[int, Callable[[int], None]]:
        m = self.module
        issue, on_error = callbacks.issue, callbacks.on_error
        if callbacks.name is not None:
            if not hasattr(m, "ConstructQDL"):
                raise LoadGenError(
                    "this LoadGen has no ConstructQDL: the Network division needs 2.1 or later"
                )

            def issue_boxed(samples: list[Any]) -> None:
                for piece in _pieces(samples):
                    issue(packed([s.id for s in piece], [s.index for s in piece]))

            name = _contained(callbacks.name, on_error)
            return m.ConstructQDL(_contained(issue_boxed, on_error), _flush, name), m.DestroyQDL

        def issue_lists(ids: list[int], indices: list[int]) -> None:
            for some_ids, some_indices in zip(_pieces(ids), _pieces(indices), strict=True):
                issue(packed(some_ids, some_indices))

        issue_contained = _contained(issue_lists, on_error)
        return m.ConstructFastSUT(issue_contained, _flush, *self._latencies), m.DestroyFastSUT

    def _in_place(
        self, sut: int, callbacks: Callbacks, first_query: int
    ) -> contextlib.AbstractContextManager[None]:
        """While it lasts this SUT's queries come as LoadGen has them, if that is known of this module."""
        if self._table is None or callbacks.name is not None:
            return contextlib.nullcontext()
        self.issue = "in place"
        issue, read = callbacks.issue, SampleReader(first_query).read

        def issue_read(_sut: int, vector: int) -> None:
            issue(read(vector))

        contained = _contained(issue_read, callbacks.on_error)
        return self._table.issued_in_place(sut, contained, callbacks.on_error)


def _pieces(whole: list[Any]) -> Iterator[list[Any]]:
    """It, PIECE by PIECE: the first are dealt while the rest become bytes."""
    for first in range(0, len(whole), PIECE):
        yield whole[first : first + PIECE]


def _flush() -> None:
    """Nothing is held back that a flush could release."""


def _no_latencies(_latencies: list[int]) -> None:
    """The latencies are read from the logs."""


def _contained(callback: Callable[..., Any], on_error: Callable[[BaseException], None]) -> Callable[..., Any]:
    """The callback without a way out for an exception, which would abort the process without a record."""

    def call(*arguments: Any) -> Any:
        try:
            return callback(*arguments)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                on_error(error)
        threading.Event().wait()
        return None

    return call


def _member(enum: Any, name: str, what: str) -> Any:
    found = getattr(enum, name, None)
    if found is None:
        known = ", ".join(enum.__members__)
        raise LoadGenError(f"this LoadGen has no {what} {name}; it has {known}")
    return found


def _set(settings: Any, name: str, value: Any) -> None:
    """Set an attribute as the number that it is here: old LoadGens have integers for some floats."""
    now = getattr(settings, name, None)
    if now is None:
        raise LoadGenError(f"this LoadGen has no setting {name}")
    if isinstance(now, int) and not isinstance(now, bool) and isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        setattr(settings, name, value)
    except TypeError:
        kind = type(now).__name__
        raise LoadGenError(
            f"the setting {name} of this LoadGen cannot be {value!r}: it is a {kind}"
        ) from None


def _same(seen: Any, expected: Any) -> bool:
    if isinstance(expected, float) or isinstance(seen, float):
        return bool(abs(float(seen) - float(expected)) <= 1e-9 * max(1.0, abs(float(expected))))
    return bool(seen == expected)
