"""All checks of a tree, and the one function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.check.accuracy import accuracy
from orchestrator.check.compliance import compliance
from orchestrator.check.consistency import consistency
from orchestrator.check.contents import compliance_files, compliance_folders, contents, levels
from orchestrator.check.documents import documents
from orchestrator.check.draft import draft_file, drafts
from orchestrator.check.finding import Context, Finding
from orchestrator.check.hygiene import hygiene, unreadable_path
from orchestrator.check.measurements import measurements
from orchestrator.check.performance import performance
from orchestrator.check.power import power
from orchestrator.check.power_binding import power_binding
from orchestrator.check.root import tops
from orchestrator.check.scenarios import models
from orchestrator.check.systems import orphans, systems
from orchestrator.submission.tree import Cell, Submission, Unreadable, submissions

TreeCheck = Callable[[Context], Iterator[Finding]]
SubmissionCheck = Callable[[Context, Submission], Iterator[Finding]]
CellCheck = Callable[[Context, Cell], Iterator[Finding]]

OF_TREE: Sequence[TreeCheck] = (tops, draft_file, hygiene)
OF_SUBMISSION: Sequence[SubmissionCheck] = (systems, models, orphans, documents, levels, drafts)
OF_CELL: Sequence[CellCheck] = (
    contents,
    measurements,
    compliance_folders,
    compliance_files,
    performance,
    accuracy,
    compliance,
    power,
    power_binding,
    consistency,
)


def judge(context: Context) -> list[Finding]:
    """Every fault that is found in the tree, in order of its place."""
    found = list(_findings(context))
    return sorted(dict.fromkeys(found), key=lambda finding: (finding.path, finding.rule, finding.message))


def _findings(context: Context) -> Iterator[Finding]:
    for of_tree in OF_TREE:
        yield from _guarded(context, of_tree(context))
    unreadable: Unreadable = {}
    for submission in submissions(context.root, unreadable):
        if submission.division not in context.round.divisions:
            continue  # said of the division
        for of_submission in OF_SUBMISSION:
            yield from _guarded(context, of_submission(context, submission))
        for cell in submission.cells(unreadable):
            for of_cell in OF_CELL:
                yield from _guarded(context, of_cell(context, cell))
    for folder, error in unreadable.items():  # the same words as of hygiene, which may have seen it
        yield unreadable_path(context, folder, error)


def _guarded(context: Context, findings: Iterator[Finding]) -> Iterator[Finding]:
    """A file that cannot be read is a finding, not the end: the other checks go on."""
    try:
        yield from findings
    except OSError as error:
        path = context.root if error.filename is None else context.root / str(error.filename)
        yield unreadable_path(context, path, error)
