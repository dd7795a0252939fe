"""Mel filters, triangles of equal area on Slaney's mel scale; NumPy only.

The scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (a factor of 6.4 in 27 mels): Slaney,
Auditory Toolbox (1998), the default of librosa.filters.mel, which the reference calls.
"""

from __future__ import annotations

import numpy as np

HZ_PER_MEL = 200.0 / 3
LOG_FROM_HZ = 1000.0
LOG_FROM_MEL = LOG_FROM_HZ / HZ_PER_MEL
LOG_STEP = np.log(6.4) / 27.0


def mel_filters(sample_rate: int, n_fft: int, filters: int) -> np.ndarray:
    """float32 (filters, n_fft // 2 + 1), from 0 Hz to half of the sample rate."""
    highest = _mel(sample_rate / 2)
    edges = _hz(np.linspace(0.0, highest, filters + 2))
    bins = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * (2.0 / (right - left))).astype(np.float32)


def _mel(hz: float) -> float:
    if hz < LOG_FROM_HZ:
        return hz / HZ_PER_MEL
    return LOG_FROM_MEL + float(np.log(hz / LOG_FROM_HZ)) / LOG_STEP


def _hz(mel: np.ndarray) -> np.ndarray:
    logarithmic = LOG_FROM_HZ * np.exp(LOG_STEP * (mel - LOG_FROM_MEL))
    return np.where(mel < LOG_FROM_MEL, mel * HZ_PER_MEL, logarithmic)
