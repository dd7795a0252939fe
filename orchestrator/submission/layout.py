"""Where the parts of a submission lie, by round. Pure: relative paths under ROOT/division/submitter.

Two layouts: up to v5.1 measurements, code and compliance have trees of their own; since v6.0 all that belongs
to a result lies in its folder (submission_checker/constants.py of mlcommons/inference, *_PATH).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.loadgen_metrics import RoundNumber
from orchestrator.loadgen_run import round_of

ONE_TREE_SINCE: RoundNumber = (6, 0)
LONGEST_ACCURACY_LOG_BYTES = 10240  # the checkers' MAX_ACCURACY_LOG_SIZE
LARGEST_FILE_BYTES = 50_000_000  # repository_checks.sh of the results repositories
RUN = "run_1"
POWER_FILES = ("client.json", "client.log", "ptd_logs.txt", "server.json", "server.log")
SPL = "spl.txt"
MAPPING = "model_mapping.json"  # open division since v6.0: own model name -> official name


@dataclass(frozen=True)
class Layout:
    """The layout of one round; `cell` is system / model / scenario, as folders are named."""

    round: str
    one_tree: bool

    @property
    def code(self) -> str:
        """The folder of the implementation."""
        return "src" if self.one_tree else "code"

    def system_json(self, system: str) -> PurePosixPath:
        """The system's description."""
        return PurePosixPath("systems", f"{system}.json")

    def results(self, system: str, model: str, scenario: str) -> PurePosixPath:
        """The folder of a result: performance, accuracy."""
        return PurePosixPath("results", system, model, scenario)

    def measurements(self, system: str, model: str, scenario: str) -> PurePosixPath:
        """The folder of user.conf, mlperf.conf, README.md and the implementation's description."""
        return PurePosixPath("results" if self.one_tree else "measurements", system, model, scenario)

    def implementation_json(self, system: str, implementation: str, scenario: str) -> str:
        """The file name of the implementation's description."""
        return "measurements.json" if self.one_tree else f"{system}_{implementation}_{scenario}.json"

    def compliance(self, system: str, model: str, scenario: str, test: str) -> PurePosixPath:
        """The folder of a compliance test."""
        return PurePosixPath("results" if self.one_tree else "compliance", system, model, scenario, test)

    def documentation(self, name: str) -> PurePosixPath:
        """A document of the whole submission, such as the calibration's."""
        return PurePosixPath("documentation", name) if self.one_tree else PurePosixPath(name)


def layout_of(round_name: str) -> Layout:
    """The layout of a round's submissions; LogError for a name that is no round's."""
    return Layout(round_name, round_of(round_name) >= ONE_TREE_SINCE)
