"""mlperf.conf of a round, written from the words in orchestrator/rounds: facts, in LoadGen's syntax. Pure.

A test lets LoadGen read it and compares every effective setting with the plan's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.rules import Round


def mlperf_conf(found: Round) -> str:
    """The lines for every benchmark of the round; a key is MODEL.SCENARIO.WORD, and * stands for any."""
    lines = [
        f"# MLPerf Inference {found.name}: the round's settings, written by LoadGrid.",
        f"# Source of the values: {found.sources['conf']}.",
        "# Key: model.scenario.word; the most specific one holds. Times are in milliseconds.",
        "",
        *(f"*.*.{seed} = {value}" for seed, value in found.seeds.items()),
        "",
        *_lines("*", found.words),
    ]
    done: set[str] = set()
    for benchmark in found.benchmarks.values():
        # bert-99 and bert-99.9 differ in the accuracy that they must reach, which LoadGen does not know.
        fresh = [line for line in _lines(benchmark.conf_model_name, benchmark.words) if line not in done]
        done.update(fresh)
        lines += ["", *fresh] if fresh else []
    return "\n".join(lines) + "\n"


def _lines(model: str, words: Mapping[str, Mapping[str, int | float]]) -> Iterator[str]:
    for scenario, values in words.items():
        for word, value in values.items():
            yield f"{model}.{scenario}.{word} = {value}"
