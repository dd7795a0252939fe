"""The report as one web page that asks for nothing: no script, no network, names only as text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from orchestrator import __version__
from orchestrator.journey import PATH, TOTAL, Row, driver_was_the_limit, rows
from orchestrator.pages import policy_hash, templates, tokens
from orchestrator.phrases import duration, ms, percent, plural
from orchestrator.record import Record
from orchestrator.report import facts
from orchestrator.report.compare import STYLES, compare, letter
from orchestrator.report.drawing import Picture
from orchestrator.report.figures import figures
from orchestrator.report.proof import Proof, verdict_of
from orchestrator.report.runs import Run, plain
from orchestrator.tables import losses

FOLDER = Path(__file__).parent
MOST_ROWS = 64  # workers of a table; the CSV has them all


def as_page(runs: Sequence[Run]) -> str:
    """The page of one run, or of several with a comparison first."""
    style = _style()
    names = [run.name for run in runs]
    title = names[0] if len(names) == 1 else f"{plural(len(names), 'run')} compared"
    return (
        templates(FOLDER)
        .get_template("page.html.j2")
        .render(
            title=title,
            style=Markup(style),  # noqa: S704 - files of this package
            style_hash=policy_hash(style),
            runs=[_run(n, run, len(runs) > 1) for n, run in enumerate(runs)],
            comparisons=compare(runs) if len(runs) > 1 else [],
            heads=[*(stage.replace("_", " ") for stage in PATH), "total"],
            svg=_svg,
            version=__version__,
        )
    )


def _svg(picture: Picture) -> Markup:
    return Markup(picture.svg)  # noqa: S704 - written by an XML writer, which escapes every text


def _run(number: int, run: Run, several: bool) -> dict[str, Any]:
    return {
        "letter": letter(number) if several else "",
        "name": run.name,
        "headline": facts.headline(run),
        "good": bool(run.records) and not run.never_ran and all(found.good for found in run.verdicts),
        "about": _about(run.records),
        "unfinished": [plain(name) for name in run.unfinished],
        "never_ran": run.never_ran,
        "tests": [_test(f"t{number}-{n}", *pair) for n, pair in enumerate(run.proven)],
        "doubted": [plain(record.test) for record, proof in run.proven if proof.doubts],
    }


def _about(records: Sequence[Record]) -> str:
    if not records:
        return ""
    first = records[0]
    took = duration(sum(record.wall_s for record in records))
    what = (first.benchmark, first.round, first.suite.replace(",", ", "), first.division)
    return plain(" · ".join((*what, f"began {first.started or 'at an unknown time'}", f"took {took}")))


def _test(anchor: str, record: Record, proof: Proof) -> dict[str, Any]:
    found, margin = verdict_of(record, proof), facts.margin(record)
    answer = driver_was_the_limit(record)
    return {
        "anchor": anchor,
        "name": plain(record.test),
        "kind": record.kind,
        "word": found.word,
        "style": STYLES.get(found.style, "bad"),
        "sentence": plain(found.sentence),
        "reasons": [plain(text) for text in found.reasons],
        "figure": facts.figure_of_test(record),
        "metric": plain(facts.metric(record)),
        "doubted": bool(proof.doubts),
        "proof": proof.words,
        "margin": margin,
        "filled": min(margin.used, 1.0) * 100 if margin and margin.used is not None else None,
        "limited": [plain(text) for text in facts.what_limited(record)],
        "official": record.official,
        "unofficial": [plain(text) for text in record.unofficial_because],
        "losses": [plain(text) for text in losses(record)],
        "lost": facts.losses(record),
        "fate": "moved to others" if record.on_loss == "reissue" else "not answered",
        "also": [plain(text) for text in facts.also(record)],
        "stragglers": facts.stragglers(record),
        "no_straggler": _no_straggler(record),
        "driver_rule": answer.rule if answer else "",
        "pictures": list(figures(record)) if record.kind != "accuracy" else [],
        "timed": record.series is not None,
        "workers": _worker_rows(record),
        "hidden": max(len(rows(record)) - 1 - MOST_ROWS, 0),
        "rules": facts.rules_on_settings(record),
        "settings": facts.settings_rows(record),
        "system": facts.system_rows(record),
        "driver": facts.driver_rows(record),
        "files": [(plain(name), plain(digest)) for name, digest in record.files.items()],
    }


def _no_straggler(record: Record) -> str:
    if len(facts.comparable(record)) < 2:
        return ""
    return (
        f"No worker is behind: in no stage of its own is a mean more than {facts.BEHIND:g} times the median "
        f"of the others' by {percent(facts.NOTICED)} or more of the latency. A worker of fewer than "
        f"{facts.FEWEST_SAMPLES} samples is not compared."
    )


def _worker_rows(record: Record) -> list[dict[str, Any]]:
    """All workers merged first, then those that were lost, then the slowest by p99."""
    found, lost = rows(record), {one.worker for one in record.losses}
    if not found:
        return []
    order = sorted(found[:-1], key=lambda row: (row.name not in lost, -row.p99_ms[TOTAL]))[:MOST_ROWS]
    return [
        _worker_row(row, row is found[-1], row is not found[-1] and row.name in lost)
        for row in (found[-1], *order)
    ]


def _worker_row(row: Row, merged: bool, lost: bool) -> dict[str, Any]:
    return {
        "lost": lost,
        "name": "all workers" if merged else plain(row.name),
        "samples": f"{row.samples:,}",
        "batch": "–" if row.batch is None else f"{row.batch:.1f}",
        "stages": [(ms(row.mean_ms[stage]), ms(row.p99_ms[stage])) for stage in (*PATH, TOTAL)],
    }


@cache
def _style() -> str:
    return tokens() + (FOLDER / "page.css").read_text(encoding="utf-8")
