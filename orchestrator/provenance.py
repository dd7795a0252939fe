"""Which code and which libraries: what a record says of this side."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from workers import own_code

ROOT = Path(__file__).resolve().parent.parent
STAMP = "loadgrid-commit.json"
OWN = ("orchestrator", "workers")
PACKAGES = ("loadgrid", "mlcommons-loadgen", "ray", "pyzmq", "numpy", "torch", "pydantic")


def commit_of(root: Path = ROOT) -> dict[str, Any]:
    """The commit of the code below `root`, and whether the code is another than the commit's.

    Commit None if `root` is no git checkout, nor stamped. What is not code may change, a run's folder say.
    """
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return _stamped(root)
    listed = _git(root, "ls-tree", "-r", "-z", "HEAD", "--", *OWN)
    return {"commit": head, "dirty": listed is None or _differs(root, listed)}


def _differs(root: Path, listed: str) -> bool:
    """Whether the code on the disk is not what the commit lists: git's own answer depends on its settings."""
    committed = {}
    for line in filter(None, listed.split("\0")):
        about, name = line.split("\t", 1)
        committed[name] = about.split()[2]
    here = {path.relative_to(root).as_posix(): path for path in own_files(root)}
    wanted = {name for name in committed if Path(name).suffix in own_code.SUFFIXES}
    return wanted != here.keys() or any(
        _blob(path.read_bytes(), committed[name]) != committed[name] for name, path in here.items()
    )


def _blob(content: bytes, like: str) -> str:
    """Git's name of a file's content, by the hash that the repository uses."""
    made = hashlib.new("sha1" if len(like) == 40 else "sha256", usedforsecurity=False)
    made.update(b"blob %d\0" % len(content) + content)
    return made.hexdigest()


def stamp(checkout: Path, installed: Path = ROOT) -> str | None:
    """Keep a clean checkout's commit beside the code installed from it: an image has no git. Else None."""
    known, code = commit_of(checkout), code_sha256(installed)
    if checkout.resolve() == installed or known["dirty"] is not False or code_sha256(checkout) != code:
        return None
    (installed / STAMP).write_text(json.dumps({"commit": known["commit"], "code": code}), "utf-8")
    return str(known["commit"])


def _stamped(root: Path) -> dict[str, Any]:
    try:
        kept = json.loads((root / STAMP).read_text("utf-8"))
        return {"commit": kept["commit"], "dirty": kept["code"] != code_sha256(root)}
    except (OSError, ValueError, KeyError, TypeError):
        return {"commit": None, "dirty": None}  # not stamped


def _git(root: Path, *arguments: str) -> str | None:
    # Without it, a folder inside somebody else's repository would report that repository's commit.
    # Git's own variables, which a hook sets, would name another repository still.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment = {**kept, "GIT_CEILING_DIRECTORIES": str(root.parent)}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, env=environment, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def own_files(root: Path = ROOT) -> list[Path]:
    """Every file of LoadGrid's code below `root`."""
    return [path for package in OWN for path in own_code.code_files(root / package)]


def code_sha256(root: Path = ROOT) -> str:
    """sha256 over the code itself: tells two states of a changed checkout apart, or two installations."""
    return own_code.code_sha256(*(root / package for package in OWN))


def versions() -> dict[str, Any]:
    """Versions of what this side runs on."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    found["code"] = code_sha256()
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    kept_commit = stamp(Path(sys.argv[1]))
    sys.exit(None if kept_commit else "the commit is not kept: no clean git checkout of this very code")
