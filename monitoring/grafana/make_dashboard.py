"""Writes loadgrid.json, the Grafana dashboard, from panels.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
FILE = HERE / "loadgrid.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24  # of Grafana's grid
SCHEMA = 39  # of Grafana 10.4; a newer Grafana brings an older dashboard up to date by itself


def words(*named: tuple[str, str]) -> dict[str, Any]:
    """What to show for 0, 1, ...: a word and its colour."""
    options = {str(i): {"text": text, "color": colour} for i, (text, colour) in enumerate(named)}
    return {"mappings": [{"type": "value", "options": options}]}


# Grafana's settings of a panel (options), of its series (defaults) and of how these are drawn (custom).
LOOKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "name": {"options": {"textMode": "name", "colorMode": "none", "graphMode": "none"}},
    "figure": {"options": {"colorMode": "none", "graphMode": "none"}},
    "verdict": {
        "options": {"colorMode": "background", "graphMode": "none"},
        "defaults": words(("on course", "green"), ("at risk", "orange"), ("cannot pass", "red")),
    },
    "share": {"defaults": {"min": 0, "max": 1}},
    "percent": {"defaults": {"min": 0, "max": 100}},
    "line": {"defaults": {"min": 0}, "custom": {"thresholdsStyle": {"mode": "line"}}},
    "stacked": {"custom": {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}},
    "cells": {
        "options": {"showValue": "never", "rowHeight": 0.9},
        "defaults": {"min": 0, "color": {"mode": "continuous-BlYlRd"}},
    },
    "up": {"options": {"showValue": "never"}, "defaults": words(("lost", "red"), ("up", "green"))},
    "buckets": {
        "options": {
            "calculate": False,
            "yAxis": {"unit": "s"},
            "color": {"mode": "scheme", "scheme": "Oranges"},
        }
    },
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "loadgrid",
        "title": "LoadGrid",
        "description": "A run of MLPerf Inference on a cluster",
        "tags": ["loadgrid", "mlperf"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timepicker": {"refresh_intervals": ["1s", "5s", "10s", "30s", "1m"]},
        "templating": {"list": variables()},
        "annotations": {"list": []},
        "panels": list(panels()),
    }


def variables() -> list[dict[str, Any]]:
    """What is chosen above: a run, and by it the driver that Prometheus scraped."""
    queried = {"type": "query", "datasource": SOURCE, "refresh": 2, "sort": 2}
    of_run = 'label_values(loadgrid_run_info{run="$run"}, instance)'
    return [
        {"name": "datasource", "type": "datasource", "label": "Prometheus", "query": "prometheus"},
        {"name": "run", "label": "Run", "query": "label_values(loadgrid_run_info, run)", **queried},
        {"name": "instance", "label": "Driver", "query": of_run, **queried},
    ]


def panels() -> Iterator[dict[str, Any]]:
    """The rows and their panels, numbered, from left to right and downwards."""
    number, y, high = 0, 0, 0
    for row in yaml.safe_load((HERE / "panels.yaml").read_text()):
        number += 1
        where = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        facts = {"title": row["row"], "collapsed": False, "panels": []}
        yield {"type": "row", "id": number, "gridPos": where, **facts}
        x, y = 0, y + 1
        for panel in row["panels"]:
            wide = panel.get("wide", COLUMNS // 2)
            if x + wide > COLUMNS:
                x, y = 0, y + high
            number, high = number + 1, panel.get("high", 8)
            yield drawn(panel, number, {"x": x, "y": y, "w": wide, "h": high})
            x += wide
        y += high


def drawn(panel: dict[str, Any], number: int, where: dict[str, int]) -> dict[str, Any]:
    """One panel in Grafana's terms."""
    kind, look = panel.get("kind", "timeseries"), LOOKS[panel.get("look", "plain")]
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": SOURCE,
            "expr": expression.replace("{run", '{instance="$instance"'),
            "legendFormat": legend,
            "format": "heatmap" if kind == "heatmap" else "time_series",
        }
        for i, (legend, expression) in enumerate(panel["queries"].items())
    ]
    defaults = {
        "unit": panel.get("unit", "short"),
        "custom": look.get("custom", {}),
        **look.get("defaults", {}),
    }
    if "red_from" in panel:
        steps = [{"value": None, "color": "green"}, {"value": panel["red_from"], "color": "red"}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": kind,
        "id": number,
        "title": panel["title"],
        "description": panel["about"],
        "datasource": SOURCE,
        "gridPos": where,
        "targets": targets,
        "options": look.get("options", {}),
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }


def text() -> str:
    """What stands in loadgrid.json."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
