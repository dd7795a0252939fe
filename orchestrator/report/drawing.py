"""Figures as small inline SVG in the page's own colours: Matplotlib draws, the page's variables colour."""

from __future__ import annotations

import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# The font cache of a read-only home is of no interest to somebody who reads a report.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
POINTS_PER_INCH = 72
WIDE = 200  # an axis that spans more has room for the powers of ten alone
WIDTH, HEIGHT = 480, 250  # so that its letters can still be read at the width of a phone
NAMES = ("ink", "soft", "line", "accent", "bad", "warn", "sheet", *(f"c{i}" for i in range(8)))
# Stand-ins that Matplotlib takes for colours; in the page they become its variables, light or dark.
COLOUR = {name: f"#0102{number:02x}" for number, name in enumerate(NAMES, 3)}
_BACK = {value: f"var(--{name})" for name, value in COLOUR.items()}
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a worker's name may hold any sign
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOUR["line"],
    "axes.labelcolor": COLOUR["soft"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOUR["line"],
    "grid.linewidth": 0.8,
    "text.color": COLOUR["ink"],
    "xtick.color": COLOUR["line"],
    "ytick.color": COLOUR["line"],
    "xtick.labelcolor": COLOUR["soft"],
    "ytick.labelcolor": COLOUR["soft"],
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.handlelength": 1.2,
}
KEPT = {"fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "fill-opacity", "stroke-opacity",
        "text-anchor", "stroke-linecap", "stroke-linejoin"}  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.\d+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)px")
_numbers = itertools.count()


@dataclass(frozen=True)
class Picture:
    """A figure: its title, what it shows in words for those who do not see it, and the SVG."""

    title: str
    words: str
    svg: str


def draw(title: str, words: str, paint: Callable[[Axes], None], height: int = HEIGHT) -> Picture:
    """What `paint` puts on the axes."""
    salt = f"loadgrid-{next(_numbers)}"  # so that no two figures of a page share an id
    with rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that Matplotlib's fonts lack is the browser's to draw
        figure = Figure(figsize=(WIDTH / POINTS_PER_INCH, height / POINTS_PER_INCH), layout="constrained")
        axes = figure.subplots()
        paint(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(title, words, _inline(file.getvalue(), f"{title}: {words}"))


def thin(value: float, _: object = None) -> str:
    """A number on an axis: 0.5, 20, 1,500, 25k, 3M."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:,g}"


def number_axes(axes: Axes, x: str, y: str, *, log: str = "") -> None:
    """Label both axes and let their ticks be few and short; `log` names those that are logarithmic."""
    for name, axis, label in (("x", axes.xaxis, x), ("y", axes.yaxis, y)):
        if name in log:
            getattr(axes, f"set_{name}scale")("log")
            low, high = axis.get_view_interval()
            subs = (1, 2, 5) if high < WIDE * low else (1,)
            axis.set_major_locator(LogLocator(subs=subs, numticks=12))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(5, integer="in flight" in label))
        axis.set_major_formatter(FuncFormatter(thin))
        axis.set_label_text(label)
    axes.grid(False, axis="x")


def _inline(text: str, words: str) -> str:
    """Matplotlib's file as a part of a page: no styles, no ids but those in use, no digits beyond sense."""
    for prefix, name in (("", SVG), ("xlink", XLINK)):
        ElementTree.register_namespace(prefix, name)
    # It was written by Matplotlib a moment ago.
    root = ElementTree.fromstring(text.encode())  # noqa: S314
    used = set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', text))
    ids = {name for pair in used for name in pair if name}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _tidy(element, ids)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", words)
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element, ids: set[str]) -> None:
    """One element: its style as attributes, which a policy without inline styles allows."""
    if element.get("id") not in ids:
        element.attrib.pop("id", None)
    for part in element.attrib.pop("style", "").split(";"):
        name, _, value = (word.strip() for word in part.partition(":"))
        if name in KEPT:
            element.set(name, value)
        elif name in ("font", "font-size") and (size := _SIZE.search(value)):
            element.set("font-size", size[1])
    for name, value in element.attrib.items():
        if value in _BACK:
            element.set(name, _BACK[value])
        elif name in ("d", "x", "y", "transform", "width", "height"):
            element.set(name, _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value))
    if element.text and not element.text.strip():
        element.text = None
    if element.tail and not element.tail.strip():
        element.tail = None
