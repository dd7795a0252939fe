"""A host's CPU, memory, storage and system, from what its tools print. Pure; what they do not say is ""."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# What firmware and tools write where they know nothing.
_NOTHING = {"", "-", "n/a", "none", "unknown", "not specified", "not available", "no dimm", "not provided"}
_NOMINAL = re.compile(r"@ ?([0-9.]+ ?[GM]Hz)", re.IGNORECASE)
_UNITS = {"kB": 2**10, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}  # dmidecode's are powers of two


@dataclass(frozen=True)
class Cpu:
    """The processors of a host; numbers are None where nothing tells them."""

    model: str = ""
    sockets: int | None = None
    cores: str = ""  # of one socket; with several kinds of core "4 (Cortex-A78); 4 (Cortex-A55)"
    frequency: str = ""
    caches: str = ""
    hypervisor: str = ""


@dataclass(frozen=True)
class Memory:
    """The memory of a host. `modules` is "" where the firmware's tables may not be read."""

    capacity: str = ""
    modules: str = ""


@dataclass(frozen=True)
class Storage:
    """The disks of a host."""

    capacity: str = ""
    kinds: str = ""


def cpu_of(lscpu: str | None, cpuinfo: str | None = None, base_frequency_khz: str | None = None) -> Cpu:
    """The processors by `lscpu -J`, the model by /proc/cpuinfo where there is no lscpu."""
    rows = list(_lscpu_rows(lscpu))
    models = [value for key, value in rows if key == "Model name" and _said(value)]
    if not rows:
        name = re.search(
            r"^(?:model name|cpu model)\s*:\s*(.+)$", cpuinfo or "", re.MULTILINE | re.IGNORECASE
        )
        models = [name[1].strip()] if name else []
    told = dict(reversed(rows))  # the first of each
    sockets = _number(told.get("Socket(s)"))
    return Cpu(
        model=" and ".join(dict.fromkeys(models)),
        sockets=sockets,
        cores=_cores(rows, models),
        frequency=_frequency(told, models, base_frequency_khz),
        caches=", ".join(
            f"{key.removesuffix(' cache')}: {value}"
            for key, value in rows
            if re.fullmatch(r"L\d[di]? cache", key)
        ),
        hypervisor=told.get("Hypervisor vendor", ""),
    )


def _lscpu_rows(lscpu: str | None) -> Iterator[tuple[str, str]]:
    """Field and value of every entry, those of nested entries (newer versions) in their place."""
    try:
        waiting = list(json.loads(lscpu or "{}").get("lscpu", []))
    except (ValueError, AttributeError, TypeError):
        return
    while waiting:
        entry = waiting.pop(0)
        if not isinstance(entry, dict):
            continue
        yield str(entry.get("field", "")).rstrip(":"), str(entry.get("data") or "").strip()
        waiting[:0] = entry.get("children") or []


def _cores(rows: list[tuple[str, str]], models: list[str]) -> str:
    """Cores of one socket. Several models on one host are several kinds of core."""
    counts = [value for key, value in rows if key in ("Core(s) per socket", "Core(s) per cluster")]
    counts = [value for value in counts if _number(value)]
    if len(models) > 1 and len(counts) == len(models):
        return "; ".join(f"{count} ({model})" for count, model in zip(counts, models, strict=True))
    return counts[0] if len(counts) == 1 else ""


def _frequency(told: Mapping[str, str], models: list[str], base_khz: str | None) -> str:
    parts = []
    nominal = _NOMINAL.search(models[0]) if len(models) == 1 else None
    if base_khz and base_khz.isdigit():
        parts.append(f"{int(base_khz) / 1e6:g} GHz (base)")
    elif nominal:
        parts.append(f"{nominal[1]} (nominal)")
    top = told.get("CPU max MHz", "")
    if re.fullmatch(r"[0-9]+([.,][0-9]+)?", top):
        parts.append(f"{float(top.replace(',', '.')) / 1000:.4g} GHz (max)")
    return ", ".join(parts)


def memory_of(meminfo: str | None, lsmem: str | None, dmidecode: str | None) -> Memory:
    """Capacity by the modules, else by what the kernel has online, else by what it can use."""
    modules = list(_modules(dmidecode or ""))
    installed = sum(module[0] for module in modules)
    total = installed or _online_bytes(lsmem) or _usable_bytes(meminfo)
    return Memory(
        capacity=binary_size(total) if total else "", modules=_module_words(modules, dmidecode or "")
    )


def _modules(dmidecode: str) -> Iterator[tuple[int, str]]:
    """Size and kind of every module that is there, in words."""
    for block in re.split(r"\n\s*\n", dmidecode):
        size = re.search(r"^\s*Size: (\d+) ([kKMGT]B)$", block, re.MULTILINE)
        if "Memory Device" not in block or not size:
            continue
        told = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in block.splitlines())
            if _said(value)
        }
        maker = " ".join(filter(None, [told.get("Manufacturer"), told.get("Part Number")]))
        rate = told.get("Configured Memory Speed") or told.get("Configured Clock Speed") or told.get("Speed")
        words = " ".join(filter(None, [f"{size[1]} {size[2]}", told.get("Type"), rate]))
        yield int(size[1]) * _UNITS[size[2]], f"{words} ({maker})" if maker else words


def _module_words(modules: list[tuple[int, str]], dmidecode: str) -> str:
    if not modules:
        return ""
    counted = Counter(words for _, words in modules)
    text = ", ".join(f"{count}x {words}" for words, count in counted.items())
    kinds = set(re.findall(r"^\s*Error Correction Type: (.+)$", dmidecode, re.MULTILINE))
    told = sorted(kind for kind in kinds if kind.lower() not in _NOTHING - {"none"})
    if told == ["None"]:
        return f"{text}, no ECC"
    return f"{text}, {', '.join(kind if 'ECC' in kind else f'{kind} ECC' for kind in told)}" if told else text


def _online_bytes(lsmem: str | None) -> int:
    try:
        blocks = json.loads(lsmem or "{}").get("memory", [])
        return sum(int(block["size"]) for block in blocks if block.get("state") == "online")
    except (ValueError, AttributeError, KeyError, TypeError):
        return 0


def _usable_bytes(meminfo: str | None) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def storage_of(lsblk: str | None) -> Storage:
    """The disks by `lsblk -J -b -d`: no loop devices, no memory, nothing that is pulled out."""
    try:
        devices = list(json.loads(lsblk or "{}").get("blockdevices", []))
    except (ValueError, AttributeError, TypeError):
        return Storage()
    disks = [disk for disk in devices if isinstance(disk, dict) and _is_disk(disk)]
    sizes = Counter(decimal_size(int(disk["size"])) for disk in disks)
    kinds = dict.fromkeys(kind for disk in disks if (kind := _disk_kind(disk)))
    return Storage(
        capacity=", ".join(f"{count}x {size}" if count > 1 else size for size, count in sizes.items()),
        kinds=", ".join(kinds),
    )


def _is_disk(disk: Mapping[str, Any]) -> bool:
    name, size = str(disk.get("name", "")), str(disk.get("size") or "0")
    made_up = name.startswith(("zram", "loop", "ram", "sr", "fd", "nbd"))
    # Versions of util-linux write numbers and booleans as numbers, booleans or text.
    removable = str(disk.get("rm")).lower() in ("true", "1")
    return disk.get("type") == "disk" and size.isdigit() and int(size) > 0 and not made_up and not removable


def _disk_kind(disk: Mapping[str, Any]) -> str:
    """The kind of a disk; "" for a virtual one, whose kind only its provider knows."""
    name, carrier = str(disk.get("name", "")), str(disk.get("tran") or "").lower()
    turns = str(disk.get("rota")).lower() in ("true", "1")
    if carrier == "nvme" or name.startswith("nvme"):
        return "NVMe SSD"
    if name.startswith("mmcblk"):
        return "eMMC or SD card"
    if name.startswith(("vd", "xvd")) or not carrier:
        return ""
    return f"{carrier.upper()} {'HDD' if turns else 'SSD'}"


def system_of(os_release: str | None, kernel: str) -> str:
    """Name and version of the operating system, and its kernel."""
    found = re.search(r'^PRETTY_NAME=["\']?(.*?)["\']?$', os_release or "", re.MULTILINE)
    return f"{found[1]}, Linux {kernel}" if found and found[1] else ""


def binary_size(count: int) -> str:
    """Bytes of memory in words, such as "2 TiB"."""
    unit, size = ("TiB", 2**40) if count >= 2**40 else ("GiB", 2**30)
    return f"{count / size:.4g} {unit}"


def decimal_size(count: int) -> str:
    """Bytes of a disk in words, such as "3.84 TB"."""
    unit, size = ("TB", 10**12) if count >= 10**12 else ("GB", 10**9)
    return f"{count / size:.3g} {unit}"


def _said(value: str) -> bool:
    return value.strip().lower() not in _NOTHING


def _number(value: str | None) -> int | None:
    return int(value) if value and value.isdigit() and int(value) else None
