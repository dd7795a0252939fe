"""Where the data plane listens: at one address that workers can be told, and not wider than it must."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cluster
from orchestrator.campaign import Session
from orchestrator.manifest import ManifestError, load_manifest
from orchestrator.quiet import Quiet
from tests.program import manifest

TIME_BUDGET_S = 5


def listening(folder: Path, address: str) -> Path:
    file = manifest(folder, where="ray")
    file.write_text(f"{file.read_text()}dispatch: {{listen: '{address}'}}\n")
    return file


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "0", "0.0", "0x0", "::", "0:0::0", "::ffff:0.0.0.0", "::%eth0"]
)
def test_every_address_at_once_is_no_address(tmp_path: Path, address: str) -> None:
    with pytest.raises(ManifestError, match="name one address: workers must know where") as caught:
        load_manifest(listening(tmp_path, address))
    assert caught.value.field == "dispatch.listen"


@pytest.mark.parametrize(
    "address", ["10.0.0.7", "127.0.0.1", "::1", "fe80::1%eth0", "node-0", "x", "0x7f000001"]
)
def test_one_address_is_taken(tmp_path: Path, address: str) -> None:
    assert load_manifest(listening(tmp_path, address)).dispatch.listen == address


@pytest.mark.parametrize(("ray_address", "expected"), [("local", "127.0.0.1"), ("auto", "10.0.0.7")])
def test_a_ray_of_this_host_alone_is_served_on_the_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_address: str, expected: str
) -> None:
    monkeypatch.setattr(cluster, "node_address", lambda: "10.0.0.7")
    session = Session(load_manifest(manifest(tmp_path, where="ray")), ray_address, Quiet(lambda text: None))
    fleet: Any = SimpleNamespace()
    session.fleet = fleet
    assert session._own_address() == expected
