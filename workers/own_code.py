"""Which files are LoadGrid's code, and their hash: two hosts must not run two LoadGrids."""

from __future__ import annotations

import hashlib
from pathlib import Path

# What Python imports and what our code reads. Other files that may lie there are nobody's code.
SUFFIXES = {".py", ".pyc", ".so", ".yaml", ".css", ".j2", ".js"}
COMPILED = "__pycache__"  # what Python makes of the sources by itself


def code_files(folder: Path) -> list[Path]:
    """The files of a package that are code, sorted; hidden ones are not."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES
        and path.is_file()
        and not any(part == COMPILED or part.startswith(".") for part in path.relative_to(folder).parts)
    )


def code_sha256(*folders: Path) -> str:
    """sha256 over the names and bytes of packages' code."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in code_files(folder):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def workers_sha256() -> str:
    """The hash of this package, as it lies on this host."""
    return code_sha256(Path(__file__).parent)
