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
# Of seeded weights: see `_seed`. Gates are open or shut at 10, and a unit that is driven by -4 times itself
# swings between -0.75 and 0.76. Tokens score within 10 of each other, blank 12 or far less.
OPEN, SWING, START = 10.0, -4.0, 1.0
MIDDLE = 0.7
BLANK_BIAS, BLANK_SWING = 12.0, -40.0
SCORES_GAIN = 10.0


class Rnnt(nn.Module):
    """Waveforms (R,) or (R, 1) and counts (n,) to tokens int64 (total,) and their counts (n,)."""

    graphable = False  # the host asks whether all is said, and how much it was
    host_counts = True  # packing needs the lengths there
    side_by_side = True  # steps of an LSTM and of decoding are small, and most of the device waits for them

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        encoder, prediction = options["encoder_n_hidden"], options["pred_n_hidden"]
        self.encoder = Encoder(encoder)
        self.prediction = Prediction(prediction)
        self.joint = Joint(encoder, prediction, options["joint_n_hidden"])
        self._features = LogMel()
        self._lanes: int = options["lanes"]
        self._decode_graph: bool = options["decode_graph"]
        self._decoders: dict[tuple[int, int], GreedyDecoder] = {}

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
        """One for each power of two and stream: its buffers and what a graph recorded of them stay."""
        capacity = 1 << (count - 1).bit_length()
        stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
        known = self._decoders.get((capacity, stream))
        if known is None or known.device != device:
            lanes = min(self._lanes, capacity)
            known = GreedyDecoder(self.prediction, self.joint, lanes, capacity)
            self._decoders[capacity, stream] = known
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
        state = self.embed.weight.new_zeros(2 * PREDICTION_LAYERS, count, self.embed.weight.shape[1])
        return self._next(state[0], state)

    def step(self, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The state after one more token of each."""
        return self._next(self.embed(tokens), state)

    def _next(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        hidden, cells = [], []
        for layer, weights in enumerate(self.dec_rnn["lstm"].all_weights):
            x, cell = torch.lstm_cell(x, (state[layer], state[PREDICTION_LAYERS + layer]), *weights)
            hidden.append(x)
            cells.append(cell)
        return torch.stack([*hidden, *cells])


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
        """Two hidden units that see whether both swinging units are up, or both down; else blank wins."""
        first, last = self.net[0], self.net[3]
        last.weight.sub_(last.weight.mean(1, keepdim=True)).mul_(SCORES_GAIN)
        for unit, sign in ((0, 1.0), (1, -1.0)):
            first.weight[unit] = 0.0
            first.weight[unit, [0, self._split]] = sign
            first.bias[unit] = -MIDDLE
            last.weight[:, unit] = 0.0
            last.weight[-1, unit] = BLANK_SWING
        last.bias[-1] = BLANK_BIAS

    def encoded(self, frames: torch.Tensor, out: torch.Tensor) -> None:
        """The part of encoded frames, bias included."""
        torch.addmm(self.net[0].bias, frames, self.net[0].weight[:, : self._split].T, out=out)

    def predicted(self, state: torch.Tensor) -> torch.Tensor:
        """The part of a token history: of the hidden state of its last layer."""
        return functional.linear(state[PREDICTION_LAYERS - 1], self.net[0].weight[:, self._split :])

    def scores(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Of 29 classes, blank last."""
        scores: torch.Tensor = self.net[3](functional.relu(encoded + predicted))
        return scores


def build(options: Mapping[str, Any], channels_last: bool) -> Rnnt:
    """An RNN-T whose seeded weights talk at people's pace; channels_last means nothing to it."""
    for name, least in (("encoder_n_hidden", 2), ("pred_n_hidden", 2), ("joint_n_hidden", 3), ("lanes", 1)):
        if type(options[name]) is not int or options[name] < least:
            raise ModelError(f"rnnt: option {name!r} is a whole number from {least}, not {options[name]!r}")
    module = Rnnt(options)
    _seed(module)
    return module


@torch.no_grad()
def _seed(module: Rnnt) -> None:
    """The reference's forget gate bias on torch's initial weights, and a network that talks at people's pace.

    Random weights say nothing, or 30 tokens in each frame, and their speed would mean nothing. One unit of
    the encoder changes sign with every frame, one of the prediction network with every token, and blank wins
    where the two differ: one token for each encoded frame, 16.7 a second (14.9 characters in dev-clean).
    """
    for rnn in (module.encoder.pre_rnn, module.encoder.post_rnn, module.prediction.dec_rnn):
        hidden = rnn["lstm"].hidden_size
        for name, value in rnn["lstm"].named_parameters():
            if name.startswith("bias"):
                value[hidden : 2 * hidden] = FORGET_GATE_BIAS if name.startswith("bias_ih") else 0.0
    _swing(module.encoder.post_rnn["lstm"])
    _swing(module.prediction.dec_rnn["lstm"])
    module.joint.seed()


def _swing(lstm: nn.LSTM) -> None:
    """Let the first unit of the last layer change its sign at each step."""
    input_weights, hidden_weights, bias, other_bias = lstm.all_weights[-1]
    into, forget, candidate, out = (gate * lstm.hidden_size for gate in range(4))
    for gate, value in ((into, OPEN), (forget, -OPEN), (candidate, START), (out, OPEN)):
        input_weights[gate] = hidden_weights[gate] = other_bias[gate] = 0.0
        bias[gate] = value
    hidden_weights[candidate, 0] = SWING


def _lstm(inputs: int, hidden: int, layers: int) -> nn.ModuleDict:
    """Under the name that it has in the published checkpoint."""
    return nn.ModuleDict({"lstm": nn.LSTM(inputs, hidden, layers)})


def _packed(data: torch.Tensor, packing: Packing) -> nn.utils.rnn.PackedSequence:
    return nn.utils.rnn.PackedSequence(data, packing.batch_sizes)
