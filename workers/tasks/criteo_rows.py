"""Criteo's rows on disk: the binary test file of the reference, and day_23_reordered.npz, its source.

The reference cuts it in the same way (numpy_to_binary of dlrm's data_loader_terabyte.py), but with the
whole day in memory (57 GB of float64); here it is read as a stream.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from workers.tasks import TaskError

BIN_WORDS = 40
BIN_ROW_BYTES = 4 * BIN_WORDS
# Member of the archive, and the columns that it fills.
_MEMBERS = {"y": slice(0, 1), "X_int": slice(1, 14), "X_cat": slice(14, 40)}
_BLOCK_ROWS = 1 << 16
_DRAIN_BYTES = 1 << 24


def map_rows(file: Path) -> np.ndarray:
    """int32 (n, 40), memory-mapped: label, 13 counts, 26 indices."""
    size = file.stat().st_size
    if not size or size % BIN_ROW_BYTES:
        raise TaskError(
            f"{file} has {size} bytes, which is no whole number of rows of {BIN_ROW_BYTES}: it is cut short; "
            "write it anew with the reference's preprocessing",
            "path",
        )
    return np.memmap(file, np.dtype("<i4"), "r").reshape(-1, BIN_WORDS)


def table_counts(folder: Path) -> Path | None:
    """The file that says how many rows each table has, if the folder has it."""
    file = folder / "day_fea_count.npz"
    return file if file.is_file() else None


def read_table_counts(file: Path, tables: int) -> np.ndarray:
    """Rows of each table (tables,), from day_fea_count.npz."""
    try:
        with zipfile.ZipFile(file) as archive:
            member = _Member(archive.open("counts.npy"), 1)
            if member.rows != tables:
                raise ValueError(f"it is of {member.rows} features, not of {tables}")
            counts = member.take(tables).reshape(-1)
            member.drain()
        if not (counts >= 1).all():
            raise ValueError("a table without rows")
    except Exception as error:
        # zipfile passes on what its decompressors raise, NumPy what Python's parser does.
        why = f"it holds no array 'counts' of {tables} numbers ({error!s:.80})"
        raise TaskError(f"{file} is damaged: {why}; prepare it anew", "path") from None
    return counts


def half_of_day(day: Path, target: Path, first_half: bool, most_rows: int | None = None) -> Path:
    """Write the day's first half, or the second one's first `most_rows`, to `target` as binary rows.

    A `target` that is there already was finished by an earlier call.
    """
    if target.exists():
        return target
    partial = target.with_name(f"{target.name}.new")
    try:
        with zipfile.ZipFile(day) as archive, open(partial, "wb") as out:
            _copy(_open_members(archive, day), out, first_half, most_rows)
        os.replace(partial, target)
    except OSError as error:
        why = error.strerror or error
        raise TaskError(f"{day} cannot be copied to {target} ({why})", "path") from None
    except Exception as error:
        # zipfile passes on what its decompressors raise, NumPy what Python's parser does.
        raise TaskError(f"{day} is damaged ({error!s:.120}); prepare it anew", "path") from None
    finally:
        partial.unlink(missing_ok=True)
    return target


class _Member:
    """One array of the archive, read row by row."""

    def __init__(self, stream: IO[bytes], width: int) -> None:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, in_columns, self.dtype = read[version](stream)
        if (in_columns and len(shape) > 1) or self.dtype.kind not in "iuf":
            raise ValueError(f"an array of type {self.dtype} in an unknown order")
        if not shape or shape[0] < 0 or shape[1:] != ((width,) if width > 1 else ()):
            raise ValueError(f"an array of shape {shape} where rows of {width} numbers are expected")
        self.rows: int = shape[0]
        self.width = width
        self._stream = stream

    def take(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        wanted = count * self.width * self.dtype.itemsize
        data = self._stream.read(wanted)
        if len(data) != wanted:
            raise EOFError("it ends too early")
        return np.frombuffer(data, self.dtype).reshape(count, self.width)

    def drain(self) -> None:
        """Read to the end, where the archive's checksum is compared."""
        while self._stream.read(_DRAIN_BYTES):
            pass


def _open_members(archive: zipfile.ZipFile, day: Path) -> list[tuple[slice, _Member]]:
    found = [
        (columns, _Member(archive.open(f"{name}.npy"), columns.stop - columns.start))
        for name, columns in _MEMBERS.items()
    ]
    if len({member.rows for _, member in found}) != 1 or not found[0][1].rows:
        raise ValueError(f"the arrays {', '.join(_MEMBERS)} do not have the same number of rows")
    return found


def _copy(
    members: list[tuple[slice, _Member]], out: IO[bytes], first_half: bool, most_rows: int | None
) -> None:
    rows = members[0][1].rows
    middle = -(-rows // 2)  # the test half has the odd row
    start, stop = (0, middle) if first_half else (middle, rows)
    if most_rows is not None:
        stop = min(stop, start + most_rows)
    done = 0
    while done < stop:
        count = min(_BLOCK_ROWS, stop - done)
        block = np.empty((count, BIN_WORDS), np.dtype("<i4"))
        with np.errstate(invalid="ignore"):  # what is no number becomes a negative one, and is refused later
            for columns, member in members:
                block[:, columns] = member.take(count)
        out.write(block[max(0, start - done) :].tobytes())
        done += count
    for _, member in members:
        member.drain()
