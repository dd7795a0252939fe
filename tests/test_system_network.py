"""Network cards as the kernel shows them, and the bandwidth that the rules ask of datacenter systems."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.submission.bandwidth import (
    Throughput,
    connected_gbps,
    is_wanted,
    lacking,
    nics_beside,
    required_gbps,
    statement,
)
from orchestrator.submission.nics import Nic, in_words, kinds, nics_of, read_nics
from orchestrator.submission.system import SystemError
from tests.made_hosts import eight_gpus

TIME_BUDGET_S = 10


class Sys:
    """A /sys of the test's own."""

    def __init__(self, root: Path):
        self.root = root

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{text}\n")

    def link(self, path: str, target: str) -> None:
        (self.root / target).mkdir(parents=True, exist_ok=True)
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).symlink_to(self.root / target)

    def port(self, name: str, slot: str = "", kind: str = "1", **files: str) -> None:
        """A network device; without a slot it is a virtual one."""
        for file, text in {"type": kind, "operstate": "up", "mtu": "1500", **files}.items():
            self.write(f"class/net/{name}/{file}", text)
        if slot:
            self.link(f"class/net/{name}/device", f"devices/pci0000:40/0000:40:01.0/{slot}")
            if not (self.root / f"devices/pci0000:40/0000:40:01.0/{slot}/driver").exists():
                self.link(f"devices/pci0000:40/0000:40:01.0/{slot}/driver", "bus/pci/drivers/mlx5_core")

    def adapter(
        self, name: str, slot: str, rate: str, state: str = "4: ACTIVE", layer: str = "InfiniBand"
    ) -> None:
        self.link(f"class/infiniband/{name}/device", f"devices/pci0000:40/0000:40:01.0/{slot}")
        for file, text in {"rate": rate, "state": state, "link_layer": layer}.items():
            self.write(f"class/infiniband/{name}/ports/1/{file}", text)


@pytest.fixture
def sys(tmp_path: Path) -> Sys:
    return Sys(tmp_path)


def test_cards_are_what_has_hardware(sys: Sys) -> None:
    sys.port("lo", kind="772")
    sys.port("docker0")
    sys.port("bond0", speed="200000")
    sys.port("eno1", "0000:41:00.0", speed="100000", carrier="1")
    sys.port("eno2", "0000:41:00.1", speed="-1", carrier="0", operstate="down")
    sys.port("wlan0", "0000:42:00.0", operstate="up")
    (sys.root / "class/net/wlan0/wireless").mkdir()
    assert read_nics(sys.root) == [
        Nic("eno1", "Ethernet", 100000, True, "mlx5_core", 1500, "0000:41:00"),
        Nic("eno2", "Ethernet", None, False, "mlx5_core", 1500, "0000:41:00"),
        Nic("wlan0", "Wi-Fi", None, True, "mlx5_core", 1500, "0000:42:00"),
    ]


def test_infiniband_is_seen_with_and_without_a_network_device(sys: Sys) -> None:
    sys.port("ib0", "0000:51:00.0", kind="32")
    sys.adapter("mlx5_0", "0000:51:00.0", "400 Gb/sec (4X NDR)")
    sys.adapter("mlx5_1", "0000:52:00.0", "200 Gb/sec (4X HDR)", "1: DOWN")
    told = read_nics(sys.root)
    assert [(nic.name, nic.kind, nic.speed_mbps, nic.up) for nic in told] == [
        ("ib0", "InfiniBand", 400000, True),
        ("mlx5_1/1", "InfiniBand", 200000, False),
    ]


def test_virtual_functions_are_no_cards_unless_there_is_nothing_else(sys: Sys) -> None:
    sys.port("eno1v0", "0000:41:02.0", speed="100000")
    sys.link("devices/pci0000:40/0000:40:01.0/0000:41:02.0/physfn", "devices/pci0000:40/0000:41:00.0")
    assert in_words(read_nics(sys.root)) == "1x 100 Gb/s Ethernet"
    sys.port("eno1", "0000:41:00.0", speed="25000")
    told = read_nics(sys.root)
    assert len(told) == 2 and in_words(told) == "1x 25 Gb/s Ethernet" and connected_gbps(told) == 25


def test_a_host_without_network_has_no_cards(tmp_path: Path) -> None:
    assert read_nics(tmp_path) == [] and in_words([]) == "" and kinds([]) == ""
    assert connected_gbps([]) is None


def test_cards_come_back_from_a_file() -> None:
    nic = Nic("a", "Ethernet", 1000, True)
    assert nics_of(json.loads(json.dumps([asdict(nic)]))) == [nic]
    for wrong in ([{"name": "a"}], [{"speed": 1}], [1], [{**asdict(nic), "speed_mbps": "fast"}]):
        with pytest.raises(ValueError, match="no network card"):
            nics_of(wrong)  # type: ignore[arg-type]


def test_the_rules_formulas_give_what_the_appendix_says() -> None:
    """Bytes a second of the appendix: throughput*150528*dtype_size for resnet, and so on."""
    for benchmark, values in (
        ("resnet", 150528),
        ("retinanet", 1920000),
        ("bert-99.9", 1152),
        ("bert-99", 1152),
    ):
        needed = required_gbps(benchmark, 1000.0, 1)
        assert needed is not None
        assert needed.ingress_gbps == pytest.approx(1000 * values * 8 / 1e9) and needed.egress_gbps == 0
    volumes = required_gbps("3d-unet-99", 10.0, 4)
    assert volumes is not None
    assert volumes.ingress_gbps == volumes.egress_gbps == pytest.approx(10 * 32944795 * 4 * 8 / 1e9)
    fixed = required_gbps("dlrm-v3", 1.0, 4)
    assert fixed is not None and fixed.ingress_gbps == pytest.approx(98368 * 8 / 1e9)
    assert required_gbps("resnet50", 1.0) == required_gbps("resnet", 1.0, 4)
    assert required_gbps("bert-99", 1.0) == required_gbps("bert-99", 1.0, 8)
    assert required_gbps("somethingelse", 1.0) is None


def test_rounds_before_the_rule_want_no_statement() -> None:
    assert [is_wanted(name) for name in ("v1.0", "v1.1", "v3.0", "v6.1")] == [False, False, True, True]


FAST = Nic("ib0", "InfiniBand", 100000, True, "mlx5_core", 4092, "0000:41:00")
RESULTS = [Throughput("resnet", "Offline", 27000.0, 1), Throughput("3d-unet-99", "Offline", 200.0)]


def test_a_statement_shows_ports_needs_and_what_is_too_little() -> None:
    text = statement([FAST, Nic("eno1", "Ethernet", None, False)], RESULTS, "PCIe switch to all GPUs")
    assert (
        "|ib0 |InfiniBand |100 Gb/s |up |mlx5_core" in text and "|eno1 |Ethernet |not known |down |" in text
    )
    assert "Together with a link: 100 Gb/s each way." in text
    assert "|resnet |Offline |27000 |3*224*224 |1 |32.51 Gb/s |above 0 |100 Gb/s, enough" in text
    assert "|210.8 Gb/s |210.8 Gb/s |100 Gb/s, TOO LITTLE" in text
    assert "PCIe switch to all GPUs" in text and text.count("|===") == 4
    assert lacking([FAST], RESULTS, "path") == [
        "3d-unet-99 Offline needs 210.8 Gb/s, the network interfaces give 100 Gb/s"
    ]


def test_what_is_not_known_is_said_and_asked_for() -> None:
    slow = Nic("eth0", "Ethernet", None, True, "virtio_net")
    unknown = [Throughput("yolo", "Offline", 1.0)]
    assert "Together with a link: not known." in statement([slow], unknown) and "no formula" in statement(
        [], unknown
    )
    told = " ".join(lacking([slow], unknown))
    assert "speed of a link is not known" in told and "yolo Offline" in told and "data path" in told
    assert lacking([], [], "path")[0].startswith("no network interface is known")
    assert "None is known." in statement([], [])


def test_the_ports_of_the_loadgen_node_come_from_the_hosts_file(tmp_path: Path) -> None:
    system = tmp_path / "dgx.json"
    assert nics_beside(system) == []
    hosts = [{"host": "a", "nics": [asdict(FAST)]}, {"host": "dgx", "nics": eight_gpus()["nics"]}]
    (tmp_path / "dgx.hosts.json").write_text(json.dumps({"found": {}, "hosts": hosts}))
    assert nics_beside(system) == nics_beside(system, "a") == [FAST]
    assert len(nics_beside(system, "dgx")) == 10 and nics_beside(system, "b") == []
    (tmp_path / "dgx.hosts.json").write_text('{"found": {}, "hosts": [{"nics": [{"x": 1}]}]}')
    with pytest.raises(SystemError, match="dgx.hosts.json"):
        nics_beside(system)
