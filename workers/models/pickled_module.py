"""Reads the state_dict out of a checkpoint that holds a whole pickled module, and runs none of its code.

The reference's PyTorch detection checkpoints are such files, in the format that torch had before 1.6
(backend_pytorch_native.py calls the object that torch.load gives it; both are of 2019). torch's weights_only
reader refuses them, whatever names it is told to allow. Here a file may name the pieces of a tensor, and
classes that the caller lists: of those it gets one inert class, with attributes and no behaviour.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

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


class Inert:
    """Stands for an object of any class."""


def _nothing() -> None:
    return None


def _tensor(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view, so that it shows what the storage is filled with later."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    return tensor


_ALLOWED: dict[str, Any] = {
    "__builtin__.set": set,  # protocol 2, in which these files are written, has the old name
    "collections.OrderedDict": OrderedDict,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.LongStorage": torch.int64,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    # torch 1.0 and 1.1 kept its result in every module.
    "torch.nn.backends.thnn._get_thnn_function_backend": _nothing,
} | {f"torch.nn.modules.{name}": Inert for name in _MODULES}


class _Reader(pickle.Unpickler):
    """An unpickler for which the allowed names are all that exists."""

    def __init__(self, opened: BinaryIO, classes: Iterable[str]) -> None:
        super().__init__(opened)
        self._known = dict.fromkeys(classes, Inert) | _ALLOWED
        self.storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The allowed object of that name."""
        try:
            return self._known[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """A module's class, its source left aside, or an empty storage."""
        if pid[0] == "module":
            return pid[1]
        _, dtype, key, _, count, view = pid
        if view is not None:
            raise pickle.UnpicklingError("it holds a view of a storage")
        return self.storages.setdefault(key, torch.empty(count, dtype=dtype))


def read_state(file: Path, classes: Iterable[str]) -> dict[str, torch.Tensor]:
    """The state_dict of the module, or the dict, in `file`; `classes` are the module's own, by full names.

    A damaged file, or one that names anything else, makes it raise what pickle or torch raises then.
    """
    with open(file, "rb") as opened:
        if _Reader(opened, ()).load() != MAGIC or _Reader(opened, ()).load() != VERSION:
            raise pickle.UnpicklingError("it is no checkpoint of torch before 1.6")
        _Reader(opened, ()).load()
        reader = _Reader(opened, classes)
        held = reader.load()
        for key in _Reader(opened, ()).load():
            _fill(reader.storages[key], opened)
    if not isinstance(held, Inert):
        return held
    state: dict[str, torch.Tensor] = {}
    _collect(held, "", state)
    return state


def _fill(storage: torch.Tensor, opened: BinaryIO) -> None:
    count = int.from_bytes(opened.read(8), "little")
    content = opened.read(storage.numel() * storage.element_size())
    if count != storage.numel() or len(content) != storage.numel() * storage.element_size():
        raise pickle.UnpicklingError("it ends too early, or a storage has not the length that was announced")
    storage.numpy()[:] = np.frombuffer(content, storage.numpy().dtype)


def _collect(module: Any, prefix: str, state: dict[str, torch.Tensor]) -> None:
    """As Module.state_dict: parameters and buffers, then those of the modules inside."""
    for name, tensor in {**module._parameters, **module._buffers}.items():
        if tensor is not None:
            state[prefix + name] = tensor
    for name, inside in module._modules.items():
        if inside is not None:
            _collect(inside, f"{prefix}{name}.", state)
