"""Draws the dashboard's panels from what a Prometheus holds, where no Grafana is at hand.

python monitoring/grafana/draw_panels.py dashboard.png --minutes 2
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

DASHBOARD = Path(__file__).parent / "loadgrid.json"
RATE_WINDOW = "4s"  # what Grafana takes for one scrape a second
CELL_INCHES = (0.55, 0.34)  # of Grafana's grid
MOST_LEGENDS = 6
UNITS = {"s": "seconds", "cps": "a second", "percentunit": "share", "percent": "%"}
Series = dict[str, np.ndarray]  # by legend; nan where there is nothing


@dataclass(frozen=True)
class Span:
    """A time in whole seconds, and the Prometheus that saw it."""

    url: str
    instance: str
    start_s: int
    end_s: int

    @property
    def seconds(self) -> np.ndarray:
        """From its beginning, one a second."""
        return np.arange(self.end_s - self.start_s + 1)

    def ask(self, expression: str, legend: str) -> Series:
        """What Grafana would be told."""
        query = expression.replace("$instance", self.instance).replace("$__rate_interval", RATE_WINDOW)
        asked = {"query": query, "start": self.start_s, "end": self.end_s, "step": 1}
        url = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 (the user's own Prometheus)
            result = json.load(answer)["data"]["result"]
        series = {}
        for one in result:
            values = np.full(len(self.seconds), math.nan)
            for at, value in one["values"]:
                values[round(at) - self.start_s] = float(value)
            series[_name(legend, one["metric"])] = values
        return series


def _name(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


def last(values: np.ndarray) -> float:
    """The newest value that there is."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def said(value: float, unit: str) -> str:
    """A figure as a reader wants it."""
    return {"percentunit": f"{value:.0%}", "s": f"{value:.3g} s"}.get(unit, f"{value:.6g}")


def draw_figure(axes: Axes, panel: dict[str, Any], series: Series, _: Span) -> None:
    """stat and gauge: the newest values, or the name of the newest series."""
    axes.axis("off")
    defaults = panel["fieldConfig"]["defaults"]
    named = defaults.get("mappings", [{"options": {}}])[0]["options"]
    if panel["options"].get("textMode") == "name":
        lasting = max(series, key=lambda name: int(np.flatnonzero(np.isfinite(series[name]))[-1]))
        lines = [lasting]
    else:
        words = {name: said(last(values), defaults["unit"]) for name, values in series.items()}
        words = {name: named.get(word, {"text": word})["text"] for name, word in words.items()}
        lines = [f"{name} {word}".strip() for name, word in words.items()]
    axes.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=11, transform=axes.transAxes)


def draw_lines(axes: Axes, panel: dict[str, Any], series: Series, span: Span) -> None:
    """timeseries: lines, or areas on top of each other."""
    if panel["fieldConfig"]["defaults"]["custom"].get("stacking"):
        areas = [np.nan_to_num(values) for values in series.values()]
        axes.stackplot(span.seconds, *areas, labels=list(series), alpha=0.7)
    else:
        for name, values in series.items():
            dashed = name in ("limit", "target")
            axes.plot(
                span.seconds,
                values,
                label=name,
                lw=1.2,
                ls="--" if dashed else "-",
                c="red" if dashed else None,
            )
        axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(fontsize=6, ncols=2 if len(series) > MOST_LEGENDS else 1, loc="best")


def draw_rows(axes: Axes, panel: dict[str, Any], series: Series, span: Span) -> None:
    """status-history and state-timeline: a row for each series, a colour for each value."""
    rows = np.array(list(series.values()))
    scale = "RdYlGn" if panel["type"] == "state-timeline" else "RdYlBu_r"
    top = 1 if panel["type"] == "state-timeline" else None
    mesh = axes.pcolormesh(span.seconds, np.arange(len(rows)), rows, cmap=scale, vmin=0, vmax=top)
    axes.set_yticks(np.arange(len(rows)), list(series))
    axes.invert_yaxis()
    if top is None:
        axes.figure.colorbar(mesh, ax=axes, pad=0.01)


def draw_heat(axes: Axes, panel: dict[str, Any], series: Series, span: Span) -> None:
    """heatmap: of each bucket what the one below it does not hold."""
    edges = sorted(float(name) for name in series)
    counts = np.array([series[name] for name in sorted(series, key=float)])
    own = np.diff(counts, axis=0, prepend=0)[:-1]
    edges_s = np.array(edges[:-1])
    used = np.flatnonzero(np.nansum(own, axis=1) > 0)
    if not used.size:
        return  # nothing was answered meanwhile
    own, edges_s = own[used[0] : used[-1] + 1], edges_s[max(used[0] - 1, 0) : used[-1] + 1]
    shown = np.ma.masked_invalid(np.where(own > 0, own, math.nan))
    if len(edges_s) == len(own):  # the lowest bucket has no edge below
        edges_s = np.concatenate([[edges_s[0] / 4], edges_s])
    mesh = axes.pcolormesh(np.arange(shown.shape[1] + 1), edges_s, shown, cmap="Oranges", norm=LogNorm())
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.yaxis.set_minor_formatter(EngFormatter("s"))
    axes.figure.colorbar(mesh, ax=axes, pad=0.01)


DRAWN = {
    "stat": draw_figure,
    "gauge": draw_figure,
    "timeseries": draw_lines,
    "heatmap": draw_heat,
    "status-history": draw_rows,
    "state-timeline": draw_rows,
}


def draw(span: Span, file: Path) -> None:
    """All panels in the places that they have in Grafana."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    high = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(24 * CELL_INCHES[0], high * CELL_INCHES[1]), dpi=75)
    for panel in panels:
        at = panel["gridPos"]
        if panel["type"] == "row":
            figure.text(0.01, 1 - (at["y"] + 0.7) / high, panel["title"], fontsize=13, weight="bold")
            continue
        below = 1 - (at["y"] + at["h"] - 1.2) / high
        place = ((at["x"] + 1.4) / 24, below, (at["w"] - 1.8) / 24, (at["h"] - 2.4) / high)
        axes = figure.add_axes(place)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.tick_params(which="both", labelsize=7)
        axes.set_xlim(0, span.end_s - span.start_s)
        if panel["type"] == "timeseries":
            axes.set_ylabel(UNITS.get(panel["fieldConfig"]["defaults"]["unit"], ""), fontsize=7)
        series: Series = {}
        for target in panel["targets"]:
            series |= span.ask(target["expr"], target["legendFormat"])
        if any(np.isfinite(values).any() for values in series.values()):
            DRAWN[panel["type"]](axes, panel, series, span)
        else:
            axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes)
    figure.savefig(file)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prometheus", default="http://localhost:9090")
    parser.add_argument("--instance", default="localhost:9464", help="the driver, as Prometheus calls it")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--until", type=float, default=None, help="seconds since 1970; now")
    asked = parser.parse_args()
    matplotlib.use("agg")
    end_s = int(asked.until or time.time())
    draw(Span(asked.prometheus, asked.instance, end_s - int(asked.minutes * 60), end_s), asked.file)


if __name__ == "__main__":
    main()
