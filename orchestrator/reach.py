"""Whether a Ray answers at an address, asked in a process that can be ended.

In this process Ray would go on trying for minutes and hear no signal meanwhile (measured with 2.60).
"""

from __future__ import annotations

import re
import subprocess
import sys

LIMIT_S = 20.0
_ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception): (.+)$", re.MULTILINE)


def why_no_ray(address: str, limit_s: float = LIMIT_S) -> str | None:
    """Why no Ray of our version lets us in at `address` ("auto" or HOST:PORT); None if one does."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check", "--address", address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return f"no Ray answered in {limit_s:g} s"
    if done.returncode == 0:
        return None
    errors = _ERROR.findall(done.stdout)
    return first_sentence(errors[-1]) if errors else f"`ray health-check` ended with code {done.returncode}"


def first_sentence(text: str) -> str:
    """Ray's messages go on for a paragraph; the first sentence is what happened."""
    return re.split(r"\.\s", text, maxsplit=1)[0].rstrip(".")
