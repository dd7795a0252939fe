"""documentation/bandwidth.adoc of a tree: the statement for its results, from the NICs as described."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.rules import Round
from orchestrator.submission.bandwidth import Throughput, is_wanted, lacking, statement
from orchestrator.submission.documents import given_text
from orchestrator.submission.gather import Evidence
from orchestrator.submission.inference import metric
from orchestrator.submission.nics import nics_of
from orchestrator.submission.refusal import SubmitError
from orchestrator.submission.system import hosts_file, read_hosts

_BITS = re.compile(r"(?:fp|float|bf|int|uint|i|u)(4|8|16|32|64)$")


def wanted(found: Round, suite: str) -> bool:
    """Whether the round's rules ask this suite for a statement."""
    return is_wanted(found.name) and "datacenter" in suite.split(",")


def bandwidth_document(
    found: Round,
    cells: Sequence[Evidence],
    facts: Mapping[tuple[str, str], Mapping[str, str]],
    system: Path,
    data_path: Path | None,
) -> tuple[str, list[str]]:
    """The statement, and what it does not show of what the rules want."""
    results = []
    for cell in cells:
        told = metric(found, cell)
        if cell.scenario in ("Server", "Offline") and told is not None:
            size = value_bytes(facts[cell.benchmark, cell.scenario]["input_data_types"])
            results.append(Throughput(cell.benchmark, cell.scenario, told.value, size))
    hosts = read_hosts(system).get("hosts") or [{}]
    try:
        nics = nics_of(hosts[0].get("nics") or [])  # the first host is the one that described, LoadGen's
    except (ValueError, TypeError) as error:
        raise SubmitError(f"{hosts_file(system)}: {error}; describe the system again") from None
    path = given_text(data_path, "--data-path") if data_path else ""
    return statement(nics, results, path), [f"bandwidth: {text}" for text in lacking(nics, results, path)]


def value_bytes(input_data_types: str) -> int | None:
    """The bytes of one input value of a single type such as fp16; None for what is not one."""
    seen = _BITS.match(input_data_types.strip().lower())
    return max(1, int(seen[1]) // 8) if seen else None
