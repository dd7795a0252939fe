"""How a worker's loop ends when its link does."""

from __future__ import annotations

from typing import Any

import pytest

from workers.backends.echo import EchoBackend, EchoOptions
from workers.batcher import Batcher
from workers.protocol import Kind, control
from workers.worker import Worker

TIME_BUDGET_S = 5

EPOCH = 7
MAX_BATCH = 4


class ClosingPort:
    """The test says BYE and closes its link in one moment: just before the worker's `moment`-th look."""

    def __init__(self, moment: int) -> None:
        self._left = moment
        self._unread = [control(Kind.BYE, EPOCH)]

    def _over(self) -> bool:
        self._left -= 1
        return self._left <= 0

    def recv(self) -> list[Any] | None:
        return self._unread.pop() if self._over() and self._unread else None

    def lost(self) -> str | None:
        return "the link to the test is closed" if self._over() else None

    def wait(self, timeout_ns: int, fd: int | None) -> None:
        pass

    def send(self, parts: list[Any]) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("moment", range(1, 7))
def test_a_bye_that_comes_together_with_the_end_of_the_link_is_heard(moment: int) -> None:
    worker = Worker(
        "w0",
        EPOCH,
        ClosingPort(moment),
        EchoBackend(EchoOptions(), MAX_BATCH),
        None,
        Batcher(MAX_BATCH),
        "w0@here",
    )
    worker.run()
    assert worker.ended == "bye"
