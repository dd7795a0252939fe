"""LoadGen's queries, read where they lie.

LoadGen calls IssueQuery, a virtual function, with a reference to a vector of QuerySamples. Its Python module
then makes two lists of integers, in Offline inside the clock and before the first sample can be dealt, in
Server with the interpreter's lock held: 67 ns a sample at best; to copy the vector takes 2 (2 cores).

So the SUT that the module made gets a table of virtual functions of its own: a copy, but for IssueQuery.
LoadGen, its module and what it calls stay as they are. Where in the table IssueQuery stands is the word of
the C++ ABI that gcc and clang follow on Linux (Itanium's); it is looked at and tried first, and where
anything is otherwise lists are issued.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.machine import available_memory_bytes
from orchestrator.query_samples import SAMPLE_BYTES, packed
from workers.protocol import Buffer

WORD = 8
# No user address is above, on any 64-bit machine: x86 has 47 or 56 bits of them, aarch64 48 or 52.
USER_SPACE = 2**56
# Before the functions of a table stand what to add to a pointer for the whole object (nothing), and its type.
BEFORE = 2
# class SystemUnderTest: two destructors and these; old ones have ReportLatencyResults, too.
NAME, ISSUE_QUERY, FLUSH_QUERIES, MOST_FUNCTIONS = 2, 3, 4, 6
# Of what is free this may take, for LoadGen wants several times as much.
SHARE_OF_MEMORY = 4
TRIED = ([3 << 40, 5 << 50, 7], [11, 13, 1 << 33])

IssueQuery = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
# What this process can address, but for the first word. Nothing is read of it before it is indexed.
_memory = memoryview((ctypes.c_uint64 * (USER_SPACE // WORD - 1)).from_address(WORD)).cast("B").cast("Q")


def _words(begin: int, end: int) -> memoryview:
    return _memory[begin // WORD - 1 : end // WORD - 1]


def _word(address: int) -> int:
    return _memory[address // WORD - 1]


def samples_at(vector: int) -> memoryview:
    """The samples of the std::vector<QuerySample> at this address, while LoadGen's call lasts."""
    begin = vector // WORD - 1
    return _memory[_memory[begin] // WORD - 1 : _memory[begin + 1] // WORD - 1]


class SampleReader:
    """Keeps queries' samples. The first query has memory for so many samples that is there before it comes.

    Every page that a copy first touches the system must clear: of Offline's one query that takes longer than
    the copy, 5 ns a sample, inside the clock.
    """

    def __init__(self, samples: int) -> None:
        size_bytes = samples * SAMPLE_BYTES
        self._first = memoryview(b"")
        if size_bytes <= (available_memory_bytes() or 0) // SHARE_OF_MEMORY:
            with contextlib.suppress(MemoryError):  # a limit of this process's own
                self._first = memoryview(bytearray(b"\1") * size_bytes)

    def read(self, vector: int) -> Buffer:
        """A copy of the samples at this address."""
        samples, first = samples_at(vector), self._first
        if not first:
            return samples.tobytes()
        self._first, size_bytes = memoryview(b""), samples.nbytes
        if size_bytes > len(first):
            return samples.tobytes()
        first[:size_bytes] = samples.cast("B")
        return first[:size_bytes]


@dataclass(frozen=True)
class IssueTable:
    """The virtual functions of the SUTs that `ConstructFastSUT` makes."""

    address: int
    functions: int

    @contextlib.contextmanager
    def issued_in_place(
        self, sut: int, issue: Callable[[int, int], None], on_error: Callable[[BaseException], None]
    ) -> Iterator[None]:
        """LoadGen calls `issue` with this SUT and the address of the query's vector; it must not raise.

        What is raised all the same, by a signal or for want of memory before its first line, ctypes would
        only print, and LoadGen wait for an answer: `on_error` hears of it.
        """
        callback = IssueQuery(issue)
        unraisable = sys.unraisablehook

        def hear(what: Any) -> None:
            unraisable(what)
            if what.object is issue:
                on_error(what.exc_value)

        end = self.address + self.functions * WORD
        own = (ctypes.c_uint64 * (BEFORE + self.functions))(*_words(self.address - BEFORE * WORD, end))
        own[BEFORE + ISSUE_QUERY] = ctypes.cast(callback, ctypes.c_void_p).value or 0
        pointer = ctypes.c_uint64.from_address(sut)
        pointer.value = ctypes.addressof(own) + BEFORE * WORD
        sys.unraisablehook = hear
        try:
            yield
        finally:
            pointer.value = self.address
            sys.unraisablehook = unraisable


def issue_table(module: ModuleType, *more: Callable[..., None]) -> IssueTable | None:
    """Where the functions of this LoadGen module's SUTs are; None if that is not certain.

    `more` are the callbacks that its SUTs take after issue and flush.
    """
    heard: list[tuple[list[int], list[int]]] = []
    fast = module.ConstructFastSUT(lambda *lists: heard.append(lists), lambda: None, *more)
    slow = module.ConstructSUT(lambda _samples: None, lambda: None, *more)
    table = None
    try:
        # No /proc, a name in it that is no text, a pointer that is not of this address space.
        with contextlib.suppress(OSError, ValueError, IndexError):
            table = _looked_at(module, fast, slow)
        if table is not None:
            _try(table, fast)
    finally:
        module.DestroySUT(slow)
        module.DestroyFastSUT(fast)
    return table if heard == [TRIED] else None


def _looked_at(module: ModuleType, fast: int, slow: int) -> IssueTable | None:
    """The table, if what can be seen of it is as expected: two kinds of SUT differ in IssueQuery."""
    code, constants = _memory_of(module)
    address, other = _word(fast), _word(slow)
    around = [place + by * WORD for place in (address, other) for by in (-BEFORE, MOST_FUNCTIONS)]
    if address % WORD or other % WORD or not all(_lies_in(constants, place) for place in around):
        return None
    # One more than there may be: behind the last stands no function.
    functions = _words(address, address + (MOST_FUNCTIONS + 1) * WORD).tolist()
    others = _words(other, other + (MOST_FUNCTIONS + 1) * WORD).tolist()
    count = next((i for i, one in enumerate(functions) if not _lies_in(code, one)), len(functions))
    same = [one == another for one, another in zip(functions, others, strict=True)]
    if not FLUSH_QUERIES < count <= MOST_FUNCTIONS or same[NAME : FLUSH_QUERIES + 1] != [True, False, True]:
        return None
    return IssueTable(address, count)


def _try(table: IssueTable, sut: int) -> None:
    """Have the module's own IssueQuery issue a query whose vector is made here."""
    samples = packed(*TRIED)
    held = ctypes.create_string_buffer(samples, len(samples))
    begin = ctypes.addressof(held)
    # Where a vector has other fields, a debug build's, it is these zeros that are read, and nothing is heard.
    vector = (ctypes.c_uint64 * 16)(begin, begin + len(samples), begin + len(samples))
    IssueQuery(_word(table.address + ISSUE_QUERY * WORD))(sut, ctypes.addressof(vector))


def _memory_of(module: ModuleType) -> tuple[list[range], list[range]]:
    """Where this module's file lies in memory: its code, and what can be read of it besides."""
    code: list[range] = []
    data: list[range] = []
    file = str(Path(str(module.__file__)).resolve())
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        where, allowed, _, _, _, *name = line.split(maxsplit=5)
        if name == [file] and allowed.startswith("r"):
            begin, end = (int(bound, 16) for bound in where.split("-"))
            (code if "x" in allowed else data).append(range(begin, end))
    return code, data


def _lies_in(ranges: list[range], address: int) -> bool:
    return any(address in one for one in ranges)
