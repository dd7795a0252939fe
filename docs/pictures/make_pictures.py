"""Makes the README's pictures again of one real run, docs/pictures/watched.yaml, in which a worker is killed.

python docs/pictures/make_pictures.py

It takes two minutes and writes report.png and terminal.png beside itself; where Prometheus is installed also
monitoring/grafana/panels.png. It needs what the tests of the pages need: playwright, and a Chromium.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.terminal_theme import MONOKAI
from rich.text import Text

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
sys.path.insert(0, str(TOP / "monitoring" / "grafana"))

from draw_panels import Span, draw  # noqa: E402 (a program, and no part of a package)

from orchestrator.campaign import run_campaign  # noqa: E402
from orchestrator.console import Console  # noqa: E402
from orchestrator.exporter import serve_metrics  # noqa: E402
from orchestrator.manifest import load_manifest  # noqa: E402
from orchestrator.quiet import Quiet  # noqa: E402
from orchestrator.stop import Stop  # noqa: E402
from orchestrator.timings import Board  # noqa: E402
from orchestrator.watching import Watchers  # noqa: E402

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
PROMETHEUS = TOP / "monitoring" / "prometheus" / "prometheus.yaml"
PROMETHEUS_AT = "127.0.0.1:9090"
KILL_S, SHOT_S = 40.0, 50.0  # since the test's clock started
VICTIM = "worker-1"
WIDTH, HEIGHT = 88, 24  # of the terminal, in cells
DESKTOP = 1280
COLOURS = 256  # enough for pages of few colours, and a third of the bytes
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #0c0f13; }}
pre {{ display: inline-block; margin: 0; padding: 14px 18px; background: #0c0f13; color: #d9d9d9;
  font: 14px/17px "DejaVu Sans Mono", monospace; }}
{stylesheet}</style><pre>{code}</pre>"""


class Camera(Quiet):
    """Watches the run: kills a worker, and later takes the terminal's picture."""

    def __init__(self, console: Console) -> None:
        super().__init__(print)
        self._console = console
        self._victim: int | None = None
        self._running_since_s = float("inf")
        self.view: RenderableType | None = None

    def worker_ready(self, facts: dict[str, Any]) -> None:
        """Note who will be killed."""
        if facts["name"] == VICTIM:
            self._victim = facts["pid"]

    def event(self, event: dict[str, Any]) -> None:
        """Note when the clock starts."""
        super().event(event)
        if event["event"] == "running":
            self._running_since_s = min(self._running_since_s, time.monotonic())

    def tick(self, board: Board) -> None:
        """Do what is due."""
        since_s = time.monotonic() - self._running_since_s
        if self._victim is not None and since_s > KILL_S:
            os.kill(self._victim, signal.SIGKILL)
            self._victim = None
        if self.view is None and since_s > SHOT_S:
            self.view = self._console.view()


@contextlib.contextmanager
def started_prometheus(folder: Path) -> Iterator[None]:
    """A Prometheus that scrapes the run, if one is installed."""
    if shutil.which("prometheus") is None:
        print("prometheus is not installed: monitoring/grafana/panels.png stays as it is")
        yield
        return
    command = ["prometheus", f"--config.file={PROMETHEUS}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={PROMETHEUS_AT}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield
        end_s = int(time.time())
        span = Span(f"http://{PROMETHEUS_AT}", "localhost:9464", end_s - 90, end_s)
        draw(span, TOP / "monitoring" / "grafana" / "panels.png")
    finally:
        process.terminate()
        process.wait()


def watched_run(folder: Path) -> tuple[Path, RenderableType]:
    """Run the manifest; the report's page, and the live view of the test's 50th second."""
    manifest = load_manifest(HERE / "watched.yaml")
    screen = Terminal(file=io.StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT)
    console = Console(screen)
    camera, exporter = Camera(console), serve_metrics(manifest.metrics, print)
    watchers = [console, camera] if exporter is None else [console, camera, exporter]
    try:
        run_campaign(manifest, folder / "runs", "local", Watchers(*watchers), Stop().listen())
    finally:
        console.close()
        if exporter is not None:
            exporter.close()
    if camera.view is None:
        sys.exit("the test ended before the terminal's picture was taken")
    (page,) = folder.glob("runs/*/report.html")
    return page, camera.view


def picture_of_report(browser: Browser, page: Path, file: Path) -> None:
    """The report as a desktop shows it, down to the end of its figures."""
    context = browser.new_context(viewport={"width": DESKTOP, "height": 900}, color_scheme="light")
    opened = context.new_page()
    opened.goto(page.as_uri())
    end = opened.locator(".figures").first.bounding_box()
    assert end is not None
    height = end["y"] + end["height"] + 12
    opened.screenshot(path=file, full_page=True, clip={"x": 0, "y": 0, "width": DESKTOP, "height": height})
    context.close()
    shrink(file)


def picture_of_terminal(browser: Browser, view: RenderableType, file: Path) -> None:
    """A live view as a terminal shows it, twice as sharp."""
    paper = Terminal(
        file=io.StringIO(), record=True, force_terminal=True, width=WIDTH, color_system="truecolor"
    )
    paper.print(Text("$ loadgrid run docs/pictures/watched.yaml", style="bold"))
    paper.print(view)
    code = paper.export_html(theme=MONOKAI, code_format=PAGE)
    context = browser.new_context(device_scale_factor=2)
    opened = context.new_page()
    opened.set_content(code)
    opened.locator("body > pre").screenshot(path=file)
    context.close()
    shrink(file)


def shrink(file: Path) -> None:
    """The same picture with few colours."""
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """Run, then draw."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LOADGRID_CACHE"] = str(folder / "cache")
        with started_prometheus(folder):
            page, view = watched_run(folder)
        with sync_playwright() as playwright:
            # As root Chromium starts without its sandbox only; it opens nothing but what was just written.
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            picture_of_report(browser, page, HERE / "report.png")
            picture_of_terminal(browser, view, HERE / "terminal.png")
            browser.close()


if __name__ == "__main__":
    main()
