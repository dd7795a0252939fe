"""A plan as people read it: what will run, in which order, for how long, and what it breaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from orchestrator.expectation import STREAMS, expected_s, expected_samples
from orchestrator.findings_manifest import lacking_compliance
from orchestrator.machine import available_memory_bytes
from orchestrator.manifest import Manifest
from orchestrator.manifest_backends import EchoBackend, TorchBackend
from orchestrator.phrases import duration, plural, size, with_unit
from orchestrator.plan import Finding, TestSpec, memory_needed_bytes
from orchestrator.preflight import not_here
from orchestrator.rules import load_round
from orchestrator.tables import facts_grid, listed, plain_table, with_tests
from workers.models import EIGHT_BITS, large_weights

# What a compliance test does otherwise than the performance test.
AUDITS = {
    "TEST01": ("some answers are logged, and compared with the accuracy test's",),
    "TEST04": ("one and the same sample all the time",),
    "TEST04-A": ("every sample once, as many as are loaded; then it ends, INVALID or not",),
    "TEST04-B": ("one and the same sample all the time",),
    "TEST05": ("other seeds",),
}


def show_plan(
    manifest: Manifest, specs: Sequence[TestSpec], console: Console, available_bytes: int | None = None
) -> None:
    """Print one block. `available_bytes`: this machine's free memory; None: look."""
    free = available_memory_bytes() if available_bytes is None else available_bytes
    console.print(Rule(Text(f"{manifest.name} ({manifest.path})", style="bold"), style="dim"))
    for part in _parts(manifest, specs, free):
        console.print(part)


def _parts(manifest: Manifest, specs: Sequence[TestSpec], free: int | None) -> Iterator[RenderableType]:
    yield facts_grid((name, Text(text, overflow="fold")) for name, text in _facts(manifest))
    yield Text()
    yield _tests(specs)
    yield Text()
    yield Text(_total(specs))
    yield _memory(specs, free)
    yield from _memory_of_weights(manifest, free)
    yield Text()
    yield from _rules(specs, lacking_compliance(load_round(manifest.round), manifest))
    if not any(finding.scope == "test" for spec in specs for finding in spec.broken_rules):
        needs = list(only_the_user([manifest]))
        yield from (Text(need) for need in needs)
        if needs:
            yield Text()
    if absent := not_here([manifest]):
        yield Text(absent, style="yellow")
        yield Text()
    notes = with_tests([(note, spec.name) for spec in specs for note in spec.notes], len(specs))
    if notes:
        yield listed("Notes", notes, "cyan")
        yield Text()


def only_the_user(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What an official result needs besides, and no plan can know."""
    unverified = sum(m.task.sha256 is None for m in manifests)
    unweighed = sum(
        getattr(m.backend, "weights", None) is not None and getattr(m.backend, "weights_sha256", None) is None
        for m in manifests
    )
    unscaled = sum(
        getattr(m.backend, "scales", None) is not None and getattr(m.backend, "scales_sha256", None) is None
        for m in manifests
    )
    for field, lacking in (
        ("task.sha256", unverified),
        ("backend.weights_sha256", unweighed),
        ("backend.scales_sha256", unscaled),
    ):
        without = f" ({plural(lacking, 'manifest')} without)" if len(manifests) > 1 else ""
        if lacking:
            yield f"Official results also need {field}{without}."


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "round", f"{manifest.round}, division {manifest.division}, suite {manifest.suite}"
    yield "benchmark", manifest.benchmark
    backend, workers, dispatch = manifest.backend, manifest.workers, manifest.dispatch
    if isinstance(backend, EchoBackend):
        each = f"{backend.service_time_us:g} us a batch" if backend.service_time_us else "at once"
        yield "model", f"none: engine echo answers {each}"
    elif isinstance(backend, TorchBackend):
        seeded = "seeded random weights, no checkpoint"
        weights = seeded if backend.weights is None else f"weights {backend.weights}"
        scales = backend.scales or "of random samples"
        scaled = f", scales {scales}" if backend.precision in EIGHT_BITS.values() else ""
        yield "model", f"{backend.model}, {backend.precision}, {weights}{scaled}"
    else:
        yield "model", f"{backend.model or 'of the file'}, engine {backend.engine}, {backend.weights}"
    if held := weights_held(manifest):
        yield "memory", held
    yield "data", f"{_data(manifest)}; payload {dispatch.payload}"
    found = load_round(manifest.round).benchmark(manifest.benchmark)
    beyond = [f"{step} (as the reference)" for step in found.untimed_by_reference]
    yield "untimed", f"from {found.raw_input}: {', '.join([*found.untimed, *beyond])}; all else is timed"
    if workers.where == "local":
        place = "in the test process"
    else:
        need = f"{workers.num_cpus:g} CPU and {workers.num_gpus:g} GPU each"
        place = f"on Ray, {need}, placement {workers.placement}; security {dispatch.security}"
    count = plural(workers.count, "worker") + (" on every node" if workers.placement == "per_node" else "")
    yield "workers", f"{count} {place}; up to {plural(workers.max_batch, 'sample')} a batch"
    lost = {"fail": "the test ends", "reissue": "its samples go to the others"}[manifest.on_loss]
    yield "lost worker", f"{lost} (on_loss: {manifest.on_loss})"


def weights_held(manifest: Manifest) -> str | None:
    """What of a worker's memory weights take that may not fit; None where only the built network tells."""
    found, workers = large_weights_of(manifest), manifest.workers
    if found is None:
        return None
    what, held = found
    each = f"{size(held)} of {what}"
    if workers.where == "local":
        every = f" for each worker, {size(held * workers.count)}" if workers.count > 1 else ""
        return f"{each}{every} in this machine's memory"
    memory = "GPU memory" if workers.num_gpus else "host memory"
    sharing = min(int(1 / workers.num_gpus), workers.count) if 0 < workers.num_gpus < 1 else 1
    shared = f"; {size(held * sharing)} on a GPU that {sharing} of them share" if sharing > 1 else ""
    return f"{each} in the {memory} of each worker{shared}"


def large_weights_of(manifest: Manifest) -> tuple[str, int] | None:
    """What a worker's weights are, and their bytes; None where only the built network tells."""
    backend = manifest.backend
    if not isinstance(backend, TorchBackend):
        return None
    return large_weights(backend.model, backend.options, backend.precision)


def _data(manifest: Manifest) -> str:
    options = manifest.task.options
    if options.get("generated"):
        return f"{manifest.task.name}, {options['generated']} generated samples in place of the data set"
    if options.get("calibration"):
        return f"{manifest.task.name}, the samples for calibration only"
    return manifest.task.name


def _tests(specs: Sequence[TestSpec]) -> Table:
    table = plain_table()
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("test", no_wrap=True)
    table.add_column("takes about", no_wrap=True)
    table.add_column("settings")
    for number, spec in enumerate(specs, 1):
        seconds = expected_s(spec)
        takes = "?" if seconds is None else duration(seconds)
        if seconds is not None and spec.scenario == "Offline":
            takes = f"{takes} or more"  # a system slower than target_qps takes longer
        table.add_row(str(number), spec.name, takes, "; ".join(_settings(spec)))
    return table


def _settings(spec: TestSpec) -> Iterator[str]:
    """The settings that decide what a test means, with units."""
    if spec.test == "accuracy":
        yield from _accuracy_settings(spec)
        return
    yield from AUDITS.get(spec.test, ())
    settings = spec.settings
    fewest = plural(int(settings["min_query_count"]), "query")
    shortest = duration(float(settings["min_duration_ms"]) / 1000)
    if spec.scenario == "Offline":
        qps = f"{settings['offline_expected_qps']:,g}"
        yield f"one query of {plural(expected_samples(spec) or 0, 'sample')} ({qps} samples/s expected)"
        yield f"lasts at least {shortest}"
    elif spec.scenario == "Server":
        share, limit = 100 * settings["server_target_latency_percentile"], (spec.limit_ns or 0) / 1e6
        yield f"{settings['server_target_qps']:,g} queries/s offered; {share:g} % within {limit:,g} ms"
        yield f"at least {fewest} and {shortest}"
    else:
        yield from _stream_settings(spec)
        yield f"at least {fewest} and {shortest}"
    if settings["max_duration_ms"]:
        yield f"at most {duration(settings['max_duration_ms'] / 1000)}"
    drawn = spec.performance_sample_count
    yield f"drawn from {plural(drawn, 'sample')}" if drawn else "drawn from the whole data set"


def _stream_settings(spec: TestSpec) -> Iterator[str]:
    settings, name = spec.settings, STREAMS[spec.scenario]
    if spec.scenario == "MultiStream":
        yield f"queries of {plural(int(settings['multi_stream_samples_per_query']), 'sample')}"
    if "multi_stream_target_qps" in settings:
        yield f"{settings['multi_stream_target_qps']:,g} queries/s at a fixed interval"
    else:
        yield f"one after the other; {settings[f'{name}_expected_latency_ns'] / 1e6:,g} ms each expected"
    yield f"p{100 * settings[f'{name}_target_latency_percentile']:g} reported"


def _accuracy_settings(spec: TestSpec) -> Iterator[str]:
    goal, samples = spec.accuracy, expected_samples(spec)
    yield f"{plural(samples, 'sample')}, each once" if samples else "the whole data set, each sample once"
    if goal is not None:
        sign = "≥" if goal.higher_is_better else "≤"
        yield with_unit(f"{goal.metric} {sign} {goal.target:g}", goal.unit)
        if not samples:
            yield f"the round's has {plural(goal.sample_count, 'sample')}"


def _total(specs: Sequence[TestSpec]) -> str:
    known = [seconds for spec in specs if (seconds := expected_s(spec)) is not None]
    text = f"{plural(len(specs), 'test')}, one after the other"
    if known:
        text = f"{text}: about {duration(sum(known))}"
        if any(spec.scenario == "Offline" for spec in specs):
            text = f"{text} or more"
    if len(known) < len(specs):
        text = f"{text}, and what the accuracy tests take (known when the data set is open)"
    return f"{text}. Loading models comes on top."


def _memory(specs: Sequence[TestSpec], free: int | None) -> Text:
    hungriest = max(specs, key=memory_needed_bytes)
    needed = memory_needed_bytes(hungriest)
    need = f"LoadGen's own memory: up to {size(needed)} ({hungriest.name})"
    if free is None:
        return Text(f"{need}; this machine does not say how much is free.")
    if needed <= free:
        return Text(f"{need}; {size(free)} are free here.")
    return Text(
        f"{need}, but only {size(free)} are free here: IT WILL NOT FIT. Lower target_qps or min_duration of "
        "that scenario, or use a machine with more memory.",
        style="bold red",
    )


def _memory_of_weights(manifest: Manifest, free: int | None) -> Iterator[Text]:
    """That they do not fit, where all workers are on this machine."""
    found = large_weights_of(manifest)
    if found is None or free is None or manifest.workers.where != "local":
        return
    what, needed = found[0], found[1] * manifest.workers.count
    if needed > free:
        yield Text(
            f"The workers' {what}: {size(needed)}, but only {size(free)} are free here: THEY WILL NOT FIT. "
            "Make them smaller (backend.options, precision), or take fewer workers, or others (where: ray).",
            style="bold red",
        )


def _rules(specs: Sequence[TestSpec], compliance: str | None) -> Iterator[RenderableType]:
    found = [(finding, spec.name) for spec in specs for finding in spec.broken_rules]
    broken = with_tests([(_told(f), name) for f, name in found if f.scope == "test"], len(specs))
    missing = with_tests([(_told(f), name) for f, name in found if f.scope != "test"], len(specs))
    missing += [compliance] if compliance else []
    if broken:
        title = f"{plural(len(broken), 'rule')} broken: the run goes on, and is marked unofficial"
        yield listed(title, broken, "red")
    else:
        yield Text("No rule broken.", style="bold green")
    yield Text()
    if missing:
        yield listed("Missing beside these tests, for a submission", missing, "yellow")
        yield Text()


def _told(finding: Finding) -> str:
    return f"{finding.rule}: {finding.why} ({finding.source})"
