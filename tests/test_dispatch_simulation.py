"""The Dispatcher in a simulated cluster: thousands of seeded cases of bad luck, and the figures it claims."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from orchestrator.dispatch import NoWorkers, PeerFault
from tests.simulated_cluster import MS, US, Cluster, Engine, S, Worker, piece
from workers.protocol import Answer, Buffer, Responses, Segment, encode_answer

TIME_BUDGET_S = 40
CASES = 2000
CHUNKS = 10

# Bad luck


class Case(Cluster):
    """One cluster, its load and its bad luck, all from one seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        max_batch = int(rng.choice([1, 3, 8]))
        engines = [
            Engine(
                int(rng.integers(0, 5 * MS)),
                int(rng.integers(1, MS)),
                max_batch,
                float(rng.choice([1, 1, 1, 3, 10])),
                lambda: 0.2 + rng.exponential(),
            )
            for _ in range(rng.integers(1, 6))
        ]
        wire_ns = int(rng.choice([20 * US, MS, 20 * MS]))
        super().__init__(
            engines,
            rng,
            # Now and then a message overtakes others.
            delay_ns=lambda: int(wire_ns * rng.random()),
            on_loss="fail" if rng.random() < 0.1 else "reissue",
            one_sample_frames=bool(rng.random() < 0.15),
            batch_deadline_ns=int(rng.choice([0, 0, 2 * MS])),
        )
        for worker in self.workers:
            worker.clock_ns = int(rng.integers(0, 10**6)) * S
        self.split, self.twice, self.swallowed = (
            rng.choice([0, 0.3, 0.9]),
            rng.choice([0, 0.3]),
            rng.choice([0, 0, 0.02]),
        )
        self.answers_of = self.mistreat
        self.rogue: Worker | None = None
        for _ in range(rng.integers(1, 7)):
            self.at(int(rng.integers(0, 60 * MS)), partial(self.issue, int(rng.integers(1, 30))))
        for _ in range(rng.integers(0, 4)):
            fault = [self.kill, self.cut, self.hang, self.hang, self.give_up][rng.integers(0, 5)]
            worker = self.workers[rng.integers(0, len(self.workers))]
            self.at(int(rng.integers(0, 80 * MS)), partial(fault, worker))
        if rng.random() < 0.1:
            worker = self.workers[rng.integers(0, len(self.workers))]
            self.at(int(rng.integers(0, 60 * MS)), partial(self.lie, worker))

    # -- faults ----------------------------------------------------------------------------------------------

    def heard(self, worker: Worker, reason: str) -> None:
        """The test hears of a loss a little later, or never and the hang timer has to."""
        if self.rng.random() < 0.7:
            self.at(
                self.now_ns + int(self.rng.integers(0, 200 * MS)), lambda: self.lose(worker.number, reason)
            )

    def kill(self, worker: Worker) -> None:
        worker.dead = True
        self.heard(worker, "its process died")

    def cut(self, worker: Worker) -> None:
        worker.cut = True
        self.heard(worker, "its link closed")

    def hang(self, worker: Worker) -> None:
        """It does nothing for a while, then answers everything, perhaps long after that went elsewhere."""
        worker.hung_until_ns = self.now_ns + int(self.rng.choice([10 * MS, 3 * S, 9 * S, 30 * S]))

    def give_up(self, worker: Worker) -> None:
        """Somebody declares a worker lost that is well and goes on answering."""
        self.lose(worker.number, "Ray lost sight of it")

    def lie(self, worker: Worker) -> None:
        """A worker sends what no worker may; whatever it is, the test may not go on as if nothing were."""
        others = [f for f, flight in self.dispatcher._flights.items() if flight.worker != worker.number]
        mine = list(worker_flights(self, worker))
        kind = self.rng.integers(0, 5)
        segment = Segment(self.dispatcher._next_frame + int(self.rng.integers(0, 3)), 0, 1)
        if kind == 0 and others:
            segment = Segment(others[0], 0, len(self.dispatcher._flights[others[0]].ids))
        elif kind == 1 and mine:
            segment = Segment(mine[0], 0, len(self.dispatcher._flights[mine[0]].ids) + 1)
        elif kind == 2 and mine:
            segment = Segment(mine[0], 0, 2**31, range(2**31))
        elif kind == 3 and mine:
            segment = Segment(mine[0], 0, 2, np.array([0, 0], np.uint32))
        parts = encode_answer(7, Answer([segment], 0, 0, 0, 1, Responses(np.empty(0, np.uint8))))
        self.rogue = worker
        self.deliver(
            worker.number, [bytes(parts[0])[: -int(self.rng.integers(1, 9))]] if kind == 4 else parts
        )

    # -- answers ---------------------------------------------------------------------------------------------

    def mistreat(self, worker: Worker, answer: Answer) -> list[Answer]:
        """Cut an answer into pieces of every form, in any order, deliver some twice, lose some."""
        pieces = self.pieces(answer) if self.rng.random() < self.split else [answer]
        if self.rng.random() < self.twice:
            pieces += [pieces[self.rng.integers(0, len(pieces))], answer]
        return [p for p in pieces if self.rng.random() >= self.swallowed]

    def pieces(self, answer: Answer) -> list[Answer]:
        frames = np.concatenate([np.full(s.count, i) for i, s in enumerate(answer.segments)])
        positions = np.concatenate(
            [np.arange(s.count) if s.positions is None else np.array(s.positions) for s in answer.segments]
        )
        order = np.arange(len(frames)) if self.rng.random() < 0.5 else self.rng.permutation(len(frames))
        found = []
        for rows in np.array_split(order, self.rng.integers(1, 4)):
            rows = rows[np.argsort(frames[rows], kind="stable")]
            named = []
            for number in np.unique(frames[rows]):
                mine = positions[rows[frames[rows] == number]].astype(np.uint32)
                segment = answer.segments[number]
                named.append(Segment(segment.frame, segment.received_ns, len(mine), mine))
            if named:
                found.append(piece(answer, rows, named))
        return found

    # -- the verdict -----------------------------------------------------------------------------------------

    def judge(self) -> str:
        """How the case ended; AssertionError if a sample or a credit was lost."""
        d = self.dispatcher
        if self.failure is not None:
            named = re.search(r"node/(\d)", str(self.failure))
            assert named, f"nobody is named: {self.failure}"
            if isinstance(self.failure, PeerFault):
                assert self.rogue is not None and self.rogue.number == int(named[1]), self.failure
                return "fault"
            assert isinstance(self.failure, NoWorkers)
            assert d.losses and (d.on_loss == "fail" or not any(s.alive for s in d.seats)), self.failure
            return "lost"
        assert self.rogue is None, "a lie was believed"
        assert not self.expected, f"{len(self.expected)} samples were never answered"
        assert (d.waiting, d.outstanding, d.completed, d.issued) == (0, 0, self.asked, self.asked)
        assert not d._flights and not d._queue
        assert all(not s.flights and not s.outstanding for s in d.seats)
        return "moved" if any(loss.moved for loss in d.losses) else "late" if d.late else "quiet"


def worker_flights(case: Cluster, worker: Worker) -> dict[int, object]:
    return dict(case.dispatcher.seats[worker.number].flights)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_sample_is_answered_once_or_the_test_failed_by_a_workers_name(seed: int, chunk: int) -> None:
    ends: dict[str, int] = {}
    for number in range(CASES // CHUNKS):
        case = Case(seed + number)
        try:
            case.run()
            end = case.judge()
        except Exception as error:
            raise AssertionError(f"Case({seed + number}): {error}") from error
        ends[end] = ends.get(end, 0) + 1
    # Every kind of end must come up, or the cases have become harmless.
    assert min(ends.get(end, 0) for end in ("fault", "lost", "moved", "late", "quiet")) >= 3, ends


# What dispatch.py claims

BATCH_MS = 8.0


def engines(
    rng: np.random.Generator, slower: Sequence[float], spread: float = 0.05, per_sample_us: int = 250
) -> list[Engine]:
    """Engines whose full batch of 8 takes 8 ms (times `slower`), most of it whatever the batch's size."""
    per_batch = int(BATCH_MS * MS) - 8 * per_sample_us * US
    return [
        Engine(per_batch, per_sample_us * US, 8, s, lambda: max(rng.normal(1, spread), 0.2)) for s in slower
    ]


def offline(made: list[Engine], rng: np.random.Generator, n: int) -> tuple[float, Cluster]:
    """Samples a second of one Offline query, as a share of what the engines can do."""
    cluster = Cluster(made, rng)
    cluster.at(0, lambda: cluster.issue(n))
    cluster.run()
    assert cluster.failure is None and not cluster.expected
    seconds = max(w.finished_ns for w in cluster.workers) * 1e-9
    return n / seconds / sum(e.capacity for e in made), cluster


def server(made: list[Engine], rng: np.random.Generator, share: float, n: int) -> Cluster:
    """Poisson arrivals at a share of what the engines can do."""
    cluster = Cluster(made, rng)
    gaps = rng.exponential(1e9 / (share * sum(e.capacity for e in made)), n)
    arrivals = iter(np.cumsum(gaps).astype(np.int64).tolist())

    def arrive() -> None:
        cluster.issue(1)
        if (later := next(arrivals, None)) is not None:
            cluster.at(later, arrive)

    cluster.at(next(arrivals), arrive)
    cluster.run()
    assert cluster.failure is None and not cluster.expected
    return cluster


def p99_ms(cluster: Cluster) -> float:
    return float(np.percentile(cluster.latencies_ns, 99)) / MS


@pytest.mark.parametrize("per_sample_us", [0, 250, 1000])
def test_server_holds_95_percent_of_offlines_capacity_within_three_batches(
    rng: np.random.Generator, per_sample_us: int
) -> None:
    share, _ = offline(engines(rng, [1] * 8, per_sample_us=per_sample_us), rng, 8000)
    assert share > 0.99
    busy = server(engines(rng, [1] * 8, per_sample_us=per_sample_us), rng, 0.95 * share, 5000)
    assert p99_ms(busy) < 3 * BATCH_MS


def test_a_wide_spread_of_service_times_costs_offline_little(rng: np.random.Generator) -> None:
    share, _ = offline(engines(rng, [1] * 8, spread=0.2), rng, 8000)
    assert share > 0.985


@pytest.mark.parametrize("slower", [[1] * 7 + [10], [1, 10], [1] * 4 + [3] * 4, [1] * 4 + [2] * 4])
def test_offline_gets_what_fast_and_slow_workers_can_do_together(
    rng: np.random.Generator, slower: Sequence[float]
) -> None:
    share, cluster = offline(engines(rng, slower), rng, 2500 * len(slower))
    assert share > 0.98
    idle = [w.finished_ns / MS for w in cluster.workers]
    assert max(idle) - min(idle) < BATCH_MS * (2 + max(slower))


def test_a_worker_ten_times_slower_does_not_make_the_others_queries_late(rng: np.random.Generator) -> None:
    for share in (0.5, 0.9):
        alone = server(engines(rng, [1] * 7), rng, share, 3000)
        beside = server(engines(rng, [1] * 7 + [10]), rng, share, 3000)
        assert p99_ms(beside) < 1.15 * p99_ms(alone)


def test_a_multistream_query_of_slow_samples_is_split_and_done_sooner(rng: np.random.Generator) -> None:
    def query_ms(workers: int) -> float:
        cluster = Cluster([Engine(0, 16 * MS, 8) for _ in range(workers)], rng)
        cluster.at(0, lambda: cluster.issue(8))
        cluster.run()
        return max(cluster.latencies_ns) / MS

    assert query_ms(1) > 128
    assert query_ms(4) < 128 / 4 + 1
    assert query_ms(8) < 128 / 8 + 1


def test_loadgens_ids_never_leave_the_test_process(seed: int) -> None:
    frames: list[bytes] = []

    def look(parts: list[Buffer]) -> None:
        frames.extend(bytes(p) for p in parts)

    for number in range(20):
        case = Case(seed + number)
        case.on_wire = look
        case.run()
    # The upper bytes of the pointers that the simulated LoadGen hands out; no index or frame number here has
    # them.
    assert len(frames) > 500 and not any(b"\x3a\x7f" in frame for frame in frames)


def test_the_same_seed_plays_the_same_case(seed: int) -> None:
    def played(build: Callable[[int], Case]) -> tuple[list[int], int, int]:
        case = build(seed)
        case.run()
        return case.latencies_ns, case.frames, case.dispatcher.late

    assert played(Case) == played(Case)
