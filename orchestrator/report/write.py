"""The report's files, written beside each other: the page, its numbers as CSV, everything as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.paths import write_atomically
from orchestrator.report.runs import ReportError, Run, plain, read_run

REPORT = "report.html"


def write_report(
    runs: Sequence[Run], page: Path, write: Callable[[Path, bytes], None] = write_atomically
) -> list[Path]:
    """Write `page` and its companions, of the same name but for the ending."""
    # Matplotlib takes half a second to import, which no other command should pay.
    from orchestrator.report.export import as_json, histogram_csv, losses_csv, series_csv, stages_csv
    from orchestrator.report.page import as_page

    parts = {
        ".html": as_page,
        ".json": as_json,
        "-histogram.csv": histogram_csv,
        "-losses.csv": losses_csv,
        "-series.csv": series_csv,
        "-stages.csv": stages_csv,
    }
    written = {page.with_name(f"{page.stem}{ending}"): make(runs) for ending, make in parts.items()}
    for path, text in written.items():
        write(path, text.encode(errors="replace"))
    return list(written)


def report_of_run(folder: Path, warn: Callable[[str], None]) -> None:
    """Write the report into its run's folder; what keeps it from that is told and keeps nothing else."""
    try:
        write_report([read_run(folder)], folder / REPORT)
    except ReportError as error:
        warn(f"no report: {error}")
    except Exception as error:  # the run has its records: no fault of a page may cost it its end
        warn(plain(f"no report: {type(error).__name__}: {error}".splitlines()[0]))
