"""Power: the files of a measured test, its readings, and the run that ranged the analyser before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.check.cell_logs import Test, damage, official, own_file, test_of
from orchestrator.check.finding import Context, Finding
from orchestrator.logs import LogError
from orchestrator.paths import DETAIL, SUMMARY
from orchestrator.power.figures import PowerError, power_figure
from orchestrator.power.spl import SplError, read_spl
from orchestrator.submission.layout import POWER_FILES, RUN, SPL
from orchestrator.submission.tree import Cell

POWER, RANGING = "power", "ranging"
# PTDaemon reads the analyser once a second; a window of n seconds has n readings, less what is lost.
FEWEST_READINGS = 0.9
# power_checker.py of the Power WG, phases_check: by how many percent the test may lie below ranging.
LOWEST_PERCENT = -5.0
AGAIN = "measure again with the power client, which does the ranging run and the test one after the other"


def power(context: Context, cell: Cell) -> Iterator[Finding]:
    """Everything about performance/power, ranging and spl.txt; a folder `power` switches the checks on."""
    top = cell.path / "performance"
    try:
        measured = context.is_folder(top / POWER)
        ranged = context.is_folder(top / RANGING) or own_file(context, top / RUN / SPL)
    except OSError:
        return  # told by the checks of contents
    if not measured:
        if ranged:
            what = "there is a ranging run or spl.txt, but no folder power: checkers see no measurement"
            mend = "add the power client's folder power, or take ranging and spl.txt away"
            yield context.finding("power-incomplete", top, what, mend)
        return
    yield from _files(context, top)
    if not all(own_file(context, top / RUN / name) for name in (DETAIL, SPL)):
        return
    if not all(own_file(context, top / POWER / name) for name in POWER_FILES):
        return
    scenario = context.scenario(cell) or cell.scenario
    try:
        figure = power_figure(context.round.name, scenario, top)
    except PowerError as error:
        text = str(error).replace(f"{context.root}/", "")
        yield context.finding("no-power-figure", top / RUN / SPL, text, AGAIN, official="error")
        return
    if figure.samples < FEWEST_READINGS * figure.window_s - 1:
        what = f"{figure.samples} readings in {figure.window_s:.0f} s: the analyser reads once a second"
        yield context.finding("few-readings", top / RUN / SPL, what, AGAIN)
    if figure.average_w <= 0:
        what = f"the mean of the readings is {figure.average_w:g} W"
        yield context.finding("no-power-figure", top / RUN / SPL, what, AGAIN, official="error")
    yield from _sessions(context, top)
    yield from _ranging(context, cell, top)


def _files(context: Context, top: Path) -> Iterator[Finding]:
    """Both runs with their logs and readings, and the client's and the server's own files."""
    wanted = [top / POWER / name for name in POWER_FILES]
    wanted += [top / run / name for run in (RANGING, RUN) for name in (DETAIL, SUMMARY, SPL)]
    for path in wanted:
        if not own_file(context, path) and not (path.parent.name == RUN and path.name != SPL):
            what = f"{path.name} is missing, which a result with power has in {path.parent.name}"
            mend = "add the file as the power client left it"
            yield context.finding("power-file-missing", path, what, mend, official="error")
    for name in context.names(top / POWER):
        if name not in POWER_FILES and not name.startswith("."):
            path = top / POWER / name
            what = f"{name} has no place in performance/power"
            yield context.finding("power-extra-file", path, what, "take it away", official="error")


def _sessions(context: Context, top: Path) -> Iterator[Finding]:
    """Client and server write the same session, and readings carry its name."""
    client, server = (context.json(top / POWER / f"{side}.json") for side in ("client", "server"))
    if client is None or server is None:
        for side, body in (("client", client), ("server", server)):
            if body is None and own_file(context, path := top / POWER / f"{side}.json"):
                what = f"{side}.json is no JSON object"
                yield context.finding("power-session", path, what, AGAIN, official="error")
        return
    seen = official(context, "unseen", "error")  # power_checker.py, session_name_check
    names = [str(body.get("session_name")) for body in (client, server)]
    if names[0] != names[1]:
        what = f'the sessions differ: client "{names[0][:60]}", server "{names[1][:60]}"'
        yield context.finding("power-session", top / POWER / "client.json", what, AGAIN, official=seen)
    for run, mode in ((RUN, "testing"), (RANGING, "ranging")):
        path = top / run / SPL
        if not own_file(context, path) or "session_name" not in server:
            continue
        try:
            mark = next((one.mark for one in read_spl(path) if one.mark), None)
        except SplError:
            continue  # told with the figure
        wanted = f"{server['session_name']}_{mode}"
        if mark is not None and mark.strip() != wanted:
            what = f'the readings are marked "{mark[:60]}", not "{wanted[:60]}": they are another run\'s'
            yield context.finding("power-session", path, what, AGAIN)


def _ranging(context: Context, cell: Cell, top: Path) -> Iterator[Finding]:
    """The ranging run came first, and the test drew not much less than it."""
    try:
        ranging = test_of(context, cell, RANGING, top / RANGING)
        testing = test_of(context, cell, RANGING, top / RUN)
    except LogError:
        return  # a file that is missing is told
    yield from damage(ranging)
    first, second = ranging.run.power, testing.run.power
    if first is None or second is None:
        what = f"power_begin and power_end are not in {DETAIL}: the ranging run did not end"
        yield context.finding("no-ranging", top / RANGING / DETAIL, what, AGAIN, official="error")
        return
    if first.end > second.begin:
        what = f"ranging ended {first.end}, after the test began {second.begin}"
        yield context.finding("ranging-order", top / RANGING / DETAIL, what, AGAIN)
    if ranging.run.scenario != testing.run.scenario:
        what = f"ranging ran {ranging.run.scenario}, the test {testing.run.scenario}"
        yield context.finding("ranging-differs", top / RANGING / DETAIL, what, AGAIN)
    if context.layout.one_tree:
        yield from _below_ranging(context, ranging, testing)


def _below_ranging(context: Context, ranging: Test, testing: Test) -> Iterator[Finding]:
    """Mean power by LoadGen's clock as the newest checker has it: without offsets, readings above 0."""
    watts = [_mean_w(test) for test in (ranging, testing)]
    path = ranging.folder / SPL
    if watts[0] is None or watts[1] is None:
        what = "no reading of the ranging run lies between its power_begin and power_end"
        yield context.finding("no-ranging", path, what, AGAIN, official="error")
        return
    change = round(100 * (watts[1] / watts[0] - 1), 2)
    if change <= LOWEST_PERCENT:
        what = f"the test drew {watts[1]:.5g} W, ranging {watts[0]:.5g} W: {change:g} %; -5 % is the least"
        yield context.finding("below-ranging", path, what, AGAIN, official="error")


def _mean_w(test: Test) -> float | None:
    window = test.run.power
    total, count = 0.0, 0
    try:
        for one in read_spl(test.folder / SPL):
            inside = one.at is not None and window is not None and window.begin < one.at < window.end
            if one.timed and inside and one.watts is not None and one.watts > 0:
                total, count = total + one.watts, count + 1
    except SplError:
        return None
    return total / count if count else None
