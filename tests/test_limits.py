"""What a container or a control group leaves of the machine's memory and CPUs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from workers.free_memory import available_memory_bytes
from workers.limits import cpu_quota, memory_bytes, usable_cpus

TIME_BUDGET_S = 5

PAGES = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
PHYSICAL = 4_096_000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 CPUs and 4 MB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", PAGES.__getitem__)


def found(root: Path, groups: str, files: dict[str, str]) -> tuple[int, int]:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return memory_bytes(root / "proc", root / "sys"), usable_cpus(root / "proc", root / "sys")


V1 = "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n2:cpuset:/\n"
NO_LIMIT = str(2**63 - 4096)


def quota(group: str, microseconds: int) -> dict[str, str]:
    """What version 1 says of microseconds in every 100 ms."""
    return {f"{group}/cpu.cfs_quota_us": str(microseconds), f"{group}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, (PHYSICAL, 8)),
        ("0::/\n", {"memory.max": "3000", "cpu.max": "150000 100000"}, (3000, 2)),
        ("0::/\n", {"memory.max": "max", "cpu.max": "max 100000"}, (PHYSICAL, 8)),
        ("0::/\n", {"memory.max": "9999999999", "cpu.max": "9900000 100000"}, (PHYSICAL, 8)),
        ("0::/\n", {"cpu.max": "5000 100000"}, (PHYSICAL, 1)),
        # A limit above the process's own group holds too.
        ("0::/a/b\n", {"a/memory.max": "2000", "a/b/memory.max": "max"}, (2000, 8)),
        ("0::/a/b\n", {"a/memory.max": "2000", "a/b/memory.max": "1000"}, (1000, 8)),
        ("0::/a\n", {"b/memory.max": "1000", "b/cpu.max": "100000 100000"}, (PHYSICAL, 8)),
        # A container that sees its group as the root, under the host's path or above itself.
        ("0::/docker/ab\n", {"memory.max": "3000", "cpu.max": "200000 100000"}, (3000, 2)),
        ("0::/../../x\n", {"memory.max": "3000"}, (3000, 8)),
        (V1, {"memory/docker/ab/memory.limit_in_bytes": "2000"}, (2000, 8)),
        (V1, {"memory/memory.limit_in_bytes": "2000"}, (2000, 8)),
        (V1, {"memory/memory.limit_in_bytes": NO_LIMIT}, (PHYSICAL, 8)),
        (V1, quota("cpu,cpuacct/docker/ab", 300_000), (PHYSICAL, 3)),
        (V1, quota("cpu/docker", 50_000), (PHYSICAL, 1)),
        (V1, quota("cpu", -1), (PHYSICAL, 8)),
        # What no kernel says.
        ("", {"memory.max": "1"}, (PHYSICAL, 8)),
        ("nonsense\n0::/\n::\n", {"memory.max": "many", "cpu.max": "1"}, (PHYSICAL, 8)),
        ("0::/\n", {"memory.max": "", "cpu.max": "100000 0"}, (PHYSICAL, 8)),
    ],
)  # fmt: skip
def test_the_lowest_limit_of_the_machine_and_the_groups_holds(
    groups: str, files: dict[str, str], expected: tuple[int, int], tmp_path: Path
) -> None:
    assert found(tmp_path, groups, files) == expected


def test_a_part_of_a_cpu_is_told_as_such(tmp_path: Path) -> None:
    found(tmp_path, "0::/a/b\n", {"a/cpu.max": "750000 100000", "a/b/cpu.max": "max 100000"})
    assert cpu_quota(tmp_path / "proc", tmp_path / "sys") == 7.5


def test_a_machine_without_control_groups_is_whole(tmp_path: Path) -> None:
    assert (memory_bytes(tmp_path, tmp_path), usable_cpus(tmp_path, tmp_path)) == (PHYSICAL, 8)
    assert cpu_quota(tmp_path, tmp_path) == math.inf


def test_the_containers_limit_bounds_free_memory(tmp_path: Path) -> None:
    group = tmp_path / "fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/job/step\n")
    assert available_memory_bytes(tmp_path, tmp_path) == 32_000_000 * 1024
    (group / "memory.max").write_text("4000000000\n")
    (group / "memory.current").write_text("1000000000\n")
    assert available_memory_bytes(tmp_path, tmp_path) == 3_000_000_000
    (group / "memory.max").write_text("max\n")
    assert available_memory_bytes(tmp_path, tmp_path) == 32_000_000 * 1024
    # A job's, as of Slurm, holds also where its group is not seen as the root.
    (group / "job").mkdir()
    (group / "job/memory.max").write_text("2000000000\n")
    (group / "job/memory.current").write_text("500000000\n")
    assert available_memory_bytes(tmp_path, tmp_path) == 1_500_000_000
    (tmp_path / "self/cgroup").write_text("5:memory:/old\n")
    (group / "memory/old").mkdir(parents=True)
    (group / "memory/old/memory.limit_in_bytes").write_text("900000000\n")
    (group / "memory/old/memory.usage_in_bytes").write_text("100000000\n")
    assert available_memory_bytes(tmp_path, tmp_path) == 800_000_000
    assert available_memory_bytes(tmp_path / "none", tmp_path) is None
