"""Findings for people, grouped by submission and result, and as one JSON object."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

from orchestrator.check.finding import OFFICIAL, Context, Finding, Official
from orchestrator.check.official import OfficialRun
from orchestrator.submission.tree import submissions

ALIKE = 4  # paths shown of findings that say the same
MOST_OF_A_RULE = 20  # findings of one rule in one folder; what follows is counted
CHECKER = {
    "error": "the official checker exits with 1",
    "logged": "the official checker only logs it",
    "unseen": "the official checker does not see it",
}
# What names and logs hold may come from anywhere; it shall not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def page(
    context: Context, findings: Sequence[Finding], run: OfficialRun | None, words: Sequence[str]
) -> Iterator[str]:
    """The report as lines of text."""
    for group, alike in groupby(sorted(_capped(findings), key=_order), key=_group):
        yield plain(group or "the tree")
        by_text: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
        for finding in alike:
            by_text[finding.rule, finding.message, finding.mend, finding.official].append(finding)
        for (rule, message, mend, official), same in by_text.items():
            yield plain(f"  {rule}: {message}")
            yield from (plain(f"      {_below(finding, group)}") for finding in same[:ALIKE])
            if len(same) > ALIKE:
                yield f"      and {len(same) - ALIKE} more"
            yield plain(f"      mend: {mend}")
            yield f"      {CHECKER[official]}"
        yield ""
    if run is not None:
        yield plain(f"official checker: {' '.join(run.command)}")
        yield plain(f"  exit code {run.exit_code}, {len(run.errors)} ERROR lines")
        yield from (plain(f"  {line}") for line in words)
        yield ""
    yield plain(_summary(context, findings))


def _capped(findings: Sequence[Finding]) -> list[Finding]:
    """At most MOST_OF_A_RULE of each rule, folder and consequence, then one that counts the others."""
    shown: list[Finding] = []
    alike: dict[tuple[str, str, Official], int] = defaultdict(int)
    for finding in findings:
        kind = (finding.rule, finding.path.rpartition("/")[0], finding.official)
        alike[kind] += 1
        if alike[kind] <= MOST_OF_A_RULE:
            shown.append(finding)
    for (rule, folder, official), count in alike.items():
        if count > MOST_OF_A_RULE:
            more = f"and {count - MOST_OF_A_RULE} more in this folder"
            shown.append(Finding(rule, folder or ".", more, "as of those that are named", official))
    return shown


def _order(finding: Finding) -> tuple[str, str, str]:
    return (_group(finding), finding.rule, finding.path)


def _group(finding: Finding) -> str:
    """division/submitter: system/model/scenario of what a finding is about, as far as it goes."""
    parts = finding.path.split("/")
    if len(parts) < 2:
        return ""
    top = "/".join(parts[:2])
    if len(parts) > 3 and parts[2] in ("results", "measurements", "compliance"):
        return f"{top}: {'/'.join(parts[3:6])}"
    return f"{top}"


def _below(finding: Finding, group: str) -> str:
    top = group.partition(": ")[0]
    return finding.path.removeprefix(f"{top}/") if top else finding.path


def _summary(context: Context, findings: Sequence[Finding]) -> str:
    cells = sum(1 for submission in submissions(context.root) for _ in submission.cells())
    looked = f"{cells} result{'s' * (cells != 1)} by the rules of {context.round.name}"
    if not findings:
        return f"nothing is wrong: {looked}"
    counts = {kind: sum(finding.official == kind for finding in findings) for kind in OFFICIAL}
    told = [
        f"{counts['error']} fail the official checker",
        f"{counts['logged']} are only logged by it",
        f"{counts['unseen']} are not seen by it",
    ]
    return f"{len(findings)} finding{'s' * (len(findings) != 1)} in {looked}: {', '.join(told)}"


def plain(text: str) -> str:
    """A line that cannot steer a terminal."""
    return _CONTROL.sub("?", text)


def as_json(
    context: Context, findings: Sequence[Finding], run: OfficialRun | None, words: Sequence[str]
) -> str:
    """Everything as one JSON object."""
    counts: dict[str, int] = {kind: sum(f.official == kind for f in findings) for kind in OFFICIAL}
    value = {
        "tree": str(context.root),
        "round": context.round.name,
        "findings": [asdict(finding) for finding in _capped(findings)],
        "counts": {"all": len(findings)} | counts,
        "official": None
        if run is None
        else {
            "command": list(run.command),
            "exit_code": run.exit_code,
            "errors": list(run.errors),
            "crash": run.crash,
            "comparison": list(words),
        },
    }
    return json.dumps(value, indent=2)
