"""The Ray actor: a WorkerHost with an address. Thin, so that everything it does can be tested without Ray."""

from __future__ import annotations

import ray

from workers.host import WorkerHost

# watch() blocks for the actor's whole life and tells the driver of its death at once; the others need threads of their own.
CONCURRENCY = 4

WorkerActor = ray.remote(max_concurrency=CONCURRENCY, max_restarts=0)(WorkerHost)
