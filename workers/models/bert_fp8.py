"""BERT-large in FP8: the network of bert.py, quantised, the way to its scales, and how alike they answer.

The four products of every layer are e4m3 by e4m3. Weights and activations have one static scale a tensor:
e4m3 is floating point, so a scale a channel would gain nothing before magnitudes differ by more than 2^8.
What stands between the products is computed in fp32 from fp16 and written in e4m3: on CUDA by the Triton
kernels of bert_kernels, on a CPU with the same rounding in plain torch (slow, for tests and calibration).

Seeded weights tell nothing of FP8's accuracy: after some layers all tokens of a sample answer alike, and what
is left is rounding, on which even fp16 agrees with fp32 no more than now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.models import ModelError, bert_plain, open_kernels
from workers.models.bert_places import POSITIONS, Places
from workers.models.bert_plain import TOP
from workers.models.quantise import Observe, activation_scales
from workers.models.scales import Method, Scales

# e4m3's error is a share of the value, so to clip the largest gains the others nothing, but for those below
# 2^-15 of it.
METHODS: tuple[Method, ...] = ("max",)
# accuracy-squad.py of the reference, max_answer_length.
LONGEST_ANSWER = 30
# Of the first GPUs with e4m3 products.
CAPABILITY = (8, 9)
# Rows and columns of _scaled_mm, and what tl.dot takes.
STEP = 16
Heard = Callable[[int, int], None]  # told how many steps are done, of how many


def products(layer: Any) -> dict[str, nn.Linear]:
    """The four products of a folded layer."""
    return {
        "qkv": layer.attention.self.joined,
        "out": layer.attention.output.dense,
        "ffn1": layer.intermediate["dense"],
        "ffn2": layer.output.dense,
    }


def named_products(folded: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Every product of the network in order; an activation is named for the product that it goes into."""
    for number, layer in enumerate(folded.bert.encoder["layer"]):
        for part, linear in products(layer).items():
            yield f"layer.{number}.{part}", linear


class Product(nn.Module):
    """e4m3 (R, K) -> fp16 (R, N), added up in fp32."""

    weight: torch.Tensor
    weight_scale: torch.Tensor
    scale: torch.Tensor
    inverse: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: nn.Linear, scale: float, device: torch.device) -> None:
        super().__init__()
        weight = linear.weight.detach().to(device, torch.float32)
        own = (weight.abs().amax() / TOP).clamp(min=1e-12).reshape(1)
        self.register_buffer("weight", bert_plain.quantise(weight, 1 / own))
        self.register_buffer("weight_scale", own)
        self.register_buffer("scale", torch.full((1,), scale, device=device))
        self.register_buffer("inverse", 1 / self.scale)
        self.register_buffer("bias", linear.bias.detach().to(device, torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if not x.is_cuda:
            y = functional.linear(x.float(), self.weight.float()) * (self.scale * self.weight_scale)
            return (y + self.bias.float()).half()
        # fast_accum: the sums stay in the tensor cores, with fewer bits than fp32: on an H100 qkv takes 71 us
        # instead of 79. The second factor must be column-major, which the transpose is.
        return torch._scaled_mm(
            x,
            self.weight.t(),
            self.scale,
            self.weight_scale,
            bias=self.bias,
            out_dtype=torch.float16,
            use_fast_accum=True,
        )


class Fp8Layer(nn.Module):
    """One layer of the encoder."""

    def __init__(self, layer: Any, scales: dict[str, float], device: torch.device) -> None:
        super().__init__()
        parts = {part: Product(linear, scales[part], device) for part, linear in products(layer).items()}
        self.qkv, self.out = parts["qkv"], parts["out"]
        self.ffn1, self.ffn2 = parts["ffn1"], parts["ffn2"]
        self.norm1, self.norm2 = _half(layer.attention.output.LayerNorm), _half(layer.output.LayerNorm)


def _half(norm: nn.LayerNorm) -> nn.LayerNorm:
    """A copy in fp16."""
    made = nn.LayerNorm(norm.normalized_shape, norm.eps, device=norm.weight.device)
    made.load_state_dict(norm.state_dict())
    return made.half().requires_grad_(False)


class Fp8Bert(nn.Module):
    """Rows int32 (R, 2), counts int64 (n,) -> float32 (R, 2), as bert.BertSquad."""

    weight_data_types = "fp8 e4m3 (encoder), fp16 (embeddings, norms, head)"
    numbers = (
        f"Activations: FP8 e4m3 before each product, one static scale a tensor, saturating at {TOP:.0f}.",
        f"Weights: FP8 e4m3, one scale a tensor: its largest absolute value is {TOP:.0f}.",
        "Sums: fp32, on a GPU as far as its tensor cores keep them (use_fast_accum); biases: fp16.",
        "Embeddings, attention, residuals and the head: fp16; sums, softmax, norms and GELU: fp32.",
    )

    def __init__(self, folded: Any, scales: Scales, device: torch.device) -> None:
        super().__init__()
        _check_names(folded, scales)
        self.kernels = _kernels(folded, device) if device.type == "cuda" else None
        layers = folded.bert.encoder["layer"]
        self.heads: int = layers[0].attention.self.heads
        self.layers = nn.ModuleList()
        for number, layer in enumerate(layers):
            own = {part: scales.activations[f"layer.{number}.{part}"] for part in products(layer)}
            self.layers.append(Fp8Layer(layer, own, device))
        old = folded.bert.embeddings
        for name in ("word", "token_type", "position"):
            self.register_buffer(name, getattr(old, f"{name}_embeddings").weight.detach().half())
        self.norm = _half(old.LayerNorm)
        self.register_buffer("head_weight", folded.qa_outputs.weight.detach().half())
        self.register_buffer("head_bias", folded.qa_outputs.bias.detach().half())
        self.eval().to(device)

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """See the class; rows beyond counts.sum() and counts of 0 at the end change nothing."""
        run: Any = bert_plain if self.kernels is None else self.kernels
        places = Places(counts, rows, packed=True)
        tables = (self.word, self.token_type, self.position)
        layers: list[Any] = list(self.layers)
        x, q = run.embed_norm(rows, places.positions, tables, self.norm, layers[0].qkv.inverse)
        following = [layer.qkv.inverse for layer in layers[1:]] + [None]
        for layer, last in zip(layers, following, strict=True):
            found = run.attend(layer.qkv(q), places.ends, self.heads, layer.out.inverse)
            x, q = run.add_norm(layer.out(found), x, layer.norm1, layer.ffn1.inverse)
            wide = run.gelu(layer.ffn1(q), layer.ffn2.inverse)
            x, q = run.add_norm(layer.ffn2(wide), x, layer.norm2, last)
        if not x.is_cuda:  # CPUs are slow in half precision
            return functional.linear(x.float(), self.head_weight.float(), self.head_bias.float())
        return functional.linear(x, self.head_weight, self.head_bias).float()

    def scores(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """See `scores` below."""
        rows, counts = batch
        return scores(self(rows, counts.to(rows.device)), counts)


def _kernels(folded: Any, device: torch.device) -> Any:
    """The Triton kernels, imported only where there is a GPU: CPU installs have no Triton."""
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        has, needs = (".".join(map(str, one)) for one in (found, CAPABILITY))
        raise ModelError(f"a GPU computes in FP8 from compute capability {needs} on; this one has {has}")
    layer = folded.bert.encoder["layer"][0]
    widths = [linear.out_features for linear in products(layer).values()]
    width = layer.attention.self.joined.in_features // layer.attention.self.heads
    if any(one % STEP for one in widths) or width < STEP or width & (width - 1):
        raise ModelError(
            f"on a GPU options hidden and intermediate must be multiples of {STEP}, and hidden / heads a "
            f"power of 2 from {STEP} on"
        )
    return open_kernels("bert_kernels")


def _check_names(folded: Any, scales: Scales) -> None:
    """ModelError unless the scales are of this network's tensors."""
    names = {name for name, _ in named_products(folded)}
    if scales.activations.keys() != names:
        odd = sorted(scales.activations.keys() ^ names)
        raise ModelError(
            f"the scales do not fit the network's tensors: {len(odd)} differ, first {odd[0]!r:.60}"
        )
    if scales.corrections:
        raise ModelError("the scales correct biases, which nothing of this network's precision fp8 does")


# ---- the way to the scales ----


def calibrated(
    folded: Any, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], heard: Heard
) -> dict[str, Any]:
    """`activations` and `corrections` of Scales, from batches of rows and counts; no bias is corrected."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        heard(done, len(batches))

    def run(batch: tuple[torch.Tensor, torch.Tensor], observe: Observe) -> torch.Tensor:
        def note(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
            return lambda module, given: observe(name, given[0].abs())

        hooks = [linear.register_forward_pre_hook(note(name)) for name, linear in named_products(folded)]
        try:
            return folded.scores(batch)
        finally:
            for hook in hooks:
                hook.remove()

    found = activation_scales(run, batches, "max", step, TOP)
    return {"activations": found, "corrections": {}}


# ---- how alike ----


def scores(logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Rows (R, 2) of start and end logits -> float32 (n, POSITIONS, 2), NaN beyond its rows."""
    lengths = counts.tolist()
    found = logits.new_full((len(lengths), POSITIONS, 2), torch.nan)
    for row, own in zip(found, logits[: sum(lengths)].split(lengths), strict=True):
        row[: len(own)] = own
    return found


def best_span(logits: torch.Tensor) -> tuple[int, int]:
    """First and last token of the highest sum of a start and an end logit, of one sample (L, 2).

    As accuracy-squad.py takes it but for this: tokens of the question and of [SEP] may be an answer too.
    """
    total = logits[:, None, 0] + logits[None, :, 1]
    ahead = torch.ones_like(total, dtype=torch.bool).triu()
    outside = ~ahead | ahead.triu(LONGEST_ANSWER)
    return divmod(int(total.masked_fill(outside, -torch.inf).argmax()), len(logits))


def agreement(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Of two `scores`: the share of samples with the same best span (top1), start and end.

    `cosine` and `error` are a sample's, of its logits less their mean: a softmax does not see that.
    """
    same: dict[str, list[float]] = {name: [] for name in ("top1", "start", "end", "cosine", "error")}
    for one, other in zip(found.double(), expected.double(), strict=True):
        own = ~other[:, 0].isnan()
        a, b = one[own], other[own]
        start, end = (a.argmax(0) == b.argmax(0)).tolist()
        a0, b0 = (a - a.mean(0)).flatten(), (b - b.mean(0)).flatten()
        for name, value in (
            ("top1", best_span(a) == best_span(b)),
            ("start", start),
            ("end", end),
            ("cosine", functional.cosine_similarity(a0, b0, 0)),
            ("error", (a0 - b0).norm() / b0.norm().clamp(min=1e-12)),
        ):
            same[name].append(float(value))
    return {"samples": float(len(found)), **{name: sum(all_) / len(all_) for name, all_ in same.items()}}
