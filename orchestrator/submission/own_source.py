"""LoadGrid's own source in a submission's tree: the rules want the source of what was run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from orchestrator.provenance import ROOT, code_sha256, own_files
from orchestrator.submission.gather import Evidence
from orchestrator.submission.refusal import SAFE_NAME
from orchestrator.submission.writer import TreeWriter

FOLDER = "loadgrid"
# What builds the packages: of a checkout only, for others' files may lie beside installed ones.
BUILD_FILES = ("pyproject.toml", "constraints.txt", "LICENSE")
NOT_HERE = (
    "LoadGrid's own source: the records are of another state of it than the one that runs here; "
    "submit with the commit that they name, or give that source with --code"
)


def is_what_ran(cells: Sequence[Evidence]) -> bool:
    """Whether the LoadGrid that runs here is, byte for byte, the one that made every record.

    A record whose workers had other code than its driver is not official, and says so.
    """
    here = code_sha256()
    tests = [test.record for cell in cells for test in cell.tests]
    return all(record.versions.get("code") == here for record in tests) and all(
        SAFE_NAME.fullmatch(path.name) and not path.is_symlink() for path in own_files()
    )


def write_own_source(tree: TreeWriter, place: PurePosixPath) -> None:
    """Every file of the code, and what builds it, below `place`."""
    build = BUILD_FILES if (ROOT / ".git").exists() else ()
    files = [*own_files(), *(ROOT / name for name in build if (ROOT / name).is_file())]
    for path in files:
        tree.copy(path, place / path.relative_to(ROOT).as_posix())
