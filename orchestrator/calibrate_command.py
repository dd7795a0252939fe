"""`loadgrid calibrate`: the scales of a quantised network, from the reference's calibration list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console as Terminal
from rich.text import Text

from orchestrator.calibration_samples import (
    about,
    as_made,
    check_samples,
    made_from,
    to_calibrate,
    to_compare,
    with_list,
)
from orchestrator.campaign import SetUpError
from orchestrator.console import Console, open_terminal
from orchestrator.manifest import Manifest, error_at, load_manifest
from orchestrator.manifest_backends import TorchBackend
from orchestrator.manifest_fields import PACKAGE_PREFIX
from orchestrator.paths import write_new
from orchestrator.preflight import SCALES, check_names, named_scales, why_not_writable
from orchestrator.prepare import open_library
from orchestrator.preparing import CALIBRATING
from orchestrator.rules import load_round
from orchestrator.tables import facts_grid
from workers.backends import BackendError
from workers.models import EIGHT_BITS, ModelError
from workers.models.scales import Origin, Scales
from workers.tasks import open_task

ManifestFile = Annotated[
    Path,
    typer.Argument(help="Manifest (YAML) with backend.precision int8 or fp8; backend.scales is to be made."),
]
CalibrationList = Annotated[
    Path | None,
    typer.Argument(
        help="The reference's list of calibration samples (mlcommons/inference, folder calibration); not "
        "needed with generated samples. Of scales that are there already: the list that they were made from.",
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
        min=0,
        help="Also hold 8 bits against fp32 on so many samples that are not calibrated with. Scales that are "
        "there already are compared as they are, and stay.",
    ),
]


def calibrate(
    manifest: ManifestFile, listing: CalibrationList = None, method: Method = None, compare: Compare = 0
) -> None:
    """Make the scales of a network in 8 bits from calibration samples, or compare those that are there.

    The file names the weights that it is for, and the list that it was made from; it is what a submission's
    calibration document tells of. It goes into every run of these weights: a run never calibrates by itself,
    and a file that is there is never written over. No training.
    """
    chosen = load_manifest(manifest)
    check_names(chosen)
    place = _place(chosen)
    if os.path.lexists(place):
        _refuse_to_replace(chosen, place, method, compare)
        _hold_against_fp32(chosen, place, listing, compare)
        return
    _check_place(chosen, place)
    calibrated = with_list(chosen, listing)
    check_samples(chosen, calibrated)
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
        raise error_at(chosen, SCALES, f"{place} came while these were made: it stays") from None
    terminal.print(Text(f"{chosen.name}: scales of {scales.model}", style="bold"))
    terminal.print(facts_grid(_told(chosen, place, scales)))
    _tell_sha256(terminal, scales.sha256())


def _tell_sha256(terminal: Terminal, sha256: str) -> None:
    terminal.print("to be put under backend:")
    terminal.print(f'  scales_sha256: "{sha256}"\n', soft_wrap=True)


def _place(manifest: Manifest) -> Path:
    """Where the scales are, or go; ManifestError where the manifest names no such file."""
    backend = manifest.backend
    if not isinstance(backend, TorchBackend) or backend.precision not in EIGHT_BITS.values():
        models = ", ".join(f"{bits} of {model}" for model, bits in EIGHT_BITS.items())
        why_not = f"must be one that has scales: {models}, engine torch"
        raise error_at(manifest, "backend.precision", why_not)
    if backend.scales is None or backend.scales.startswith(PACKAGE_PREFIX):
        raise error_at(manifest, SCALES, "must name the file that is to be written")
    return Path(manifest.resolve(backend.scales))


def _check_place(manifest: Manifest, place: Path) -> None:
    """ManifestError where no file can be written."""
    if not place.parent.is_dir():
        raise error_at(manifest, SCALES, f"there is no folder {place.parent}")
    if why_not := why_not_writable(place.parent):
        raise error_at(manifest, SCALES, why_not)


def _refuse_to_replace(manifest: Manifest, place: Path, method: Method, compare: int) -> None:
    """Scales that are there stay; the error where more than comparing them is asked for."""
    if not compare:
        why = f"{place} is there already, and runs may rest on it: move it away, or name another file"
        raise error_at(manifest, SCALES, f"{why}; --compare N holds it against fp32 as it is")
    if method is not None:
        why = f"{place} is there already and is compared as it is: leave --method out, or move the file away"
        raise error_at(manifest, SCALES, why)


def _hold_against_fp32(manifest: Manifest, place: Path, listing: Path | None, count: int) -> None:
    """Compare the scales that are there on `count` samples that they were not made from; the file stays."""
    assert isinstance(manifest.backend, TorchBackend)
    try:
        scales, sha256 = named_scales(manifest.backend, str(place))
    except ModelError as error:
        raise error_at(manifest, SCALES, str(error)) from None
    calibrated = as_made(manifest, place, scales.samples, listing)
    check_samples(manifest, calibrated or manifest)
    terminal = open_terminal()
    console = Console(terminal)
    try:
        agreement = _compared(manifest, calibrated, scales.samples, count, console)
    finally:
        console.close()
    told = scales.model_copy(update={"agreement": agreement})
    terminal.print(Text(f"{manifest.name}: scales of {scales.model}, as they are", style="bold"))
    terminal.print(facts_grid(_told(manifest, place, told)))
    terminal.print("Nothing was calibrated: the file is as it was.\n")
    if manifest.backend.scales_sha256 is None:
        _tell_sha256(terminal, sha256)


def _made(chosen: Manifest, calibrated: Manifest, method: Method, compare: int, console: Console) -> Scales:
    """Prepare what is needed, and calibrate. torch comes in here only, and where scales are compared."""
    from workers.backends.torch_calibration import calibrate, method_of

    options = _options(chosen)
    try:  # before data are prepared and weights are loaded
        method = method_of(options["model"], options["precision"], method)
    except BackendError as error:
        raise SetUpError(f"{chosen.path}: {error}") from None
    library = open_library(calibrated, console)
    samples = to_calibrate(calibrated, library)
    task = open_task(calibrated.task.name, calibrated.task_options())
    others = to_compare(chosen, samples, compare, console) if compare else None
    console.preparing(f"scales of {options['model']}")
    try:
        return calibrate(
            options,
            task,
            samples,
            others,
            method,
            about(calibrated, library),
            lambda done, total: console.progressed(CALIBRATING, done, total),
        )
    except BackendError as error:
        raise SetUpError(f"{chosen.path}: {error}") from None


def _compared(
    chosen: Manifest, calibrated: Manifest | None, made: Origin, count: int, console: Console
) -> dict[str, float]:
    """How alike fp32 and 8 bits by the scales that are there answer."""
    from workers.backends.torch_calibration import compare

    options = _options(chosen)
    known = None if calibrated is None else made_from(chosen, calibrated, made, console)
    others = to_compare(chosen, known, count, console)
    console.preparing(f"8 bits and fp32 of {options['model']}")
    try:
        return compare(options, open_task(chosen.task.name, chosen.task_options()), others)
    except BackendError as error:
        raise SetUpError(f"{chosen.path}: {error}") from None


def _options(manifest: Manifest) -> dict[str, Any]:
    """The backend's, on the device of its workers where this host has one."""
    from workers.backends.torch_calibration import has_cuda

    device = "cuda" if manifest.workers.num_gpus and has_cuda() else "cpu"
    return {**manifest.backend_options(), "device": device}


def _told(manifest: Manifest, place: Path, scales: Scales) -> list[tuple[str, Text]]:
    """What a person wants to know; the hash is not among it, for it must not wrap."""
    samples = scales.samples
    reference = load_round(manifest.round).benchmark(manifest.benchmark).reference
    count, compared = f"{samples.count or 0:,}", "other samples"
    if samples.generated:
        made = f"{count} generated samples: for sizing, never official"
    elif samples.list_sha256 in reference.calibration_lists:
        made = f"the {count} samples of the reference's {samples.list}"
    elif samples.list_sha256 is None:
        made = "samples that the file does not name: for the open division only"
        compared = "samples, which may be those it was made from"
    else:
        made = f"the {count} samples of {samples.list}, which is no list of the reference: "
        made += "for the open division only"
    rows = [("file", str(place)), ("weights", scales.weights), ("made from", made), ("method", scales.method)]
    if told := scales.agreement:
        same = f"the same best answer for {told['top1']:.2%} of {told['samples']:,.0f} {compared}"
        little = "; of seeded weights this says little" if scales.weights == "seeded" else ""
        rows.append(("against fp32", f"{same}; cosine of the scores {told['cosine']:.4f}{little}"))
    return [(name, Text(text, overflow="fold")) for name, text in rows]
