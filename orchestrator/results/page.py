"""The rows as one self-contained web page: no network, no code but its own, names of trees only as text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from orchestrator import __version__
from orchestrator.pages import policy_hash, templates, tokens
from orchestrator.phrases import plural
from orchestrator.results.gather import Gathered
from orchestrator.results.rows import Row
from orchestrator.results.table import scenarios_of, shown_accuracy

FOLDER = Path(__file__).parent


def as_page(gathered: Gathered) -> str:
    """The page; its policy allows the one script and the one style that are in it, by their hashes."""
    style, script = tokens() + _part("page.css"), _part("page.js")
    rounds = list(dict.fromkeys(row.round for row in gathered.rows))
    return (
        templates(FOLDER)
        .get_template("page.html.j2")
        .render(
            title=f"MLPerf Inference {', '.join(rounds)} results".replace("  ", " "),
            summary=_summary(gathered),
            style=Markup(style),  # noqa: S704 - a file of this package
            script=Markup(script),  # noqa: S704 - a file of this package
            style_hash=policy_hash(style),
            script_hash=policy_hash(script),
            remarks=gathered.remarks,
            version=__version__,
            data=_data(gathered),
        )
    )


def _data(gathered: Gathered) -> dict[str, Any]:
    """What the script shows; the template's tojson escapes what HTML could take for markup."""
    return {
        "rows": [_row(row) for row in gathered.rows],
        "scenarios": scenarios_of(gathered.rows),
        "categories": list(dict.fromkeys(row.machine.category for row in _by_category(gathered))),
    }


def _by_category(gathered: Gathered) -> list[Row]:
    order = ("available", "preview", "rdi")
    return sorted(gathered.rows, key=lambda row: (*order, row.machine.category).index(row.machine.category))


def _row(row: Row) -> dict[str, Any]:
    told = row.as_dict()
    shown = [{"shown_accuracy": shown_accuracy(one)} for one in row.results]
    results: Any = told["results"]
    told["results"] = [{**result, **more} for result, more in zip(results, shown, strict=True)]
    return told


def _summary(gathered: Gathered) -> str:
    rows = gathered.rows
    systems = {(row.round, row.division, row.submitter, row.system) for row in rows}
    results = {(row.round, one.location) for row in rows for one in row.results}
    submitters = {row.submitter for row in rows}
    return (
        f"{plural(len(results), 'result')} of {plural(len(systems), 'system')} "
        f"from {plural(len(submitters), 'submitter')}"
    )


@cache
def _part(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
