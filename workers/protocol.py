"""The frames between the test process and a worker: one place, both sides.

A message is a ZeroMQ multipart message whose first part starts with HEAD. Nothing is pickled: integers are
little-endian NumPy buffers, text is UTF-8. Every decoder checks every length and raises ProtocolError, so
that a malformed peer is a clear message and never a crash or a wrong answer.

A sample is known on the wire by (epoch, frame number, position). LoadGen's own ids never leave the test
process: they are pointers that it reuses, and completing a stale one completes another sample.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

MAGIC = b"LG"
VERSION = 2
HEAD = struct.Struct("<2sBBIQII")  # magic, version, kind, epoch, number, count, extra
STAGES = struct.Struct("<qqqII")  # started, computed, sent (worker's monotonic ns), batch size, response form
SEGMENT = struct.Struct("<QqIIII")  # frame, received (worker's monotonic ns), count, form, start, reserved
PLACE = struct.Struct("<QQ")  # offset and bytes of a blob in the memory that a worker shares with the test
OFFER = struct.Struct("<QQ32s")  # process id, file descriptor in it, the token that the memory holds

# Bits of an answer's response form.
SIZED, INLINE, SHARED = 1, 2, 4

# Blobs and samples up to this size travel in the head part: one part fewer costs less than one copy more.
INLINE_BYTES = 4096
# Times beyond this (146 years of uptime) are no clock's; below it, sums and differences of two fit into an
# int64.
FAR_NS = 2**62
# A sample larger than this travels as a part of its own, without a copy; smaller ones are joined.
OWN_PART_BYTES = 16384

# The largest part of a message: a BraTS volume's answer is 64 MB, a whole batch of them fits.
MAX_MESSAGE_BYTES = 2 << 30
TEXT_BYTES = 4000  # of a peer's words that are shown, at most

Buffer = bytes | memoryview


class ProtocolError(Exception):
    """A message that no LoadGrid of this version sends; its text says what is wrong with it."""


class Kind(IntEnum):
    """What a message is; the comment says who sends it."""

    HELLO = 1  # worker: name (text)
    WELCOME = 2  # test
    PING = 3  # test: its clock in `number`
    PONG = 4  # worker: the same number, and its own clock in the body
    LOAD = 5  # test: sample indices to hold in memory
    LOADED = 6  # worker
    UNLOAD = 7  # test
    UNLOADED = 8  # worker
    NAME = 9  # test: asks for the node's name (Network division)
    NAMED = 10  # worker: text
    WORK = 11  # test: samples to answer
    ANSWER = 12  # worker
    FAIL = 13  # worker: text; it can answer nothing any more
    BYE = 14  # test: the test is over
    SHARE = 15  # worker: memory of its own in which its large answers could lie (OFFER)
    SHARED = 16  # test: `number` 1: it sees that memory, 0: it does not
    FREE = 17  # test: it is done with the blob at offset `number`


KINDS = {int(kind): kind for kind in Kind}


class Form(IntEnum):
    """How a segment names its positions in the frame."""

    WHOLE = 0
    RANGE = 1
    LIST = 2


class Head(NamedTuple):
    """The fixed start of every message; `number` and `count` mean what the kind says."""

    kind: Kind
    epoch: int
    number: int
    count: int  # type: ignore[assignment]  # a tuple's method of that name is not missed
    extra: int


@dataclass(slots=True)
class Responses:
    """Response bytes of n samples: `blob` uint8 (total,), `sizes` int64 (n,) or None when all are equal."""

    blob: np.ndarray
    sizes: np.ndarray | None = None


@dataclass(slots=True)
class Work:
    """Samples to answer: `indices` int64 (n,), `samples` their bytes in value mode, else empty."""

    frame: int
    indices: np.ndarray
    samples: list[memoryview]


@dataclass(slots=True)
class Segment:
    """Samples of one frame in an answer; `positions` uint32 (count,), a range, or None: the whole frame.

    A range stays a range: a peer's claim of a billion positions costs nothing until somebody has compared it
    with the frame.
    """

    frame: int
    received_ns: int
    count: int
    positions: np.ndarray | range | None = None


@dataclass(slots=True)
class Answer:
    """One batch answered: the samples of `segments` in order, their responses, the worker's stage times."""

    segments: list[Segment]
    started_ns: int
    computed_ns: int
    sent_ns: int
    batch_size: int
    responses: Responses
    shared_at: int | None = None  # the blob's offset in memory that both see; None: it travels


def read_head(part: Buffer) -> Head:
    """Read the start of a message."""
    if len(part) < HEAD.size:
        raise ProtocolError(f"a message of {len(part)} bytes is shorter than its header ({HEAD.size})")
    magic, version, kind, epoch, number, count, extra = HEAD.unpack_from(part)
    if magic != MAGIC:
        raise ProtocolError(f"a message starts with {bytes(magic)!r} instead of {MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(f"the peer speaks version {version} of the protocol, this side speaks {VERSION}")
    known = KINDS.get(kind)
    if known is None:
        raise ProtocolError(f"unknown kind of message {kind}")
    return Head(known, epoch, number, count, extra)


def control(kind: Kind, epoch: int, number: int = 0, body: bytes = b"") -> list[Buffer]:
    """Build a message that carries no samples."""
    return [HEAD.pack(MAGIC, VERSION, kind, epoch, number, len(body), 0) + body]


def control_body(parts: Sequence[Buffer]) -> bytes:
    """The body of a control message."""
    head = read_head(parts[0])
    if len(parts) != 1 or len(parts[0]) != HEAD.size + head.count:
        raise ProtocolError(f"a {head.kind.name} message does not have the length that it states")
    return bytes(parts[0][HEAD.size :])


def text_of(body: bytes) -> str:
    """A peer's words, fit to be shown: not too many, and nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in body[:TEXT_BYTES].decode(errors="replace"))


def indices_message(kind: Kind, epoch: int, indices: np.ndarray) -> list[Buffer]:
    """Build LOAD or UNLOAD for `indices` (n,)."""
    return control(kind, epoch, body=indices.astype("<u4").tobytes())


def indices_body(parts: Sequence[Buffer]) -> np.ndarray:
    """The indices, int64 (n,), of a LOAD or UNLOAD message."""
    body = control_body(parts)
    if len(body) % 4:
        raise ProtocolError("a list of indices is cut short")
    return np.frombuffer(body, "<u4").astype(np.int64)


def encode_work(
    epoch: int, frame: int, indices: np.ndarray, samples: Sequence[memoryview] = ()
) -> list[Buffer]:
    """Build WORK for `indices` uint32 (n,); `samples` are their bytes in value mode.

    The parts after the first refer to `samples` without copying when these are large.
    """
    n = len(indices)
    if not samples:
        return [HEAD.pack(MAGIC, VERSION, Kind.WORK, epoch, frame, n, 0) + indices.tobytes()]
    sizes = np.fromiter((s.nbytes for s in samples), "<u8", n)
    own = int(sizes.max()) > OWN_PART_BYTES
    head = HEAD.pack(MAGIC, VERSION, Kind.WORK, epoch, frame, n, 2 if own else 1)
    head += indices.tobytes() + sizes.tobytes()
    return [head, *samples] if own else [head, b"".join(samples)]


def decode_work(head: Head, parts: Sequence[Buffer]) -> Work:
    """Read WORK; the samples are views into the parts."""
    n = head.count
    first = parts[0]
    want = HEAD.size + n * (4 if head.extra == 0 else 12)
    if n == 0 or len(first) != want:
        raise ProtocolError(f"a WORK frame of {n} samples has {len(first)} bytes instead of {want}")
    indices = np.frombuffer(first, "<u4", n, HEAD.size).astype(np.int64)
    if head.extra == 0:
        if len(parts) != 1:
            raise ProtocolError("a WORK frame of indices has parts that it does not state")
        return Work(head.number, indices, [])
    sizes = np.frombuffer(first, "<u8", n, HEAD.size + 4 * n)
    if head.extra == 2:
        samples = [memoryview(p) for p in parts[1:]]
        if len(samples) != n or any(s.nbytes != size for s, size in zip(samples, sizes, strict=True)):
            raise ProtocolError("a WORK frame does not carry the samples that it states")
        return Work(head.number, indices, samples)
    if head.extra != 1 or len(parts) != 2 or sizes.max() > len(parts[1]) or sizes.sum() != len(parts[1]):
        raise ProtocolError("a WORK frame does not carry the bytes that it states")
    ends = np.cumsum(sizes).tolist()
    blob = memoryview(parts[1])
    return Work(head.number, indices, [blob[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)])


def encode_answer(epoch: int, answer: Answer) -> list[Buffer]:
    """Build ANSWER; a large blob is sent without a copy."""
    table, lists, total = [], [], 0
    for s in answer.segments:
        form, start, listed = _form_of(s.positions)
        if listed is not None:
            lists.append(listed)
        table.append(SEGMENT.pack(s.frame, s.received_ns, s.count, form, start, 0))
        total += s.count
    r = answer.responses
    shared = answer.shared_at is not None
    inline = r.blob.nbytes <= INLINE_BYTES and not shared
    form_bits = (0 if r.sizes is None else SIZED) | (INLINE if inline else 0) | (SHARED if shared else 0)
    head = [
        HEAD.pack(MAGIC, VERSION, Kind.ANSWER, epoch, total, len(table), sum(map(len, lists)) // 4),
        STAGES.pack(answer.started_ns, answer.computed_ns, answer.sent_ns, answer.batch_size, form_bits),
        *table,
        *lists,
    ]
    if r.sizes is not None:
        head.append(r.sizes.astype("<u8").tobytes())
    if shared:
        return [b"".join([*head, PLACE.pack(answer.shared_at, r.blob.nbytes)])]
    if inline:
        return [b"".join([*head, r.blob.tobytes()])]
    return [b"".join(head), r.blob.data]


def _form_of(positions: np.ndarray | range | None) -> tuple[Form, int, bytes | None]:
    """How positions travel: the form, where a range starts, the bytes of a list."""
    if positions is None:
        return Form.WHOLE, 0, None
    start = int(positions[0])
    if isinstance(positions, range):
        return Form.RANGE, start, None
    if int(positions[-1]) - start == len(positions) - 1 and bool((np.diff(positions) == 1).all()):
        return Form.RANGE, start, None
    return Form.LIST, 0, positions.astype("<u4").tobytes()


def decode_answer(head: Head, parts: Sequence[Buffer], memory: np.ndarray | None = None) -> Answer:
    """Read ANSWER; the blob is a view, and nothing is allocated that the message does not carry.

    `memory` uint8 is what the worker shares with this side, None if nothing.
    """
    first = parts[0]
    lists_at = HEAD.size + STAGES.size + head.count * SEGMENT.size
    if len(first) < lists_at or head.count == 0:
        raise ProtocolError(f"an ANSWER of {head.count} segments is cut short")
    started, computed, sent, batch_size, bits = STAGES.unpack_from(first, HEAD.size)
    if not (0 <= started < FAR_NS and 0 <= computed < FAR_NS and 0 <= sent < FAR_NS):
        raise ProtocolError(f"an ANSWER states times that no clock shows: {started}, {computed}, {sent} ns")
    segments: list[Segment] = []
    total = lists = 0
    for at in range(HEAD.size + STAGES.size, lists_at, SEGMENT.size):
        frame, received, count, form, start, reserved = SEGMENT.unpack_from(first, at)
        positions: np.ndarray | range | None = None
        if count == 0 or reserved or not 0 <= received < FAR_NS:
            raise ProtocolError(
                f"an ANSWER's segment of frame {frame} states {count} samples received at {received}"
            )
        if form == Form.LIST:
            end = lists_at + 4 * (lists + count)
            if end > len(first):
                raise ProtocolError("an ANSWER's list of positions is cut short")
            positions = np.frombuffer(first, "<u4", count, end - 4 * count)
            lists += count
        elif form == Form.RANGE:
            if start + count > 2**32:
                raise ProtocolError("an ANSWER names positions beyond any frame")
            positions = range(start, start + count)
        elif form != Form.WHOLE:
            raise ProtocolError(f"unknown form {form} of a segment")
        segments.append(Segment(frame, received, count, positions))
        total += count
    if total != head.number or lists != head.extra:
        raise ProtocolError(
            f"an ANSWER states {head.number} samples ({head.extra} listed) and names {total} ({lists} listed)"
        )
    responses, shared_at = _decode_responses(parts, lists_at + 4 * lists, total, bits, memory)
    return Answer(segments, started, computed, sent, batch_size, responses, shared_at)


def _decode_responses(
    parts: Sequence[Buffer], at: int, total: int, bits: int, memory: np.ndarray | None
) -> tuple[Responses, int | None]:
    """Read the sizes and bytes that follow an answer's segments, and where they are shared."""
    first = parts[0]
    sizes = shared_at = None
    if bits & SIZED:
        if at + 8 * total > len(first):
            raise ProtocolError("an ANSWER's list of sizes is cut short")
        sizes = np.frombuffer(first, "<u8", total, at).astype(np.int64)
        at += 8 * total
    extra_parts = len(parts) - 1
    if bits & SHARED:
        shared_at, blob = _shared_blob(first, at, memory)
    elif bits & INLINE:
        blob = np.frombuffer(first, np.uint8, -1, at) if at < len(first) else np.empty(0, np.uint8)
    elif len(parts) >= 2 and at == len(first):
        blob = np.frombuffer(parts[1], np.uint8)
        extra_parts -= 1
    else:
        raise ProtocolError("an ANSWER does not carry the responses that it states")
    if extra_parts or bits > SHARED | SIZED:
        raise ProtocolError("an ANSWER has parts that it does not state")
    if sizes is None:
        fits = blob.size % total == 0
    else:
        # A size beyond the blob also guards the sum against overflow.
        fits = int(sizes.min()) >= 0 and int(sizes.max()) <= blob.size and int(sizes.sum()) == blob.size
    if not fits:
        raise ProtocolError(f"an ANSWER's sizes do not add up to its {blob.size} bytes")
    return Responses(blob, sizes), shared_at


def _shared_blob(first: Buffer, at: int, memory: np.ndarray | None) -> tuple[int, np.ndarray]:
    """The offset and the bytes that an answer names in shared memory, which must hold them."""
    if len(first) != at + PLACE.size:
        raise ProtocolError("an ANSWER's place in shared memory is cut short")
    offset, size = PLACE.unpack_from(first, at)
    if memory is None:
        raise ProtocolError("an ANSWER lies in shared memory, and its sender shares none with this test")
    if offset + size > memory.size:
        raise ProtocolError(
            f"an ANSWER names bytes {offset} to {offset + size} of {memory.size} bytes of shared memory"
        )
    return offset, memory[offset : offset + size]


def read_offer(body: bytes) -> tuple[int, int, bytes]:
    """(process id, file descriptor, token) of a SHARE message."""
    if len(body) != OFFER.size:
        raise ProtocolError(f"a SHARE message has {len(body)} bytes instead of {OFFER.size}")
    pid, descriptor, token = OFFER.unpack(body)
    return pid, descriptor, token
