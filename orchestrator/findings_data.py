"""Rules about what is measured: the benchmark's own data set, network and weights. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.findings import Finding
from orchestrator.manifest_backends import Ctranslate2Backend, EchoBackend, OnnxBackend, TorchBackend
from orchestrator.manifest_fields import Manifest
from orchestrator.rules import Benchmark, Reference, Round
from workers.models import EIGHT_BITS

# Task options that leave the benchmark's data set what it is; every other one is for tests and examples.
FREE_TASK_OPTIONS = {"path", "count", "truth", "cases", "quantiles", "response", "dtype", "preprocess"}
# Model options that leave the network what it is.
FREE_MODEL_OPTIONS = {"normalize", "window_batch", "lanes", "decode_graph"}
# Said by findings of their own.
_TOLD = {"generated", "calibration"}


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
    for option in sorted(options.keys() - FREE_TASK_OPTIONS - _TOLD):
        yield Finding(
            rule="data_set",
            why=f"task.{option} is set: it makes other samples than the data set's ({benchmark.dataset})",
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
    source = f"{found.name} benchmarks.{benchmark.name}.reference"
    if manifest.division != "open":
        yield from _other_network(benchmark, manifest, source)
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
            source=source,
        )
    if isinstance(backend, TorchBackend) and backend.weights is None:
        yield Finding(
            rule="weights",
            why="backend.weights is not set: the network computes with seeded random weights, so its answers "
            "mean nothing",
            source="design: official",
        )


def _other_network(benchmark: Benchmark, manifest: Manifest, source: str) -> Iterator[Finding]:
    """What makes another network of one that is named rightly."""
    backend = manifest.backend
    if isinstance(backend, Ctranslate2Backend):
        why = f"engine ctranslate2 computes Whisper, not {benchmark.model}"
        yield Finding(rule="reference_model", why=why, source=source)
    options = backend.options if isinstance(backend, TorchBackend) else {}
    for option in sorted(options.keys() - FREE_MODEL_OPTIONS):
        why = f"backend.options.{option} is set: it makes another network than {benchmark.model}"
        yield Finding(rule="reference_model", why=why, source=source)
    if benchmark.reference.task == "imagenet":
        preprocess = manifest.task.options.get("preprocess", "pytorch")
        # The reference's ONNX file is of the vgg kind, its .pth file of the other.
        normalize = options.get("normalize", "pytorch") if isinstance(backend, TorchBackend) else "vgg"
        if preprocess != normalize:
            why = (
                f"photos are prepared as for {preprocess} weights, the network takes them as {normalize} "
                f"ones; set task.preprocess: {normalize}"
            )
            yield Finding(rule="preprocessing", why=why, source=source)


def identity_findings(
    found: Round, benchmark_name: str, meta: Mapping[str, Any], sample_bytes: int
) -> list[Finding]:
    """Whether a prepared data set is the benchmark's own, where the round knows more of it than its count."""
    reference = found.benchmark(benchmark_name).reference
    other_list = reference.identity is not None and meta.get("identity") != reference.identity
    other_size = reference.sample_bytes is not None and sample_bytes != reference.sample_bytes
    if not other_list and not other_size:
        return []
    what = "its list names other samples" if other_list else f"its samples have {sample_bytes} bytes"
    why = f"the prepared data set is not {found.benchmark(benchmark_name).dataset}: {what}"
    source = f"{found.name} benchmarks.{benchmark_name}.reference"
    return [Finding(rule="data_set", why=why, source=source)]


def calibration_findings(
    found: Round, manifest: Manifest, facts: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Whether scales that the workers computed with were made from the round's own calibration list.

    Every division but open allows no other samples (rules, Quantization). `facts`: the workers' own, of a
    record perhaps, which may say anything.
    """
    if manifest.division == "open":
        return
    benchmark = found.benchmark(manifest.benchmark)
    eight = EIGHT_BITS.values() if isinstance(manifest.backend, TorchBackend) else ()
    for fact in facts:
        made = fact.get("calibration")
        if isinstance(made, Mapping):
            why = _calibrated_otherwise(benchmark.reference, made)
        else:
            told_nothing = fact.get("precision") in eight or made is not None
            why = "a worker with 8 bits does not tell from what its scales were made" if told_nothing else ""
        if why:
            source = f"{found.name} benchmarks.{benchmark.name}.reference"
            yield Finding(rule="calibration", why=why, source=source)
            return  # of all workers: more that differ are told of elsewhere


def _calibrated_otherwise(reference: Reference, made: Mapping[str, Any]) -> str:
    """From what else than one of the reference's lists scales were `made`; empty if from one."""
    listed = reference.calibration_lists.get(str(made.get("list_sha256")))
    if listed is None:
        what = f"the list {made['list']}" if made.get("list") else "generated samples"
        names = [one.name for one in reference.calibration_lists.values()]
        named = ", ".join(names) or "which LoadGrid does not know yet"
        return f"the scales were made from {what}, not from the benchmark's calibration list ({named})"
    if made.get("task") != reference.task:
        task = f"task {made.get('task')}, not of {reference.task}"
        return f"the scales were made from {listed.name} with samples of {task}"
    if listed.count is not None and made.get("count") != listed.count:
        return f"the scales were made from {made.get('count')} samples; {listed.name} has {listed.count}"
    return ""


def ground_truth_findings(manifest: Manifest) -> Iterator[Finding]:
    """Why an accuracy test can never be scored, known before it runs."""
    if manifest.task.options.get("generated"):
        yield Finding(
            rule="ground_truth",
            why="generated samples have no true answers: this accuracy test will fail, for it cannot be "
            "scored; leave it out (runs: [performance])",
            source="design: official",
        )
    if manifest.task.options.get("calibration"):
        why = "calibration samples are not scored: this accuracy test will fail; leave it out"
        yield Finding(rule="ground_truth", why=why, source="design: official")
    elif manifest.task.name == "brats" and not manifest.task.options.keys() & {"truth", "generated"}:
        why = "task.truth is not set: without true labels this accuracy test cannot be scored and fails"
        yield Finding(rule="ground_truth", why=why, source="design: official")


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
        whose = "performance_sample_count_override, or else the round's count"
        why = f"{drawn} samples are to be drawn ({whose}), the data set has {count}"
        source = f"{field}.performance_sample_count_min"
        return [Finding(rule="performance_sample_count", why=why, source=source)]
    if test == "performance" and count != benchmark.accuracy_sample_count:
        # LoadGen draws from the whole data set, and what it draws depends on the count.
        why = f"the data set has {count} samples instead of {benchmark.accuracy_sample_count}"
        source = f"{field}.accuracy_sample_count"
        return [Finding(rule="performance_sample_count", why=why, source=source)]
    return []
