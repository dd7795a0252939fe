"""`loadgrid calibrate`: the scales of a quantised network, from the reference's calibration list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.text import Text

from orchestrator.campaign import SetUpError
from orchestrator.console import Console, open_terminal
from orchestrator.manifest import Manifest, error_at, load_manifest
from orchestrator.manifest_backends import TorchBackend
from orchestrator.manifest_fields import PACKAGE_PREFIX
from orchestrator.paths import write_new
from orchestrator.preflight import WEIGHTS, absent_files, check_names, why_not_writable
from orchestrator.prepare import open_library
from orchestrator.preparing import CALIBRATING
from orchestrator.rules import load_round
from orchestrator.tables import facts_grid
from workers.backends import BackendError
from workers.library import Library
from workers.library_reader import sha256_of
from workers.models import EIGHT_BITS
from workers.tasks import open_task

# Of generated samples, which are all alike, and half of them at most; a list is taken whole.
GENERATED_SAMPLES = 64

ManifestFile = Annotated[
    Path,
    typer.Argument(help="Manifest (YAML) with backend.precision int8 or fp8; backend.scales is written."),
]
CalibrationList = Annotated[
    Path | None,
    typer.Argument(
        help="The reference's list of calibration samples (mlcommons/inference, folder calibration); not "
        "needed with generated samples.",
        show_default=False,
    ),
]
Method = Annotated[
    Literal["mse", "max"] | None,
    typer.Option(
        help="mse: the scale of the least squared error. max: the largest value is the last step, or e4m3's "
        "448. Left out: mse for int8, max for fp8, which has no other.",
        show_default=False,
    ),
]
Compare = Annotated[
    int,
    typer.Option(
        min=0, help="Also hold 8 bits against fp32 on so many samples that are not calibrated with."
    ),
]


def calibrate(
    manifest: ManifestFile, listing: CalibrationList = None, method: Method = None, compare: Compare = 0
) -> None:
    """Make the scales of a network in 8 bits from calibration samples; no training.

    The file names the weights that it is for, and the list that it was made from; it is what a submission's
    calibration document tells of. It goes into every run of these weights: a run never calibrates by itself.
    """
    chosen = load_manifest(manifest)
    check_names(chosen)
    place = _place(chosen)
    calibrated = _with_list(chosen, listing)
    for absent in absent_files(calibrated):
        if absent.field == WEIGHTS or absent.field.startswith("task."):
            raise error_at(chosen, absent.field, absent.why)
    terminal = open_terminal()
    console = Console(terminal)
    try:
        scales = _made(chosen, calibrated, method, compare, console)
    finally:
        console.close()
    data = scales.written()
    try:
        write_new(place, data)
    except FileExistsError:
        raise error_at(chosen, "backend.scales", f"{place} came while these were made: it stays") from None
    terminal.print(Text(f"{chosen.name}: scales of {scales.model}", style="bold"))
    terminal.print(facts_grid(_told(chosen, place, scales)))
    terminal.print("to be put under backend:")
    terminal.print(f'  scales_sha256: "{scales.sha256()}"\n', soft_wrap=True)


def _place(manifest: Manifest) -> Path:
    """Where the scales go; ManifestError where they cannot."""
    backend = manifest.backend
    if not isinstance(backend, TorchBackend) or backend.precision not in EIGHT_BITS.values():
        raise error_at(manifest, "backend.precision", "only int8 and fp8 of engine torch are calibrated")
    if backend.scales is None or backend.scales.startswith(PACKAGE_PREFIX):
        raise error_at(manifest, "backend.scales", "must name the file that is to be written")
    place = Path(manifest.resolve(backend.scales))
    if os.path.lexists(place):
        why = f"{place} is there already, and runs may rest on it: move it away, or name another file"
        raise error_at(manifest, "backend.scales", why)
    if not place.parent.is_dir():
        raise error_at(manifest, "backend.scales", f"there is no folder {place.parent}")
    if why_not := why_not_writable(place.parent):
        raise error_at(manifest, "backend.scales", why_not)
    return place


def _with_list(manifest: Manifest, listing: Path | None) -> Manifest:
    """The manifest with the calibration samples in the data set's place."""
    task = manifest.task
    if task.options.get("generated"):
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


def _made(chosen: Manifest, calibrated: Manifest, method: Method, compare: int, console: Console) -> Any:
    """Prepare what is needed, and calibrate. torch comes in here only."""
    from workers.backends.torch_calibration import Samples, calibrate, method_of, unlike

    options = _options(chosen)
    try:  # before data are prepared and weights are loaded
        method = method_of(options["model"], options["precision"], method)
    except BackendError as error:
        raise SetUpError(f"{chosen.path}: {error}") from None
    library = open_library(calibrated, console)
    half = max(1, library.count // 2)
    count = min(half, GENERATED_SAMPLES) if _generated(calibrated) else library.count
    samples = Samples(library, np.arange(count))
    task = open_task(calibrated.task.name, calibrated.task_options())
    others = None
    if compare:
        whole = library if _generated(calibrated) else open_library(chosen, console)
        others = unlike(task, whole, samples, compare)
        if not len(others.indices):
            raise error_at(chosen, "task", "holds no sample beside the calibration's: nothing to compare on")
    console.preparing(f"scales of {options['model']}")
    try:
        return calibrate(
            options,
            task,
            samples,
            others,
            method,
            _about(calibrated, library),
            lambda done, total: console.progressed(CALIBRATING, done, total),
        )
    except BackendError as error:
        raise SetUpError(f"{chosen.path}: {error}") from None


def _generated(manifest: Manifest) -> bool:
    return bool(manifest.task.options.get("generated"))


def _options(manifest: Manifest) -> dict[str, Any]:
    """The backend's, on the device of its workers where this host has one."""
    from workers.backends.torch_calibration import has_cuda

    device = "cuda" if manifest.workers.num_gpus and has_cuda() else "cpu"
    return {**manifest.backend_options(), "device": device}


def _about(manifest: Manifest, library: Library) -> dict[str, Any]:
    """What the samples are, for the file and for a submission's calibration document."""
    about: dict[str, Any] = {"task": manifest.task.name, "library": library.digest}
    if _generated(manifest):
        return {**about, "generated": True}
    listing = manifest.task_options()["calibration"]
    return {**about, "list": Path(listing).name, "list_sha256": sha256_of(Path(listing))}


def _told(manifest: Manifest, place: Path, scales: Any) -> list[tuple[str, Text]]:
    """What a person wants to know; the hash is not among it, for it must not wrap."""
    samples = scales.samples
    reference = load_round(manifest.round).benchmark(manifest.benchmark).reference
    if samples.generated:
        made = f"{samples.count:,} generated samples: for sizing, never official"
    elif samples.list_sha256 in reference.calibration_lists:
        made = f"the {samples.count:,} samples of the reference's {samples.list}"
    else:
        made = f"the {samples.count:,} samples of {samples.list}, which is no list of the reference: "
        made += "for the open division only"
    rows = [("file", str(place)), ("weights", scales.weights), ("made from", made), ("method", scales.method)]
    if told := scales.agreement:
        same = f"the same best answer for {told['top1']:.2%} of {told['samples']:,.0f} other samples"
        little = "; of seeded weights this says little" if scales.weights == "seeded" else ""
        rows.append(("against fp32", f"{same}; cosine of the scores {told['cosine']:.4f}{little}"))
    return [(name, Text(text, overflow="fold")) for name, text in rows]
