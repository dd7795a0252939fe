"""From what hosts' tools print to the fields of a description: read right, joined, never made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.submission.describe import cluster_values, host_values, merge
from orchestrator.submission.gpus import (
    cuda_version,
    gpus_of,
    host_interconnect,
    memory_configuration,
    nvlink_words,
    topology_words,
)
from orchestrator.submission.host_facts import read_host
from orchestrator.submission.host_parts import cpu_of, memory_of, storage_of, system_of
from orchestrator.submission.layout import layout_of
from orchestrator.submission.system import problems
from tests.made_hosts import (
    H100,
    all_pairs,
    arm_cloud,
    cpu_only,
    dimm,
    disk,
    dmidecode,
    eight_gpus,
    lsblk,
    lscpu,
    nvlink,
    topology,
    virtual,
)

TIME_BUDGET_S = 10

NEW = layout_of("v6.1")


def test_an_eight_gpu_server_is_described() -> None:
    assert host_values(eight_gpus()) == {
        "host_processor_model_name": "Intel(R) Xeon(R) Platinum 8480C",
        "host_processors_per_node": 2,
        "host_processor_core_count": 56,
        "host_processor_frequency": "2 GHz (base), 3.8 GHz (max)",
        "host_processor_caches": "L1d: 5.3 MiB (112 instances), L3: 210 MiB (2 instances)",
        "host_memory_capacity": "2 TiB",
        "host_memory_configuration": "32x 64 GB DDR5 4800 MT/s (Samsung M321R8GA0BB0-CQKZJ), Multi-bit ECC",
        "host_storage_capacity": "8x 3.84 TB",
        "host_storage_type": "NVMe SSD",
        "host_networking": "InfiniBand, Ethernet",
        "host_network_card_count": (
            "8x 400 Gb/s InfiniBand, 1x 100 Gb/s Ethernet, 1x Ethernet (down) (10 ports on 9 cards)"
        ),
        "accelerators_per_node": 8,
        "accelerator_model_name": "NVIDIA H100 80GB HBM3",
        "accelerator_memory_capacity": "79.65 GiB",
        "accelerator_memory_configuration": "HBM3, ECC enabled",
        "accelerator_frequency": "1980 MHz (max SM), 2619 MHz (max memory)",
        "accelerator_host_interconnect": "PCIe Gen5 x16",
        "accelerator_interconnect": "18x NVLink, 26.562 GB/s each way and link",
        "accelerator_interconnect_topology": "NV18 between all GPUs",
        "framework": "PyTorch 2.8.0+cu128",
        "operating_system": "Ubuntu 22.04.5 LTS, Linux 6.8.0-64-generic",
        "other_software_stack": (
            "LoadGrid 0.1.0, LoadGen 6.0.17, Ray 2.60.0, Python 3.12.3, Driver 570.148.08, "
            "CUDA of the driver 12.8"
        ),
        "hw_notes": "GPU power limit 700 W",
    }


def test_a_host_without_accelerators_says_so_and_its_modules_and_disks_are_told_apart() -> None:
    told = host_values(cpu_only())
    assert told["accelerators_per_node"] == "0"
    accelerators = {value for name, value in told.items() if name.startswith("accelerator_")}
    assert accelerators == {"N/A"}
    assert told["host_memory_capacity"] == "80 GiB"
    assert told["host_memory_configuration"] == (
        "2x 32 GB DDR5 4800 MT/s (Samsung M321R8GA0BB0-CQKZJ), 1x 16384 MB DDR4 4800 MT/s, no ECC"
    )
    assert told["host_storage_capacity"] == "1.92 TB, 8 TB"
    assert told["host_storage_type"] == "SATA SSD, SAS HDD"
    assert told["host_network_card_count"] == "2x 25 Gb/s Ethernet (2 ports on 1 card)"
    assert told["framework"] == "PyTorch 2.8.0+cpu, ONNX Runtime 1.22.0"


def test_an_arm_host_that_hides_its_sockets_is_asked_for_them() -> None:
    told = host_values(arm_cloud())
    assert told["host_processor_model_name"] == "Neoverse-V2" and told["host_processor_core_count"] == 72
    assert "host_processors_per_node" not in told and "accelerator_host_interconnect" not in told
    assert told["host_memory_capacity"] == "512 GiB" and "host_memory_configuration" not in told
    assert told["accelerator_interconnect"] == told["accelerator_interconnect_topology"] == "N/A"
    assert told["hw_notes"] == "GPU power limit 900 W, MIG enabled"


def test_a_virtual_machine_has_no_modules_no_kind_of_disk_and_no_speed_of_network() -> None:
    told = host_values(virtual())
    assert told["host_memory_capacity"] == "23.59 GiB" and told["host_storage_capacity"] == "275 GB"
    assert not {"host_memory_configuration", "host_storage_type", "framework"} & set(told)
    assert told["host_network_card_count"] == "1x Ethernet"
    assert told["hw_notes"] == "Virtual machine (KVM)"
    assert told["host_processor_frequency"] == "2.10GHz (nominal)"


def test_a_gpu_that_no_tool_describes_is_not_called_absent() -> None:
    """Its driver may not be loaded, or its maker's tool is another: the count is asked for."""
    told = host_values({**virtual(), "accelerator_devices": ["0x1002:0x74a1"]})
    assert not [name for name in told if name.startswith("accelerator")]
    silent = host_values({**virtual(), "nvidia_smi_here": True})
    assert not [name for name in silent if name.startswith("accelerator")]


def test_a_host_of_which_nothing_is_known_invents_nothing() -> None:
    told = host_values({"accelerator_devices": ["0x10de:0x2330"], "nics": []})
    assert told == {}


def test_several_kinds_of_core_are_all_told() -> None:
    rows = [
        ("Model name", "Cortex-A78AE"),
        ("Core(s) per socket", "4"),
        ("Model name", "Cortex-A55"),
        ("Core(s) per socket", "8"),
        ("Socket(s)", "1"),
    ]
    cpu = cpu_of(lscpu(*rows))
    assert (cpu.model, cpu.cores) == ("Cortex-A78AE and Cortex-A55", "4 (Cortex-A78AE); 8 (Cortex-A55)")
    assert cpu_of(None, "model name\t: Some CPU\nflags\t: fpu").model == "Some CPU"
    assert cpu_of("no json") == cpu_of(None) == cpu_of('{"lscpu": 1}')


def test_memory_is_that_of_the_modules_else_of_the_kernel() -> None:
    meminfo, lsmem = "MemTotal: 1048576 kB", '{"memory": [{"size": 2147483648, "state": "online"}]}'
    assert memory_of(meminfo, lsmem, dmidecode("None", dimm("4 GB"))).capacity == "4 GiB"
    assert memory_of(meminfo, lsmem, dmidecode("None", dimm("No Module Installed"))).capacity == "2 GiB"
    assert memory_of(meminfo, "broken", None).capacity == "1 GiB"
    assert memory_of(None, None, None).capacity == memory_of(None, None, None).modules == ""
    assert memory_of(None, None, dmidecode("Single-bit ECC", dimm("4 GB"))).modules.endswith("Single-bit ECC")
    assert memory_of(None, None, dmidecode("Unknown", dimm("4 GB"))).modules.endswith(")")


def test_disks_are_those_that_stay() -> None:
    loose = [
        disk("loop0", 100),
        disk("sr0", 10),
        disk("sda", 10**9, rm="1", tran="usb"),
        disk("nbd0", 5),
        {**disk("vda1", 10**9), "type": "part"},
    ]
    assert (
        storage_of(lsblk(*loose))
        == storage_of(None)
        == storage_of("[]")
        == storage_of('{"blockdevices": null}')
    )
    assert storage_of(lsblk(disk("mmcblk0", 32 * 10**9))).kinds == "eMMC or SD card"


def test_the_operating_system_needs_a_name() -> None:
    assert system_of("PRETTY_NAME='Arch Linux'\nID=arch", "6.1") == "Arch Linux, Linux 6.1"
    assert system_of("ID=arch", "6.1") == system_of(None, "6.1") == ""


@pytest.mark.parametrize(
    ("now", "then", "words"),
    [
        ("Enabled", "Enabled", "HBM3, ECC enabled"),
        ("Disabled", "Disabled", "HBM3, ECC disabled"),
        ("Enabled", "Disabled", "HBM3, ECC enabled, ECC disabled after the next reset"),
        ("Disabled", "Enabled", "HBM3, ECC disabled, ECC enabled after the next reset"),
        ("[N/A]", "[N/A]", "HBM3, ECC state not reported"),
    ],
)
def test_the_ecc_state_is_recorded_and_told_when_it_is_off(now: str, then: str, words: str) -> None:
    (gpu,) = gpus_of(H100.replace("Enabled, Enabled", f"{now}, {then}"))
    assert memory_configuration(gpu) == words
    values = {"system_type": "datacenter", "accelerator_memory_configuration": words}
    told = [one.field for one in problems(values, NEW, "closed", None) if "ECC is off" in one.message]
    assert told == ["accelerator_memory_configuration"] * ("Disabled" in (now, then))


def test_gpus_of_an_older_driver_and_of_several_models_are_told() -> None:
    old = H100.rsplit(",", 1)[0]
    assert len(gpus_of(f"{old}\n\n{old}\n")) == 2 and gpus_of("No devices were found") == gpus_of(None) == []
    assert host_interconnect(gpus_of(H100)[0]) == "PCIe Gen5 x16"
    mixed = {**eight_gpus(), "gpus": "\n".join([H100] * 3 + [H100.replace("H100 80GB HBM3", "L40S")])}
    assert host_values(mixed)["accelerator_model_name"] == "NVIDIA H100 80GB HBM3 (x3), NVIDIA L40S (x1)"


def test_links_between_gpus_are_counted_and_paths_named() -> None:
    assert nvlink_words(nvlink(8, 18)) == "18x NVLink, 26.562 GB/s each way and link"
    assert nvlink_words("GPU 0: A (UUID: x)\n\t Link 0: <inactive>\n") == nvlink_words(None) == ""
    pairs = all_pairs(4, "SYS")
    for one, other in ((0, 1), (2, 3)):
        pairs[one][other] = pairs[other][one] = "NV4"
    assert topology_words(topology(pairs)) == "SYS (4 pairs), NV4 (2 pairs)"
    assert topology_words(topology(all_pairs(8, "NV18"))) == "NV18 between all GPUs"
    assert topology_words(None) == topology_words("GPU0") == ""
    without = {**eight_gpus(), "nvlink": None, "topology": topology(all_pairs(8, "NODE"))}
    assert host_values(without)["accelerator_interconnect"] == "PCIe"
    assert "accelerator_interconnect" not in host_values({**without, "topology": None})
    assert cuda_version("CUDA Version: 13.0  |") == "13.0" and cuda_version(None) == ""


def test_nodes_that_are_alike_are_counted_and_those_that_differ_are_told() -> None:
    other = {**eight_gpus(), "gpus": "\n".join([H100.replace("H100 80GB HBM3", "H200")] * 8)}
    told = cluster_values([eight_gpus(), eight_gpus(), other])
    assert told.values["number_of_nodes"] == 3 and told.values["accelerators_per_node"] == 8
    assert (
        told.values["accelerator_model_name"] == "NVIDIA H100 80GB HBM3 (on 2 nodes), NVIDIA H200 (on 1 node)"
    )
    assert told.values["host_memory_capacity"] == "2 TiB"
    assert told.remarks == ["the nodes differ in accelerator_model_name, accelerator_memory_configuration"]
    assert cluster_values([eight_gpus()] * 4).remarks == []


def test_counts_that_differ_are_asked_for_and_a_node_without_gpus_adds_no_model() -> None:
    told = cluster_values([eight_gpus(), cpu_only()])
    assert "accelerators_per_node" not in told.values and told.values["host_processors_per_node"] == 2
    assert told.values["accelerator_model_name"] == "NVIDIA H100 80GB HBM3 (on 1 node)"
    assert told.values["host_processor_core_count"] == "56 (on 1 node); 96 (on 1 node)"
    assert (
        "the nodes differ in accelerators_per_node, fill it in: 8 (on 1 node); 0 (on 1 node)" in told.remarks
    )


def test_containers_of_one_machine_are_one_node() -> None:
    told = cluster_values([{**virtual(), "boot_id": "a"}, {**virtual(), "host": "pod", "boot_id": "a"}])
    assert told.values["number_of_nodes"] == 1 and told.remarks == [
        "pod and vm are one machine, counted once"
    ]


def merged(
    before: dict[str, Any], found_before: dict[str, Any], given: dict[str, str], round_name: str = "v6.1"
) -> Any:
    return merge(layout_of(round_name), cluster_values([virtual()]), before, found_before, given)


def test_found_beats_empty_and_a_persons_text_is_kept() -> None:
    before = {
        "host_processor_model_name": "Intel Xeon 8480",
        "hw_notes": "",
        "cooling": "air",
        "own_key": "kept",
    }
    told = merged(before, {}, {})
    assert told.values["host_processor_model_name"] == "Intel Xeon 8480" and told.values["cooling"] == "air"
    assert told.values["hw_notes"] == "Virtual machine (KVM)" and told.values["own_key"] == "kept"
    assert told.values["system_name"] == "" and next(iter(told.values)) == "division"
    assert told.remarks == [
        'host_processor_model_name: kept "Intel Xeon 8480", found "Intel(R) Xeon(R) Processor @ 2.10GHz"'
    ]


def test_what_was_found_before_follows_the_machine_and_is_told() -> None:
    told = merged({"operating_system": "Debian 11"}, {"operating_system": "Debian 11"}, {})
    assert told.values["operating_system"] == "Debian GNU/Linux 12 (bookworm), Linux 6.18.44"
    assert told.remarks[0].startswith('operating_system: was "Debian 11", now found "Debian GNU/Linux 12')
    assert merged({"framework": "PyTorch"}, {"framework": "PyTorch"}, {}).values["framework"] == "PyTorch"


def test_what_is_given_beats_all_and_counts_become_numbers() -> None:
    given = {"cooling": "water", "number_of_nodes": "4", "accelerators_per_node": "0", "hw_notes": "none"}
    told = merged({"cooling": "air"}, {}, given)
    assert told.values["cooling"] == "water" and told.values["number_of_nodes"] == 4
    assert told.values["accelerators_per_node"] == "0"
    assert told.remarks == [
        'number_of_nodes: given "4", found "1"',
        'hw_notes: given "none", found "Virtual machine (KVM)"',
    ]


def test_engines_that_are_only_installed_are_to_be_struck_out() -> None:
    found = cluster_values([cpu_only()])
    assert merge(NEW, found, {}, {}, {}).remarks == [
        "framework lists the engines that are installed: keep what the results ran on"
    ]
    given = {"framework": "ONNX Runtime 1.22.0"}
    assert all("engines" not in remark for remark in merge(NEW, found, {}, {}, given).remarks)


def test_fields_are_those_of_the_round_and_division() -> None:
    assert "system_type_detail" not in merged({}, {}, {}, "v1.1").values
    network = merged({}, {}, {"division": "network"}).values
    assert network["is_network"] == "true" and network["nic_sut"] == ""
    assert "is_network" not in merged({}, {}, {"division": "closed"}).values


def test_this_machine_tells_of_itself(tmp_path: Path) -> None:
    told = cluster_values([read_host()]).values
    assert told["number_of_nodes"] == 1 and told["host_memory_capacity"] and told["operating_system"]
    nothing = read_host(tmp_path, tmp_path, tmp_path)
    assert nothing["nics"] == nothing["accelerator_devices"] == [] and nothing["meminfo"] is None


_TOOLS = [
    "lscpu",
    "lsmem",
    "lsblk",
    "dmidecode",
    "gpus",
    "nvlink",
    "topology",
    "os_release",
    "meminfo",
    "cpuinfo",
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["lscpu", "field", "data", "children", "blockdevices", "memory", "size"]), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(_TOOLS),
        st.none()
        | st.text(max_size=60)
        | _JSON.map(lambda value: str(value).replace("'", '"').replace("None", "null")),
    )
)
def test_whatever_tools_print_is_read(printed: dict[str, Any]) -> None:
    assert isinstance(host_values({**virtual(), **printed}), dict)
