"""Files that a tree is made of: plain ones only, and hashed while they are copied."""

from __future__ import annotations

import hashlib
import os
from io import BufferedReader
from pathlib import Path

from orchestrator import plain_files
from orchestrator.submission.refusal import SubmitError

CHUNK_BYTES = 1 << 20


def open_plain(path: Path) -> BufferedReader:
    """A file to read, of which the kernel says that it is plain; SubmitError for a link, a pipe or none."""
    try:
        return plain_files.open_plain(path, follow=False)
    except OSError as error:
        if path.is_file() and not path.is_symlink():
            raise  # no permission, a disk's fault
        raise SubmitError(f"{path} is missing or no plain file: {error.strerror}") from None


def copy_plain(source: Path, target: Path, digest: str | None, mode: int = 0o666) -> None:
    """Copy to a new file; SubmitError, and no file, where the bytes are not those of `digest`."""
    with open_plain(source) as file:
        made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(made, "wb") as copy:
                hashed = hashlib.sha256()
                while chunk := file.read(CHUNK_BYTES):
                    hashed.update(chunk)
                    copy.write(chunk)
            _refuse_changed(source, hashed.hexdigest(), digest)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def read_plain(source: Path, digest: str | None, most_bytes: int) -> bytes:
    """The bytes of a small file; SubmitError where they are not those of `digest`."""
    with open_plain(source) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise SubmitError(f"{source} has more than {most_bytes} bytes")
    _refuse_changed(source, hashlib.sha256(data).hexdigest(), digest)
    return data


def sha256_of(path: Path) -> str:
    """The hash of a plain file."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_changed(source: Path, seen: str, digest: str | None) -> None:
    if digest is not None and seen != digest:
        raise SubmitError(
            f"{source} changed while the tree was made (sha256 {seen[:12]}... instead of {digest[:12]}..., "
            "which its record names); nothing may write into the folder of a finished run: find out what "
            "does, and run the test again"
        )
