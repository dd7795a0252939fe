"""Suppression on the device against a plain greedy loop in NumPy, and the detections that it leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models import open_model, ssd_mobilenet, ssd_resnet34
from workers.models.boxes import Corners, Spares, choose, decode, rows_of, suppress

TIME_BUDGET_S = 20


def resnet34_spares(one: np.ndarray, other: np.ndarray) -> bool:
    """calc_iou_tensor of the reference's ssd_r34.py, whose overlap can be the product of two gaps."""
    height, width = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    overlap = width * height
    areas = [(box[3] - box[1]) * (box[2] - box[0]) for box in (one, other)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return bool(overlap / (areas[0] + areas[1] - overlap) < np.float32(0.5))


def mobilenet_spares(one: np.ndarray, other: np.ndarray) -> bool:
    """box_iou of the reference's utils.py."""
    height, width = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0)
    overlap = width * height
    areas = [np.prod(np.maximum(box[2:] - box[:2], 0)) for box in (one, other)]
    return bool(overlap / (areas[0] + areas[1] - overlap + np.float32(1e-5)) <= np.float32(0.6))


RULES = ((ssd_resnet34.spares, resnet34_spares), (ssd_mobilenet.spares, mobilenet_spares))


def greedy(boxes: np.ndarray, live: np.ndarray, spares: Any) -> list[int]:
    """Positions that are kept of (K, 4) boxes, best first."""
    kept: list[int] = []
    for i in range(len(boxes)):
        if live[i] and all(spares(boxes[j], boxes[i]) for j in kept):
            kept.append(i)
    return kept


# Corners on a coarse grid: equal boxes, overlaps of exactly the threshold, boxes without area.
coordinate = st.integers(0, 6)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)
problems = st.lists(st.lists(st.tuples(box, st.booleans()), min_size=30, max_size=30), min_size=1, max_size=3)


def arrays(problem: list[list[Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, K, 4) with ymin <= ymax and xmin <= xmax, and which are live (n, K)."""
    corners = np.array([[entry[0] for entry in row] for row in problem], np.float32)
    low, high = np.minimum(corners[..., :2], corners[..., 2:]), np.maximum(corners[..., :2], corners[..., 2:])
    return np.concatenate([low, high], 2) / 8, np.array([[entry[1] for entry in row] for row in problem])


def planes(boxes: np.ndarray) -> Corners:
    return Corners(*torch.from_numpy(boxes).unbind(-1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems)
def test_suppression_keeps_what_a_greedy_loop_keeps(problem: list[list[Any]]) -> None:
    boxes, live = arrays(problem)
    for spares, plain in RULES:
        dead = suppress(planes(boxes), ~torch.from_numpy(live), spares)
        for row in range(len(boxes)):
            kept = greedy(boxes[row], live[row], plain)
            assert torch.nonzero(~dead[row])[:, 0].tolist() == kept


@settings(max_examples=20, deadline=None, derandomize=True)
@given(problems, st.integers(1, 35))
def test_choosing_takes_the_first_that_a_greedy_loop_keeps(problem: list[list[Any]], count: int) -> None:
    """`count` may be larger than what is there: scores of 0 say so."""
    boxes, live = arrays(problem)
    size = boxes.shape[1]
    for spares, plain in RULES:
        scores = torch.linspace(0.9, 0.1, size) * torch.from_numpy(live)
        spared = all_pairs(planes(boxes), spares)
        found, positions = choose(scores, spared, count)
        for row in range(len(boxes)):
            kept = greedy(boxes[row], live[row], plain)[:count]
            taken = found[row] > 0
            assert positions[row][taken].tolist() == kept
            assert found[row].tolist() == [*scores[row][kept].tolist(), *[0.0] * (count - len(kept))]


def all_pairs(boxes: Corners, spares: Spares) -> torch.Tensor:
    spared = spares(boxes.at((..., None)), boxes.at((slice(None), None)))
    spared.diagonal(dim1=1, dim2=2).fill_(False)
    return spared


def test_nothing_to_suppress_and_everything_dead_are_no_special_cases() -> None:
    same = torch.full((2, 3, 40), 0.5)
    boxes = Corners(same, same, same + 0.1, same + 0.1)
    dead = suppress(boxes, torch.ones(2, 3, 40, dtype=torch.bool), ssd_resnet34.spares)
    assert dead.all()
    dead = suppress(boxes, torch.zeros(2, 3, 40, dtype=torch.bool), ssd_resnet34.spares)
    assert (~dead).sum(2).eq(1).all() and not dead[..., 0].any()


def test_equal_scores_leave_in_the_order_they_came_and_one_of_equal_boxes_stays() -> None:
    apart = np.array([[0, 0, 1, 1], [2, 0, 3, 1], [0, 0, 1, 1], [2, 0, 3, 1]], np.float32)[None]
    scores, positions = choose(torch.full((1, 4), 0.5), all_pairs(planes(apart), ssd_mobilenet.spares), 3)
    assert positions[0, :2].tolist() == [0, 1] and scores.tolist() == [[0.5, 0.5, 0.0]]


def test_the_references_overlap_of_distant_boxes_is_kept() -> None:
    """Two unit boxes, gaps of 1 and 1: "overlap" 1, union 1 + 1 - 1, so the worse one goes."""
    boxes = np.array([[0, 0, 1, 1], [2, 2, 3, 3], [0, 5, 1, 6]], np.float32)[None]
    dead = suppress(planes(boxes), torch.zeros(1, 3, dtype=torch.bool), ssd_resnet34.spares)
    assert dead.tolist() == [[False, True, False]]


def test_codes_move_and_stretch_their_anchors() -> None:
    anchors = torch.tensor([[0.5], [0.25], [0.2], [0.1]])
    low, high = decode(torch.tensor([[[1.0], [-2.0], [0.0], [5.0]]]), anchors, 0.1, 0.2)
    assert torch.allclose(low[0, :, 0], torch.tensor([0.52 - 0.1, 0.23 - 0.05 * np.e]), atol=1e-6)
    assert torch.allclose(high[0, :, 0], torch.tensor([0.52 + 0.1, 0.23 + 0.05 * np.e]), atol=1e-6)


def test_rows_are_boxes_score_and_class_or_unused() -> None:
    plane = torch.tensor([[0.1, 0.2]])
    boxes = Corners(plane, plane + 1, plane + 2, plane + 3)
    rows = rows_of(boxes, torch.tensor([[0.7, 0.0]]), torch.tensor([[5, 6]]))
    assert torch.allclose(rows[0, 0], torch.tensor([0.1, 1.1, 2.1, 3.1, 0.7, 5]))
    assert rows[0, 1].tolist() == [0, 0, 0, 0, -1, 0]


# Detections of hand-made outputs: the box of a detection is that of its anchor, as all codes are 0


def boxes_at(anchors: torch.Tensor, index: int, x_first: bool) -> list[float]:
    a, b, c, d = anchors[:, index].tolist()
    x, y, w, h = (a, b, c, d) if x_first else (b, a, d, c)
    return [y - h / 2, x - w / 2, y + h / 2, x + w / 2]


def test_resnet34_detects_what_its_outputs_say() -> None:
    """Two classes on one anchor both stay; of two anchors that overlap, one class keeps the better."""
    module: Any = open_model("ssd-resnet34", {})
    codes, logits = torch.zeros(2, 4, 15130), torch.zeros(2, 81, 15130)
    logits[:, 0] = 12
    logits[0, 7, 14000], logits[0, 80, 14000] = 13, 12.5  # scores 0.51 and 0.31
    logits[0, 7, 14001] = 11.8  # 0.45; a neighbour, 0.077 to the right of a box 0.41 wide: IoU 0.68
    logits[1, 3, 40] = 14
    rows = module.detect(codes, logits)
    anchors = module.anchors.values
    assert rows[0, :3, 5].tolist() == [7, 80, 0] and (rows[0, 2:, 4] == -1).all()
    assert torch.allclose(rows[0, 0, :4], torch.tensor(boxes_at(anchors, 14000, x_first=True)), atol=1e-6)
    assert rows[1, 0, 5] == 3
    assert torch.allclose(rows[1, 0, :4], torch.tensor(boxes_at(anchors, 40, x_first=True)), atol=1e-6)
    assert abs(float(rows[1, 0, 4]) - float(logits[1, :, 40].softmax(0)[3])) < 1e-6
    assert (rows[1, 1:, 4] == -1).all()


def test_resnet34_keeps_200_of_an_image_at_most() -> None:
    module: Any = open_model("ssd-resnet34", {})
    logits = torch.zeros(1, 81, 15130)
    for label in range(1, 81):  # each class five boxes of its own, one above the other and well apart
        logits[0, label, 5 * label + torch.arange(5) * 500] = 5 + label / 20
    rows = module.detect(torch.zeros(1, 4, 15130), logits)
    assert rows.shape == (1, 200, 6) and (rows[..., 4] > 0.05).all()
    scores = rows[0, :, 4]
    assert (scores[:-1] >= scores[1:]).all() and rows[0, :, 5].unique().tolist() == list(range(41, 81))


def test_mobilenet_detects_what_its_outputs_say() -> None:
    module: Any = open_model("ssd-mobilenet", {})
    codes, logits = torch.zeros(2, 1917, 4), torch.full((2, 1917, 91), -6.0)
    logits[0, 1500, 18] = 2.0
    logits[0, 1500, 90] = 1.0
    logits[0, 1500, 0] = 9.0  # background
    logits[0, 7, 18] = -0.8  # 0.31
    logits[0, 9, 18] = -0.9  # 0.289 is below the threshold
    rows = module.detect(codes, logits)
    assert rows.shape == (2, 100, 6)
    assert rows[0, :4, 5].tolist() == [18, 90, 18, 0] and (rows[1, :, 4] == -1).all()
    expected = torch.tensor([2.0, 1.0, -0.8]).sigmoid()
    assert torch.allclose(rows[0, :3, 4], expected)
    for row, anchor in ((0, 1500), (1, 1500), (2, 7)):
        wanted = torch.tensor(boxes_at(module.anchors.values, anchor, x_first=False))
        assert torch.allclose(rows[0, row, :4], wanted, atol=1e-6)


def test_mobilenet_sees_no_more_candidates_than_it_is_told() -> None:
    logits = torch.full((1, 1917, 91), -6.0)
    logits[0, :1083:3, 1] = 1.0 + torch.linspace(0, 1, 361)  # 361 cells of the first grid, far apart
    for candidates, found in ((20, 20), (512, 100)):
        module: Any = open_model("ssd-mobilenet", {"candidates": candidates})
        rows = module.detect(torch.zeros(1, 1917, 4), logits)
        assert int((rows[..., 4] > 0).sum()) <= found
