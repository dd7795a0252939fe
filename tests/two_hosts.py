"""Several real hosts on one machine, for tests: network namespaces, a switch between, and Ray nodes in them.

Each host has its own loopback, its own address and its own cable to a bridge in a third namespace; no way
leads out. Needs root and iproute2; `why_not()` says what is missing. Everything here is named after the
process that made it, so what a killed run left behind is found and removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import (
    PREFIX,
    HarnessError,
    end_processes,
    eventually,
    is_orphaned,
    my_tag,
    orphaned_processes,
    short_folder,
    tag_in,
)
from tests.ray_nodes import RayNode, clean_environment

NETWORK = "10.213.77"  # seen by the namespaces only, so it clashes with no address of the machine
RAY_PORT = 6379
# A lost node is declared dead after about 6 s (measured) instead of Ray's default of a minute.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise HarnessError(f"ip {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _namespaces() -> list[str]:
    if shutil.which("ip") is None:
        return []
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]


def _pids_in(namespace: str) -> set[int]:
    return {int(pid) for pid in _ip("netns", "pids", namespace).split()}


def _empty_namespace(namespace: str) -> None:
    def empty() -> bool:
        pids = _pids_in(namespace)
        end_processes(pids)
        return not pids

    if not eventually(empty, 15.0):
        raise HarnessError(f"processes keep appearing in {namespace}")


def _remove_namespace(namespace: str) -> None:
    try:
        _empty_namespace(namespace)
        _ip("netns", "del", namespace)
    except HarnessError:
        # Leftovers of a killed run are everybody's to remove: another test run may have been first.
        if namespace in _namespaces():
            raise


def remove_leftovers() -> list[str]:
    """Remove what killed test runs of our own left: namespaces, processes, folders. Returns their names."""
    removed = []
    for name in _namespaces():
        if name.startswith(PREFIX) and is_orphaned(tag_in(name)):
            _remove_namespace(name)
            removed.append(name)
    strays = orphaned_processes()
    end_processes(strays)
    removed += [f"process {pid}" for pid in strays]
    for folder in Path("/tmp").glob(PREFIX + "*"):
        if is_orphaned(tag_in(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(str(folder))
    return removed


def why_not() -> str | None:
    """Why this machine cannot have test hosts, or None when it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command `ip` is missing (Debian: apt-get install iproute2)"
    trial = f"{PREFIX}{my_tag()}-trial"
    try:
        _ip("netns", "add", trial)
        _ip("netns", "del", trial)
    except HarnessError as error:
        return f"this machine allows no network namespaces: {error}"
    return None


@dataclass
class Host:
    """One host: its name, its address, its namespace and the environment of its programs."""

    name: str
    address: str
    namespace: str
    env: dict[str, str]
    ray_options: list[str] = field(default_factory=list)  # besides those of every Ray node
    ray: RayNode | None = None
    was_cut: bool = False  # since its Ray node started: a node that was cut off does not rejoin
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def pids(self) -> set[int]:
        return _pids_in(self.namespace)

    def forget_ended(self) -> None:
        """Reap the programs that have ended."""
        self.started = [process for process in self.started if process.poll() is None]

    @property
    def strays(self) -> set[int]:
        """What runs on the host besides its Ray node."""
        return self.pids - (self.ray.pids if self.ray is not None else set())


class Hosts:
    """The hosts `a`, `b`, ... and the switch between them; `hosts_on_one_machine` makes and removes them."""

    def __init__(self, count: int, token: str):
        self.folder = short_folder()
        self.switch = f"{PREFIX}{my_tag()}-switch"
        env = clean_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, **HEALTH_CHECKS)
        self.hosts = [
            Host(name, f"{NETWORK}.{number}", f"{PREFIX}{my_tag()}-{name}", dict(env))
            for number, name in enumerate("abcdefgh"[:count], start=1)
        ]
        self.head: Host | None = None

    def lay_cables(self) -> None:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "dev", "br0", "up")
        for host in self.hosts:
            _ip("netns", "add", host.namespace)
            _ip("-n", host.namespace, "link", "set", "dev", "lo", "up")
            peer = ["peer", "name", host.name, "netns", self.switch]
            _ip("link", "add", "eth0", "netns", host.namespace, "type", "veth", *peer)
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "dev", "eth0", "up")
            _ip("-n", self.switch, "link", "set", "dev", host.name, "up", "master", "br0")

    def remove(self) -> None:
        """Take everything away; each piece even when another resists."""
        existing = set(_namespaces())
        names = [host.namespace for host in self.hosts] + [self.switch]
        troubles = []
        for name in names:
            try:
                if name in existing:
                    _remove_namespace(name)
            except HarnessError as error:
                troubles.append(str(error))
        for host in self.hosts:
            self._reap(host)
        shutil.rmtree(self.folder, ignore_errors=True)
        if troubles:
            raise HarnessError("; ".join(troubles))

    # Programs

    def run_in(
        self, host: Host, argv: Sequence[str], env: Mapping[str, str] | None = None, **popen: Any
    ) -> subprocess.Popen[str]:
        """Start a program on a host; its pid is the program's own, its output a pipe by default."""
        popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
        popen = {"text": True, "start_new_session": True, "env": {**host.env, **(env or {})}, **popen}
        process = subprocess.Popen(["ip", "netns", "exec", host.namespace, *argv], **popen)
        host.started.append(process)
        return process

    def output_of(self, host: Host, argv: Sequence[str], timeout_s: float = 60.0) -> str:
        """Run a program on a host to its end and return what it printed; HarnessError when it fails."""
        process = self.run_in(host, argv)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise HarnessError(f"{argv[0]} on host {host.name} took over {timeout_s:.0f} s") from None
        if process.returncode != 0:
            raise HarnessError(f"{argv[0]} on host {host.name} exited {process.returncode}:\n{err[-2000:]}")
        return out

    def kill_all(self, host: Host) -> None:
        """SIGKILL to everything on a host, as when its power goes; the cable stays."""
        _empty_namespace(host.namespace)
        self._reap(host)

    def _reap(self, host: Host) -> None:
        for process in host.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)  # its pipes stay open: a test may still want its last words
        host.started.clear()
        if host.ray is not None:
            host.ray.process.wait(timeout=5)
            host.ray = None

    # Cables

    def cut(self, host: Host) -> None:
        """Pull the host's cable: packets are lost both ways without an answer; programs keep running."""
        host.was_cut = True
        _ip("-n", self.switch, "link", "set", "dev", host.name, "down")

    def mend(self, host: Host) -> None:
        _ip("-n", self.switch, "link", "set", "dev", host.name, "up")

    # Ray

    @property
    def ray_address(self) -> str:
        if self.head is None:
            raise HarnessError("no host has a Ray head")
        return f"{self.head.address}:{RAY_PORT}"

    def start_ray_head(self, host: Host, wait: bool = True) -> None:
        """Start a new cluster on a host (ending what ran there), which RAY_ADDRESS then names everywhere."""
        self.head = host
        for one in self.hosts:
            one.env["RAY_ADDRESS"] = self.ray_address
        options = [
            "--head",
            "--port",
            str(RAY_PORT),
            "--include-dashboard",
            "false",
            "--include-log-monitor",
            "false",
        ]
        self._start_ray(host, [*options, "--temp-dir", str(self.folder)], wait)

    def start_ray_node(self, host: Host, head: Host, wait: bool = True) -> None:
        """Add a host to the cluster (ending what ran on it: a node that was cut off never rejoins)."""
        self._start_ray(host, ["--address", f"{head.address}:{RAY_PORT}"], wait)

    def _start_ray(self, host: Host, options: list[str], wait: bool) -> None:
        self.mend(host)
        self.kill_all(host)
        host.was_cut = False
        env = {key: value for key, value in host.env.items() if key != "RAY_ADDRESS"}
        prefix = ["ip", "netns", "exec", host.namespace]
        log = self.folder / f"{host.name}.log"
        host.ray = RayNode(["--node-ip-address", host.address, *options, *host.ray_options], env, log, prefix)
        if wait:
            host.ray.wait_started()

    def wait_for_nodes(self, count: int, timeout_s: float = 30.0) -> list[str]:
        """The addresses of the living nodes once they are `count`, as the head's host sees them."""
        if self.head is None:
            raise HarnessError("no host has a Ray head")
        count_nodes = [sys.executable, "-c", _COUNT_NODES, str(count), str(timeout_s)]
        # Ray prints remarks of its own (a node marked dead, say) to the same output
        lines = self.output_of(self.head, count_nodes, timeout_s + 30.0).splitlines()
        return next(line for line in lines if line.startswith("nodes ")).split()[1:]

    def form_cluster(self) -> None:
        """A Ray head on the first host and a node on each other: new where dead, cut off or missing."""
        first, *others = self.hosts
        fresh = first.ray is None or not first.ray.alive or first.was_cut
        if fresh:
            self.start_ray_head(first)
        lost = [h for h in others if fresh or h.ray is None or not h.ray.alive or h.was_cut]
        for host in lost:
            self.start_ray_node(host, first, wait=False)
        for host in lost:
            assert host.ray is not None
            host.ray.wait_started()
        if not fresh and lost:  # the lost ones may still count as alive
            self.wait_for_nodes(len(self.hosts))


_COUNT_NODES = """
import os, sys, time, ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="error")
end = time.monotonic() + float(sys.argv[2])
while True:
    nodes = sorted(n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"])
    if len(nodes) == int(sys.argv[1]):
        print("nodes", *nodes)
        break
    if time.monotonic() > end:
        sys.exit(f"after {sys.argv[2]} s Ray has these nodes: {nodes}")
    time.sleep(0.1)
"""


@contextlib.contextmanager
def hosts_on_one_machine(count: int = 2, token: str | None = None) -> Iterator[Hosts]:
    """Hosts with cables and without Ray; all of it is gone afterwards, whatever happened."""
    remove_leftovers()
    hosts = Hosts(count, token or secrets.token_hex(16))
    try:
        hosts.lay_cables()
        yield hosts
    finally:
        hosts.remove()
