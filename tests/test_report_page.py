"""The report in a real browser: the first screen, figures, light and dark, phone, and hostile names."""

from __future__ import annotations

import os
import re
import runpy
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, ViewportSize

from orchestrator.liveview import Seen, test_view
from orchestrator.manifest import load_manifest
from orchestrator.progress import Progress
from orchestrator.record import Record
from orchestrator.report.page import as_page
from orchestrator.report.runs import Run
from tests.browser_pages import PHONE, Opened, artifact_folder, needs_browser, started_browser
from tests.made_records import board, invalid, loss, record, spec
from tests.report_runs import timed

TIME_BUDGET_S = 30

pytestmark = needs_browser
browser = pytest.fixture(scope="module")(started_browser)
artifacts = pytest.fixture(scope="module")(artifact_folder)
DESKTOP = ViewportSize(width=1280, height=900)
TITLES = (
    "Latency distribution",
    "Latency by percentile",
    "Latency over time",
    "Throughput over time",
    "Where the time went",
    "Latency by worker",
    "In flight",
)
EVIL = '</title></style><script>window.hit=1</script><img src=x onerror=window.hit=1>"$x_1^$'
EVIL_WORKER = '"><svg onload=window.hit=1>\u202e\x07$\\frac{'


def runs_to_show() -> list[Run]:
    """One run with a passed, a missed, an accuracy and a failed test."""
    missed = timed("Server", 6, seed=3, result=invalid(["too many queries took longer than the limit"]))
    failed = record(
        "Offline", status="failed", reason="all workers are lost", losses=[loss()], samples=[0, 0]
    )
    tests = [
        timed(losses=[loss().model_copy(update={"at_s": 4.2})], hashes={"library": "ab" * 32}),
        missed.model_copy(update={"test": "Server-late"}),
        record("Server", "accuracy"),
        failed,
    ]
    return [Run("night-20261122-030000", Path("runs"), tests, ("Offline-accuracy.partial",))]


def compared() -> list[Run]:
    first, second = timed("Offline", 6), timed("Offline", 7, seed=11, division="closed")
    return [Run("a-1", Path("a"), [first]), Run("b-2", Path("b"), [second])]


def hostile() -> Record:
    made = timed(seconds=2, benchmark=EVIL, reason=EVIL, unofficial_because=[EVIL], started=EVIL)
    workers = [made.workers[0].model_copy(update={"name": EVIL_WORKER, "device": EVIL}), made.workers[1]]
    more = {
        "test": EVIL,
        "workers": workers,
        "settings": {**made.settings, EVIL: EVIL},
        "files": {EVIL: EVIL},
    }
    lost = [loss(EVIL_WORKER).model_copy(update={"reason": EVIL})]
    return made.model_copy(update=more | {"losses": lost, "versions": {EVIL: {EVIL: [EVIL]}}})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("report")
    runs = {
        "one": runs_to_show(),
        "two": compared(),
        "evil": [Run(EVIL, Path("x"), [hostile()], (EVIL,))],
    }
    for name, shown in runs.items():
        (folder / f"{name}.html").write_text(as_page(shown), encoding="utf-8", errors="replace")
    return {name: folder / f"{name}.html" for name in runs}


class OpenedReport(Opened):
    """The report."""

    def wider_than_window(self) -> bool:
        self.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        return super().wider_than_window()

    def colour(self, of: str, what: str) -> tuple[int, ...]:
        found = self.page.locator(of).first.evaluate(f"(one) => getComputedStyle(one).{what}")
        return tuple(map(int, re.findall(r"\d+", found)[:3]))


def test_the_first_screen_says_whether_it_passed_by_how_much_and_what_limited(
    browser: Browser, made: dict[str, Path]
) -> None:
    opened = OpenedReport(browser, made["one"], DESKTOP)
    page = opened.page
    assert page.locator(".chip").all_inner_texts()[:4] == ["VALID", "INVALID", "REACHED", "FAILED"]
    first = page.locator(".card").first
    for words in ("99.5 queries/s", "84 % of the limit used", "compute", "worker-1, compute", "1 lost:"):
        assert words in first.inner_text()
    assert "8.0 times the limit" in page.locator(".card").nth(1).inner_text()
    box = page.locator(".card").nth(3).bounding_box()
    assert box is not None and box["y"] + box["height"] < DESKTOP["height"]
    assert "Offline-accuracy.partial" in page.locator(".note").first.inner_text()
    page.locator(".card a").nth(1).click()
    assert page.url.endswith("#t0-1")
    opened.close()


def test_every_figure_has_its_words_letters_that_can_be_read_and_colours_that_differ(
    browser: Browser, made: dict[str, Path]
) -> None:
    opened = OpenedReport(browser, made["one"], PHONE)
    figures = opened.page.locator("#t0-0 figure")
    assert figures.locator("h4").all_inner_texts() == list(TITLES)
    for one in opened.page.locator("figure svg").all():
        assert len(one.get_attribute("aria-label") or "") > 30 and one.get_attribute("role") == "img"
    assert opened.page.locator("svg style, svg [style]").count() == 0
    heights = opened.page.locator("figure text").evaluate_all(
        "(all) => all.map((one) => one.getBoundingClientRect().height)"
    )
    assert len(heights) > 100 and min(heights) >= 8
    ids = opened.page.locator("svg [id]").evaluate_all("(all) => all.map((one) => one.id)")
    assert len(ids) == len(set(ids))
    colours = {opened.colour(f"#t0-0 figure:nth-of-type({n}) path[stroke*='--']", "stroke") for n in (3, 7)}
    assert colours.isdisjoint({(0, 0, 0), ()})
    assert "limit 15 ms" in figures.first.inner_text()
    opened.close()


LOOKS = [
    (which, size, dark) for which in ("one", "two") for size in (DESKTOP, PHONE) for dark in (False, True)
]


@pytest.mark.parametrize(
    ("which", "size", "dark"), [look for look in LOOKS if look[0] == "one" or (look[1] is PHONE) == look[2]]
)
def test_it_fits_the_window_of_a_desktop_and_of_a_phone_in_light_and_dark(
    browser: Browser, made: dict[str, Path], artifacts: Path, which: str, size: ViewportSize, dark: bool
) -> None:
    opened = OpenedReport(browser, made[which], size, dark)
    name = f"report-{which}-{'phone' if size is PHONE else 'desktop'}-{'dark' if dark else 'light'}"
    opened.page.screenshot(path=artifacts / f"{name}.png")
    if "LOADGRID_ARTIFACTS" in os.environ:
        opened.page.screenshot(path=artifacts / f"{name}-whole.png", full_page=True)
    assert not opened.wider_than_window()
    assert (sum(opened.colour("body", "backgroundColor")) < 3 * 80) == dark
    assert (sum(opened.colour("figure text", "fill")) > 3 * 128) == dark
    opened.close()


def test_runs_side_by_side_show_difference_spread_and_why_they_do_not_compare(
    browser: Browser, made: dict[str, Path]
) -> None:
    opened = OpenedReport(browser, made["two"], DESKTOP)
    page = opened.page
    assert page.locator("thead th").all_inner_texts()[:4] == ["quantity", "A", "B", "spread"]
    assert "division: A open, B closed" in page.locator(".note.hard").inner_text()
    assert page.locator("main > .test figure").count() == 2
    page.locator("summary", has_text="B · Offline-performance").click()
    assert page.locator("#t1-0").is_visible()
    opened.close()


def test_names_are_text_and_never_markup_or_code(browser: Browser, made: dict[str, Path]) -> None:
    opened = OpenedReport(browser, made["evil"], PHONE)
    page = opened.page
    assert not opened.wider_than_window()
    assert page.evaluate("window.hit") is None
    assert page.locator("script, img, iframe, [onload], [onerror]").count() == 0
    assert page.title().startswith("</title></style><script>") and page.locator("h1").inner_text() == EVIL
    assert page.locator(".card h3 a").inner_text() == EVIL
    assert page.locator("svg text", has_text=EVIL_WORKER[:15]).count() == 4  # two axes, two legends
    assert page.locator("a").evaluate_all("(all) => all.every((one) => one.protocol === 'file:')")
    opened.close()


def test_what_is_added_to_the_page_does_not_run(
    browser: Browser, made: dict[str, Path], tmp_path: Path
) -> None:
    """The policy in the page holds even where somebody adds to it."""
    path = tmp_path / "changed.html"
    path.write_text(
        made["two"].read_text(encoding="utf-8") + "<script>window.hit=1</script>", encoding="utf-8"
    )
    opened = OpenedReport(browser, path, DESKTOP)
    assert opened.page.evaluate("window.hit") is None
    assert "Content Security Policy" in opened.complaints.pop()
    opened.close()


def test_the_pictures_of_the_readme_can_be_made(
    browser: Browser, made: dict[str, Path], tmp_path: Path
) -> None:
    """All of docs/pictures/make_pictures.py but its run of 75 s."""
    pictures = Path(__file__).parent.parent / "docs" / "pictures"
    assert load_manifest(pictures / "watched.yaml").workers.where == "ray"
    program = runpy.run_path(str(pictures / "make_pictures.py"))
    progress = Progress(spec("Server"), 0.0, running_since_s=0.0)
    progress.look(board([200, 100]), 3.0)
    lost = {"worker-1": "at 2 s: killed"}
    seen = Seen(progress, "Server", "running", 3.0, ["worker-0", "worker-1"], lost, board([200, 100]), None)
    program["picture_of_terminal"](browser, test_view(seen, 88, 24), tmp_path / "terminal.png")
    program["picture_of_report"](browser, made["one"], tmp_path / "report.png")
    for folder in (tmp_path, pictures):
        for name, width, most_bytes in (("terminal", 1000, 150_000), ("report", 1280, 250_000)):
            with Image.open(folder / f"{name}.png") as picture:
                assert picture.width >= width and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 30
            assert (folder / f"{name}.png").stat().st_size < most_bytes
