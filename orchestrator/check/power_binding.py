"""Power: that readings, logs and the client's and server's accounts of them are of one measurement."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.check.cell_logs import official, own_file, test_of
from orchestrator.check.finding import Context, Finding
from orchestrator.loadgen_run import Power
from orchestrator.logs import LogError
from orchestrator.paths import DETAIL, SUMMARY
from orchestrator.power.spl import LINE_BYTES, SplError, read_spl
from orchestrator.submission.layout import RUN, SPL
from orchestrator.submission.tree import Cell

POWER, RANGING = "power", "ranging"
MODES = {RANGING: RANGING, "testing": RUN}  # a mode of the power client: its folder
# RESULT_PATHS of power_checker.py, whose sha1 both sides write down; client.json and server.json have none.
HASHED = (
    *(f"{POWER}/{name}" for name in ("client.log", "ptd_logs.txt", "server.log")),
    *(f"{folder}/{name}" for folder in MODES.values() for name in (DETAIL, SUMMARY, SPL)),
)
CLOCKS_S = 0.8  # TIME_DELTA_TOLERANCE of power_checker.py
# LoadGen logs UTC since v1.1, local time before; zones differ by quarters of an hour. power_checker.py takes
# an hour for daylight saving too.
ZONE_S, DAYLIGHT_S = 900, 3600
# Published measurements of v1.0 and v1.1 (DellEMC, NVIDIA, Qualcomm: 276 files): 0.2 % and 2 s at most.
PRODUCT_TOLERANCE = 0.02
LONGEST_GAP_S = 3.0
FEWEST_ROWS = 10
TAKEN_ERRORS = ("USB.",)  # COMMON_ERROR_TESTING of power_checker.py
AGAIN = "measure again with the power client, and submit its files as it left them"


def power_binding(context: Context, cell: Cell) -> Iterator[Finding]:
    """Hashes, UUIDs, phases and PTDaemon's errors, as far as the files have them; and the readings alone."""
    top = cell.path / "performance"
    if not context.is_folder(top / POWER):
        return  # told, where it should be there
    sides = {side: context.json(top / POWER / f"{side}.json") or {} for side in ("client", "server")}
    seen = official(context, "unseen", "error")
    for rule, place, what in (
        *_hashes(context, top, sides),
        *_uuids(sides),
        *_phases(context, cell, top, sides),
        *_daemon(context, top / POWER / "ptd_logs.txt", sides["server"]),
    ):
        yield context.finding(rule, top / place, what, AGAIN, official=seen)
    for folder in MODES.values():
        if own_file(context, top / folder / SPL):
            for rule, what in _readings(top / folder / SPL):
                yield context.finding(rule, top / folder / SPL, what, AGAIN)


Told = Iterator[tuple[str, str, str]]  # rule, place below performance, what


def _hashes(context: Context, top: Path, sides: dict[str, dict[str, Any]]) -> Told:
    """results_check of power_checker.py, for the files that are there."""
    for name in HASHED:
        said = {side: _part(body, "results").get(name) for side, body in sides.items()}
        said = {side: digest for side, digest in said.items() if digest is not None}
        if not own_file(context, top / name):
            continue
        if not said:
            if any("results" in body for body in sides.values()):
                yield "power-hash", name, "neither client.json nor server.json has its sha1"
            continue
        with open(top / name, "rb") as file:
            real = hashlib.file_digest(file, "sha1").hexdigest()
        for side, digest in said.items():
            if digest != real:
                what = (
                    f"its sha1 is {real[:12]}..., {side}.json has {str(digest)[:12]}...: the file was changed"
                )
                yield "power-hash", name, what


def _uuids(sides: dict[str, dict[str, Any]]) -> Told:
    ids = [_part(body, "uuid") for body in sides.values()]
    for side in ("client", "server"):
        told = [str(each.get(side)).lower() for each in ids if side in each]
        if len(set(told)) > 1:
            what = f"the {side}'s UUID is {told[0][:40]} in client.json and {told[1][:40]} in server.json"
            yield "power-uuid", f"{POWER}/client.json", what


def _phases(context: Context, cell: Cell, top: Path, sides: dict[str, dict[str, Any]]) -> Told:
    """phases_check of power_checker.py: LoadGen's window lies between the client's second and third phase."""
    for mode, folder in MODES.items():
        begins = {}
        for side, body in sides.items():
            if "phases" not in body:
                continue
            begins[side] = _begins(_part(body, "phases").get(mode))
            if begins[side] is None:
                what = f"the phases of {mode} are no list of three or more times"
                yield "power-phases", f"{POWER}/{side}.json", what
        client, server = begins.get("client"), begins.get("server")
        if client and server:
            apart_s = max(abs(one - other) for one, other in zip(client, server, strict=False))
            if len(client) != len(server) or apart_s > CLOCKS_S:
                what = f"the phases of {mode} are not server.json's ({apart_s:.4g} s apart; 0.8 s may be)"
                yield "power-phases", f"{POWER}/client.json", what
        window = _window(context, cell, top / folder)
        if client and window and not _within(context, client, window):
            what = f"LoadGen's window of {mode} is not between the client's second and third phase"
            yield "power-phases", f"{folder}/{DETAIL}", what


def _begins(phases: Any) -> list[float] | None:
    """When each phase began, s since 1970; None where it is no list of such."""
    if not isinstance(phases, list) or len(phases) < 3:
        return None
    found = [phase[0] if isinstance(phase, list) and phase else None for phase in phases]
    numbers = [float(value) for value in found if isinstance(value, int | float) and abs(value) < 1e12]
    return numbers if len(numbers) == len(phases) else None


def _window(context: Context, cell: Cell, folder: Path) -> tuple[float, float] | None:
    """LoadGen's power_begin and power_end as if they were UTC, s since 1970."""
    if not own_file(context, folder / DETAIL):
        return None
    try:
        window: Power | None = test_of(context, cell, RANGING, folder).run.power
    except LogError:
        return None  # told by the checks of power
    if window is None:
        return None
    return window.begin.replace(tzinfo=UTC).timestamp(), window.end.replace(tzinfo=UTC).timestamp()


def _within(context: Context, phases: list[float], window: tuple[float, float]) -> bool:
    begin, end = window
    shifts = [0.0, DAYLIGHT_S]
    if context.round.name == "v1.0":
        shifts = [(begin - phases[1]) // ZONE_S * ZONE_S]
    return any(phases[1] < begin - shift and end - shift < phases[2] for shift in shifts)


def _daemon(context: Context, path: Path, server: dict[str, Any]) -> Told:
    """check_ptd_logs of power_checker.py: PTDaemon may log errors while it finds the ranges, not later."""
    if not own_file(context, path):
        return
    go = f"Go with mark '{server.get('session_name')}_{RANGING}'"
    ranging, count, first = False, 0, ""
    with open(path, "rb") as file:
        while raw := file.readline(LINE_BYTES):
            line = raw.decode(errors="replace").strip()
            if go in line:
                ranging = True
            elif ": Completed test" in line:
                ranging = False
            _, mark, error = line.partition("ERROR:")
            if mark and not ranging and error.strip() not in TAKEN_ERRORS:
                count, first = count + 1, first or line
    if count:
        what = f'PTDaemon logged {count} errors outside of the ranging run, first "{first[:110]}"'
        yield "power-daemon-error", f"{POWER}/{path.name}", what


def _readings(path: Path) -> Iterator[tuple[str, str]]:
    """Watts are volts times amperes times power factor, and no reading is left out."""
    apart: list[float] = []
    gaps: list[tuple[float, int]] = []
    before: datetime | None = None
    try:
        for one in read_spl(path):
            if one.at is not None and before is not None:
                gaps.append(((one.at - before).total_seconds(), one.line))
            before = one.at or before
    except SplError:
        return  # told with the figure
    with open(path, "rb") as file:
        while raw := file.readline(LINE_BYTES):
            product = _product_w(raw.decode(errors="replace"))
            if product is not None:
                apart.append(product)
    if len(apart) >= FEWEST_ROWS and statistics.median(apart) > PRODUCT_TOLERANCE:
        share = 100 * statistics.median(apart)
        what = f"watts are {share:.3g} % (median) off volts x amperes x power factor of the same lines"
        yield "power-product", what
    if len(gaps) >= FEWEST_ROWS and statistics.median(gap for gap, _ in gaps) < LONGEST_GAP_S / 2:
        longest_s, line = max(gaps)
        if longest_s > LONGEST_GAP_S:
            what = f"line {line} is {longest_s:.4g} s after the one before: readings are left out"
            yield "power-gap", what


def _product_w(line: str) -> float | None:
    """By how much, relatively, a line's watts differ from the product beside them; None where it has none."""
    columns = line.split(",", 10)
    if columns[2:9:2] != ["Watts", "Volts", "Amps", "PF"]:
        return None
    try:
        watts, volts, amps, factor = (float(columns[at]) for at in (3, 5, 7, 9))
    except (ValueError, IndexError):
        return None
    product = volts * amps * factor
    # Of analysers with several channels the sums of amperes and factors are 0 (NVIDIA, v1.1).
    return abs(watts / product - 1) if product > 0 and watts > 0 and math.isfinite(watts / product) else None


def _part(body: dict[str, Any], name: str) -> dict[str, Any]:
    part = body.get(name)
    return part if isinstance(part, dict) else {}
