"""Child interpreters: they run this very code, and no module that lies where somebody happens to stand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command(module: str, *arguments: str) -> list[str]:
    """How to start a module of ours; -P keeps the current folder out of the search."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment for it: our code is found first, and Ray's token is kept back: no child needs Ray."""
    # An empty entry of PYTHONPATH is the current folder, -P or not.
    theirs = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *theirs]))}
