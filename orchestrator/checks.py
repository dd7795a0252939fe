"""Whether a machine and a cluster are fit to measure: every check is one line, from facts handed in. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.manifest import Manifest
from orchestrator.phrases import plural, size
from orchestrator.plan import TestSpec, memory_needed_bytes
from orchestrator.rayauth import NICENESS_MEND

OK, WARN, FAIL = "ok", "warn", "FAIL"
PYTHON_OLDEST, PYTHON_FIRST_UNKNOWN = (3, 11), (3, 13)
# A worker's sockets, files and Ray's own: a node of eight workers was seen with about 900.
OPEN_FILES_ENOUGH = 4096
OPEN_FILES_LEAST = 1024
# Ray refuses to start with less shared memory than its smallest object store.
SHARED_MEMORY_LEAST = 80_000_000
# LoadGen's logs of an accuracy test with large answers; a rule of thumb, hence a warning.
DISK_ENOUGH = 2_000_000_000
BUSY_LOAD = 0.25  # of the CPUs: what others take is missing in the measurement


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was seen, and the mend if it is not well."""

    name: str
    status: str
    seen: str
    mend: str = ""


def number_of(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version: 2.13.0+cpu is (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def in_range(version: str, wanted: str) -> bool:
    """Whether a version meets `>=2.60,<3`: ==, >=, <=, > and < with plain numbers, all that we write."""
    have = number_of(version)
    for part in wanted.split(","):
        found = re.fullmatch(r"\s*(==|>=|<=|>|<)\s*([\d.]+)\s*", part)
        if found is None:
            continue
        bound = number_of(found[2])
        width = max(len(have), len(bound))
        a, b = (value + (0,) * (width - len(value)) for value in (have, bound))
        if not {"==": a == b, ">=": a >= b, "<=": a <= b, ">": a > b, "<": a < b}[found[1]]:
            return False
    return True


def ranges_of(requirements: Sequence[str]) -> dict[str, str]:
    """Name -> range, from lines such as `ray>=2.60,<3`."""
    found = (re.match(r"\s*([A-Za-z0-9._-]+)\s*([^;\[]*)", line) for line in requirements)
    return {match[1].lower(): match[2].strip() for match in found if match and match[2].strip()}


def python_check(version: Sequence[int]) -> Check:
    """Python 3.11 or 3.12."""
    seen = ".".join(str(part) for part in version[:3])
    if PYTHON_OLDEST <= tuple(version[:2]) < PYTHON_FIRST_UNKNOWN:
        return Check("Python", OK, seen)
    return Check("Python", FAIL, seen, "use Python 3.11 or 3.12")


def package_check(name: str, version: str | None, wanted: str, needed: bool = True) -> Check:
    """A library's version against the range that the project asks for."""
    if version is None:
        mend = f"pip install '{name}{wanted}'"
        return Check(name, FAIL if needed else WARN, "not installed", mend)
    if wanted and not in_range(version, wanted):
        return Check(name, WARN, f"{version}, outside {wanted}", f"pip install '{name}{wanted}'")
    return Check(name, OK, f"{version} (wanted {wanted})" if wanted else version)


def cpu_check(count: int, load: float) -> Check:
    """CPUs, and whether others use them."""
    seen = f"{plural(count, 'CPU')}, load {load:.1f}"
    if load > max(BUSY_LOAD * count, 0.5):
        return Check("CPU", WARN, seen, "something else runs here: timings will be noisy; end it or wait")
    if count < 2:
        return Check("CPU", WARN, seen, "LoadGen and a worker share one core; use a machine with more")
    return Check("CPU", OK, seen)


def frequency_check(governors: set[str], turbo: bool | None) -> Check:
    """Whether the CPUs keep their frequency."""
    boost = {None: "", True: ", turbo on", False: ", turbo off"}[turbo]
    if not governors:
        return Check("CPU frequency", OK, f"governor not shown here (a virtual machine?){boost}")
    seen = f"governor {', '.join(sorted(governors))}{boost}"
    if governors == {"performance"}:
        return Check("CPU frequency", OK, seen)
    return Check("CPU frequency", WARN, seen, "cpupower frequency-set -g performance")


def clock_check(drift_ppm: float, synchronised: bool | None) -> Check:
    """The steady clock, by which all is measured, against the system's; and who disciplines them."""
    sync = {True: "NTP synchronised", False: "not NTP synchronised", None: "NTP state not known"}[
        synchronised
    ]
    seen = f"steady and system clock differ by {drift_ppm:.0f} ppm; {sync}"
    if drift_ppm > 1000:
        return Check("clocks", WARN, seen, "the system clock is being moved: let NTP settle before a run")
    if synchronised is False:
        return Check("clocks", WARN, seen, "timedatectl set-ntp true: time stamps in logs would be wrong")
    return Check("clocks", OK, seen)


def memory_check(available: int | None, specs: Sequence[TestSpec]) -> Check:
    """Free memory against what LoadGen itself needs for the tests."""
    if available is None:
        return Check("memory", WARN, "the kernel does not say how much is free", "look at it yourself")
    if not specs:
        return Check("memory", OK, f"{size(available)} free; name a manifest to compare with its tests")
    hungriest = max(specs, key=memory_needed_bytes)
    needed = memory_needed_bytes(hungriest)
    seen = f"{size(available)} free; LoadGen needs up to {size(needed)} ({hungriest.name})"
    if needed > available:
        mend = f"lower target_qps or min_duration of {hungriest.scenario}, or use a larger machine"
        return Check("memory", FAIL, seen, mend)
    if needed > available / 2:
        return Check("memory", WARN, seen, "little is left for models and data")
    return Check("memory", OK, seen)


def weights_check(available: int, what: str, each: int, workers: int) -> Check:
    """Free memory against what all workers' weights take of it."""
    seen = f"{size(each * workers)} of {what} for {plural(workers, 'worker')}, {size(available)} free"
    if each * workers <= available:
        return Check("weights", OK, seen)
    mend = "make them smaller (backend.options, precision), or take fewer workers, or GPUs (num_gpus)"
    return Check("weights", FAIL, seen, mend)


def disk_check(folder: str, free: int, writable: bool) -> Check:
    """Room for logs."""
    seen = f"{size(free)} free in {folder}"
    if not writable:
        return Check("disk", FAIL, f"{folder} cannot be written into", "--runs-dir elsewhere")
    if free < DISK_ENOUGH:
        return Check("disk", WARN, seen, "accuracy logs can take more: make room, or --runs-dir elsewhere")
    return Check("disk", OK, seen)


def open_files_check(soft: int, hard: int, where: str = "") -> Check:
    """File descriptors."""
    name = f"open files{where}"
    if soft < 0 or soft >= OPEN_FILES_ENOUGH:
        return Check(name, OK, "no limit" if soft < 0 else f"{soft:,}")
    wanted = OPEN_FILES_ENOUGH if hard < 0 else min(hard, OPEN_FILES_ENOUGH)
    status = FAIL if soft < OPEN_FILES_LEAST else WARN
    return Check(name, status, f"{soft:,}", f"ulimit -n {max(wanted, soft)}, before Ray starts")


def somaxconn_check(value: int | None, workers: int) -> Check:
    """Whether all workers can connect at once."""
    if value is None:
        return Check("somaxconn", OK, "not shown here")
    if value < max(workers, 128):
        return Check("somaxconn", WARN, f"{value:,}", f"sysctl -w net.core.somaxconn={max(workers, 4096)}")
    return Check("somaxconn", OK, f"{value:,}")


def shared_memory_check(usage: tuple[int, int] | None) -> Check:
    """Ray's object store lives there."""
    if usage is None:
        return Check("shared memory", WARN, "no /dev/shm", "Ray will use slow files; mount /dev/shm")
    total, free = usage
    seen = f"{size(total)}, {size(free)} free"
    if free < SHARED_MEMORY_LEAST:
        return Check("shared memory", FAIL, seen, "enlarge /dev/shm (in a container: --shm-size=1g)")
    return Check("shared memory", OK, seen)


def ports_check(address: str, ports: tuple[int, int], taken: Sequence[int], wanted: int) -> Check:
    """Whether dispatch.ports has room: a test wants one for each I/O thread, and takes half at most."""
    low, high = ports
    count = high - low + 1
    seen = f"{address}: {count - len(taken)} of {plural(count, 'port')} {low} to {high} free"
    if len(taken) == count:
        return Check("ports", FAIL, seen, "end what listens there, or widen dispatch.ports")
    if wanted > 1 and (count - len(taken)) // 2 < wanted:
        mend = f"widen dispatch.ports to {2 * wanted}: workers that share a port may crowd on one thread"
        return Check("ports", WARN, f"{seen}; a test takes half at most, and has {wanted} I/O threads", mend)
    return Check("ports", OK, seen)


def exposure_check(address: str, security: str) -> Check:
    """Whether the data plane would listen where everyone can reach it."""
    name, seen = "data plane", f"listens on {address}, security {security}"
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Check(name, OK, f"{seen} (a name: whether it is public is not known)")
    open_to_all = found.is_global or found.is_unspecified
    if security == "none" and not found.is_loopback:
        status = FAIL if open_to_all else WARN
        return Check(name, status, seen, "dispatch.security: curve, unless the network is trusted")
    if open_to_all:
        return Check(
            name, WARN, f"{seen}: a public address", "dispatch.listen: an address of a private network"
        )
    return Check(name, OK, seen)


def auth_check(mode: str, address: str) -> Check:
    """Ray without a token lets everyone who reaches it run code."""
    if mode == "token":
        return Check("Ray authentication", OK, "token")
    if address == "local":
        mend = "leave RAY_AUTH_MODE unset: LoadGrid then makes a token"
    else:
        mend = "RAY_AUTH_MODE=token on every node, or keep Ray's ports away from others"
    return Check("Ray authentication", WARN, f"{mode}: whoever reaches Ray's ports runs code here", mend)


def node_checks(
    nodes: Sequence[Mapping[str, Any]], torch_needed: bool, here: Mapping[str, Any]
) -> Iterator[Check]:
    """One line a node: can it run a worker, and with the same versions as here?"""
    for node in nodes:
        resources = node["resources"]
        room = f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"
        name = f"node {node['name']}"
        facts = node.get("facts")
        if facts is None:
            mend = "look at that node's Ray; restart it with the same Python and Ray as here"
            yield Check(name, FAIL, f"{node['address']}, {room}: {node.get('error')}", mend)
            continue
        yield _node_check(name, f"{node['address']}, {room}", facts, torch_needed, here)
        if not (facts["open_files"] < 0 or facts["open_files"] >= OPEN_FILES_ENOUGH):
            yield open_files_check(facts["open_files"], -1, f" on {node['name']}")
        if facts["niceness"] > 0:
            seen = f"{node['name']}: Ray starts workers at nice {facts['niceness']}: all else goes first"
            yield Check("priority", WARN, seen, NICENESS_MEND)


def _node_check(
    name: str, room: str, facts: Mapping[str, Any], torch_needed: bool, here: Mapping[str, Any]
) -> Check:
    shown = ", ".join(f"{key} {facts.get(key) or 'none'}" for key in ("python", "torch", "pyzmq"))
    seen = f"{room}; {shown}"
    if facts["error"] is not None:
        return Check(name, FAIL, f"{seen}; workers: {facts['error']}", "install this loadgrid on that node")
    if torch_needed and facts.get("torch") is None:
        return Check(name, FAIL, seen, "install torch on that node: backend.engine is torch")
    other = [key for key in ("python", "torch", "pyzmq", "numpy") if facts.get(key) != here.get(key)]
    if other:
        told = ", ".join(f"{key} {here.get(key)} here" for key in other)
        return Check(name, WARN, f"{seen}; {told}", "install the same versions everywhere (constraints.txt)")
    return Check(name, OK, seen)


def room_check(manifest: Manifest, nodes: Sequence[Mapping[str, Any]], here_cpus: int, local: bool) -> Check:
    """Whether the manifest's workers fit on the cluster when it is empty."""
    wanted = manifest.workers
    need = {key: value for key, value in (("CPU", wanted.num_cpus), ("GPU", wanted.num_gpus)) if value}
    fit = [
        min((int(node["resources"].get(key, 0) / value) for key, value in need.items()), default=wanted.count)
        for node in nodes
    ]
    each = f"{wanted.num_cpus:g} CPU and {wanted.num_gpus:g} GPU each"
    lower = size_mend(wanted.num_cpus, wanted.num_gpus, nodes) or (
        "lower workers.count, num_cpus or num_gpus, or add nodes"
    )
    seen = f"{plural(wanted.count, 'worker')} ({each}), room for {sum(fit)}"
    if wanted.placement == "per_node":
        short = sum(count < wanted.count for count in fit)
        seen = f"{plural(wanted.count, 'worker')} on every node ({each}), {plural(short, 'node')} too small"
        if short == len(fit):
            return Check("workers", FAIL, seen, lower)
        return Check("workers", WARN if short else OK, seen, "those get no worker" if short else "")
    if sum(fit) < wanted.count:
        return Check("workers", FAIL, seen, lower)
    if local and wanted.count * wanted.num_cpus > here_cpus:
        mend = "a local Ray counts CPUs as told: workers will share cores; lower workers.count"
        return Check("workers", WARN, f"{seen}, but {plural(here_cpus, 'CPU')} in this machine", mend)
    return Check("workers", OK, seen)


def size_mend(num_cpus: float, num_gpus: float, nodes: Sequence[Mapping[str, Any]]) -> str:
    """What to do when no node is large enough for a single worker; empty if some node may be."""
    cpus, gpus = (max((n["resources"].get(k, 0) for n in nodes), default=0) for k in ("CPU", "GPU"))
    mends = []
    if gpus < num_gpus and not gpus:
        mends.append("no node has a GPU: set workers.num_gpus: 0 to compute on CPUs, or add nodes with GPUs")
    elif gpus < num_gpus:
        mends.append(f"no node has {num_gpus:g} GPUs for one worker: lower workers.num_gpus")
    if cpus < num_cpus:
        mends.append(
            f"no node has {num_cpus:g} CPUs for one worker: set workers.num_cpus to {cpus:g} or fewer"
        )
    return "; ".join(mends)


GPU_FIELDS = (
    "index",
    "name",
    "memory.total",
    "persistence_mode",
    "ecc.mode.current",
    "ecc.errors.uncorrected.volatile.total",
    "clocks.sm",
    "clocks.max.sm",
    "clocks_throttle_reasons.active",
)
# Bits of the throttle reasons that take speed away (NVML); idle and chosen clocks do not.
SLOWED = {0x04: "power cap", 0x08: "hardware", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}


def gpu_checks(table: str | None, gpus_wanted: bool) -> Iterator[Check]:
    """From `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` over GPU_FIELDS; None: not there."""
    lines = [line for line in (table or "").splitlines() if line.strip()]
    if not lines:
        seen, mend = "none seen on this machine", "are they on other nodes, or is the driver missing?"
        yield Check("GPU", WARN, f"{seen}; wanted", mend) if gpus_wanted else Check("GPU", OK, seen)
    for line in lines:
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(GPU_FIELDS):
            yield Check("GPU", WARN, line.strip(), "nvidia-smi answers in a way that is not known")
            continue
        yield _gpu_check(dict(zip(GPU_FIELDS, values, strict=True)))


def _gpu_check(gpu: Mapping[str, str]) -> Check:
    name = f"GPU {gpu['index']}"
    ecc = gpu["ecc.mode.current"]
    seen = (
        f"{gpu['name']}, {gpu['memory.total']} MiB, clock {gpu['clocks.sm']} of {gpu['clocks.max.sm']} MHz, "
        f"ECC {ecc}, persistence {gpu['persistence_mode']}"
    )
    errors = gpu["ecc.errors.uncorrected.volatile.total"]
    if errors.isdigit() and int(errors):
        return Check(
            name, FAIL, f"{seen}, {errors} uncorrected memory errors", "replace it, or reset it once"
        )
    try:
        bits = int(gpu["clocks_throttle_reasons.active"], 16)
    except ValueError:
        bits = 0
    slowed = [why for bit, why in SLOWED.items() if bits & bit]
    if slowed:
        return Check(
            name, WARN, f"{seen}, slowed by {', '.join(slowed)}", "cool it, or raise its power limit"
        )
    if gpu["persistence_mode"] == "Disabled":
        return Check(name, WARN, seen, "nvidia-smi -pm 1: else the first batch waits for the driver")
    return Check(name, OK, seen)
