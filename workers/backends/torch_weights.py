"""Weights of the torch engine: loaded strictly and safely, and hashed where they lie."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.backends import BackendError
from workers.backends.weight_files import sha256_of
from workers.installed import LocateError, locate
from workers.models import ModelError
from workers.models.pickled_module import read_state
from workers.models.strict_state import load_strictly
from workers.models.torchscript_state import is_torchscript, read_tensors

# A tensor of more bytes is summed where it lies. For sha256, DLRM's 48 GB of tables would have to be copied
# from the GPU, and at 0.5 to 2 GB/s a core would be busy for a minute; the sums read them once.
SUMMED_FROM_BYTES = 1 << 28
SUM_CHUNK_WORDS = 1 << 22  # 32 MiB at a time: small beside any model that needs it
# Training programs note their losses beside the weights, as NumPy numbers: nnU-Net's plot_stuff, for one.
_FIGURES = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class _Figure:
    """Stands for such a number: it is not needed, and NumPy is not called for it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def model_hash(module: nn.Module) -> str:
    """sha256 over name, type, shape and contents of every parameter and buffer, in order of name.

    The contents are the bytes, or of a tensor above SUMMED_FROM_BYTES one weighted sum of every 32 MiB. The
    same weights have the same hash on every device. The sums tell any two tensors apart that differ by
    accident; they are no protection against somebody who looks for two tensors with equal sums.
    """
    digest = hashlib.sha256()
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().contiguous().flatten().view(torch.uint8)
        if content.numel() > SUMMED_FROM_BYTES:
            digest.update(_sums(content))
        else:
            digest.update(content.cpu().numpy())
    return digest.hexdigest()


def _sums(content: torch.Tensor) -> bytes:
    """int64 sums of 64-bit words times odd weights, modulo 2**64, one of each chunk, and the last bytes.

    An odd weight makes every change of a single word visible, different weights an exchange of two; integer
    sums are the same in any order, so CPU and GPU agree.
    """
    words = content.numel() // 8
    weights = _weights(min(words, SUM_CHUNK_WORDS)).to(content.device)
    sums = []
    for start in range(0, words, SUM_CHUNK_WORDS):
        stop = min(start + SUM_CHUNK_WORDS, words)
        chunk = content[8 * start : 8 * stop]
        if chunk.storage_offset() % 8:
            chunk = chunk.clone()  # words must begin at a multiple of their size
        sums.append((chunk.view(torch.int64) * weights[: stop - start]).sum())
    return torch.stack(sums).cpu().numpy().tobytes() + content[8 * words :].cpu().numpy().tobytes()


def _weights(count: int) -> torch.Tensor:
    """`count` odd numbers: splitmix64 (Steele, Lea, Flood 2014) of 1, 2, 3, ..."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64))


def load_weights(module: nn.Module, path: str, wanted_sha256: str) -> dict[str, str]:
    """Load a state_dict strictly; returns the file's name and sha256, checked against the manifest's."""
    try:
        file = locate(path)
        sha256 = sha256_of(file)
        if wanted_sha256 not in ("", sha256):
            raise BackendError(f"backend.weights: {file} has sha256 {sha256}, not backend.weights_sha256")
        state = _read(file, getattr(module, "published_classes", ()))
    except LocateError as error:
        raise BackendError(f"backend.weights: {error}") from None
    except OSError as error:
        raise BackendError(f"backend.weights: {path} cannot be read ({error.strerror})") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    try:
        if isinstance(state, dict) and hasattr(module, "load_published"):
            state = module.load_published(state)
        load_strictly(module, state)
    except KeyError as error:
        why = f"it holds no {error.args[0]!r}" if error.args else "a name is missing"
        raise BackendError(f"backend.weights: {file} does not fit the model: {why}") from None
    except (RuntimeError, TypeError, AttributeError, ValueError, ModelError) as error:
        raise BackendError(f"backend.weights: {file} does not fit the model: {error}") from None
    return {"weights": file.name, "weights_sha256": sha256}


def _read(file: Path, classes: tuple[str, ...]) -> Any:
    """What the file holds; mapped, not read, where its format allows: DLRM's is larger than most hosts.

    `classes`: those of the module that was pickled whole as the published checkpoint, if it was.
    """
    try:
        if classes and not zipfile.is_zipfile(file):
            return read_state(file, classes)
        if is_torchscript(file):
            return read_tensors(file)
        with torch.serialization.safe_globals([(_Figure, name) for name in _FIGURES]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError:
        raise
    except ModelError as error:
        raise BackendError(f"backend.weights: {error}") from None
    except Exception:
        # What a damaged file makes torch raise is not documented, and its text for an unsafe file proposes
        # weights_only=False, which would run whatever code the file holds.
        why = "it is damaged or holds more than tensors; save its state_dict anew"
        raise BackendError(f"backend.weights: {file} does not load safely: {why}") from None
