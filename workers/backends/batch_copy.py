"""cudaMemcpyBatchAsync: many copies in one call, done by a GPU's copy engines beside what it computes.

torch does not offer it, so it is called in the CUDA runtime that torch itself has loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from workers.backends import BackendError

# driver_types.h of CUDA 13. In stream order: the other two orders let the driver read a source before the
# stream comes to the copy, and are meant for memory that CUDA did not allocate; pinned memory gains nothing.
SOURCE_IN_STREAM_ORDER = 1
# A hint. Without it the same copies of 150 KB came with 51 instead of 54 GB/s, and beside a matmul with 40.
PREFER_OVERLAP_WITH_COMPUTE = 1
# From this version of the runtime on there is no argument for the number of a copy that failed.
WITHOUT_FAILED = 13000


class Launch(Protocol):
    """Copy sizes[i] bytes from sources[i] to destinations[i], in the current stream and no order; no waiting.

    uint64 (n,), contiguous, n > 0 and no size 0; sources hold until the stream is past them, and no graph is
    being captured there. BackendError.
    """

    def __call__(self, destinations: np.ndarray, sources: np.ndarray, sizes: np.ndarray) -> None: ...


class _Location(ctypes.Structure):
    """cudaMemLocation; left at 0, as CUDA looks at it for managed and pageable memory only."""

    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Attributes(ctypes.Structure):
    """cudaMemcpyAttributes."""

    _fields_ = [
        ("source_access_order", ctypes.c_int),
        ("source_hint", _Location),
        ("destination_hint", _Location),
        ("flags", ctypes.c_uint),
    ]


def loaded_runtime() -> Any:
    """A library whose names are also looked up in all it depends on: one of them is torch's CUDA runtime."""
    return ctypes.CDLL(torch._C.__file__)


def current_stream() -> int:
    """The handle of torch's current stream, which the call refuses to be the default one (0)."""
    return int(torch.cuda.current_stream().cuda_stream)


def batch_copy(runtime: Any, stream: Callable[[], int] = current_stream) -> Launch:
    """The call as it is in `runtime`; BackendError if that is older than CUDA 12.8."""
    try:
        call, version_of = runtime.cudaMemcpyBatchAsync, runtime.cudaRuntimeGetVersion
        name_of, forget = runtime.cudaGetErrorName, runtime.cudaGetLastError
    except AttributeError as error:
        raise BackendError(
            "torch's CUDA runtime has no cudaMemcpyBatchAsync, which came with CUDA 12.8"
        ) from error
    name_of.restype = ctypes.c_char_p
    version = ctypes.c_int()
    if version_of(ctypes.byref(version)):
        raise BackendError("torch's CUDA runtime does not tell its version")
    attributes = _Attributes(SOURCE_IN_STREAM_ORDER, flags=PREFER_OVERLAP_WITH_COMPUTE)
    first = ctypes.c_size_t(0)  # the copy from which on the only attributes apply

    def launch(destinations: np.ndarray, sources: np.ndarray, sizes: np.ndarray) -> None:
        arrays = [ctypes.c_void_p(array.ctypes.data) for array in (destinations, sources, sizes)]
        count, one = ctypes.c_size_t(len(sizes)), ctypes.c_size_t(1)
        failed = () if version.value >= WITHOUT_FAILED else (ctypes.byref(ctypes.c_size_t()),)
        given = (*arrays, count, ctypes.byref(attributes), ctypes.byref(first), one, *failed)
        if code := call(*given, ctypes.c_void_p(stream())):
            forget()  # or torch would raise it at what it launches next
            raise BackendError(
                f"cudaMemcpyBatchAsync of {len(sizes)} samples: {name_of(code).decode()} ({code})"
            )

    return launch
