"""The samples that a network's scales are made from, and those that they are compared on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from orchestrator.console import Console
from orchestrator.manifest import Manifest, error_at
from orchestrator.preflight import SCALES, WEIGHTS, absent_files
from orchestrator.prepare import open_library
from workers.library import Library
from workers.library_reader import sha256_of
from workers.models.scales import Origin

if TYPE_CHECKING:
    from workers.backends.torch_calibration import Samples

# Of generated samples, which are all alike, and half of them at most; a list is taken whole.
GENERATED_SAMPLES = 64


def is_generated(manifest: Manifest) -> bool:
    """Whether the samples are made, not those of a data set."""
    return bool(manifest.task.options.get("generated"))


def with_list(manifest: Manifest, listing: Path | None) -> Manifest:
    """The manifest with the calibration samples in the data set's place."""
    task = manifest.task
    if is_generated(manifest):
        if listing is not None:
            raise error_at(manifest, "task.generated", "generated samples have no list: leave it out")
        return manifest
    if listing is None and not task.options.get("calibration"):
        raise typer.BadParameter(
            "name the reference's list of calibration samples (mlcommons/inference, folder calibration)",
            param_hint="LISTING",
        )
    body: dict[str, Any] = {"name": task.name, "path": task.path, **task.options}
    body.pop("count", None)  # a list has its own
    if listing is not None:
        body["calibration"] = str(listing.absolute())
    return manifest.model_copy(update={"task": type(task).model_validate(body)})


def check_samples(manifest: Manifest, calibrated: Manifest) -> None:
    """ManifestError if the weights or the samples of `calibrated` are not here."""
    for absent in absent_files(calibrated):
        if absent.field == WEIGHTS or absent.field.startswith("task."):
            raise error_at(manifest, absent.field, absent.why)


def about(manifest: Manifest, library: Library) -> dict[str, Any]:
    """What the samples are, for the file and for a submission's calibration document."""
    found: dict[str, Any] = {"task": manifest.task.name, "library": library.digest}
    if is_generated(manifest):
        return {**found, "generated": True}
    listing = manifest.task_options()["calibration"]
    return {**found, "list": Path(listing).name, "list_sha256": sha256_of(Path(listing))}


def to_calibrate(calibrated: Manifest, library: Library) -> Samples:
    """The samples that scales are made from."""
    from workers.backends.torch_calibration import Samples

    half = max(1, library.count // 2)
    count = min(half, GENERATED_SAMPLES) if is_generated(calibrated) else library.count
    return Samples(library, np.arange(count))


def as_made(manifest: Manifest, place: Path, made: Origin, listing: Path | None) -> Manifest | None:
    """The manifest with the samples that the scales at `place` were `made` from, or an error.

    None where they cannot be among the data set's: generated ones beside real ones, or the other way round.
    """
    if is_generated(manifest):
        calibrated = with_list(manifest, listing)
        return calibrated if made.generated else None
    if made.generated:
        if listing is None:
            return None
        why = f"{place} was made from generated samples: leave the list out"
        raise typer.BadParameter(why, param_hint="LISTING")
    if listing is None and not manifest.task.options.get("calibration"):
        why = f"name the list that {place} was made from ({made.list}): what is on it is left out"
        raise typer.BadParameter(why, param_hint="LISTING")
    calibrated = with_list(manifest, listing)
    check_samples(manifest, calibrated)
    given = Path(calibrated.task_options()["calibration"])
    if (sha256 := sha256_of(given)) == made.list_sha256:
        return calibrated
    own = "a list that it does not name"
    if made.list_sha256:
        own = f"{made.list} (sha256 {made.list_sha256[:12]})"
    why = f"{place} was made from {own}, not from {given} (sha256 {sha256[:12]})"
    raise error_at(manifest, SCALES, f"{why}: name its own list, so that what is on it is left out")


def made_from(manifest: Manifest, calibrated: Manifest, made: Origin, console: Console) -> Samples:
    """The samples that scales were `made` from, as they are on this host."""
    from workers.backends.torch_calibration import Samples

    library = open_library(calibrated, console)
    if is_generated(calibrated) and library.digest != made.library:
        why = "makes other samples than the scales were made from, so which to leave out is not known"
        raise error_at(manifest, "task.generated", f"{why}: set it as it was")
    return Samples(library, np.arange(library.count)[: made.count])


def to_compare(manifest: Manifest, known: Samples | None, count: int, console: Console) -> Samples:
    """Up to `count` samples of the data set that are not among those `known` from the calibration."""
    from workers.backends.torch_calibration import unlike

    if known is not None and is_generated(manifest):
        library = known.library
    else:
        library = open_library(manifest, console)
    others = unlike(library, known, count)
    if not len(others.indices):
        raise error_at(manifest, "task", "holds no sample beside the calibration's: nothing to compare on")
    return others
