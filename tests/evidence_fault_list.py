"""The single faults, by what they are in: what the checkers of v1.0, v1.1 and v6.1 enforce, log or miss."""

from __future__ import annotations

from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, DETAIL, SUMMARY
from tests.evidence_faults import (
    Edit,
    Fault,
    both,
    content,
    copied,
    entry,
    error,
    folder,
    gone,
    large,
    link,
    moved,
    run_of,
    text,
    value,
)

D10 = "datacenter-v1.0-closed-own-loadgen"
E11 = "edge-v1.1-closed-own-loadgen"
E61 = "edge-v6.1-closed"
D61 = "datacenter-v6.1-closed"
N61 = "datacenter-v6.1-network"
O10 = "datacenter-v1.0-open"
O61 = "edge-v6.1-open"
# Of both layouts; the first has two results with five compliance tests, the second one result with one.
BOTH = (D10, D61)
STREAMS = (D10, E61)
MS_NS = 1_000_000
SEEDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
ONE_ANSWER = b'[\n{ "seq_id" : 0, "qsl_idx" : 0, "data" : "00" }\n]\n'
LONG_LOG = ONE_ANSWER * 300


def _twice(edit: Edit) -> None:
    log = edit.path("{perf}/" + DETAIL).read_bytes()
    edit.write("{perf}/" + DETAIL, log + log)


def _cut(edit: Edit) -> None:
    log = edit.path("{perf}/" + DETAIL).read_bytes()
    edit.write("{perf}/" + DETAIL, log[:-40])


def _no_calibration(edit: Edit) -> None:
    top = edit.path("{top}")
    for path in sorted(top.rglob("calibration*")):
        edit.remove(str(path))


PERFORMANCE = {
    "INVALID": Fault((*BOTH, E11), "invalid-result", entry("{perf}", "result_validity", "INVALID")),
    "INVALID in open": Fault((O10, O61), "invalid-result", entry("{perf}", "result_validity", "INVALID")),
    "an error in the log": Fault(BOTH, "loadgen-error", error("{perf}")),
    "too few samples loaded": Fault(
        BOTH, "few-samples", entry("{perf}", "effective_performance_sample_count", 10)
    ),
    **{
        f"wrong {seed}": Fault((*BOTH, E11), "wrong-seed", entry("{perf}", f"effective_{seed}", 7))
        for seed in SEEDS
    },
    "a short minimum duration": Fault(
        BOTH, "short-duration", entry("{perf}", "effective_min_duration_ms", 60000)
    ),
    "few queries asked for": Fault(
        (D10, E11), "few-queries", entry("{perf}", "effective_min_query_count", 10)
    ),
    "few queries of MultiStream": Fault(
        (E61,), "few-queries", entry("{perf}", "effective_min_query_count", 100), "MultiStream"
    ),
    "few samples of Offline": Fault(
        (D10, E11, E61), "few-offline-samples", entry("{perf}", "effective_samples_per_query", 100), "Offline"
    ),
    "8 samples a query": Fault(
        (E61,), "samples-per-query", entry("{perf}", "effective_samples_per_query", 4), "MultiStream"
    ),
    "a slow tail of Server": Fault(
        (D10,), "latency-limit", entry("{perf}", "result_99.00_percentile_latency_ns", 99 * MS_NS)
    ),
    "a wide limit of Server": Fault(
        (D10,), "latency-target", entry("{perf}", "effective_target_latency_ns", 99 * MS_NS)
    ),
    "another percentile": Fault(
        (D10,), "latency-percentile", entry("{perf}", "effective_target_latency_percentile", 0.5)
    ),
    "early stopping says no": Fault((E61,), "early-stopping", entry("{perf}", "early_stopping_met", False)),
    "equal issue mode off": Fault(
        (D61, N61), "equal-issue", entry("{perf}", "effective_sample_concatenate_permutation", False)
    ),
    "no Network SUT": Fault((N61,), "sut-name", entry("{perf}", "sut_name", "LoadGrid")),
    "another LoadGen": Fault(BOTH, "loadgen-version", entry("{perf}", "loadgen_version", "5.0.1")),
    "a LoadGen with changes": Fault(
        (D10, E11), "loadgen-changed", entry("{perf}", "loadgen_git_status_message", " M loadgen/loadgen.cc")
    ),
    "broken JSON in the log": Fault(BOTH, "damaged-log", text("{perf}/" + DETAIL, '"value"', '"value')),
    "a log cut short": Fault(BOTH, "damaged-log", _cut),
    "two tests in one log": Fault(BOTH, "several-tests", _twice),
    "no detail log at all": Fault(BOTH, "file-missing", gone("{perf}/" + DETAIL, "{acc}/" + DETAIL)),
    "no detail log": Fault(BOTH, "file-missing", gone("{perf}/" + DETAIL)),
    "no summary": Fault(BOTH, "file-missing", gone("{perf}/" + SUMMARY)),
    "no performance test": Fault(BOTH, "performance-missing", gone("{perf}")),
    "an empty run": Fault(BOTH, "empty-folder", both(gone("{perf}"), folder("{perf}"))),
    "a stray file in the run": Fault(BOTH, "extra-file", content("{perf}/notes.txt", "x")),
    "a second run": Fault(BOTH, "extra-run", copied("{perf}", "{cell}/performance/run_2")),
    "an accuracy test as performance": Fault(
        BOTH, "wrong-mode", copied("{acc}/" + DETAIL, "{perf}/" + DETAIL)
    ),
    "another scenario's log": Fault(
        STREAMS, "wrong-scenario", copied("{cell}/../Offline/performance/run_1/" + DETAIL, "{perf}/" + DETAIL)
    ),
    "a compliance test as the result": Fault(
        BOTH, "audit-leak", copied(run_of("{TEST01}") + "/" + DETAIL, "{perf}/" + DETAIL)
    ),
    "answers in a performance log": Fault(BOTH, "audit-leak", content("{perf}/" + ACCURACY_LOG, ONE_ANSWER)),
    "a rate that the summary does not have": Fault(
        (D10,), "logs-contradict", entry("{perf}", "result_scheduled_samples_per_sec", 9999.0)
    ),
    "another user.conf": Fault(
        (D10,), "user-conf-differs", text("{conf}/user.conf", "target_qps = 455", "target_qps = 4550")
    ),
    "power without its files": Fault(
        BOTH, "power-file-missing", content("{cell}/performance/power/client.json", "{}")
    ),
}

ACCURACY = {
    "below the target": Fault(
        STREAMS, "low-accuracy", text("{acc}/" + ACCURACY_TXT, "accuracy=100.000%", "accuracy=70.000%")
    ),
    "a DICE below the target": Fault(
        (D61, N61), "low-accuracy", text("{acc}/" + ACCURACY_TXT, "0.86170", "0.80000")
    ),
    "no score": Fault(STREAMS, "no-accuracy", text("{acc}/" + ACCURACY_TXT, "accuracy=", "score=")),
    "an impossible score": Fault(
        STREAMS,
        "impossible-accuracy",
        text("{acc}/" + ACCURACY_TXT, "accuracy=100.000%", "accuracy=100.100%"),
    ),
    "no hash": Fault(BOTH, "no-hash", text("{acc}/" + ACCURACY_TXT, "hash=", "sha=")),
    "a hash that is glued to the score": Fault(
        STREAMS, "no-hash", text("{acc}/" + ACCURACY_TXT, "\nhash=", " hash=")
    ),
    "a hash that is none": Fault(BOTH, "bad-hash", text("{acc}/" + ACCURACY_TXT, "hash=", "hash=0")),
    "a log that is not truncated": Fault(
        BOTH, "accuracy-log-not-truncated", content("{acc}/" + ACCURACY_LOG, LONG_LOG)
    ),
    "a log truncated in another way": Fault(
        BOTH, "accuracy-log-form", content("{acc}/" + ACCURACY_LOG, LONG_LOG[:900] + b"..." + LONG_LOG[:90])
    ),
    "no accuracy log": Fault(BOTH, "file-missing", gone("{acc}/" + ACCURACY_LOG)),
    "no accuracy.txt": Fault((*BOTH, O10, O61), "file-missing", gone("{acc}/" + ACCURACY_TXT)),
    "no detail log of accuracy": Fault(BOTH, "file-missing", gone("{acc}/" + DETAIL)),
    "no accuracy test": Fault((*BOTH, O10, O61), "accuracy-missing", gone("{acc}")),
    "a stray file beside it": Fault(BOTH, "extra-file", content("{acc}/notes.txt", "x")),
    "an error in the accuracy log": Fault(BOTH, "loadgen-error", error("{acc}")),
    "half of the data set": Fault(
        (E61, D61), "accuracy-coverage", entry("{acc}", "effective_accuracy_sample_count", 25)
    ),
    "a small library": Fault((D10,), "accuracy-coverage", entry("{acc}", "qsl_reported_total_count", 500)),
    "a performance test as accuracy": Fault(
        BOTH, "wrong-mode", copied("{perf}/" + DETAIL, "{acc}/" + DETAIL)
    ),
    "accuracy of another scenario": Fault(
        STREAMS, "accuracy-scenario", copied("{cell}/../Offline/accuracy/" + DETAIL, "{acc}/" + DETAIL)
    ),
    "another seed in accuracy": Fault(BOTH, "wrong-seed", entry("{acc}", "effective_qsl_rng_seed", 7)),
}

SCENARIOS = {
    "a scenario less": Fault((E11, E61), "missing-scenario", gone("{cell}"), "Offline"),
    "Server left out": Fault((D10,), "missing-scenario", gone("{cell}"), "Server"),
    "a scenario that is none": Fault(BOTH, "unknown-scenario", moved("{cell}", "{cell}/../Streaming")),
    "Server on edge": Fault((E11, E61), "scenario-not-in-suite", moved("{cell}", "{cell}/../Server")),
    "shouted": Fault(BOTH, "scenario-spelling", moved("{cell}", "{cell}/../OFFLINE"), "Offline"),
    "one result twice": Fault(BOTH, "duplicate-result", copied("{cell}", "{cell}/../offline"), "Offline"),
    "a model that is none": Fault(BOTH, "unknown-model", moved("{cell}/..", "{cell}/../../vgg16")),
    "a model of another suite": Fault(
        (D10,), "model-not-in-suite", moved("{cell}/..", "{cell}/../../ssd-mobilenet")
    ),
    "resnet in the datacenter of v6.1": Fault(
        (D61,), "model-not-in-suite", moved("{cell}/..", "{cell}/../../resnet")
    ),
    "a model mapped to nothing": Fault(
        (O61,), "model-mapping", content("{top}/model_mapping.json", '{"resnet50": "vgg16"}')
    ),
    "a model without scenarios": Fault(BOTH, "no-scenario", folder("{cell}/../../bert-99")),
}

SYSTEM = {
    "no description": Fault((*BOTH, O10, O61), "system-missing", gone("{system}")),
    "a description that is no JSON": Fault(BOTH, "system-unreadable", content("{system}", "{")),
    "a field less": Fault(BOTH, "system-field", value("{system}", "cooling", ...)),
    "a status that is none": Fault(BOTH, "system-field", value("{system}", "status", "soon")),
    "a suite that is none": Fault(BOTH, "suite-unknown", value("{system}", "system_type", "datacentre")),
    "another submitter": Fault(BOTH, "system-field", value("{system}", "submitter", "ACME")),
    "another division": Fault(BOTH, "system-field", value("{system}", "division", "open")),
    "no number of nodes": Fault(BOTH, "system-field", value("{system}", "number_of_nodes", "two")),
    "null as a name": Fault((D10,), "system-field", value("{system}", "accelerator_model_name", None)),
    "an empty field": Fault((E61, D61), "system-field", value("{system}", "cooling", "")),
    "0 accelerators as a number": Fault(
        (E61,), "system-field", value("{system}", "accelerators_per_node", 0)
    ),
    "is_network false as text": Fault((E61, D61), "system-field", value("{system}", "is_network", "false")),
    "is_network as a boolean": Fault((E61, D61), "system-field", value("{system}", "is_network", False)),
    "no is_network": Fault((N61,), "system-field", value("{system}", "is_network", ...)),
    "no network_type": Fault((N61,), "system-field", value("{system}", "network_type", ...)),
    "a description of nothing": Fault(
        BOTH, "system-without-results", copied("{system}", "{top}/systems/another.json")
    ),
}

SETTINGS = {
    "no settings": Fault((D10, E11), "measurements-missing", gone("{conf}")),
    "no user.conf": Fault(BOTH, "user-conf-missing", gone("{conf}/user.conf")),
    "no mlperf.conf": Fault((D10,), "mlperf-conf-missing", gone("{conf}/mlperf.conf")),
    "no README.md": Fault(BOTH, "readme-missing", gone("{conf}/README.md")),
    "no description of the implementation": Fault(BOTH, "implementation-missing", gone("{implementation}")),
    "an empty user.conf": Fault(BOTH, "user-conf-empty", content("{conf}/user.conf", "")),
    "an empty README.md": Fault(BOTH, "readme-empty", content("{conf}/README.md", "")),
    "a README.md of one word": Fault(BOTH, "readme-says-nothing", content("{conf}/README.md", "README")),
    "an implementation that is no JSON": Fault(
        BOTH, "implementation-unreadable", content("{implementation}", "[")
    ),
    "retraining not said": Fault(BOTH, "implementation-field", value("{implementation}", "retraining", "")),
    "no weight_data_types": Fault(
        BOTH, "implementation-field", value("{implementation}", "weight_data_types", ...)
    ),
    "the mlperf.conf of another round": Fault(
        (D10,), "mlperf-conf-of-another-round", text("{conf}/mlperf.conf", "7322528924094909334", "5")
    ),
    "no code": Fault(BOTH, "code-missing", gone("{code}")),
    "no code of this model": Fault((D10,), "code-missing", gone("{code}/resnet50")),
    "no calibration document": Fault((D10, E11), "calibration-missing", _no_calibration),
    "no calibration document since v6": Fault((E61, D61), "calibration-missing", _no_calibration),
    "no word on bandwidth": Fault((D61,), "bandwidth-missing", gone("{top}/documentation/bandwidth.adoc")),
}

COMPLIANCE = {
    "no compliance tests": Fault((D10, E11), "compliance-missing", gone("{TEST01}/..")),
    "no compliance test": Fault((D61, N61), "compliance-missing", gone("{TEST01}")),
    **{
        f"no {test}": Fault(trees, "compliance-test-missing", gone(f"{{{test}}}"))
        for test, trees in {
            "TEST01": (D10, E61),
            "TEST04-A": (D10,),
            "TEST04-B": (D10, E11),
            "TEST05": (D10, E11),
            "TEST04": (E61,),
        }.items()
    },
    **{
        f"{test} failed": Fault(
            trees, "compliance-failed", text(f"{{{test}}}/verify_performance.txt", "TEST PASS", "TEST FAIL")
        )
        for test, trees in {
            "TEST01": (D10, E61),
            "TEST04-A": (D10,),
            "TEST05": (D10, E11),
            "TEST04": (E61,),
        }.items()
    },
    "TEST01's answers failed": Fault(
        BOTH, "compliance-answers", text("{TEST01}/verify_accuracy.txt", "TEST PASS", "TEST FAIL")
    ),
    "no verdict on performance": Fault(
        BOTH, "compliance-file-missing", gone("{TEST01}/verify_performance.txt")
    ),
    "no verdict on answers": Fault(BOTH, "compliance-file-missing", gone("{TEST01}/verify_accuracy.txt")),
    "TEST01 without its answers": Fault(BOTH, "compliance-file-missing", gone("{TEST01}/accuracy")),
    "TEST01 without logs": Fault(BOTH, "compliance-file-missing", gone(run_of("{TEST01}"))),
    "TEST01 that was not audited": Fault(
        BOTH, "audit-settings", entry(run_of("{TEST01}"), "effective_accuracy_log_sampling_target", 0)
    ),
    "TEST05 with the round's seeds": Fault(
        (D10, E11), "wrong-seed", entry(run_of("{TEST05}"), "effective_qsl_rng_seed", 5)
    ),
    "TEST04-B that repeated nothing": Fault(
        (D10,), "audit-settings", entry(run_of("{TEST04-B}"), "effective_performance_issue_same", False)
    ),
    "TEST05 of half the speed": Fault(
        (D10,), "compliance-recomputed",
        entry(run_of("{TEST05}"), "result_scheduled_samples_per_sec", lambda rate: rate / 2),
    ),
    "the result's logs as TEST05": Fault(
        (D10, E11), "compliance-copied", copied("{perf}/" + DETAIL, run_of("{TEST05}") + "/" + DETAIL)
    ),
    "a test that nobody knows": Fault(
        BOTH, "compliance-test-unknown", copied("{TEST01}", "{TEST01}/../TEST09")
    ),
    "INVALID in TEST01": Fault(
        BOTH, "invalid-result", entry(run_of("{TEST01}"), "result_validity", "INVALID")
    ),
}  # fmt: skip

HYGIENE = {
    "a hidden file": Fault(BOTH, "dotfile", content("{top}/systems/.DS_Store", "x")),
    "a symbolic link": Fault(BOTH, "symlink", link("{code}/link", "/etc/hostname")),
    "a blank in a name": Fault(BOTH, "space-in-name", content("{code}/my notes.txt", "x")),
    "over 50 MB": Fault(BOTH, "large-file", large("{code}/weights.bin", 50_000_001)),
    "an empty folder": Fault(BOTH, "empty-folder", folder("{code}/nothing")),
    "a folder that is no division": Fault(BOTH, "unknown-top-level", content("{root}/closd/x.txt", "x")),
    "no network division before v2": Fault(
        (D10, E11), "division-not-in-round", copied("{top}", "{root}/network/LoadGrid-evidence")
    ),
    "a folder under the submitter": Fault((E61,), "unknown-part", content("{top}/measurements/x.txt", "x")),
    "a file among the results": Fault(BOTH, "stray", content("{cell}/notes.txt", "x")),
}

FAULTS = {
    f"{group}: {name}": fault
    for group, faults in {
        "performance": PERFORMANCE,
        "accuracy": ACCURACY,
        "scenarios": SCENARIOS,
        "system": SYSTEM,
        "settings": SETTINGS,
        "compliance": COMPLIANCE,
        "hygiene": HYGIENE,
    }.items()
    for name, fault in faults.items()
}
