"""A small LibriSpeech as the reference's conversion leaves it: WAV files and a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE_HZ = 16000
# Of dev-clean's kind: lower case, an apostrophe, no digit.
WORDS = ["he", "was", "in", "a", "fevered", "state", "of", "mind", "owing", "to", "the", "blight", "wife's"]
TOO_LONG_S = 15.005


def write(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """`count` utterances of 0.5 to 2 s, after one that is too long for the benchmark; the task's options."""
    rng = np.random.default_rng(seed)
    entries = [_entry(folder, rng, 0, TOO_LONG_S)]
    entries += [_entry(folder, rng, number, rng.uniform(0.5, 2.0)) for number in range(1, count + 1)]
    (folder / "dev-clean-wav.json").write_text(json.dumps(entries, indent=2))
    return {"name": "librispeech", "path": str(folder), "count": count}


def _entry(folder: Path, rng: np.random.Generator, number: int, seconds: float) -> dict[str, Any]:
    """One utterance written as 16-bit PCM, and what sox and convert_librispeech.py say of it."""
    samples = int(seconds * RATE_HZ)
    name = f"dev-clean-wav/2277/149896/2277-149896-{number:04}.wav"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(samples) / RATE_HZ
    sound = 0.1 * rng.standard_normal(samples) + 0.2 * np.sin(2 * np.pi * rng.uniform(100, 3000) * times)
    soundfile.write(folder / name, sound * rng.uniform(0.3, 1.0), RATE_HZ, subtype="PCM_16")
    facts = {
        "channels": 1,
        "sample_rate": float(RATE_HZ),
        "bitrate": 16,
        "duration": samples / RATE_HZ,
        "num_samples": samples,
        "encoding": "Signed Integer PCM",
        "silent": False,
        "fname": name,
        "speed": 1,
    }
    return {
        "files": [facts],
        "original_duration": samples / RATE_HZ,
        "original_num_samples": samples,
        "transcript": " ".join(rng.choice(WORDS, rng.integers(2, 8))),
    }
