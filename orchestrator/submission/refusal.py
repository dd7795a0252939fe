"""Why no tree is made, and the names that may stand in one."""

from __future__ import annotations

import re

# repository_checks.sh of the results repositories refuses blanks and hidden files; a slash leaves the tree.
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")


class SubmitError(Exception):
    """No tree can be made of these records; the text says which, why, and the mend."""


def safe_name(what: str, name: str) -> str:
    """`name`, if a folder of a submission may be called so."""
    if not SAFE_NAME.fullmatch(name):
        raise SubmitError(
            f"{what} {name!r} names a folder of the tree, so it must be letters, digits, dots, dashes, plus "
            "signs and underscores, begin with no dot or dash and have at most 100 characters"
        )
    return name


def several(names: list[str], most: int = 5) -> str:
    """Names joined for a message, the first few of many."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
