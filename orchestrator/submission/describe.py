"""From what the hosts' tools say to the fields of systems/SYSTEM.json: one value a field for all nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.phrases import plural
from orchestrator.submission import gpus as gpu
from orchestrator.submission.host_parts import cpu_of, memory_of, storage_of, system_of
from orchestrator.submission.layout import Layout
from orchestrator.submission.nics import in_words, kinds, nics_of
from orchestrator.submission.system import FIELDS, NETWORK, NETWORK_FIELDS, required

# Engines by package, as they are called in public.
ENGINES = {
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-gpu": "ONNX Runtime",
    "ctranslate2": "CTranslate2",
}
ACCELERATOR_TEXTS = tuple(
    name for name in FIELDS if name.startswith("accelerator_") and not FIELDS[name].count
)
Value = str | int


@dataclass
class Description:
    """The fields of a system as they will be written, and what a person should hear of them."""

    values: dict[str, Value]
    remarks: list[str] = field(default_factory=list)


def host_values(host: Mapping[str, Any]) -> dict[str, Value]:
    """What one host's facts (host_facts.read_host) say; fields that they do not tell are left out."""
    cpu = cpu_of(host.get("lscpu"), host.get("cpuinfo"), host.get("base_frequency_khz"))
    memory = memory_of(host.get("meminfo"), host.get("lsmem"), host.get("dmidecode"))
    storage = storage_of(host.get("lsblk"))
    nics = nics_of(host.get("nics", []))
    notes = [f"Virtual machine ({cpu.hypervisor})" if cpu.hypervisor else ""]
    accelerators = _accelerators(host)
    found: dict[str, Value | None] = {
        "host_processor_model_name": cpu.model,
        "host_processors_per_node": cpu.sockets,
        "host_processor_core_count": int(cpu.cores) if cpu.cores.isdigit() else cpu.cores,
        "host_processor_frequency": cpu.frequency,
        "host_processor_caches": cpu.caches,
        "host_processor_interconnect": "N/A" if cpu.sockets == 1 else "",
        "host_memory_capacity": memory.capacity,
        "host_memory_configuration": memory.modules,
        "host_storage_capacity": storage.capacity,
        "host_storage_type": storage.kinds,
        "host_networking": kinds(nics),
        "host_network_card_count": in_words(nics),
        **accelerators,
        "framework": _framework(host),
        "operating_system": system_of(host.get("os_release"), str(host.get("kernel", ""))),
        "other_software_stack": _software(host),
        "hw_notes": ", ".join(filter(None, [*notes, str(accelerators.get("hw_notes", ""))])),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _accelerators(host: Mapping[str, Any]) -> dict[str, Value]:
    """GPUs that nvidia-smi knows. None is a fact only where no device computes and no driver is silent."""
    gpus = gpu.gpus_of(host.get("gpus"))
    if not gpus:
        if host.get("accelerator_devices") or host.get("nvidia_smi_here"):
            return {}
        # The checker of v5.0 and newer takes the number 0 for an empty field.
        return {"accelerators_per_node": "0", **dict.fromkeys(ACCELERATOR_TEXTS, gpu.NOT_THERE)}
    return {
        "accelerators_per_node": len(gpus),
        "accelerator_model_name": gpu.alike(gpus, lambda one: one.says("name")),
        "accelerator_memory_capacity": gpu.alike(gpus, gpu.memory),
        "accelerator_memory_configuration": gpu.alike(gpus, gpu.memory_configuration),
        "accelerator_frequency": gpu.alike(gpus, gpu.frequency),
        "accelerator_host_interconnect": gpu.alike(gpus, gpu.host_interconnect),
        "accelerator_interconnect": gpu.interconnect(gpus, host.get("nvlink"), host.get("topology")),
        "accelerator_interconnect_topology": (
            gpu.topology_words(host.get("topology")) if len(gpus) > 1 else gpu.NOT_THERE
        ),
        "hw_notes": gpu.alike(gpus, gpu.notes),
    }


def _framework(host: Mapping[str, Any]) -> str:
    packages = host.get("packages", {})
    return ", ".join(
        f"{name} {packages[package]}" for package, name in ENGINES.items() if package in packages
    )


def _software(host: Mapping[str, Any]) -> str:
    packages, gpus = host.get("packages", {}), gpu.gpus_of(host.get("gpus"))
    parts = {
        "LoadGrid": host.get("loadgrid"),
        "LoadGen": packages.get("mlcommons-loadgen"),
        "Ray": packages.get("ray"),
        "Python": host.get("python"),
        "CUDA runtime": packages.get("nvidia-cuda-runtime") or packages.get("nvidia-cuda-runtime-cu12"),
        "cuDNN": packages.get("nvidia-cudnn-cu13") or packages.get("nvidia-cudnn-cu12"),
        "Driver": gpus[0].says("driver_version") if gpus else "",
        "CUDA of the driver": gpu.cuda_version(host.get("nvidia_smi")),
    }
    return ", ".join(f"{name} {version}" for name, version in parts.items() if version)


def cluster_values(hosts: Sequence[Mapping[str, Any]]) -> Description:
    """The fields of all hosts together.

    Texts that differ are joined with commas, each with its number of nodes, as v5.1 has mixed clusters.
    Counts that differ cannot be written: the form has one number a node, so they are asked for.
    """
    machines, remarks = _machines(hosts)
    each = [host_values(host) for host in machines]
    found = Description({"number_of_nodes": len(machines)}, remarks)
    differ = []
    for name in dict.fromkeys(name for values in each for name in values):
        groups = _groups(name, [values.get(name, "") for values in each])
        if len(groups) == 1 and sum(groups.values()) == len(machines):
            found.values[name] = next(iter(groups))
            continue
        if set(groups) == {""}:
            continue
        words = _joined(name, groups)
        if "" in groups or FIELDS[name].count:
            found.remarks.append(f"the nodes differ in {name}, fill it in: {words}")
        else:
            found.values[name] = words
            differ.append(name)
    if differ:
        found.remarks.append(f"the nodes differ in {', '.join(differ)}")
    return found


def _groups(name: str, told: Sequence[Value]) -> dict[Value, int]:
    """How many nodes say each value. What a node without accelerators says of them is no model of its own."""
    groups = {value: told.count(value) for value in dict.fromkeys(told)}
    if name in ACCELERATOR_TEXTS and len(groups) > 1:
        groups.pop(gpu.NOT_THERE, None)
    return groups


def _joined(name: str, groups: Mapping[Value, int]) -> str:
    """Values with their nodes; where a comma would be ambiguous, or break the csv of results, semicolons."""
    alone = not any("," in str(value) for value in groups) and FIELDS[name].column != "bare"
    words = (f"{value or 'not known'} (on {plural(count, 'node')})" for value, count in groups.items())
    return (", " if alone else "; ").join(words)


def _machines(hosts: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The hosts, each machine once: containers on one machine run on one kernel, which booted once."""
    machines: dict[str, Mapping[str, Any]] = {}
    remarks = []
    for number, host in enumerate(hosts):
        key = str(host.get("boot_id") or number)
        if key in machines:
            remarks.append(
                f"{host.get('host')} and {machines[key].get('host')} are one machine, counted once"
            )
        machines.setdefault(key, host)
    return list(machines.values()), remarks


def merge(
    layout: Layout,
    found: Description,
    before: Mapping[str, Any],
    found_before: Mapping[str, Any],
    given: Mapping[str, str],
) -> Description:
    """What will be written: what is given, else what a person wrote before, else what was found, else "".

    A value of `before` that is not the one of `found_before` is a person's. The remarks name every field in
    which a person and the machine differ, and every one that the machine finds otherwise than before.
    """
    merged = Description({}, list(found.remarks))
    names = [known.name for known in required(layout)]
    if str(given.get("division", before.get("division", ""))).lower() == "network":
        names += NETWORK_FIELDS
    for name in [*names, *(name for name in [*before, *given] if name not in names)]:
        seen = found.values.get(name, "")
        kept = before.get(name, "")
        person = given.get(name) or (kept if kept and kept != found_before.get(name) else "")
        merged.values[name] = _typed(name, given[name]) if given.get(name) else (person or seen or kept)
        if person and seen and str(person) != str(seen):
            source = "given" if given.get(name) else "kept"
            merged.remarks.append(f"{name}: {source} {_quoted(person)}, found {_quoted(seen)}")
        elif kept and seen and not person and str(kept) != str(seen):
            merged.remarks.append(f"{name}: was {_quoted(kept)}, now found {_quoted(seen)}")
    engines = str(merged.values.get("framework", ""))
    if engines == found.values.get("framework") and any(f", {name} " in engines for name in ENGINES.values()):
        merged.remarks.append("framework lists the engines that are installed: keep what the results ran on")
    if NETWORK in merged.values and str(merged.values.get("division")).lower() == "network":
        merged.values[NETWORK] = "true"
    return merged


def _typed(name: str, text: str) -> Value:
    """A given count as a number; 0 stays a text, which the newer checker does not take for empty."""
    counted = name in FIELDS and FIELDS[name].count and text.isdecimal() and text.isascii()
    return int(text) if counted and int(text) and len(text) < 8 else text


def _quoted(value: Any) -> str:
    text = str(value)
    return f'"{text}"' if len(text) <= 100 else f'"{text[:97]}..."'
