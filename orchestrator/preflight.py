"""What can be known to be wrong before anything starts: one message with file, line and field."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.manifest import Manifest, error_at
from orchestrator.plan import TestSpec, plan
from orchestrator.rules import load_round
from workers.installed import LocateError, locate
from workers.models import ModelError, check_name
from workers.tasks import TaskError, open_task


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
    return specs


def check_files(manifest: Manifest, address: str) -> None:
    """The files that must lie on this host: LoadGen's module, and the weights if all workers are here too."""
    own = manifest.loadgen_folder()
    if own is not None and not Path(own).is_dir():
        raise error_at(manifest, "loadgen.path", f"no such folder: {own}")
    here = manifest.workers.where == "local" or address == "local"
    weights = manifest.backend_options().get("weights")
    if not here or weights is None:
        return
    try:
        file = locate(weights)
    except LocateError as error:
        raise error_at(manifest, "backend.weights", str(error)) from None
    wanted, there = (
        ("folder", file.is_dir()) if manifest.backend.engine == "ctranslate2" else ("file", file.is_file())
    )
    if not there:
        raise error_at(manifest, "backend.weights", f"no such {wanted}: {file}")


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
