"""Large answers in memory that a worker shares with the test: where they lie, who may read, what is not."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import cluster
from orchestrator.campaign import Session
from orchestrator.shared_answers import SharedAnswers
from tests.processes import eventually
from workers import answer_memory
from workers.answer_memory import DATA_AT, LARGE_BYTES, NAME, SEALS, AnswerMemory, Room, memory_for
from workers.protocol import OFFER, ProtocolError

TIME_BUDGET_S = 20

PAGE = mmap.PAGESIZE
TOKEN = b"t" * 32

# A worker's process that only shares: it tells its offer, then waits to be killed.
SHARER = """
import sys, time, numpy as np
from workers.answer_memory import LARGE_BYTES, AnswerMemory
memory = AnswerMemory(LARGE_BYTES)
sys.stdout.write(memory.offer().hex() + "\\n")
at = memory.hand_over(np.full(LARGE_BYTES, 7, np.uint8))
sys.stdout.write(str(at) + "\\n")
sys.stdout.flush()
time.sleep(60)
"""


@pytest.fixture
def memory() -> Iterator[AnswerMemory]:
    made = AnswerMemory(2 * LARGE_BYTES)
    yield made
    made.close()


def filled(value: int, count: int = LARGE_BYTES) -> np.ndarray:
    return np.full(count, value, np.uint8)


# Room


@given(st.integers(0, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 12 * PAGE)), max_size=60))
def test_room_is_never_given_twice_and_all_of_it_comes_back(
    pages: int, moves: list[tuple[bool, int]]
) -> None:
    room, held = Room(pages * PAGE), dict[int, int]()
    for take, number in moves:
        if not take and held:
            offset = sorted(held)[number % len(held)]
            room.give(offset)
            del held[offset]
        elif (at := room.take(number)) is not None:
            assert at >= 0 and at + number <= room.size
            assert all(at + max(number, 1) <= o or o + max(n, 1) <= at for o, n in held.items())
            held[at] = number
    for offset in held:
        room.give(offset)
    assert room.take(room.size) == (0 if pages else None)


def test_room_that_is_too_small_in_one_piece_is_none() -> None:
    room = Room(4 * PAGE)
    assert [room.take(PAGE) for _ in range(5)] == [0, PAGE, 2 * PAGE, 3 * PAGE, None]
    room.give(0)
    room.give(2 * PAGE)
    assert room.take(2 * PAGE) is None and room.take(PAGE) == 0


# The worker's side


def test_an_answers_place_is_taken_until_the_test_has_read_it_and_nobody_holds_it(
    memory: AnswerMemory,
) -> None:
    one = memory.copy(filled(1))
    at = memory.hand_over(one)
    other = memory.hand_over(filled(2))
    assert at == 0 and other is not None and other >= LARGE_BYTES
    assert memory.hand_over(filled(3)) is None
    assert not np.shares_memory(memory.copy(filled(3)), one)
    memory.free(at)
    assert memory.hand_over(filled(3)) is None  # `one` is still held
    assert one.tobytes() == bytes(filled(1))
    del one
    assert memory.hand_over(filled(4)) == at
    memory.free(other)
    assert memory.hand_over(filled(5)) == other


def test_what_the_engine_still_writes_outlives_its_test(memory: AnswerMemory) -> None:
    late = memory.copy(filled(1))
    assert memory.hand_over(filled(2)) == LARGE_BYTES
    memory.offer()
    assert memory.hand_over(filled(3)) == LARGE_BYTES  # the last test is over, so what it had is free
    assert memory.hand_over(filled(4)) is None and late.tobytes() == bytes(filled(1))


def test_what_the_engine_still_writes_when_the_memory_is_given_back_goes_elsewhere() -> None:
    memory = AnswerMemory(2 * LARGE_BYTES)
    early = memory.copy(filled(1))
    for _ in range(2):
        memory.close()
    late = memory.copy(filled(2))
    assert late.tobytes() == bytes(filled(2)) and memory.hand_over(filled(3)) is None
    assert early.tobytes() == bytes(filled(1))


def test_small_answers_and_views_of_large_ones(memory: AnswerMemory) -> None:
    assert memory.hand_over(filled(1, LARGE_BYTES - 1)) is None
    kept = memory.copy(filled(2)).reshape(-1, 2).reshape(-1)
    assert memory.hand_over(kept) == 0
    with pytest.raises(ProtocolError, match="gives back an answer at 4096"):
        memory.free(4096)
    memory.free(0)
    with pytest.raises(ProtocolError, match="gives back an answer at 0"):
        memory.free(0)


def test_memory_is_kept_while_it_is_large_enough_and_never_more_than_can_be_spared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert memory_for(LARGE_BYTES - 1, None) is None
    first = memory_for(LARGE_BYTES, None)
    assert first is not None and first.size >= 4 * LARGE_BYTES
    assert memory_for(LARGE_BYTES, first) is first and memory_for(4, first) is first
    larger = memory_for(2 * LARGE_BYTES, first)
    assert larger is not None and larger is not first and larger.size >= 8 * LARGE_BYTES
    larger.close()
    monkeypatch.setattr(answer_memory, "available_memory_bytes", lambda: 20 * LARGE_BYTES)
    scarce = memory_for(2 * LARGE_BYTES, None)
    assert scarce is not None and 2 * LARGE_BYTES <= scarce.size < 3 * LARGE_BYTES
    assert memory_for(2 * LARGE_BYTES, scarce) is scarce
    assert memory_for(3 * LARGE_BYTES, scarce) is None


def test_a_system_without_such_memory_means_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert memory_for(LARGE_BYTES, None) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_nobody_can_take_pages_away(memory: AnswerMemory) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(memory._fd, 0)
    punch_hole = 3
    system = ctypes.CDLL(None, use_errno=True)
    assert system.fallocate(memory._fd, punch_hole, ctypes.c_long(0), ctypes.c_long(PAGE)) == -1
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


# The test's side


def offer_of(fd: int, token: bytes = TOKEN, pid: int = 0) -> bytes:
    return OFFER.pack(pid or os.getpid(), fd, token)


def sealed(size: int = DATA_AT + PAGE, seals: int = SEALS, name: str = NAME, whole: bool = True) -> int:
    fd = os.memfd_create(name, os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if whole and size:
        os.posix_fallocate(fd, 0, size)
    os.pwrite(fd, TOKEN, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_the_test_reads_what_a_worker_of_its_own_host_wrote(memory: AnswerMemory) -> None:
    test = SharedAnswers([3])
    assert test.of(3) is None
    assert test.accept(3, memory.offer()) and test.refused == {}
    seen = test.of(3)
    assert seen is not None and seen.size == memory.size and not seen.flags.writeable
    at = memory.hand_over(filled(9))
    assert at is not None and seen[at : at + LARGE_BYTES].tobytes() == bytes(filled(9))
    assert not test.accept(3, memory.offer()) and not test.accept(2, memory.offer())


REFUSED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a stranger's token": (lambda folder: offer_of(sealed(), b"u" * 32), "another process's"),
    "no seals": (lambda folder: offer_of(sealed(seals=0)), "could be truncated"),
    "one seal too few": (lambda folder: offer_of(sealed(seals=SEALS & ~2)), "could be truncated"),
    "pages not there": (
        lambda folder: offer_of(sealed(1 << 30, fcntl.F_SEAL_SEAL | 0x16, whole=False)),
        "cannot be held",
    ),
    "nothing in it": (lambda folder: offer_of(sealed(DATA_AT)), "4096 bytes of it cannot be held"),
    "another's memory": (lambda folder: offer_of(sealed(name="other")), "no memory for answers"),
    "a file": (lambda folder: offer_of(os.open(folder / NAME, os.O_CREAT | os.O_RDWR)), "no memory"),
    "a pipe": (lambda folder: offer_of(os.pipe()[0]), "no memory for answers"),
    "a device": (lambda folder: offer_of(os.open("/dev/zero", os.O_RDONLY)), "no memory for answers"),
    "nothing": (lambda folder: offer_of(9999), "cannot be opened here: No such file"),
    "numbers beyond any": (lambda folder: OFFER.pack(2**64 - 1, 2**64 - 1, TOKEN), "cannot be opened"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_memory_that_is_not_safe_to_read_is_refused_with_a_reason(what: str, tmp_path: Path) -> None:
    offer, why = REFUSED[what]
    before = set(os.listdir("/proc/self/fd"))
    test = SharedAnswers([0])
    told = offer(tmp_path)
    assert not test.accept(0, told) and test.of(0) is None
    assert why in test.refused[0]
    for fd in {int(name) for name in set(os.listdir("/proc/self/fd")) - before}:
        if os.path.lexists(f"/proc/self/fd/{fd}"):
            os.close(fd)


@given(st.binary(max_size=60))
def test_what_is_no_offer_is_refused(body: bytes) -> None:
    test = SharedAnswers([0])
    if len(body) == OFFER.size:
        assert not test.accept(0, body)
    else:
        with pytest.raises(ProtocolError, match="a SHARE message has"):
            test.accept(0, body)


def test_the_answers_of_a_killed_worker_stay_readable_and_leave_nothing_behind() -> None:
    before = os.listdir("/dev/shm")
    with subprocess.Popen([sys.executable, "-c", SHARER], stdout=subprocess.PIPE, text=True) as sharer:
        assert sharer.stdout is not None
        offer, at = bytes.fromhex(sharer.stdout.readline()), int(sharer.stdout.readline())
        test = SharedAnswers([0])
        assert test.accept(0, offer), test.refused
        sharer.send_signal(signal.SIGKILL)
        sharer.wait(5)
    seen = test.of(0)
    assert seen is not None and seen[at : at + LARGE_BYTES].tobytes() == bytes(filled(7))
    assert sorted(os.listdir("/dev/shm")) == sorted(before)
    late = SharedAnswers([0])
    assert eventually(lambda: not late.accept(0, offer), 2)


# Who is asked to


@pytest.mark.parametrize(("division", "near"), [("closed", [True, False]), ("network", [False, False])])
def test_only_workers_on_loadgens_host_share_and_none_in_the_network_division(
    monkeypatch: pytest.MonkeyPatch, division: str, near: list[bool]
) -> None:
    monkeypatch.setattr(cluster, "node_address", lambda: "10.0.0.1")
    facts = [
        {"name": f"w{i}", "node": node, "max_batch": 8, "warm_up": [[1, 0.001]]}
        for i, node in enumerate(("10.0.0.1", "10.0.0.2"))
    ]
    manifest = SimpleNamespace(division=division, dispatch=SimpleNamespace(security="none"))
    fleet = SimpleNamespace(facts=facts, names=["w0", "w1"])
    session: Any = SimpleNamespace(manifest=manifest, fleet=fleet, stop=None)
    assert [seat.near for seat in Session._seats(session)] == near
