"""`loadgrid doctor`: is this machine, and this cluster, fit to measure? One line a check, with the mend."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from orchestrator import checks, machine, probe
from orchestrator.checks import FAIL, OK, WARN, Check
from orchestrator.console import open_terminal
from orchestrator.loadgen import LoadGenError, file_sha256, import_loadgen
from orchestrator.manifest import Manifest
from orchestrator.plan import PlanError, TestSpec, plan, plan_findings_for_loadgen
from orchestrator.planview import large_weights_of
from orchestrator.preflight import OWN_LOADGEN, SCALES, WEIGHTS, absent_files, workers_are_here, wrong_scales
from orchestrator.provenance import ROOT, versions
from orchestrator.rules import Round, load_round, round_names
from workers.backends import BackendError, open_backend
from workers.models import ModelError, check_name
from workers.tasks import TaskError, open_task

RUNS_DIR = Path("runs")
KNOCK_TIMEOUT_S = 3.0
DRIFT_OVER_S = 0.2
PACKAGES = ("ray", "pyzmq", "torch", "numpy", "pydantic")
STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}
NAME_WIDTH = 20

Ask = Callable[[str, int], dict[str, Any]]


def examine(address: str, manifest: Manifest | None, ask: Ask = probe.ask) -> bool:
    """Look at this machine and at the Ray cluster at `address`; True if nothing keeps a run from working.

    `ask` gets the address and the CPUs of a local Ray, and tells of the cluster as probe.ask does.
    """
    terminal, fit = open_terminal(), True
    counts = dict.fromkeys(STYLES, 0)
    for check in _checks(address, manifest, ask):
        counts[check.status] += 1
        fit &= check.status != FAIL
        terminal.print(_line(check), soft_wrap=True)
    summary = f"{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} that would keep a run from working"
    terminal.print(Text(summary, style="bold green" if fit else "bold red"))
    return fit


def _line(check: Check) -> Text:
    text = Text.assemble(
        (f"{check.status:<5}", STYLES[check.status]), f"{check.name:<{NAME_WIDTH}} {check.seen}"
    )
    if check.mend:
        text.append(f"  ->  {check.mend}", style=STYLES[check.status])
    return text


def _checks(address: str, manifest: Manifest | None, ask: Ask) -> Iterator[Check]:
    specs: Sequence[TestSpec] = ()
    if manifest is not None:
        try:
            specs = plan(manifest, load_round(manifest.round))
        except PlanError as error:
            yield Check("plan", FAIL, str(error), "change the manifest")
    yield from _software(manifest)
    if manifest is not None:
        yield from files_checks(manifest, address)
        yield parts_check(manifest, address)
    yield from _this_machine(address, manifest, specs)
    gpus_wanted = manifest is not None and manifest.workers.num_gpus > 0
    query = f"--query-gpu={','.join(checks.GPU_FIELDS)}"
    yield from checks.gpu_checks(
        machine.command_output("nvidia-smi", query, "--format=csv,noheader,nounits"), gpus_wanted
    )
    if manifest is not None and manifest.workers.where == "local":
        yield Check("Ray", OK, "not needed: the manifest's workers live in the test process")
        return
    yield from _cluster(address, manifest, ask)


# -- here ---------------------------------------------------------------------------------------------


def _software(manifest: Manifest | None) -> Iterator[Check]:
    found, wanted = versions(), wanted_ranges()
    yield checks.python_check(sys.version_info[:3])
    yield loadgen_check(manifest)
    for name in PACKAGES:
        needed = name != "torch" or manifest is None or manifest.backend.engine == "torch"
        yield checks.package_check(name, found.get(name), wanted.get(name, ""), needed)


def wanted_ranges() -> dict[str, str]:
    """The versions that the project asks for: from its metadata, or from the checkout's own file."""
    try:
        lines = importlib.metadata.requires("loadgrid") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    project = ROOT / "pyproject.toml"
    if not lines and project.is_file():
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return checks.ranges_of([line for line in lines if "extra ==" not in line])


def loadgen_check(manifest: Manifest | None) -> Check:
    """LoadGen's version and file against the round's approved builds."""
    found = load_round(manifest.round if manifest is not None else round_names()[-1])
    folder = manifest.loadgen_folder() if manifest is not None else None
    try:
        module = import_loadgen(Path(folder) if folder else None)
    except (LoadGenError, ImportError) as error:
        mend = "pip install mlcommons-loadgen==6.0.17" if folder is None else _own_loadgen_mend(found)
        return Check("LoadGen", FAIL, str(error), mend)
    digest = file_sha256(module)
    if folder is not None:
        # Such a build carries no version; its log tells it, and the record then judges it.
        return Check(
            "LoadGen", OK, f"{Path(str(module.__file__)).name} of loadgen.path, sha256 {digest[:12]}"
        )
    version = versions()["mlcommons-loadgen"] or ""
    findings = plan_findings_for_loadgen(version, digest, found)
    if findings:
        return Check("LoadGen", WARN, findings[0].why, "runs work, and are unofficial")
    return Check("LoadGen", OK, f"{version}, sha256 {digest[:12]}, approved for {found.name}")


def _own_loadgen_mend(found: Round) -> str:
    """What to do about a loadgen.path where no module lies."""
    if found.loadgen.tag is None:
        return "take the line loadgen.path out: the published package is the round's own"
    return (
        f"build LoadGen's tag {found.loadgen.tag} and put its module there, or take the line loadgen.path "
        "out, which makes results unofficial"
    )


def files_checks(manifest: Manifest, address: str) -> Iterator[Check]:
    """The data set, weights and scales that the manifest names; LoadGen's folder has its own check."""
    here = workers_are_here(manifest, address)
    for absent in absent_files(manifest):
        if absent.field == OWN_LOADGEN or (absent.field in (WEIGHTS, SCALES) and not here):
            continue
        what = {WEIGHTS: "weights", SCALES: "scales"}.get(absent.field, "data set")
        yield Check(what, FAIL, absent.why, f"put it there, or correct {absent.field} in the manifest")
    if wrong := wrong_scales(manifest, here):
        yield Check("scales", FAIL, wrong, f"put the right file there, or correct {SCALES} in the manifest")


def parts_check(manifest: Manifest, address: str) -> Check:
    """Whether task, network and engine open: options and packages. The engine only where workers are."""
    backend, max_batch = manifest.backend_options(), manifest.workers.max_batch
    opened = f"task {manifest.task.name}"
    try:
        task = open_task(manifest.task.name, manifest.task_options())
        check_name(backend.get("model"))
        if workers_are_here(manifest, address):
            opened = f"{opened}, engine {manifest.backend.engine}"
            device = "cuda" if manifest.workers.num_gpus else "cpu"
            open_backend({**backend, "device": device}, task, max_batch)
    except OSError as error:  # a package that does not find its own libraries
        return Check("task and engine", FAIL, f"{opened}: {error}", "install that package anew")
    except (TaskError, ModelError, BackendError) as error:
        why, _, command = str(error).partition("pip install ")
        # What is not installed carries its mend; anything else is a field of the manifest.
        mend = f"pip install {command}" if command else "correct the manifest"
        return Check("task and engine", FAIL, why.rstrip(" :;"), mend)
    return Check("task and engine", OK, f"{opened}: options and packages")


def _weights_here(address: str, manifest: Manifest, free: int) -> Iterator[Check]:
    """Weights that this machine's own memory has to hold for all workers, beside LoadGen."""
    found, workers = large_weights_of(manifest), manifest.workers
    if found is not None and workers_are_here(manifest, address) and not workers.num_gpus:
        yield checks.weights_check(free, *found, workers.count)


def _this_machine(address: str, manifest: Manifest | None, specs: Sequence[TestSpec]) -> Iterator[Check]:
    yield checks.cpu_check(machine.cpu_count(), machine.load_average())
    yield checks.frequency_check(machine.governors(), machine.turbo())
    yield checks.clock_check(_clock_drift_ppm(), _synchronised())
    free = machine.available_memory_bytes()
    yield checks.memory_check(free, specs)
    if manifest is not None and free is not None:
        yield from _weights_here(address, manifest, free)
    place, room = machine.free_disk_bytes(RUNS_DIR)
    yield checks.disk_check(str(place), room, os.access(place, os.W_OK | os.X_OK))
    yield checks.open_files_check(*machine.open_files_limit())
    yield checks.somaxconn_check(machine.somaxconn(), manifest.workers.count if manifest is not None else 1)
    yield checks.shared_memory_check(machine.shared_memory_bytes())
    if manifest is not None and manifest.workers.where == "ray":
        yield from _listening(address, manifest)


def _listening(ray_address: str, manifest: Manifest) -> Iterator[Check]:
    """Where the data plane would listen; this machine's address stands for its node's until Ray is asked."""
    dispatch = manifest.dispatch
    here = "127.0.0.1" if ray_address == "local" else machine.own_address()
    address = dispatch.listen or here
    yield checks.exposure_check(address, dispatch.security)
    why = machine.why_not_listen(address, 0)
    if why is not None:
        yield Check(
            "listen", FAIL, f"{address}: {why}", "dispatch.listen: an address of this machine, or null"
        )
    elif dispatch.ports is not None:
        low, high = dispatch.ports
        taken = [port for port in range(low, high + 1) if machine.why_not_listen(address, port)]
        wanted = min(manifest.io_threads, manifest.workers.count)
        yield checks.ports_check(address, dispatch.ports, taken, wanted)


def _clock_drift_ppm() -> float:
    """How much the system clock moves against the steady one, parts per million, over a moment."""
    steady, system = time.monotonic(), time.time()
    time.sleep(DRIFT_OVER_S)
    steady, system = time.monotonic() - steady, time.time() - system
    return abs(system / steady - 1) * 1e6


def _synchronised() -> bool | None:
    told = machine.command_output("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if told in ("yes", "no"):
        return told == "yes"
    told = machine.command_output("chronyc", "tracking")
    return None if told is None else "Leap status     : Normal" in told


# -- the cluster --------------------------------------------------------------------------------------


def _cluster(address: str, manifest: Manifest | None, ask: Ask) -> Iterator[Check]:
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        # Ray itself would try for minutes.
        why = machine.why_no_connection(host.strip("[]"), int(port), KNOCK_TIMEOUT_S)
        if why is not None:
            mend = "ray start --head there, or correct --address; look at the firewall"
            yield Check("Ray", FAIL, f"nobody answers at {address}: {why}", mend)
            return
    wanted = manifest.workers if manifest is not None else None
    cpus = max(int(wanted.count * wanted.num_cpus + 1), 2) if wanted is not None else 2
    told = ask(address, cpus)
    if "error" in told:
        mend = "is it the same Ray version and token? does `ray status` work there?"
        if address == "local":
            mend = "look at the memory, the shared memory and the disk above"
        yield Check("Ray", FAIL, told["error"], mend)
        return
    nodes = told["nodes"]
    names = "started here" if address == "local" else f"at {address}"
    yield Check("Ray", OK, f"{versions()['ray']} {names}, {len(nodes)} node{'s' * (len(nodes) != 1)}")
    yield checks.auth_check(told["auth"], address)
    torch_needed = manifest is None or manifest.backend.engine == "torch"
    yield from checks.node_checks(nodes, torch_needed, versions())
    if manifest is not None:
        yield checks.room_check(manifest, nodes, machine.cpu_count(), address == "local")
        told_before = address == "local" or told["here"] == machine.own_address()
        if manifest.dispatch.listen is None and not told_before:
            yield checks.exposure_check(told["here"], manifest.dispatch.security)
