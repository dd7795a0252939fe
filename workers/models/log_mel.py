"""Log-mel features of many waveforms at once, as RNN-T's reference computes them for one (parts/features.py).

Waveforms lie back to back and stay so: no sample is padded to the length of another. All of it is float32,
whatever the precision of the network is.
"""

from __future__ import annotations

import numpy as np
import torch

from workers.models.mel_filters import mel_filters

# configs/rnnt.toml, [input_eval], at 16 kHz: a window of 20 ms every 10 ms, 512 points, 80 mels.
SAMPLE_RATE_HZ = 16000
HOP = 160
WINDOW = 2 * HOP
N_FFT = 512
MELS = 80
SPLICED = 3
FEATURES = MELS * SPLICED
PREEMPHASIS = 0.97
# The reference adds its dither (1e-5) as the power it would have on average, so nothing in it is random.
DITHER_POWER = 1e-5**2
LOG_FLOOR = 1e-20
STD_FLOOR = 1e-5
# Frames transformed together: 64 Ki of them take 0.25 GB in passing.
CHUNK_FRAMES = 1 << 16


class LogMel:
    """No nn.Module: its window and filters are no weights, and must not follow the network to fp16."""

    def __init__(self) -> None:
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, waveforms: torch.Tensor, counts: torch.Tensor, totals: Totals) -> torch.Tensor:
        """(R,) and int64 (n,) to spliced, normalised float32 (spliced_lengths(counts).sum(), 240)."""
        frames, spliced = counts // HOP + 1, spliced_lengths(counts)
        log_mel = self._log_mel(_laid_out(waveforms, counts, frames, totals))
        first = torch.cumsum(frames + 1, 0) - (frames + 1)  # a frame between two waveforms belongs to none
        owner = torch.repeat_interleave(spliced, output_size=totals.spliced)
        turn = _within(spliced, owner, totals.spliced)
        together = []
        for offset in range(SPLICED):
            frame = turn * SPLICED + offset
            known = frame < frames[owner]
            rows = log_mel[torch.where(known, first[owner] + frame, 0)]
            together.append(rows * known.unsqueeze(1))  # beyond the last frame there are zeros
        return _normalised(torch.cat(together, 1), spliced, owner)

    def _log_mel(self, laid_out: torch.Tensor) -> torch.Tensor:
        """Log-mel of every frame of the laid out blocks (blocks, HOP), those between two waveforms too."""
        window, filters = self._tables_on(laid_out.device)
        frames = laid_out.flatten().unfold(0, WINDOW, HOP)
        out = torch.empty((len(frames), MELS), device=laid_out.device)
        for start in range(0, len(frames), CHUNK_FRAMES):
            chunk = frames[start : start + CHUNK_FRAMES]
            spectrum = torch.fft.rfft(chunk * window, N_FFT)
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag).add_(DITHER_POWER)
            torch.matmul(power, filters, out=out[start : start + CHUNK_FRAMES])
        return out.add_(LOG_FLOOR).log_()

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._tables:
            window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float32, device=device)
            filters = torch.from_numpy(mel_filters(SAMPLE_RATE_HZ, N_FFT, MELS).T.copy()).to(device)
            self._tables[device] = window, filters
        return self._tables[device]


class Totals:
    """What the host must know of a batch to give its tensors a size; `counts` int64 (n,)."""

    def __init__(self, counts: np.ndarray) -> None:
        self.blocks = int((counts // HOP + 2).sum())
        self.spliced = int(spliced_lengths(counts).sum())


def spliced_lengths(counts: np.ndarray) -> np.ndarray:
    """Spliced frames of a waveform of so many samples; NumPy or torch."""
    return ((counts + HOP - 1) // HOP + SPLICED - 1) // SPLICED


def _laid_out(
    waveforms: torch.Tensor, counts: torch.Tensor, frames: torch.Tensor, totals: Totals
) -> torch.Tensor:
    """Each waveform with its reflection at both ends, cut into blocks of a hop: float32 (blocks, HOP).

    Frame k is then blocks k and k + 1: the window is zero in the rest of the 512 points, around which the
    reference centres it.
    """
    starts = torch.cumsum(counts, 0) - counts
    before = torch.roll(waveforms, 1)
    before[starts] = 0.0
    emphasised = torch.sub(waveforms, before, alpha=PREEMPHASIS)
    blocks = frames + 1
    owner = torch.repeat_interleave(blocks, output_size=totals.blocks)
    hop = torch.arange(HOP, device=waveforms.device)
    place = (_within(blocks, owner, totals.blocks) - 1).unsqueeze(1) * HOP + hop
    last = (counts[owner] - 1).unsqueeze(1)
    # Reflected at 0, then at the last sample: last - |last - |place||, in place because it is long.
    place.abs_().neg_().add_(last).abs_().neg_().add_(last).clamp_(min=0)
    return emphasised[place.add_(starts[owner].unsqueeze(1))]


def _within(lengths: torch.Tensor, owner: torch.Tensor, total: int) -> torch.Tensor:
    """0, 1, 2, ... within each of several runs of `lengths`."""
    starts = torch.cumsum(lengths, 0) - lengths
    return torch.arange(total, device=lengths.device) - starts[owner]


def _normalised(features: torch.Tensor, lengths: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit deviation (of n - 1) of every feature over its own waveform."""
    mean = torch.segment_reduce(features, "mean", lengths=lengths, axis=0, unsafe=True)
    features = features - mean[owner]
    squares = torch.segment_reduce(features.square(), "sum", lengths=lengths, axis=0, unsafe=True)
    deviation = (squares / (lengths - 1).clamp(min=1).unsqueeze(1)).sqrt_().add_(STD_FLOOR)
    return features.div_(deviation[owner])
