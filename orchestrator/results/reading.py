"""Small files of a results tree, which anybody may have written: bounded, and never outside of the tree."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.paths import ACCURACY_LOG, DETAIL, SUMMARY
from orchestrator.plain_files import open_plain

LOGS = (DETAIL, SUMMARY, ACCURACY_LOG)
LARGEST_JSON_BYTES = 4 << 20  # a system's description has some kB
LINE_BYTES = 64 << 10  # the figures of accuracy.txt stand in a line of some hundred bytes
# Some accuracy.txt hold the whole output of a scoring program: the largest of v0.7 to v5.1 has 6 MB.
LARGEST_TEXT_BYTES = 64 << 20


class Unreadable(Exception):
    """A file is missing or not what it should be; the text names it relative to the tree, and says why."""


def told_path(root: Path, path: Path) -> str:
    """A path as a reader of the tree knows it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def inside(root: Path, path: Path) -> bool:
    """Whether a path leads to nothing outside of the tree, by no symbolic link."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL byte
        return False


def strays(root: Path, folder: Path, names: Iterable[str] = LOGS) -> list[str]:
    """The folder, or those of its files, that lead out of the tree."""
    paths = [folder / name for name in names] if inside(root, folder) else [folder]
    return [told_path(root, path) for path in paths if not inside(root, path)]


def opened_file(root: Path, path: Path) -> Path:
    """The path, if it is a file of the tree."""
    shown = told_path(root, path)
    if not path.exists() and not path.is_symlink():
        raise Unreadable(f"there is no {shown}")
    if not inside(root, path):
        raise Unreadable(f"{shown} leads out of the tree")
    if not path.is_file():
        raise Unreadable(f"{shown} is not a file")
    return path


def json_object(root: Path, path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    shown = told_path(root, path)
    try:
        with open_plain(opened_file(root, path)) as file:
            raw = file.read(LARGEST_JSON_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"{shown}: {error.strerror}") from None
    if len(raw) > LARGEST_JSON_BYTES:
        raise Unreadable(f"{shown} has more than {LARGEST_JSON_BYTES >> 20} MiB: no description")
    try:
        # strict=False: descriptions with bare tabs and line ends in their texts were published.
        value = json.loads(raw.decode("utf-8-sig", errors="replace"), strict=False)
    except (ValueError, RecursionError) as error:
        where = f" in line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        raise Unreadable(f"{shown} is not JSON{where}") from None
    if not isinstance(value, dict):
        raise Unreadable(f"{shown} holds no JSON object")
    return value


def text_lines(root: Path, path: Path) -> Iterator[str]:
    """The lines of a text, each cut after LINE_BYTES."""
    read = 0
    try:
        with open_plain(opened_file(root, path)) as file:
            while raw := file.readline(LINE_BYTES):
                read += len(raw)
                if read > LARGEST_TEXT_BYTES:
                    raise Unreadable(f"{told_path(root, path)} has more than {LARGEST_TEXT_BYTES >> 20} MiB")
                yield raw.decode("utf-8", errors="replace").rstrip("\r\n")
    except OSError as error:
        raise Unreadable(f"{told_path(root, path)}: {error.strerror}") from None
