"""Which tests of a manifest are done and stay, and which run again, and why. Pure.

A test is done when its record is finished and good (VALID, accuracy reached, compliance passed), every file
that the record names is as it was, and nothing that the test hangs on has changed: the manifest's bytes, the
test's own digest, data set, weights, LoadGen, the code and its commit, the libraries. A compliance test is a
comparison with other tests of the same run, so it is no more done than they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.audit import FIRST_HALF, RESULTS
from orchestrator.phrases import verdict
from orchestrator.plan import TestSpec
from orchestrator.present import Present
from orchestrator.record import Record

HALVES = {**FIRST_HALF, **{second: first for first, second in FIRST_HALF.items()}}


@dataclass(frozen=True)
class Found:
    """What lies of a test in a run's folder: its record, or none, with the reason why it is not taken."""

    record: Record | None
    trouble: str = ""


def reasons_to_run(specs: Sequence[TestSpec], found: Mapping[str, Found], present: Present) -> dict[str, str]:
    """The tests that must run, in their order, each with the reason; all others are done.

    A reason is empty where nothing of the test is there: it was not run before.
    """
    why = {spec.name: told for spec in specs if (told := _own_reason(spec, found, present)) is not None}
    for spec in specs:
        if spec.name not in why and (again := _rerun(spec, why)):
            why[spec.name] = f"{again} runs again, and it is compared with that"
    return {spec.name: why[spec.name] for spec in specs if spec.name in why}


def compared_with(spec: TestSpec) -> list[str]:
    """The tests of the same run whose logs a compliance test is compared with."""
    if not spec.is_audit:
        return []
    if spec.test in HALVES:
        others = [HALVES[spec.test]]
    else:
        others = list(RESULTS) if spec.test == "TEST01" else ["performance"]
    return [f"{spec.scenario}-{other}" for other in others]


def _rerun(spec: TestSpec, why: Mapping[str, str]) -> str:
    """Those of `why` that make a test stale; TEST04's first half stays while its second was never run."""
    first = spec.test in FIRST_HALF
    return ", ".join(name for name in compared_with(spec) if why.get(name) or (name in why and not first))


def _own_reason(spec: TestSpec, found: Mapping[str, Found], present: Present) -> str | None:
    """Why a test must run by itself; None if it need not."""
    there = found.get(spec.name, Found(None))
    if there.record is None:
        return there.trouble
    told = verdict(there.record)
    if there.record.status != "finished" or not told.good:
        return f"it was {told.word}"
    return "; ".join(changes(spec, there.record, present)) or there.trouble or None


def changes(spec: TestSpec, record: Record, present: Present) -> Iterator[str]:
    """What a record's test would run on now, and did not then."""
    if record.hashes.get("manifest") != present.manifest:
        yield "the manifest has changed"
    if record.digest != spec.digest:
        yield "the test's settings have changed"
    if record.hashes.get("library") != present.library:
        yield "the data set has changed"
    for what, now in (("weights", present.weights), ("scales", present.scales)):
        yield from _other_weights(record, what, now)
    file = str(record.loadgen.get("file"))
    now = present.loadgens.get(file, present.loadgens.get(""))
    if not now or record.loadgen.get("sha256") != now:
        yield "LoadGen is another one"
    if record.versions.get("commit") != present.commit:
        yield "LoadGrid's commit is another one"
    for name, version in present.versions.items():
        before = record.versions.get(name)
        if before != version:
            code = name == "code"
            yield "LoadGrid's code has changed" if code else f"{name} was {before} and is {version}"


def _other_weights(record: Record, what: str, now: str | None) -> Iterator[str]:
    """Whether the workers' weights, or scales, were others; scales of random samples follow the weights."""
    if now == "":
        yield f"the {what} are not on this host and backend.{what}_sha256 does not name them"
    elif what == "scales" and now is None:
        return
    elif any(worker.facts.get(f"{what}_sha256") != now for worker in record.workers):
        yield f"the {what} have changed"
