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
}
Line = tuple[str, str, str, float]


def user_conf(test: Test) -> Iterator[Finding]:
    """Each word of user.conf for this benchmark and scenario, against the log."""
    context, benchmark, scenario = test.context, test.benchmark, test.scenario
    path = test.cell.measurements(context.layout) / USER_CONF
    text = text_of(context, path)
    if benchmark is None or scenario is None or text is None:
        return  # a file that is missing is the business of the checks of measurements
    models = (benchmark.conf_model_name, benchmark.name, *benchmark.aliases, test.cell.model)
    lines = list(_lines(text))
    known = table(context.round, scenario)
    for word in known:
        told = _value(lines, models, scenario, word)
        attribute = known[word].attribute
        logged = _logged(test, attribute)
        if told is None or logged is None:
            continue
        try:
            wanted: Value = known[word].read(told)
        except (OverflowError, ValueError):  # infinite
            continue
        if abs(float(wanted) - logged) > SLACK * max(abs(float(wanted)), abs(logged)):
            yield _finding(test, path, f"{word} = {told:g} gives {attribute} {wanted:g}", logged)


def _finding(test: Test, path: Path, said: str, logged: float) -> Finding:
    what = f"{said}, but LoadGen's log of the performance test has {logged:g}"
    mend = "put the user.conf there with which the test was run; without it nobody can repeat the run"
    return test.context.finding("user-conf-differs", path, what, mend)


def _lines(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        try:
            if found:
                yield found[1], found[2], found[3], float(found[4])
        except ValueError:  # 1.2.3
            continue


def _value(lines: list[Line], models: tuple[str, ...], scenario: str, word: str) -> float | None:
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
