"""Numbers and verdicts as people read them: short text, no colour, no layout. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.course import Course
from orchestrator.early_stopping import most_late, most_late_by_percentile
from orchestrator.fixed_interval import OWN_FILE
from orchestrator.record import Audit, Power, Record
from orchestrator.rules import RulesError, load_round

FULL = "█"
PARTS = " ▏▎▍▌▋▊▉"
MOST_QUERIES = 10**8  # of a test; a bound for more would take seconds, and no test has them


def ms(value: float | None) -> str:
    """A time in ms with three digits that count; a dash when there is none."""
    if value is None or value != value:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rate(value: float) -> str:
    """Things a second."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """A share, 1.0 as 100 %; what is there is never shown as nothing."""
    if 0 < share < 0.005:
        return "<1 %"
    return f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """A length of time: 0.4 s, 48 s, 10 min, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10 and rest:
        return f"{minutes} min {rest} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def clock(seconds: float) -> str:
    """Time passed, as on a stop watch: 0:07, 12:34, 1:02:03."""
    minutes, second = divmod(max(int(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size(count: float) -> str:
    """Bytes: 512 B, 10 MB, 2.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def plural(count: int, what: str) -> str:
    """`1 worker`, `1,024 samples`; `what` in the singular."""
    many = what.removesuffix("y") + "ies" if what.endswith("y") and what[-2] not in "aeiou" else f"{what}s"
    return f"{count:,} {what if count == 1 else many}"


def bar(share: float, width: int) -> str:
    """A bar of `width` cells, filled to eighths of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    if share > 0:
        eighths = max(eighths, 1)
    whole, rest = divmod(eighths, 8)
    return (FULL * whole + (PARTS[rest] if rest else "")).ljust(width)


def course_in_words(course: Course) -> str:
    """Where a running test heads, why, and how many queries it still needs."""
    more = f"; {course.more_needed:,} more within the limit are needed" if course.more_needed else ""
    return f"{course.word}: {course.why}{more}"


@dataclass(frozen=True)
class Verdict:
    """A test's outcome: a word, a colour, one sentence, and why if it is not good."""

    word: str
    style: str
    sentence: str
    reasons: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the test reached what it was for."""
        return self.style == "green"


def verdict(record: Record) -> Verdict:
    """What came of a test, in words for somebody who sees LoadGen for the first time."""
    if record.status == "interrupted":
        return Verdict("INTERRUPTED", "yellow", f"Ended before its end: {record.reason}. There is no result.")
    if record.status == "failed":
        return Verdict("FAILED", "red", f"The test failed, so there is no result: {record.reason}")
    if record.kind == "accuracy":
        return _accuracy_verdict(record)
    if record.kind == "compliance":
        return _audit_verdict(record)
    reasons = tuple(dict.fromkeys(text.strip() for text in [*record.result.reasons, *record.result.errors]))
    if record.result.valid is None:
        return Verdict("NO VERDICT", "red", "LoadGen's log holds no verdict.", reasons)
    if not record.result.valid:
        return Verdict("INVALID", "red", f"{judge(record)} does not accept this result:", reasons)
    if record.result.errors:
        words = "LoadGen calls it VALID but logged errors, which checkers refuse:"
        return Verdict("ERRORS", "red", words, tuple(record.result.errors))
    return Verdict("VALID", "green", f"{judge(record)} accepts this result: {_why_valid(record)}.")


def judge(record: Record) -> str:
    """Whose verdict it is: LoadGen's, but for the one scenario that LoadGrid itself asks."""
    own = record.loadgen.get("file") == OWN_FILE
    return "LoadGrid's own generator (unofficial)" if own else "LoadGen"


def _accuracy_verdict(record: Record) -> Verdict:
    got = record.accuracy
    if got is None:
        return Verdict("NOT SCORED", "red", "The answers were logged, but there is no score.")
    right = f"{got.good:,} of {got.total:,} right = " if got.good is not None else f"{got.metric} "
    target = with_unit(f"{got.target:g}", got.unit)
    text = f"{right}{with_unit(f'{got.value:.4g}', got.unit)}; the target is {target}."
    if record.result.errors:
        words = f"{text} But LoadGen logged errors, which checkers refuse:"
        return Verdict("ERRORS", "red", words, tuple(record.result.errors))
    if got.reached:
        return Verdict("REACHED", "green", f"Accuracy target reached: {text}")
    return Verdict("MISSED", "red", f"Accuracy target missed: {text}")


def _audit_verdict(record: Record) -> Verdict:
    audit = record.audit
    if audit is None or (audit.passed is None and not audit.awaited):
        return Verdict("NOT VERIFIED", "red", audit.reason if audit else "The test was not verified.")
    if audit.awaited:
        return Verdict("RUN", "green", f"The logs are there; it is {audit.reason}.")
    if not audit.passed:
        return Verdict("FAIL", "red", f"Compared with {audit.against}: {audit.reason}.")
    return Verdict("PASS", "green", f"Compliance test passed: {_audit_story(audit)}")


def _audit_story(audit: Audit) -> str:
    """What was compared, and how near it was."""
    change = 100 * ((audit.score or 0.0) / (audit.reference_score or 1.0) - 1)
    allowed = f"{100 * (audit.allowed or 0.0):g} % are allowed"
    text = f"the score differs from that of {audit.against} by {change:+.1f} %, {allowed}"
    answers = audit.answers
    if answers is None:
        return f"{text}."
    if answers.first_differ:
        return (
            f"{text}; {answers.first_differ:,} of {plural(answers.logged, 'answer')} differ, their scores by "
            f"{answers.delta_percent:.3g} %, {answers.allowed_percent:g} % are allowed."
        )
    return f"{text}; {plural(answers.compared, 'answer')} as in the accuracy test."


def power(found: Power) -> str:
    """`340 W`, `0.0213 J/sample`: the round's power figure."""
    shown = f"{found.value:,.0f}" if found.value >= 1000 else f"{found.value:.4g}"
    return f"{shown} {found.unit}"


def power_in_words(found: Power) -> str:
    """The figure, where it comes from, and by which meter."""
    mean = "" if found.unit == "W" else f"{found.average_w:,.4g} W "
    when = f"over {plural(found.samples, 'reading')} in {duration(found.window_s)}"
    return f"{power(found)}: {mean}mean {when}, {found.measured} ({found.meter or 'the meter is not said'})"


def accuracy(record: Record) -> str:
    """`18/20 = 90 %`; without counts for a metric that has none."""
    got = record.accuracy
    if got is None:
        return "–"
    value = with_unit(f"{got.value:.4g}", got.unit)
    return f"{got.good:,}/{got.total:,} = {value}" if got.good is not None else value


def with_unit(number: str, name: str) -> str:
    """A number and its unit."""
    return f"{number} {unit(name)}".rstrip()


def unit(name: str) -> str:
    """A unit as it stands behind a number; a round's may be followed by an explanation."""
    if name.partition(" ")[0] == "percent":
        return "%"
    return "" if name == "fraction" else name


def _why_valid(record: Record) -> str:
    """What LoadGen demanded in this scenario, and got."""
    settings = record.settings
    if record.scenario == "Server":
        share = f"{100 * settings['server_target_latency_percentile']:g} %"
        limit = settings["server_target_latency_ns"] / 1e6
        within = f"{share} of the queries {{}} answered within {limit:,g} ms"
        if not stops_early(record):
            return within.format("were")
        return f"it ran long enough to be sure that {within.format('are')}"
    if record.scenario == "Offline":
        return f"answering took {duration(settings['min_duration_ms'] / 1000)} or more, as demanded"
    if "multi_stream_target_qps" in settings:
        late = f"{100 * (1 - settings['multi_stream_target_latency_percentile']):g} %"
        return f"enough queries over enough time, and fewer than {late} of them made another skip its tick"
    if is_estimate(record):
        return "enough queries over enough time to be sure of the percentile that it reports"
    return "enough queries over enough time, as demanded"


def result(record: Record) -> str:
    """The metric with its unit, LoadGen's own number."""
    found = record.result
    if found.value is None:
        return "–"
    if found.unit == "ms":
        return f"{ms(found.value)} ms"
    if found.unit == "samples":
        return f"{found.value:,.0f} samples"
    return f"{rate(found.value)} {found.unit}"


def result_key(record: Record) -> str:
    """LoadGen's key of the result by the record's round; empty for a round that is not known."""
    try:
        return load_round(record.round).result_keys.get(record.scenario, "")
    except RulesError:
        return ""


def stops_early(record: Record) -> bool:
    """Whether this LoadGen judges by early stopping, as all since 2.0 do."""
    version = str(record.loadgen.get("version") or "")
    return record.loadgen.get("file") != OWN_FILE and not version.startswith(("0.", "1."))


def is_estimate(record: Record) -> bool:
    """Whether the result is early stopping's estimate of a percentile, not the percentile of what ran."""
    return result_key(record).startswith("early_stopping_latency")


def result_name(record: Record) -> str:
    """What LoadGen's number is, by its key: `completed`, `p90 of a query, as LoadGen's estimate ...`."""
    key, settings = result_key(record), record.settings
    if record.scenario == "Server":
        words = {
            "result_completed_samples_per_sec": "completed",
            "result_scheduled_samples_per_sec": f"scheduled, which is the result of {record.round}",
        }
        return words.get(key, "")
    if record.scenario == "Offline":
        return "all asked at once"
    if "multi_stream_target_qps" in settings:
        return f"a query, one every {ms(1000 / settings['multi_stream_target_qps'])} ms"
    what = "a query"
    if record.scenario == "MultiStream":
        what = f"a query of {settings['multi_stream_samples_per_query']} samples"
    name = f"{judged_percentile(record)} of {what}"
    if is_estimate(record):
        return f"{name}, as LoadGen's estimate on the safe side (early stopping)"
    return f"{name}, of those that ran"


def late_by_loadgen(record: Record) -> str:
    """How many queries a finished Server test answered too late by LoadGen, and how many may be."""
    late = record.result.overlatency_queries
    return "" if late is None else _late_of_all(record, "LoadGen counted", late)


def late_by_driver(record: Record) -> str:
    """The same by the driver, which counts from the issue of a query and so never more than LoadGen."""
    if record.course is None:
        return ""
    return _late_of_all(record, "the driver, which counts from issue, saw", record.course.late)


def _late_of_all(record: Record, who: str, late: int) -> str:
    queries, limit = record.driver.get("completed"), limit_ms(record)
    if record.status != "finished" or limit is None or not queries or queries > MOST_QUERIES:
        return ""
    rule = most_late if stops_early(record) else most_late_by_percentile
    allowed = rule(queries, float(record.settings["server_target_latency_percentile"]))
    may = "so few queries prove nothing" if allowed is None else f"{allowed:,} may be"
    share = f"{100 * late / queries:.3g} %"
    return f"{who} {late:,} of {plural(queries, 'query')} over {limit:,g} ms ({share}); {may}"


def judged_percentile(record: Record) -> str:
    """The percentile that LoadGen judges or reports in this scenario, such as p90; empty in Offline."""
    words = {"SingleStream": "single_stream", "MultiStream": "multi_stream", "Server": "server"}
    share = record.settings.get(f"{words.get(record.scenario, '')}_target_latency_percentile")
    return "" if share is None else f"p{100 * share:g}"


def late_answers_story(count: int) -> str:
    """What became of answers to samples that had moved on."""
    return f"{plural(count, 'late answer')} dropped: completed before by another worker"


def loss_story(reason: str, moved: int, on_loss: str) -> str:
    """Why a worker was lost, and what became of its samples."""
    fate = "moved to others" if on_loss == "reissue" else "not answered, which ends the test"
    return f"{reason.rstrip('. ')}; {plural(moved, 'sample')} {fate}"


def limit_ms(record: Record) -> float | None:
    """Server's latency limit."""
    limit = record.settings.get("server_target_latency_ns")
    return limit / 1e6 if limit is not None and record.scenario == "Server" else None
