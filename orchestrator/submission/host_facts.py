"""What a host's own tools say of it: run on every node, judged by nobody here (host_parts, gpus, nics)."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.machine import command_output
from orchestrator.submission.nics import read_nics
from workers.free_memory import PROC, SYS, read_text

# Asked in one query, which fails as a whole when the driver does not know a word: then the older words alone.
GPU_FIELDS = (
    "name",
    "memory.total",
    "ecc.mode.current",
    "ecc.mode.pending",
    "clocks.max.sm",
    "clocks.max.memory",
    "pcie.link.gen.max",
    "pcie.link.width.max",
    "driver_version",
    "power.limit",
    "mig.mode.current",
)
OLDER_GPU_FIELDS = GPU_FIELDS[:-1]
PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "ctranslate2",
    "mlcommons-loadgen",
    "ray",
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
# PCI classes of what computes: 3D controllers and processing accelerators; and display controllers of makers
# whose display controllers do.
_COMPUTING = ("0x0302", "0x1200")
_DISPLAY, _MAKERS = ("0x0300", "0x0380"), ("0x10de", "0x1002")


def read_host(proc: Path = PROC, sys: Path = SYS, etc: Path = Path("/etc")) -> dict[str, Any]:
    """What the tools print, by tool; None for one that is not here or may not tell."""
    return {
        "host": socket.gethostname(),
        "boot_id": read_text(proc / "sys/kernel/random/boot_id"),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "loadgrid": __version__,
        "os_release": read_text(etc / "os-release"),
        "lscpu": _plain("lscpu", "-J"),
        "cpuinfo": _first_cpu(read_text(proc / "cpuinfo")),
        "base_frequency_khz": read_text(sys / "devices/system/cpu/cpu0/cpufreq/base_frequency"),
        "meminfo": read_text(proc / "meminfo"),
        "lsmem": _plain("lsmem", "-J", "-b"),
        "dmidecode": _plain("dmidecode", "-t", "16", "-t", "17"),
        "lsblk": _plain("lsblk", "-J", "-b", "-d", "-o", "NAME,TYPE,SIZE,ROTA,TRAN,RM"),
        "gpus": _gpus(GPU_FIELDS) or _gpus(OLDER_GPU_FIELDS),
        "nvidia_smi": _plain("nvidia-smi"),
        "nvidia_smi_here": shutil.which("nvidia-smi") is not None,
        "nvlink": _plain("nvidia-smi", "nvlink", "--status"),
        "topology": _plain("nvidia-smi", "topo", "-m"),
        "cuda": read_text(Path("/usr/local/cuda/version.json")),
        "accelerator_devices": _accelerator_devices(sys),
        "nics": [asdict(nic) for nic in read_nics(sys)],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _plain(*command: str) -> str | None:
    """What a program prints in English."""
    return command_output("env", "LC_ALL=C", *command) or None


def _gpus(fields: tuple[str, ...]) -> str | None:
    return _plain("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")


def _first_cpu(cpuinfo: str | None) -> str | None:
    """The first processor's part of /proc/cpuinfo: hundreds of them differ in their number only."""
    return cpuinfo.split("\n\n")[0] if cpuinfo else None


def _accelerator_devices(sys: Path) -> list[str]:
    """The PCI devices that compute, "vendor:device", whatever driver they have."""
    found = []
    try:
        folders = sorted((sys / "bus/pci/devices").iterdir())
    except OSError:
        return []
    for folder in folders:
        kind, vendor = (read_text(folder / name) or "" for name in ("class", "vendor"))
        if kind.startswith(_COMPUTING) or (kind.startswith(_DISPLAY) and vendor in _MAKERS):
            found.append(f"{vendor}:{read_text(folder / 'device')}")
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
