"""The accuracy of a result: which figures of accuracy.txt count for a benchmark, in any round.

Names and benchmarks as ACC_PATTERN and accuracy-target of the submission checkers of v0.5 to v6.1 have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from orchestrator.rules import RulesError, load_round, round_names

_NUMBER = r"\s*'?([\d.]+)"
# metric -> what stands in the line of accuracy.txt; the benchmarks' own scripts write them.
_LINES = {
    "acc": re.compile(r'^(?:accuracy|\{"accuracy)[": ]*=?\s*([\d.]+)'),
    "mAP": re.compile(r"(?:mAP=|'Total':)\s*([\d.]+)"),
    "F1": re.compile(r"^\{[\"']exact_match[\"']:\s*[\d.]+,\s*[\"']f1[\"']:\s*([\d.]+)\}"),
    "AUC": re.compile(r"^AUC=([\d.]+)"),
    "DICE": re.compile(r"^Accuracy:\s*mean\s*=\s*([\d.]+)"),
    "WER accuracy": re.compile(r"^Word Error Rate:.*, accuracy=([\d.]+)%"),
    "bleu": re.compile(r"^BLEU:\s*([\d.]+)"),
    "mean accuracy": re.compile(r"'mean-accuracy':" + _NUMBER),
    "ROUGE1": re.compile("'rouge1':" + _NUMBER),
    "ROUGE2": re.compile("'rouge2':" + _NUMBER),
    "ROUGEL": re.compile("'rougeL':" + _NUMBER),
    "ROUGELSUM": re.compile("'rougeLsum':" + _NUMBER),
    "GEN_LEN": re.compile("'gen_len':" + _NUMBER),
    "TOKENS_PER_SAMPLE": re.compile("'tokens_per_sample':" + _NUMBER),
    "exact_match": re.compile("'exact_match':" + _NUMBER),
    "gsm8k_accuracy": re.compile("'gsm8k':" + _NUMBER),
    "mbxp_accuracy": re.compile("'mbxp':" + _NUMBER),
    "CLIP_SCORE": re.compile("'CLIP_SCORE':" + _NUMBER),
    "FID_SCORE": re.compile("'FID_SCORE':" + _NUMBER),
    "vbench_score": re.compile("'vbench_score':" + _NUMBER),
    "DLRM_NE": re.compile(r"metric/lifetime_ne/rating:\s*([\d.]+)"),
    "DLRM_ACC": re.compile(r"metric/lifetime_accuracy/rating:\s*([\d.]+)"),
    "DLRM_AUC": re.compile(r"metric/lifetime_gauc/rating:\s*([\d.]+)"),
    "F1_HIERARCHICAL": re.compile(r'"f1":\s*([\d.]+)'),
    "E2E_ACCURACY": re.compile(r"^Accuracy:\s*([\d.]+)"),
}
# One of these is in every line above; most lines of a long accuracy.txt have none.
_MARKS = re.compile(
    r"ccuracy|mAP=|'Total'|exact_match|AUC=|BLEU|'rouge|_len'|per_sample|gsm8k|mbxp|score|SCORE|rating"
)
_ROUGES = ("ROUGE1", "ROUGE2", "ROUGEL")
# How a benchmark's name begins -> its metrics; the first that fits.
_OF_BENCHMARK: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("llama3.1-8b", (*_ROUGES, "ROUGELSUM", "GEN_LEN")),
    ("llama3.1-405b", ("ROUGEL", "exact_match", "TOKENS_PER_SAMPLE")),
    ("llama2-70b", (*_ROUGES, "TOKENS_PER_SAMPLE")),
    ("mixtral-8x7b", (*_ROUGES, "TOKENS_PER_SAMPLE", "gsm8k_accuracy", "mbxp_accuracy")),
    ("gptj", (*_ROUGES, "GEN_LEN")),
    ("deepseek-r1", ("exact_match", "TOKENS_PER_SAMPLE")),
    ("gpt-oss-120b", ("exact_match",)),
    ("stable-diffusion-xl", ("CLIP_SCORE", "FID_SCORE")),
    ("dlrm-v3", ("DLRM_NE", "DLRM_ACC", "DLRM_AUC")),
    ("qwen3-vl", ("F1_HIERARCHICAL",)),
    ("wan-2.2", ("vbench_score",)),
    ("e2e-rag", ("E2E_ACCURACY",)),
)
# These lines are too much like others' to be looked for in every file.
_ONLY_NAMED = {"F1_HIERARCHICAL", "E2E_ACCURACY"}
# What a round's rules call a metric -> what it is called here.
_CALLED = {"WER": "WER accuracy"}


def scores(lines: Iterable[str], benchmark: str, round_name: str | None = None) -> dict[str, str]:
    """metric -> figure as it is written; of one that comes again the last, as the checkers take it.

    The metrics of the benchmark, or every one that is found where it is not known or has none of its own.
    """
    wanted = _patterns(benchmark, round_name)
    general = {name: line for name, line in _LINES.items() if name not in _ONLY_NAMED}
    found: dict[str, str] = {}
    for line in lines:
        looked = general | wanted if _MARKS.search(line) else wanted
        for name, pattern in looked.items():
            if (hit := pattern.search(line)) and _is_number(hit[1].rstrip(".")):
                found[name] = hit[1].rstrip(".")
        # What follows the hash is not read any more by the checkers, once they have the figure.
        if line.startswith("hash=") and found:
            break
    named = {name: found[name] for name in wanted if name in found}
    return named or found


def _patterns(benchmark: str, round_name: str | None) -> dict[str, re.Pattern[str]]:
    if round_name in round_names():
        try:
            told = load_round(round_name).benchmark(benchmark).accuracy
        except RulesError:
            pass  # not one of the benchmarks that LoadGrid runs
        else:
            return {_CALLED.get(told.metric, told.metric): re.compile(told.pattern)}
    names = next((names for start, names in _OF_BENCHMARK if benchmark.startswith(start)), ())
    return {name: _LINES[name] for name in names}


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\d+(\.\d*)?|\.\d+", text))
