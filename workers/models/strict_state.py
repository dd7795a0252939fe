"""Loading a state_dict so that it fits by name, shape and kind of number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from workers.models import ModelError


def load_strictly(module: nn.Module, state: Any) -> None:
    """Every tensor of `state` into the tensor of its name; ModelError, or what torch raises for a misfit.

    torch itself would turn whole numbers, quantised or complex ones into floating point without a word, and
    what is left of a quantised network is another network. One floating-point type for another is fine.
    """
    own = module.state_dict()
    for name, tensor in state.items() if isinstance(state, Mapping) else ():
        if not isinstance(tensor, torch.Tensor) or name not in own:
            continue  # torch itself refuses these
        found, wanted = _kind(tensor), _kind(own[name])
        if found != wanted:
            raise ModelError(
                f"{name} holds {found} numbers ({str(tensor.dtype).removeprefix('torch.')}) where the model "
                f"has {wanted} ones; save the state_dict of the {wanted} network"
            )
    if isinstance(state, Mapping) and (why := _other_names(set(own), {str(name) for name in state})):
        raise ModelError(why)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelError("; ".join(line.strip() for line in str(error).splitlines()[:4])) from None


def _other_names(wanted: set[str], found: set[str]) -> str:
    """What is missing and what is too much, in one line; nothing if the names agree."""
    told = [
        f"{words} {', '.join(sorted(names)[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for words, names in (("it lacks", wanted - found), ("the model has no", found - wanted))
        if names
    ]
    return "; ".join(told)


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "floating-point"
    return "truth" if tensor.dtype == torch.bool else "whole"
