"""Ray: where workers are placed, how they start, live and end. The driver's only door to Ray."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator import rayauth, reaper

rayauth.choose()  # Ray reads it when it is imported

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.machine import own_address, why_no_connection
from orchestrator.placement import ClusterError, Placement, grouped, per_node
from orchestrator.reach import why_no_ray
from orchestrator.stop import Interrupted, heard_later
from workers.actor import WorkerActor
from workers.host import Ticket, WorkerSpec

KEY_TIMEOUT_S = 30.0
DETACH_TIMEOUT_S = 80.0  # above the worker's own host.STOP_TIMEOUT_S
# For a worker that the test lost: stopped, hung or behind a cut cable, it may never answer.
LOST_TIMEOUT_S = 5.0
STOP_EVERY_S = 0.2
CONNECT_TIMEOUT_S = 3.0
# Ray's own end takes a few seconds and has no limit. Cut short by a signal, it leaves processes of Ray's.
SHUTDOWN_S = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What must be equal in all workers; else they do not compute the same thing.
SAME = ("model_hash", "scales_sha256", "library", "code")
# What should be equal; else a straggler has an explanation.
ALIKE = ("device", "precision", "python", "versions", "max_batch")


# Who ends a local Ray if this process is killed; at most one.
_armed: list[reaper.Reaper] = []


def connect(address: str, num_cpus: int | None = None) -> None:
    """Join the Ray cluster at `address`; "local" starts one on this machine, which ends with this process."""
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": True}
    # Else Ray prints what its daemon says ("(raylet) A worker died ...", eleven lines) into our output; its
    # logs have it, and we tell of the lost worker. Ray's debugger does the same; there is no other switch.
    ray._private.worker._worker_logs_enabled = False
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local":
            if not _armed:
                _armed.append(reaper.Reaper(Path(ray.__file__).parent))
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=num_cpus,
                object_store_memory=80_000_000,
                **quiet,
            )
        else:
            _refuse_closed(address)
            ray.init(address=address, **quiet)
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(f"no Ray cluster at {address!r}: {_first_line(error)}") from None
    except SystemExit:  # Ray's own answer to SIGTERM
        raise Interrupted("SIGTERM received") from None
    finally:
        for armed in _armed:
            armed.unmark()
        # Ray takes the signal for itself: a run would end in the middle, without a record.
        signal.signal(signal.SIGTERM, before)


def _refuse_closed(address: str) -> None:
    """Ray itself goes on trying for minutes where nobody listens, or somebody who is no Ray."""
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    reason = None
    if colon and port.isdigit():
        # Ray takes the loopback for the node's own address.
        host = own_address() if host in LOOPBACK else host
        reason = why_no_connection(host, int(port), CONNECT_TIMEOUT_S)
    if reason := reason or why_no_ray(address):
        mend = "set RAY_AUTH_TOKEN to its token" if "Auth" in reason else "start one with `ray start --head`"
        raise ClusterError(f"no Ray cluster at {address!r}: {reason}; {mend}")


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    with contextlib.ExitStack() as held:
        while _armed:
            held.enter_context(_ending(_armed.pop()))
        with _hearing_sigterm():
            ray.shutdown()


@contextlib.contextmanager
def _ending(armed: reaper.Reaper) -> Iterator[None]:
    """Within, a local Ray ends: by itself, or killed after SHUTDOWN_S or at a second signal."""
    armed.note()
    late = threading.Timer(SHUTDOWN_S, armed.kill)
    late.daemon = True
    late.start()
    with heard_later(armed.kill):
        try:
            yield
        finally:
            late.cancel()
            armed.disarm()


@contextlib.contextmanager
def _hearing_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM while Ray shuts down.

    The last that Ray's core does is to put the kernel's own back, which ends this process without a word;
    Python does not hear of it. Ray's processes are ended only after that, so it is mended in between:
    the next that Ray calls is its state's disconnect.
    """
    before, state = signal.getsignal(signal.SIGTERM), ray._private.state.state
    leave = state.disconnect  # a Ray that has no such thing any more is seen by the tests

    def mended() -> None:
        signal.signal(signal.SIGTERM, before)
        leave()

    state.disconnect = mended
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        state.disconnect = leave


def node_address() -> str:
    """The address by which Ray knows this node."""
    return str(ray.util.get_node_ip_address())


def nodes() -> list[dict[str, Any]]:
    """The live nodes by address: name, address, id, resources."""
    found = [
        {
            "name": n["NodeManagerHostname"],
            "address": n["NodeManagerAddress"],
            "id": n["NodeID"],
            "resources": n["Resources"],
        }
        for n in ray.nodes()
        if n["Alive"]
    ]
    # Ray's order changes from one cluster to the next; workers are numbered by it.
    return sorted(found, key=lambda node: str(node["address"]))


def probe_nodes(timeout_s: float) -> list[dict[str, Any]]:
    """Every live node as nodes() has it, with `facts` of a Python there, or `error` if none could tell."""

    # Defined here, so that it travels by value: a node that lacks our packages can still say so.
    def look() -> dict[str, Any]:
        import importlib
        import importlib.metadata
        import os
        import platform
        import resource

        facts: dict[str, Any] = {"python": platform.python_version(), "error": None}
        for name in ("loadgrid", "torch", "pyzmq", "numpy", "ray"):
            try:
                facts[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                facts[name] = None
        facts["niceness"] = os.getpriority(os.PRIO_PROCESS, 0)
        facts["open_files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            importlib.import_module("workers.actor")
        except Exception as error:
            facts["error"] = f"{type(error).__name__}: {error}"
        return facts

    return ask_nodes(look, timeout_s)


def ask_nodes(look: Callable[[], dict[str, Any]], timeout_s: float) -> list[dict[str, Any]]:
    """Every live node as nodes() has it, with the `facts` that `look` returns there, or `error`."""
    found, task = nodes(), ray.remote(look)
    asked = {}
    for node in found:
        here = NodeAffinitySchedulingStrategy(node["id"], soft=False)
        asked[task.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote()] = node
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    for ref in late:
        asked[ref]["error"] = f"no answer in {timeout_s:g} s"
    for ref in done:
        try:
            asked[ref]["facts"] = ray.get(ref)
        except Exception as error:
            asked[ref]["error"] = _first_line(error)
    return found


class RayFleet:
    """The workers of a campaign as Ray actors; models are loaded once and outlive tests."""

    def __init__(self, placement: Placement, spec: WorkerSpec) -> None:
        self._group: PlacementGroup | None = None
        self._actors: dict[str, Any] = {}
        self._watches: dict[Any, str] = {}
        self._attaching: dict[Any, str] = {}
        self._dead: dict[str, str] = {}
        self.facts: list[dict[str, Any]] = []
        self._place(placement, spec)

    @property
    def names(self) -> list[str]:
        """Names of the workers that live, in order."""
        return [name for name in self._actors if name not in self._dead]

    def load(
        self,
        on_ready: Callable[[dict[str, Any]], None],
        stop: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Load and warm up all models; ClusterError names a worker that could not, or two that differ."""
        waiting = {actor.load.remote(): name for name, actor in self._actors.items()}
        facts = {}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=STOP_EVERY_S)
            if reason := stop():
                raise Interrupted(reason)
            for ref in done:
                name = waiting.pop(ref)
                facts[name] = self._get(ref, name, "could not load its model")
                on_ready(facts[name])
        self.facts = [facts[name] for name in self._actors]
        self._watches = {actor.watch.remote(): name for name, actor in self._actors.items()}
        self._refuse_unequal()

    def differences(self) -> list[str]:
        """How the workers differ in what should be alike, one sentence each."""
        return [
            f"workers differ in {key}: "
            + "; ".join(f"{v}: {', '.join(names)}" for v, names in groups.items())
            for key in ALIKE
            if len(groups := _grouped(self.facts, key)) > 1
        ]

    def giving_way(self) -> list[str]:
        """One sentence about those whom Ray made nice, and the mend. It costs latency and breaks no rule."""
        nice = [str(fact["name"]) for fact in self.facts if fact["niceness"] > 0]
        why = f"Ray started them to give way to whatever else runs there (nice); {rayauth.NICENESS_MEND}"
        return [f"{', '.join(nice)}: {why}"] if nice else []

    def keys(self, stop: Callable[[], str | None] = lambda: None) -> dict[str, str]:
        """A fresh public key of every live worker, in order; one that cannot make one is left out."""
        made, _ = self._ask("key", self.names, KEY_TIMEOUT_S, stop)
        if reason := stop():
            raise Interrupted(reason)
        return made

    def attach(self, tickets: dict[str, Ticket]) -> None:
        """Tell the workers named to connect; lost() tells of those that could not."""
        live = [name for name in tickets if name not in self._dead]
        self._attaching = {self._actors[name].attach.remote(tickets[name]): name for name in live}

    def lost(self) -> list[tuple[str, str]]:
        """Workers that died or could not attach since the last call."""
        waiting = [*self._watches, *self._attaching]
        if not waiting:
            return []
        done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        found = []
        for ref in done:
            dead = ref in self._watches
            name = self._watches.pop(ref, None) or self._attaching.pop(ref)
            try:
                ray.get(ref)
            except Exception as error:
                if name not in self._dead:
                    found.append((name, _first_line(error)))
                if dead or isinstance(error, ray.exceptions.RayActorError):
                    self._dead[name] = _first_line(error)
        return found

    def detach(self, lost: Collection[str] = (), stop: Callable[[], str | None] = lambda: None) -> list[str]:
        """Wait until every worker has left the test; one that cannot is killed, named, and not used again.

        Those in `lost` are not waited for as long as an honest batch may take, and nobody once `stop` tells
        a reason: there is no next test to be free for.
        """
        self.lost()
        doubtful = [name for name in self.names if name in lost]
        others = [name for name in self.names if name not in lost]
        _, stuck = self._ask("detach", doubtful, LOST_TIMEOUT_S, stop)
        _, late = self._ask("detach", others, DETACH_TIMEOUT_S, stop)
        self._attaching = {}
        return stuck + late

    def replay(self, timeout_s: float) -> list[dict[str, Any]]:
        """What each worker's backend makes of its last test in a bare loop, see WorkerHost.replay."""
        answers, _ = self._ask("replay", self.names, timeout_s, lambda: None)
        for name, reason in self._dead.items():
            raise ClusterError(f"{name} did not finish its bare loop: {reason}")
        return list(answers.values())

    def stop(self) -> None:
        """End every worker and give its place back."""
        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                ray.kill(actor)
        # Of a Ray of our own nothing is left in a moment. It may be gone already, for a signal to a group of
        # processes reaches it too: then this would wait for it, and after 60 s Ray would end this process.
        if self._group is not None and not _armed:
            with contextlib.suppress(Exception):
                remove_placement_group(self._group)

    # -- inside
    # ----------------------------------------------------------------------------------------------------

    def _place(self, p: Placement, spec: WorkerSpec) -> None:
        group, places = (None, per_node(p, nodes())) if p.strategy == "per_node" else grouped(p, nodes())
        self._group = group
        for number, place in enumerate(places):
            backend = {**spec.backend, "workers_on_host": place.workers_on_host}
            own = replace(spec, name=f"worker-{number}", backend=backend)
            options = {"num_cpus": p.num_cpus, "num_gpus": p.num_gpus}
            actor = WorkerActor.options(**options, scheduling_strategy=place.strategy)
            self._actors[own.name] = actor.remote(own)

    def _ask(
        self, method: str, names: Sequence[str], timeout_s: float, stop: Callable[[], str | None]
    ) -> tuple[dict[str, Any], list[str]]:
        """What these workers answer, and who did not: those are killed and not used again.

        When `stop` tells a reason, whoever has not answered yet is let be.
        """
        asked = {name: getattr(self._actors[name], method).remote() for name in names}
        if not asked:
            return {}, []
        waiting, until = list(asked.values()), time.monotonic() + timeout_s
        while waiting and (left_s := until - time.monotonic()) > 0 and not stop():
            slice_s = min(left_s, STOP_EVERY_S)
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=slice_s)
        let_be = set(waiting) if stop() else set()
        answers, stuck = {}, []
        for name, ref in asked.items():
            if ref in let_be:
                continue
            try:
                answers[name] = ray.get(ref, timeout=0)
            except ray.exceptions.RayActorError as error:
                self._dead[name] = _first_line(error)
            except Exception as error:
                self._dead[name] = f"asked to {method}: {_first_line(error)}"
                stuck.append(name)
                ray.kill(self._actors[name])
        return answers, stuck

    def _get(self, ref: Any, name: str, what: str, timeout_s: float | None = None) -> Any:
        try:
            return ray.get(ref, timeout=timeout_s)
        except Exception as error:
            raise ClusterError(f"{name} {what}: {_first_line(error)}") from None

    def _refuse_unequal(self) -> None:
        for key in SAME:
            groups = _grouped(self.facts, key)
            if len(groups) > 1:
                each = "; ".join(f"{v}: {', '.join(names)}" for v, names in groups.items())
                raise ClusterError(f"workers do not compute the same thing, {key} differs: {each}")


def _grouped(facts: list[dict[str, Any]], key: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for fact in facts:
        groups.setdefault(str(fact.get(key)), []).append(fact["name"])
    return groups


def _first_line(error: BaseException) -> str:
    """The line of a Ray error that a person wants: the cause, without the remote traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
