"""LoadGrid's own source in a submission's tree: the rules want the source of what was run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from orchestrator.provenance import ROOT, code_sha256
from orchestrator.submission.gather import Evidence
from orchestrator.submission.writer import TreeWriter

FOLDER = "loadgrid"
PACKAGES = ("orchestrator", "workers")
# What builds them; an installation without a checkout has none.
BUILD_FILES = ("pyproject.toml", "constraints.txt", "LICENSE")
NOT_HERE = (
    "LoadGrid's own source: the records are of another state of it than the one that runs here; "
    "submit with the commit that they name, or give that source with --code"
)
# What Python writes beside sources.
COMPILED = "__pycache__"


def is_what_ran(cells: Sequence[Evidence]) -> bool:
    """Whether the LoadGrid that runs here is, byte for byte, the one that made every record."""
    here = code_sha256()
    return all(test.record.versions.get("code") == here for cell in cells for test in cell.tests)


def write_own_source(tree: TreeWriter, place: PurePosixPath) -> None:
    """Every file of both packages, and what builds them, below `place`."""
    names = [name for name in BUILD_FILES if (ROOT / name).is_file()]
    for package in PACKAGES:
        files = (path.relative_to(ROOT) for path in sorted((ROOT / package).rglob("*")) if path.is_file())
        names += [str(path) for path in files if COMPILED not in path.parts]
    for name in names:
        tree.copy(ROOT / name, place / name)
