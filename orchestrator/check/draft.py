"""What `loadgrid submit --draft` made to try the way: branded, and never to be submitted."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.check.finding import Context, Finding
from orchestrator.check.measurements import README
from orchestrator.submission.documents import DRAFT_FILE
from orchestrator.submission.planned import DRAFT_SYSTEM
from orchestrator.submission.readme import DRAFT
from orchestrator.submission.tree import Submission

MEND = "make the tree without --draft, from official records"


def draft_file(context: Context) -> Iterator[Finding]:
    """The brand of a whole tree."""
    path = context.root / DRAFT_FILE
    if path.exists():
        yield context.finding("draft", path, "the tree is a draft; the file says why", MEND)


def drafts(context: Context, submission: Submission) -> Iterator[Finding]:
    """The brands inside, which a tree keeps when its file is taken away."""
    for name in context.names(submission.path / "systems"):
        path = submission.path / "systems" / name
        values = (context.json(path) or {}) if name.endswith(".json") else {}
        told = (str(values.get(field)) for field in ("system_name", "sw_notes"))
        if name.startswith(DRAFT_SYSTEM) or any(text.startswith(DRAFT) for text in told):
            yield context.finding("draft", path, "the system is branded as a draft's", MEND)
    for cell in submission.cells():
        path = cell.measurements(context.layout) / README
        if DRAFT in (context.text(path) or ""):
            yield context.finding("draft", path, f"the README says: {DRAFT}", MEND)
