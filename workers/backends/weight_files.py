"""Hashes of the files that a network is read from, and the files that an ONNX file reads besides itself."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from workers.backends import BackendError

# Field numbers of onnx.proto, of messages within messages: model, graph, node, attribute, tensor, sparse
# tensor, function. What is not listed holds no tensor.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_LOCATION = b"location"
_VARINT_BYTES = 10  # the longest


def sha256_of(file: Path) -> str:
    """Of the file's bytes; BackendError if it cannot be read."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BackendError(f"backend.weights: {file} cannot be read ({error.strerror})") from None


def sha256_of_all(files: Mapping[str, Path]) -> str:
    """Of the names and contents of several files; of one file alone that of its bytes.

    With the names in order, it is what `sha256sum NAME NAME ... | sha256sum` prints in their folder.
    """
    if len(files) == 1:
        return sha256_of(*files.values())
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{sha256_of(file)}  {name}\n".encode())
    return digest.hexdigest()


def onnx_files(file: Path) -> dict[str, Path]:
    """An ONNX file and those that its tensors lie in, by their names in it.

    BackendError for one that lies elsewhere, and for a file that cannot be searched: onnxruntime might find
    more in it.
    """
    found = {file.name: file}
    for place in sorted(_places(file)):
        name = PurePosixPath(place)
        if name.is_absolute() or ".." in name.parts or not (file.parent / name).is_file():
            raise BackendError(
                f"backend.weights: {file} keeps tensors in {place!r:.200}, which is no file beside it; bring "
                "all files of the model into one folder"
            )
        found[str(name)] = file.parent / name
    return found


def _places(file: Path) -> set[str]:
    try:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {place.decode() for place in _locations(data)}
    except OSError as error:
        raise BackendError(f"backend.weights: {file} cannot be read ({error.strerror})") from None
    except ValueError as error:  # of an empty file, too
        raise BackendError(f"backend.weights: {file} is no ONNX file that loads: {error}") from None


def _locations(data: mmap.mmap) -> Iterator[bytes]:
    """The value of every external_data entry with the key `location`; ValueError where it is no protobuf."""
    waiting = [("model", 0, len(data))]
    while waiting:
        kind, begin, end = waiting.pop()
        if kind == "entry":
            held = {number: data[start:stop] for number, start, stop in _fields(data, begin, end)}
            if held.get(1) == _LOCATION:
                yield held.get(2, b"")
            continue
        for number, start, stop in _fields(data, begin, end):
            if number in _INSIDE[kind]:
                waiting.append((_INSIDE[kind][number], start, stop))


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of every field of a message that has a length."""
    at = begin
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("a field leaves its message")
            yield tag >> 3, at, at + size
            at += size
        else:
            raise ValueError("a field of a kind that onnx.proto does not have")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for place in range(_VARINT_BYTES):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError("a number without an end")
