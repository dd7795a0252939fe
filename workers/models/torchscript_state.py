"""The tensors in a TorchScript file, for networks that are published in no other form.

torch.jit.load also reads the program in the file, which is TorchScript, no Python: it compiles it and could
run it. Here it is not run. What computes is this project's own network, into which the tensors must fit by
name and shape, and the program is dropped.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch

_CONSTANTS = "constants.pkl"  # in every TorchScript file; torch.save writes none


def is_torchscript(file: Path) -> bool:
    """Whether `file` is what torch.jit.save writes."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as opened:
        return any(name.count("/") == 1 and name.endswith(f"/{_CONSTANTS}") for name in opened.namelist())


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Its state_dict; RuntimeError for a damaged file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is; files of it remain
        return dict(torch.jit.load(str(file), map_location="cpu").state_dict())
