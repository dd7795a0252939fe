"""The Dispatcher event by event: who gets what, what an answer completes, what a loss moves or ends."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from orchestrator.dispatch import Completion, Dispatcher, Lump, NoWorkers, PeerFault, Send
from orchestrator.pace import Pace
from orchestrator.query_samples import packed
from workers.protocol import Answer, Responses, Segment

TIME_BUDGET_S = 5
MS, S = 10**6, 10**9
FIRST = 1 << 46  # LoadGen's ids are pointers


def paced(batch_ms: float = 8.0, max_batch: int = 8) -> Pace:
    return Pace([(1, batch_ms / 1e3 / 2), (max_batch, batch_ms / 1e3)], max_batch)


def dispatcher(workers: int = 2, **options: object) -> Dispatcher:
    return Dispatcher([(f"node/{i}", paced()) for i in range(workers)], **options)  # type: ignore[arg-type]


def issue(d: Dispatcher, first: int, n: int, at_ns: int = 0) -> None:
    """Issue samples first..first+n-1; a sample's id is FIRST more than its index."""
    d.issue(Lump(packed(range(FIRST + first, FIRST + first + n), range(first, first + n)), at_ns))


def answer(*segments: Segment, width: int = 4, sizes: list[int] | None = None) -> Answer:
    """An answer to `segments`; response number i is i times over."""
    total = sum(s.count for s in segments)
    each = [width] * total if sizes is None else sizes
    blob = np.repeat(np.arange(total, dtype=np.uint8), each)
    return Answer(
        list(segments), 0, 4 * MS, 4 * MS, total, Responses(blob, None if sizes is None else np.array(sizes))
    )


def whole(send: Send) -> Segment:
    return Segment(send.frame, 0, len(send.indices))


def told(done: Completion | None) -> dict[int, bytes]:
    """What LoadGen hears: sample (by index) -> response."""
    if done is None:
        return {}
    sizes = np.broadcast_to(done.sizes, len(done.ids))
    offsets = np.cumsum(sizes) - sizes if done.offsets is None else done.offsets
    ids = (done.ids - np.uint64(FIRST)).tolist()
    return {
        i: bytes(done.blob[at : at + n])
        for i, at, n in zip(ids, offsets.tolist(), sizes.tolist(), strict=True)
    }


def given(sends: list[Send]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for send in sends:
        found.setdefault(send.worker, []).extend(send.indices.tolist())
    return found


def nothing_is_left(d: Dispatcher) -> bool:
    empty = not d._flights and not d._queue and not d.waiting and not d.outstanding
    return empty and all(not s.flights and not s.outstanding for s in d.seats)


# Dealing


def test_nothing_is_sent_while_nothing_waits() -> None:
    assert dispatcher().sends(0) == []


def test_an_idle_worker_is_sent_a_sample_at_once() -> None:
    d = dispatcher()
    issue(d, 5, 1)
    (send,) = d.sends(0)
    assert (send.worker, send.indices.tolist()) == (0, [5]) and send.indices.dtype == np.uint32


def test_samples_go_to_the_worker_that_will_finish_them_soonest() -> None:
    d = dispatcher(3)
    for sample in range(3):
        issue(d, sample, 1)
        assert [s.worker for s in d.sends(0)] == [sample]


def test_a_worker_holds_two_batches_and_the_rest_waits_here() -> None:
    d = dispatcher(2)
    issue(d, 0, 100)
    assert {w: len(g) for w, g in given(d.sends(0)).items()} == {0: 16, 1: 16}
    assert (d.waiting, d.outstanding, d.sends(1)) == (68, 100, [])


def test_noise_in_the_paces_does_not_break_batches_up() -> None:
    d = Dispatcher([(f"node/{i}", paced(8 + i / 4)) for i in range(8)])
    issue(d, 0, 1000)
    assert {len(g) for g in given(d.sends(0)).values()} == {16}


def test_an_answer_gives_credit_back_to_its_worker() -> None:
    d = dispatcher(2)
    issue(d, 0, 100)
    first = d.sends(0)[0]
    d.answer(first.worker, answer(whole(first)), 8 * MS)
    sends = d.sends(8 * MS)
    assert [(s.worker, len(s.indices)) for s in sends] == [(first.worker, len(first.indices))]


def test_a_part_of_an_answer_gives_a_part_of_the_credit_back() -> None:
    d = dispatcher(1)
    issue(d, 0, 100)
    (first,) = d.sends(0)
    d.answer(0, answer(Segment(first.frame, 0, 8, range(8))), 8 * MS)
    assert [len(s.indices) for s in d.sends(8 * MS)] == [8]


def test_the_oldest_samples_go_first_and_keep_their_order() -> None:
    d = dispatcher(1)
    issue(d, 0, 10)
    issue(d, 10, 3)
    issue(d, 13, 7)
    (send,) = d.sends(0)
    assert send.indices.tolist() == list(range(16))


def test_a_large_lump_is_dealt_like_a_small_one() -> None:
    d = dispatcher(2)
    issue(d, 0, 20_000)
    answered: dict[int, bytes] = {}
    for _ in range(3000):
        for send in d.sends(0):
            answered |= told(d.answer(send.worker, answer(whole(send)), MS))
    assert sorted(answered) == list(range(20_000)) and nothing_is_left(d)


def test_a_query_is_split_over_idle_workers_only_where_a_piece_is_worth_a_frame() -> None:
    slow = Dispatcher([(f"node/{i}", paced(130)) for i in range(8)])
    issue(slow, 0, 8)
    assert [len(s.indices) for s in slow.sends(0)] == [1] * 8
    quick = Dispatcher([(f"node/{i}", paced(0.08)) for i in range(8)])
    issue(quick, 0, 8)
    assert [len(s.indices) for s in quick.sends(0)] == [8]


def test_in_the_network_division_every_message_holds_one_sample() -> None:
    d = dispatcher(2, one_sample_frames=True)
    issue(d, 0, 7)
    sends = d.sends(0)
    assert [len(s.indices) for s in sends] == [1] * 7
    assert sorted(i for g in given(sends).values() for i in g) == list(range(7))
    assert {s.worker for s in sends} == {0, 1}


def test_a_much_slower_worker_is_left_alone_until_the_fast_ones_are_busy_for_longer() -> None:
    d = Dispatcher([("fast", paced(8)), ("slow", paced(80))])
    issue(d, 0, 8)
    assert set(given(d.sends(0))) == {0}
    issue(d, 8, 400)
    assert {w: len(g) for w, g in given(d.sends(0)).items()} == {0: 8, 1: 16}


def test_the_wire_of_a_distant_worker_widens_its_credit() -> None:
    d = dispatcher(1)
    d.seats[0].wire_s = 0.020
    issue(d, 0, 100)
    assert len(d.sends(0)[0].indices) == 40


def test_an_engine_of_three_slots_holds_three_batches_and_one_that_waits() -> None:
    d = Dispatcher([("node/0", Pace([(1, 0.004), (8, 0.008)], 8, slots=3))])
    d.seats[0].wire_s = 0.0001
    issue(d, 0, 100)
    assert len(d.sends(0)[0].indices) == 32


# Answers


def test_an_answer_tells_loadgen_each_sample_with_its_own_response() -> None:
    d = dispatcher(1)
    issue(d, 0, 3)
    (send,) = d.sends(0)
    done = told(d.answer(0, answer(whole(send), sizes=[1, 0, 2]), MS))
    assert done == {0: b"\0", 1: b"", 2: b"\2\2"} and nothing_is_left(d)


def test_one_answer_may_hold_several_frames_and_a_frame_may_need_several_answers() -> None:
    d = dispatcher(1)
    issue(d, 0, 2)
    (a,) = d.sends(0)
    issue(d, 2, 4)
    (b,) = d.sends(0)
    assert told(d.answer(0, answer(whole(a), Segment(b.frame, 0, 2, range(1, 3)), width=1), MS)) == {
        0: b"\0", 1: b"\1", 3: b"\2", 4: b"\3",
    }  # fmt: skip
    rest = Segment(b.frame, 0, 2, np.array([3, 0], np.uint32))
    assert told(d.answer(0, answer(rest, width=1), MS)) == {5: b"\0", 2: b"\1"}
    assert nothing_is_left(d)


@pytest.mark.parametrize("sizes", [None, [3, 1, 2, 5]])
def test_what_was_answered_before_completes_nothing_and_the_rest_keeps_its_bytes(
    sizes: list[int] | None,
) -> None:
    d = dispatcher(1)
    issue(d, 0, 4)
    (send,) = d.sends(0)
    d.answer(0, answer(Segment(send.frame, 0, 2, np.array([0, 2], np.uint32))), MS)
    done = told(d.answer(0, answer(whole(send), sizes=sizes), MS))
    want = sizes or [4] * 4
    assert done == {1: b"\1" * want[1], 3: b"\3" * want[3]}
    assert (d.late, nothing_is_left(d)) == (2, True)


def test_an_answer_delivered_twice_completes_nothing_the_second_time() -> None:
    d = dispatcher(1)
    issue(d, 0, 4)
    (send,) = d.sends(0)
    assert len(told(d.answer(0, answer(whole(send)), MS))) == 4
    assert d.answer(0, answer(whole(send)), MS) is None
    assert (d.late, d.completed, nothing_is_left(d)) == (4, 4, True)


def test_a_late_answer_that_claims_billions_of_samples_costs_nothing() -> None:
    d = dispatcher(1)
    issue(d, 0, 1)
    (a,) = d.sends(0)
    issue(d, 1, 2)
    (b,) = d.sends(0)
    d.answer(0, answer(whole(a)), MS)
    lie = Answer([Segment(a.frame, 0, 2**32 - 1), whole(b)], 0, 0, 0, 1, Responses(np.empty(0, np.uint8)))
    tracemalloc.start()
    try:
        assert told(d.answer(0, lie, MS)) == {1: b"", 2: b""}
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


FAULTS = {
    "a frame never issued": (0, lambda frame: Segment(frame + 1, 0, 1), "node/0.*frame 2.*never issued"),
    "frame zero": (0, lambda frame: Segment(0, 0, 1), "node/0.*frame 0.*never issued"),
    "another worker's frame": (1, lambda frame: Segment(frame, 0, 4), "node/1.*went to node/0"),
    "more samples than the frame": (0, lambda frame: Segment(frame, 0, 5), "node/0.*5 samples.*which has 4"),
    "fewer samples than the frame": (0, lambda frame: Segment(frame, 0, 3), "node/0.*3 samples.*which has 4"),
    "a range beyond the frame": (0, lambda frame: Segment(frame, 0, 2, range(3, 5)), "node/0.*4"),
    "a range of billions": (0, lambda frame: Segment(frame, 0, 2**32 - 1, range(2**32 - 1)), "node/0.*has 4"),
    "a listed position": (0, lambda frame: Segment(frame, 0, 1, np.array([4], np.uint32)), "node/0.* 4"),
    "a position twice": (0, lambda frame: Segment(frame, 0, 2, np.array([1, 1], np.uint32)), "node/0.*twice"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_no_worker_may_give_names_the_worker(fault: str) -> None:
    worker, segment, message = FAULTS[fault]
    d = Dispatcher([("node/0", paced(0.08)), ("node/1", paced(0.08))])  # too quick to split four samples
    issue(d, 0, 4)
    (send,) = d.sends(0)
    wrong = Answer([segment(send.frame)], 0, 0, 0, 1, Responses(np.empty(0, np.uint8)))
    with pytest.raises(PeerFault, match=message):
        d.answer(worker, wrong, MS)


# Losses


def test_the_samples_of_a_lost_worker_go_first_and_under_new_frame_numbers() -> None:
    d = dispatcher(2)
    issue(d, 0, 100)
    sends = d.sends(0)
    lost = given(sends)[0]
    loss = d.lose(0, "its link closed", 3 * MS)
    assert loss is not None and (loss.worker, loss.at_ns, loss.moved) == ("node/0", 3 * MS, 16)
    for send in sends:
        if send.worker == 1:
            d.answer(1, answer(whole(send)), 8 * MS)
    again = d.sends(8 * MS)
    assert [i for s in again for i in s.indices.tolist()] == lost
    assert {s.worker for s in again} == {1} and min(s.frame for s in again) > max(s.frame for s in sends)


def test_only_what_was_not_answered_moves() -> None:
    d = dispatcher(2)
    issue(d, 0, 4)
    send = next(s for s in d.sends(0) if s.worker == 0)
    d.answer(0, answer(Segment(send.frame, 0, 1, range(1, 2))), MS)
    loss = d.lose(0, "gone", MS)
    assert loss is not None and loss.moved == len(send.indices) - 1
    moved = [i for s in d.sends(MS) for i in s.indices.tolist()]
    assert moved == [i for n, i in enumerate(send.indices.tolist()) if n != 1]


def test_an_answer_after_the_re_issue_completes_nothing() -> None:
    d = dispatcher(2)
    issue(d, 0, 1)
    (first,) = d.sends(0)
    d.lose(0, "gone", MS)
    (second,) = d.sends(MS)
    assert second.worker == 1 and second.frame != first.frame
    assert d.answer(0, answer(whole(first)), 2 * MS) is None
    assert told(d.answer(1, answer(whole(second)), 3 * MS)).keys() == {0}
    assert d.answer(0, answer(whole(first)), 4 * MS) is None
    assert (d.late, d.completed, nothing_is_left(d)) == (2, 1, True)


def test_a_worker_is_lost_once() -> None:
    d = dispatcher(2)
    assert d.lose(0, "link", MS) is not None
    assert d.lose(0, "Ray", 2 * MS) is None
    assert [x.reason for x in d.losses] == ["link"]


def test_a_lost_worker_is_sent_nothing_more() -> None:
    d = dispatcher(2)
    d.lose(0, "gone", 0)
    issue(d, 0, 50)
    assert set(given(d.sends(0))) == {1}


def test_the_last_worker_lost_ends_the_test_by_name() -> None:
    d = dispatcher(2)
    issue(d, 0, 5)
    d.lose(0, "gone", 0)
    with pytest.raises(NoWorkers, match="node/1 was lost .cable.*no worker is left"):
        d.lose(1, "cable", 0)
    with pytest.raises(NoWorkers, match="node/1.*cable.*5 samples wait"):
        d.sends(0)


def test_any_loss_ends_the_test_by_name_where_on_loss_is_fail() -> None:
    d = dispatcher(3, on_loss="fail")
    issue(d, 0, 5)
    d.sends(0)
    with pytest.raises(NoWorkers, match="node/2 was lost .cable.*on_loss is 'fail'"):
        d.lose(2, "cable", MS)
    assert [x.worker for x in d.losses] == ["node/2"]


def test_a_hang_is_seen_after_five_seconds_and_not_before() -> None:
    d = dispatcher(2)
    issue(d, 0, 1)
    d.sends(1 * S)
    assert d.hung(int(5.9 * S)) == []
    assert [number for number, age_s in d.hung(int(6.1 * S)) if age_s > 5] == [0]


def test_a_slow_engine_that_holds_much_is_not_a_hang() -> None:
    d = Dispatcher([("node/0", paced(2000))])
    issue(d, 0, 16)
    d.sends(0)
    assert d.hung(79 * S) == []  # twenty times two batches of two seconds
    assert len(d.hung(81 * S)) == 1


def test_a_worker_that_answers_everything_but_one_frame_is_hung() -> None:
    d = dispatcher(1)
    issue(d, 0, 1)
    d.sends(0)
    for second in range(1, 6):
        issue(d, second, 1)
        (send,) = d.sends(second * S)
        d.answer(0, answer(whole(send)), second * S)
    assert [number for number, _ in d.hung(6 * S)] == [0]
