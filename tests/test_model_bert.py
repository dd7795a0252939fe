"""BERT with the SQuAD head: the published names, packed rows, and a plain second way to the same figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from workers.models import ModelError, open_model

TIME_BUDGET_S = 10

SMALL = {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 64, "vocab": 100}
# Names and shapes in model.pytorch of the reference: BertForQuestionAnswering of transformers 2.4.0 with the
# reference's bert_config.json (24 layers of 1024, 16 heads, 4096, 30,522 words, 512 positions).
OUTER = {
    "bert.embeddings.word_embeddings.weight": (30522, 1024),
    "bert.embeddings.position_embeddings.weight": (512, 1024),
    "bert.embeddings.token_type_embeddings.weight": (2, 1024),
    "bert.embeddings.LayerNorm.weight": (1024,),
    "bert.embeddings.LayerNorm.bias": (1024,),
    "bert.pooler.dense.weight": (1024, 1024),
    "bert.pooler.dense.bias": (1024,),
    "qa_outputs.weight": (2, 1024),
    "qa_outputs.bias": (2,),
}
OF_A_LAYER = {
    "attention.self.query": (1024, 1024),
    "attention.self.key": (1024, 1024),
    "attention.self.value": (1024, 1024),
    "attention.output.dense": (1024, 1024),
    "attention.output.LayerNorm": (1024,),
    "intermediate.dense": (4096, 1024),
    "output.dense": (1024, 4096),
    "output.LayerNorm": (1024,),
}
PUBLISHED_TENSORS = 24 * 16 + 9
PUBLISHED_PARAMETERS = 335_143_938  # with the pooler's 1,049,600


def small(seed: int = 1) -> Any:
    """A small model whose every weight matters."""
    torch.manual_seed(seed)
    model = open_model("bert-large", SMALL).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def made_rows(counts: list[int], seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, SMALL["vocab"], (sum(counts),), generator=generator)
    segments = torch.randint(0, 2, (sum(counts),), generator=generator)
    return torch.stack([words, segments], 1).int()


def by_the_book(state: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """One sample's logits, written down from the paper (Devlin et al. 2018), in float64."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    tables = [w[f"bert.embeddings.{kind}_embeddings.weight"] for kind in ("word", "token_type", "position")]
    x = tables[0][rows[:, 0].long()] + tables[1][rows[:, 1].long()] + tables[2][: len(rows)]
    x = norm(x, "bert.embeddings.LayerNorm")
    for layer in range(SMALL["layers"]):
        at = f"bert.encoder.layer.{layer}"
        q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for a, b, c in zip(*(part.chunk(SMALL["heads"], -1) for part in (q, k, v)), strict=True):
            heads.append((a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c)
        seen = linear(torch.cat(heads, -1), f"{at}.attention.output.dense")
        x = norm(x + seen, f"{at}.attention.output.LayerNorm")
        wide = linear(x, f"{at}.intermediate.dense")
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        x = norm(x + linear(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return linear(x, "qa_outputs")


def test_the_published_checkpoint_loads_strictly() -> None:
    shapes = dict(OUTER)
    for layer in range(24):
        for name, shape in OF_A_LAYER.items():
            shapes[f"bert.encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"bert.encoder.layer.{layer}.{name}.bias"] = shape[:1]
    assert len(shapes) == PUBLISHED_TENSORS
    assert sum(math.prod(shape) for shape in shapes.values()) == PUBLISHED_PARAMETERS
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        model: Any = open_model("bert-large", {})
    model.load_state_dict(model.load_published(state), strict=True, assign=True)
    with pytest.raises(RuntimeError, match="Unexpected key.*classifier"):
        model.load_state_dict(model.load_published(state | {"classifier.weight": torch.empty(0)}))


def test_packed_samples_give_what_each_gives_by_the_book() -> None:
    model, counts = small(), [7, 40, 1, 40, 23, 384]
    rows = made_rows(counts)
    with torch.inference_mode():
        found = model(rows, torch.tensor(counts))
    expected = [by_the_book(model.state_dict(), part) for part in rows.split(counts)]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_folding_changes_nothing_but_rounding() -> None:
    model, counts = small(), [12, 30]
    rows = made_rows(counts)
    with torch.inference_mode():
        before = model(rows, torch.tensor(counts))
        model.fold()
        after = model(rows, torch.tensor(counts))
    assert not [name for name, _ in model.named_parameters() if "query" in name]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_rows_and_counts_beyond_the_last_sample_change_nothing() -> None:
    model, counts = small(), [12, 30, 5]
    rows = made_rows(counts)
    with torch.inference_mode():
        alone = model(rows, torch.tensor(counts))
        padded = model(torch.cat([rows, rows, rows]), torch.tensor([*counts, 0, 0]))
    assert len(padded) == 3 * len(rows)
    torch.testing.assert_close(padded[: len(rows)], alone)


def test_no_graph_where_attention_goes_by_groups() -> None:
    model = small()
    assert not model.graphable
    assert model.host_counts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_packed_attention_on_a_gpu_agrees_with_groups_on_a_cpu() -> None:
    model, counts = small(), [7, 40, 1, 384]
    rows = made_rows(counts)
    with torch.inference_mode():
        expected = model(rows, torch.tensor(counts))
        model.fold()
        model.half().cuda()
        assert model.graphable
        found = model(rows.cuda(), torch.tensor([*counts, 0]).cuda())
    torch.testing.assert_close(found.cpu(), expected, atol=0.1, rtol=0.05)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ModelError, match="'layers' must be a whole number above 0"):
        open_model("bert-large", {**SMALL, "layers": 0})
    with pytest.raises(ModelError, match="multiple of 'heads'"):
        open_model("bert-large", {**SMALL, "heads": 5})


@pytest.mark.parametrize("folded", [False, True])
def test_a_batch_without_a_token_is_answered_with_none(folded: bool) -> None:
    model = small()
    if folded:
        model.fold()
    with torch.inference_mode():
        assert model(made_rows([0, 0]), torch.tensor([0, 0])).shape == (0, 2)
        assert model(made_rows([0, 7]), torch.tensor([0, 7])).shape == (7, 2)
