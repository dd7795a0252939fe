"""The section `metrics` of a manifest: where Prometheus may read a run."""

from __future__ import annotations

from pydantic import Field

from orchestrator.manifest_power import Host
from orchestrator.manifest_types import Section

DEFAULT_PORT = 9464


class MetricsSection(Section):
    """What the driver serves at /metrics while a run goes on."""

    listen: Host = Field(
        default="127.0.0.1", description="Address to serve at; 0.0.0.0 lets every host that reaches it read."
    )
    port: int | None = Field(
        default=DEFAULT_PORT,
        ge=0,
        le=65535,
        description="Port to serve at; if it is taken, any free one. null: nothing is served.",
    )
