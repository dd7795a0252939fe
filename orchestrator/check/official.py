"""The round's official checker, run from the user's checkout of mlcommons/inference, and what it said.

Which program it is, and where it must be started, is the checkout's affair: tools/submission has a script in
tag v1.0.1 and branch r1.1, and a package in the newest revision. All read --input, --version and --csv; all
exit with 1 for what they hold against a tree, and log more than that.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from orchestrator import children
from orchestrator.check.finding import Context, Finding

PACKAGE = "submission_checker/main.py"
SCRIPTS = ("submission-checker.py", "submission_checker.py")
RIGHT_CHECKOUT = {"v1.0": "tag v1.0.1", "v1.1": "branch r1.1", "v6.1": "branch master"}
HELP_LIMIT_S = 60.0
HELP_LIMIT_CHARACTERS = 1 << 20
SAID = "said"  # in the temporary folder, beside the summary
# Far above what whole rounds' trees make it say: some lines for each of a few thousand results.
SAID_LIMIT_BYTES = 64 << 20
LEAVE_S = 1.0  # from SIGTERM to SIGKILL
SHOWN = 5
_VERSIONS = re.compile(r"--version\s+\{([^}]*)\}")
# "ERROR:main:..." of the scripts, "[2026-11-22 01:47:26,049 base.py:37 ERROR] ..." of the package.
_ERROR = re.compile(r"^(?:ERROR:|\[[^\]]* ERROR\])\s*(?:main:)?\s*(.*)$")
_RESULT = re.compile(r"^(?:NoResults |SUMMARY: )")


class OfficialError(Exception):
    """The official checker cannot be run; the text says why, and the mend."""


@dataclass(frozen=True)
class OfficialRun:
    """What the checker did: `errors` are its ERROR lines, `crash` the last line of a traceback."""

    checkout: Path
    command: tuple[str, ...]
    exit_code: int
    errors: tuple[str, ...]
    crash: str | None

    @property
    def passed(self) -> bool:
        """Exit code 0 and not one ERROR line."""
        return self.exit_code == 0 and not self.errors


def run_official(checkout: Path, root: Path, round_name: str, limit_s: float) -> OfficialRun:
    """Run the checker of a checkout over the tree `root`; OfficialError if it is not there or not the one."""
    folder, start = _program(checkout)
    _know_round(folder, start, checkout, round_name)
    with tempfile.TemporaryDirectory(prefix="loadgrid-check-") as temporary:
        csv = Path(temporary, "summary.csv")
        options = ["--input", str(root), "--version", round_name, "--csv", str(csv)]
        code = _run(folder, [*start, *options], Path(temporary), limit_s)
        with _said(Path(temporary)) as said:
            errors, crash, last = _heard(said)
    if code == 2 and not errors and crash is None:
        raise OfficialError(f"{' '.join(start)} does not take our options: {last or 'no output'}")
    return OfficialRun(checkout, (*start, *options), code, errors, crash)


def _program(checkout: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder to start in, and the command without options."""
    folder = (checkout / "tools" / "submission").absolute()
    if (folder / PACKAGE).is_file():
        return folder, (sys.executable, "-m", "submission_checker.main")
    for name in SCRIPTS:
        if (folder / name).is_file():
            return folder, (sys.executable, name)
    raise OfficialError(
        f"{checkout} is no checkout of mlcommons/inference: it has neither tools/submission/{SCRIPTS[0]} nor "
        f"tools/submission/{PACKAGE} (git clone https://github.com/mlcommons/inference)"
    )


def _know_round(folder: Path, start: Sequence[str], checkout: Path, round_name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="loadgrid-check-") as temporary:
        code = _run(folder, [*start, "--help"], Path(temporary), HELP_LIMIT_S)
        with _said(Path(temporary)) as said:
            text = said.read(HELP_LIMIT_CHARACTERS)
    told = _VERSIONS.search(" ".join(text.split()))
    if code != 0 or told is None:
        last = text.strip().splitlines()[-1:] or ["it said nothing"]
        raise OfficialError(f"the checker of {checkout} does not start: {last[0]}")
    known = [name.strip() for name in told[1].split(",")]
    if round_name not in known:
        right = RIGHT_CHECKOUT.get(round_name)
        mend = f"; for {round_name} check out {right} of mlcommons/inference" if right else ""
        raise OfficialError(f"the checker of {checkout} knows {', '.join(known)}, and not {round_name}{mend}")


def _run(folder: Path, command: Sequence[str], temporary: Path, limit_s: float) -> int:
    """The exit code; what it says goes to a file in `temporary`, and nothing of it runs on afterwards."""
    # The checkout is the user's: nothing is written to it. The scripts log to standard error.
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8:replace"}
    variables["COLUMNS"] = "1000"  # argparse breaks no line of its help
    until_s = time.monotonic() + limit_s
    with open(temporary / SAID, "wb") as said:
        program = children.Program(command, folder, temporary, said, **variables)
        try:
            while (code := program.code()) is None:
                if time.monotonic() > until_s:
                    raise OfficialError(
                        f"the official checker did not end in {limit_s:g} s; "
                        "--official-limit gives it more time"
                    )
                _hold_cap(said)
                time.sleep(children.LOOK_S)
            _hold_cap(said)
        finally:
            program.end(LEAVE_S)
    return code


def _hold_cap(said: BinaryIO) -> None:
    if os.fstat(said.fileno()).st_size > SAID_LIMIT_BYTES:
        raise OfficialError(
            f"the official checker said more than {SAID_LIMIT_BYTES >> 20} MiB, and was ended"
        )


def _said(temporary: Path) -> TextIO:
    return open(temporary / SAID, encoding="utf-8", errors="replace")


def _heard(lines: Iterable[str]) -> tuple[tuple[str, ...], str | None, str]:
    """The ERROR lines, the last line of a traceback (None without one), and the last line of all."""
    errors, traceback, last = [], False, ""
    for line in lines:
        if match := _ERROR.match(line):
            errors.append(match[1].strip())
        traceback = traceback or line.startswith("Traceback (most recent call last)")
        last = line.strip() or last
    return tuple(errors), last if traceback else None, last


# Against our own findings


def compared(
    findings: Sequence[Finding], run: OfficialRun, context: Context
) -> tuple[list[Finding], list[str]]:
    """What the checker says and LoadGrid does not see, and in words where the two disagree."""
    if run.crash is not None:
        return _crashed(findings, run, context)
    only = _unexplained(findings, run)
    found = [_official_only(context, only)] if only else []
    if run.exit_code != 0 and not findings and not found:
        found.append(_official_only(context, [f"exit code {run.exit_code}, and no ERROR line"]))
    return found, _words(findings, run, len(only))


def _official_only(context: Context, lines: Sequence[str]) -> Finding:
    more = f" (and {len(lines) - SHOWN} more)" if len(lines) > SHOWN else ""
    return context.finding(
        "official-only",
        context.root,
        f"the official checker says what LoadGrid does not see: {' | '.join(lines[:SHOWN])}{more}",
        "mend what it says; if the tree is right by the rules, LoadGrid's own check still missed the reason "
        "for these lines: please report it",
        official="error",
    )


def _crashed(
    findings: Sequence[Finding], run: OfficialRun, context: Context
) -> tuple[list[Finding], list[str]]:
    expected = [finding for finding in findings if finding.official == "error"]
    mend = "mend the other findings first: one of them ends it" if expected else "report it to MLCommons"
    found = context.finding(
        "official-crash", context.root, f"the official checker ended with {run.crash}", mend, official="error"
    )
    words = [f"The official checker did not end by itself: {run.crash}."]
    if not expected:
        words.append("LoadGrid found nothing that would explain it.")
    return [found], words


def _unexplained(findings: Sequence[Finding], run: OfficialRun) -> list[str]:
    """ERROR lines about a part of the tree in which LoadGrid found nothing that the checker sees."""
    known = {part for finding in findings if finding.official != "unseen" for part in _places(finding)}
    only, explained = [], False
    for line in run.errors:
        if _RESULT.match(line):  # what follows from the errors before
            continue
        if "/" in line:  # a line without a path (the text of a LoadGen error) belongs to the one before
            explained = any(part in line for part in known)
        if not explained:
            only.append(line)
    return only


def _places(finding: Finding) -> list[str]:
    """How the checker may name the place of a finding: system/model/scenario, a system's file, a folder."""
    parts = finding.path.split("/")
    if len(parts) > 3 and parts[2] in ("results", "measurements", "compliance"):
        # Of v1.x a scenario whose result is not valid is a missing one: said of the model.
        return ["/".join(parts[3:6]), f"{'/'.join(parts[3:5])} does not have all required scenarios"]
    if len(parts) > 3 and parts[2] == "systems":
        return [Path(parts[3]).stem]
    if len(parts) > 2:
        return ["/".join(parts[:2]) + "/"]
    return [parts[-1]]


def _words(findings: Sequence[Finding], run: OfficialRun, only: int) -> list[str]:
    unseen = sum(finding.official == "unseen" for finding in findings)
    logged = sum(finding.official == "logged" for finding in findings)
    fatal = len(findings) - unseen - logged
    words = []
    if run.passed and not findings:
        return ["LoadGrid and the official checker agree: nothing is wrong."]
    if run.passed:
        words.append(f"The official checker passes the tree, LoadGrid does not: {len(findings)} findings.")
    elif run.exit_code == 0:
        words.append(f"The official checker exits with 0, but logs {len(run.errors)} ERROR lines.")
    else:
        words.append(
            f"The official checker exits with {run.exit_code} and logs {len(run.errors)} ERROR lines."
        )
    if unseen:
        words.append(f"It cannot see {unseen} of LoadGrid's findings.")
    if logged and run.exit_code == 0 and not fatal:
        words.append(f"It only logs {logged} of them.")
    if fatal and run.exit_code == 0:
        words.append(
            f"LoadGrid expected it to fail for {fatal} of them, and it did not: "
            "LoadGrid may be wrong about the checker there, or about the tree."
        )
    if only:
        words.append(f"LoadGrid does not see the reason of {only} ERROR lines: it may be wrong there.")
    if not run.passed and not only:
        words.append("All that it says is explained by LoadGrid's findings.")
    return words
