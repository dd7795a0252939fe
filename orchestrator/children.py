"""Child processes: interpreters that run this very code and no module that lies where somebody happens to
stand, and programs of others, which never outlive this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from orchestrator import keeper

ROOT = Path(__file__).resolve().parent.parent
LOOK_S = 0.05


def command(module: str, *arguments: str) -> list[str]:
    """How to start a module of ours; -P keeps the current folder out of the search."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment for it: our code is found first, and Ray's token is kept back: no child needs Ray."""
    # An empty entry of PYTHONPATH is the current folder, -P or not.
    theirs = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *theirs]))}


def foreign_environment() -> dict[str, str]:
    """The environment for a program of others: Ray's token and whatever else is for Ray is kept back."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


class Program:
    """A program of others with all that it starts, in a session of its own: a Ctrl-C reaches us only.

    All of it is ended by `end`, or by keeper.py if this process ends without that (kill -9, say), which then
    removes `folder` too; what hid in another session is not reached.
    """

    def __init__(
        self, command: Sequence[str], where: Path, folder: Path, said: BinaryIO, **variables: str
    ) -> None:
        theirs, self._pipe = os.pipe()
        # -I -S: what PYTHONPATH holds is for the program, not for the keeper.
        start = [sys.executable, "-I", "-S", keeper.__file__, str(theirs), str(folder), *command]
        try:
            self._process = subprocess.Popen(
                start,
                cwd=where,
                pass_fds=(theirs,),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**foreign_environment(), **variables},
                start_new_session=True,
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(theirs)

    def code(self) -> int | None:
        """The exit code of one that has ended, negative for a signal; it stays to be reaped."""
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def end(self, leave_s: float) -> None:
        """Nothing of it is left when this returns; it has `leave_s` from SIGTERM to SIGKILL."""
        # It is not reaped before: until then no other process can have its number.
        try:
            if self.code() is None:
                os.killpg(self._process.pid, signal.SIGTERM)
            until_s = time.monotonic() + leave_s
            while self.code() is None and time.monotonic() < until_s:
                time.sleep(LOOK_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            os.close(self._pipe)
