"""How far something untimed is, before any test: opening or preparing a data set, loading models. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.spinner import Spinner
from rich.text import Text

from orchestrator.phrases import bar, clock, duration, plural, size
from workers.library_reader import CHECKING, CONTINUING, PREPARING, WAITING

BAR_CELLS = 30
CALIBRATING = "calibrating"  # a step that no library knows
# A guess from less is wild.
FEWEST_FOR_GUESS = 20


@dataclass
class Preparing:
    """Something slow: `what`, begun at `began_s`; `heard` takes a library's words about its steps."""

    what: str
    began_s: float
    step: str = ""
    done: int = 0
    total: int = 0
    _step_began_s: float = 0.0
    _done_before: int = 0

    def heard(self, step: str, done: int, total: int, now_s: float) -> bool:
        """Note how far a step is; True if another one begins of which a log says so at once."""
        new = step != self.step
        if new:
            self._step_began_s, self._done_before = now_s, done
        self.step, self.done, self.total = step, done, total
        return new and step in (WAITING, PREPARING)

    def words(self, now_s: float) -> str:
        """The step, how far it is, and how long it may still take."""
        return ", ".join(self._parts(now_s))

    def _parts(self, now_s: float) -> Iterator[str]:
        done, total = self.done, self.total
        if self.step == WAITING:
            yield "another process prepares it: waiting"
        elif self.step == CHECKING:
            yield f"{size(done)} of {size(total)} checked"
        elif self.step == CONTINUING:
            yield f"{done:,} of {plural(total, 'sample')} kept from an earlier prepare"
        elif self.step == PREPARING:
            yield f"{done:,} of {plural(total, 'sample')}"
        elif self.step == CALIBRATING:
            yield f"{done:,} of {plural(total, 'step')}"
        else:
            yield f"{plural(total, 'sample')} written"
        left_s = self._left_s(now_s)
        if left_s:
            yield f"about {duration(left_s)} left"

    def _left_s(self, now_s: float) -> float | None:
        passed_s, made = now_s - self._step_began_s, self.done - self._done_before
        fewest = FEWEST_FOR_GUESS if self.step == PREPARING else 1
        if made < min(fewest, self.total // 10 or 1) or self.total <= self.done or passed_s < 1:
            return None
        return passed_s * (self.total - self.done) / made

    def view(self, now_s: float, extra: str = "") -> RenderableType:
        """What a terminal shows: a line that turns, and a bar where the end is known."""
        line = Spinner("dots", Text(f"preparing {self.what}{extra}  {clock(now_s - self.began_s)}"))
        if not self.step:
            return line
        told = Text(f" {self.words(now_s)}")
        if self.total:
            told = Text.assemble((bar(self.done / self.total, BAR_CELLS), "cyan on grey23"), told)
        return Group(line, told)
