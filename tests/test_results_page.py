"""The results page in a real browser: sorting, filters, details, keyboard, phone, dark, and hostile names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ViewportSize

from orchestrator.results.gather import Gathered
from orchestrator.results.page import as_page
from orchestrator.results.rows import Machine, Power, Result, Row
from tests.browser_pages import PHONE, Opened, artifact_folder, needs_browser, started_browser

TIME_BUDGET_S = 40

pytestmark = needs_browser
browser = pytest.fixture(scope="module")(started_browser)
artifacts = pytest.fixture(scope="module")(artifact_folder)
DESKTOP = ViewportSize(width=1440, height=900)
SUBMITTERS = ("Acme", "Böhm & Söhne", "Zeta")
EVIL = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>"
EVIL_NAME = '"><svg onload=window.hit=1>'


def result(benchmark: str, scenario: str, value: float | None, unit: str, **more: object) -> Result:
    told = {"model": benchmark, "valid": value is not None, "accuracy": {"acc": "76.4561"}} | more
    return Result(benchmark=benchmark, scenario=scenario, value=value, unit=unit, **told)  # type: ignore[arg-type]


def row(number: int, **more: object) -> Row:
    machine = Machine(
        name=f"Box {number} (8x H200-SXM-141GB, TensorRT)",
        category="preview" if number % 7 == 3 else "available",
        suites=("datacenter",),
        nodes=1 + number % 3,
        processor="INTEL(R) XEON(R) PLATINUM 8570",
        processors_per_node=2,
        processor_cores="56",
        accelerator="NVIDIA H200-SXM-141GB",
        accelerators_per_node=8,
        software="TensorRT 10.11, CUDA 12.9",
        operating_system="Ubuntu 24.04",
        notes="H200 TGP 700W",
    )
    results = [
        result("resnet", "Server", 259993.64 + 1000 * (number * 7 % 13), "queries/s"),
        result("resnet", "Offline", 304876.0 + number, "samples/s", power=Power(6200.5 + number, "W")),
        result("bert-99", "Offline", 25000.5 + number, "samples/s"),
    ]
    if number == 2:
        results[2] = result(
            "bert-99", "Offline", None, "", valid=False, remarks=("run_1: LoadGen calls it INVALID",)
        )
    told = {
        "round": "v5.1", "suite": "datacenter", "division": "closed", "submitter": SUBMITTERS[number % 3],
        "system": f"box_{number}", "model": "", "machine": machine, "results": tuple(results),
        "details": f"closed/x/results/box_{number}", "code": "", "remarks": (),
    } | more  # fmt: skip
    return Row(**told)  # type: ignore[arg-type]


def rows_of_a_round() -> Gathered:
    machine = Machine("Jetson", "available", ("edge",), 1, "Arm", 1, "8", "Orin", 1, "TensorRT", "Ubuntu", "")
    streams = (
        result("resnet", "SingleStream", 0.497828, "ms", power=Power(12.25, "mJ/query")),
        result("resnet", "MultiStream", 3.5, "ms", inferred_from="SingleStream"),
    )
    edge = {"suite": "edge", "machine": machine}
    rows = [row(number) for number in range(40)]
    rows += [row(40, results=streams, **edge), row(41, division="open", model="own-net", **edge)]
    return Gathered(tuple(rows), ())


def hostile_rows() -> Gathered:
    machine = Machine(
        EVIL, EVIL_NAME, ("datacenter",), 1, EVIL, 1, EVIL, EVIL, 8, EVIL, EVIL, "<!--<script>\u2028"
    )
    one = result(EVIL, EVIL_NAME, 5.25, EVIL_NAME, accuracy={EVIL: "5"}, metric=EVIL, remarks=(EVIL,),
                 weight_data_types=EVIL, inferred_from=EVIL)  # fmt: skip
    told = {"round": EVIL, "division": EVIL_NAME, "submitter": EVIL, "system": EVIL, "model": EVIL}
    told |= {"details": "javascript%3Awindow.hit=1", "code": "open/%3Csvg%3E"}
    return Gathered((row(0, machine=machine, results=(one,), remarks=(EVIL,), **told),), (EVIL,))


class OpenedTable(Opened):
    """The results page."""

    def systems(self) -> list[str]:
        return self.page.locator("tr.row .who .under").all_inner_texts()

    def column(self, number: int) -> list[str]:
        return self.page.locator(f"tr.row td:nth-of-type({number})").all_inner_texts()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "results.html"
    path.write_text(as_page(rows_of_a_round()), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, made: Path) -> Iterator[OpenedTable]:
    one = OpenedTable(browser, made, DESKTOP)
    yield one
    one.close()


def test_a_table_shows_its_suite_and_division_by_category_with_units(opened: OpenedTable) -> None:
    page = opened.page
    tabs = page.locator("#tabs button").all_inner_texts()
    assert tabs == ["Datacenter · Closed40", "Edge · Closed1", "Edge · Open1"]
    assert page.locator("tr.category").all_inner_texts() == ["Available · 34", "Preview · 6"]
    assert page.locator("th.bench").all_inner_texts() == ["bert-99", "resnet"]
    assert page.locator("thead .unit").all_inner_texts() == ["samples/s", "queries/s", "samples/s"]
    assert page.locator("td.num", has_text="INVALID").count() == 1
    assert "8 × NVIDIA" in page.locator("tr.row").first.inner_text()
    page.get_by_role("button", name="Edge · Closed").click()
    assert opened.column(4)[0] == "0.4978\n12.25 mJ/query" and opened.column(5)[0].startswith("3.500")
    assert (
        page.locator(".mark.inferred", has_text="i").first.get_attribute("title")
        == "inferred from SingleStream"
    )


def test_a_column_sorts_both_ways_by_value_with_the_empty_last(opened: OpenedTable) -> None:
    page = opened.page
    server = page.get_by_role("columnheader", name="Server").get_by_role("button")
    numbers = [float(text.replace(",", "")) for text in opened.column(6)[:34]]
    assert numbers != sorted(numbers)
    for direction, back in (("descending", True), ("ascending", False)):
        server.click()
        numbers = [float(text.split("\n")[0].replace(",", "")) for text in opened.column(6)[:34]]
        assert numbers == sorted(numbers, reverse=back)
        assert page.get_by_role("columnheader", name="Server").get_attribute("aria-sort") == direction
    bert = page.locator("thead tr:nth-child(2) .sort").first
    for _ in range(2):
        bert.click()
        assert opened.column(5)[33].startswith("INVALID")
    page.get_by_role("button", name="System", exact=True).click()
    assert opened.systems()[:3] == [f"Box {n} (8x H200-SXM-141GB, TensorRT)" for n in (0, 1, 2)]
    assert opened.systems()[9].startswith("Box 11 ")  # 3 and 10 are previews: by number, not by letter


def test_text_and_choices_filter_rows_and_columns_and_reset_brings_all_back(opened: OpenedTable) -> None:
    page = opened.page
    page.fill("#text", "söhne BOX_4")
    page.locator("#count", has_text="1 row,").wait_for()
    assert opened.systems() == ["Box 4 (8x H200-SXM-141GB, TensorRT)"]
    page.fill("#text", "nothing like it")
    page.wait_for_selector("#none:not([hidden])")
    page.click("#clear")
    assert len(opened.systems()) == 40
    page.select_option("#submitter", "Zeta")
    page.select_option("#benchmark", "resnet")
    page.select_option("#scenario", "Offline")
    assert page.locator("thead .unit").count() == 1 and len(opened.systems()) == 13
    assert page.inner_text("#count") == "13 rows, 13 results"
    page.select_option("#category", "preview")
    assert page.locator("tr.category").all_inner_texts() == ["Preview · 2"]
    page.click("#clear")
    page.check("#power")
    assert page.locator("th.bench").all_inner_texts() == ["resnet"]
    page.check("#accuracy")
    assert "acc 76.456" in page.locator("tr.row").first.inner_text()


def test_details_open_and_close_by_keyboard_and_keep_the_focus(opened: OpenedTable) -> None:
    page = opened.page
    button = page.locator("tr.row", has_text="Box 2 (").locator(".open")
    button.focus()
    page.keyboard.press("Enter")
    inner = page.locator("tr.more")
    assert button.get_attribute("aria-expanded") == "true" and inner.count() == 1
    assert page.evaluate("document.activeElement.className") == "open"
    for words in ("H200 TGP 700W", "6 × INTEL(R)", "LoadGen calls it INVALID", "acc 76.456", "6,202.50 W"):
        assert words in inner.inner_text()
    assert inner.get_by_role("link", name="details").get_attribute("href") == "closed/x/results/box_2"
    page.keyboard.press(" ")
    assert inner.count() == 0
    page.locator("thead .sort").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "System"


def test_the_header_and_the_first_column_stay_while_the_table_scrolls(opened: OpenedTable) -> None:
    before, after = opened.page.evaluate("""() => {
        const frame = document.getElementById("frame");
        const top = (one) => Math.round(one.getBoundingClientRect().top);
        const place = () => [...document.querySelectorAll("thead th")].map((head) => top(head) - top(frame));
        const before = place();
        frame.scrollTop = 700;
        return [before, place()];
    }""")
    assert before == after and opened.page.evaluate("document.getElementById('frame').scrollTop") > 300


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_the_window_of_a_desktop_and_of_a_phone_in_light_and_dark(
    browser: Browser, made: Path, artifacts: Path, size: ViewportSize, dark: bool
) -> None:
    opened = OpenedTable(browser, made, size, dark)
    page = opened.page
    name = f"results-{'phone' if size is PHONE else 'desktop'}-{'dark' if dark else 'light'}"
    assert not opened.wider_than_window()
    page.screenshot(path=artifacts / f"{name}.png")
    if size is PHONE:
        page.get_by_role("button", name="Filters").click()
        assert page.locator("#benchmark").is_visible()
    page.locator(".open").first.click()
    assert not opened.wider_than_window()
    page.screenshot(path=artifacts / f"{name}-open.png")
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    )
    assert (red + green + blue < 3 * 80) == dark
    opened.close()


def test_the_colours_can_be_chosen(opened: OpenedTable) -> None:
    page = opened.page
    colours = []
    for _ in range(3):
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.click("#theme")
    assert colours[0] == colours[1] != colours[2] and page.inner_text("#theme") == "Auto"


def test_names_from_a_tree_are_text_and_never_markup_or_code(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "evil.html"
    path.write_text(as_page(hostile_rows()), encoding="utf-8")
    opened = OpenedTable(browser, path, DESKTOP)
    page = opened.page
    page.locator(".open").click()
    page.locator("thead .sort").last.click()
    assert page.evaluate("window.hit") is None
    assert page.locator("img, svg, iframe").count() == 0 and page.locator("script").count() == 2
    assert page.locator("tr.row .who strong").inner_text() == EVIL
    assert page.locator("th.bench").inner_text() == EVIL
    links = page.locator("a").evaluate_all("(all) => all.map((one) => one.protocol)")
    assert set(links) == {"file:"}
    opened.close()


def test_what_is_not_the_pages_own_script_does_not_run(browser: Browser, made: Path, tmp_path: Path) -> None:
    """The policy in the page holds even where somebody adds to it."""
    path = tmp_path / "changed.html"
    path.write_text(made.read_text(encoding="utf-8") + "<script>window.hit=1</script>", encoding="utf-8")
    opened = OpenedTable(browser, path, DESKTOP)
    assert opened.page.evaluate("window.hit") is None and len(opened.systems()) == 40
    assert "Content Security Policy" in opened.complaints.pop()
    opened.close()
