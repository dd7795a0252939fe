"""The test process: one LoadGen test, the Dispatcher and the link. No Ray in it.

LoadGen takes one configuration a process, and an exception in its callback aborts the process: so each test
is a child of its own. StartTest runs on a second thread, so that the main thread can hear the driver at once
(with StartTest on the main thread, Ctrl-C is a SIGSEGV in Server and is ignored in Offline until the end).
The end of file on the socketpair means that the driver is gone: then this process ends too.

Started as `python -m orchestrator.testrun CONTROL_FD BOARD_FD`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.asker import open_asker
from orchestrator.dispatch import Dispatcher, Loss
from orchestrator.exchange import Exchange, ExchangeFailed
from orchestrator.lateness import IssueLog, server_lateness
from orchestrator.link import Link, LinkError, Peer, RouterLink
from orchestrator.loadgen import Callbacks, LoadGenError
from orchestrator.local import LocalLink
from orchestrator.order import LEFT_TO_THE_DRIVER, Channel, Seat, TestOrder
from orchestrator.pace import Pace, even_warm_ups
from orchestrator.pauses import PauseMeter
from orchestrator.shared_answers import SharedAnswers
from orchestrator.timings import Board, Timings
from workers.backends import BackendError
from workers.host import SWITCH_INTERVAL_S, WorkerError, WorkerHost, WorkerSpec
from workers.library import Library, LibraryError
from workers.tasks import TaskError

# Errors that are sentences for people; any other needs its type to be understood.
SENTENCES = (
    ExchangeFailed,
    LoadGenError,
    LinkError,
    LibraryError,
    BackendError,
    WorkerError,
    TaskError,
)
PHASES = ("attaching", "loading", "running", "ending")


class TestProcess:
    """One test from order to result."""

    __test__ = False

    def __init__(self, order: TestOrder, channel: Channel, board: Board) -> None:
        self.order = order
        self.channel = channel
        self.board = board
        self.asker = open_asker(order)
        self.issue_log = IssueLog()
        self.cpu = CpuMeter(board)
        self.pauses = PauseMeter()
        self.seats, self.hosts = self._open_seats()
        self.link: Link = self._open_link()
        near = [] if order.network else [i for i, seat in enumerate(self.seats) if seat.near]
        self.shared = SharedAnswers(near)
        self.exchange = self._open_exchange()
        self.finished = os.eventfd(0, os.EFD_CLOEXEC)
        self.failure: str | None = None
        self.stacked: dict[str, str] = {}  # whose loaded samples could not be pinned after all, and why
        self._done = False

    def _open_seats(self) -> tuple[list[Seat], list[WorkerHost]]:
        """The workers as ordered; those of this process load their models here and tell what they are."""
        o = self.order
        if o.local is None:
            return o.workers, []
        hosts, facts = [], []
        for seat in o.workers:
            host = WorkerHost(WorkerSpec(name=seat.name, max_batch=seat.max_batch, **o.local.model_dump()))
            facts.append(host.load())
            hosts.append(host)
        self.channel.send(event="workers", facts=facts)
        paces = zip(even_warm_ups(facts), (fact.get("slots", 1) for fact in facts), strict=True)
        told = [{"warm_up": warm_up, "slots": slots} for warm_up, slots in paces]
        return [seat.model_copy(update=new) for seat, new in zip(o.workers, told, strict=True)], hosts

    def _open_link(self) -> Link:
        o = self.order
        if o.local is not None:
            return LocalLink(len(o.workers))
        peers = [Peer(w.name, w.public_key) for w in o.workers]
        return RouterLink(
            peers,
            o.address,
            ports=o.ports,
            security=o.security,
            io_threads=o.io_threads,
        )

    def _open_exchange(self) -> Exchange:
        o = self.order
        workers = [(w.name, Pace(w.warm_up, w.max_batch, w.slots)) for w in self.seats]
        library, sample_bytes = None, 0.0
        if o.payload == "value":
            assert o.library is not None
            library = Library.open(Path(o.library), verify=False)
            sample_bytes = float(library.sizes.mean())
        dispatcher = Dispatcher(
            workers, on_loss=o.on_loss, one_sample_frames=o.network, sample_bytes=sample_bytes
        )
        return Exchange(
            self.link,
            dispatcher,
            Timings(self.board),
            self.asker.complete,
            epoch=o.epoch,
            library=library,
            shared=self.shared,
            coalesced=o.coalesced,
            issue_log=self.issue_log,
            on_loss=self._tell_loss,
            on_failure=self._fail,
            on_check=self.cpu.sample,
        )

    # -- phases ----------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Let the workers in: those in this process, or those that the driver tells to connect."""
        o = self.order
        self.exchange.start()
        if isinstance(self.link, LocalLink):
            for host, port in zip(self.hosts, self.link.ports, strict=True):
                host.serve(o.epoch, port)
        else:
            assert isinstance(self.link, RouterLink)
            self.channel.send(
                event="endpoint", endpoints=self.link.endpoints, server_key=self.link.server_key
            )
        threading.Thread(target=self._main, name="loadgen", daemon=True).start()

    def _main(self) -> None:
        """The LoadGen thread: wait for the workers, run the test."""
        try:
            self.exchange.wait_attached(self.order.attach_timeout_s)
            self._start_test()
            self._done = True
        except Exception as error:
            self.failure = self.failure or _explained(error)
        os.eventfd_write(self.finished, 1)

    def _start_test(self) -> None:
        o = self.order
        self.asker.settle()
        callbacks = Callbacks(
            issue=self.exchange.issue,
            load=self._load,
            unload=self.exchange.unload,
            name=self._network_name if o.network else None,
            on_error=lambda error: self._fail(_explained(error)),
        )
        # An old LoadGen obeys an audit.config in the working directory.
        os.chdir(o.out_dir)
        self._phase("loading")
        self.pauses.wait()
        self.channel.send(event="attached")
        self.asker.run(callbacks, Path.cwd())

    def _load(self, indices: Any) -> None:
        self.stacked |= self.exchange.load(indices)
        # Untimed until here: from now on no collection may stop the loop.
        gc.collect()
        gc.freeze()
        gc.disable()
        self.issue_log.start_set()
        if not self.board.total("started_ns"):
            self.board.set_total("started_ns", time.monotonic_ns())
        self._phase("running")
        whole = self.order.sample_count if self.order.test == "accuracy" else None
        self.channel.send(event="running", samples=whole)

    def _network_name(self) -> str:
        names = self.exchange.node_names()
        return f"LoadGrid Network SUT: {', '.join(names)}"

    def _phase(self, name: str) -> None:
        self.board.set_total("phase", PHASES.index(name))

    # -- the end ---------------------------------------------------------------------------------------------

    def _tell_loss(self, loss: Loss) -> None:
        self.channel.send(
            event="loss", worker=loss.worker, reason=loss.reason, moved=loss.moved, at_ns=loss.at_ns
        )

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        os.eventfd_write(self.finished, 1)

    def serve(self) -> None:
        """The main thread: hear the driver until the test is over, then leave."""
        # poll(): every worker is a connection, and select() cannot name descriptors from 1,024 on.
        poller = select.poll()
        for waited in (self.channel, self.finished):
            poller.register(waited, select.POLLIN)
        messages = self.channel.complete()
        while True:
            for message in messages:
                if message["event"] == "lost":
                    self.exchange.lose(message["worker"], message["reason"])
                elif message["event"] == "abort":
                    self._leave(3)
            if self.finished in {fd for fd, _ in poller.poll()}:
                break
            messages = self.channel.receive()
            if self.channel.closed:
                self._leave(4)  # the driver is gone: nobody will read a result
        if self.failure is not None or not self._done:
            self.channel.send(event="failed", reason=self.failure or "the test ended without a result")
            self._leave(2)
        self._phase("ending")
        self.exchange.stop()
        for host in self.hosts:
            if host.spec.note_order:
                self._replay(host)
            try:
                host.close()
            except WorkerError as error:
                # The result is there, and what the engine still holds ends with this process.
                print(error, file=sys.stderr)
        self.link.close()
        self.channel.send(event="result", **self._result())
        self._leave(0)

    def _replay(self, host: WorkerHost) -> None:
        """The bare loop of `bench`; its failure is its own, for the test is over and was good."""
        self.channel.send(event="replaying")
        try:
            found = host.replay()
        except Exception as error:
            found = {"failed": _explained(error)}
        self.channel.send(event="replay", **found)

    def _leave(self, code: int) -> None:
        self.pauses.kill()  # reaped here: where the driver is a container's first process nobody else would
        # LoadGen cannot be stopped inside a test; its logs stay as they are, and the record says why.
        os._exit(code)

    def _response_path(self) -> str:
        """How answers came; where some could not be shared, the test's log says why."""
        for worker, why in self.shared.refused.items():
            print(f"the memory of {self.seats[worker].name} is not shared: {why}", file=sys.stderr)
        if self.order.local is not None:
            return "in-process"
        return "shared-memory" if self.shared.answers else "messages"

    def _result(self) -> dict[str, Any]:
        o = self.order
        late = None
        if o.scenario == "Server":
            lateness = server_lateness(self.issue_log, o.schedule_seed, o.target_qps)
            late = vars(lateness) if lateness else None
        return {
            **self.asker.facts(),
            "issue_lateness": late,
            "issue_rest_us": round(self.exchange.rest_s * 1e6),
            "pauses": self.pauses.end(),
            "foreign_answers": self.exchange.foreign,
            "response_path": self._response_path(),
            "ports": len(set(self.link.endpoints)) if isinstance(self.link, RouterLink) else 0,
            "shared_answers": self.shared.answers,
            "stacked": self.stacked,
            "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            **self.cpu.result(),
        }


def _explained(error: BaseException) -> str:
    return str(error) if isinstance(error, SENTENCES) else f"{type(error).__name__}: {error}"


def _leave_with_driver(sock: socket.socket) -> None:
    """Wait for the driver's end, which may come while a model loads, and end: nobody would read a result."""
    poller = select.poll()
    poller.register(sock, select.POLLHUP)
    poller.poll()
    os._exit(4)


def _allow_files() -> None:
    """Raise the soft limit of open files, often 1,024, as far as allowed: every worker is a connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class CpuMeter:
    """CPU time of this process between the first and the last completion that a check saw."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._points: list[tuple[int, float, int, int]] = []  # completed, cpu s, wall ns, rss

    def sample(self, completed: int, issued: int) -> None:
        """Note where we are; called a few times a second from the dispatcher thread."""
        if not issued or (self._points and self._points[-1][0] == completed):
            return
        usage = resource.getrusage(resource.RUSAGE_SELF)
        point = (completed, usage.ru_utime + usage.ru_stime, time.monotonic_ns(), usage.ru_maxrss * 1024)
        if len(self._points) >= 2:
            self._points[-1] = point
        else:
            self._points.append(point)

    def result(self) -> dict[str, float | None]:
        """CPU microseconds a sample and CPU share (1.0 = one core); None for a test too short to tell."""
        if len(self._points) < 2 or self._points[1][0] == self._points[0][0]:
            return {"cpu_us_per_sample": None, "cpu_share": None, "rss_growth_bytes": None}
        (n0, cpu0, t0, rss0), (n1, cpu1, t1, rss1) = self._points
        return {
            "cpu_us_per_sample": round((cpu1 - cpu0) / (n1 - n0) * 1e6, 4),
            "cpu_share": round((cpu1 - cpu0) / ((t1 - t0) * 1e-9), 4),
            "rss_growth_bytes": rss1 - rss0,
        }


def main() -> None:
    """Read the order and run it."""
    control_fd, board_fd = int(sys.argv[1]), int(sys.argv[2])
    faulthandler.enable()  # a crash below Python says in the test's log where
    # A function of ours and not SIG_IGN, which whatever a library starts here would inherit.
    for number in LEFT_TO_THE_DRIVER:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_DRIVER)
    _allow_files()
    channel = Channel(socket.socket(fileno=control_fd))
    message = channel.first()
    if message is None:
        os._exit(4)
    order = TestOrder.model_validate(message)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threading.Thread(target=_leave_with_driver, args=(channel.sock,), name="driver", daemon=True).start()
    try:
        test = TestProcess(order, channel, Board(len(order.workers), board_fd))
        test.attach()
    except Exception as error:
        channel.send(event="failed", reason=_explained(error))
        os._exit(2)
    test.serve()


if __name__ == "__main__":
    main()
