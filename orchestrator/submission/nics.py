"""The network cards of a host, as its kernel shows them under /sys; loopback and bridges are none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.free_memory import SYS, read_text

# include/uapi/linux/if_arp.h: what /sys/class/net/NAME/type says.
_KINDS = {"1": "Ethernet", "32": "InfiniBand"}
_RATE = re.compile(r"^([0-9.]+) Gb/sec")
_PCI_SLOT = re.compile(r"([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2})\.[0-9a-f]")


@dataclass(frozen=True)
class Nic:
    """One port. `speed_mbps` is the link's, None where the kernel does not know (virtual machines).

    `card` is the PCI slot without its function, so that ports of one card share it.
    """

    name: str
    kind: str
    speed_mbps: int | None
    up: bool
    driver: str = ""
    mtu: int | None = None
    card: str = ""
    virtual_function: bool = False


def read_nics(sys: Path = SYS) -> list[Nic]:
    """The ports of this host: network devices with hardware behind them, and InfiniBand ports without one."""
    found = [nic for path in _entries(sys / "class/net") if (nic := _network_device(path))]
    devices = {_device(path) for path in _entries(sys / "class/net")}
    for adapter in _entries(sys / "class/infiniband"):
        ports = [_infiniband_port(adapter, port) for port in _entries(adapter / "ports")]
        if _device(adapter) not in devices:
            found += ports
        else:
            found = [_with_rate(nic, ports) if nic.card == ports[0].card else nic for nic in found if ports]
    return sorted(found, key=lambda nic: nic.name)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _device(path: Path) -> str:
    """Where a device's hardware lies; "" if it has none."""
    device = path / "device"
    return str(device.resolve()) if device.exists() else ""


def _network_device(path: Path) -> Nic | None:
    device = _device(path)
    if not device:
        return None
    kind = "Wi-Fi" if (path / "wireless").is_dir() else _KINDS.get(read_text(path / "type") or "", "")
    if not kind:
        return None
    speed, mtu = read_text(path / "speed"), read_text(path / "mtu")
    return Nic(
        name=path.name,
        kind=kind,
        # -1 and, at 64 bits, 2^32 - 1 say unknown.
        speed_mbps=int(speed) if speed and speed.isdigit() and 0 < int(speed) < 2**32 - 1 else None,
        up=read_text(path / "operstate") in ("up", "unknown") and read_text(path / "carrier") != "0",
        driver=_driver(path),
        mtu=int(mtu) if mtu and mtu.isdigit() else None,
        card=_card(device),
        virtual_function=(path / "device/physfn").exists(),
    )


def _driver(path: Path) -> str:
    driver = path / "device/driver"
    return driver.resolve().name if driver.exists() else ""


def _card(device: str) -> str:
    slots = _PCI_SLOT.findall(device)
    return slots[-1] if slots else ""


def _infiniband_port(adapter: Path, port: Path) -> Nic:
    rate = _RATE.match(read_text(port / "rate") or "")
    kind = read_text(port / "link_layer") or "InfiniBand"
    state = read_text(port / "state") or ""  # such as "4: ACTIVE"
    return Nic(
        name=f"{adapter.name}/{port.name}",
        kind=kind,
        speed_mbps=round(float(rate[1]) * 1000) if rate else None,
        up="ACTIVE" in state,
        driver=_driver(adapter),
        card=_card(_device(adapter)),
    )


def _with_rate(nic: Nic, ports: Sequence[Nic]) -> Nic:
    """An InfiniBand device's speed comes from its port: the network device on top does not know it."""
    if nic.speed_mbps is not None or len(ports) != 1:
        return nic
    return Nic(**{**vars(nic), "speed_mbps": ports[0].speed_mbps})


def nics_of(told: Sequence[dict[str, object]]) -> list[Nic]:
    """NICs as they were written to a file; ValueError for what is none."""
    try:
        nics = [Nic(**entry) for entry in told]  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"no network card: {error}") from None
    for nic in nics:
        texts = (nic.name, nic.kind, nic.driver, nic.card)
        if not all(isinstance(text, str) for text in texts) or not isinstance(nic.speed_mbps, int | None):
            raise ValueError(f"no network card: {nic}")
    return nics


def cards(nics: Sequence[Nic]) -> list[Nic]:
    """The ports of real cards; where there are virtual functions only (in a virtual machine), those."""
    return [nic for nic in nics if not nic.virtual_function] or list(nics)


def speed(nic: Nic) -> str:
    """Such as "400 Gb/s"; "" if unknown."""
    return f"{nic.speed_mbps / 1000:g} Gb/s" if nic.speed_mbps else ""


def in_words(nics: Sequence[Nic]) -> str:
    """The ports, fastest first, such as "8x 400 Gb/s InfiniBand, 2x 25 Gb/s Ethernet"."""
    counted = Counter(
        (nic.speed_mbps or 0, " ".join(filter(None, [speed(nic), nic.kind, "" if nic.up else "(down)"])))
        for nic in cards(nics)
    )
    order = sorted(counted.items(), key=lambda item: (-item[0][0], item[0][1]))
    text = ", ".join(f"{count}x {words}" for (_, words), count in order)
    slots = {nic.card for nic in cards(nics) if nic.card}
    ports = len(cards(nics))
    return (
        f"{text} ({ports} ports on {len(slots)} card{'s' if len(slots) > 1 else ''})"
        if slots and len(slots) < ports
        else text
    )


def kinds(nics: Sequence[Nic]) -> str:
    """The kinds of network, such as "InfiniBand, Ethernet", of the fastest card first."""
    order = sorted(cards(nics), key=lambda nic: (-(nic.speed_mbps or 0), nic.kind))
    return ", ".join(dict.fromkeys(nic.kind for nic in order))
