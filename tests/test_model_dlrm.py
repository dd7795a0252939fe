"""DLRM: the published names load strictly, predictions are the reference's, fused and padded forms agree."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import made_criteo
from workers.backends import BackendError
from workers.host import WorkerHost, WorkerSpec
from workers.models import ModelError, open_model
from workers.tasks import open_task
from workers.tasks.criteo import TABLE_ROWS, random_rows

TIME_BUDGET_S = 15

SMALL = {"rows": [min(rows, 500) for rows in TABLE_ROWS], "dim": 16, "bottom": [32], "top": [64, 24]}
# Of tb00_40M.pt: DLRM_Net(128, TABLE_ROWS, [13, 512, 256, 128], [479, 1024, 1024, 512, 256, 1]).state_dict().
PUBLISHED: dict[str, tuple[int, ...]] = {
    f"emb_l.{i}.weight": (rows, 128) for i, rows in enumerate(TABLE_ROWS)
}
for part, sizes in (("bot_l", [13, 512, 256, 128]), ("top_l", [479, 1024, 1024, 512, 256, 1])):
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        PUBLISHED |= {f"{part}.{2 * i}.weight": (outputs, inputs), f"{part}.{2 * i}.bias": (outputs,)}


def made_pairs(count: int, seed: int = 1) -> torch.Tensor:
    rows = random_rows(np.random.default_rng(seed), count)
    rows[:, 13:] %= np.array(SMALL["rows"])
    return torch.from_numpy(rows)


def by_the_paper(state: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Predictions pair by pair and product by product, from the published names."""
    answers = []
    for row in rows:
        x = torch.log(row[:13].float() + 1)
        for i in (0, 2):
            x = torch.relu(state[f"bot_l.{i}.weight"] @ x + state[f"bot_l.{i}.bias"])
        features = [x, *(state[f"emb_l.{i}.weight"][index] for i, index in enumerate(row[13:]))]
        products = [features[i] @ features[j] for i in range(27) for j in range(i)]
        y = torch.cat([x, torch.stack(products)])
        for i in (0, 2):
            y = torch.relu(state[f"top_l.{i}.weight"] @ y + state[f"top_l.{i}.bias"])
        answers.append(torch.sigmoid(state["top_l.4.weight"] @ y + state["top_l.4.bias"])[0])
    return torch.stack(answers)


def test_the_published_checkpoint_loads_strictly() -> None:
    with torch.device("meta"):
        model = open_model("dlrm", {})
        state = {name: torch.empty(shape) for name, shape in PUBLISHED.items()}
    assert len(state) == 42 and list(model.state_dict()) == list(state)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == PUBLISHED
    model.load_state_dict(state, strict=True)


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    model = open_model("dlrm", SMALL)
    state = dict(model.state_dict())
    with pytest.raises(RuntimeError, match="emb_l.3.weight"):
        model.load_state_dict({name: value for name, value in state.items() if name != "emb_l.3.weight"})
    with pytest.raises(RuntimeError, match="emb_l.26.weight"):
        model.load_state_dict({**state, "emb_l.26.weight": torch.zeros(3, 16)})
    with pytest.raises(RuntimeError, match=r"emb_l.2.weight has the shape \(3, 16\) instead of \(500, 16\)"):
        model.load_state_dict({**state, "emb_l.2.weight": torch.zeros(3, 16)})


def test_loading_and_saving_give_each_table_back() -> None:
    rng = torch.Generator().manual_seed(5)
    model = open_model("dlrm", SMALL)
    state = {name: torch.randn(value.shape, generator=rng) for name, value in model.state_dict().items()}
    model.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_predictions_are_those_of_the_paper() -> None:
    model = open_model("dlrm", SMALL)
    rows = made_pairs(40)
    assert (model(rows, torch.tensor([10, 30])) - by_the_paper(model.state_dict(), rows)).abs().max() < 1e-6


@torch.no_grad()
def test_folding_widens_the_first_layers_and_changes_no_answer() -> None:
    model = open_model("dlrm", SMALL)
    rows = made_pairs(300)
    before = model(rows)
    model.fold()
    assert model.bot_l[0].weight.shape[1] == 16 and model.top_l[0].weight.shape[1] == 368
    assert (model(rows) - before).abs().max() < 1e-6 and before.std() > 1e-3


@torch.no_grad()
def test_padded_rows_of_any_content_leave_the_others_alone() -> None:
    model = open_model("dlrm", SMALL)
    rows = made_pairs(90)
    padded = torch.cat([rows, torch.full((20, 39), -(2**31), dtype=torch.int32)])
    padded[100:] = 2**31 - 1
    answers = model(padded, torch.tensor([50, 40, 0]))
    assert answers.shape == (110,) and answers.dtype == torch.float32
    assert torch.allclose(answers[:90], model(rows), atol=1e-6)


@torch.no_grad()
def test_half_precision_is_near_and_large_counts_do_not_overflow() -> None:
    model = open_model("dlrm", SMALL)
    rows = made_pairs(200)
    rows[:, 0] = 2_000_000
    exact = model(rows)
    model.fold()
    near = model.to(torch.float16)(rows)
    assert near.dtype == torch.float32 and (near - exact).abs().max() < 5e-3


def test_tables_are_built_where_and_as_they_are_wanted_with_seeded_values() -> None:
    first, again = (open_model("dlrm", SMALL, False, (torch.device("cpu"), torch.float16)) for _ in range(2))
    assert first.emb_l.table.dtype == torch.float16 and first.top_l[0].weight.dtype == torch.float32
    assert torch.equal(first.emb_l.table, again.emb_l.table)
    assert first.emb_l.table.std() > 0.1 and (first.emb_l.table != 0).any(1).all()


def test_wrong_options_and_tables_that_fit_nowhere_are_explained() -> None:
    with pytest.raises(ModelError, match="backend.options.rows must be a list of positive numbers"):
        open_model("dlrm", {"rows": [3, 0]})
    with pytest.raises(ModelError, match="rows must be 26 numbers, the rows of each table, not 2"):
        open_model("dlrm", {"rows": [100, 100]})
    with pytest.raises(ModelError, match="backend.options.dim must be a positive number"):
        open_model("dlrm", {"dim": "wide"})
    with pytest.raises(ModelError, match=r"take 512000000.0 GB .*precision: fp16"):
        open_model("dlrm", {"rows": [10**15] + 25 * [1]})


def test_a_data_set_with_an_index_beyond_the_tables_is_refused(tmp_path: Path) -> None:
    options = made_criteo.write(tmp_path / "data", 3, seed=1)
    library = open_task("criteo", options).prepare(tmp_path / "cache")
    largest = library.array("largest").tolist()
    rows = [index + 1 for index in largest]
    open_model("dlrm", SMALL | {"rows": rows}).check_library(library)
    rows[9] -= 1
    model = open_model("dlrm", SMALL | {"rows": rows})
    model.fold()
    with pytest.raises(ModelError, match=f"table 9 has {rows[9]} rows and the data set index {rows[9]}"):
        model.check_library(library)


def test_a_worker_refuses_such_a_data_set_before_the_clock_starts(tmp_path: Path) -> None:
    options = made_criteo.write(tmp_path / "data", 3, seed=1)
    backend = {"engine": "torch", "model": "dlrm", "threads": 1, **SMALL, "rows": [2] * 26}
    spec = WorkerSpec("worker-0", "criteo", options, backend, 2, cache=str(tmp_path / "cache"))
    host = WorkerHost(spec)
    with pytest.raises(BackendError, match="table 0 has 2 rows and the data set index"):
        host.load()
    host.close()


def test_made_samples_go_with_tables_of_any_size(tmp_path: Path) -> None:
    open_model("dlrm", SMALL).check_library(open_task("criteo", {"generated": 2}).prepare(tmp_path))
