"""Which node each worker goes to, and how many share it. Imported by cluster.py, which readies Ray first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestrator.checks import size_mend

PLACE_TIMEOUT_S = 60.0

# As cluster.nodes() has them.
Nodes = Sequence[Mapping[str, Any]]


class ClusterError(Exception):
    """The cluster cannot run what the manifest asks; the text says what is missing and the mend."""


@dataclass(frozen=True)
class Placement:
    """Where workers go: `count` in all, or with strategy per_node that many on every node with room."""

    count: int
    strategy: str  # spread | pack | per_node
    num_cpus: float
    num_gpus: float


class Place(NamedTuple):
    """A worker's: Ray's word for it, and how many workers share its host, itself included."""

    strategy: Any
    workers_on_host: int


def per_node(p: Placement, nodes: Nodes) -> list[Place]:
    """`p.count` places on every node with room for them; ClusterError if none has."""
    need = {"CPU": p.num_cpus * p.count, "GPU": p.num_gpus * p.count}
    fit = [n for n in nodes if all(n["resources"].get(k, 0) >= v for k, v in need.items())]
    if not fit:
        raise ClusterError(
            f"no node has room for {p.count} workers ({_need(p)}); the cluster has {_have(p, nodes)}"
        )
    there = [NodeAffinitySchedulingStrategy(n["id"], soft=False) for n in fit for _ in range(p.count)]
    return [Place(strategy, p.count) for strategy in there]


def grouped(p: Placement, nodes: Nodes) -> tuple[PlacementGroup | None, list[Place]]:
    """`p.count` places in a group, which is to be removed in the end; ClusterError if there is no room."""
    bundle = {k: v for k, v in (("CPU", p.num_cpus), ("GPU", p.num_gpus)) if v}
    if not bundle:  # all of them may come to one host
        return None, [Place("SPREAD", p.count)] * p.count
    group = placement_group([dict(bundle) for _ in range(p.count)], strategy=p.strategy.upper())
    try:
        ready = group.wait(PLACE_TIMEOUT_S if _could_fit(p.count, bundle, nodes) else 1.0)
    except BaseException:
        remove_placement_group(group)
        raise
    if not ready:
        remove_placement_group(group)
        raise ClusterError(
            f"the cluster has no room for {p.count} workers ({_need(p)}); it has {_have(p, nodes)}"
        )
    node_of = placement_group_table(group)["bundles_to_node_id"]
    sharing = Counter(node_of.values())
    return group, [
        Place(PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i), sharing[node_of[i]])
        for i in range(p.count)
    ]


def _need(p: Placement) -> str:
    return f"{p.num_cpus:g} CPU and {p.num_gpus:g} GPU each"


def _have(p: Placement, nodes: Nodes) -> str:
    """What the nodes have, and the mend."""
    each = "; ".join(
        f"{n['name']} {n['resources'].get('CPU', 0):g} CPU {n['resources'].get('GPU', 0):g} GPU"
        for n in nodes
    )
    return f"{each}. {size_mend(p.num_cpus, p.num_gpus, list(nodes)) or 'Lower workers.count, or add nodes'}"


def _could_fit(count: int, bundle: Mapping[str, float], nodes: Nodes) -> bool:
    """Whether the nodes could hold the bundles if they were empty; if not, waiting is pointless."""
    room = sum(min(int(n["resources"].get(k, 0) // v) for k, v in bundle.items()) for n in nodes)
    return room >= count
