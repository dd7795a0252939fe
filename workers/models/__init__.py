"""Reference architectures in plain torch, one file each, with the published checkpoint's parameter names.

A file has OPTIONS (name -> default) and build(options, channels_last) -> nn.Module. For a fixed task the
module maps one batch (n, ...) to one tensor (n, ...). For a ragged task it is called with the rows of all
samples and `counts`, int64 (n,), and returns rows, or (rows, counts) if their numbers change. What it returns
is its caller's: not a buffer that the next call writes, which may begin while this one is copied out. The
file may also have

    build_on(options, channels_last, device, dtype)
        for a model too large for the host in fp32: it makes every large parameter on `device` in `dtype` at
        once, and seeded.fill_uniform_ gives it the same values on every device; dtype torch.int8 where the
        precision is int8

and the module

    load_published(state) -> state
        maps the published checkpoint's names and shapes to its own
    fold()
        fuses what can be fused, with the same outputs but for rounding; called once, when the weights are
        loaded and hashed and not yet converted
    graphable = False
        no CUDA graph is captured and no batch is padded. True, the default, means: static shapes, and no wait
        for the device; a ragged module then sees rows beyond counts.sum(), valid but of no meaning, and
        counts padded with zeros
    side_by_side = True
        on a GPU batches are computed at once, each on a stream of its own: one alone leaves most of it idle
    host_counts = True
        the counts of a ragged batch lie on the CPU; such a module is not graphable
    full_precision = ("name", ...)
        submodules that are not converted to the precision

and, where the network can be computed in 8 bits (EIGHT_BITS), when folded and not converted,

    calibrated(batches, method, correct, heard) -> {"activations": ..., "corrections": ...}
        the numbers of scales.Scales, from batches of the task's samples, of a ragged task (rows, counts)
        with the counts on the host; heard(done, total) tells how far
    quantised(scales, device) -> nn.Module
        the same network in 8 bits on the device, with the same inputs and outputs; its `kernels` are None, or
        what facts() of a record tells, and its `numbers` say in sentences what is in which format; where the
        weights are not all of the precision, `weight_data_types` names them for a submission
    scores(batch) -> tensor (n, ...)
        of both modules: by these 8 bits are held against fp32
    agreement(found, expected) -> {"samples": ..., "top1": ..., "cosine": ..., ...}
        of two scores, where they are not what quantise.agreement takes, (n, classes)

and the file

    METHODS = ("max",)
        the methods of scales that it has, if not all; the first is taken where none is asked for
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from workers.models.scales import Method

_MODELS = {
    "3d-unet-brats": "workers.models.unet_brats",
    "3d-unet-kits": "workers.models.unet_kits",
    "bert-large": "workers.models.bert",
    "deepbet": "workers.models.deepbet",
    "dlrm": "workers.models.dlrm",
    "efficientnet-lite0": "workers.models.efficientnet_lite",
    "perceptron": "workers.models.perceptron",
    "resnet50": "workers.models.resnet50",
    "rnnt": "workers.models.rnnt",
    "ssd-mobilenet": "workers.models.ssd_mobilenet",
    "ssd-resnet34": "workers.models.ssd_resnet34",
}


# Those that can be computed in 8 bits, and in which.
EIGHT_BITS = {"bert-large": "fp8", "dlrm": "int8", "resnet50": "int8"}
# Those whose weights may fill a device: the file, without torch, that says what they take.
_LARGE = {"dlrm": "workers.models.dlrm_options"}
# The scales of seeded weights that nobody has calibrated, as records tell of them in a file's place.
SIZING = "of random samples"


class ModelError(Exception):
    """A model or its weights cannot be used; the text names the model or file, and the mend."""


def check_name(name: str | None) -> None:
    """ModelError with the nearest name if there is no model `name`; None is a backend without one."""
    if name is not None and name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ModelError(f"there is no model {name!r}{hint}; models: {', '.join(sorted(_MODELS))}")


def why_not_eight_bits(
    model: str, precision: str, channels_last: bool, compiled: bool
) -> tuple[str, str] | None:
    """The field of `backend` that precision int8 or fp8 cannot go with, and why; None if it can."""
    if EIGHT_BITS.get(model) != precision:
        models = " or ".join(name for name, bits in EIGHT_BITS.items() if bits == precision)
        return "precision", f"{precision} is for model {models}, not for {model}"
    for field, given in (("channels_last", channels_last), ("compile", compiled)):
        if given:
            return field, f"does not go with precision {precision}, which has its own kernels; leave it out"
    return None


def _known_before(model: str, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """The module that knows a network by its options, without building it, and all of them; or None."""
    if model not in _LARGE:
        return None
    module = importlib.import_module(_LARGE[model])
    return (module, {**module.OPTIONS, **options}) if options.keys() <= module.OPTIONS.keys() else None


def check_options(model: str, options: Mapping[str, Any]) -> None:
    """ModelError for values that make no network, as far as that is known without building one."""
    if (known := _known_before(model, options)) is not None:
        module, chosen = known
        module.check_options(chosen)


def large_weights(model: str, options: Mapping[str, Any], precision: str) -> tuple[str, int] | None:
    """What of a network may fill a device, and its bytes there, without building it.

    `options` as in open_model. None for the other networks, and for options that make none.
    """
    if (known := _known_before(model, options)) is None:
        return None
    module, chosen = known
    try:
        found: tuple[str, int] = module.large_weights(chosen, precision)
    except ModelError:
        return None
    return found


def calibration_methods(model: str) -> tuple[Method, ...] | None:
    """METHODS of the model's file; None if it has all that quantise has."""
    found: tuple[Method, ...] | None = getattr(importlib.import_module(_MODELS[model]), "METHODS", None)
    return found


def open_model(
    name: str,
    options: Mapping[str, Any],
    channels_last: bool = False,
    place: tuple[torch.device, torch.dtype] | None = None,
) -> nn.Module:
    """Build `name` with its own initial values; ModelError for an unknown name or option.

    `options` are the manifest's `backend.options`; a model names those that it takes in OPTIONS, with their
    defaults. `place` is where and in which precision it will compute: a hint for models with build_on.
    """
    check_name(name)
    module = importlib.import_module(_MODELS[name])
    for key in options:
        if key not in module.OPTIONS:
            known = ", ".join(module.OPTIONS) or "it takes none"
            raise ModelError(f"model {name!r} has no option {key!r}; options: {known}")
    chosen = {**module.OPTIONS, **options}
    if place is not None and hasattr(module, "build_on"):
        model: nn.Module = module.build_on(chosen, channels_last, *place)
    else:
        model = module.build(chosen, channels_last)
    return model


def open_kernels(name: str) -> Any:
    """The module `name`, which imports Triton: only where there is a GPU, for CPU installs have none."""
    try:
        return importlib.import_module(f"workers.models.{name}")
    except ImportError as error:
        needed = error.name or error
        raise ModelError(f"on a GPU it needs {needed}; a CUDA build of torch brings Triton along") from None
