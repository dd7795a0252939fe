"""A compliance test (TEST01, TEST04, TEST05), planned and validated; audit_verify.py verifies it. Pure.

An official audit.config is obeyed by LoadGen 6 but for its seeds, which it ignores without a word. So every
value is set beforehand, as for any other test, and the file lies besides in the test's own folder: reviewers
look for LoadGen's warning that it was found. No other test ever runs in that folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.rules import Benchmark, Round, Words
from orchestrator.settings import EVERY_SCENARIO, Value

RESULTS = ("performance", "accuracy")
MODE = "mode"  # 2, PerformanceOnly: what every compliance test is
SAMPLING_TARGET = "accuracy_log_sampling_target"
# The test whose logs are only one half of a comparison -> the one with the other half and the verdict.
FIRST_HALF = {"TEST04-A": "TEST04-B"}
# What a test of each sample once (in old LoadGens also of one sample) ends with in Server and the streams: it
# stops when the loaded samples are used up, whatever the duration asks for.
RAN_OUT = "Ran out of generated queries"
ISSUED_UNIQUE_OR_SAME = ("TEST04-A", "TEST04-B")


def tests_of(found: Round, benchmark: str, scenario: str, runs: Sequence[str]) -> list[str]:
    """The tests of one scenario: results in the user's order, then compliance tests in the round's."""
    wanted = found.compliance_tests(benchmark, scenario)
    return [run for run in runs if run in RESULTS] + [name for name in wanted if name in runs]


def with_compliance(found: Round, benchmark: str, runs: Sequence[str]) -> tuple[str, ...]:
    """`runs`, and what the closed division asks for besides."""
    wanted = (*RESULTS, *found.benchmark(benchmark).compliance_tests)
    return (*runs, *(name for name in wanted if name not in runs))


def audit_words(found: Round, benchmark: Benchmark, test: str) -> Words:
    """The words of a test's audit.config, but for its mode; none for a test that is no compliance test."""
    words = {word: value for word, value in found.compliance.get(test, {}).items() if word != MODE}
    if test == "TEST01":
        words[SAMPLING_TARGET] = benchmark.test01_sampling_target
    return words


def audit_settings(words: Mapping[str, int | float]) -> dict[str, Value]:
    """TestSettings attributes of an audit's words; seeds are attributes of the same name."""
    return {
        EVERY_SCENARIO[word].attribute if word in EVERY_SCENARIO else word: (
            EVERY_SCENARIO[word].read(value) if word in EVERY_SCENARIO else int(value)
        )
        for word, value in words.items()
    }


def audit_config(found: Round, benchmark: Benchmark, test: str) -> str:
    """The file's text, empty for a test that is no compliance test."""
    if test not in found.compliance:
        return ""
    words = {MODE: int(found.compliance[test][MODE]), **audit_words(found, benchmark, test)}
    return "".join(f"*.*.{word} = {int(value)}\n" for word, value in words.items())


def problems_of(found: Round, benchmark: Benchmark, runs: Sequence[str]) -> Iterator[tuple[int, str]]:
    """What cannot be verified in these runs: a position in them, and why."""
    known = benchmark.compliance_tests
    for position, run in enumerate(runs):
        if run in RESULTS:
            continue
        if run not in known:
            listed = ", ".join(known)
            where = f"{benchmark.name} in round {found.name}"
            yield position, f"{run} is no compliance test of {where}, which has {listed}"
            continue
        needed = [*(RESULTS if run == "TEST01" else RESULTS[:1]), *_other_half(run)]
        missing = [name for name in needed if name not in runs]
        if missing:
            yield position, f"{run} is compared with {' and '.join(missing)}, which runs does not name"


def _other_half(test: str) -> list[str]:
    pairs = {**FIRST_HALF, **{second: first for first, second in FIRST_HALF.items()}}
    return [pairs[test]] if test in pairs else []


def validate(
    settings: Mapping[str, Value], words: Mapping[str, int | float], seen: Mapping[str, object]
) -> list[str]:
    """What LoadGen's detail log (`seen`) does not show of an audit's values as planned."""
    problems = []
    for name in audit_settings(words):
        key = f"effective_{name}"
        if key not in seen:
            problems.append(f"LoadGen's log does not show {key}")
        elif seen[key] != settings[name]:
            problems.append(f"LoadGen's log shows {key} {seen[key]} instead of {settings[name]}")
    return problems
