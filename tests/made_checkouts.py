"""Checkouts of mlcommons/inference with a stand-in for the official checker."""

from __future__ import annotations

from pathlib import Path

from tests.made_trees import write

# A stand-in for an official checker: prints what a test gives it, and writes nothing beside itself.
FAKE = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("--input", required=True)
parser.add_argument("--version", choices=[{versions}])
parser.add_argument("--csv")
args = parser.parse_args()
{body}
"""


def checkout(folder: Path, body: str, versions: str = '"v6.0", "v6.1"') -> Path:
    """A checkout of mlcommons/inference with a stand-in for the newest checker."""
    package = folder / "inference" / "tools" / "submission" / "submission_checker"
    write(package / "__init__.py", "")
    write(package / "main.py", FAKE.format(versions=versions, body=body))
    return folder / "inference"
