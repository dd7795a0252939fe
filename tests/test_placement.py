"""Where workers go, and how many share a host: with Ray's answers made, as no cluster is needed for that."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import cluster, placement
from orchestrator.placement import Placement

TIME_BUDGET_S = 5


def node(name: str, **resources: float) -> dict[str, Any]:
    return {"name": name, "id": name * 56, "resources": resources}


class Group:
    def wait(self, seconds: float) -> bool:
        return True


def test_each_worker_hears_how_many_share_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {0: "a", 1: "b", 2: "a", 3: "a"}
    monkeypatch.setattr(placement, "placement_group", lambda bundles, strategy: Group())
    monkeypatch.setattr(placement, "placement_group_table", lambda group: {"bundles_to_node_id": where})
    _, places = placement.grouped(Placement(4, "spread", 1, 1), [node("a", CPU=4, GPU=3), node("b", CPU=1)])
    assert [place.workers_on_host for place in places] == [3, 1, 3, 3]


def test_workers_that_need_nothing_may_all_come_to_one_host() -> None:
    group, places = placement.grouped(Placement(5, "spread", 0, 0), [node("a"), node("b")])
    assert group is None and [tuple(place) for place in places] == [("SPREAD", 5)] * 5


def test_so_many_workers_on_every_node_are_so_many_on_each_host() -> None:
    nodes = [node("a", CPU=4), node("b", CPU=1), node("c", CPU=8)]
    places = placement.per_node(Placement(2, "per_node", 2, 0), nodes)
    assert [(p.strategy.node_id, p.workers_on_host) for p in places] == [
        ("a" * 56, 2),
        ("a" * 56, 2),
        ("c" * 56, 2),
        ("c" * 56, 2),
    ]


def test_the_cluster_s_errors_are_those_of_placement() -> None:
    assert cluster.ClusterError is placement.ClusterError


def test_workers_that_differ_or_give_way_to_all_else_are_told_of() -> None:
    fleet = cluster.RayFleet.__new__(cluster.RayFleet)
    fleet.facts = [{"name": f"worker-{i}", "device": "cpu", "niceness": 0} for i in range(3)]
    assert fleet.differences() == [] and fleet.giving_way() == []
    fleet.facts[1] |= {"device": "cuda", "niceness": 15}
    assert fleet.differences() == ["workers differ in device: cpu: worker-0, worker-2; cuda: worker-1"]
    (nice,) = fleet.giving_way()
    assert nice.startswith("worker-1: Ray started") and nice.endswith("start Ray with RAY_worker_niceness=0")
