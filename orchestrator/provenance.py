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

ROOT = Path(__file__).resolve().parent.parent
STAMP = "loadgrid-commit.json"
PACKAGES = ("loadgrid", "mlcommons-loadgen", "ray", "pyzmq", "numpy", "torch", "pydantic")


def commit_of(root: Path = ROOT) -> dict[str, Any]:
    """The checkout's commit and whether it has changes; commit None if `root` is no checkout, nor stamped."""
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return _stamped(root)
    status = _git(root, "status", "--porcelain")
    return {"commit": head, "dirty": status is None or bool(status)}


def stamp(checkout: Path, installed: Path = ROOT) -> str | None:
    """Keep a clean checkout's commit beside the code installed from it: an image has no git. Else None."""
    known, code = commit_of(checkout), code_sha256(installed)
    if known["dirty"] is not False or code_sha256(checkout) != code:
        return None
    (installed / STAMP).write_text(json.dumps({"commit": known["commit"], "code": code}), "utf-8")
    return str(known["commit"])


def _stamped(root: Path) -> dict[str, Any]:
    try:
        kept = json.loads((root / STAMP).read_text("utf-8"))
        if kept["code"] == code_sha256(root):  # else the code is not the commit's any more
            return {"commit": kept["commit"], "dirty": False}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not stamped
    return {"commit": None, "dirty": None}


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


def code_sha256(root: Path = ROOT) -> str:
    """sha256 over the code itself: tells two states of a changed checkout apart, or two installations."""
    digest = hashlib.sha256()
    for package in ("orchestrator", "workers"):
        for path in sorted(p for p in (root / package).rglob("*") if p.suffix in (".py", ".yaml")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


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
    print(stamp(Path(sys.argv[1])) or "the commit is not kept: no clean git checkout of this code")
