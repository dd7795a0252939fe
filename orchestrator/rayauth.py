"""Ray's own authentication, chosen before Ray is imported, because Ray reads it then. No Ray in it.

Ray's ports listen on the node's address, and without a token anyone who reaches them runs code. A local Ray
therefore
gets a fresh token. A client with a token is let into a cluster that asks for none, so this holds for every
address.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TOKEN_FILE = Path(".ray") / "auth_token"


def choose() -> None:
    """Turn token authentication on unless the environment decides: the user's token or a fresh one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    own = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not own and not (Path.home() / TOKEN_FILE).is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
