"""Rules about what is measured: the benchmark's own data set, network and weights. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.findings import Finding
from orchestrator.manifest_backends import Ctranslate2Backend, EchoBackend, OnnxBackend, TorchBackend
from orchestrator.manifest_fields import Manifest
from orchestrator.rules import Benchmark, Round


def measured_findings(found: Round, benchmark: Benchmark, manifest: Manifest) -> Iterator[Finding]:
    """What the manifest measures instead of the benchmark, in every test of it."""
    yield from _data_findings(found, benchmark, manifest)
    yield from _model_findings(found, benchmark, manifest)


def _data_findings(found: Round, benchmark: Benchmark, manifest: Manifest) -> Iterator[Finding]:
    """Every division asks for the benchmark's own data set, the whole of it."""
    source = f"{found.name} benchmarks.{benchmark.name}.reference"
    task, options = manifest.task.name, manifest.task.options
    if task != benchmark.reference.task:
        yield Finding(
            rule="data_set",
            why=f"task {task} is not the data set {benchmark.reference.task} ({benchmark.dataset})",
            source=source,
        )
        return
    if options.get("generated"):
        yield Finding(
            rule="data_set",
            why=f"task.generated: {options['generated']} generated samples, not the data set "
            f"({benchmark.dataset})",
            source=source,
        )
    if options.get("calibration"):
        yield Finding(
            rule="data_set",
            why="task.calibration: the samples for calibrating a quantised network, not the data set "
            f"({benchmark.dataset})",
            source=source,
        )


def _model_findings(found: Round, benchmark: Benchmark, manifest: Manifest) -> Iterator[Finding]:
    """Every division but open asks for the benchmark's own network, and every one for published weights."""
    backend, wanted = manifest.backend, benchmark.reference.model
    if isinstance(backend, EchoBackend):
        yield Finding(
            rule="model", why="engine echo computes nothing: there is no model", source="design: official"
        )
        return
    if manifest.division != "open" and backend.model != wanted:
        of_file = isinstance(backend, OnnxBackend | Ctranslate2Backend) and backend.model is None
        why = (
            f"backend.model does not say which network {backend.weights} is; it must be {wanted}"
            if of_file
            else f"model {backend.model} is not the network {wanted}"
        )
        yield Finding(
            rule="reference_model",
            why=f"{why} ({benchmark.model})",
            source=f"{found.name} benchmarks.{benchmark.name}.reference",
        )
    if isinstance(backend, TorchBackend) and backend.weights is None:
        yield Finding(
            rule="weights",
            why="backend.weights is not set: the network computes with seeded random weights, so its answers "
            "mean nothing",
            source="design: official",
        )


def ground_truth_findings(manifest: Manifest) -> Iterator[Finding]:
    """Why an accuracy test can never be scored, known before it runs."""
    if manifest.task.options.get("generated"):
        yield Finding(
            rule="ground_truth",
            why="generated samples have no true answers: this accuracy test will fail, for it cannot be "
            "scored; leave it out (runs: [performance])",
            source="design: official",
        )


def library_findings(
    found: Round, benchmark_name: str, test: str, count: int, drawn: int = 0
) -> list[Finding]:
    """Whether a prepared data set of `count` samples has the round's size and holds the `drawn` ones."""
    benchmark = found.benchmark(benchmark_name)
    field = f"{found.name} benchmarks.{benchmark.name}"
    if test == "accuracy" and count != benchmark.accuracy_sample_count:
        why = f"the data set has {count} samples instead of {benchmark.accuracy_sample_count}"
        return [Finding(rule="accuracy_sample_count", why=why, source=f"{field}.accuracy_sample_count")]
    if test == "performance" and drawn > count:
        why = f"performance_sample_count_override is {drawn}, the data set has {count} samples"
        source = f"{field}.performance_sample_count_min"
        return [Finding(rule="performance_sample_count", why=why, source=source)]
    if test == "performance" and count < benchmark.performance_sample_count_min:
        why = (
            f"the data set has {count} samples; the round draws from {benchmark.performance_sample_count_min}"
        )
        source = f"{field}.performance_sample_count_min"
        return [Finding(rule="performance_sample_count", why=why, source=source)]
    return []
