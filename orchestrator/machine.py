"""What this machine tells of itself: memory, CPUs, clocks, limits, ports. Reads, changes nothing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import subprocess
from pathlib import Path

from workers.free_memory import PROC, SYS, read_text
from workers.free_memory import available_memory_bytes as available_memory_bytes

COMMAND_TIMEOUT_S = 10.0


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def load_average() -> float:
    """Processes that ran or wanted to, on average over the last minute."""
    return os.getloadavg()[0]


def governors(sys: Path = SYS) -> set[str]:
    """The frequency governors of the CPUs; empty where the machine does not show them (virtual machines)."""
    files = (sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return {text for file in files if (text := read_text(file))}


def turbo(sys: Path = SYS) -> bool | None:
    """Whether the CPUs may exceed their nominal frequency; None if not shown."""
    no_turbo = read_text(sys / "devices/system/cpu/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = read_text(sys / "devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def somaxconn(proc: Path = PROC) -> int | None:
    """The longest queue of connections that a listening socket may have."""
    text = read_text(proc / "sys/net/core/somaxconn")
    return int(text) if text and text.isdigit() else None


def open_files_limit() -> tuple[int, int]:
    """The soft and the hard limit of file descriptors; -1 is none."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def free_disk_bytes(folder: Path) -> tuple[Path, int]:
    """Free bytes where `folder` is or would be made, and the folder that was looked at."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place, shutil.disk_usage(place).free


def shared_memory_bytes(place: Path = Path("/dev/shm")) -> tuple[int, int] | None:  # noqa: S108 - its size is the question
    """Size and free bytes of the shared memory; None if there is none."""
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return None
    return usage.total, usage.free


def command_output(*command: str) -> str | None:
    """What a program prints; None if it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",  # firmware's strings may be anything
            timeout=COMMAND_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def why_not_listen(address: str, port: int) -> str | None:
    """Why nothing can listen there now; None if it can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return None


def why_no_connection(host: str, port: int, timeout_s: float) -> str | None:
    """Why nobody answers at HOST:PORT; None if somebody does."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def own_address() -> str:
    """The address of this machine towards others; 127.0.0.1 where there is no network. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # RFC 5737: never a real host
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])
