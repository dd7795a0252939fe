"""The table as data: a row per system, in the open division per system and model; its results. Pure.

JSON (`loadgrid results --json`): {"schema": "loadgrid-results-1", "rows": [Row], "remarks": [text]}.
The fields of a row are those of `Row.as_dict`, of its results those of Result, of their power those of
Power. Numbers are numbers; what is not known is null or "".
"""

from __future__ import annotations

from dataclasses import dataclass, field

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Interactive", "Offline")
SUITE_SCENARIOS = {
    "datacenter": ("Server", "Interactive", "Offline"),
    "edge": ("SingleStream", "MultiStream", "Offline"),
}
NO_SUITE = "no suite"  # v0.5 had none; a system whose description is missing or says none
NO_CATEGORY = "no category"
CATEGORIES = ("available", "preview", "rdi", NO_CATEGORY)
BOTH_LINKS = ("details", "code")


@dataclass(frozen=True)
class Power:
    """Measured at the wall: W of the system, or the energy of a sample or query of the streams."""

    value: float
    unit: str


@dataclass(frozen=True)
class Result:
    """One benchmark in one scenario.

    `value` in `unit` is None where there is no valid figure; `remarks` say why. `invalid_value` is what
    LoadGen measured in a test that it calls INVALID. `accuracy`: metric -> figure as accuracy.txt has it.
    """

    benchmark: str
    model: str
    scenario: str
    value: float | None
    unit: str
    valid: bool | None
    metric: str = ""
    key: str = ""
    invalid_value: float | None = None
    inferred_from: str | None = None
    accuracy: dict[str, str] = field(default_factory=dict)
    power: Power | None = None
    weight_data_types: str = ""
    location: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def scenario_order(self) -> tuple[int, str]:
        """The place of its scenario among the others."""
        known = self.scenario in SCENARIOS
        return (SCENARIOS.index(self.scenario) if known else len(SCENARIOS), self.scenario)


@dataclass(frozen=True)
class Machine:
    """A system as its description has it; counts None where they are no numbers."""

    name: str
    category: str
    suites: tuple[str, ...]
    nodes: int | None = None
    processor: str = ""
    processors_per_node: int | None = None
    processor_cores: str = ""
    accelerator: str = ""
    accelerators_per_node: int | None = None
    software: str = ""
    operating_system: str = ""
    notes: str = ""

    @property
    def processors(self) -> int | None:
        """Of all nodes together."""
        return _times(self.nodes, self.processors_per_node)

    @property
    def accelerators(self) -> int | None:
        """Of all nodes together."""
        return _times(self.nodes, self.accelerators_per_node)


@dataclass(frozen=True)
class Row:
    """A system's results in a suite; `system` is the name of its folder, `model` set in the open division."""

    round: str
    suite: str
    division: str
    submitter: str
    system: str
    model: str
    machine: Machine
    results: tuple[Result, ...]
    details: str
    code: str
    remarks: tuple[str, ...]

    @property
    def table(self) -> tuple[str, str, str, str]:
        """Which of the tables it stands in."""
        return (self.round, self.suite, self.division, self.machine.category)

    def as_dict(self) -> dict[str, object]:
        """The row as JSON holds it."""
        m = self.machine
        return {
            "round": self.round,
            "suite": self.suite,
            "division": self.division,
            "category": m.category,
            "submitter": self.submitter,
            "system": m.name,
            "system_id": self.system,
            "nodes": m.nodes,
            "processor": m.processor,
            "processors_per_node": m.processors_per_node,
            "processors": m.processors,
            "processor_cores": m.processor_cores,
            "accelerator": m.accelerator,
            "accelerators_per_node": m.accelerators_per_node,
            "accelerators": m.accelerators,
            "software": m.software,
            "operating_system": m.operating_system,
            "model_used": self.model,
            "notes": m.notes,
            "details": self.details,
            "code": self.code,
            "results": [_result(one) for one in self.results],
            "remarks": list(self.remarks),
        }


def in_suite(suite: str, result: Result) -> bool:
    """Whether a result belongs into a suite's table, by its scenario."""
    others = {scenario for wanted in SUITE_SCENARIOS.values() for scenario in wanted}
    return (
        result.scenario in SUITE_SCENARIOS.get(suite, ())
        or suite == NO_SUITE
        or result.scenario not in others
    )


def table_order(row: Row) -> tuple[object, ...]:
    """Newest round first, then the tables in their usual order, then by submitter and system."""
    number = [-int(part) if part.isdigit() else 0 for part in row.round.removeprefix("v").split(".")]
    suite = (*SUITE_SCENARIOS, row.suite).index(row.suite)
    division = ("closed", "network", "open", row.division).index(row.division)
    category = (*CATEGORIES, row.machine.category).index(row.machine.category)
    return (
        number,
        suite,
        division,
        category,
        row.submitter.lower(),
        row.machine.name.lower(),
        row.system,
        row.model,
    )


def _result(result: Result) -> dict[str, object]:
    told = {name: value for name, value in vars(result).items() if name not in ("power", "remarks")}
    power = result.power
    return {
        **told,
        "power": None if power is None else {"value": power.value, "unit": power.unit},
        "remarks": list(result.remarks),
    }


def _times(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one * other
