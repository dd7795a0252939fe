"""The frames: what goes in comes out, and what no LoadGrid sends is refused with a reason."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.protocol import (
    FAR_NS,
    HEAD,
    INLINE_BYTES,
    MAGIC,
    OWN_PART_BYTES,
    SEGMENT,
    STAGES,
    VERSION,
    Answer,
    Buffer,
    Form,
    Kind,
    ProtocolError,
    Responses,
    Segment,
    control,
    control_body,
    decode_answer,
    decode_work,
    encode_answer,
    encode_work,
    indices_body,
    indices_message,
    read_head,
)

TIME_BUDGET_S = 15

CONTROL_KINDS = sorted(set(Kind) - {Kind.WORK, Kind.ANSWER})
EPOCHS = st.integers(0, 2**32 - 1)
FRAMES = st.integers(1, 2**64 - 1)
TIMES = st.integers(0, FAR_NS - 1)
U32 = st.integers(0, 2**32 - 1)


def read(parts: list[Buffer]) -> Any:
    """Whatever a message says, as the side that receives it would read it."""
    head = read_head(parts[0])
    if head.kind is Kind.WORK:
        return decode_work(head, parts)
    if head.kind is Kind.ANSWER:
        return decode_answer(head, parts)
    return indices_body(parts) if head.kind in (Kind.LOAD, Kind.UNLOAD) else control_body(parts)


def copied(parts: list[Buffer]) -> list[Buffer]:
    """The parts as a wire delivers them."""
    return [bytes(p) for p in parts]


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    frame, received = draw(FRAMES), draw(TIMES)
    form = draw(st.sampled_from(Form))
    if form is Form.WHOLE:
        return Segment(frame, received, draw(st.integers(1, 9)))
    if form is Form.RANGE:
        start, count = draw(st.integers(0, 2**32 - 10)), draw(st.integers(1, 9))
        return Segment(frame, received, count, range(start, start + count))
    listed = np.array(draw(st.lists(U32, min_size=1, max_size=9, unique=True)), np.uint32)
    return Segment(frame, received, len(listed), listed)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    named = draw(st.lists(segments(), min_size=1, max_size=5))
    total = sum(s.count for s in named)
    # Some answers travel inside the head part and some beside it.
    width = draw(st.sampled_from([0, 1, 4, 1 + INLINE_BYTES // total]))
    if draw(st.booleans()):
        sizes = np.array(draw(st.lists(st.integers(0, width), min_size=total, max_size=total)), np.int64)
    else:
        sizes = None
    blob = np.arange(total * width if sizes is None else int(sizes.sum())).astype(np.uint8)
    times = draw(st.tuples(TIMES, TIMES, TIMES))
    return Answer(named, *times, draw(U32), Responses(blob, sizes))


def positions_of(segment: Segment) -> list[int] | None:
    return None if segment.positions is None else [int(p) for p in segment.positions]


@st.composite
def messages(draw: st.DrawFn) -> list[Buffer]:
    """A good message of any kind."""
    kind, epoch = draw(st.sampled_from(Kind)), draw(EPOCHS)
    if kind is Kind.ANSWER:
        return copied(encode_answer(epoch, draw(answers())))
    if kind in (Kind.LOAD, Kind.UNLOAD):
        return indices_message(kind, epoch, np.array(draw(st.lists(U32, max_size=9)), np.int64))
    if kind is not Kind.WORK:
        return control(kind, epoch, draw(FRAMES), draw(st.binary(max_size=40)))
    sizes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=6))
    if draw(st.booleans()):
        sizes[-1] = OWN_PART_BYTES + 1
    samples = [memoryview(bytes(size)) for size in sizes] if draw(st.booleans()) else []
    return copied(encode_work(epoch, draw(FRAMES), np.arange(len(sizes), dtype=np.uint32), samples))


@given(st.sampled_from(CONTROL_KINDS), EPOCHS, st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_a_control_message_of_every_kind_comes_back_as_it_went(
    kind: Kind, epoch: int, number: int, body: bytes
) -> None:
    parts = control(kind, epoch, number, body)
    head = read_head(parts[0])
    assert (head.kind, head.epoch, head.number) == (kind, epoch, number)
    assert control_body(parts) == body


@given(st.sampled_from([Kind.LOAD, Kind.UNLOAD]), st.lists(U32, max_size=50))
def test_indices_to_load_come_back_as_they_went(kind: Kind, indices: list[int]) -> None:
    back = indices_body(indices_message(kind, 1, np.array(indices, np.int64)))
    assert back.dtype == np.int64 and back.tolist() == indices


@given(EPOCHS, FRAMES, st.lists(U32, min_size=1, max_size=50))
def test_work_of_indices_comes_back_as_it_went(epoch: int, frame: int, indices: list[int]) -> None:
    parts = encode_work(epoch, frame, np.array(indices, np.uint32))
    assert len(parts) == 1
    head = read_head(parts[0])
    work = decode_work(head, parts)
    assert (head.epoch, work.frame, work.indices.tolist(), work.samples) == (epoch, frame, indices, [])


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.booleans())
def test_work_with_samples_comes_back_as_it_went(samples: list[bytes], large: bool) -> None:
    if large:
        samples[0] = bytes(OWN_PART_BYTES + 1)
    parts = encode_work(3, 9, np.arange(len(samples), dtype=np.uint32), [memoryview(s) for s in samples])
    assert len(parts) == (1 + len(samples) if large else 2)
    work = decode_work(read_head(parts[0]), copied(parts))
    assert [bytes(s) for s in work.samples] == samples


@given(EPOCHS, answers())
def test_an_answer_comes_back_as_it_went(epoch: int, answer: Answer) -> None:
    parts = copied(encode_answer(epoch, answer))
    head = read_head(parts[0])
    back = decode_answer(head, parts)
    assert head.epoch == epoch
    assert [(s.frame, s.received_ns, s.count) for s in back.segments] == [
        (s.frame, s.received_ns, s.count) for s in answer.segments
    ]
    assert [positions_of(s) for s in back.segments] == [positions_of(s) for s in answer.segments]
    for name in ("started_ns", "computed_ns", "sent_ns", "batch_size"):
        assert getattr(back, name) == getattr(answer, name)
    assert back.responses.blob.tobytes() == answer.responses.blob.tobytes()
    sizes, sent = back.responses.sizes, answer.responses.sizes
    assert (sizes is None) == (sent is None)
    if sizes is not None and sent is not None:
        assert sizes.tolist() == sent.tolist()


def test_a_large_answer_travels_without_a_copy_of_its_bytes() -> None:
    blob = np.zeros(INLINE_BYTES + 1, np.uint8)
    parts = encode_answer(1, Answer([Segment(1, 0, 1)], 0, 0, 0, 1, Responses(blob)))
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), blob)
    back = decode_answer(read_head(parts[0]), parts)
    assert np.shares_memory(back.responses.blob, blob)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_random_bytes_are_refused_with_a_reason(parts: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match=r"\w"):
        read(list(parts))


@settings(max_examples=300)
@given(
    st.sampled_from(Kind), st.binary(max_size=200), st.lists(st.binary(max_size=50), max_size=3), st.data()
)
def test_random_bytes_behind_a_good_header_are_read_or_refused_and_nothing_else(
    kind: Kind, body: bytes, more: list[bytes], data: st.DataObject
) -> None:
    small = st.integers(0, 20)
    head = HEAD.pack(MAGIC, VERSION, kind, 1, data.draw(small), data.draw(small), data.draw(small))
    accepted_or_refused([head + body, *more])


@settings(max_examples=300)
@given(messages(), st.data())
def test_a_message_cut_anywhere_is_refused(parts: list[Buffer], data: st.DataObject) -> None:
    part = data.draw(st.integers(0, len(parts) - 1))
    if not len(parts[part]):
        return
    end = data.draw(st.integers(0, len(parts[part]) - 1))
    was = read(list(parts))
    parts[part] = parts[part][:end]
    # An answer whose responses are all of one size does not state that size: cut at a multiple, it is a
    # shorter answer.
    if isinstance(was, Answer) and was.responses.sizes is None:
        accepted_or_refused(parts)
    else:
        with pytest.raises(ProtocolError):
            read(parts)


@settings(max_examples=200)
@given(messages(), st.binary(min_size=1, max_size=9), st.booleans())
def test_a_message_with_more_than_it_states_is_refused(
    parts: list[Buffer], extra: bytes, as_part: bool
) -> None:
    was = read(list(parts))
    if not as_part and isinstance(was, Answer) and was.responses.sizes is None:
        return  # longer responses of one size are a good answer
    changed = [*parts, extra] if as_part else [*parts[:-1], bytes(parts[-1]) + extra]
    with pytest.raises(ProtocolError):
        read(changed)


@settings(max_examples=500)
@given(messages(), st.data())
def test_a_message_with_changed_bytes_is_read_or_refused_and_nothing_else(
    parts: list[Buffer], data: st.DataObject
) -> None:
    head = bytearray(parts[0])
    for _ in range(data.draw(st.integers(1, 4))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    accepted_or_refused([bytes(head), *parts[1:]])


def accepted_or_refused(parts: list[Buffer]) -> None:
    """Read a message; what is accepted must fit together, what is not must be a ProtocolError."""
    try:
        back = read(parts)
    except ProtocolError:
        return
    if not isinstance(back, Answer):
        return
    total, r = sum(s.count for s in back.segments), back.responses
    assert all(s.positions is None or len(s.positions) == s.count for s in back.segments)
    if r.sizes is None:
        assert r.blob.size % total == 0
    else:
        assert len(r.sizes) == total and r.sizes.min() >= 0 and sum(r.sizes.tolist()) == r.blob.size


@pytest.mark.parametrize("version", [0, VERSION + 1, 255])
def test_another_version_of_the_protocol_is_named(version: int) -> None:
    with pytest.raises(ProtocolError, match=f"speaks version {version}.*speaks {VERSION}"):
        read_head(HEAD.pack(MAGIC, version, Kind.PING, 0, 0, 0, 0))


def test_a_message_of_something_else_is_refused_by_its_first_bytes() -> None:
    with pytest.raises(ProtocolError, match="starts with b'GE'"):
        read_head(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")


@pytest.mark.parametrize("kind", [0, 18, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"kind of message {kind}"):
        read_head(HEAD.pack(MAGIC, VERSION, kind, 0, 0, 0, 0))


def answer_bytes(
    table: list[tuple[int, ...]],
    number: int | None = None,
    extra: int = 0,
    bits: int = 2,
    tail: bytes = b"",
    **times: int,
) -> bytes:
    """An ANSWER made by hand: rows of (frame, received, count, form, start, reserved)."""
    total = sum(row[2] for row in table) if number is None else number
    stages = [times.get(name, 5) for name in ("started", "computed", "sent")]
    head = HEAD.pack(MAGIC, VERSION, Kind.ANSWER, 1, total, len(table), extra)
    return head + STAGES.pack(*stages, 1, bits) + b"".join(SEGMENT.pack(*row) for row in table) + tail


MOST = 2**32 - 1
LIES = {
    "no segment": answer_bytes([]),
    "a segment of no sample": answer_bytes([(1, 5, 0, Form.WHOLE, 0, 0)]),
    "more samples than its segments": answer_bytes([(1, 5, 2, Form.WHOLE, 0, 0)], number=3),
    "fewer samples than its segments": answer_bytes([(1, 5, 2, Form.WHOLE, 0, 0)], number=1),
    "a list that is not there": answer_bytes([(1, 5, MOST, Form.LIST, 0, 0)], extra=MOST),
    "a list that it does not count": answer_bytes([(1, 5, 1, Form.LIST, 0, 0)], tail=bytes(4)),
    "a list counted that is not there": answer_bytes([(1, 5, 1, Form.WHOLE, 0, 0)], extra=1, tail=bytes(4)),
    "a range beyond any frame": answer_bytes([(1, 5, 2, Form.RANGE, MOST, 0)]),
    "an unknown form": answer_bytes([(1, 5, 1, 3, 0, 0)]),
    "reserved bits": answer_bytes([(1, 5, 1, Form.WHOLE, 0, 1)]),
    "unknown response bits": answer_bytes([(1, 5, 1, Form.WHOLE, 0, 0)], bits=6),
    "sizes that are not there": answer_bytes([(1, 5, MOST, Form.WHOLE, 0, 0)], bits=3),
    "sizes whose sum overflows to the right one": answer_bytes(
        [(1, 5, 4, Form.WHOLE, 0, 0)], bits=3, tail=np.full(4, 2**62, "<u8").tobytes()
    ),
    "sizes whose sum wraps around": answer_bytes(
        [(1, 5, 2, Form.WHOLE, 0, 0)], bits=3, tail=np.array([2**64 - 1, 5], "<u8").tobytes() + b"1234"
    ),
    "bytes that no sample owns": answer_bytes([(1, 5, 2, Form.WHOLE, 0, 0)], tail=b"abc"),
    "responses in a part that is not there": answer_bytes([(1, 5, 2, Form.WHOLE, 0, 0)], bits=0),
    "a start before every clock": answer_bytes([(1, 5, 1, Form.WHOLE, 0, 0)], started=-1),
    "an end after every clock": answer_bytes([(1, 5, 1, Form.WHOLE, 0, 0)], computed=2**63 - 1),
    "a sending after every clock": answer_bytes([(1, 5, 1, Form.WHOLE, 0, 0)], sent=FAR_NS),
    "a receipt after every clock": answer_bytes([(1, FAR_NS, 1, Form.WHOLE, 0, 0)]),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_lies_is_refused(lie: str) -> None:
    with pytest.raises(ProtocolError):
        read([LIES[lie]])


def work_bytes(n: int, extra: int, sizes: list[int]) -> bytes:
    head = HEAD.pack(MAGIC, VERSION, Kind.WORK, 1, 1, n, extra)
    return head + np.zeros(n, "<u4").tobytes() + np.array(sizes, "<u8").tobytes()


@pytest.mark.parametrize(
    "parts",
    [
        [work_bytes(0, 0, [])],
        [work_bytes(2, 0, []), b"more"],
        [work_bytes(2, 1, [2, 2]), b"123"],
        [work_bytes(2, 1, [2**64 - 1, 5]), b"1234"],
        [work_bytes(4, 1, [2**62] * 4), b""],
        [work_bytes(2, 2, [2, 2]), b"12"],
        [work_bytes(2, 2, [2, 2]), b"12", b"123"],
        [work_bytes(2, 3, [2, 2]), b"1234"],
        [HEAD.pack(MAGIC, VERSION, Kind.WORK, 1, 1, MOST, 0)],
        [HEAD.pack(MAGIC, VERSION, Kind.WORK, 1, 1, MOST, 1), b""],
    ],
)
def test_work_that_lies_is_refused(parts: list[Buffer]) -> None:
    with pytest.raises(ProtocolError, match="WORK"):
        read(parts)


@pytest.mark.parametrize("form", [Form.WHOLE, Form.RANGE])
def test_a_small_message_never_makes_a_large_allocation(form: Form) -> None:
    # Each row claims four billion samples and none of them is sent: the frame itself is 10 kB.
    lie = answer_bytes([(1, 5, MOST, form, 0, 0)] * 300)
    tracemalloc.start()
    try:
        accepted_or_refused([lie])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
