"""A network as the torch engine runs it: built, loaded, hashed, folded, converted and moved to its device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from workers.backends import BackendError
from workers.backends.torch_quantised import Given, quantised, refuse_eight_bits
from workers.backends.torch_weights import load_weights, model_hash
from workers.library import Library
from workers.models import EIGHT_BITS, ModelError, open_model

# Every worker builds seeded weights from this, so that all agree.
WEIGHTS_SEED = 20210406
# Of 8 bits it is what the network is loaded in, before it is quantised.
PRECISIONS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
    "fp8": torch.float32,
}
DEVICES = ("cpu", "cuda")
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions of a weight


@dataclass(frozen=True)
class TorchOptions:
    """The manifest's `backend` section as far as it concerns this engine, and two facts from the driver.

    These are `device` and `workers_on_host`. `threads` 0 means the host's cores divided by its workers; an
    empty `weights` means seeded ones; `precision` fp32 means fp32, TF32 (10 bits of mantissa) stays off;
    `gather` is one of torch_gather.GATHERS. `scales` are those of int8 and fp8; empty, with seeded weights
    alone, means scales of random samples.
    """

    model: str = ""
    weights: str = ""
    weights_sha256: str = ""
    scales: str = ""
    scales_sha256: str = ""
    precision: str = "fp32"
    channels_last: bool = False
    cuda_graphs: bool = True
    compile: bool = False
    device: str = "cpu"
    gather: str = "auto"
    threads: int = 0
    workers_on_host: int = 1


class Network:
    """A module on `device`; call it with the input of a fixed task, `rows` with that of a ragged one.

    `padded`: batches of a fixed task must have a bucket's size. `cuda_graphs`: its work is to be captured.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, dtype: torch.dtype, facts: dict[str, Any]
    ) -> None:
        self.device = device
        self.facts = facts
        self.padded = False
        self.cuda_graphs = False
        self.host_counts = bool(getattr(module, "host_counts", False))
        self.graphable = bool(getattr(module, "graphable", True)) and not self.host_counts
        self.side_by_side = bool(getattr(module, "side_by_side", False)) and not self.graphable
        self._module = module
        self._dtype = dtype

    def check_library(self, library: Library) -> None:
        """BackendError if the module knows of samples in `library` that it cannot answer."""
        check = getattr(self._module, "check_library", None)
        if check is not None:
            try:
                check(library)
            except ModelError as error:
                raise BackendError(str(error)) from None

    def compile(self, shapes: int, ragged: bool) -> None:
        """Compile: fixed tasks at the first batch of each of `shapes` sizes, else any number of rows."""
        if ragged and not self.graphable:
            raise BackendError(
                f"backend.compile cannot be used with model {self.facts['model']}: its shapes change from "
                "batch to batch, and it would be compiled again and again; leave compile out"
            )
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * shapes)
        dynamic = True if ragged else None if not self.graphable else False
        self._module.compile(dynamic=dynamic)  # a module may know a part that is better left out
        self.padded = self.graphable

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Input (n, ...) -> output (n, ...); NumPy has no bfloat16, so such outputs leave as float32."""
        if x.is_floating_point():
            x = x.to(self._dtype)
        y = self._module(x)
        if not isinstance(y, torch.Tensor) or y.shape[:1] != x.shape[:1]:
            raise BackendError(f"the model must answer {len(x)} samples with a tensor of {len(x)} rows")
        return y.float() if y.dtype is torch.bfloat16 else y

    def rows(self, x: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows (R, ...) and how many are each sample's -> rows, and their counts if these differ.

        The module sees the rows as the task made them: what a sound or an index may lose, it knows itself.
        """
        y = self._module(x, counts)
        y, new_counts = y if isinstance(y, tuple) else (y, None)
        if not isinstance(y, torch.Tensor) or (new_counts is None and y.shape[:1] != x.shape[:1]):
            raise BackendError(
                f"the model must answer {len(x)} rows with {len(x)} rows, or with rows and counts"
            )
        if new_counts is not None and new_counts.shape != counts.shape:
            raise BackendError(f"the model must answer {len(counts)} samples with {len(counts)} counts")
        return y.float() if y.dtype is torch.bfloat16 else y, new_counts


def load_network(
    options: TorchOptions,
    raw: Mapping[str, Any],
    shapes: int,
    ragged: bool = False,
    samples: Callable[[int], Given] | None = None,
) -> Network:
    """Build what `options` name; BackendError: unknown model, precision or device, or unusable weights.

    `samples` gives inputs of any number of random samples, from which 8 bits may have to take their scales.
    """
    device, dtype = _device(options), PRECISIONS[options.precision]
    module, facts = load_folded(options, raw, device, dtype)
    if options.precision in EIGHT_BITS.values():
        module, more = quantised(module, facts, (options.scales, options.scales_sha256), device, samples)
        facts |= more
    else:
        _convert(module, device, dtype)
    if options.channels_last:
        _lay_out(module)
    network = Network(module, device, dtype, facts)
    if options.compile:
        network.compile(shapes, ragged)
    network.cuda_graphs = device.type == "cuda" and options.cuda_graphs and network.graphable
    network.padded = network.padded or network.cuda_graphs
    if device.type == "cuda":
        # Shapes are fixed per bucket; where they change with every batch, trying algorithms out never ends.
        torch.backends.cudnn.benchmark = network.cuda_graphs or not ragged
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return network


def _device(options: TorchOptions) -> torch.device:
    """The device; BackendError for words that are none, and for a precision that the model does not have."""
    for word, known, key in (
        (options.precision, PRECISIONS, "precision"),
        (options.device, DEVICES, "device"),
    ):
        if word not in known:
            raise BackendError(f"backend.{key} cannot be {word!r}; it is one of {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("the worker was given a GPU but torch finds none: install a CUDA build of torch")
    if options.precision in EIGHT_BITS.values():
        refuse_eight_bits(options.model, options.precision, options.channels_last, options.compile)
    return torch.device(options.device)


def load_folded(
    options: TorchOptions, raw: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Any]]:
    """The module with its weights, folded but not converted yet, and what a record says of it."""
    module = _build(options, raw, device, dtype)
    weights = {"weights": "seeded"}
    if options.weights:
        weights = load_weights(module, options.weights, options.weights_sha256)
    facts = {
        "model": options.model,
        "model_hash": model_hash(module),
        **weights,
        "precision": options.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    module.eval()
    if hasattr(module, "fold"):
        with torch.no_grad():
            module.fold()
    return module.requires_grad_(False), facts


def _build(
    options: TorchOptions, raw: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        own = {field.name for field in fields(TorchOptions)} | {"engine"}
        wanted = {key: value for key, value in raw.items() if key not in own and value is not None}
        large = torch.int8 if options.precision == "int8" else dtype
        try:
            return open_model(options.model, wanted, options.channels_last, (device, large))
        except ModelError as error:
            raise BackendError(str(error)) from None


def _convert(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move to the device in the precision, but for what the module wants to keep as it is."""
    names = getattr(module, "full_precision", ())
    kept = {name: copy.deepcopy(module.get_submodule(name)) for name in names}
    module.to(device=device, dtype=dtype)
    for name, part in kept.items():
        module.set_submodule(name, part.to(device=device))


def _lay_out(module: nn.Module) -> None:
    """Weights of convolutions channels last, in two dimensions and in three."""
    for weight in module.parameters():
        if weight.dim() in LAYOUTS:
            weight.data = weight.data.contiguous(memory_format=LAYOUTS[weight.dim()])
