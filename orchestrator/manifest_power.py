"""The section `power` of a manifest: the MLCommons power client, and the server that it speaks to."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from orchestrator.manifest_types import PathText, Section

# At one of the measurements' levels of a submission with power (rules since v2.0).
DOCUMENTS = ("analyzer_table.", "power_settings.")
DEFAULT_PORT = 4950  # ptd_client_server/lib/common.py of mlcommons/power-dev


def _words(value: Any) -> Any:
    """A command as a list, or as one line that is split as a shell would; no shell ever sees it."""
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as error:
            raise PydanticCustomError("command", "is no command line ({why})", {"why": str(error)}) from None
    return tuple(value) if isinstance(value, list) else value


def _document(value: str) -> str:
    if not value.rpartition("/")[2].startswith(DOCUMENTS):
        raise PydanticCustomError("document", "is neither analyzer_table.* nor power_settings.*")
    return value


Word = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:%_-]*$", max_length=253)]


class PowerSection(Section):
    """Power at the wall: every performance test runs within the MLCommons power client."""

    client: Annotated[
        tuple[Word, ...],
        Field(min_length=1, json_schema_extra={"type": ["array", "string"]}),
        BeforeValidator(_words),
    ] = Field(
        description="Command of the power client, run in the manifest's folder without a shell: "
        "python3 power-dev/ptd_client_server/client.py"
    )
    address: Host = Field(description="Host of the power server, which has PTDaemon and the meter.")
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535, description="Port of the power server.")
    ntp: Host = Field(description="NTP server by which the client and the power server set their clocks.")
    documents: Annotated[tuple[Annotated[PathText, AfterValidator(_document)], ...], Field(strict=False)] = (
        Field(
            default=(),
            description="Files analyzer_table.* and power_settings.* on the meter, kept with the test.",
        )
    )
