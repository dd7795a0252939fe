"""SQuAD v1.1 for BERT: one sample is a question and up to 384 tokens of its paragraph; rows are tokens.

Features are those of the reference (language/bert, create_squad_data.py and squad_QSL.py), 10,833 of the dev
set. The library keeps for each what the reference's SUT is given: input_ids, input_mask and segment_ids,
int32 (3, 384). Padding is dropped in the timed part: the model sees (token id, segment) rows. The response is
float32 (384, 2), start and end logits, as accuracy-squad.py reads it by default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import MOST_SAMPLES, WARM_UP_SEED, TaskError, check_options, refuse_too_large
from workers.tasks.sources import listing_digest, source_file, source_folder
from workers.tasks.squad_features import (
    DOC_STRIDE,
    MAX_QUERY_TOKENS,
    MAX_TOKENS,
    Feature,
    QuestionSet,
    document_spans,
    read_questions,
)

SAMPLE_BYTES = 3 * MAX_TOKENS * 4
_MOST_DIGITS = 9  # of a feature's number in a calibration list
QUESTIONS_FILE = "dev-v1.1.json"
# The reference's Makefile puts the vocabulary beside the checkpoint, in a folder below that of the data.
VOCAB_PLACES = ("vocab.txt", "bert_tf_v1_1_large_fp32_384_v2/vocab.txt")
# What stands at positions without a token: accuracy-squad.py itself fills short responses up with it.
NO_LOGIT = -10000.0

# Made samples: paragraph lengths follow these quantiles, in tokens of the published vocabulary. Measured on
# the 1,000 questions of Disfl-QA, whose 713 paragraphs are a part of SQuAD's dev set: mean 170, 1.030
# features a question, where the whole dev set has 10,833 / 10,570 = 1.025. Its questions are longer than
# SQuAD's (18 tokens, they correct themselves); 12 +- 4 is a choice.
PARAGRAPH_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
PARAGRAPH_TOKENS = (30, 97, 122, 150, 198, 291, 458, 733)
QUERY_TOKENS_MEAN, QUERY_TOKENS_DEVIATION, QUERY_TOKENS_RANGE = 12.0, 4.0, (4, 40)
# bert-large-uncased's vocabulary: [CLS], [SEP], and where the words begin and end.
CLS, SEP, FIRST_WORD, VOCAB = 101, 102, 1000, 30522


class SquadTask:
    """The dev set in the folder `path`, or `generated` random questions of like lengths.

    `count`, when given, says how many features there must be. `calibration` is the reference's list, of
    feature numbers or of question ids; then only the listed features are prepared, in its order.
    """

    name = "squad"
    ragged = True
    stacked = False
    largest_batch = 0

    def __init__(self, options: dict[str, Any]) -> None:
        known = {"path": "", "generated": 0, "count": 0, "calibration": ""}
        checked = check_options(self.name, options, known)
        self.path: str = checked["path"]
        self.generated: int = checked["generated"]
        self.count: int = checked["count"]
        self.calibration: str = checked["calibration"]
        if bool(self.path) == bool(self.generated):
            raise TaskError(f"task {self.name!r} needs path (a data set) or generated (a count), one", "path")
        if not 0 <= self.generated <= MOST_SAMPLES:
            raise TaskError(f"task {self.name!r}: generated must be 1 to {MOST_SAMPLES}", "generated")
        if self.count < 0:
            raise TaskError(f"task {self.name!r}: count must be 0 (any) or more, not {self.count}", "count")
        if self.generated and (self.calibration or self.count):
            wrong = "calibration" if self.calibration else "count"
            raise TaskError(f"task {self.name!r}: {wrong} goes with path, not with generated", wrong)

    def prepare(self, cache: Path) -> Library:
        """Tokenise the questions once; the library also keeps what scoring needs, words and answers."""
        if self.generated:
            return self._generate(cache)
        folder = source_folder(self.name, self.path)
        questions = source_file(self.name, folder / QUESTIONS_FILE, "the SQuAD v1.1 dev set")
        vocab = next((folder / place for place in VOCAB_PLACES if (folder / place).is_file()), None)
        vocab = source_file(self.name, vocab or folder / VOCAB_PLACES[0], "the checkpoint's vocabulary")
        files = [questions, vocab]
        meta = self._meta() | {"source": self.path, "scorer": "squad"}
        if self.calibration:
            what = "it lists the calibration samples"
            files.append(source_file(self.name, Path(self.calibration).expanduser(), what, "calibration"))
            meta = self._meta() | {"source": self.path, "calibration": self.calibration}
        digest = listing_digest(f"squad {MAX_TOKENS} {DOC_STRIDE} {MAX_QUERY_TOKENS} lower case", files)

        def build(writer: LibraryWriter) -> None:
            found = read_questions(questions, vocab)
            features = found.features
            if self.calibration:
                features = listed_features(found, files[-1])
            writer.add_all(features, found.encode)
            for name, array in found.truth(features).items():
                writer.add_array(name, array)

        library = prepare_library(cache / f"{self.name}-{digest[:16]}", self.name, build, meta)
        if self.count and library.count != self.count:
            have = f"{questions} gives {library.count} features, the manifest says {self.count}"
            raise TaskError(
                f"task {self.name!r}: {have}; bring the whole file or correct task.count", "count"
            )
        return library

    def _meta(self) -> dict[str, Any]:
        return {
            "input": {"dtype": "int32", "shape": [3, MAX_TOKENS]},
            "response": {"dtype": "float32", "shape": [MAX_TOKENS, 2], "layout": "start, end logit a token"},
        }

    def _generate(self, cache: Path) -> Library:
        parameters = f"{self.generated} {WARM_UP_SEED} {PARAGRAPH_TOKENS} {QUERY_TOKENS_MEAN}"
        digest = hashlib.sha256(parameters.encode()).hexdigest()

        def build(writer: LibraryWriter) -> None:
            refuse_too_large(self.name, cache, self.generated * SAMPLE_BYTES)
            for sample in made_samples(self.generated, WARM_UP_SEED):
                writer.add(sample)

        folder = cache / f"{self.name}-generated-{digest[:16]}"
        return prepare_library(folder, self.name, build, self._meta() | {"generated": True})

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """int32 (tokens, 2): token id and segment of every token of every sample, without padding."""
        ids, masks, segments = _parts(samples)
        present = masks != 0
        total = int(np.count_nonzero(present))
        rows = np.empty((total, 2), np.int32) if out is None else out[:total]
        rows[:, 0] = ids[present]
        rows[:, 1] = segments[present]
        return rows

    def counts(self, samples: Sequence[memoryview]) -> np.ndarray:
        """Tokens of each sample."""
        return np.count_nonzero(_parts(samples)[1], axis=1)

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """Logits (tokens, 2) to float32 (n, 384, 2)."""
        if counts is None:
            raise TypeError("a ragged task's outputs come with their counts")
        logits = np.full((len(counts), MAX_TOKENS, 2), NO_LOGIT, "<f4")
        start = 0
        for row, count in zip(logits, counts.tolist(), strict=True):  # a third of the time of a masked copy
            row[:count] = outputs[start : start + count]
            start += count
        return Responses(logits.reshape(-1).view(np.uint8))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Random tokens, as many a sample as questions and paragraphs have."""
        return [memoryview(sample.tobytes()) for sample in made_samples(count, WARM_UP_SEED)]

    def onnx_inputs(self, rows: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """int64 (n, 384) each, as the reference's onnxruntime_SUT.py feeds model.onnx."""
        present = np.arange(MAX_TOKENS) < counts[:, None]
        ids, segments = np.zeros(present.shape, np.int64), np.zeros(present.shape, np.int64)
        ids[present] = rows[: int(counts.sum()), 0]
        segments[present] = rows[: int(counts.sum()), 1]
        return {"input_ids": ids, "input_mask": present.astype(np.int64), "segment_ids": segments}

    def onnx_outputs(
        self, outputs: dict[str, np.ndarray], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """float32 (tokens, 2) from the two outputs (n, 384)."""
        start, end = outputs["output_start_logits"], outputs["output_end_logits"]
        present = np.arange(MAX_TOKENS) < counts[:, None]
        return np.stack([start[present], end[present]], axis=1, dtype=np.float32), counts


def _parts(samples: Sequence[memoryview]) -> np.ndarray:
    """int32 (3, n, 384): ids, masks, segments."""
    together = np.frombuffer(b"".join(samples), "<i4")
    return together.reshape(len(samples), 3, MAX_TOKENS).transpose(1, 0, 2)


def listed_features(found: QuestionSet, file: Path) -> list[Feature]:
    """The features that a calibration list names; TaskError says which line names none.

    A line is a feature's number (bert_calibration_features.txt, v1.0's bert-calibration.txt) or a question's
    id (bert_calibration_qas_ids.txt), 24 digits, which stands for all of its features.
    """
    by_question: dict[str, list[Feature]] = {}
    for feature in found.features:
        by_question.setdefault(found.questions[feature.question].id, []).append(feature)
    listed: list[Feature] = []
    try:
        lines = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{file} cannot be read ({error})", "calibration") from None
    for number, line in enumerate(lines, 1):
        if line in by_question:
            listed += by_question[line]
        elif line.isdecimal() and len(line) <= _MOST_DIGITS and int(line) < len(found.features):
            listed.append(found.features[int(line)])
        else:
            have = f"{len(found.features)} features"
            raise TaskError(f"{file}: entry {number}, {line!r:.40}, is not among the {have}", "calibration")
    return listed


def made_samples(count: int, seed: int) -> list[np.ndarray]:
    """`count` seeded samples, int32 (3, 384): [CLS] question [SEP] paragraph [SEP], of random words."""
    random = np.random.default_rng(seed)
    samples: list[np.ndarray] = []
    while len(samples) < count:
        words = round(random.normal(QUERY_TOKENS_MEAN, QUERY_TOKENS_DEVIATION))
        query = int(np.clip(words, *QUERY_TOKENS_RANGE))
        document = int(np.interp(random.random(), PARAGRAPH_SHARES, PARAGRAPH_TOKENS))
        for _, length in document_spans(document, query):
            total = query + length + 3
            sample = np.zeros((3, MAX_TOKENS), np.int32)
            sample[0, :total] = random.integers(FIRST_WORD, VOCAB, total)
            sample[0, [0, query + 1, total - 1]] = CLS, SEP, SEP
            sample[1, :total] = 1
            sample[2, query + 2 : total] = 1
            samples.append(sample)
    return samples[:count]
