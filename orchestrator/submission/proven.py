"""What records say against the files that go into the tree: a record is no seal, anybody can edit one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.audit import ISSUED_UNIQUE_OR_SAME, RAN_OUT, with_compliance
from orchestrator.findings_data import calibration_findings
from orchestrator.logs import DetailLog, LogError, read_detail
from orchestrator.manifest_backends import TorchBackend
from orchestrator.paths import ACCURACY_TXT, DETAIL, RECORD, VERIFY_PERFORMANCE
from orchestrator.plan import PlanError, TestSpec, plan
from orchestrator.record import Result
from orchestrator.rules import Round
from orchestrator.submission.accuracy_files import LARGEST_SCORE_BYTES
from orchestrator.submission.gather import Gathered, Test, inside
from orchestrator.submission.refusal import SubmitError, several
from orchestrator.verdict import MAY_DIFFER, doubts_of, missing_evidence, result_of
from workers.models import EIGHT_BITS

# The plan's rule on the LoadGen that is installed here, which need not be the one that the test ran with.
OF_THIS_HOST = "loadgen"
SAME = 1e-9  # relative: a record has the log's own number, times a scale
PASSED = "TEST PASS"  # what the checkers look for in verify_performance.txt
_DECIMALS = re.compile(r"\.(\d*)")


def refuse_contradictions(gathered: Gathered) -> None:
    """SubmitError where a record has another verdict, figure or accuracy than its files, with both."""
    wrong = [
        f"{test.folder / RECORD}: {text}"
        for cell in gathered.cells
        for test in cell.tests
        for text in _contradictions(gathered.round, test)
    ]
    if wrong:
        listed = "\n  ".join(wrong)
        raise SubmitError(
            f"records do not say what their logs say:\n  {listed}\n"
            "only records as LoadGrid wrote them can be submitted: run the tests again"
        )


def unproven(gathered: Gathered, draft: bool) -> dict[str, list[str]]:
    """By test, why one that calls itself official is not, from its manifest, logs and workers.

    SubmitError names them unless it is a draft's tree.
    """
    found: dict[str, list[str]] = {}
    for cell in gathered.cells:
        for test in cell.tests:
            if test.record.official and not test.record.unofficial_because:
                found[test.name] = list(dict.fromkeys(_reasons(gathered.round, test)))
    found = {name: reasons for name, reasons in found.items() if reasons}
    if found and not draft:
        listed = "\n  ".join(f"{name}: {several(reasons)}" for name, reasons in found.items())
        raise SubmitError(
            f"records say that they are official, and what they were made of says otherwise:\n  {listed}\n"
            "--draft makes a tree all the same, branded as what it is, to try the way"
        )
    return found


def _spec(found: Round, test: Test) -> TestSpec:
    """The test as its manifest plans it."""
    runs = with_compliance(found, test.manifest.benchmark, test.manifest.runs)
    try:
        specs = plan(test.manifest.model_copy(update={"runs": runs}), found)
    except PlanError as error:
        raise SubmitError(f"{test.name}: its manifest cannot be planned: {error}") from None
    record = test.record
    wanted = (f"{record.scenario}-{test.kind}", record.round, record.suite, record.division, record.benchmark)
    for spec in specs:
        if (spec.name, spec.round, spec.suite, spec.division, spec.benchmark) == wanted:
            return spec
    raise SubmitError(
        f"{test.folder / RECORD} is of {' '.join(wanted)}, which its manifest does not ask for: the record "
        "was changed, or lies in another run's folder"
    )


def _detail(test: Test) -> DetailLog:
    path = inside(test, DETAIL)
    try:
        return read_detail(path)
    except (LogError, OSError) as error:
        raise SubmitError(str(error)) from None


def _result(found: Round, test: Test) -> Result:
    return result_of(_spec(found, test), _detail(test), finished=True)


def _contradictions(found: Round, test: Test) -> Iterator[str]:
    seen = _result(found, test)
    yield from differences(test.record.result, seen.valid, seen.value, seen.metric, seen.unit)
    if test.kind == "accuracy":
        yield from _scored_otherwise(found, test)
    audit, verified = test.record.audit, inside(test, VERIFY_PERFORMANCE)
    if audit and audit.passed and verified.is_file() and PASSED not in _text(verified):
        yield f"{audit.test} passed, and {VERIFY_PERFORMANCE} has no {PASSED}"


def differences(
    told: Result, valid: bool | None, value: float | None, metric: str, unit: str
) -> Iterator[str]:
    """What a record tells of LoadGen's verdict and result otherwise than its detail log does."""
    if told.valid != valid:
        yield f"the verdict is {_verdict(told.valid)}, in {DETAIL} it is {_verdict(valid)}"
    if not _same(told.value, value, SAME * abs(value or 0)):
        shown = [f"{number:.10g}" if number is not None else "none" for number in (told.value, value)]
        yield f"the {metric} is {shown[0]} {told.unit}, in {DETAIL} it is {shown[1]} {unit}"


def _verdict(valid: bool | None) -> str:
    return {True: "VALID", False: "INVALID", None: "not given"}[valid]


def _same(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.isfinite(one) and abs(one - other) <= tolerance


def _scored_otherwise(found: Round, test: Test) -> Iterator[str]:
    """The score of accuracy.txt by the round's own pattern, to the digits that it is printed with."""
    goal, told, path = _spec(found, test).accuracy, test.record.accuracy, inside(test, ACCURACY_TXT)
    if told is None or goal is None or not path.is_file():
        return  # the reasons why it is not official, and the writer of scores, say so
    pattern = found.benchmark(test.record.benchmark).accuracy.pattern
    values = [match[1] for line in _text(path).splitlines() if (match := re.match(pattern, line))]
    for text in values:
        decimals = _DECIMALS.search(text)
        # Scorers cut or round; both stay within one unit of the last digit.
        tolerance = 10.0 ** -len(decimals[1] if decimals else "") + SAME
        if not _same(told.value, _number(text), tolerance):
            yield f"the accuracy is {told.value:.10g} {told.unit}, in {ACCURACY_TXT} it is {text}"
    if not values:
        yield f"the accuracy is {told.value:.10g} {told.unit}, and {ACCURACY_TXT} has none in its form"
    if not _same(told.target, goal.target, SAME):
        yield f"the target is {told.target:.10g}, by round and manifest it is {goal.target:.10g}"
    reached = told.value >= goal.target if goal.higher_is_better else told.value <= goal.target
    if told.reached != reached:
        words = {True: "reached", False: "not reached"}
        yield f"the target {goal.target:.10g} is {words[told.reached]}, but {told.value:.10g} is the accuracy"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(LARGEST_SCORE_BYTES).decode(errors="replace")


def _reasons(found: Round, test: Test) -> Iterator[str]:
    """What `evidence.py` writes of a test as far as manifest, logs and the record's own parts show it."""
    record, spec, detail = test.record, _spec(found, test), _detail(test)
    for broken in spec.broken_rules:
        if broken.scope == "test" and broken.rule != OF_THIS_HOST:
            yield f"{broken.rule}: {broken.why} ({broken.source})"
    expected = RAN_OUT if spec.test in ISSUED_UNIQUE_OR_SAME else None
    for error in detail.troubles:
        if expected is None or expected not in error:
            yield f"LoadGen logged an error: {error}"
    if spec.test == "performance" and detail.valid is not True:
        yield "LoadGen's verdict is not VALID"
    if spec.test == "accuracy":
        yield from _inaccurate(test)
    yield from (f"loss: worker {loss.worker} was lost ({loss.reason})" for loss in record.losses)
    yield from _placed(test)
    different = (text for text in record.worker_differences if not text.startswith(MAY_DIFFER))
    yield from (f"workers: {text}" for text in different)
    yield from doubts_of(record.audit)
    facts = [worker.facts for worker in record.workers]
    if any(fact.get("weights") == "seeded" for fact in facts):
        yield "weights: a worker computed with seeded weights"
    for finding in calibration_findings(found, test.manifest, facts):
        yield f"{finding.rule}: {finding.why} ({finding.source})"
    yield from _quantised(test)
    hashes = {
        "library": record.hashes.get("library"),
        "library_expected": test.manifest.task.sha256,
        "weights_expected": getattr(test.manifest.backend, "weights_sha256", None),
        "scales_expected": getattr(test.manifest.backend, "scales_sha256", None),
    }
    loadgen = {"version": None, "sha256": None} | record.loadgen
    yield from missing_evidence(facts, test.manifest.backend.engine, hashes, record.versions, loadgen)


def _inaccurate(test: Test) -> Iterator[str]:
    got = test.record.accuracy
    if got is None:
        yield "the accuracy could not be scored"
    elif not got.reached and test.record.division != "open":
        yield f"accuracy {got.value:g} is below the target {got.target:g} {got.unit}"


def _quantised(test: Test) -> Iterator[str]:
    """What workers do not tell of a network that the manifest has computed in 8 bits."""
    backend = test.manifest.backend
    if not isinstance(backend, TorchBackend) or backend.precision not in EIGHT_BITS.values():
        return
    for worker in test.record.workers:
        facts = worker.facts
        if facts.get("precision") != backend.precision:
            told = f"computed in {facts.get('precision')}, its manifest says {backend.precision}"
            yield f"calibration: {worker.name} {told}"
        if not facts.get("scales_sha256") or not isinstance(facts.get("calibration"), Mapping):
            yield f"calibration: {worker.name} does not tell which scales it computed with"


def _placed(test: Test) -> Iterator[str]:
    """Payload index to another host than LoadGen's, which is one of several hosts at most."""
    record, dispatch = test.record, test.manifest.dispatch
    hosts = sorted({worker.node for worker in record.workers})
    if record.payload_mode != dispatch.payload or record.index_approval != dispatch.index_approval:
        yield (
            f"payload: the record says {record.payload_mode} (approved: {record.index_approval}), its "
            f"manifest {dispatch.payload} (approved: {dispatch.index_approval})"
        )
    remote = record.division == "closed" and dispatch.payload == "index" and len(hosts) > 1
    if remote and dispatch.index_approval is None:
        yield f"payload: index to other hosts ({', '.join(hosts)}) needs dispatch.index_approval"
