"""The network bandwidth that the rules ask of datacenter systems (bandwidth.yaml), and the statement."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.loadgen_metrics import RoundNumber
from orchestrator.loadgen_run import round_of
from orchestrator.submission.data_files import load_data
from orchestrator.submission.nics import Nic, cards, in_words, nics_of, speed
from orchestrator.submission.system import SystemError, hosts_file, read_hosts

SINCE: RoundNumber = round_of(load_data("bandwidth.yaml")["since"])
NOT_DESCRIBED = "Not described."


@dataclass(frozen=True)
class Needed:
    """Gigabits a second that must come in and go out; 0 where the rules call the size negligible."""

    ingress_gbps: float
    egress_gbps: float
    formula: str
    value_bytes: int


@dataclass(frozen=True)
class Throughput:
    """A result that the statement covers: samples a second, and the bytes of one input value, if known."""

    benchmark: str
    scenario: str
    samples_per_s: float
    value_bytes: int | None = None


def is_wanted(round_name: str) -> bool:
    """Whether the round wants a statement."""
    return round_of(round_name) >= SINCE


def required_gbps(benchmark: str, samples_per_s: float, value_bytes: int | None = None) -> Needed | None:
    """What the rules' formula asks at this throughput; None for a benchmark of which they have none.

    Names with their quality (bert-99.9) share a formula. Without `value_bytes` the widest type is taken, so
    that too much is asked and not too little.
    """
    name = re.sub(r"-99(\.9)?$", "", {"resnet50": "resnet"}.get(benchmark, benchmark))
    found = load_data("bandwidth.yaml")["benchmarks"].get(name)
    if found is None:
        return None
    size = 1 if found.get("fixed_bytes") else value_bytes or int(found["widest_bytes"])
    # Gb/s of networks are 10^9 bits.
    ingress, egress = (samples_per_s * found[way] * size * 8 / 1e9 for way in ("ingress", "egress"))
    return Needed(ingress, egress, str(found["formula"]), size)


def nics_beside(system: Path, host: str | None = None) -> list[Nic]:
    """The ports of the host that LoadGen ran on (the first, if not named), as `describe-system` saw them."""
    hosts = read_hosts(system).get("hosts", [])
    named = [told for told in hosts if host is None or told.get("host") == host]
    try:
        return nics_of(named[0].get("nics", [])) if named else []
    except (ValueError, TypeError) as error:
        raise SystemError(
            f"{hosts_file(system)}: {error}; delete it, and describe the system again"
        ) from None


def connected_gbps(nics: Sequence[Nic]) -> float | None:
    """What the ports with a link give together, each way (full duplex); None if a speed is unknown."""
    ports = [nic for nic in cards(nics) if nic.up]
    if not ports or any(nic.speed_mbps is None for nic in ports):
        return None
    return sum(nic.speed_mbps or 0 for nic in ports) / 1000


def statement(nics: Sequence[Nic], results: Sequence[Throughput], data_path: str = "") -> str:
    """The statement in AsciiDoc: what each result needs, the ports of LoadGen's node, the data path.

    `data_path` is the submitter's text: from the NICs to the accelerators, and why it sustains the bandwidth.
    """
    have = connected_gbps(nics)
    lines = [
        "= Network bandwidth",
        "",
        "By the rules' appendix on datacenter bandwidth: what must pass between the network and the memory",
        "in which LoadGen's samples and responses lie.",
        "",
        "== Network interfaces",
        "",
        *_ports(nics, have),
        "",
        "== Needed",
        "",
        *_needs(results, have),
        "",
        "== Data path",
        "",
        data_path.strip() or NOT_DESCRIBED,
        "",
    ]
    return "\n".join(lines)


def lacking(nics: Sequence[Nic], results: Sequence[Throughput], data_path: str = "") -> list[str]:
    """What keeps the statement from showing what the rules want, one sentence each."""
    have, found = connected_gbps(nics), []
    if not nics:
        found.append("no network interface is known: describe the system on the node that LoadGen runs on")
    elif have is None:
        found.append(f"the speed of a link is not known ({in_words(nics)}): state it")
    for result in results:
        needed = required_gbps(result.benchmark, result.samples_per_s, result.value_bytes)
        name = f"{result.benchmark} {result.scenario}"
        if needed is None:
            found.append(
                f"{name}: the rules' formula is not known to LoadGrid; see their appendix on bandwidth"
            )
        elif have is not None and max(needed.ingress_gbps, needed.egress_gbps) > have:
            most = max(needed.ingress_gbps, needed.egress_gbps)
            found.append(f"{name} needs {most:.4g} Gb/s, the network interfaces give {have:g} Gb/s")
    if not data_path.strip():
        found.append("the data path from the network interfaces to the accelerators is not described")
    return found


def _ports(nics: Sequence[Nic], have: float | None) -> list[str]:
    if not nics:
        return ["None is known."]
    rows = [
        f"|{nic.name} |{nic.kind} |{speed(nic) or 'not known'} |{'up' if nic.up else 'down'} |{nic.driver}"
        for nic in cards(nics)
    ]
    total = f"{have:g} Gb/s each way" if have is not None else "not known"
    table = ["|===", "|Port |Kind |Speed |Link |Driver", *rows, "|==="]
    return [*table, "", f"Ports: {len(rows)}. Together with a link: {total}."]


def _needs(results: Sequence[Throughput], have: float | None) -> list[str]:
    lines = ["|===", "|Benchmark |Scenario |Samples/s |Values a sample |Bytes a value |In |Out |Given"]
    for result in results:
        needed = required_gbps(result.benchmark, result.samples_per_s, result.value_bytes)
        begin = f"|{result.benchmark} |{result.scenario} |{result.samples_per_s:.6g} "
        if needed is None:
            lines.append(f"{begin}|no formula | | | |")
            continue
        ways = (_way(needed.ingress_gbps), _way(needed.egress_gbps))
        enough = "not known"
        if have is not None:
            most = max(needed.ingress_gbps, needed.egress_gbps)
            enough = f"{have:g} Gb/s, {'enough' if 0 < have >= most else 'TOO LITTLE'}"
        lines.append(f"{begin}|{needed.formula} |{needed.value_bytes} |{ways[0]} |{ways[1]} |{enough}")
    return [*lines, "|==="]


def _way(gbps: float) -> str:
    return f"{gbps:.4g} Gb/s" if gbps else "above 0"
