"""How a benchmark's folder is called in a tree, so that the round's checker knows what it holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.rules import Benchmark, Round
from orchestrator.submission.gather import Evidence
from orchestrator.submission.guessed_models import guessed_model
from orchestrator.submission.layout import Layout
from orchestrator.submission.refusal import SubmitError, safe_name


def official_folder(benchmark: Benchmark) -> str:
    """resnet50, ssd-mobilenet, ssd-resnet34, bert-99.9, ...: the rules' names, which all checkers take."""
    conf = benchmark.conf_model_name
    return conf if conf in benchmark.aliases else benchmark.name


def model_folder(
    found: Round, layout: Layout, division: str, cell: Evidence, models: Mapping[str, str]
) -> str:
    """The folder of a cell: in open the model's own name, where the checker can make sense of it."""
    benchmark = found.benchmark(cell.benchmark)
    own = model_used(found, division, cell, models)
    if own is None or own in found.benchmark_names():
        return official_folder(benchmark)
    if layout.one_tree or guessed_model(own, layout) == benchmark.name:
        return safe_name("the model's name", own)
    return official_folder(benchmark)


def model_used(found: Round, division: str, cell: Evidence, models: Mapping[str, str]) -> str | None:
    """The name of another network than the reference's, as given or as the workers tell it; None for none."""
    benchmark = found.benchmark(cell.benchmark)
    given = models.get(cell.benchmark)
    if division != "open":
        if given is not None:
            raise SubmitError(
                f"the {division} division has the reference's models only, so none can be named ({given})"
            )
        return None
    if given is not None:
        return given
    facts = cell.performance.model_facts
    own = str(facts.get("model") or "")
    if not own or facts.get("engine") == "echo" or own == benchmark.reference.model:
        return None
    return own


def by_benchmark(found: Round, given: Mapping[str, str], cells: list[Evidence], what: str) -> dict[str, str]:
    """NAME alone, under "", for the only benchmark; BENCHMARK=NAME by the benchmark's own name."""
    present = sorted({cell.benchmark for cell in cells})
    named: dict[str, str] = {}
    for benchmark, value in given.items():
        if not benchmark and len(present) > 1:
            raise SubmitError(f"{what} {value}: say of which benchmark, as in {present[0]}={value}")
        name = found.benchmark(benchmark).name if benchmark else present[0]
        if name not in present:
            raise SubmitError(f"{what} {benchmark}={value}: there are no records of {name}")
        named[name] = value
    return named
