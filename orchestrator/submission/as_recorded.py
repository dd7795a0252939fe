"""The system's description beside the records: nodes and accelerators that the workers were on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.submission.gather import Evidence, Test
from orchestrator.submission.refusal import several

NO_ACCELERATOR = {"", "none", "cpu"}  # what workers call their device then
# Words that tell no accelerator from another.
_MAKERS = {"nvidia", "amd", "intel", "gpu", "cuda", "geforce", "rtx", "tesla", "instinct", "graphics", "pcie"}


def contradictions(values: Mapping[str, Any], cells: Sequence[Evidence]) -> list[str]:
    """What cannot both be true: the description's nodes and accelerators, and those of the workers."""
    found = []
    nodes, per_node = (_count(values.get(name)) for name in ("number_of_nodes", "accelerators_per_node"))
    for cell in cells:
        test = cell.performance
        seen = _nodes(test)
        # LoadGen's host belongs to the system, and need not have a worker where these are elsewhere.
        most = len(seen) + (test.manifest.workers.where == "ray")
        if nodes is not None and seen and not len(seen) <= nodes <= most:
            found.append(
                f"number_of_nodes is {nodes}, but the workers of {test.name} ran on {len(seen)} "
                f"({several(seen, 3)})"
            )
        if per_node == 0 and _accelerators(test):
            found.append(f"accelerators_per_node is 0, but {test.name} ran on {several(_devices(test), 3)}")
    return list(dict.fromkeys(found))


def remarks(values: Mapping[str, Any], cells: Sequence[Evidence]) -> list[str]:
    """What may be right, and had better be looked at."""
    return list(dict.fromkeys(text for cell in cells for text in _remarks(values, cell)))


def _remarks(values: Mapping[str, Any], cell: Evidence) -> Iterator[str]:
    test = cell.performance
    nodes, per_node = (_count(values.get(name)) for name in ("number_of_nodes", "accelerators_per_node"))
    used = len(_accelerators(test))
    if nodes and per_node and used != nodes * per_node:
        yield f"{nodes} x {per_node} accelerators are described, {test.name} had {used} workers with one"
    named = _words(str(values.get("accelerator_model_name") or ""))
    for device in _devices(test):
        words = _words(device)
        if per_node and words and not words & named:
            yield f'accelerator_model_name does not name the device of {test.name}, "{device}"'
    for other in (cell.accuracy, *cell.audits.values()):
        if _nodes(other) != _nodes(test):
            places = [several(_nodes(each), 3) for each in (other, test)]
            yield f"{other.name} ran on {places[0]}, {test.name} on {places[1]}"
        if len(other.record.workers) != len(test.record.workers):
            yield (
                f"{other.name} had {len(other.record.workers)} workers, {test.name} had "
                f"{len(test.record.workers)}: a result is of one system"
            )


def _count(value: Any) -> int | None:
    text = str(value).strip()
    return int(text) if re.fullmatch(r"[0-9]{1,7}", text) else None


def _nodes(test: Test) -> list[str]:
    return sorted({worker.node for worker in test.record.workers})


def _accelerators(test: Test) -> list[str]:
    devices = [worker.device for worker in test.record.workers]
    return [device for device in devices if device.strip().lower() not in NO_ACCELERATOR]


def _devices(test: Test) -> list[str]:
    return sorted(set(_accelerators(test)))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower())) - _MAKERS
