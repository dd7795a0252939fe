"""The benchmark that a model of the open division stands for, as the official checkers guess it."""

from __future__ import annotations

from orchestrator.submission.layout import Layout

# (a part of the model's name, the benchmark it is taken for), in the checkers' order.
# submission-checker.py of v1.0.1 and r1.1, Config.get_mlperf_model:
GUESSES_V1 = (
    ("ssdlite", "ssd-small"),
    ("ssd-inception", "ssd-small"),
    ("yolo", "ssd-small"),
    ("ssd-mobilenet", "ssd-small"),
    ("ssd-resnet50", "ssd-small"),
    ("mobilenet", "resnet"),
    ("efficientnet", "resnet"),
    ("rcnn", "ssd-small"),
)
# submission_checker/configuration/configuration.py of the newest one, for the benchmarks that LoadGrid has:
GUESSES_NEWEST = (
    ("mobilenet", "resnet"),
    ("efficientnet", "resnet"),
    ("resnet50", "resnet"),
    ("bert-99.9", "bert-99.9"),
    ("bert-99", "bert-99"),
)


def guessed_model(model: str, layout: Layout) -> str:
    """The benchmark that the round's checker takes a model for; its own name if it takes it for none."""
    guesses = GUESSES_NEWEST if layout.one_tree else GUESSES_V1
    return next((official for part, official in guesses if part in model), model)
