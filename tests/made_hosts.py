"""What the tools of four hosts print: an eight-GPU server, one without GPUs, an ARM and a virtual machine.

Made after the tools' own formats (util-linux 2.38, dmidecode 3.5, nvidia-smi of driver 570), with the values
of such machines; the virtual one is what a real one printed.
"""

from __future__ import annotations

import json
from typing import Any

UBUNTU = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nNAME="Ubuntu"\nVERSION_ID="22.04"\nID=ubuntu'
PACKAGES = {"torch": "2.8.0+cu128", "mlcommons-loadgen": "6.0.17", "ray": "2.60.0"}
GH200 = "NVIDIA GH200 480GB, 97871, Enabled, Disabled, 1980, 2619, [N/A], [N/A], 570.86.15, 900.00, Enabled"
H100 = "NVIDIA H100 80GB HBM3, 81559, Enabled, Enabled, 1980, 2619, 5, 16, 570.148.08, 700.00, Disabled"


def nic(name: str, kind: str, speed_mbps: int | None, **more: Any) -> dict[str, Any]:
    told = {"name": name, "kind": kind, "speed_mbps": speed_mbps, "up": True, "driver": "", "mtu": 1500}
    return {**told, "card": "", "virtual_function": False, **more}


def lscpu(*rows: tuple[str, str]) -> str:
    return json.dumps({"lscpu": [{"field": f"{field}:", "data": data} for field, data in rows]})


def nested_lscpu(*rows: tuple[str, str]) -> str:
    """As newer versions nest: everything of the processor below its maker."""
    inner = [{"field": f"{field}:", "data": data} for field, data in rows]
    maker = {"field": "Vendor ID:", "data": "GenuineIntel", "children": inner}
    return json.dumps({"lscpu": [{"field": "Architecture:", "data": "x86_64"}, maker]})


def lsblk(*disks: dict[str, Any]) -> str:
    return json.dumps({"blockdevices": list(disks)})


def disk(name: str, size: int | str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "disk", "size": size, "rota": False, "tran": None, "rm": False, **more}


def dimm(size: str, kind: str = "DDR5", maker: str = "Samsung", part: str = "M321R8GA0BB0-CQKZJ") -> str:
    return (
        "Handle 0x0022, DMI type 17, 92 bytes\nMemory Device\n\tTotal Width: 80 bits\n\tData Width: 64 bits\n"
        f"\tSize: {size}\n\tForm Factor: DIMM\n\tType: {kind}\n\tSpeed: 4800 MT/s\n\tManufacturer: {maker}\n"
        f"\tPart Number: {part}   \n\tConfigured Memory Speed: 4800 MT/s\n"
    )


def array(ecc: str) -> str:
    return (
        "# dmidecode 3.5\nGetting SMBIOS data from sysfs.\n\nHandle 0x0021, DMI type 16, 23 bytes\n"
        f"Physical Memory Array\n\tLocation: System Board Or Motherboard\n\tError Correction Type: {ecc}\n"
    )


def dmidecode(ecc: str, *dimms: str) -> str:
    return "\n".join([array(ecc), *dimms])


def nvlink(gpus: int, links: int) -> str:
    one = "".join(f"\t Link {number}: 26.562 GB/s\n" for number in range(links))
    head = "GPU {}: NVIDIA H100 80GB HBM3 (UUID: GPU-7a6b)\n"
    return "".join(head.format(number) + one for number in range(gpus))


def topology(paths: list[list[str]]) -> str:
    """`nvidia-smi topo -m`, with a network card's column and row, and underlined heads as on a terminal."""
    count = len(paths)
    head = "\t\x1b[4m" + "\t".join([f"GPU{n}" for n in range(count)] + ["NIC0", "CPU Affinity"]) + "\x1b[0m"
    rows = [f"GPU{n}\t" + "\t".join([*row, "SYS", "0-55"]) for n, row in enumerate(paths)]
    return "\n".join([head, *rows, "NIC0\t" + "SYS\t" * count + " X", "", "Legend:", "", "  X    = Self"])


def all_pairs(count: int, path: str) -> list[list[str]]:
    return [[" X " if row == column else path for column in range(count)] for row in range(count)]


def eight_gpus() -> dict[str, Any]:
    disks = [disk(f"nvme{n}n1", 3840755982336, tran="nvme") for n in range(8)]
    return {
        "host": "dgx",
        "kernel": "6.8.0-64-generic",
        "python": "3.12.3",
        "loadgrid": "0.1.0",
        "os_release": UBUNTU,
        "packages": PACKAGES,
        "accelerator_devices": ["0x10de:0x2330"] * 8,
        "lscpu": nested_lscpu(
            ("Model name", "Intel(R) Xeon(R) Platinum 8480C"),
            ("Thread(s) per core", "2"),
            ("Core(s) per socket", "56"),
            ("Socket(s)", "2"),
            ("CPU max MHz", "3800.0000"),
            ("L1d cache", "5.3 MiB (112 instances)"),
            ("L3 cache", "210 MiB (2 instances)"),
        ),
        "base_frequency_khz": "2000000",
        "meminfo": "MemTotal:       2113450048 kB",
        "lsmem": None,
        "dmidecode": dmidecode("Multi-bit ECC", *[dimm("64 GB")] * 32, dimm("No Module Installed")),
        "lsblk": lsblk(*disks, disk("loop0", 4096), disk("sda", 0), disk("sr0", 10**9, rm=True)),
        "gpus": "\n".join([H100] * 8),
        "nvidia_smi": "| NVIDIA-SMI 570.148.08   Driver Version: 570.148.08   CUDA Version: 12.8     |",
        "nvlink": nvlink(8, 18),
        "topology": topology(all_pairs(8, "NV18")),
        "nics": [
            *(
                nic(f"ib{n}", "InfiniBand", 400000, driver="mlx5_core", card=f"0000:{n}8:00")
                for n in range(8)
            ),
            nic("eno3", "Ethernet", 100000, card="0000:a0:00"),
            nic("eno4", "Ethernet", None, up=False, card="0000:a0:00"),
        ],
    }


def cpu_only() -> dict[str, Any]:
    return {
        "host": "epyc",
        "kernel": "5.14.0-427.el9.x86_64",
        "python": "3.11.9",
        "loadgrid": "0.1.0",
        "os_release": 'NAME="Red Hat"\nPRETTY_NAME="Red Hat Enterprise Linux 9.4 (Plow)"',
        "packages": {"torch": "2.8.0+cpu", "onnxruntime": "1.22.0"},
        "accelerator_devices": [],
        "lscpu": lscpu(
            ("Model name", "AMD EPYC 9655 96-Core Processor"),
            ("Core(s) per socket", "96"),
            ("Socket(s)", "2"),
            ("CPU max MHz", "4509.0000"),
            ("L2 cache", "192 MiB (192 instances)"),
        ),
        "dmidecode": dmidecode(
            "None", dimm("32 GB"), dimm("32 GB"), dimm("16384 MB", "DDR4", "Unknown", "Not Specified")
        ),
        "lsblk": lsblk(
            disk("sda", "1920383410176", tran="sata", rota="0", rm="0"),
            disk("sdb", 8 * 10**12, tran="sas", rota=True),
        ),
        "nics": [
            nic("eth0", "Ethernet", 25000, card="0000:01:00"),
            nic("eth1", "Ethernet", 25000, card="0000:01:00"),
        ],
    }


def arm_cloud() -> dict[str, Any]:
    return {
        "host": "grace",
        "kernel": "6.8.0-1008-nvidia-64k",
        "os_release": UBUNTU,
        "packages": PACKAGES,
        "lscpu": lscpu(
            ("Architecture", "aarch64"),
            ("Model name", "Neoverse-V2"),
            ("Core(s) per cluster", "72"),
            ("Socket(s)", "-"),
            ("Cluster(s)", "1"),
            ("CPU max MHz", "3483.0000"),
        ),
        "lsmem": json.dumps(
            {"memory": [{"size": 512 * 2**30, "state": "online"}, {"size": "1", "state": "offline"}]}
        ),
        "lsblk": lsblk(disk("nvme0n1", 900 * 10**9)),
        "accelerator_devices": ["0x10de:0x2342"],
        "gpus": GH200,
        "nvlink": "GPU 0: NVIDIA GH200 480GB (UUID: GPU-1)\n\t Link 0: <inactive>\n",
        "topology": topology([[" X "]]),
        "nics": [nic("eth0", "Ethernet", 200000)],
    }


def virtual() -> dict[str, Any]:
    return {
        "host": "vm",
        "kernel": "6.18.44",
        "python": "3.11.7",
        "loadgrid": "0.1.0",
        "os_release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"',
        "packages": {},
        "accelerator_devices": [],
        "lscpu": lscpu(
            ("Model name", "Intel(R) Xeon(R) Processor @ 2.10GHz"),
            ("Core(s) per socket", "2"),
            ("Socket(s)", "1"),
            ("Hypervisor vendor", "KVM"),
            ("L3 cache", "260 MiB (1 instance)"),
        ),
        "meminfo": "MemTotal:       24731700 kB",
        "lsmem": None,
        "dmidecode": None,
        "lsblk": lsblk(disk("zram0", 0), disk("vda", 274877906944, rota=True)),
        "nics": [nic("eth0", "Ethernet", None, driver="virtio_net", mtu=1400, card="0000:00:03")],
    }


def filled(round_fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A description without a fault: what was found, and answers for the rest."""
    answers = {"division": "closed", "submitter": "ACME", "status": "available", "system_type": "datacenter"}
    return {
        **dict.fromkeys(round_fields, "N/A"),
        "number_of_nodes": 1,
        "host_processors_per_node": 2,
        "host_processor_core_count": 56,
        "accelerators_per_node": 8,
        **answers,
        **more,
    }
