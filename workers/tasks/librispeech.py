"""LibriSpeech dev-clean as RNN-T's reference takes it: the sample is the waveform, float32 at 16 kHz.

The folder is what the reference's scripts (speech_recognition/rnnt, run.sh stages 1 and 2) leave behind:
dev-clean-wav/ with WAV files below, and dev-clean-wav.json beside it, whose order is that of the samples.
Other speech, for a trial: a `manifest` that is no .json is a transcription of CMU Sphinx, a line for each WAV
file beside it. Log-mel features and all that follows are the model's, inside the clock.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import WARM_UP_SEED, TaskError, check_options
from workers.tasks.sources import identity_of, listing_digest, read_json, source_file, source_folder
from workers.tasks.stacking import stack

SAMPLE_RATE_HZ = 16000
SAMPLE_BYTES = 4
# QSL.py of the reference; 2513 of dev-clean's 2703 utterances are no longer.
LONGEST_S = 15.0
_ROUNDING_S = 0.01  # a manifest may say two decimals
_SHOWN_CHARS = 60  # the list's own names have 46
# Less than one window of the features has no meaning; LibriSpeech's shortest is 1.4 s.
SHORTEST_SAMPLES = 320
VOCABULARY = " " + string.ascii_lowercase + "'"
# 21 quantiles (5 % apart) of the durations of those 2513, from the reference's own dev-clean-wav.json.
DURATIONS_S = (
    1.44, 2.34, 2.68, 2.94, 3.26, 3.62, 3.98, 4.36, 4.72, 5.07, 5.54, 6.05, 6.59,
    7.12, 7.73, 8.42, 9.17, 10.0, 10.89, 12.29, 15.0,
)  # fmt: skip
GENERATED_SEED = 1571
_SPHINX_LINE = re.compile(r"(?:<s>)?(.*?)(?:</s>)?\s*\(([^()\s]+)\)")
_NOT_SPOKEN = re.compile(r"[^ -~]|[0-9.$]")
_PUNCTUATION = str.maketrans(
    {c: " " for c in string.punctuation if c not in VOCABULARY} | {"&": " and ", "+": " plus "}
)


@dataclass(frozen=True)
class Utterance:
    """One entry of the manifest: where its audio is, and what is said."""

    audio: Path
    transcript: str


class LibrispeechTask:
    """Rows are audio samples; answers are tokens, places in VOCABULARY, as the reference's int64."""

    name = "librispeech"
    ragged = True
    stacked = True
    largest_batch = 0

    def __init__(self, options: dict[str, Any]) -> None:
        known = {"path": "", "manifest": "dev-clean-wav.json", "count": 0, "calibration": "", "generated": 0}
        checked = check_options(self.name, options, known)
        self.path: str = checked["path"]
        self.manifest: str = checked["manifest"]
        self.calibration: str = checked["calibration"]
        self.count: int = checked["count"]
        self.generated: int = checked["generated"]
        for option in ("count", "generated"):
            if checked[option] < 0:
                raise TaskError(f"task {self.name!r}: {option} must not be negative", option)
        if bool(self.path) == bool(self.generated):
            raise TaskError(
                f"task {self.name!r} needs either path (the data set's folder) or generated (a number of "
                "made up utterances)",
                "path",
            )
        if self.generated and self.calibration:
            why = "calibration goes with path, not with generated"
            raise TaskError(f"task {self.name!r}: {why}", "calibration")

    def prepare(self, cache: Path) -> Library:
        """Decode every utterance once; the library keeps float32 and the transcripts."""
        meta: dict[str, Any] = {
            "input": {"dtype": "float32", "shape": ["audio samples"], "sample_rate_hz": SAMPLE_RATE_HZ},
            "response": {"dtype": "int64", "layout": "tokens"},
            "vocabulary": VOCABULARY,
        }
        if self.generated:
            return self._generate(cache, meta)
        folder = source_folder(self.name, self.path)
        utterances = self._utterances(folder)
        for utterance in utterances:
            source_file(self.name, utterance.audio, "the manifest names it; convert the data set again")
        transcripts = [utterance.transcript for utterance in utterances]
        digest = listing_digest(json.dumps(transcripts), [utterance.audio for utterance in utterances])
        said = [f"{u.audio.relative_to(folder)} {u.transcript}" for u in utterances]
        meta |= {"source": self.path, "scorer": "wer", "identity": identity_of(self.name, said)}

        def build(writer: LibraryWriter) -> None:
            writer.add_all(utterances, lambda utterance: decode(utterance.audio))
            text = json.dumps(transcripts).encode()
            writer.add_array("truth", np.frombuffer(text, np.uint8))

        return prepare_library(cache / f"{self.name}-{digest[:16]}", self.name, build, meta)

    def _generate(self, cache: Path, meta: dict[str, Any]) -> Library:
        """Made up sounds, as long as LibriSpeech's utterances."""

        def build(writer: LibraryWriter) -> None:
            writer.add_all(range(self.generated), lambda number: _made_up(GENERATED_SEED, number))

        folder = cache / f"{self.name}-generated-{self.generated}"
        return prepare_library(folder, self.name, build, meta | {"source": "generated", "generated": True})

    def _utterances(self, folder: Path) -> list[Utterance]:
        """Those that the benchmark takes, in the manifest's order; or the calibration list's, in its own."""
        file = source_file(
            self.name, folder / self.manifest, "convert_librispeech.py of the reference writes it"
        )
        found = [
            u for number, entry in enumerate(_entries(file)) if (u := _utterance(file, number, entry, folder))
        ]
        if not found:
            raise TaskError(f"task {self.name!r}: {file} has no utterance of up to {LONGEST_S:g} s", "path")
        if self.calibration:
            found = self._calibrating(found, folder)
        if self.count and len(found) != self.count:
            raise TaskError(
                f"task {self.name!r}: {file} has {len(found)} utterances of up to {LONGEST_S:g} s, and "
                f"task.count says {self.count}; bring what is missing or correct task.count",
                "count",
            )
        return found

    def _calibrating(self, utterances: list[Utterance], folder: Path) -> list[Utterance]:
        listing = source_file(self.name, Path(self.calibration), "the calibration list", "calibration")
        known = {str(u.audio.relative_to(folder)): u for u in utterances}
        try:
            names = listing.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(
                f"task {self.name!r}: {listing} cannot be read ({error})", "calibration"
            ) from None
        for name in names:
            if name not in known:
                raise TaskError(
                    f"task {self.name!r}: {listing} names {_shown(name)}, which is not in "
                    f"{folder / self.manifest} or longer than {LONGEST_S:g} s; the list is of "
                    "train-clean-100: convert that, and set task.manifest",
                    "calibration",
                )
        return [known[name] for name in names]

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """float32 (audio samples of all,)."""
        sizes = self.counts(samples)
        total = int(sizes.sum())
        rows = np.empty(total, np.float32) if out is None else out[:total]
        stack(samples, rows)
        return rows

    def counts(self, samples: Sequence[memoryview]) -> np.ndarray:
        """Audio samples of each."""
        return np.array([sample.nbytes // SAMPLE_BYTES for sample in samples], np.int64)

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The tokens as int64, 8 bytes each; an utterance without any has an empty response."""
        tokens = np.ascontiguousarray(outputs, dtype="<i8")
        sizes = np.full(len(indices), len(tokens) // max(1, len(indices))) if counts is None else counts
        return Responses(tokens.view(np.uint8), np.asarray(sizes, np.int64) * tokens.itemsize)

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Made up sounds of the true durations."""
        return [_made_up(WARM_UP_SEED, number).view(np.uint8).data for number in range(count)]


def spoken(transcript: str) -> str:
    """A transcript in the model's alphabet, as the reference's manifest.py leaves it.

    The reference also writes numbers and abbreviations out. LibriSpeech has neither: they are refused.
    """
    if found := _NOT_SPOKEN.search(" ".join(transcript.split())):
        raise ValueError(f"{found[0]!r} in {transcript!r:.60} is to be written as it is spoken")
    return " ".join(transcript.lower().translate(_PUNCTUATION).split())


def audio_samples(file: Path) -> int:
    """How many a WAV file says that it has; TaskError names one that is damaged or of other form."""
    try:
        info = soundfile.info(file)
    except (soundfile.LibsndfileError, OSError, RuntimeError, ValueError) as error:
        raise TaskError(f"{file} is damaged or no audio ({error}); convert it again", "path") from None
    if info.samplerate != SAMPLE_RATE_HZ or info.channels != 1:
        is_ = f"{info.samplerate} Hz and {info.channels} channels"
        raise TaskError(f"{file} has {is_} instead of {SAMPLE_RATE_HZ} and 1", "path")
    return int(info.frames)


def decode(file: Path) -> np.ndarray:
    """A WAV file as float32 (n,) from -1 to 1; TaskError also names one whose length the manifest hides."""
    samples = audio_samples(file)
    if samples < SHORTEST_SAMPLES:
        raise TaskError(
            f"{file} holds {samples} audio samples, too few to be speech; convert it again", "path"
        )
    if samples > (LONGEST_S + _ROUNDING_S) * SAMPLE_RATE_HZ:
        wrong = f"{samples / SAMPLE_RATE_HZ:.2f} s long and listed as up to {LONGEST_S:g} s"
        raise TaskError(f"{file} is {wrong}; convert the data set again", "path")
    try:
        audio, _ = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise TaskError(f"{file} is damaged or no audio ({error}); convert it again", "path") from None
    if len(audio) != samples:
        wrong = f"is cut short: {len(audio)} of {samples} audio samples"
        raise TaskError(f"{file} {wrong}; convert it again", "path")
    return audio[:, 0]


def _entries(file: Path) -> list[Any]:
    """The manifest's utterances, still to be checked."""
    try:
        if file.suffix == ".json":
            entries = read_json(LibrispeechTask.name, file)
        else:
            entries = _sphinx_entries(file, file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{file} cannot be read ({error}); write it again", "path") from None
    if not isinstance(entries, list):
        raise TaskError(f"{file} is no JSON list of utterances", "path")
    return entries


def _sphinx_entries(file: Path, text: str) -> list[Any]:
    """`<s> what is said </s> (NAME)` a line, and NAME.wav beside the file, in the form of the reference's."""
    entries = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _SPHINX_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{line!r:.40} is not '<s> text </s> (NAME)'")
        audio = file.parent / f"{match[2]}.wav"
        seconds = audio_samples(audio) / SAMPLE_RATE_HZ
        files = [{"fname": str(audio.relative_to(file.parent)), "speed": 1}]
        entries.append({"original_duration": seconds, "transcript": match[1], "files": files})
    return entries


def _utterance(file: Path, number: int, entry: Any, folder: Path) -> Utterance | None:
    """None for one that is too long."""
    try:
        seconds, transcript = float(entry["original_duration"]), entry["transcript"]
        # Other speeds are copies for training.
        name = next(str(f["fname"]) for f in entry["files"] if f["speed"] == 1)
        if not 0 < seconds < math.inf:
            raise ValueError(f"an original_duration of {seconds} s")
        if seconds > LONGEST_S:
            return None
        return Utterance(_inside(folder, name), spoken(transcript))
    except StopIteration:
        why = "no file of speed 1"
    except OverflowError:  # a whole number of hundreds of digits
        why = "an original_duration that is no number of seconds"
    except (KeyError, TypeError, AttributeError) as error:
        why = f"not original_duration, transcript and files (missing or odd: {error})"
    except ValueError as error:
        why = f"{error!s:.120}"
    raise TaskError(f"{file}: utterance {number} has {why}", "path")


def _inside(folder: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r:.60} leaves the data set's folder")
    return folder / name


def _shown(word: str) -> str:
    """The beginning of a word of a file that may not be what it was taken for."""
    return "".join(c if c.isprintable() else "?" for c in word[:_SHOWN_CHARS])


def _made_up(seed: int, number: int) -> np.ndarray:
    """A seeded sound, float32 in steps of 16 bit: noise and a tone in syllables of 0.1 s, with pauses."""
    rng = np.random.default_rng((seed, number))
    seconds = np.interp(rng.random(), np.linspace(0.0, 1.0, len(DURATIONS_S)), DURATIONS_S)
    samples, syllable = int(seconds * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ // 10
    syllables = samples // syllable + 1
    loud = rng.random((2, syllables), np.float32) * (rng.random(syllables) > 0.2)
    pitch_hz = np.repeat(rng.uniform(90.0, 2500.0, syllables), syllable)[:samples]
    tone = np.sin(2 * np.pi / SAMPLE_RATE_HZ * np.cumsum(pitch_hz)).astype(np.float32)
    noise = rng.standard_normal(samples, np.float32)
    noise_level, tone_level = np.repeat(loud, syllable, axis=1)[:, :samples]
    # A faint hiss, as of a microphone: silence has a spectrum too.
    sound = 0.05 * noise_level * noise + 0.1 * tone_level * tone + np.float32(0.0005) * noise
    return np.round(sound * 32768).clip(-32768, 32767).astype(np.float32) / np.float32(32768)
