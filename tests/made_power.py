"""A measured test's files, made up: LoadGen's detail log, a meter's readings, the client's json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.paths import DETAIL
from tests.made_logs import detail

BEGIN = datetime(2021, 3, 8, 0, 0, 5, 233000)  # the window of made_logs.detail: 600.008 s
END = datetime(2021, 3, 8, 0, 10, 5, 241000)
FORM = "%m-%d-%Y %H:%M:%S.%f"
WINDOW_S = 600.008


def reading(at: datetime, watts: float | str) -> str:
    """One line of spl.txt."""
    stamp = at.strftime(FORM)[:-3]
    return f"Time,{stamp},Watts,{watts},Volts,230.0,Amps,1.0,PF,0.98,Mark,2021-03-08_00-00-00_testing\n"


def every_second(watts: Iterable[float | str], first: datetime = BEGIN + timedelta(milliseconds=1)) -> str:
    """Readings one second apart."""
    return "".join(reading(first + timedelta(seconds=i), value) for i, value in enumerate(watts))


def performance(
    folder: Path, scenario: str, spl: str | bytes, version: str = "6.0.17", zones: tuple[Any, Any] = (0, 0),
    **results: Any,
) -> Path:  # fmt: skip
    """A `performance` folder: run_1 with a log and `spl`, power with the `timezone` of both hosts."""
    run, power = folder / "run_1", folder / "power"
    run.mkdir(parents=True)
    power.mkdir()
    (run / DETAIL).write_text(detail(version, scenario, results))
    (run / "spl.txt").write_bytes(spl.encode() if isinstance(spl, str) else spl)
    for name, zone in zip(("client.json", "server.json"), zones, strict=True):
        (power / name).write_text(json.dumps({"timezone": zone}))
    return folder
