"""Whisper through CTranslate2: waveforms at 16 kHz in, tokens of the librispeech task out.

Features are those of Whisper's own audio.py: 80 mels of the waveform padded to 30 s, NumPy only.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import ctranslate2
import numpy as np
from tokenizers import Tokenizer

from workers.models.mel_filters import mel_filters
from workers.tasks.librispeech import SAMPLE_RATE_HZ, VOCABULARY

N_FFT, HOP = 400, 160
WINDOW_S = 30
SAMPLES = WINDOW_S * SAMPLE_RATE_HZ
FRAMES = SAMPLES // HOP
# Whisper clips eight decades below the loudest, then brings the rest to about -1..1.
DECADES = 8.0
POWER_FLOOR = 1e-10
# What whisper's command line and faster-whisper search with by default, and how long an answer may get there.
BEAMS = 5
MOST_TOKENS = 224
COMPUTE_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
TOKENIZER_FILE = "tokenizer.json"
VERSION = str(ctranslate2.__version__)


class Whisper:
    """A folder of CTranslate2 weights on one device; RuntimeError or ValueError when it does not load."""

    def __init__(self, folder: Path, device: str, precision: str, threads: int) -> None:
        kind = COMPUTE_TYPES[precision]
        self._model = ctranslate2.models.Whisper(
            str(folder), device=device, compute_type=kind, intra_threads=threads
        )
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        english = ["<|en|>", "<|transcribe|>"] if self._model.is_multilingual else []
        self._prompt = ["<|startoftranscript|>", *english, "<|notimestamps|>"]
        self._filters = mel_filters(SAMPLE_RATE_HZ, N_FFT, self._model.n_mels)

    def transcribe(self, waveforms: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Waveforms float32 (samples,) to tokens int64 (total,) and their counts int64 (n,)."""
        features = np.stack([log_mel(waveform, self._filters) for waveform in waveforms])
        found = self._model.generate(
            ctranslate2.StorageView.from_array(features),
            [self._prompt] * len(waveforms),
            beam_size=BEAMS,
            max_length=MOST_TOKENS,
        )
        texts = [self._tokenizer.decode(result.sequences_ids[0]) for result in found]
        spelled = [spell(text) for text in texts]
        counts = np.array([len(tokens) for tokens in spelled], np.int64)
        return np.concatenate(spelled), counts


def log_mel(waveform: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """float32 (mels, 3000)."""
    padded = np.zeros(SAMPLES + N_FFT, np.float32)
    heard = waveform[:SAMPLES]
    middle = padded[N_FFT // 2 :]
    middle[: len(heard)] = heard
    padded[: N_FFT // 2] = middle[N_FFT // 2 : 0 : -1]  # reflected at the start; the end reflects silence
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][:FRAMES]
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    mel = np.log10(np.maximum(filters @ power.T.astype(np.float32), POWER_FLOOR))
    return ((np.maximum(mel, mel.max() - DECADES) + 4.0) / 4.0).astype(np.float32)


def spell(text: str) -> np.ndarray:
    """Text in the task's alphabet, as tokens int64: lower case, accents off, anything else a space."""
    plain = unicodedata.normalize("NFKD", text.replace("’", "'")).lower()
    kept = "".join(c if c in VOCABULARY else " " for c in plain if not unicodedata.combining(c))
    return np.array([VOCABULARY.index(c) for c in " ".join(kept.split())], np.int64)
