"""LoadGrid's pages in a real headless browser: what both test files make fixtures of and watch for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
needs_browser = pytest.mark.part(CHROMIUM is not None, "no browser: apt-get install chromium-headless-shell")
PHONE = ViewportSize(width=390, height=844)


def started_browser() -> Iterator[Browser]:
    """The fixture `browser` of a file."""
    with sync_playwright() as playwright:
        # As root, as in CI, Chromium starts without its sandbox only; it opens nothing but these pages.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots stay: $LOADGRID_ARTIFACTS, if somebody wants to see them."""
    wanted = os.environ.get("LOADGRID_ARTIFACTS")
    folder = Path(wanted) if wanted else tmp_path_factory.mktemp("artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Opened:
    """A page, and all that it complained of or asked for."""

    def __init__(self, browser: Browser, path: Path, size: ViewportSize, dark: bool = False) -> None:
        self.context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light")
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda told: self.complaints.append(told.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def close(self) -> None:
        self.context.close()
        assert not self.complaints
        assert len(self.asked) == 1, self.asked

    def wider_than_window(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))
