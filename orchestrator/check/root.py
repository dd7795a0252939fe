"""The top of a tree: divisions, submitters, and trees that are given one level too high or too low."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.check.finding import Context, Finding, Official
from orchestrator.submission.documents import DRAFT_FILE
from orchestrator.submission.tree import DIVISIONS, Submission, submissions

# What a checkout of a results repository holds beside its divisions.
BESIDE = {".git", ".github", "README.md", "LICENSE.md", "LICENSE", "CONTRIBUTING.md"}
PARTS = {"results", "systems", "measurements", "code", "src", "compliance"}
# Under a submitter since v6.0 by the rules, which no checker looks at; in the open division the mapping of
# models besides (submission_checker/loader.py, load).
SINCE_V6 = {"results", "systems", "src", "documentation"}


def tops(context: Context) -> Iterator[Finding]:
    """Everything that lies at the top of the tree."""
    names = context.names(context.root)
    if not any(name in DIVISIONS and context.is_folder(context.root / name) for name in names):
        yield _misplaced(context, names)
        return
    for name in names:
        path = context.root / name
        if name in BESIDE or name == DRAFT_FILE or path.is_symlink():  # a draft's brand; links: hygiene
            continue
        if name not in DIVISIONS:
            yield _unknown(context, path)
        elif name not in context.round.divisions:
            known = " and ".join(context.round.divisions)
            yield context.finding(
                "division-not-in-round",
                path,
                f"{context.round.name} has no division {name}: its divisions are {known}",
                "move the submission to one of these, or submit it to a round that has the division",
                official="logged",  # "invalid division in input dir", exit code 0
            )
        elif not list(_folders(context, path)):
            yield context.finding(
                "empty-division", path, f"no submitter has a folder in {name}/", f"remove {name}/"
            )
    for submission in submissions(context.root):
        yield from _parts(context, submission)


def _parts(context: Context, submission: Submission) -> Iterator[Finding]:
    """What lies under a submitter."""
    if not any(True for _ in submission.cells()):
        yield context.finding(
            "no-results",
            submission.path,
            f"{submission.submitter} has no result (results/SYSTEM/MODEL/SCENARIO) in {submission.division}/",
            "put the results there, or remove the folder",
            # The newest lists results/ unasked and ends with FileNotFoundError; the old ones pass it by.
            official="error"
            if context.layout.one_tree and not (submission.path / "results").is_dir()
            else "unseen",
        )
    if not context.layout.one_tree:
        return
    allowed = SINCE_V6 | ({"model_mapping.json"} if submission.division == "open" else set())
    for name in context.names(submission.path):
        path = submission.path / name
        if name not in allowed and not name.startswith(".") and not path.is_symlink():
            told = ", ".join(sorted(allowed))
            yield context.finding(
                "unknown-part",
                path,
                f"{name} has no place under a submitter of {context.round.name}",
                f"move it into one of {told}, or remove it",
            )


def _unknown(context: Context, path: Path) -> Finding:
    folder = path.is_dir()
    return context.finding(
        "unknown-top-level",
        path,
        f"{'a folder' if folder else 'a file'} that is no division lies at the top of the tree",
        f"remove {path.name}; the top holds {', '.join(context.round.divisions)} only",
        official="logged" if folder and not context.layout.one_tree else "unseen",
    )


def _misplaced(context: Context, names: list[str]) -> Finding:
    """The finding for a tree without a division, with the folder that was probably meant."""
    root = context.root
    meant: Path | None
    if PARTS & set(names):
        where, meant = "a submitter's folder", root.absolute().parent.parent
    elif root.absolute().name in DIVISIONS:
        where, meant = "a division", root.absolute().parent
    else:
        below = [name for name in names if any((root / name / division).is_dir() for division in DIVISIONS)]
        where, meant = "the folder above a tree", root / below[0] if below else None
    if meant is None:
        message = f"no division lies here: none of {', '.join(context.round.divisions)}"
        mend = "give the folder that holds closed/ or open/"
    else:
        message = f"no division lies here: this seems to be {where}"
        mend = f"give the folder that holds {' or '.join(context.round.divisions)}: {meant}"
    # Every checker finds no result at all, and with no result none is wrong; those of v1.x log the folders.
    strange = any((root / name).is_dir() for name in names if name not in BESIDE)
    official: Official = "logged" if strange and not context.layout.one_tree else "unseen"
    return context.finding("no-division", root, message, mend, official=official)


def _folders(context: Context, path: Path) -> Iterator[str]:
    return (
        name for name in context.names(path) if not name.startswith(".") and context.is_folder(path / name)
    )
