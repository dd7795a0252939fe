"""The power supplies of a system, since v6.1: systems/SYSTEM_power.yaml (NAMEPLATE_POWER_PATH)."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from orchestrator.check.finding import LARGEST_TEXT_BYTES, Context, Finding, Official
from orchestrator.submission.data_files import GivenError, read_yaml

POWER_YAML = "_power.yaml"
MOST_NODES = 100_000  # a rack has some thousands of supplies; aliases can stand for far more
MEND = "write the components with PSUs (each with PowerCapacityWatts) and Min PSUs Needed, or take it away"


def nameplate(context: Context, path: Path, with_results: Set[str]) -> Iterator[Finding]:
    """What the newest checker cannot load or add up; both end it with a traceback."""
    if not context.layout.one_tree:
        return
    system = path.name.removesuffix(POWER_YAML)
    loaded: Official = "error" if system in with_results else "unseen"
    wrong = None
    try:
        if path.stat().st_size > LARGEST_TEXT_BYTES:
            wrong = f"has more than {LARGEST_TEXT_BYTES} bytes"
        else:
            body = read_yaml(path.read_bytes().decode("utf-8"))
    except GivenError as error:
        wrong = str(error)
    except UnicodeDecodeError:
        wrong = "is not text in UTF-8"
    if wrong:
        yield context.finding("nameplate-unreadable", path, f"{path.name} {wrong}", MEND, official=loaded)
        return
    wrong = _not_summed(body)
    if wrong:
        summed: Official = (
            "error" if _measured(context, path.parent.parent / "results" / system) else "unseen"
        )
        yield context.finding("nameplate-field", path, f"{path.name}: {wrong}", MEND, official=summed)


def _measured(context: Context, results: Path) -> bool:
    """Whether a result of the system has power, so that the checker adds the capacities up."""
    return any(
        context.is_folder(results / model / scenario / "performance" / "power")
        for model in context.names(results)
        for scenario in context.names(results / model)
    )


def _not_summed(body: Any) -> str | None:
    """Why no sum of capacities comes of it, as _sum_power_capacity_watts goes down; None if one does."""
    waiting, seen, leaves = [body], 0, 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen > MOST_NODES:
            return f"has more than {MOST_NODES} entries"
        if isinstance(node, list):
            waiting += node
        if not isinstance(node, dict):
            continue
        named = {str(key).lower(): value for key, value in node.items()}
        if not all(isinstance(key, str) for key in node):
            return "a component's name is no text"
        if "psus" not in named or "min psus needed" not in named:
            waiting += node.values()
            continue
        leaves += 1
        if wrong := _wrong_leaf(named["psus"], named["min psus needed"]):
            return wrong
    return None if leaves else "names no component with PSUs and Min PSUs Needed"


def _wrong_leaf(supplies: Any, needed: Any) -> str | None:
    if not isinstance(supplies, list) or not all(isinstance(supply, dict) for supply in supplies):
        return "PSUs is no list of power supplies"
    if type(needed) is not int or not 0 < needed <= len(supplies):
        return f"Min PSUs Needed is {str(needed)[:40]}, of {len(supplies)} PSUs"
    watts = [supply.get("PowerCapacityWatts") for supply in supplies]
    if not all(type(value) in (int, float) and value > 0 for value in watts):
        return "PowerCapacityWatts of a PSU is no number above 0"
    return None
