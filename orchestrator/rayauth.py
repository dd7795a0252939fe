"""Ray's authentication and its workers' priority, chosen before Ray is imported, because Ray reads both then.

Ray's ports listen on the node's address, and without a token anyone who reaches them runs code. A local Ray
therefore gets a fresh token. A client with a token is let into a cluster that asks for none, so this holds
for every address. No Ray in here.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TOKEN_FILE = Path(".ray") / "auth_token"
# Ray's own value is 15: beside LoadGen on two cores, at 20,000 queries/s, the p99 of the path was a third
# longer.
NICENESS = "RAY_worker_niceness"
NICENESS_MEND = f"start Ray with {NICENESS}=0"


def choose() -> None:
    """Turn token authentication on, and niceness off, unless the environment decides.

    The token is the user's or a fresh one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(NICENESS, "0")
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    own = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not own and not (Path.home() / TOKEN_FILE).is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
