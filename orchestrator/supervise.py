"""The driver's side of one test: start the child, let the workers in, pass on losses, reap it, tell all."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator import children
from orchestrator.course import Course
from orchestrator.order import LEFT_TO_THE_DRIVER, Channel, TestOrder
from orchestrator.paths import TEST_LOG
from orchestrator.stop import Interrupted
from orchestrator.timings import Board, Folder
from workers.host import Ticket

TICK_S = 0.1
# From an interrupt to the end of the child; after it the child is killed.
LEAVE_S = 2.0
LOOK_EVERY_S = 0.005


class Fleet(Protocol):
    """The workers of a campaign, wherever they live."""

    def keys(self) -> dict[str, str]:
        """A fresh public key of every live worker, by name, in order."""

    def attach(self, tickets: dict[str, Ticket]) -> None:
        """Tell the workers named to connect; returns at once. lost() tells of those that could not."""

    def detach(self, lost: Collection[str] = (), stop: Callable[[], str | None] = lambda: None) -> list[str]:
        """Wait until every worker has left the test, not long for the `lost`; who did not is lost.

        Nobody is waited for once `stop` tells a reason.
        """

    def lost(self) -> list[tuple[str, str]]:
        """Workers that died since the last call, with the reason."""


@dataclass
class Outcome:
    """What came of one test; `board` holds the timings even when the child died."""

    status: Literal["finished", "failed", "interrupted"]
    board: Board
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    losses: list[dict[str, Any]] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    wall_s: float = 0.0
    course: Course | None = None  # where a Server test was heading when it was last looked at


@dataclass
class Hooks:
    """Who listens while a test runs, and who may end it."""

    on_event: Callable[[dict[str, Any]], None] = lambda event: None
    on_tick: Callable[[Board], None] = lambda board: None
    stop: Callable[[], str | None] = lambda: None  # the reason to stop, None to go on
    give_up: Callable[[], str | None] = lambda: None  # why this test alone should end, None to go on
    course: Callable[[Board], Course | None] = lambda board: None


def run_test(order: TestOrder, fleet: Fleet | None, hooks: Hooks) -> Outcome:
    """Run one test in a child process; never raises for what happens in the test."""
    return _Supervisor(order, fleet, hooks).run()


class _Supervisor:
    def __init__(self, order: TestOrder, fleet: Fleet | None, hooks: Hooks) -> None:
        self.order = order
        self.fleet = fleet
        self.hooks = hooks
        self.outcome = Outcome("failed", Board(len(order.workers)))
        self.folder = Folder(self.outcome.board, order.limit_ns)
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self.child = self._spawn(theirs)
        self._over = False
        # poll() and not select(): a driver of a large cluster has more descriptors than select() can name.
        self._poller = select.poll()
        self._poller.register(self.channel, select.POLLIN)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        board_fd = self.outcome.board.fd
        # A child that is still starting has them blocked too, until it handles them itself.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_DRIVER)
        try:
            with open(Path(self.order.out_dir) / TEST_LOG, "wb") as log, theirs:
                return subprocess.Popen(
                    children.command("orchestrator.testrun", str(theirs.fileno()), str(board_fd)),
                    pass_fds=(theirs.fileno(), board_fd),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=children.environment(),
                    start_new_session=True,  # a Ctrl-C in the terminal must reach the driver only
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> Outcome:
        began = time.monotonic()
        try:
            self.channel.send(**self.order.model_dump())
            while not self._over:
                self._once()
        except Interrupted:
            self.outcome.status = "interrupted"
            raise
        finally:
            self._reap()
            self.folder.fold(final=True)
            self.outcome.course = self.hooks.course(self.outcome.board)
            self.outcome.wall_s = time.monotonic() - began
        return self.outcome

    def _once(self) -> None:
        ready = self._poller.poll(TICK_S * 1000)
        for message in self.channel.receive() if ready else []:
            self._hear(message)
        if not ready and self._has_ended():
            # A process that it forked may hold the channel open, so its end of file need not come.
            self._hear_the_rest()
            self.channel.closed = True
        if self.channel.closed and not self._over:
            self._end("failed", self._how_it_died())
        if self._over:
            return
        if reason := self.hooks.stop():
            self.channel.send(event="abort")
            self._end("interrupted", reason)
            return
        for name, reason in self.fleet.lost() if self.fleet else []:
            self.channel.send(event="lost", worker=name, reason=reason)
        self.folder.fold()
        self.hooks.on_tick(self.outcome.board)
        if reason := self.hooks.give_up():
            self.channel.send(event="abort")
            self._end("failed", reason)

    def _has_ended(self) -> bool:
        """Whether the child has; it stays to be reaped."""
        return os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _hear_the_rest(self) -> None:
        """What the child said before its end, without waiting for more."""
        while not self.channel.closed and self._poller.poll(0):
            for message in self.channel.receive():
                self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        event = message.pop("event")
        if event == "endpoint":
            self._let_in(message["endpoints"], message["server_key"])
        elif event == "loss":
            self.outcome.losses.append(message)
        elif event == "workers":
            self.outcome.workers = message["facts"]
        elif event == "result":
            self.outcome.result = message
            self._end("finished", "")
        elif event == "failed":
            # Who ends a job may end its workers with the same signal, and their loss is heard of first.
            wish = self.hooks.stop()
            self._end("interrupted" if wish else "failed", wish or message["reason"])
        self.hooks.on_event({"event": event, **message})

    def _let_in(self, endpoints: list[str], server_key: str | None) -> None:
        assert self.fleet is not None
        o = self.order
        tickets = {
            seat.name: Ticket(
                o.epoch,
                endpoint,
                f"W{i}",
                server_key,
                o.io_threads,
                near=seat.near,
            )
            for i, (seat, endpoint) in enumerate(zip(o.workers, endpoints, strict=True))
        }
        try:
            self.fleet.attach(tickets)
        except Exception as error:  # whatever a cluster may say, it ends this test and not the campaign
            self._end("failed", f"the workers cannot be told to attach: {error}")

    def _end(self, status: Literal["finished", "failed", "interrupted"], reason: str) -> None:
        self.outcome.status, self.outcome.reason, self._over = status, reason, True

    def _how_it_died(self) -> str:
        """A reason for a child that left without a word."""
        if not self._stop_child():
            return "the test process closed its channel and hung; it was killed"
        code = self.child.returncode
        said = (Path(self.order.out_dir) / TEST_LOG).read_text(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the test process died ({how})" + (f": {said[-1]}" if said else "")

    def _stop_child(self) -> bool:
        """Wait for the child's end, kill it and all that it started; False if it did not end by itself."""
        if self.child.returncode is not None:
            return True
        until, ended = time.monotonic() + LEAVE_S, False
        # It is not reaped before the kill: until then no other process can have its number.
        try:
            while not ended and time.monotonic() < until:
                ended = self._has_ended()
                time.sleep(0 if ended else LOOK_EVERY_S)
        finally:  # also when a second signal ends the wait
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        return ended

    def _reap(self) -> None:
        """Nothing of the test is left running when this returns."""
        self.channel.sock.close()  # a child that still runs hears this, whatever it does
        self._stop_child()
        # The counters stay mapped; a campaign of many tests must not run out of descriptors.
        os.close(self.outcome.board.fd)
        self.outcome.board.fd = -1
        # A run that was told to stop goes on with nobody, so it waits for nobody's batch.
        if self.fleet is not None and self.outcome.status != "interrupted":
            lost = [loss["worker"] for loss in self.outcome.losses]
            for name in self.fleet.detach(lost, self.hooks.stop):
                self.hooks.on_event({"event": "stuck", "worker": name})
