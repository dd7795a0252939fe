"""Whether Triton's kernels run here: on a GPU, or on a CPU through Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def needs_triton(gpu: bool = CUDA, kind: str = "a CUDA device") -> pytest.MarkDecorator:
    """Skips where there is no Triton, or neither such a GPU nor the interpreter."""
    return pytest.mark.skipif(
        importlib.util.find_spec("triton") is None or not (gpu or INTERPRETED),
        reason=f"needs Triton, and {kind} or TRITON_INTERPRET=1",
    )
