"""The recommendation example as a stranger runs it, only shorter: real ratings, a network trained here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.program import Program
from workers.installed import LocateError, locate

TIME_BUDGET_S = 90

EXAMPLES = Path(__file__).resolve().parent.parent / "manifests" / "examples"
SOURCE = "package:recbole/dataset_example/ml-100k"
# No Ray, and only as many queries as the 90th percentile needs.
SHORTER = {
    "where: ray": "where: local",
    "num_cpus: 1\n": "max_batch: 4\n",
    "  max_batch: 4\n\n": "\n",
    "min_duration: 1000 ": "min_duration: 100 ",
    "target_latency: 1000 ": "target_latency: 8000 ",
    "min_duration: 48000 ": "target_latency_percentile: 90\n    min_duration: 5000 ",
    "min_query_count: 480 ": "min_query_count: 50 ",
}


def _installed() -> bool:
    try:
        return (locate(SOURCE) / "ml-100k.inter").is_file()
    except LocateError:
        return False


needs_ratings = pytest.mark.part(
    _installed(), "MovieLens-100k is not here: pip install --no-deps recbole==1.2.1"
)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The finished program; weights and data lie where the manifest looks for them."""
    folder = tmp_path_factory.mktemp("example")
    data, weights = folder / "data" / "movielens", folder / "weights" / "movielens-dlrm.pt"
    script = [sys.executable, str(EXAMPLES / "train_movielens.py"), f"--data={data}", f"--weights={weights}"]
    subprocess.run(script, check=True, timeout=90)
    text = (EXAMPLES / "recommendation.yaml").read_text()
    for old, new in SHORTER.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "examples").mkdir()
    (folder / "examples" / "recommendation.yaml").write_text(text)
    with Program(folder, "run", "examples/recommendation.yaml") as program:
        program.end(80.0)
        yield program


@needs_ratings
@pytest.mark.parametrize("test", ["Offline-accuracy", "Server-accuracy"])
def test_the_measured_auc_is_reached(example: Program, test: str) -> None:
    assert example.process.returncode == 0, example.said
    accuracy = example.record(test, "example-recommendation").accuracy
    assert accuracy is not None and accuracy.metric == "AUC"
    assert accuracy.reached and accuracy.target == 78.9 and accuracy.total == 10_000


@needs_ratings
@pytest.mark.parametrize("test", ["Offline-performance", "Server-performance"])
def test_performance_is_valid(example: Program, test: str) -> None:
    assert example.record(test, "example-recommendation").result.valid, example.said


@needs_ratings
def test_ten_thousand_different_ratings_are_scored(example: Program) -> None:
    rows = np.fromfile(example.runs.parent / "data" / "movielens" / "terabyte_processed_test.bin", "<i4")
    assert rows.reshape(-1, 40).shape == (10_000, 40)
    pairs = rows.reshape(-1, 40)[:, 14:16]
    assert len(np.unique(pairs, axis=0)) == 10_000  # nobody rated a film twice
