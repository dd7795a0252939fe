"""What can be known to be wrong before anything starts: one message with file, line and field."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.manifest import Manifest, error_at
from orchestrator.manifest_backends import TorchBackend
from orchestrator.manifest_fields import PATH_OPTIONS
from orchestrator.plan import TestSpec, plan
from orchestrator.rules import load_round, round_names
from workers.installed import LocateError, locate
from workers.models import ModelError, check_name, check_options
from workers.models.scales import Scales, Weights, refuse_other_weights, scales_of_file
from workers.tasks import TaskError, open_task

WEIGHTS, SCALES, OWN_LOADGEN = "backend.weights", "backend.scales", "loadgen.path"
CLIENT, DOCUMENTS = "power.client", "power.documents"
_THERE = {"folder": os.path.isdir, "file": os.path.isfile, "file or folder": os.path.exists}


@dataclass(frozen=True)
class Absent:
    """What a manifest names and this host has not: the field, the path as written there, and why not."""

    field: str
    written: str
    why: str


def check_names(manifest: Manifest) -> list[TestSpec]:
    """The tests of a manifest whose task, task options and model exist; needs no data and no cluster."""
    specs = plan(manifest, load_round(manifest.round))
    try:
        open_task(manifest.task.name, manifest.task_options())
    except TaskError as error:
        raise error_at(manifest, task_field(error), str(error)) from None
    try:
        check_name(getattr(manifest.backend, "model", None))
    except ModelError as error:
        raise error_at(manifest, "backend.model", str(error)) from None
    try:
        if isinstance(manifest.backend, TorchBackend):
            check_options(manifest.backend.model, manifest.backend.options)
    except ModelError as error:
        raise error_at(manifest, "backend.options", str(error)) from None
    _refuse_other_task(manifest)
    return specs


def _refuse_other_task(manifest: Manifest) -> None:
    """A benchmark's network answers its own task's samples and no other benchmark's."""
    model, task = getattr(manifest.backend, "model", None), manifest.task.name
    pairs = {
        (benchmark.reference.model, benchmark.reference.task)
        for name in round_names()
        for benchmark in load_round(name).benchmarks.values()
    }
    own = sorted(known for of, known in pairs if of == model)
    if own and task not in own and task in {known for _, known in pairs}:
        why = f"model {model} answers the samples of task {' or '.join(own)}, not those of {task}"
        raise error_at(manifest, "backend.model", why)


def check_files(manifest: Manifest, address: str) -> None:
    """What must lie here: LoadGen, the power client; weights and scales if all workers are here too.

    Scales that lie here must be those of the weights in any case. Refuses the address of a Ray cluster
    that would not be used: who names one must not take this process's result for the cluster's.
    """
    if manifest.workers.where == "local" and address != "local":
        why = (
            f"--address {address} does nothing for workers in the test process (where: local); "
            "set where: ray to run on that cluster, or leave --address out"
        )
        raise error_at(manifest, "workers.where", why)
    here = workers_are_here(manifest, address)
    of_workers = {WEIGHTS, SCALES} if here else set()
    wanted = {OWN_LOADGEN, CLIENT, DOCUMENTS} | of_workers
    for absent in absent_files(manifest):
        if absent.field in wanted:
            raise error_at(manifest, absent.field, absent.why)
    check_scales(manifest, here)


def check_scales(manifest: Manifest, here: bool) -> None:
    """ManifestError if every worker would refuse the scales that lie on this host."""
    if wrong := wrong_scales(manifest, here):
        raise error_at(manifest, SCALES, wrong)


def wrong_scales(manifest: Manifest, here: bool) -> str | None:
    """What is wrong with the scales that lie on this host; None if nothing is, or none can be read.

    `here`: the workers are on this host, so what cannot be read is wrong.
    """
    backend = manifest.backend
    if not isinstance(backend, TorchBackend) or backend.scales is None:
        return None
    place = manifest.resolve(backend.scales)
    try:
        file = locate(place)
    except LocateError:
        return None  # absent_files tells of it
    if not os.path.isfile(file) or not (here or os.access(file, os.R_OK)):
        return None
    try:
        named_scales(backend, place)
    except ModelError as error:
        elsewhere = "" if here else "; if the workers' hosts have another in its place, take this one away"
        return f"{error}{elsewhere}"
    return None


def named_scales(backend: TorchBackend, place: str) -> tuple[Scales, str]:
    """The scales in the file at `place` and its sha256; ModelError if they are known not to be the backend's.

    By the workers' own reader; only a worker knows whether a checkpoint without weights_sha256 is theirs.
    """
    own = Weights(backend.model, "seeded", None)
    if backend.weights is not None:
        own = Weights(backend.model, backend.weights, backend.weights_sha256 or "")
    found = scales_of_file(place, backend.scales_sha256 or "")
    refuse_other_weights(found[0], place, own)
    return found


def workers_are_here(manifest: Manifest, address: str) -> bool:
    """Whether all workers would run on this host, with Ray at `address`."""
    return manifest.workers.where == "local" or address == "local"


def absent_files(manifest: Manifest) -> Iterator[Absent]:
    """The data set, weights and LoadGen that a manifest names and this host has not; reads none of them."""
    for field, written, kind in _named_files(manifest):
        place = manifest.resolve(written)
        try:
            # Only LoadGen's folder is never one of an installed package.
            place = place if field == OWN_LOADGEN else str(locate(place))
        except LocateError as error:
            yield Absent(field, written, str(error))
            continue
        if not _THERE[kind](place):
            mend = "; `loadgrid calibrate` makes it" if field == SCALES else ""
            yield Absent(field, written, f"no such {kind}: {place}{mend}")
    yield from _absent_client(manifest)


def _absent_client(manifest: Manifest) -> Iterator[Absent]:
    """The words of the power client's command that name a program or a script and are not here."""
    words = manifest.power.client if manifest.power is not None else ()
    for place, word in enumerate(words):
        path = manifest.resolve(word)
        if place == 0 and shutil.which(word if os.sep not in word else path) is None:
            yield Absent(CLIENT, word, f"no such program: {word}")
        if place > 0 and word.endswith(".py") and not os.path.isfile(path):
            yield Absent(CLIENT, word, f"no such file: {path}")


def _named_files(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """Field, path as written, and what must lie there."""
    if manifest.loadgen.path is not None:
        yield OWN_LOADGEN, manifest.loadgen.path, "folder"
    options = {**manifest.task.options, "path": manifest.task.path}
    for key in PATH_OPTIONS:
        written = options.get(key)
        if isinstance(written, str) and written:
            yield f"task.{key}", written, "file or folder"
    for document in manifest.power.documents if manifest.power is not None else ():
        yield DOCUMENTS, document, "file"
    weights = getattr(manifest.backend, "weights", None)
    if weights is not None:
        yield WEIGHTS, weights, "folder" if manifest.backend.engine == "ctranslate2" else "file"
    scales = getattr(manifest.backend, "scales", None)
    if scales is not None:
        yield SCALES, scales, "file"


def not_here(manifests: Sequence[Manifest]) -> str | None:
    """One line on what a plan does not need and a run does; None if all of it is here."""
    absent = [file for manifest in manifests for file in absent_files(manifest)]
    order = ["task", "backend", "loadgen", "power"]  # as a manifest has them
    absent.sort(key=lambda file: order.index(file.field.partition(".")[0]))
    if not absent:
        return None
    written = ", ".join(dict.fromkeys(file.written for file in absent))
    return f"Not here yet: {written}. Green is about the rules, not about what lies here."


def task_field(error: TaskError) -> str:
    """The manifest's field that a task complains of."""
    return f"task.{error.option}" if error.option else "task"


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be written below `folder`, which need not exist yet; None if one can. Makes nothing."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"no permission to write in {place}"
    return None
