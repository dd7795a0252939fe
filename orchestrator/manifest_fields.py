"""The fields of a manifest: type, bounds, unit and meaning, which are also the editors' JSON schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr

from orchestrator.manifest_backends import Ctranslate2Backend, EchoBackend, OnnxBackend, TorchBackend
from orchestrator.manifest_metrics import MetricsSection
from orchestrator.manifest_power import PowerSection
from orchestrator.manifest_types import (
    Milliseconds,
    Name,
    PathText,
    Percentile,
    Qps,
    QueryCount,
    SampleCount,
    Scenario,
    Section,
    Seed,
    Sha256,
    Switch,
)

PACKAGE_PREFIX = "package:"  # a path inside an installed Python package, found where it is used
PATH_OPTIONS = ("path", "calibration", "cases", "quantiles", "truth")  # of tasks, from the manifest's folder
MOST_WORKERS = 4096
HOUR_MS = 3600 * 1000.0
# Payloads cost encryption and copies in ZeroMQ's own threads; indices do not.
IO_THREADS = {"index": 1, "value": 4}
SEED_WORDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")


Run = Literal["performance", "accuracy", "TEST01", "TEST04", "TEST04-A", "TEST04-B", "TEST05"]


class EveryScenarioWords(Section):
    """The words of LoadGen's user.conf that hold for every scenario. Left out: the round's value."""

    min_duration: Milliseconds | None = Field(
        default=None, description="Shortest duration of a test, ms (rules: 600000)."
    )
    max_duration: Milliseconds | None = Field(
        default=None, description="LoadGen stops issuing after this, ms. 0: no bound."
    )
    min_query_count: QueryCount | None = Field(
        default=None, description="Fewest queries of a test; in Offline the fewest samples of its one query."
    )
    max_query_count: SampleCount | None = Field(
        default=None, description="LoadGen stops issuing after this. 0: no bound."
    )
    performance_sample_count_override: SampleCount | None = Field(
        default=None, description="Samples that a performance test draws from. 0: all that the library holds."
    )
    accuracy_sample_count_override: SampleCount | None = Field(
        default=None, description="Samples that an accuracy test asks for. 0: all that the library holds."
    )
    sample_concatenate_permutation: Switch | None = Field(
        default=None, description="1: every sample equally often (equal issue mode). 0: drawn at random."
    )
    print_timestamps: Switch | None = Field(default=None, description="1: LoadGen logs more time stamps.")
    performance_issue_unique: Switch | None = Field(
        default=None, description="1: every query a different sample (audits)."
    )
    performance_issue_same: Switch | None = Field(
        default=None, description="1: every query the same sample (audits)."
    )
    performance_issue_same_index: SampleCount | None = Field(
        default=None, description="Which sample performance_issue_same repeats (audits)."
    )
    accuracy_log_rng_seed: Seed | None = Field(
        default=None,
        description="Seed by which a performance test picks the samples whose answers it logs (audits).",
    )
    accuracy_log_sampling_target: SampleCount | None = Field(
        default=None, description="About how many answers a performance test logs (audits). 0: none."
    )


class SingleStreamWords(EveryScenarioWords):
    """user.conf words of SingleStream."""

    target_latency: float | None = Field(
        default=None,
        gt=0,
        le=HOUR_MS,
        description="Expected latency of a query, ms: a hint. A system twice as fast ends early.",
    )
    target_latency_percentile: Percentile | None = Field(
        default=None, description="Percentile reported, percent (rules: 90)."
    )


class MultiStreamWords(EveryScenarioWords):
    """user.conf words of MultiStream."""

    target_latency: float | None = Field(
        default=None,
        gt=0,
        le=HOUR_MS,
        description="Expected latency of a query, ms: a hint. A system twice as fast ends early.",
    )
    target_latency_percentile: Percentile | None = Field(
        default=None, description="Percentile reported, percent (rules: 99)."
    )
    samples_per_query: int | None = Field(
        default=None, ge=1, le=10**6, description="Samples in a query (rules: 8; v1.0: yours)."
    )
    target_qps: Qps | None = Field(
        default=None, description="Rounds v1.0 and v1.1 only: queries a second, a fixed interval."
    )
    max_async_queries: int | None = Field(
        default=None,
        ge=1,
        le=10**6,
        description="Rounds v1.0 and v1.1 only: queries that may be open at a time (rules: 1).",
    )


class ServerWords(EveryScenarioWords):
    """user.conf words of Server."""

    target_qps: Qps | None = Field(
        default=None, description="Queries a second that LoadGen offers (Poisson)."
    )
    target_latency: int | None = Field(
        default=None, ge=1, le=3600 * 1000, description="Latency limit, whole ms (LoadGen drops a fraction)."
    )
    target_latency_percentile: Percentile | None = Field(
        default=None, description="Share of queries that must meet the limit, percent (rules: 99)."
    )
    coalesce_queries: Switch | None = Field(
        default=None,
        description="1: LoadGen hands all overdue queries over at once. Default: 1, in division network 0.",
    )
    max_async_queries: int | None = Field(
        default=None,
        ge=0,
        le=10**9,
        description="LoadGen ends the test when more queries are open. 0: no bound.",
    )


class OfflineWords(EveryScenarioWords):
    """user.conf words of Offline."""

    target_qps: Qps | None = Field(
        default=None, description="Expected samples a second: sets the size of the one query."
    )


class LoadgenSection(EveryScenarioWords):
    """LoadGen itself, and words of its user.conf: here for every scenario, below for one."""

    path: PathText | None = Field(
        default=None,
        description="Folder of an mlperf_loadgen module built from the round's tag. Default: the installed.",
    )
    in_place: bool = Field(
        default=True,
        description="Read LoadGen's queries where they lie. false: as lists that its Python module makes.",
    )
    qsl_rng_seed: Seed | None = Field(
        default=None, description="Seed of the sample set. Default: the round's."
    )
    sample_index_rng_seed: Seed | None = Field(
        default=None, description="Seed of the order of samples. Default: the round's."
    )
    schedule_rng_seed: Seed | None = Field(
        default=None, description="Seed of Server's arrival times. Default: the round's."
    )
    SingleStream: SingleStreamWords = Field(
        default_factory=SingleStreamWords, description="Words for SingleStream."
    )
    MultiStream: MultiStreamWords = Field(
        default_factory=MultiStreamWords, description="Words for MultiStream."
    )
    Server: ServerWords = Field(default_factory=ServerWords, description="Words for Server.")
    Offline: OfflineWords = Field(default_factory=OfflineWords, description="Words for Offline.")


class TaskSection(Section):
    """What is answered: data set, preprocessing, response. Other keys are the task's own options."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    name: Name = Field(description="The task, a file of workers/tasks.")
    path: PathText | None = Field(
        default=None,
        description="Folder or file of the data set; relative to the manifest, or package:NAME/FOLDER.",
    )
    sha256: Sha256 | None = Field(default=None, description="Hash that the prepared data set must have.")

    @property
    def options(self) -> dict[str, Any]:
        """The task's own options: every key but name, path and sha256."""
        return dict(self.model_extra or {})


class WorkersSection(Section):
    """The workers and where they run."""

    where: Literal["ray", "local"] = Field(
        default="ray", description="ray: actors of a cluster; local: in the test process."
    )
    count: int = Field(
        default=1,
        ge=1,
        le=MOST_WORKERS,
        description="Workers in all; with placement per_node, workers on every node.",
    )
    placement: Literal["spread", "pack", "per_node"] = Field(
        default="spread", description="How they lie over the nodes."
    )
    num_cpus: float = Field(default=1, ge=0, le=4096, description="CPUs that Ray reserves for a worker.")
    num_gpus: float = Field(
        default=0, ge=0, le=64, description="GPUs that Ray reserves for a worker; above 1 whole numbers."
    )
    max_batch: int = Field(default=8, ge=1, le=65536, description="Most samples in a batch.")
    batch_deadline_ms: float = Field(
        default=0.0, ge=0, le=60000, description="How long a sample may wait for company, ms. 0: not at all."
    )


class DispatchSection(Section):
    """How samples travel from LoadGen to the workers."""

    payload: Literal["index", "value"] = Field(
        default="index",
        description="index: workers read the sample from their host's memory; value: its bytes travel.",
    )
    security: Literal["curve", "none"] = Field(
        default="curve", description="curve: keys per test; none: a trusted network."
    )
    listen: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:%_-]+$", max_length=253)] | None = Field(
        default=None,
        description="Address to listen on. null: as Ray knows the node; 127.0.0.1 for a Ray started here.",
    )
    ports: Annotated[tuple[int, int], Field(strict=False)] | None = Field(
        default=None,
        description="[lowest, highest] port to listen on, one for each of io_threads, half of the free ones "
        "at most. null: any.",
    )
    on_loss: Literal["fail", "reissue"] | None = Field(
        default=None,
        description="A lost worker: fail ends the test, reissue goes on. null: reissue in open, else fail.",
    )
    index_approval: Annotated[str, Field(min_length=3, max_length=1000)] | None = Field(
        default=None, description="Who approved payload index to other hosts in the closed division."
    )
    io_threads: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="ZeroMQ threads of the test process, each with a port. null: 1 for index, 4 for value.",
    )


class Manifest(Section):
    """What a user asks for: one benchmark, its scenarios and tests, the model and the machines."""

    name: Name = Field(description="Name of the run, a folder name. Default: the file's name.")
    round: str = Field(description="The MLPerf Inference round whose rules hold.")
    suite: Literal["datacenter", "edge", "datacenter,edge"] = Field(description="The suite of the system.")
    division: Literal["closed", "open", "network"] = Field(description="The division of the submission.")
    benchmark: str = Field(description="The benchmark, by the round's name or an alias.")
    scenarios: Annotated[tuple[Scenario, ...], Field(strict=False, min_length=1)] = Field(
        description="Scenarios to run, in this order."
    )
    runs: Annotated[tuple[Run, ...], Field(strict=False, min_length=1)] = Field(
        default=("performance", "accuracy"),
        description="Tests of each scenario, in this order; the round's compliance tests come after them.",
    )
    accuracy_target: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="Open division only: accuracy to reach, in the round's unit. Default: the round's.",
    )
    task: TaskSection = Field(description="Data set, preprocessing and response.")
    backend: Annotated[
        EchoBackend | TorchBackend | OnnxBackend | Ctranslate2Backend, Field(discriminator="engine")
    ] = Field(description="What computes the answers.")
    workers: WorkersSection = Field(
        default_factory=WorkersSection, description="How many workers, and where they run."
    )
    dispatch: DispatchSection = Field(default_factory=DispatchSection, description="How samples travel.")
    loadgen: LoadgenSection = Field(
        default_factory=LoadgenSection, description="LoadGen and words of its user.conf."
    )
    power: PowerSection | None = Field(
        default=None, description="Power at the wall, of every performance test. Default: not measured."
    )

    metrics: MetricsSection = Field(
        default_factory=MetricsSection, description="Where Prometheus may read the run."
    )
    stop_when_hopeless: bool = Field(
        default=False,
        description="End a Server test as soon as it cannot pass any more; its result is then lost.",
    )

    _path: Path = PrivateAttr(default=Path("manifest.yaml"))
    _raw: bytes = PrivateAttr(default=b"")
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file from which the manifest was read."""
        return self._path

    @property
    def raw(self) -> bytes:
        """The file's bytes, for the record."""
        return self._raw

    @property
    def lines(self) -> dict[str, int]:
        """Dotted field -> line of the file."""
        return self._lines

    @property
    def on_loss(self) -> Literal["fail", "reissue"]:
        """What happens when a worker is lost: only the open division goes on by default."""
        return self.dispatch.on_loss or ("reissue" if self.division == "open" else "fail")

    @property
    def io_threads(self) -> int:
        """ZeroMQ threads of the test process."""
        return self.dispatch.io_threads or IO_THREADS[self.dispatch.payload]

    def resolve(self, text: str) -> str:
        """A path of this manifest, taken from the manifest's folder; package paths stay as they are."""
        if text.startswith(PACKAGE_PREFIX):
            return text
        return str(self._path.absolute().parent / Path(text).expanduser())

    def task_options(self) -> dict[str, Any]:
        """The options for `open_task`: the task's own keys, and its paths, resolved, if it has any."""
        options = (
            self.task.options if self.task.path is None else {**self.task.options, "path": self.task.path}
        )
        paths = {key: options[key] for key in PATH_OPTIONS if isinstance(options.get(key), str)}
        return {**options, **{key: self.resolve(text) for key, text in paths.items() if text}}

    def backend_options(self) -> dict[str, Any]:
        """The options for `open_backend`: the engine's fields and the model's options, paths resolved."""
        fields = self.backend.model_dump()
        options = {**fields.pop("options", {}), **fields}
        for key in ("weights", "scales"):
            if options.get(key) is not None:
                options[key] = self.resolve(options[key])
        return options

    def loadgen_folder(self) -> str | None:
        """The folder of the user's own mlperf_loadgen module, resolved."""
        return None if self.loadgen.path is None else self.resolve(self.loadgen.path)

    def conf_words(self, scenario: str) -> dict[str, int | float]:
        """The user.conf words set for a scenario; its own beat those for every scenario."""
        wide = self.loadgen.model_dump(include=set(EveryScenarioWords.model_fields), exclude_none=True)
        own: Section = getattr(self.loadgen, scenario)
        return {**wide, **own.model_dump(exclude_none=True)}

    def seeds(self) -> dict[str, int]:
        """The seeds that the manifest sets itself."""
        return self.loadgen.model_dump(include=set(SEED_WORDS), exclude_none=True)
