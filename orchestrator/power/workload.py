"""What the power client runs as its workload: asks the LoadGrid that started the client for the next test.

    python workload.py SOCKET

The cluster stays up and the models stay loaded meanwhile. A program by itself: it needs no package of ours.
The answer is one line of text, empty when the test ran to its end, else why it did not.
"""

from __future__ import annotations

import socket
import sys


def main() -> int:
    """Connect, wait for the test's end, and pass on what came of it by the exit code."""
    try:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(sys.argv[1])
            with asked.makefile("rb") as answer:
                line = answer.readline()
    except OSError:
        line = b""
    if line == b"\n":
        return 0
    why = line.decode(errors="replace").strip() or "the LoadGrid that started the power client has ended"
    print(f"loadgrid: the test did not run: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
