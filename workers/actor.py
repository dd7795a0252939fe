"""The Ray actor: a WorkerHost with an address. Thin, so that everything it does can be tested without Ray."""

from __future__ import annotations

import os
from typing import Any

import ray

from workers.host import WorkerHost

# watch() blocks for the actor's whole life and tells the driver of its death at once; the others need
# threads of their own.
CONCURRENCY = 4


class RayWorker(WorkerHost):
    """A WorkerHost that knows its node as Ray does, and how nice Ray made it."""

    def load(self) -> dict[str, Any]:
        """As WorkerHost.load, with the node's address and the GPUs that Ray gave."""
        facts = super().load()
        facts["node"] = ray.util.get_node_ip_address()
        facts["niceness"] = os.getpriority(os.PRIO_PROCESS, 0)
        facts["gpu_ids"] = [str(gpu) for gpu in ray.get_gpu_ids()]
        return facts


WorkerActor = ray.remote(max_concurrency=CONCURRENCY, max_restarts=0)(RayWorker)
