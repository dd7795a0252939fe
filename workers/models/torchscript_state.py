"""The tensors in a TorchScript file, for networks that are published in no other form.

torch.jit.load is not called: it compiles the program in the file and, for a class that keeps its state by a
method of its own, runs it, with functions at hand that write any file. Here the object in the file is read
as inert (inert_pickle.py), and of the program's text two lines of each class: the names of its parameters
and buffers. What computes is this project's own network, into which the tensors must fit by name and shape.
"""

from __future__ import annotations

import io
import re
import zipfile
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from workers.models import ModelError
from workers.models.inert_pickle import PIECES, Call, Inert, InertReader, Parts, collected, inert

_CONSTANTS = "constants.pkl"  # in every TorchScript file; torch.save writes none
# Programs are stored deflated, tensors are not: what may be unpacked beyond the file's own size.
MOST_UNPACKED_BYTES = 64 << 20
_FIRST = Call(lambda value, *_: value)
_ALLOWED: dict[str, Any] = {
    **PIECES,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    # Attributes that are no tensors: read over.
    "torch.device": _FIRST,
    **{
        f"torch.jit._pickle.{name}": _FIRST
        for name in (
            "build_boollist",
            "build_doublelist",
            "build_intlist",
            "build_tensorlist",
            "restore_type_tag",
        )
    },
}
_CLASSES = "__torch__."


def is_torchscript(file: Path) -> bool:
    """Whether `file` is what torch.jit.save writes."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as opened:
        return bool(_root(opened))


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Its state_dict; ModelError for a damaged file, or one that does not keep its tensors plainly."""
    try:
        with zipfile.ZipFile(file) as opened:
            return _Archive(opened, file.stat().st_size).state()
    except OSError:
        raise
    except Exception as error:
        # What a damaged archive makes zipfile, pickle and torch raise is not documented.
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        mend = "load it where it was made and save its state_dict with torch.save"
        raise ModelError(f"{file} is no TorchScript file that can be read safely: {why}; {mend}") from None


def _root(opened: zipfile.ZipFile) -> str:
    """The folder in the archive that holds everything; empty in a file of another kind."""
    ends = f"/{_CONSTANTS}"
    roots = [n.removesuffix(ends) for n in opened.namelist() if n.count("/") == 1 and n.endswith(ends)]
    return roots[0] if roots else ""


class _Kinds(dict[str, Any]):
    """The names that a file may use: also those of its own classes."""

    def __missing__(self, name: str) -> Any:
        if not name.startswith(_CLASSES):
            raise KeyError(name)
        return self.setdefault(name, inert(name))


class _Archive:
    """An opened file; never more is unpacked of it than MOST_UNPACKED_BYTES and its own size."""

    def __init__(self, opened: zipfile.ZipFile, size_bytes: int) -> None:
        self._opened = opened
        self._root = _root(opened)
        self._left_bytes = size_bytes + MOST_UNPACKED_BYTES
        self._storages: dict[str, torch.Tensor] = {}
        self._listed = cache(self._read_lists)

    def state(self) -> dict[str, torch.Tensor]:
        """The state_dict of the module in it."""
        if f"{self._root}/byteorder" in self._opened.namelist() and self._read("byteorder") != b"little":
            raise UnpicklingError("it was written by a machine of the other byte order")
        held = InertReader(io.BytesIO(self._read("data.pkl")), _Kinds(_ALLOWED), self._storage).load()
        if not isinstance(held, Inert):
            raise UnpicklingError("it holds no module")
        return collected(held, self._parts)

    def _read(self, name: str) -> bytes:
        info = self._opened.getinfo(f"{self._root}/{name}")
        self._left_bytes -= info.file_size
        if self._left_bytes < 0:
            raise UnpicklingError("it unpacks to far more than its size")
        return self._opened.read(info)

    def _storage(self, dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        if key not in self._storages:
            content = self._read(f"data/{key}")
            if len(content) != count * dtype.itemsize:
                raise UnpicklingError(f"storage {key} has not the length that was announced")
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = torch.frombuffer(bytearray(content), dtype=dtype) if content else empty
        found = self._storages[key]
        if (found.dtype, found.numel()) != (dtype, count):
            raise UnpicklingError(f"storage {key} is announced as two kinds")
        return found

    def _parts(self, module: Inert) -> Parts:
        """Its parameters, then its buffers, and the modules among its attributes."""
        names, _ = self._listed(module.kind)
        held = module.state
        if not isinstance(held, dict):
            raise UnpicklingError(f"{module.kind} keeps its state by a method, which is not run")
        tensors = {name: held[name] for name in names if held[name] is not None}
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise UnpicklingError(f"{module.kind} has a parameter that is no tensor")
        inside = {n: v for n, v in held.items() if isinstance(v, Inert) and self._listed(v.kind)[1]}
        return tensors, inside

    def _read_lists(self, kind: str) -> tuple[list[str], bool]:
        """The names of a class's tensors, parameters first, and whether it is a module's class.

        A method of the class for its own state is refused: it would say what the tensors are.
        """
        path, _, name = kind.rpartition(".")
        text = self._read(f"code/{path.replace('.', '/')}.py").decode()
        begin = re.search(rf"^class {re.escape(name)}(\(Module\))?:$", text, re.M)
        if begin is None:
            raise UnpicklingError(f"its program has no class {kind}")
        if not begin[1]:
            return [], False
        body = text[begin.end() :]
        end = re.search(r"^class ", body, re.M)
        body = body[: end.start()] if end else body
        if re.search(r"^ +def __setstate__\(", body, re.M):
            raise UnpicklingError(f"{kind} keeps its state by a method, which is not run")
        lists = (re.search(rf"^  __{which}__ = \[(.*)\]$", body, re.M) for which in ("parameters", "buffers"))
        return [found for one in lists if one for found in re.findall(r'"([^"]*)"', one[1])], True
