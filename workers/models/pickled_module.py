"""Reads the state_dict out of a checkpoint that holds a whole pickled module, and runs none of its code.

The reference's PyTorch detection checkpoints are such files, in the format that torch had before 1.6
(backend_pytorch_native.py calls the object that torch.load gives it; both are of 2019). torch's weights_only
reader refuses them, whatever names it is told to allow. Here a file may name the pieces of a tensor, and
classes that the caller lists, which are inert (inert_pickle.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch

from workers.models.inert_pickle import PIECES, Call, Inert, InertReader, Parts, collected, inert

# First of the pickles in such a file; then the format's version, facts of the machine, the object, the keys
# of its storages, and of each its length and bytes (torch/serialization.py, _legacy_save).
MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
_MODULES = (
    "activation.ReLU",
    "activation.ReLU6",
    "batchnorm.BatchNorm2d",
    "container.ModuleList",
    "container.Sequential",
    "conv.Conv2d",
    "pooling.MaxPool2d",
)
_ALLOWED: dict[str, Any] = {
    **PIECES,
    "__builtin__.set": set,  # protocol 2, in which these files are written, has the old name
    "torch.Size": torch.Size,
    # torch 1.0 and 1.1 kept its result in every module.
    "torch.nn.backends.thnn._get_thnn_function_backend": Call(lambda: None),
}


class _Storages:
    """The file's storages by key, empty until their bytes are reached; never more of them than the file."""

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes
        self._made: dict[str, torch.Tensor] = {}

    def get(self, dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        """That of `key`, made when it is first named."""
        if key not in self._made:
            self._left_bytes -= count * dtype.itemsize
            if self._left_bytes < 0:
                raise UnpicklingError("it announces longer storages than it can hold")
            self._made[key] = torch.empty(count, dtype=dtype)
        return self._made[key]

    def fill(self, key: str, opened: BinaryIO) -> None:
        """Its length and bytes are what comes next in the file."""
        storage = self._made[key]
        count = int.from_bytes(opened.read(8), "little")
        content = opened.read(storage.numel() * storage.element_size())
        if count != storage.numel() or len(content) != storage.numel() * storage.element_size():
            raise UnpicklingError("it ends too early, or a storage has not the length that was announced")
        storage.numpy()[:] = np.frombuffer(content, storage.numpy().dtype)


def read_state(file: Path, classes: Iterable[str]) -> dict[str, torch.Tensor]:
    """The state_dict of the module, or the dict, in `file`; `classes` are the module's own, by full names.

    A damaged file, or one that names anything else, makes it raise what pickle or torch raises then.
    """
    names = [*(f"torch.nn.modules.{name}" for name in _MODULES), *classes]
    known = {name: inert(name) for name in names} | _ALLOWED
    with open(file, "rb") as opened:
        storages = _Storages(os.fstat(opened.fileno()).st_size)

        def read(known: dict[str, Any]) -> Any:
            return InertReader(opened, known, storages.get).load()

        if read({}) != MAGIC or read({}) != VERSION:
            raise UnpicklingError("it is no checkpoint of torch before 1.6")
        read({})
        held = read(known)
        for key in read({}):
            storages.fill(key, opened)
    return collected(held, _parts) if isinstance(held, Inert) else held


def _parts(module: Inert) -> Parts:
    """Its parameters, buffers and modules: what torch keeps in a module's three tables of these names."""
    tensors = {**module.state["_parameters"], **module.state["_buffers"]}
    modules = module.state["_modules"]
    return (
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        {name: inside for name, inside in modules.items() if inside is not None},
    )
