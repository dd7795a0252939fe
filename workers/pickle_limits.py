"""What a pickle may ask for, seen before anything of it is obeyed.

An unpickler makes room for what a pickle announces: ten bytes can ask for a memo of four thousand million
places, or for a string longer than the file. Its opcodes can be read without being obeyed, so they are first.
"""

from __future__ import annotations

import io
import pickletools
from typing import BinaryIO

# Every opcode can make an empty set of 216 bytes. The references' files have a few thousand.
MOST_OPCODES = 1 << 22
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


class _Left:
    """A file of which no more is asked for than is left of it."""

    def __init__(self, opened: BinaryIO) -> None:
        self.tell, self.readline = opened.tell, opened.readline
        self._read = opened.read
        self._begin = opened.tell()
        self._end = opened.seek(0, io.SEEK_END)
        opened.seek(self._begin)

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        self.need(size)
        return self._read(size)

    def need(self, size: int) -> None:
        """ValueError if fewer bytes are left."""
        left = self._end - self.tell()
        if size > left:
            raise ValueError(f"it announces {size} bytes where {left} are left")


def refuse_greedy(data: bytes | bytearray | memoryview | BinaryIO, name: str) -> None:
    """ValueError, naming `name`, if the pickle at the head of `data` asks for more than it brings.

    A file must be able to seek, and is left where it was. Bytes behind the pickle's end are not looked at.
    """
    opened = io.BytesIO(data) if isinstance(data, bytes | bytearray | memoryview) else data
    begin = opened.tell()
    try:
        _walk(_Left(opened))
    except ValueError as error:  # pickletools raises it too, for what is no pickle
        raise ValueError(f"{name} is damaged or no honest pickle: {error}") from None
    finally:
        opened.seek(begin)


def _walk(left: _Left) -> None:
    # A pickler counts its memo from 0 or 1 and puts nothing there without an opcode: so no honest index is
    # above the number of opcodes so far.
    for number, (opcode, argument, _) in enumerate(pickletools.genops(left), 1):  # type: ignore[arg-type]
        if opcode.name in _PUTS and not 0 <= int(argument or 0) <= number:
            raise ValueError(f"opcode {number} remembers an object at place {argument}")
        if opcode.name == "FRAME":
            left.need(int(argument or 0))
        if number > MOST_OPCODES:
            raise ValueError(f"it has more than {MOST_OPCODES} opcodes")
