"""Reference architectures in plain torch, one file each, with the published checkpoint's parameter names."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_MODELS = {
    "3d-unet-brats": "workers.models.unet_brats",
    "3d-unet-kits": "workers.models.unet_kits",
    "bert-large": "workers.models.bert",
    "dlrm": "workers.models.dlrm",
    "efficientnet-lite0": "workers.models.efficientnet_lite",
    "perceptron": "workers.models.perceptron",
    "resnet50": "workers.models.resnet50",
    "rnnt": "workers.models.rnnt",
    "ssd-mobilenet": "workers.models.ssd_mobilenet",
    "ssd-resnet34": "workers.models.ssd_resnet34",
}


class ModelError(Exception):
    """A model or its weights cannot be used; the text names the model or file, and the mend."""


def check_name(name: str | None) -> None:
    """ModelError with the nearest name if there is no model `name`; None is a backend without one."""
    if name is not None and name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ModelError(f"there is no model {name!r}{hint}; models: {', '.join(sorted(_MODELS))}")


def open_model(name: str, options: Mapping[str, Any], channels_last: bool = False) -> nn.Module:
    """Build `name` with its own initial values; ModelError for an unknown name or option.

    The module maps one input batch (n, ...) to one output tensor (n, ...). `options`
    are the manifest's `backend.options`; a model names those that it takes in OPTIONS, with their defaults.
    """
    check_name(name)
    module = importlib.import_module(_MODELS[name])
    for key in options:
        if key not in module.OPTIONS:
            known = ", ".join(module.OPTIONS) or "it takes none"
            raise ModelError(f"model {name!r} has no option {key!r}; options: {known}")
    model: nn.Module = module.build({**module.OPTIONS, **options}, channels_last)
    return model
