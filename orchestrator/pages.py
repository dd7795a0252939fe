"""What the web pages share: their colours, their templates, and a policy that allows their own parts only."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@cache
def tokens() -> str:
    """The colours, light and dark, as CSS variables."""
    return (Path(__file__).parent / "pages.css").read_text(encoding="utf-8")


def policy_hash(text: str) -> str:
    """A style or script as a Content-Security-Policy names it."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@cache
def templates(folder: Path) -> Environment:
    """The templates of a folder; what they are given is text and never markup."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
