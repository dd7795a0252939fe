"""SIGINT, SIGTERM, SIGHUP interrupt at once; while tests run the first one asks, so a record is written."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

# Shells, `make` and `timeout` pass one Ctrl-C on twice: what comes this soon is no second wish.
SAME_WISH_S = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The program was told to stop; the text says by what. No Exception: nobody may take it for a fault."""


class Stop:
    """Whether to stop, and why; hears signals once listen() was called."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._since_s = 0.0
        self._patient = False

    def __call__(self) -> str | None:
        """The reason to stop, None to go on."""
        return self.reason

    def listen(self) -> Stop:
        """Hear SIGINT, SIGTERM and SIGHUP from now on."""
        for number in SIGNALS:
            # `nohup` has chosen to ignore a hang-up.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._heard)
        return self

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Within, the first signal only sets the reason: whoever runs there asks for it."""
        before, self._patient = self._patient, True
        try:
            yield
        finally:
            self._patient = before

    def _heard(self, number: int, _frame: Any) -> None:
        now_s = time.monotonic()
        if number == signal.SIGHUP:
            _leave_terminal()
        if self.reason is None:
            self.reason, self._since_s = f"{signal.Signals(number).name} received", now_s
            if self._patient:
                return
        elif now_s - self._since_s < SAME_WISH_S:
            return
        raise Interrupted(self.reason)


@contextlib.contextmanager
def heard_later(again: Callable[[], None]) -> Iterator[None]:
    """Within, a signal is only noted, for what must not be cut short, and heard at the end.

    Who wishes it a second time wishes it now: `again` is called.
    """
    noted: list[tuple[int, float]] = []

    def note(number: int, _frame: Any) -> None:
        noted.append((number, time.monotonic()))
        if noted[-1][1] - noted[0][1] >= SAME_WISH_S:
            again()

    handlers = {number: own for number in SIGNALS if callable(own := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if noted:
            number = signal.Signals(noted[0][0])
            handlers[number](number, None)


def _leave_terminal() -> None:
    """If the terminal is gone, say the rest to nobody: writing there is an error and could cost a record."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):  # it was closed before
            # A terminal that is gone is still a device, and no terminal any more.
            if stat.S_ISCHR(os.fstat(fd).st_mode) and not os.isatty(fd):
                os.dup2(nowhere, fd)
    os.close(nowhere)
