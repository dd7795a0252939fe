"""LoadGen's thread rests in the issue callback: in Server with merged queries, beside a busy dispatcher."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from orchestrator import exchange
from orchestrator.manifest import parse_manifest
from orchestrator.plan import plan
from orchestrator.rules import load_round
from tests.processes import eventually
from tests.puppets import Table
from tests.real_loadgen import order_of

TIME_BUDGET_S = 10
ECHO = Path(__file__).parents[1] / "manifests/echo.yaml"


@pytest.fixture(params=[True, False], ids=["coalesced", "not coalesced"])
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    opened = Table(1, coalesced=request.param).attached()
    yield opened
    opened.close()


def test_loadgens_thread_rests_only_where_queries_merge_and_the_dispatcher_is_at_work(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    clock = {name: getattr(time, name) for name in ("monotonic", "monotonic_ns", "process_time_ns")}
    monkeypatch.setattr(exchange, "time", SimpleNamespace(sleep=rests.append, **clock))
    x = table.exchange
    assert eventually(lambda: x._asleep, 5, every_s=0)
    table.issue(1)  # goes at once
    assert rests == []
    table.puppets[0].work()
    begun, go = threading.Event(), threading.Event()

    def hold_up() -> None:
        begun.set()
        go.wait(5)

    x._call(hold_up)
    assert begun.wait(5)
    table.issue(1)
    go.set()
    assert rests == ([exchange.REST_S] if table.coalesced else [])


@pytest.mark.parametrize(
    ("scenario", "words", "merged"),
    [
        ("Server", {}, True),
        ("Server", {"coalesce_queries": 0}, False),
        ("Offline", {}, False),
        ("SingleStream", {}, False),
        ("MultiStream", {}, False),
    ],
)
def test_queries_merge_in_server_alone_and_where_the_manifest_lets_them(
    tmp_path: Path, scenario: str, words: dict[str, int], merged: bool
) -> None:
    asked = {**yaml.safe_load(ECHO.read_text()), "scenarios": [scenario]}
    asked["loadgen"][scenario] = {**asked["loadgen"].get(scenario, {}), **words}
    manifest = parse_manifest(json.dumps(asked).encode(), "echo")
    spec = plan(manifest, load_round(manifest.round))[0]
    order = order_of(tmp_path, scenario, expected=spec.settings, attributes=spec.attributes)
    assert order.coalesced == merged
    # What goes to a network's nodes is one query a message, whatever a manifest says of merging.
    assert not order.model_copy(update={"network": True}).coalesced
