"""RNN-T as the reference's pytorch/model_separable_rnnt.py: waveforms in, tokens out.

Log-mel features, an encoder of 2 + 3 LSTM layers with a halving of time between them, a prediction network of
2 layers over the tokens so far, and a joint network that scores each pair; blank is the last of 29 classes.
The encoder runs packed: it computes no frame that an utterance does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from workers.models import ModelError
from workers.models.log_mel import FEATURES, LogMel, Totals, spliced_lengths
from workers.models.rnnt_decode import GreedyDecoder

# configs/rnnt.toml, [rnnt]. Tests shrink the three sizes. `lanes` is how many utterances are decoded side by
# side, `decode_graph` whether a CUDA device runs the steps of decoding as a graph.
OPTIONS = {
    "encoder_n_hidden": 1024,
    "pred_n_hidden": 320,
    "joint_n_hidden": 512,
    "lanes": 1024,
    "decode_graph": True,
}
CLASSES = 29
PRE_LAYERS, POST_LAYERS, PREDICTION_LAYERS = 2, 3, 2
STACKED = 2
FORGET_GATE_BIAS = 1.0
# Gains on torch's initial weights, found by trial: with these, seeded weights find about as many tokens in
# made up sounds as people say (14.9 characters a second in dev-clean, 0.89 for each stacked frame), and not
# the same one for ever. Weights as torch leaves them find none, or 30 in each frame.
ENCODER_GAINS = {"weight_ih": 4.0, "weight_hh": 0.5}
PREDICTION_GAINS = {"weight_ih": 8.0, "weight_hh": 4.0}
ENCODED_GAIN, PREDICTED_GAIN, SCORES_GAIN = 4.0, 20.0, 10.0
BLANK_BIAS = 3.05


class Rnnt(nn.Module):
    """Waveforms (R,) or (R, 1) and counts (n,) to tokens int64 (total,) and their counts (n,)."""

    graphable = False  # the host asks whether all is said, and how much it was
    host_counts = True  # packing needs the lengths there

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        encoder, prediction = options["encoder_n_hidden"], options["pred_n_hidden"]
        self.encoder = Encoder(encoder)
        self.prediction = Prediction(prediction)
        self.joint = Joint(encoder, prediction, options["joint_n_hidden"])
        self._features = LogMel()
        self._lanes: int = options["lanes"]
        self._decode_graph: bool = options["decode_graph"]
        self._decoders: dict[int, GreedyDecoder] = {}

    def load_published(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The reference's renaming (pytorch_SUT.py): of the joint network, and no tables of the features."""
        kept = {k: v for k, v in state.items() if not k.startswith("audio_preprocessor.featurizer.")}
        return {re.sub("^joint_net", "joint.net", key): value for key, value in kept.items()}

    def forward(self, waveforms: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Longest first inside, in the caller's order outside."""
        held = counts.cpu().numpy()
        counts = torch.from_numpy(held).to(waveforms.device)
        heard = held > 0  # what pads a batch has no audio, and no token
        if not heard.any():
            return torch.zeros_like(counts[:0]), torch.zeros_like(counts)
        if not heard.all():
            kept = torch.from_numpy(np.flatnonzero(heard)).to(counts.device)
            tokens, found = self._transcribed(waveforms, counts[kept], held[heard])
            return tokens, torch.zeros_like(counts).index_copy_(0, kept, found)
        return self._transcribed(waveforms, counts, held)

    def _transcribed(
        self, waveforms: torch.Tensor, counts: torch.Tensor, held: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`held` is `counts` on the host, none of them zero."""
        device = counts.device
        rows = waveforms[: int(held.sum())].reshape(-1).float()
        features = self._features(rows, counts, Totals(held))
        lengths = spliced_lengths(held)
        order = np.argsort(-lengths, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        offsets = np.cumsum(lengths) - lengths
        packing = Packing(lengths[order], device)
        packed = features[packing.rows(torch.from_numpy(offsets[order]).to(device))]
        encoded, stacked = self.encoder(packed.to(self.joint.net[0].weight.dtype), packing)
        decoder = self._decoder(len(held), device)
        self.joint.encoded(encoded, decoder.allot(len(encoded), len(stacked.batch_sizes)))
        graph = self._decode_graph and device.type == "cuda"
        return decoder.decode(stacked.starts, stacked.lengths, torch.from_numpy(rank).to(device), graph)

    def _decoder(self, count: int, device: torch.device) -> GreedyDecoder:
        """One for each power of two: its buffers, and what a graph has recorded of them, stay as they are."""
        capacity = 1 << (count - 1).bit_length()
        known = self._decoders.get(capacity)
        if known is None or known.device != device:
            lanes = min(self._lanes, capacity)
            known = GreedyDecoder(self.prediction, self.joint, lanes, capacity)
            self._decoders[capacity] = known
        return known


class Packing:
    """Utterances of falling `lengths`, packed as torch does it: frame 0 of all, frame 1 of those with one."""

    def __init__(self, lengths: np.ndarray, device: torch.device) -> None:
        at_least = np.cumsum(np.bincount(lengths)[::-1])[::-1]  # how many have this many frames or more
        self.batch_sizes = torch.from_numpy(at_least[1:].copy())
        self.total = int(lengths.sum())
        self.host_lengths = lengths
        self.lengths = torch.from_numpy(lengths).to(device)
        self.sizes = self.batch_sizes.to(device)
        self.starts = torch.cumsum(self.sizes, 0) - self.sizes
        self.frame = torch.repeat_interleave(self.sizes, output_size=self.total)
        self.utterance = torch.arange(self.total, device=device) - self.starts[self.frame]

    def rows(self, offsets: torch.Tensor) -> torch.Tensor:
        """Where each packed frame is when utterances lie one after the other from `offsets`."""
        return offsets[self.utterance] + self.frame


class Encoder(nn.Module):
    """LSTM layers, pairs of frames joined to one, LSTM layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.pre_rnn = _lstm(FEATURES, hidden, PRE_LAYERS)
        self.post_rnn = _lstm(STACKED * hidden, hidden, POST_LAYERS)

    def forward(self, packed: torch.Tensor, packing: Packing) -> tuple[torch.Tensor, Packing]:
        """(frames, 240) to (stacked frames, hidden), each packed as the packing beside it says."""
        x, _ = self.pre_rnn["lstm"](_packed(packed, packing))
        stacked = Packing(-(-packing.host_lengths // STACKED), packed.device)
        first, second = stacked.frame * STACKED, stacked.frame * STACKED + 1
        present = second < packing.lengths[stacked.utterance]  # else it is zero, as in the reference
        second = torch.where(present, second, first)
        pairs = [
            x.data[packing.starts[first] + stacked.utterance],
            x.data[packing.starts[second] + stacked.utterance] * present.unsqueeze(1),
        ]
        y, _ = self.post_rnn["lstm"](_packed(torch.cat(pairs, 1), stacked))
        return y.data, stacked


class Prediction(nn.Module):
    """An LSTM over the tokens so far, one token at a time."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES - 1, hidden)
        self.dec_rnn = _lstm(hidden, hidden, PREDICTION_LAYERS)

    def first(self, count: int) -> torch.Tensor:
        """The state before any token, as a step on zeros leaves it: hidden of both layers, then cells."""
        hidden = self.embed.weight.shape[1]
        state = self.embed.weight.new_zeros(count, 2 * PREDICTION_LAYERS * hidden)
        return self._next(state[:, :hidden], state)

    def step(self, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The state after one more token of each."""
        return self._next(self.embed(tokens), state)

    def _next(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        held = state.chunk(2 * PREDICTION_LAYERS, 1)
        hidden, cells = [], []
        for layer, weights in enumerate(self.dec_rnn["lstm"].all_weights):
            x, cell = torch.lstm_cell(x, (held[layer], held[PREDICTION_LAYERS + layer]), *weights)
            hidden.append(x)
            cells.append(cell)
        return torch.cat([*hidden, *cells], 1)


class Joint(nn.Module):
    """Scores of a frame and a token history: the sum of a part of each, then ReLU, then one layer.

    The reference joins the two and multiplies once; taken apart, a frame's part is computed once for all
    histories.
    """

    def __init__(self, encoder: int, prediction: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(encoder + prediction, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, CLASSES)
        )
        self._split = encoder

    def seed(self) -> None:
        """Gains, and scores without a mean, which else would name one token whatever is heard."""
        first, last = self.net[0].weight, self.net[3].weight
        first[:, : self._split].mul_(ENCODED_GAIN)
        first[:, self._split :].mul_(PREDICTED_GAIN)
        last.sub_(last.mean(1, keepdim=True)).mul_(SCORES_GAIN)
        self.net[3].bias[-1] += BLANK_BIAS

    def encoded(self, frames: torch.Tensor, out: torch.Tensor) -> None:
        """The part of encoded frames, bias included."""
        torch.addmm(self.net[0].bias, frames, self.net[0].weight[:, : self._split].T, out=out)

    def predicted(self, state: torch.Tensor) -> torch.Tensor:
        """The part of a token history: of the hidden state of its last layer."""
        hidden = state.chunk(2 * PREDICTION_LAYERS, 1)[PREDICTION_LAYERS - 1]
        return functional.linear(hidden, self.net[0].weight[:, self._split :])

    def scores(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Of 29 classes, blank last."""
        scores: torch.Tensor = self.net[3](functional.relu(encoded + predicted))
        return scores


def build(options: Mapping[str, Any], channels_last: bool) -> Rnnt:
    """An RNN-T whose seeded weights talk about as much as people do; channels_last means nothing to it."""
    for name in ("encoder_n_hidden", "pred_n_hidden", "joint_n_hidden", "lanes"):
        if type(options[name]) is not int or options[name] < 1:
            raise ModelError(f"rnnt: option {name!r} must be a whole number above 0, not {options[name]!r}")
    module = Rnnt(options)
    _seed(module)
    return module


@torch.no_grad()
def _seed(module: Rnnt) -> None:
    """The reference's forget gate bias on torch's initial weights, and the gains above."""
    for rnn, gains in (
        (module.encoder.pre_rnn, ENCODER_GAINS),
        (module.encoder.post_rnn, ENCODER_GAINS),
        (module.prediction.dec_rnn, PREDICTION_GAINS),
    ):
        hidden = rnn["lstm"].hidden_size
        for name, value in rnn["lstm"].named_parameters():
            if name.startswith("bias"):
                value[hidden : 2 * hidden] = FORGET_GATE_BIAS if name.startswith("bias_ih") else 0.0
            else:
                value.mul_(gains[name[: len("weight_ih")]])
    module.joint.seed()


def _lstm(inputs: int, hidden: int, layers: int) -> nn.ModuleDict:
    """Under the name that it has in the published checkpoint."""
    return nn.ModuleDict({"lstm": nn.LSTM(inputs, hidden, layers)})


def _packed(data: torch.Tensor, packing: Packing) -> nn.utils.rnn.PackedSequence:
    return nn.utils.rnn.PackedSequence(data, packing.batch_sizes)
