"""The librispeech task: which utterances it takes, their waveforms, transcripts and responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests import made_librispeech
from workers.library import Library
from workers.tasks import TaskError, counts_of, open_task
from workers.tasks.librispeech import VOCABULARY, decode, spoken

TIME_BUDGET_S = 5
COUNT = 5


def prepared(folder: Path, **options: Any) -> Library:
    made = made_librispeech.write(folder / "data", COUNT, 1)
    made.pop("name")
    return open_task("librispeech", {**made, **options}).prepare(folder / "cache")


def entries(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "data" / "dev-clean-wav.json").read_text())
    return found


def truth(library: Library) -> list[str]:
    found: list[str] = json.loads(library.array("truth").tobytes())
    return found


def test_utterances_of_up_to_15_s_come_in_the_manifests_order(tmp_path: Path) -> None:
    library = prepared(tmp_path)
    kept = entries(tmp_path)[1:]
    assert library.sizes.tolist() == [4 * entry["original_num_samples"] for entry in kept]
    assert truth(library) == [entry["transcript"] for entry in kept]
    assert (
        library.meta["scorer"] == "wer" and library.meta["vocabulary"] == VOCABULARY and len(VOCABULARY) == 28
    )


def test_the_sample_is_the_waveform_as_the_reference_decodes_it(tmp_path: Path) -> None:
    library = prepared(tmp_path)
    library.load(np.arange(COUNT))
    for sample, entry in zip(library.samples(np.arange(COUNT)), entries(tmp_path)[1:], strict=True):
        pcm, _ = soundfile.read(tmp_path / "data" / entry["files"][0]["fname"], dtype="int16")
        assert (np.frombuffer(sample, "<f4") == pcm.astype(np.float32) / 32768).all()


def test_rows_lie_back_to_back_and_counts_tell_them_apart(tmp_path: Path) -> None:
    library = prepared(tmp_path)
    task = open_task("librispeech", {"generated": 1})
    library.load(np.arange(COUNT))
    samples = library.samples(np.array([3, 0, 3]))
    rows, counts = task.collate(samples), counts_of(task, samples)
    assert rows.dtype == np.float32 and len(rows) == counts.sum() and task.ragged
    out = np.full(len(rows) + 10, 7, np.float32)
    assert np.shares_memory(task.collate(samples, out), out)
    assert (out[: len(rows)] == rows).all() and (out[len(rows) :] == 7).all()
    parts = np.split(rows, np.cumsum(counts)[:-1])
    assert [part.tobytes() for part in parts] == [bytes(sample) for sample in samples]


def test_responses_are_tokens_as_int64_and_may_be_empty() -> None:
    task = open_task("librispeech", {"generated": 1})
    tokens = np.array([8, 5, 0, 27], np.int32)
    responses = task.respond(tokens, np.arange(3), np.array([1, 0, 3]))
    assert responses.sizes is not None and responses.sizes.tolist() == [8, 0, 24]
    assert responses.blob.view("<i8").tolist() == tokens.tolist()


def test_made_up_sounds_are_seeded_as_long_as_libris_and_never_silent(tmp_path: Path) -> None:
    library = open_task("librispeech", {"generated": 40}).prepare(tmp_path)
    seconds = library.sizes / 4 / 16000
    assert library.meta["generated"] and "scorer" not in library.meta
    assert seconds.min() >= 1.4 and seconds.max() <= 15 and 4.5 < seconds.mean() < 8
    again = open_task("librispeech", {"generated": 40}).prepare(tmp_path / "elsewhere")
    assert again.digest == library.digest
    warm = open_task("librispeech", {"generated": 40}).warm_up_samples(3)
    assert all(0.01 < np.frombuffer(sample, np.float32).std() < 0.5 for sample in warm)


def test_a_calibration_list_chooses_and_orders(tmp_path: Path) -> None:
    made_librispeech.write(tmp_path / "data", COUNT, 1)
    chosen = [entries(tmp_path)[i] for i in (4, 2)]
    listing = tmp_path / "calibration_files.txt"
    listing.write_text("".join(entry["files"][0]["fname"] + "\n" for entry in chosen))
    library = prepared(tmp_path, calibration=str(listing), count=2)
    assert truth(library) == [entry["transcript"] for entry in chosen]
    listing.write_text("train-clean-100-wav/103/1240/103-1240-0010.wav\n")
    with pytest.raises(TaskError, match="103-1240-0010.wav, which is not in .*dev-clean-wav.json"):
        prepared(tmp_path, calibration=str(listing))


def test_a_transcription_of_cmu_sphinx_is_read_too(tmp_path: Path) -> None:
    made_librispeech.write(tmp_path / "data", COUNT, 1)
    folder = tmp_path / "data" / "dev-clean-wav" / "2277" / "149896"
    names = [f"2277-149896-{number:04}" for number in (2, 1)]
    (folder / "transcription").write_text(
        "".join(f"<s> It's {n[-1:]} </s> ({n})\n" for n in names).replace("2 <", "two <")
    )
    options = {"path": str(folder), "manifest": "transcription"}
    with pytest.raises(TaskError, match="utterance 1 has '1' in .* is to be written as it is spoken"):
        open_task("librispeech", options).prepare(tmp_path / "cache")
    (folder / "transcription").write_text("".join(f"<s> It's so </s> ({name})\n" for name in names))
    library = open_task("librispeech", options).prepare(tmp_path / "cache")
    assert truth(library) == ["it's so"] * 2
    assert library.sizes[0] == 4 * entries(tmp_path)[2]["original_num_samples"]
    (folder / "transcription").write_text("nothing of the kind\n")
    with pytest.raises(TaskError, match="'nothing of the kind' is not '<s> text </s> \\(NAME\\)'"):
        open_task("librispeech", options).prepare(tmp_path / "cache")


@pytest.mark.parametrize(
    ("transcript", "left"),
    [
        ("HE  HOPED\tthere ", "he hoped there"),
        ("well-known; isn't it? (yes!)", "well known isn't it yes"),
        ("bread & butter + jam", "bread and butter plus jam"),
        ("", ""),
    ],
)
def test_transcripts_become_the_models_alphabet(transcript: str, left: str) -> None:
    assert spoken(transcript) == left


def test_what_is_wrong_with_a_data_set_is_named(tmp_path: Path) -> None:
    def why(**options: Any) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("librispeech", {"path": str(folder), **options}).prepare(tmp_path / "cache")
        return str(caught.value)

    prepared(tmp_path)
    folder = tmp_path / "data"
    manifest, wav = folder / "dev-clean-wav.json", folder / entries(tmp_path)[2]["files"][0]["fname"]
    assert f"has {COUNT} utterances of up to 15 s, and task.count says 2513" in why(count=2513)
    assert "other.json is missing" in why(manifest="other.json")
    whole = wav.read_bytes()
    wav.write_bytes(whole[:30])
    assert "0002.wav is damaged or no audio" in why()
    soundfile.write(wav, np.zeros(9000), 8000)
    assert "0002.wav has 8000 Hz and 1 channels instead of 16000 and 1" in why()
    soundfile.write(wav, np.zeros(30), 16000)
    assert "0002.wav holds 30 audio samples" in why()
    wav.unlink()
    assert "0002.wav is missing: the manifest names it" in why()
    wav.write_bytes(whole)
    damage: dict[str, Any] = {
        "no file of speed 1": {"files": []},
        "leaves the data set's folder": {"files": [{"fname": "../x.wav", "speed": 1}]},
        "missing or odd": {"transcript": 5},
        "'é' in": {"transcript": "café"},
    }
    for text, change in damage.items():
        manifest.write_text(json.dumps([{**entries(tmp_path)[1], **change}]))
        assert "utterance 0 has " in why() and text in why()
        prepared(tmp_path)
    manifest.write_text("{}")
    assert "is no JSON list of utterances" in why()
    manifest.write_text("[")
    assert "JSON" in why()
    manifest.write_text("[]")
    assert "has no utterance of up to 15 s" in why()


def test_options_that_contradict_are_refused() -> None:
    for options in ({}, {"path": "x", "generated": 3}):
        with pytest.raises(TaskError, match="needs either path .* or generated"):
            open_task("librispeech", options)
    with pytest.raises(TaskError, match="count must not be negative"):
        open_task("librispeech", {"path": "x", "count": -1})
    for name in ("librispeech", "criteo"):
        with pytest.raises(TaskError, match="calibration goes with path, not with generated"):
            open_task(name, {"generated": 3, "calibration": "list.txt"})


def test_manifests_and_lists_of_no_sense_are_named(tmp_path: Path) -> None:
    prepared(tmp_path)
    folder = tmp_path / "data"
    manifest, listing = folder / "dev-clean-wav.json", tmp_path / "list.txt"
    good, entry = manifest.read_text(), json.dumps([{**entries(tmp_path)[1], "original_duration": 1.0}])

    def why(**options: Any) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("librispeech", {"path": str(folder), **options}).prepare(tmp_path / "cache")
        assert len(str(caught.value)) < 500
        return str(caught.value)

    manifest.write_text("[" * 200_000)
    assert "dev-clean-wav.json" in (text := why()) and "nested too deep" in text
    for duration in ("9" * 400, "1e999", "NaN", "0", "-1"):
        manifest.write_text(entry.replace('"original_duration": 1.0', f'"original_duration": {duration}'))
        assert "dev-clean-wav.json: utterance 0 has an original_duration" in why()
    manifest.write_text(json.dumps([{**json.loads(entry)[0], "files": [{"fname": "a" * 300, "speed": 1}]}]))
    assert "is missing: the manifest names it" in why()
    manifest.write_text(good)
    listing.write_bytes(b"\xff\xfe\0")
    assert "list.txt cannot be read" in why(calibration=str(listing))
    assert "/proc/self/mem cannot be read" in why(calibration="/proc/self/mem")
    listing.write_text("root:\x1b[31m" + "x" * 300)
    assert "names root:?[31mx" in why(calibration=str(listing))


def test_a_file_that_is_longer_than_the_manifest_says_is_refused_unread(tmp_path: Path) -> None:
    prepared(tmp_path)
    folder = tmp_path / "data"
    wav = folder / entries(tmp_path)[2]["files"][0]["fname"]

    def why() -> str:
        with pytest.raises(TaskError) as caught:
            open_task("librispeech", {"path": str(folder)}).prepare(tmp_path / "cache")
        return str(caught.value)

    soundfile.write(wav, np.zeros(int(15.02 * 16000)), 16000, subtype="PCM_U8")
    assert "0002.wav is 15.02 s long and listed as up to 15 s" in why()
    with soundfile.SoundFile(wav, "w", 16000, 1, "PCM_16", format="FLAC") as file:
        file.write(np.zeros(16000))
    whole = bytearray(wav.read_bytes())
    for most, wrong in ((b"\xff\xff\xff\xff", "s long and listed as"), (b"\0\0\x7d\0", "0002.wav is")):
        # How many there are, in FLAC's STREAMINFO: 36 bits.
        whole[21:26] = bytes([whole[21] & 0xF0 | most[0] & 0x0F]) + most
        wav.write_bytes(whole)
        assert wrong in why()
    soundfile.write(wav, np.zeros(int(15.005 * 16000)), 16000)
    assert decode(wav).shape == (240_080,)
