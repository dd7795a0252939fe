"""What value mode carries between two hosts, and on one, beside what TCP and ZeroMQ carry by themselves.

The hosts are network namespaces of this machine (root and iproute2; iperf3 for TCP's row), so they share its
cores and there is no cable: it shows what the copies and the keys cost. From the project's root:

    python manifests/sizing/value_mode.py --qps 4000 --qps 12000
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from tests import two_hosts  # noqa: E402

TCP_S = 3
PIPE_S = 2.0
PORT = 7777
LOADGRID = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
# A bare pipe: messages of random bytes, as many as go through in the time, an empty one last. Prints GB/s.
PIPE = """
import sys, time
import numpy as np, zmq
end, security, address, size_bytes, seconds = sys.argv[1:]
size_bytes, seconds, context = int(size_bytes), float(seconds), zmq.Context()
socket = context.socket(getattr(zmq, end))
public, secret = (b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", b"JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6")
if end == "PULL":
    if security == "curve":
        socket.curve_server, socket.curve_secretkey, socket.curve_publickey = True, secret, public
    socket.bind(address)
    print("ready", flush=True)
    socket.recv()
    began, count = time.monotonic(), 0
    while len(socket.recv(copy=False)):
        count += 1
    print(count * size_bytes / (time.monotonic() - began) / 1e9, flush=True)
else:
    if security == "curve":
        socket.curve_serverkey = public
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.sndhwm = 64
    socket.connect(address)
    bodies = [np.random.default_rng(seed).bytes(size_bytes) for seed in range(64)]
    socket.send(b"first")
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        socket.send(bodies[count % 64], copy=False)
        count += 1
    socket.send(b"")
    socket.close(10_000)
context.destroy(0)  # ZeroMQ lets go of the bodies before Python does
"""


def tcp(hosts: two_hosts.Hosts, size_bytes: int) -> float | None:
    """GB/s of one TCP connection by iperf3; None where it is not installed."""
    if shutil.which("iperf3") is None:
        return None
    first, second = hosts.hosts
    server = hosts.run_in(second, ["iperf3", "-s", "-1", "--forceflush"])
    assert server.stdout is not None
    while "listening" not in server.stdout.readline():
        if server.poll() is not None:
            raise two_hosts.HarnessError("iperf3 did not start")
    told = hosts.output_of(
        first, ["iperf3", "-c", second.address, "-t", str(TCP_S), "-l", str(size_bytes), "-J"]
    )
    server.communicate()
    return float(json.loads(told)["end"]["sum_received"]["bits_per_second"]) / 8e9


def pipes(hosts: two_hosts.Hosts, security: str, size_bytes: int, count: int) -> float:
    """GB/s of so many bare ZeroMQ pipes at once."""
    first, second = hosts.hosts
    ends: list[subprocess.Popen[str]] = []
    for place, kind in ((second, "PULL"), (first, "PUSH")):
        for port in range(PORT, PORT + count):
            rest = [security, f"tcp://{second.address}:{port}", str(size_bytes), str(PIPE_S)]
            ends.append(hosts.run_in(place, [sys.executable, "-c", PIPE, kind, *rest]))
        if kind == "PULL":
            ready = [pull.stdout.readline() for pull in ends if pull.stdout]
    try:
        told = [end.communicate(timeout=PIPE_S + 30) for end in ends]
    except subprocess.TimeoutExpired:
        raise two_hosts.HarnessError(f"the pipes did not end; {sum(map(bool, ready))} had begun") from None
    finally:
        for end in ends:
            end.kill()
    if any(end.returncode for end in ends):
        raise two_hosts.HarnessError(next(err[-500:] for _, err in told if err))
    return sum(float(out) for out, _ in told[:count])


def loadgrid(hosts: two_hosts.Hosts, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The lines of `loadgrid bench null` on the first host."""
    command = [*LOADGRID, "bench", "null", *options, "--json"]
    process = hosts.run_in(hosts.hosts[0], command, {"TMPDIR": str(hosts.folder)})
    out, err = process.communicate()
    if process.returncode not in (0, 1):  # VALID, INVALID
        raise two_hosts.HarnessError(f"loadgrid bench null exited {process.returncode}: {err[-500:]}")
    yield from (json.loads(line) for line in out.splitlines() if line.startswith("{"))


def print_bare(hosts: two_hosts.Hosts, chosen: argparse.Namespace) -> None:
    """Print GB/s without LoadGrid."""
    size, count = chosen.payload_bytes, chosen.workers
    if carried := tcp(hosts, size):
        print(f"one TCP connection (iperf3): {carried:.2f} GB/s", flush=True)
    else:
        print("one TCP connection: iperf3 is not installed", flush=True)
    for security in chosen.security:
        carried = pipes(hosts, security, size, count)
        print(f"bare ZeroMQ pipes, {count}, {security}: {carried:.2f} GB/s", flush=True)


# Where the workers are: options of `loadgrid bench null`.
PLACES = {"two hosts": ["--num-cpus", "1", "--address", "{cluster}"], "one host": ["--address", "local"]}


def through_loadgrid(
    hosts: two_hosts.Hosts, chosen: argparse.Namespace, places: dict[str, list[str]]
) -> None:
    """Print a row of each place, security and rate."""
    size, seconds = str(chosen.payload_bytes), str(chosen.seconds)
    shared = ["--payload-bytes", size, "--workers", str(chosen.workers), "--duration-s", seconds]
    rates = [word for qps in chosen.qps for word in ("--qps", str(qps))]
    for place, options in places.items():
        where = [word.format(cluster=hosts.ray_address) for word in options]
        for security in chosen.security:
            for row in loadgrid(hosts, [*shared, *rates, *where, "--security", security]):
                verdict = "VALID" if row["valid"] else "INVALID"
                print(
                    f"{place:10} {security:6} {row['offered_qps']:>9,.0f}/s offered {verdict:8}"
                    f"{row['completed_qps']:>9,.0f}/s {row['gigabytes_per_s']:7.3f} GB/s"
                    f"  p50 {row['p50_ms']:.4g}, p99 {row['p99_ms']:.4g} ms  {' '.join(row['nodes'])}",
                    flush=True,
                )


def whole_number(word: str) -> int:
    """A whole number from 1."""
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return int(word)


def seconds(word: str) -> float:
    """What `loadgrid bench null` takes."""
    if not 0.5 <= float(word) <= 86_400:
        raise argparse.ArgumentTypeError(f"{word} is not between 0.5 and 86400")
    return float(word)


def main() -> None:
    """Bare, through LoadGrid, and bare again: what else the machine does shows in the difference."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument(
        "--qps", type=whole_number, action="append", help="offered queries/s, several times; default: 2000"
    )
    arguments.add_argument("--security", action="append", choices=["none", "curve"], help="default: both")
    arguments.add_argument("--payload-bytes", type=whole_number, default=150_000, help="default: %(default)s")
    arguments.add_argument("--workers", type=whole_number, default=2, help="default: %(default)s")
    arguments.add_argument("--seconds", type=seconds, default=4.0, help="of each test; default: %(default)s")
    chosen = arguments.parse_args()
    chosen.qps, chosen.security = chosen.qps or [2000], chosen.security or ["none", "curve"]
    if fault := two_hosts.why_not():
        sys.exit(fault)
    two_hosts.remove_leftovers()
    hosts = two_hosts.Hosts(2, secrets.token_hex(16))
    # Workers go to the other host: on the first is the driver.
    hosts.hosts[0].ray_options = ["--num-cpus", "0"]
    try:
        hosts.lay_cables()
        print_bare(hosts, chosen)
        hosts.form_cluster()
        hosts.wait_for_nodes(2)
        through_loadgrid(hosts, chosen, PLACES)
        print_bare(hosts, chosen)
    except two_hosts.HarnessError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        hosts.remove()


if __name__ == "__main__":
    main()
