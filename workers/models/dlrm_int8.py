"""DLRM in 8 bits: the folded network of dlrm.py with its tables in int8 and its perceptrons in fp8 e4m3.

The bottom's first layer, of 13 inputs, is float16; its output enters the products of features as int8, and
the top as e4m3. Every layer is y = sum * mult + bias, ReLU, stored in the scale of what reads it: all scales
of inputs, weights and outputs are in mult and bias. On a CPU plain torch computes the same roundings (slow,
for tests and sizing); on CUDA the Triton kernels of dlrm_launch.

Of made data, the full network trained there in fp32 (1 H100): AUC 99.988 % of fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from workers.library import Library
from workers.models import ModelError, open_kernels
from workers.models.dlrm_tables import check_indices
from workers.models.quantise import TOP, rounded_scale
from workers.models.scales import Method, Scales
from workers.tasks.criteo import DENSE

E4M3 = torch.float8_e4m3fn
E4M3_TOP = 448.0
# The top's input: the bottom's output and the products of features.
INTERACTION = "interaction"
Heard = Callable[[int, int], None]  # told how many steps are done, of how many
Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # pairs int32 (r, 39), and how many are each sample's


# mse weighs what is cut off against steps of one size; those of e4m3 grow with the value.
METHODS: tuple[Method, ...] = ("max",)


def log_odds(predictions: torch.Tensor) -> torch.Tensor:
    """Of a click."""
    return torch.logit(predictions.float(), 1e-6)


def agreement(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Of the log-odds of pairs (`samples`): for which share of them the same answer is the likelier one.

    `cosine` is of the log-odds less their mean, so their correlation; `error` is relative to the same.
    """
    a, b = found.double(), expected.double()
    own_a, own_b = a - a.mean(), b - b.mean()
    spread = own_b.norm().clamp(min=1e-12)
    return {
        "samples": float(len(a)),
        "top1": ((a > 0) == (b > 0)).double().mean().item(),
        "cosine": (own_a @ own_b / (own_a.norm().clamp(min=1e-12) * spread)).item(),
        "error": ((a - b).norm() / spread).item(),
    }


def linears(perceptron: Any) -> list[nn.Linear]:
    """The layers of a perceptron, without what stands between them."""
    return [one for one in perceptron if isinstance(one, nn.Linear)]


def float_tensors(folded: Any, rows: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What will be in 8 bits but for tables and weights, as the folded network computes it, in order."""
    x = folded.dense(rows)
    for number, layer in enumerate(linears(folded.bot_l)):
        x = torch.relu(layer(x))
        yield f"bot_l.{2 * number}", x
    x = folded.interaction(x, rows)
    yield INTERACTION, x
    for number, layer in enumerate(linears(folded.top_l)[:-2]):
        x = torch.relu(layer(x))
        yield f"top_l.{2 * number}", x


def tensor_names(folded: Any) -> list[str]:
    """The names that float_tensors gives: of layers, whose outputs they are."""
    bottom, top = len(linears(folded.bot_l)), len(linears(folded.top_l)) - 2
    names = [f"bot_l.{2 * number}" for number in range(bottom)]
    return [*names, INTERACTION, *(f"top_l.{2 * number}" for number in range(top))]


@torch.no_grad()
def calibrated(folded: Any, batches: Sequence[Batch], heard: Heard) -> dict[str, Any]:
    """`activations` of Scales: a tensor's largest value is the last of its format."""
    names, tops = tensor_names(folded), dict[str, float]()
    for done, (rows, _) in enumerate(batches, 1):
        for name, values in float_tensors(folded, rows):
            # What never exceeds zero needs a scale all the same: any.
            tops[name] = max(tops.get(name, 1e-6), values.abs().max().item())
        heard(done, len(batches))
    last = names[names.index(INTERACTION) - 1]  # the bottom's output, int8
    scales = {name: rounded_scale(top / (TOP if name == last else E4M3_TOP)) for name, top in tops.items()}
    return {"activations": scales, "corrections": {}}


class Layer(nn.Module):
    """relu(x @ w.T * mult + bias), stored in the next layer's scale: w (n, k), mult and bias (n,)."""

    w: torch.Tensor
    mult: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: nn.Linear, kind: torch.dtype, in_scale: float, out_scale: float) -> None:
        """A weight's scale is the tensor's."""
        super().__init__()
        weight, bias = linear.weight.detach().float(), linear.bias.detach().float()
        scale = max(weight.abs().max().item(), 1e-12) / E4M3_TOP if kind is E4M3 else 1.0
        self.register_buffer("w", (weight / scale).to(kind).contiguous())
        self.register_buffer("mult", torch.full_like(bias, in_scale * scale / out_scale))
        self.register_buffer("bias", bias / out_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32, not stored yet."""
        return torch.relu((x.float() @ self.w.float().t()) * self.mult + self.bias)


class Int8Dlrm(nn.Module):
    """int32 pairs (r, 13 counts + 26 indices) -> the probability of a click of each, as dlrm.Dlrm."""

    weight_data_types = "int8 (tables), fp8 e4m3 (perceptrons), fp16 (first layer), fp32 (last layer)"
    numbers = (
        "Embedding tables: int8, symmetric, one scale a table: its largest absolute value is step 127. The "
        "model_hash of the records is that of the tables so quantised.",
        "Perceptrons, weights and activations: fp8 e4m3, one scale a tensor, its largest absolute value 448; "
        "but the first layer, of the counts, in fp16, and the last, of one output, in fp32.",
        "The bottom perceptron's output: int8 beside the tables' rows, fp8 e4m3 where it enters the top.",
        "Biases: fp32. Sums: int32 of the products of features, else the fp32 of the matrix units.",
        "Calibrated, and held against, is the fp32 network with its fp32 tables; where it is held against, a "
        "sample is a pair, and its answer a click or none.",
    )
    firsts: torch.Tensor
    lasts: torch.Tensor
    mult: torch.Tensor
    last_w: torch.Tensor
    last_bias: torch.Tensor

    def __init__(self, folded: Any, scales: Scales, device: torch.device) -> None:
        super().__init__()
        _check_names(folded, scales)
        tables, steps = folded.emb_l, scales.activations
        self.rows: list[int] = tables.rows
        self.table = tables.table  # the very memory
        bottom, top = linears(folded.bot_l), linears(folded.top_l)
        names = tensor_names(folded)
        here = names.index(INTERACTION)
        # The scales of what each layer reads and writes; 1 is a value as it is.
        given = [1.0, *(steps[name] for name in names[: here - 1])]
        self.bottom = nn.ModuleList(
            Layer(layer, torch.float16 if i == 0 else E4M3, s_in, s_out)
            for i, (layer, s_in, s_out) in enumerate(zip(bottom, given, [*given[1:], 1.0], strict=True))
        )
        given = [steps[name] for name in names[here:]]
        self.top = nn.ModuleList(
            Layer(layer, E4M3, s_in, s_out)
            for layer, s_in, s_out in zip(top[:-1], given, [*given[1:], 1.0], strict=True)
        )
        self.inv_left, self.inv_wide = 1 / steps[names[here - 1]], 1 / steps[INTERACTION]
        each = torch.cat([torch.tensor([steps[names[here - 1]]]), tables.scales.float().cpu()])
        self.register_buffer("mult", each[:, None] * each[None, :] / steps[INTERACTION])
        self.register_buffer("firsts", tables.firsts.clone())
        self.register_buffer("lasts", tables.lasts.clone())
        self.register_buffer("last_w", top[-1].weight.detach().float().flatten())
        self.register_buffer("last_bias", top[-1].bias.detach().float().clone())
        self.eval().to(device)
        self.kernels = open_kernels("dlrm_launch").Launches(self) if device.type == "cuda" else None

    def check_library(self, library: Library) -> None:
        """See dlrm.Dlrm."""
        check_indices(library, self.rows)

    def forward(self, rows: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Each row is answered by itself; `counts` of samples do not matter."""
        if self.kernels is not None:
            found: torch.Tensor = self.kernels(rows)
            return found
        return self.emulated(rows)["prediction"]

    def scores(self, batch: Batch) -> torch.Tensor:
        """See dlrm.Dlrm."""
        return log_odds(self(*batch))

    @torch.no_grad()
    def emulated(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the kernels leave in memory and answer, by plain torch; its sums are exact to fp32."""
        x = torch.log(rows[:, :DENSE].float() + 1).half()
        x = functional.pad(x, (0, self.bottom[0].w.shape[1] - DENSE))
        for layer in self.bottom[:-1]:
            x = stored(layer(x), E4M3)
        y = self.bottom[-1](x)
        left = stored(y * self.inv_left, torch.int8)
        places = torch.minimum(rows[:, DENSE:], self.lasts).clamp(min=0) + self.firsts
        features = torch.cat([left[:, None], self.table[places]], 1).float()
        i, j = torch.tril_indices(features.shape[1], features.shape[1], -1, device=rows.device)
        products = torch.bmm(features, features.transpose(1, 2))[:, i, j] * self.mult[i, j]
        parts = [stored(one, E4M3).float() for one in (y * self.inv_wide, products)]
        wide = functional.pad(torch.cat(parts, 1), (0, self.top[0].w.shape[1] - y.shape[1] - len(i)))
        found = {"left": left, INTERACTION: wide.to(E4M3)}
        x = found[INTERACTION]
        for number, layer in enumerate(self.top[:-1]):
            x = found[f"top_l.{2 * number}"] = stored(layer(x), E4M3)
        found["logit"] = self.top[-1](x) @ self.last_w + self.last_bias
        return {**found, "prediction": torch.sigmoid(found["logit"])}


def stored(y: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Values in their scale, as `kind`, saturated; int8 only of values that are not negative."""
    if kind is torch.int8:
        return (y.clamp(max=float(TOP)) + 0.5).floor().to(kind)
    return y.clamp(-E4M3_TOP, E4M3_TOP).to(kind)


def _check_names(folded: Any, scales: Scales) -> None:
    """ModelError unless the scales are of this network's tensors."""
    odd = sorted(scales.activations.keys() ^ set(tensor_names(folded)))
    if odd:
        raise ModelError(
            f"the scales do not fit the network's tensors: {len(odd)} differ, first {odd[0]!r:.60}"
        )
    if scales.corrections:
        raise ModelError("the scales correct biases, which those of model 'dlrm' do not")
