"""Whether the user.conf of the tree makes LoadGen do what the log says that it did."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from orchestrator.check.cell_logs import Test, text_of
from orchestrator.check.finding import Finding
from orchestrator.logs import number_of
from orchestrator.paths import USER_CONF
from orchestrator.settings import Value, table

# A line of LoadGen's configuration, whose FromConfig passes over blanks and what follows a #.
_LINE = re.compile(r"\s*([^\s.#]+(?:\.\d+)?)\.([^\s.#]+)\.(\w+)\s*=\s*([-+.\deE]+)\s*(?:#.*)?")
# Rates are logged with six digits.
SLACK = 1e-4
# TestSettings attributes under which LoadGen shows what it made of them, where it does not log the request.
EFFECTIVE = {
    "min_duration_ms": "min_duration_ms",
    "min_query_count": "min_query_count",
    "server_target_qps": "target_qps",
    "server_target_latency_ns": "target_latency_ns",
    "offline_expected_qps": "target_qps",
    "performance_sample_count_override": "performance_sample_count",
}
Line = tuple[str, str, str, str]
# Without target_qps LoadGen takes a rate of 1. (SingleStream's target_latency only says how many queries are
# prepared, and is missing from 138 published user.conf of NVIDIA's in v1.1.)
NEEDED, UNTOLD = "target_qps", 1.0
MEND = "put the user.conf there with which the test was run; without it nobody can repeat the run"
SHOWN = 3


def user_conf(test: Test) -> Iterator[Finding]:
    """Each word of user.conf for this benchmark and scenario, against the log."""
    context, benchmark, scenario = test.context, test.benchmark, test.scenario
    path = test.cell.measurements(context.layout) / USER_CONF
    text = text_of(context, path)
    if benchmark is None or scenario is None or text is None:
        return  # a file that is missing is the business of the checks of measurements
    models = (benchmark.conf_model_name, benchmark.name, *benchmark.aliases, test.cell.model)
    lines = list(_lines(text))
    yield from _unread(test, path, text)
    yield from _seeds(test, path, lines, models, scenario)
    yield from _needed(test, path, lines, models, scenario)
    known = table(context.round, scenario)
    for word in known:
        told = _number(test, word, _value(lines, models, scenario, word))
        attribute = known[word].attribute
        logged = _logged(test, attribute)
        if told is None or logged is None or (told == 0 and word == "performance_sample_count_override"):
            continue  # 0 is no override
        try:
            wanted: Value = known[word].read(told)
        except (OverflowError, ValueError):  # infinite
            continue
        # What LoadGen reads as an integer it logs as one.
        slack = 0.0 if isinstance(wanted, int) else SLACK
        if abs(float(wanted) - logged) > slack * max(abs(float(wanted)), abs(logged)):
            yield _finding(test, path, f"{word} = {told:g} gives {attribute} {wanted:g}", logged)


def _finding(test: Test, path: Path, said: str, logged: float) -> Finding:
    what = f"{said}, but LoadGen's log of the performance test has {logged:g}"
    return test.context.finding("user-conf-differs", path, what, MEND)


def _number(test: Test, word: str, told: str | None) -> float | None:
    """A value as the round's LoadGen reads it: target_latency was a whole number of ms before v2.0."""
    try:
        value = None if told is None else float(told)
        old = word == "target_latency" and not test.context.layout.one_tree
        return float(int(value)) if value is not None and old else value
    except (OverflowError, ValueError):  # 1.2.3, 1e999
        return None


def _unread(test: Test, path: Path, text: str) -> Iterator[Finding]:
    """Lines that LoadGen refuses, all of the file with them: FromConfig wants model.scenario.key = value."""
    odd = []
    for line in text.splitlines():
        key, equals, value = line.partition("#")[0].partition("=")
        if key.strip() and not (equals and value.strip() and key.count(".") >= 2):
            odd.append(line.strip()[:60])
    if odd:
        what = f"LoadGen cannot read {'; '.join(odd[:SHOWN])}: it wants model.scenario.key = value"
        yield test.context.finding("user-conf-unread", path, what, MEND)


def _seeds(
    test: Test, path: Path, lines: list[Line], models: tuple[str, ...], scenario: str
) -> Iterator[Finding]:
    """Seeds are the round's; a user.conf that gives others would have shown in the log."""
    for name in test.context.round.seeds:
        told, logged = _value(lines, models, scenario, name), test.run.effective.get(name)
        if told is not None and isinstance(logged, int) and told != str(logged):
            what = f"{name} = {told[:40]}, but LoadGen's log of the performance test has {logged}"
            yield test.context.finding("user-conf-differs", path, what, MEND)


def _needed(
    test: Test, path: Path, lines: list[Line], models: tuple[str, ...], scenario: str
) -> Iterator[Finding]:
    """The word that sizes the test: no user.conf without it gives what the log says."""
    if scenario not in ("Server", "Offline") or _value(lines, models, scenario, NEEDED) is not None:
        return
    logged = _logged(test, table(test.context.round, scenario)[NEEDED].attribute)
    if logged not in (None, UNTOLD):
        what = f"it does not set {NEEDED} for {test.cell.model} in {scenario}; the log has {logged:g}"
        yield test.context.finding("user-conf-differs", path, what, MEND)


def _lines(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        if found := _LINE.fullmatch(line):
            yield found[1], found[2], found[3], found[4]


def _value(lines: list[Line], models: tuple[str, ...], scenario: str, word: str) -> str | None:
    """In LoadGen's order of lookup: model.scenario, *.scenario, model.*, *.*; of a key the last line."""
    for by_scenario in (scenario, "*"):
        for own in (True, False):
            for model, where, name, value in reversed(lines):
                named = model in models if own else model == "*"
                if named and where == by_scenario and name == word:
                    return value
    return None


def _logged(test: Test, attribute: str) -> float | None:
    requested = number_of(test.run.requested.get(attribute))
    if requested is not None or attribute not in EFFECTIVE:
        return requested
    return number_of(test.run.effective.get(EFFECTIVE[attribute]))
