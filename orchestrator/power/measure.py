"""One performance test within a power measurement: the MLCommons client has it run twice, and keeps readings.

The client is the user's own (mlcommons/power-dev). For the ranging run, which sets the meter's range, and
again for the testing run, it starts a workload command: ours asks this process, over a Unix socket, to run
the test and waits. So the cluster stays up, the models stay loaded, every rule of a test holds in both runs,
and between LoadGen's power_begin and power_end nothing is done that an unmeasured test would not do.
"""

from __future__ import annotations

import contextlib
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from orchestrator import children
from orchestrator.manifest_power import PowerSection
from orchestrator.paths import write_atomically
from orchestrator.power import workload
from orchestrator.power.files import CLIENT_OUT, CLIENT_SAID, RANGING, FilesError, last_words, take_over
from orchestrator.supervise import Outcome

Mode = Literal["ranging", "testing"]
MODES: tuple[Mode, ...] = ("ranging", "testing")
LOOK_MS = 100
# From SIGTERM, after which the power server hears the connection's end and drops the session, to SIGKILL.
LEAVE_S = 5.0
ANSWER_S = 5.0  # in which a host of the same site answers, or does not


class Ask(Protocol):
    """Runs the test once."""

    def __call__(self, mode: Mode, folder: Path, stop: Callable[[], str | None]) -> Outcome:
        """Run it with its logs in `folder`, and end it when `stop` tells a reason."""


def client_command(power: PowerSection, name: str, logs: Path, out: Path, door: str) -> list[str]:
    """The client's command line, as ptd_client_server/README.md of mlcommons/power-dev has it."""
    ours = shlex.join([sys.executable, "-P", str(Path(workload.__file__).absolute()), door])
    label = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    options = {"-a": power.address, "-p": str(power.port), "-n": power.ntp, "-l": label}
    options |= {"-w": ours, "-L": str(logs), "-o": str(out)}
    return [*power.client, *(word for option in options.items() for word in option)]


def why_no_server(power: PowerSection) -> str | None:
    """Why nothing answers where the power server should be, None if something does; it is sent nothing."""
    try:
        with socket.create_connection((power.address, power.port), timeout=ANSWER_S):
            return None
    except (OSError, UnicodeError) as error:  # a name may have no form that can be looked up
        why = getattr(error, "strerror", None) or str(error)
        return f"no power server answers at {power.address}:{power.port}: {why}"


def measure(
    power: PowerSection, where: Path, folder: Path, name: str, ask: Ask, stop: Callable[[], str | None]
) -> tuple[Outcome | None, str]:
    """Run a test as the power client wants it, both runs' logs and the client's files in `folder`.

    `where` is the manifest's folder. Returns the testing run's outcome, if it came so far, and why there is
    no measurement, "" if there is one.
    """
    measurement = _Measurement(folder, ask, stop)
    # The client wants it outside of the folder that holds the logs.
    out = Path(tempfile.mkdtemp(prefix=f"{name}.power.", dir=folder.parent))
    try:
        trouble = measurement.run(lambda door: client_command(power, name, folder, out, door), where)
        if not trouble:
            take_over(out, folder)
            shutil.rmtree(out)
            for path in (where / Path(text).expanduser() for text in power.documents):
                write_atomically(folder / path.name, path.read_bytes())
    except FilesError as error:
        trouble = str(error)
    except OSError as error:
        at = f"{error.filename}: " if error.filename else ""
        trouble = f"the power measurement failed: {at}{error.strerror or error}"
    finally:
        if out.exists():
            out.rename(folder / CLIENT_OUT)
    return measurement.testing, trouble


class _Measurement:
    """The client from its start to its end, and the runs that it asks for."""

    def __init__(self, folder: Path, ask: Ask, stop: Callable[[], str | None]) -> None:
        self.folder, self.ask, self.stop = folder, ask, stop
        self.outcomes: list[Outcome] = []

    @property
    def testing(self) -> Outcome | None:
        """The outcome of the run that counts, None if it never began."""
        return self.outcomes[1] if len(self.outcomes) == len(MODES) else None

    def run(self, command: Callable[[str], list[str]], where: Path) -> str:
        """Start the client, serve it, and wait for its end; why it did not measure, "" if it did."""
        with tempfile.TemporaryDirectory(prefix="loadgrid-") as place, socket.socket(socket.AF_UNIX) as door:
            address = f"{place}/ask"
            door.bind(address)
            door.listen()
            with open(self.folder / CLIENT_SAID, "wb") as said:
                # The address's folder goes with the client if this process is killed.
                self.client = children.Program(command(address), where, Path(place), said)
            try:
                return self._attend(door)
            finally:
                self.client.end(LEAVE_S)

    def _attend(self, door: socket.socket) -> str:
        poller = select.poll()
        poller.register(door, select.POLLIN)
        while self.client.code() is None:
            if reason := self.stop():
                return reason
            if poller.poll(LOOK_MS):
                self._serve(door)
        return self._why_not()

    def _serve(self, door: socket.socket) -> None:
        """One workload command: run the test that it stands for, tell it the end."""
        connection, _ = door.accept()
        with connection:
            answer = " ".join(self._run_once().split())
            with contextlib.suppress(OSError):  # it has ended, and its client hears of that
                connection.sendall(answer.encode() + b"\n")

    def _run_once(self) -> str:
        """Run the next test; why that was not to be, "" if it ran to its end."""
        if len(self.outcomes) == len(MODES):
            return "the client asked for a third run, and a measurement has two"
        if why := self._failure():
            return why
        mode = MODES[len(self.outcomes)]
        folder = self.folder
        if mode == "ranging":
            folder = self.folder / RANGING
            folder.mkdir()
        self.outcomes.append(self.ask(mode, folder, lambda: self.stop() or self._left(mode)))
        return self._failure()

    def _left(self, mode: Mode) -> str | None:
        """Why a run is in vain once the client has gone."""
        code = self.client.code()
        return None if code is None else f"the power client left during the {mode} run ({self._how(code)})"

    def _failure(self) -> str:
        """Why the last run did not come to its end."""
        if not self.outcomes or self.outcomes[-1].status == "finished":
            return ""
        reason = self.outcomes[-1].reason
        return reason if self.testing else f"in the ranging run: {reason}"

    def _why_not(self) -> str:
        """Of a client that has ended: why that is no measurement, "" if it is one."""
        if why := self._failure():
            return why
        code, done = self.client.code() or 0, len(self.outcomes)
        if code == 0 and self.testing:
            return ""
        when = ("before the ranging run", "before the testing run", "after both runs")[done]
        return f"the power client left {when} ({self._how(code)})"

    def _how(self, code: int) -> str:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}; its last words: {last_words(self.folder)}"
