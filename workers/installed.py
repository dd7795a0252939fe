"""Where a path of a manifest points: on disk, or inside an installed package (`package:NAME/SUBPATH`)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

PREFIX = "package:"
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class LocateError(Exception):
    """A path points nowhere; the text says what to install or correct."""


def locate(path: str) -> Path:
    """The place that `path` names. A package is found, never imported, and the result stays inside it."""
    if not path.startswith(PREFIX):
        return Path(path).expanduser()
    name, _, inside = path.removeprefix(PREFIX).partition("/")
    if not _PACKAGE.fullmatch(name):
        raise LocateError(f"{path!r} does not name a package: write {PREFIX}NAME/FOLDER")
    spec = importlib.util.find_spec(name)  # for a top-level name this imports nothing
    homes = list(spec.submodule_search_locations or []) if spec else []
    if not homes:
        raise LocateError(f"{path!r}: the Python package {name!r} is not installed here; install it with pip")
    home = Path(homes[0]).resolve()
    place = (home / inside).resolve()
    if not place.is_relative_to(home):
        raise LocateError(f"{path!r} leaves the package {name!r}")
    return place
