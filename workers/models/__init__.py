"""Reference architectures in plain torch, one file each, whose parameter names are those of the published checkpoint."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_MODELS = {
    "efficientnet-lite0": "workers.models.efficientnet_lite",
    "perceptron": "workers.models.perceptron",
}


class ModelError(Exception):
    """A model or its weights cannot be used; the text names the model or file, and the mend."""


def open_model(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Build `name` with its own initial values; ModelError gives the nearest name when there is none.

    The module maps one input batch (n, ...), as its task collates it, to one output tensor (n, ...). `options` is the
    manifest's `backend` section; a model takes from it what it knows.
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ModelError(f"there is no model {name!r}{hint}; models: {', '.join(sorted(_MODELS))}")
    model: nn.Module = importlib.import_module(_MODELS[name]).build(options)
    return model
