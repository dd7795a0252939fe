"""The performance half of a compliance test: two detail logs in, the official scripts' verdict out. Pure.

The scripts of v1.0 and v1.1 read summaries and find no percentile in those of LoadGen 5.0.15 and later, which
say "90.0th" where they look for "90th"; the same numbers stand in the detail log under the same keys always.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.logs import DetailLog
from orchestrator.rules import Round, Verification

STREAMS = ("SingleStream", "MultiStream")
NS_PER_S = 1e9


@dataclass(frozen=True)
class Comparison:
    """Whether a score passes against its reference, why not, and verify_performance.txt in official words.

    `allowed` is the part of the reference by which the score may differ.
    """

    passed: bool
    reason: str
    reference: float | None
    score: float | None
    allowed: float | None
    text: str


def compare(found: Round, test: str, scenario: str, reference: DetailLog, own: DetailLog) -> Comparison:
    """TEST01, TEST05 or TEST04 against the performance test, TEST04-B against TEST04-A."""
    rule = found.verification[test]
    paired = test == "TEST04-B"
    # TEST04-A and -B end with errors by their nature, and the script reads no further than their settings.
    warnings = [] if paired else _warnings(reference, own)
    scores = _score(found, scenario, rule, reference), _score(found, scenario, rule, own)
    wrong = _refusal(rule, paired, scenario, reference, own)
    if wrong is None and None in scores:
        what = "the reference's" if scores[0] is None else "the test's"
        wrong = f"{what} log holds no {found.result_keys[scenario]}"
    if wrong is not None or scores[0] is None or scores[1] is None:
        lines = ["Verifying performance.", *warnings, f"TEST FAIL: {wrong}"]
        return Comparison(False, wrong or "", scores[0], scores[1], None, _text(lines))
    return _judged(test, scenario, rule, scores[0], scores[1], warnings)


def _refusal(
    rule: Verification, paired: bool, scenario: str, reference: DetailLog, own: DetailLog
) -> str | None:
    """Why two logs cannot be compared at all; the wording is the scripts', where they have one."""
    if paired:
        # The scripts do not look whether TEST04-A and -B are VALID: A ends with its samples, before its time.
        for log, half, key in ((reference, "A", "unique"), (own, "B", "same")):
            if log.values.get(f"effective_performance_issue_{key}") is not True:
                return f"Invalid test settings in TEST04-{half} summary."
    elif reference.valid is not True:
        return "Reference results are invalid"
    elif own.valid is not True:
        return "Test results are invalid"
    shown = [log.values.get("effective_scenario") for log in (reference, own)]
    if shown != [scenario, scenario]:
        return "Test and reference scenarios do not match!"
    if rule.errors_fail and (troubles := reference.troubles or own.troubles):
        which = "reference" if reference.troubles else "test"
        return f"LoadGen logged an error in the {which} results: {troubles[0]}"
    limits = [log.values.get("effective_target_latency_ns") for log in (reference, own)]
    if rule.latency_limits_equal and scenario == "Server" and limits[0] != limits[1]:
        return "Server target latency mismatch"
    return None


def _warnings(reference: DetailLog, own: DetailLog) -> list[str]:
    counts = {"reference": len(reference.errors), "test": len(own.errors)}
    return [f"WARNING: {count} ERROR reported in {name} results" for name, count in counts.items() if count]


def _score(found: Round, scenario: str, rule: Verification, log: DetailLog) -> float | None:
    """The round's metric as the script compares it; a stream's is a latency in ns, so more is slower."""
    value = log.number(found.result_keys[scenario])
    if value is None or value <= 0:  # 0: early stopping had too few queries for an estimate
        return None
    return NS_PER_S / value if rule.streams_as_rate and scenario in STREAMS else value


def allowed_part(rule: Verification, scenario: str, reference: float) -> float:
    """By which part of the reference a score may differ."""
    return rule.relaxed if reference <= rule.relaxed_up_to_ns.get(scenario, -1.0) else rule.within


def _judged(
    test: str, scenario: str, rule: Verification, reference: float, score: float, warnings: list[str]
) -> Comparison:
    allowed = allowed_part(rule, scenario, reference)
    # In this order of operations, as the scripts have it: 1 - 0.1 is not 0.9 to the last bit.
    low, high = reference * (1 - allowed), reference * (1 + allowed)
    within = low <= score <= high if rule.bounds_pass else low < score < high
    lower_is_better = scenario == "SingleStream" and not rule.streams_as_rate
    slower = score > reference if lower_is_better else score < reference
    passed = within or (rule.slower_passes and slower)
    lines = ["Verifying performance.", *warnings, *_score_lines(test, rule, reference, score)]
    if passed:
        lines.append("TEST PASS")
        if not within and test == "TEST04-B":
            lines.append("Note: TEST04-B is significantly slower than TEST04-A")
    else:
        lines.append("TEST FAIL: Test score invalid")
    change = 100 * (score / reference - 1)
    side = "not faster by" if rule.slower_passes else "within"
    reason = "" if passed else f"the score differs by {change:+.2f} %; it must be {side} {100 * allowed:g} %"
    return Comparison(passed, reason, reference, score, allowed, _text(lines))


def _score_lines(test: str, rule: Verification, reference: float, score: float) -> list[str]:
    if test == "TEST04-B":
        names = ("TEST04-A score", "TEST04-B score")
    elif rule.bounds_pass:
        names = ("Reference score", "Test score")
    else:
        names = ("reference score", "test score")
    return [f"{name} = {_number(value)}" for name, value in zip(names, (reference, score), strict=True)]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
