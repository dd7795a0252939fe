"""A round's facts (rounds/*.yaml) as frozen objects: benchmarks, suites, limits, seeds, counts, words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROUNDS_FOLDER = Path(__file__).with_name("rounds")
SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")

Words = dict[str, int | float]


class RulesError(Exception):
    """A name that a round does not have; the text says which it has."""


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that is most like `word`, whatever the case of its letters; None if nothing is like it."""
    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def not_one_of(what: str, word: str, names: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest one that is."""
    known = list(names)
    text = f'{what} "{word}" is not one of {", ".join(known)}'
    close = nearest(word, known)
    return f'{text}; did you mean "{close}"?' if close else text


def spelled_round(word: str) -> str:
    """A round's name as it would be spelled: 6.1 and V6.1 are v6.1."""
    return f"v{word.strip().lower().removeprefix('v')}"


def not_a_round(word: str, known: Sequence[str]) -> str:
    """The message for an unknown round. Only its spelling is guessed at: v3.0 is no slip for v1.0."""
    meant, text = spelled_round(word), f'"{word}" is not one of {", ".join(known)}'
    return f'{text}; did you mean "{meant}"?' if meant in known else text


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accuracy(_Frozen):
    """The quality target of a benchmark, and the line of accuracy.txt that the checker reads."""

    metric: str
    target: float
    unit: str
    higher_is_better: bool = True
    pattern: str
    example: str | None = None


class Wanted(_Frozen):
    """The scenarios that a benchmark must and may have in a suite."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def allows(self, scenario: str) -> bool:
        """Whether a result in this scenario has a place in the suite."""
        return scenario in self.required or scenario in self.optional


class Place(_Frozen):
    """A benchmark's place in a suite, by the rules' text and by the checker: they differ in old rounds."""

    rules: Wanted
    checker: Wanted


class CalibrationList(_Frozen):
    """A file's name, and how many samples it makes of the data set, where its lines say."""

    name: str
    count: int | None = None


class Reference(_Frozen):
    """What LoadGrid calls the benchmark's data set and network: workers/tasks/ and workers/models/.

    `identity` is what the task makes of the data set's own list, `sample_bytes` the size of all its samples.
    `calibration_lists` are the reference's lists of calibration samples, by the sha256 of the file.
    """

    task: str
    model: str
    identity: str | None = None
    sample_bytes: int | None = None
    calibration_lists: dict[str, CalibrationList] = Field(default_factory=dict)


class Benchmark(_Frozen):
    """One benchmark of a round. `words` are its lines of mlperf.conf: scenario or "*" -> word -> value.

    `raw_input` is what the rules start from, `untimed` the steps of the round's list that its reference takes
    before the clock starts, `untimed_by_reference` a step outside that list -> where the reference takes it.
    """

    name: str
    task: str
    model: str
    dataset: str
    sample: str
    raw_input: str
    untimed: tuple[str, ...]
    untimed_by_reference: dict[str, str] = Field(default_factory=dict)
    aliases: tuple[str, ...]
    conf_model_name: str
    reference: Reference
    performance_sample_count_min: int
    accuracy_sample_count: int
    accuracy: Accuracy
    server_target_latency_ns: int | None
    multistream_target_latency_ns: int | None
    min_query_count: dict[str, int]
    offline_min_samples_per_query: int
    compliance_tests: tuple[str, ...]
    test01_sampling_target: int
    equal_issue_mode: bool
    words: dict[str, Words]
    loadgen6_words: Words = Field(default_factory=dict)


class ApprovedLoadGen(_Frozen):
    """The LoadGen that a round approves: version strings, git revision, hashes of published builds."""

    versions: tuple[str, ...]
    revision: str | None = None
    tag: str | None = None
    embeds_conf: bool
    sha256: dict[str, str] = Field(default_factory=dict)


class Verification(_Frozen):
    """How a compliance test's score is compared with its reference, in parts of it: as the script has it.

    `relaxed` holds for a stream whose reference is `relaxed_up_to_ns` or less. With `slower_passes` only a
    score that is too good fails; with `streams_as_rate` a latency stands as 1e9 / ns, in both roles.
    """

    within: float
    relaxed: float
    relaxed_up_to_ns: dict[str, float]
    bounds_pass: bool = False
    slower_passes: bool = False
    streams_as_rate: bool = False
    latency_limits_equal: bool = False
    errors_fail: bool = False


class Round(_Frozen):
    """Everything that a round fixes; every value comes from its file, which names the source."""

    name: str = Field(alias="round")
    sources: dict[str, str]
    divisions: tuple[str, ...]
    loadgen: ApprovedLoadGen
    min_duration_ms: int
    scenarios: tuple[str, ...]
    fixed_interval_multistream: bool
    seeds: dict[str, int]
    result_keys: dict[str, str]
    words: dict[str, Words]
    compliance: dict[str, Words]
    verification: dict[str, Verification]
    untimed_preprocessing: dict[str, str]
    benchmarks: dict[str, Benchmark]
    suites: dict[str, dict[str, Place]]

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: dict[str, Any]) -> dict[str, Any]:
        benchmarks = {name: {**body, "name": name} for name, body in data["benchmarks"].items()}
        return {**data, "benchmarks": benchmarks, "suites": _complete_suites(data["suites"])}

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark of this name or alias."""
        for found in self.benchmarks.values():
            if name == found.name or name in found.aliases:
                return found
        raise RulesError(f"round {self.name}: {not_one_of('benchmark', name, self.benchmark_names())}")

    def compliance_tests(self, benchmark: str, scenario: str) -> tuple[str, ...]:
        """The compliance tests that the closed division asks for, in the round's order."""
        wanted = self.benchmark(benchmark).compliance_tests
        # The v1.x checkers take TEST04 off for MultiStream, whose queries may be as large as the sample set.
        exempt = scenario == "MultiStream" and self.fixed_interval_multistream
        return tuple(name for name in wanted if not (exempt and name.startswith("TEST04")))

    def benchmark_names(self) -> list[str]:
        """Every name and alias, names first."""
        aliases = [alias for found in self.benchmarks.values() for alias in found.aliases]
        return [*self.benchmarks, *aliases]

    def scenario(self, name: str) -> str:
        """`name`, if the round has this scenario."""
        if name not in self.scenarios:
            raise RulesError(f"round {self.name}: {not_one_of('scenario', name, self.scenarios)}")
        return name

    def suite(self, name: str) -> dict[str, Place]:
        """The benchmarks of a suite, with their scenarios."""
        if name not in self.suites:
            raise RulesError(f"round {self.name}: {not_one_of('suite', name, self.suites)}")
        return self.suites[name]

    def place(self, suite: str, benchmark: str) -> Place | None:
        """Which scenarios the benchmark needs in the suite; None if it is not in the suite."""
        return self.suite(suite).get(self.benchmark(benchmark).name)

    def conf_words(self, benchmark: str, scenario: str) -> Words:
        """mlperf.conf's words for a benchmark and scenario, in LoadGen's order of lookup.

        LoadGen takes model.scenario.word, then *.scenario.word, then model.*.word: a line for every model in
        one scenario beats a line for one model in every scenario.
        """
        found = self.benchmark(benchmark)
        wide = found.words.get("*", {})
        return {**wide, **self.words.get(self.scenario(scenario), {}), **found.words.get(scenario, {})}


def _complete_suites(suites: dict[str, Any]) -> dict[str, Any]:
    """Fills in what the file leaves out: the checker's list where it is the rules', combined systems' rules.

    A combined system ("datacenter,edge") stands in both suites, so by the rules it needs what both need.
    """
    done: dict[str, Any] = {}
    for suite, places in suites.items():
        done[suite] = {}
        for benchmark, place in places.items():
            parts = [done.get(part, {}).get(benchmark, {}) for part in suite.split(",")]
            rules = place.get("rules") or _union([part["rules"] for part in parts if part])
            done[suite][benchmark] = {"rules": rules, "checker": place.get("checker") or rules}
    return done


def _union(wanted: list[dict[str, list[str]]]) -> dict[str, list[str]]:
    required = [s for s in SCENARIOS if any(s in part.get("required", ()) for part in wanted)]
    optional = [s for s in SCENARIOS if any(s in part.get("optional", ()) for part in wanted)]
    return {"required": required, "optional": [s for s in optional if s not in required]}


def round_names() -> tuple[str, ...]:
    """The rounds that LoadGrid knows, oldest first."""
    names = [path.stem for path in ROUNDS_FOLDER.glob("v*.yaml")]
    return tuple(sorted(names, key=lambda name: [int(part) for part in name[1:].split(".")]))


@cache
def load_round(name: str) -> Round:
    """The round `name`; RulesError names those that there are when there is none."""
    if name not in round_names():
        raise RulesError(f"round {not_a_round(name, round_names())}")
    text = (ROUNDS_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        return Round.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError, KeyError) as error:
        raise RulesError(f"the file of round {name} is damaged: {error}") from error
