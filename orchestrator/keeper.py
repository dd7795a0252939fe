"""Becomes a program that must not outlive who started it, not even by the starter's kill -9.

Started in a new session as `python keeper.py PIPE FOLDER COMMAND...`. Before it becomes that, it leaves a
watcher in the command's group, which so cannot change hands; when the starter's end of the pipe closes, the
watcher ends the group and removes FOLDER. A starter that ends in order kills the group, watcher included.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys

# From SIGTERM to SIGKILL: a power client's server then hears of its end, and drops the session.
TERM_S = 1
NOT_STARTED = 127  # as of a shell


def main() -> None:
    """Leave the watcher behind, then become the command."""
    pipe, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(pipe, False)
    # Twice: the command must find no child that it has not started.
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            _watch(pipe, folder)
        os._exit(0)
    os.waitpid(between, 0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would keep that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell is wanted
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_STARTED)


def _watch(pipe: int, folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.chdir("/")
    os.read(pipe, 1)  # until the other end closes
    os.killpg(0, signal.SIGTERM)
    signal.sigtimedwait([], TERM_S)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
