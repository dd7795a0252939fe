"""BERT-large with the SQuAD head: token rows in, start and end logits out; nothing is padded.

Names and shapes are those of the reference's model.pytorch, a state_dict of transformers 2.4.0's
BertForQuestionAnswering (language/bert, bert_tf_to_pytorch.py, bert_config.json). All samples of a batch lie
back to back, so embeddings, linear layers and norms run on tokens alone. Attention looks at one sample: on
CUDA in fp16 or bf16 by torch's variable-length flash attention, elsewhere by groups of like length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.models import ModelError, bert_fp8
from workers.models.bert_places import POSITIONS, Places
from workers.models.scales import Method, Scales

try:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10
except ImportError:
    varlen_attn = None

# bert_config.json of the reference, language/bert.
OPTIONS: dict[str, Any] = {"layers": 24, "hidden": 1024, "heads": 16, "intermediate": 4096, "vocab": 30522}
SEGMENTS = 2
NORM_EPSILON = 1e-12
INITIALIZER_RANGE = 0.02
# In the published file, and of no use to this head: what looks at [CLS] alone, and (in files saved by later
# versions of transformers) a buffer that counts.
UNUSED = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "bert.embeddings.position_ids")


class Embeddings(nn.Module):
    """Sum of three tables, normalised."""

    def __init__(self, hidden: int, vocab: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, hidden)
        self.position_embeddings = nn.Embedding(POSITIONS, hidden)
        self.token_type_embeddings = nn.Embedding(SEGMENTS, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=NORM_EPSILON)

    def forward(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rows int32 (R, 2) and int64 (R,) -> (R, hidden)."""
        words, segments = rows.unbind(1)
        total = self.word_embeddings(words) + self.token_type_embeddings(segments)
        return self.LayerNorm(total + self.position_embeddings(positions))


class SelfAttention(nn.Module):
    """Attention of every sample's rows to each other."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)

    def fold(self) -> None:
        """One product in place of three."""
        parts = (self.query, self.key, self.value)
        self.joined = nn.utils.skip_init(nn.Linear, self.query.in_features, 3 * self.query.out_features)
        self.joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        self.joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
        del self.query, self.key, self.value

    def forward(self, x: torch.Tensor, places: Places) -> torch.Tensor:
        """(R, hidden) -> (R, hidden)."""
        shape = (len(x), 3, self.heads, x.shape[1] // self.heads)
        if hasattr(self, "joined"):
            joined = self.joined(x).view(shape)
        else:
            parts = [self.query(x), self.key(x), self.value(x)]
            joined = torch.stack(parts, 1).view(shape)
        q, k, v = joined.unbind(1)
        if places.packed:
            # The longest sample is not known without waiting for the device. The most there can be costs
            # nothing: on an H100 384 instead of 512 gave the same 3,470 samples/s.
            found = varlen_attn(q, k, v, places.ends, places.ends, POSITIONS, POSITIONS)
        else:
            found = _grouped_attention(q, k, v, places)
        return found.reshape(x.shape)


def _grouped_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, places: Places) -> torch.Tensor:
    """Attention (R, heads, width) by groups of like length, padded to the longest of each."""
    found = torch.zeros_like(q)
    for index, present in places.groups:
        mask = None if present is None else present[:, None, None, :]
        padded_q, padded_k, padded_v = (part[index].transpose(1, 2) for part in (q, k, v))
        out = functional.scaled_dot_product_attention(padded_q, padded_k, padded_v, attn_mask=mask)
        out = out.transpose(1, 2)
        if present is None:
            found[index] = out
        else:
            found[index[present]] = out[present]
    return found


class Projected(nn.Module):
    """A linear layer's output added to what went past it, normalised: BertSelfOutput and BertOutput."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=NORM_EPSILON)

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        """(R, width) and (R, hidden) -> (R, hidden)."""
        return self.LayerNorm(self.dense(x) + past)


class Attention(nn.Module):
    """Self-attention and its output layer, under the published names."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.self = SelfAttention(hidden, heads)
        self.output = Projected(hidden, hidden)

    def forward(self, x: torch.Tensor, places: Places) -> torch.Tensor:
        """(R, hidden) -> (R, hidden)."""
        return self.output(self.self(x, places), x)


class Layer(nn.Module):
    """One layer of the encoder; GELU is the exact one ("gelu" in bert_config.json)."""

    def __init__(self, hidden: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, intermediate)})
        self.output = Projected(intermediate, hidden)

    def forward(self, x: torch.Tensor, places: Places) -> torch.Tensor:
        """(R, hidden) -> (R, hidden)."""
        x = self.attention(x, places)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class Bert(nn.Module):
    """The encoder alone."""

    def __init__(self, layers: int, hidden: int, heads: int, intermediate: int, vocab: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(hidden, vocab)
        stack = nn.ModuleList([Layer(hidden, heads, intermediate) for _ in range(layers)])
        self.encoder = nn.ModuleDict({"layer": stack})

    def forward(self, rows: torch.Tensor, places: Places) -> torch.Tensor:
        """Rows int32 (R, 2) -> (R, hidden)."""
        x = self.embeddings(rows, places.positions)
        for layer in self.encoder["layer"]:
            x = layer(x, places)
        return x


METHODS = bert_fp8.METHODS


class BertSquad(nn.Module):
    """Rows int32 (R, 2) of token id and segment, counts int64 (n,) -> float32 (R, 2), start and end logit."""

    agreement = staticmethod(bert_fp8.agreement)

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.bert = Bert(**options)
        self.qa_outputs = nn.Linear(options["hidden"], 2)
        for parameter in self.parameters():
            if parameter.ndim == 2 and not parameter.is_meta:
                nn.init.normal_(parameter, std=INITIALIZER_RANGE)

    @property
    def graphable(self) -> bool:
        """Whether attention is packed: by groups, the shapes follow the lengths."""
        weight = self.qa_outputs.weight
        return varlen_attn is not None and weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16)

    @property
    def host_counts(self) -> bool:
        """Groups are made on the host, from the counts."""
        return not self.graphable

    def load_published(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The published tensors without those that this head does not use."""
        return {name: tensor for name, tensor in state.items() if name not in UNUSED}

    def fold(self) -> None:
        """Query, key and value of every layer become one product."""
        for layer in self.bert.encoder["layer"]:
            layer.attention.self.fold()

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """See the class; rows beyond counts.sum() and counts of 0 at the end change nothing."""
        x = self.bert(rows, Places(counts, rows, self.graphable))
        return self.qa_outputs(x).float()

    def calibrated(
        self,
        batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
        method: Method = "max",
        correct: bool = False,
        heard: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Any]:
        """See workers.models; there is one method, and no bias is corrected."""
        return bert_fp8.calibrated(self, batches, heard)

    def quantised(self, scales: Scales, device: torch.device) -> nn.Module:
        """See workers.models."""
        return bert_fp8.Fp8Bert(self, scales, device)

    def scores(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """float32 (n, 512, 2): start and end logits of each sample, NaN beyond its rows."""
        rows, counts = batch
        return bert_fp8.scores(self(rows, counts), counts)


def build(options: dict[str, Any], channels_last: bool) -> nn.Module:
    """BERT for question answering; a row of tokens has no layout, so `channels_last` changes nothing."""
    for key, value in options.items():
        if type(value) is not int or value < 1:
            raise ModelError(
                f"model 'bert-large': option {key!r} must be a whole number above 0, not {value!r}"
            )
    if options["hidden"] % options["heads"]:
        raise ModelError("model 'bert-large': option 'hidden' must be a multiple of 'heads'")
    return BertSquad(options)
