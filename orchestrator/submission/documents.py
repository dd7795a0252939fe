"""The documents of a whole submission and its code: how LoadGrid is got, calibration, a draft's brand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from orchestrator.submission.gather import Evidence
from orchestrator.submission.keys import looks_like_key
from orchestrator.submission.layout import LARGEST_FILE_BYTES, Layout
from orchestrator.submission.own_source import FOLDER
from orchestrator.submission.readme import DRAFT
from orchestrator.submission.refusal import SAFE_NAME, SubmitError, several
from orchestrator.submission.writer import TreeWriter

DRAFT_FILE = "DRAFT.md"
SOURCE = "source"
LARGEST_DOCUMENT_BYTES = 4 << 20
# What no reader of a submission wants: what tools leave beside sources.
_LEAVINGS = {"__pycache__", "node_modules"}


def code_readme(cells: Sequence[Evidence], own: Path | None, with_source: bool) -> str:
    """How to get what computed the results of a model; `with_source`: LoadGrid's own lies in the tree."""
    record = cells[0].performance.record
    commit = record.versions.get("commit")
    lines = [
        f"# {cells[0].benchmark}: the implementation",
        "",
        "LoadGrid runs the official LoadGen over workers that Ray places; the manifests beside this file say "
        "which network, weights and data set, and on which devices.",
        "",
        f"* LoadGrid {record.versions.get('loadgrid')}, git commit `{commit or 'not known'}`"
        + (", with changes that are in no commit" if record.versions.get("dirty") else ""),
        f"* workers' code: sha256 `{', '.join(sorted({str(w.facts.get('code')) for w in record.workers}))}`",
        "",
        "In a checkout of LoadGrid:",
        "",
        "```",
        f"git checkout {commit or 'COMMIT'}",
        "python3 -m venv .venv",
        ".venv/bin/pip install -c constraints.txt '.[benchmarks]'",
        ".venv/bin/loadgrid run MANIFEST",
        "```",
        "",
        "`constraints.txt` names the version of every package. Networks are in `workers/models`, "
        "preprocessing and responses in `workers/tasks`, engines in `workers/backends`, the way of "
        "a sample in `orchestrator`.",
        "",
        "The README.md of each result names versions, hashes and commands of its own run.",
    ]
    if with_source:
        lines += ["", f"The very source that ran, byte for byte, is in `../../{FOLDER}`."]
    if own is not None:
        lines += ["", f"The submitter's own part of the implementation is in `{SOURCE}`."]
    return "\n".join(lines) + "\n"


def own_files(folder: Path) -> tuple[list[PurePosixPath], list[str]]:
    """The files of the user's implementation that go into a tree, and what is left out (hidden, leavings).

    SubmitError names links, keys, unsafe names and files that are too large: faults of the tree, all.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise SubmitError(f"--code {folder} is no folder")
    taken: list[PurePosixPath] = []
    left_out: list[str] = []
    wrong: list[str] = []
    for place, names, files in os.walk(folder):
        hidden = [name for name in (*names, *files) if name.startswith(".") or name in _LEAVINGS]
        left_out += [str(Path(place, name).relative_to(folder)) for name in sorted(hidden)]
        names[:] = sorted(name for name in names if name not in hidden)
        for name in sorted(set(names) | set(files) - set(hidden)):
            path = Path(place, name)
            if path.is_symlink():
                wrong.append(f"{path} is a link")
            elif not SAFE_NAME.fullmatch(name):
                wrong.append(f"{path} has a blank or another character that the tree must not have")
            elif name in files and (fault := _fault(path)):
                wrong.append(f"{path} {fault}")
            elif name in files:
                taken.append(PurePosixPath(path.relative_to(folder).as_posix()))
    if wrong:
        raise SubmitError(f"--code {folder} cannot go into a tree: {several(wrong)}")
    return taken, left_out


def _fault(path: Path) -> str | None:
    """Why a file cannot be published, as the end of a sentence."""
    if not path.is_file():
        return "is no plain file"
    found = path.stat()
    if found.st_size >= LARGEST_FILE_BYTES:
        return f"has {LARGEST_FILE_BYTES} bytes or more"
    if found.st_nlink > 1:
        return "has another name on this disk too (a hard link), perhaps outside of the folder; copy it"
    if found_key := looks_like_key(path):
        return f"{found_key}: no key is published"
    return None


def calibration(
    given: Path | None, weights: Sequence[str], needed: bool, draft: bool, told: str | None = None
) -> str:
    """The calibration document: as given, as the records tell, or that nothing was quantised, if so.

    `needed`: some weights have fewer than 16 bits, so the rules ask for a description.
    """
    if given is not None:
        return given_text(given, "--calibration")
    if told is not None:
        return told
    formats = ", ".join(sorted(set(weights)))
    if needed and not draft:
        raise SubmitError(
            f"the weights are quantised ({formats}), and the rules ask how they were calibrated: "
            "give the document with --calibration FILE"
        )
    if needed:
        return f"= Calibration\n\n{DRAFT}: the weights are quantised ({formats}), and nobody said how.\n"
    return (
        "= Calibration\n\nNo network of this submission was calibrated: no weights and no activations are "
        f"quantised to fewer than 16 bits. Number formats of the weights: {formats}.\n"
    )


def given_text(path: Path, option: str) -> str:
    """A document of the submitter's; SubmitError where it is none."""
    try:
        if not path.is_file():
            raise SubmitError(f"{option} {path} is no file")
        if path.stat().st_size > LARGEST_DOCUMENT_BYTES:
            raise SubmitError(f"{option} {path} has more than {LARGEST_DOCUMENT_BYTES} bytes")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise SubmitError(f"{option} {path} is not text in UTF-8") from None
    except OSError as error:
        raise SubmitError(f"{option} {path} cannot be read: {error.strerror or error}") from None


def write_draft(tree: TreeWriter, because: Sequence[str]) -> None:
    """The file at the root, beside the divisions, where every checker passes over it."""
    reasons = "".join(f"* {reason}\n" for reason in because) or "* it was asked for with --draft\n"
    tree.write(
        PurePosixPath(DRAFT_FILE),
        f"# {DRAFT}\n\nThis tree was made with `loadgrid submit --draft` to try the way of a submission. Its "
        f"figures must not be submitted or published, because:\n\n{reasons}",
    )


def calibration_place(layout: Layout) -> PurePosixPath:
    """Where the rules of the round want the submission's calibration document."""
    return layout.documentation("calibration.adoc" if layout.one_tree else "calibration.md")
