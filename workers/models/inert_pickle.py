"""The unpickler for checkpoints that hold whole modules: nothing that such a file names comes to life.

A name in the file means what the format's reader says: a piece of a tensor, or an inert object that keeps
the state it is given. Neither has a way to other code, and no other name exists.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch

from workers.pickle_limits import refuse_greedy

# Modules and tensors, counted wherever they are met, and characters of a tensor's name. The largest published
# files have a thousand and 60; modules that hold each other twice, 40 deep, would be met 2^40 times.
MOST_PARTS = 50_000
LONGEST_NAME = 1000

Parts = tuple[dict[str, torch.Tensor], dict[str, "Inert"]]


class Inert:
    """Stands for an object of the class `kind`; `state` is what the file gave it."""

    __slots__ = ("state",)
    kind = ""

    def __new__(cls) -> Inert:
        """Without the arguments that the class itself may want."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Call:
    """A function that a pickle may call, and, unlike a function itself, cannot give attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        return self._function(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it gives a function a state")


def _view(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view, so that it shows what the storage is filled with later; torch refuses what lies outside."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


def inert(kind: str) -> type[Inert]:
    """The class that stands for `kind`."""
    return type("Inert", (Inert,), {"__slots__": (), "kind": kind})


# What every format of torch is made of.
PIECES: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_parameter": Call(lambda tensor, *_: tensor),
    "torch._utils._rebuild_tensor_v2": Call(_view),
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.LongStorage": torch.int64,
}


class InertReader(pickle.Unpickler):
    """An unpickler for which the names in `known` are all that exists.

    `stored` gives the storage of a dtype, key and number of elements. A ValueError is raised for a pickle
    that asks for more than it brings, UnpicklingError for one that names anything else.
    """

    def __init__(
        self,
        opened: BinaryIO,
        known: Mapping[str, Any],
        stored: Callable[[torch.dtype, str, int], torch.Tensor],
    ) -> None:
        refuse_greedy(opened, "its pickle")
        super().__init__(opened)
        self._known = known
        self._stored = stored

    def find_class(self, module: str, name: str) -> Any:
        """The allowed object of that name."""
        try:
            return self._known[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or a module's class, its source left aside."""
        if pid[0] == "module":
            return pid[1]
        if pid[0] != "storage" or not isinstance(pid[1], torch.dtype) or not isinstance(pid[2], str):
            raise pickle.UnpicklingError("it holds a part that is no storage")
        if type(pid[4]) is not int or pid[4] < 0:
            raise pickle.UnpicklingError("it holds a storage without a length")
        if pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("it holds a view of a storage")
        return self._stored(pid[1], pid[2], pid[4])


def collected(root: Inert, parts: Callable[[Inert], Parts]) -> dict[str, torch.Tensor]:
    """The state_dict of `root`: its tensors, then those of the modules inside, as Module.state_dict has them.

    `parts` gives a module's own tensors and modules.
    """
    state: dict[str, torch.Tensor] = {}
    waiting = [("", root)]
    met = 0
    while waiting:
        prefix, module = waiting.pop()
        tensors, modules = parts(module)
        met += 1 + len(tensors) + len(modules)
        if met > MOST_PARTS or len(prefix) > LONGEST_NAME:
            raise pickle.UnpicklingError("its modules hold each other in a circle, or far too often")
        for name, tensor in tensors.items():
            if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
                raise pickle.UnpicklingError(f"{prefix}{name} has more elements than the file")
            state[prefix + name] = tensor
        waiting += [(f"{prefix}{name}.", inside) for name, inside in reversed(modules.items())]
    return state
