"""The rules that a manifest breaks as a whole: division, network, suite, scenarios, LoadGen. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from orchestrator.findings import Finding
from orchestrator.findings_data import measured_findings
from orchestrator.manifest_fields import Manifest
from orchestrator.rules import Benchmark, Place, Round, Wanted

NETWORK_SCENARIOS = ("Server", "Offline")
REQUIRED_SCENARIO = "required_scenario"  # the one rule that another manifest can keep in this one's place


def needs_own_generator(manifest: Manifest, found: Round, scenario: str) -> bool:
    """Whether LoadGrid itself must ask: MultiStream of the old rounds, without their own LoadGen."""
    return scenario == "MultiStream" and found.fixed_interval_multistream and manifest.loadgen.path is None


def manifest_findings(
    found: Round, benchmark: Benchmark, manifest: Manifest, scenario: str
) -> Iterator[Finding]:
    """What the manifest breaks in every test of this scenario."""
    division = manifest.division
    if division not in found.divisions:
        yield Finding(
            rule="division",
            why=f"round {found.name} has no {division} division",
            source=f"{found.name} divisions",
        )
    yield from measured_findings(found, benchmark, manifest)
    yield from _network_findings(found, manifest)
    if division != "open" and manifest.accuracy_target is not None:
        yield Finding(
            rule="accuracy_target",
            why=f"accuracy_target replaces {benchmark.accuracy.target}; only the open division may",
            source=f"{found.name} benchmarks.{benchmark.name}.accuracy",
        )
    if needs_own_generator(manifest, found, scenario):
        yield Finding(
            rule="loadgen",
            why="LoadGrid's own fixed-interval generator asks, for LoadGen 6 has no MultiStream of round "
            f"{found.name}; for an official result name the folder of LoadGen {found.loadgen.tag} in "
            "loadgen.path",
            source=f"{found.name} loadgen.versions",
        )
    elif manifest.loadgen.path is None:
        yield from plan_findings_for_loadgen("6.0.17", None, found)


def _network_findings(found: Round, manifest: Manifest) -> Iterator[Finding]:
    """What the Network division asks for besides."""
    if manifest.division != "network":
        return
    source = f"{found.sources['rules']}, Network Division"
    if "datacenter" not in manifest.suite.split(","):
        yield Finding(rule="network", why="the Network division has the datacenter suite only", source=source)
    others = [name for name in manifest.scenarios if name not in NETWORK_SCENARIOS]
    if others:
        yield Finding(rule="network", why=f"the Network division has no {', '.join(others)}", source=source)
    if manifest.dispatch.payload != "value":
        yield Finding(
            rule="payload",
            why="the Network division sends samples inside the clock: dispatch.payload must be value",
            source=source,
        )
    if manifest.workers.where == "local":
        yield Finding(
            rule="network",
            why="workers in the test process have no network between LoadGen and them",
            source=source,
        )


def network_on_one_host_finding(manifest: Manifest, found: Round, near: Sequence[str]) -> Finding | None:
    """The finding on workers of the Network division that share LoadGen's host (`near`), if there are any."""
    if manifest.division != "network" or not near:
        return None
    return Finding(
        rule="network",
        why=f"{', '.join(near)} ran on LoadGen's own host; SUT and QDL must be separate systems",
        source=f"{found.sources['rules']}, Network Division",
    )


def suite_findings(
    found: Round, benchmark: Benchmark, manifest: Manifest, scenario: str
) -> Iterator[Finding]:
    """Whether the suite has the benchmark and the scenario, and what the manifest leaves out."""
    place = found.place(manifest.suite, benchmark.name)
    if place is None:
        yield Finding(
            rule="suite",
            why=f"{benchmark.name} is not in the {manifest.suite} suite of round {found.name}",
            source=f"{found.name} suites.{manifest.suite}",
        )
        return
    source = f"{found.name} suites.{manifest.suite}.{benchmark.name}"
    for judge, wanted in _judges(place, manifest.division).items():
        if not wanted.allows(scenario):
            yield Finding(
                rule="scenario",
                why=f"by the {judge}, {benchmark.name} has no {scenario} in the {manifest.suite} suite",
                source=f"{source}.{judge}",
            )
    yield from missing_scenario_findings(found, benchmark, manifest, manifest.scenarios)
    for run in ("performance", "accuracy"):
        if run not in manifest.runs:
            yield Finding(
                rule="required_run",
                why=f"a result needs the {run} test too, of the same system",
                source=found.sources["rules"],
            )


def missing_scenario_findings(
    found: Round, benchmark: Benchmark, manifest: Manifest, measured: Collection[str]
) -> Iterator[Finding]:
    """The scenarios that the benchmark needs besides those `measured`, in this manifest and others."""
    place = found.place(manifest.suite, benchmark.name)
    judges = {} if place is None else _judges(place, manifest.division)
    for judge, wanted in judges.items():
        missing = [name for name in wanted.required if name not in measured]
        if missing:
            yield Finding(
                rule=REQUIRED_SCENARIO,
                why=f"by the {judge}, a submission also needs {', '.join(missing)}",
                source=f"{found.name} suites.{manifest.suite}.{benchmark.name}.{judge}",
                scope="manifest",
            )


def lacking_compliance(found: Round, manifest: Manifest) -> str | None:
    """The compliance tests that a submission needs and `runs` does not name, in words; no rule is broken."""
    if manifest.division == "open":
        return None
    scenarios: dict[tuple[str, ...], list[str]] = {}
    for scenario in manifest.scenarios:
        wanted = found.compliance_tests(manifest.benchmark, scenario)
        lacking = tuple(test for test in wanted if test not in manifest.runs)
        if lacking:
            scenarios.setdefault(lacking, []).append(scenario)
    told = [f"{', '.join(tests)} of {', '.join(names)}" for tests, names in scenarios.items()]
    return f"{'; '.join(told)} (plan and run them with --compliance)" if told else None


def _judges(place: Place, division: str) -> dict[str, Wanted]:
    """Who judges the scenarios: nobody in the open division (v6.1: loader.py of the checker, too)."""
    return {} if division == "open" else {"rules": place.rules, "checker": place.checker}


def plan_findings_for_loadgen(version: str, file_hash: str | None, found: Round) -> list[Finding]:
    """Whether this LoadGen is one that the round approves.

    `version` may be what the log shows ("6.0.17 @ d6147c7eb7"). `file_hash` is the sha256 of the module's
    file; None (planning) leaves it out.
    """
    approved = found.loadgen
    number, _, revision = version.partition(" @ ")
    source = f"{found.name} loadgen"
    if number.strip() not in approved.versions:
        own = (
            f"LoadGen built from {approved.tag} ({approved.revision})"
            if approved.tag
            else f"LoadGen {approved.versions[0]}"
        )
        mend = "; name the folder of its module in loadgen.path" if approved.tag else ""
        shown = number.strip() or "(no version)"
        why = f"LoadGen {shown} is not the round's own: {found.name} needs {own}{mend}"
        return [Finding(rule="loadgen", why=why, source=f"{source}.versions")]
    revision = revision.strip()
    revision = "" if revision == "NA" else revision
    # A LoadGen that does not tell its revision passes in a plan only, which has seen no file yet.
    unproven = not revision and file_hash is not None
    if approved.revision and (unproven or (revision and not _same_revision(approved.revision, revision))):
        why = f"LoadGen was built from revision {revision or '(unknown)'}, not from {approved.revision}"
        return [Finding(rule="loadgen", why=why, source=f"{source}.revision")]
    if approved.sha256 and file_hash is not None and file_hash not in approved.sha256:
        why = f"the LoadGen file (sha256 {file_hash[:12]}...) is none of the published builds of {number}"
        return [Finding(rule="loadgen_file", why=why, source=f"{source}.sha256")]
    return []


def _same_revision(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def index_to_remote_finding(manifest: Manifest, found: Round, remote_hosts: Sequence[str]) -> Finding | None:
    """The finding on payload index to workers on other hosts than LoadGen's, if there is one.

    The rules put the samples in the memory of the processor on which LoadGen runs. Which hosts the workers
    are on is known when they run, so the plan cannot say.
    """
    if manifest.division != "closed" or manifest.dispatch.payload != "index" or not remote_hosts:
        return None
    if manifest.dispatch.index_approval is not None:
        return None
    hosts = ", ".join(remote_hosts)
    return Finding(
        rule="payload",
        why=f"payload index to other hosts ({hosts}) needs dispatch.index_approval, or payload value",
        source=f"{found.sources['rules']}, LoadGen Operation",
    )
