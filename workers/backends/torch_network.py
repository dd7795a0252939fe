"""A network as the torch engine runs it: built, loaded, hashed, then converted and moved to its device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.backends import BackendError
from workers.installed import LocateError, locate
from workers.models import ModelError, open_model

# Every worker builds seeded weights from this, so that all agree.
WEIGHTS_SEED = 20210406
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class TorchOptions:
    """The manifest's `backend` section as far as it concerns this engine, and two facts from the driver.

    These are `device` and `workers_on_host`. `threads` 0 means the host's cores divided by its workers; an
    empty `weights` means seeded ones; `precision` fp32 means fp32, TF32 (10 bits of mantissa) stays off.
    """

    model: str = ""
    weights: str = ""
    weights_sha256: str = ""
    precision: str = "fp32"
    channels_last: bool = False
    cuda_graphs: bool = True
    compile: bool = False
    device: str = "cpu"
    threads: int = 0
    workers_on_host: int = 1


class Network:
    """Input batch (n, ...) -> output (n, ...), on `device`; `padded`: batches must have a bucket's size."""

    def __init__(
        self, module: nn.Module, device: torch.device, dtype: torch.dtype, facts: dict[str, Any]
    ) -> None:
        self.device = device
        self.facts = facts
        self.padded = False
        self.cuda_graphs = False
        self._module = module
        self._dtype = dtype

    def compile(self, shapes: int) -> None:
        """Compile at the first batch of each of `shapes` sizes."""
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * shapes)
        self._module = torch.compile(self._module, dynamic=False)
        self.padded = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """NumPy has no bfloat16, so such outputs leave as float32."""
        if x.is_floating_point():
            x = x.to(self._dtype)
        y = self._module(x)
        if not isinstance(y, torch.Tensor) or y.shape[:1] != x.shape[:1]:
            raise BackendError(f"the model must answer {len(x)} samples with a tensor of {len(x)} rows")
        return y.float() if y.dtype is torch.bfloat16 else y


def load_network(options: TorchOptions, raw: Mapping[str, Any], shapes: int) -> Network:
    """Build what `options` name; BackendError: unknown model, precision or device, or unusable weights."""
    for word, known, key in (
        (options.precision, PRECISIONS, "precision"),
        (options.device, DEVICES, "device"),
    ):
        if word not in known:
            raise BackendError(f"backend.{key} cannot be {word!r}; it is one of {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("the worker was given a GPU but torch finds none: install a CUDA build of torch")
    module = _build(options, raw)
    weights = _load_weights(module, options) if options.weights else {"weights": "seeded"}
    facts = {
        "model": options.model,
        "model_hash": model_hash(module),
        **weights,
        "precision": options.precision,
    }
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    module.eval().requires_grad_(False).to(device=device, dtype=dtype)
    if options.channels_last:
        module.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are fixed per bucket
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    network = Network(module, device, dtype, facts)
    if options.compile:
        network.compile(shapes)
    network.cuda_graphs = device.type == "cuda" and options.cuda_graphs
    network.padded = network.padded or network.cuda_graphs
    return network


def model_hash(module: nn.Module) -> str:
    """sha256 over name, type, shape and bytes of every parameter and buffer, in order of name."""
    digest = hashlib.sha256()
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _build(options: TorchOptions, raw: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        own = {field.name for field in fields(TorchOptions)} | {"engine"}
        wanted = {key: value for key, value in raw.items() if key not in own and value is not None}
        try:
            return open_model(options.model, wanted, options.channels_last)
        except ModelError as error:
            raise BackendError(str(error)) from None


def _load_weights(module: nn.Module, options: TorchOptions) -> dict[str, str]:
    """Load a state_dict strictly; returns the file's name and sha256, checked against the manifest's."""
    path = options.weights
    try:
        file = locate(path)
        sha256 = _sha256(file)
        if options.weights_sha256 not in ("", sha256):
            raise BackendError(f"backend.weights: {file} has sha256 {sha256}, not backend.weights_sha256")
        state = torch.load(file, map_location="cpu", weights_only=True)
    except LocateError as error:
        raise BackendError(f"backend.weights: {error}") from None
    except OSError as error:
        raise BackendError(f"backend.weights: {path} cannot be read ({error.strerror})") from None
    except BackendError:
        raise
    except Exception:
        # What a damaged file makes torch raise is not documented, and its text for an unsafe file proposes
        # weights_only=False, which would run whatever code the file holds.
        why = "it is damaged or holds more than tensors; save its state_dict anew"
        raise BackendError(f"backend.weights: {file} does not load safely: {why}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    try:
        module.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BackendError(f"backend.weights: {file} does not fit the model: {error}") from None
    return {"weights": file.name, "weights_sha256": sha256}


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
