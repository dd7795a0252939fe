"""The GPUs of a host, read from what nvidia-smi prints. Pure; what it does not say is ""."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.submission.host_facts import GPU_FIELDS
from orchestrator.submission.host_parts import binary_size

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MEMORY_KIND = re.compile(r"\b(HBM\d\w*|GDDR\d\w*)\b")
NOT_THERE = "N/A"


@dataclass(frozen=True)
class Gpu:
    """One GPU: what nvidia-smi's query says of it by word; a word that it does not know is not there."""

    told: dict[str, str]

    def says(self, field: str) -> str:
        """The value; "" where the driver has none, which it writes in brackets."""
        value = self.told.get(field, "").strip()
        return "" if value.startswith("[") or value == "N/A" else value


def gpus_of(csv: str | None) -> list[Gpu]:
    """The GPUs in the answer to a query of GPU_FIELDS, or of its first words."""
    rows = [[word.strip() for word in line.split(",")] for line in (csv or "").splitlines() if line.strip()]
    return [Gpu(dict(zip(GPU_FIELDS, row, strict=False))) for row in rows if len(row) >= 9]


def alike(gpus: Sequence[Gpu], words: Callable[[Gpu], str]) -> str:
    """What is said of the GPUs of a host: once if all are alike, else by count."""
    counted = Counter(words(gpu) for gpu in gpus)
    if len(counted) == 1:
        return next(iter(counted))
    return ", ".join(f"{text} (x{count})" for text, count in counted.items() if text)


def memory(gpu: Gpu) -> str:
    """What the driver shows of its memory: less than the name says, where ECC or the firmware take a part."""
    total = gpu.says("memory.total")
    return binary_size(int(total) * 2**20) if total.isdigit() else ""


def memory_configuration(gpu: Gpu) -> str:
    """The kind of memory where the name has it ("H100 80GB HBM3"), and ECC: now, and after the next reset."""
    kind = _MEMORY_KIND.search(gpu.says("name"))
    now, then = gpu.says("ecc.mode.current").lower(), gpu.says("ecc.mode.pending").lower()
    ecc = f"ECC {now}" if now else "ECC state not reported"
    if now and then and then != now:
        ecc += f", ECC {then} after the next reset"
    return ", ".join(filter(None, [kind[1] if kind else "", ecc]))


def frequency(gpu: Gpu) -> str:
    """The highest clocks."""
    parts = [("clocks.max.sm", "max SM"), ("clocks.max.memory", "max memory")]
    told = [f"{gpu.says(field)} MHz ({what})" for field, what in parts if gpu.says(field)]
    return ", ".join(told)


def host_interconnect(gpu: Gpu) -> str:
    """The widest PCIe link that GPU and slot can have; the link of now sleeps when the GPU idles."""
    generation, width = gpu.says("pcie.link.gen.max"), gpu.says("pcie.link.width.max")
    return f"PCIe Gen{generation} x{width}" if generation and width else ""


def notes(gpu: Gpu) -> str:
    """The power limit, and whether the GPU is cut in pieces."""
    limit = gpu.says("power.limit")
    parts = [f"GPU power limit {float(limit):g} W" if re.fullmatch(r"[0-9.]+", limit) else ""]
    parts.append("MIG enabled" if gpu.says("mig.mode.current") == "Enabled" else "")
    return ", ".join(filter(None, parts))


def cuda_version(nvidia_smi: str | None) -> str:
    """The newest CUDA that the driver serves: nvidia-smi's headline."""
    found = re.search(r"CUDA Version: ([0-9.]+)", nvidia_smi or "")
    return found[1] if found else ""


def nvlink_words(nvlink: str | None) -> str:
    """The links of each GPU by `nvidia-smi nvlink --status`, whose rate is that of one direction."""
    gpus: list[list[str]] = []
    for line in (nvlink or "").splitlines():
        if line.startswith("GPU "):
            gpus.append([])
        elif gpus and (link := re.match(r"\s*Link \d+: ([0-9.]+) GB/s", line)):
            gpus[-1].append(link[1])
    counted = Counter(tuple(links) for links in gpus)
    told = []
    for links, count in counted.items():
        rates = Counter(links)
        words = ", ".join(f"{n}x NVLink, {rate} GB/s each way and link" for rate, n in rates.items())
        told.append(f"{words} (x{count})" if words and len(counted) > 1 else words)
    return ", ".join(filter(None, told))


def pairs(topology: str | None) -> Counter[str]:
    """How often each kind of path joins two GPUs by `nvidia-smi topo -m`: NV18, PIX, SYS ..."""
    rows = [_ANSI.sub("", line).split() for line in (topology or "").splitlines()]
    rows = [row for row in rows if row and re.fullmatch(r"GPU\d+", row[0])]
    lines = [row for row in rows if len(row) > 1 and not re.fullmatch(r"GPU\d+", row[1])]
    found: Counter[str] = Counter()
    for number, row in enumerate(lines):
        # The table is symmetric: what stands right of the diagonal's X is each pair once.
        found.update(row[number + 2 : len(lines) + 1])
    return found


def topology_words(topology: str | None) -> str:
    """Such as "NV18 between all GPUs"."""
    found = pairs(topology)
    if len(found) == 1:
        return f"{next(iter(found))} between all GPUs"
    return ", ".join(f"{path} ({count} pairs)" for path, count in found.most_common())


def interconnect(gpus: Sequence[Gpu], nvlink: str | None, topology: str | None) -> str:
    """NVLink where there is one; PCIe where the table of paths shows nothing else; N/A for one GPU."""
    if len(gpus) < 2:
        return NOT_THERE
    if words := nvlink_words(nvlink):
        return words
    paths = pairs(topology)
    return "PCIe" if paths and not any(path.startswith("NV") for path in paths) else ""
