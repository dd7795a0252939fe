"""Real Ray nodes as processes of the tests, each ended by exactly the pids that it has: never `ray stop`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.processes import MARK, HarnessError, descendants, end_processes, eventually, my_tag, short_folder

CPUS = 8  # logical: Ray counts them, the machine need not have them
OBJECT_STORE_BYTES = 80_000_000  # Ray refuses less than 75 MiB
START_LIMIT_S = 60.0
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_memory_monitor_refresh_ms": "0",  # a busy test machine is no reason to kill an actor
    "RAY_prestart_worker_first_driver": "0",  # eight idle Pythons would fight the tests for two cores
    "RAY_enable_worker_prestart": "0",
}


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment less its Ray settings, plus the tests' mark, this Python and `more`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, MARK: my_tag(), **QUIET_RAY, **more}


class RayNode:
    """One `ray start --block` and everything below it; ends with the process that made it."""

    def __init__(self, options: Sequence[str], env: Mapping[str, str], log: Path, prefix: Sequence[str] = ()):
        self.log = log
        # setpriv: when this process dies without a word, the kernel ends the node (which ends its own).
        tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
        fixed = ["--num-cpus", str(CPUS), "--num-gpus", "0", "--object-store-memory", str(OBJECT_STORE_BYTES)]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*prefix, *tied, *ray, *fixed, "--disable-usage-stats", "--log-color", "false", *options],
                env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def wait_started(self) -> None:
        def settled() -> bool:
            return self.process.poll() is not None or "will now block forever" in self.log.read_text()

        if not eventually(settled, START_LIMIT_S) or self.process.returncode is not None:
            self.stop()
            raise HarnessError(f"Ray did not start; the end of its output:\n{self.log.read_text()[-2000:]}")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def pids(self) -> set[int]:
        return {self.process.pid} | descendants(self.process.pid)

    def stop(self) -> None:
        pids = self.pids
        self.process.kill()
        self.process.wait()
        end_processes(pids)


@dataclass
class LocalRay:
    """A real Ray on this machine: its address, and the environment for a process that is to use it."""

    address: str
    env: dict[str, str]
    node: RayNode


@contextlib.contextmanager
def ray_on_this_machine(token: str) -> Iterator[LocalRay]:
    """A Ray head with ports of its own choice, beside any other Ray."""
    folder = short_folder()
    env = clean_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    options = ["--head", "--port", "0", "--include-dashboard", "false", "--include-log-monitor", "false"]
    node = RayNode([*options, "--temp-dir", str(folder)], env, folder / "head.log")
    try:
        node.wait_started()
        found = re.search(r"--address='([^']+)'", node.log.read_text())
        if found is None:
            raise HarnessError(f"Ray did not print its address:\n{node.log.read_text()[-2000:]}")
        yield LocalRay(found[1], {**env, "RAY_ADDRESS": found[1]}, node)
    finally:
        node.stop()
        shutil.rmtree(folder, ignore_errors=True)
