"""Names and files that do not survive a git repository, or that no reader expects: repository_checks.sh."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.check.finding import Context, Finding
from orchestrator.submission.layout import LARGEST_FILE_BYTES, RUN

LONGEST_PATH = 240  # characters from the tree's root: Windows takes 260 with the folder of the checkout
# Of what a path must be made for every system that checks the repository out.
_PLAIN = re.compile(r"[\x20-\x7e]*")
_FORBIDDEN = re.compile(r'[<>:"|?*\\]')
_LEFTOVER = re.compile(r"\.(partial(-\d+)?|orig|rej|bak|swp|tmp)$|~$")
# Code may need empty files (__init__.py); what LoadGen leaves empty in a performance test may stay.
_MAY_BE_EMPTY = {"mlperf_log_accuracy.json", "mlperf_log_trace.json"}
# Read by others, who say more about an empty one.
_JUDGED_ELSEWHERE = {"user.conf", "mlperf.conf", "README.md"}


@dataclass(frozen=True)
class _Entry:
    path: Path
    parts: tuple[str, ...]
    stat: os.stat_result

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.stat.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.stat.st_mode)

    @property
    def in_code(self) -> bool:
        """Whether it is part of the implementation, whose files are the submitter's own affair."""
        return len(self.parts) > 3 and self.parts[2] in ("code", "src")


def hygiene(context: Context) -> Iterator[Finding]:
    """Every file and folder of the tree, by its name, kind and size; no file is opened."""
    waiting: list[tuple[str, ...]] = [()]  # no recursion: folders may be nested deeper than Python's stack
    while waiting:
        parts = waiting.pop()
        folder = context.root.joinpath(*parts)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            yield unreadable_path(context, folder, error)
            continue
        yield from _folder(context, folder, names)
        for name in names:
            if not parts and name in (".git", ".github"):
                continue  # a checkout of a results repository
            path = folder / name
            try:
                found = _Entry(path, (*parts, name), path.lstat())
            except OSError as error:
                yield unreadable_path(context, path, error)
                continue
            yield from _entry(context, found)
            if found.is_folder:
                waiting.append(found.parts)


def _folder(context: Context, folder: Path, names: list[str]) -> Iterator[Finding]:
    if not names:
        yield context.finding(
            "empty-folder",
            folder,
            "the folder is empty: git does not keep it, and checkers skip its list of files",
            "put the files there that belong there, or remove it",
        )
    yield from _same_but_case(context, folder, names)


def _entry(context: Context, found: _Entry) -> Iterator[Finding]:
    yield from _name(context, found)
    if stat.S_ISLNK(found.stat.st_mode):
        yield context.finding(
            "symlink",
            found.path,
            "a symbolic link; LoadGrid does not follow it",
            "put a copy of what it points to in its place",
        )
    elif found.is_file:
        yield from _file(context, found)
    elif not found.is_folder:
        yield context.finding(
            "no-plain-file", found.path, "neither a file nor a folder (a pipe, a device)", "remove it"
        )


def _file(context: Context, found: _Entry) -> Iterator[Finding]:
    size = found.stat.st_size
    if size > LARGEST_FILE_BYTES:
        yield context.finding(
            "large-file",
            found.path,
            f"{size:,} bytes; the results repositories take at most {LARGEST_FILE_BYTES:,}",
            "leave it out, or truncate it: accuracy logs with the official tool, detail logs by not tracing",
        )
    if not os.access(found.path, os.R_OK):
        yield context.finding(
            "unreadable", found.path, "you may not read this file", f"chmod u+r {found.name}, and check again"
        )
    if size == 0 and not found.in_code and not _may_be_empty(found):
        yield context.finding(
            "empty-file", found.path, "the file is empty", "put in what belongs there, or remove it"
        )


def _may_be_empty(found: _Entry) -> bool:
    if found.name in _JUDGED_ELSEWHERE or found.name.startswith("."):
        return True
    return found.name in _MAY_BE_EMPTY and found.path.parent.name == RUN


def _name(context: Context, found: _Entry) -> Iterator[Finding]:
    name, path = found.name, found.path
    if name.startswith("."):
        yield context.finding(
            "dotfile", path, "names that begin with a dot are not to be submitted", "remove it"
        )
    elif _LEFTOVER.search(name):
        yield context.finding(
            "leftover", path, "left of a run or an edit that was interrupted", "remove it, or finish the run"
        )
    if " " in name:
        yield context.finding(
            "space-in-name", path, "a name with spaces", "rename it, with - or _ for spaces"
        )
    if not _PLAIN.fullmatch(name) or _FORBIDDEN.search(name) or name.endswith((".", " ")):
        yield context.finding(
            "odd-name",
            path,
            "a name that not every file system takes: only plain ASCII letters, digits, - _ . + are safe",
            "rename it",
        )
    length = len("/".join(found.parts))
    # Of a folder that is too long by itself everything below is: said once.
    if length > LONGEST_PATH >= len("/".join(found.parts[:-1])):
        yield context.finding(
            "long-path",
            path,
            f"the path has {length} characters; more than {LONGEST_PATH} cannot be checked out everywhere",
            "use shorter names of systems and implementations",
        )


def _same_but_case(context: Context, folder: Path, names: list[str]) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.casefold(), name)
        if first != name:
            yield context.finding(
                "same-but-case",
                folder / name,
                f"only the case of letters differs from {first}: on many file systems one hides the other",
                "keep one of them, or rename it",
            )


def unreadable_path(context: Context, path: Path, error: OSError) -> Finding:
    """A file or folder that may not be read."""
    return context.finding(
        "unreadable",
        path,
        f"cannot be read: {error.strerror or error}",
        "give yourself the right to read it (chmod), and check again",
    )
