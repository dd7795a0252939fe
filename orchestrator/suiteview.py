"""A campaign of several manifests as people read it: one line each, and whether all of it is green."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from orchestrator.expectation import expected_s
from orchestrator.findings import Finding
from orchestrator.findings_manifest import REQUIRED_SCENARIO, lacking_compliance, missing_scenario_findings
from orchestrator.manifest import Manifest
from orchestrator.phrases import duration, plural
from orchestrator.plan import TestSpec
from orchestrator.planview import only_the_user, weights_held
from orchestrator.preflight import not_here
from orchestrator.rules import load_round
from orchestrator.tables import listed, plain_table, with_tests

Told = tuple[str, str]  # a text, and the manifest that it is about


@dataclass(frozen=True)
class Part:
    """One manifest of a campaign and its tests."""

    manifest: Manifest
    specs: Sequence[TestSpec]

    @property
    def place(self) -> tuple[str, str, str]:
        """Where its results belong together with others': round, suite, division."""
        return self.manifest.round, self.manifest.suite, self.manifest.division

    def broken(self) -> list[Finding]:
        """What its tests break, each once."""
        found = [f for spec in self.specs for f in spec.broken_rules if f.scope == "test"]
        return list({(f.rule, f.why): f for f in found}.values())


def show_campaign(title: str, parts: Sequence[Part], console: Console) -> bool:
    """Print the whole campaign; True if nothing in it breaks a rule and no scenario or run is missing.

    Compliance tests that are missing are told, and change no test: they count as no fault here.
    """
    broken = [(_told(f), part.manifest.name) for part in parts for f in part.broken()]
    missing = _missing(parts)
    console.print(Rule(Text(title, style="bold"), style="dim"))
    console.print(_table(parts))
    console.print()
    needs = only_the_user([part.manifest for part in parts])
    for text in (_total(parts), *_held(parts), *_absent(parts), *needs):
        console.print(Text(text))
    console.print()
    for part in _verdict(parts, broken, missing):
        console.print(part)
    if absent := not_here([part.manifest for part in parts]):
        console.print(Text(absent, style="yellow"))
        console.print()
    return not broken and not missing


def _table(parts: Sequence[Part]) -> Table:
    table = plain_table()
    for name in ("benchmark", "scenarios", "tests", "takes about", "rules"):
        table.add_column(name, justify="right" if name == "tests" else "left")
    incomplete = {name for _, name in _missing(parts)}
    for part in parts:
        rules = sorted({finding.rule for finding in part.broken()})
        if rules:
            told = Text(f"broken: {', '.join(rules)}", style="red")
        elif part.manifest.name in incomplete:
            told = Text("scenarios missing", style="yellow")
        else:
            told = Text("green", style="green")
        seconds = sum(s for spec in part.specs if (s := expected_s(spec)) is not None)
        scenarios = ", ".join(part.manifest.scenarios)
        table.add_row(part.manifest.benchmark, scenarios, str(len(part.specs)), duration(seconds), told)
    return table


def _total(parts: Sequence[Part]) -> str:
    specs = [spec for part in parts for spec in part.specs]
    seconds = sum(s for spec in specs if (s := expected_s(spec)) is not None)
    tests = f"{plural(len(parts), 'manifest')}, {plural(len(specs), 'test')}, one after the other"
    return f"{tests}: about {duration(seconds)}, and what accuracy tests and loading models take."


def _held(parts: Sequence[Part]) -> Iterator[str]:
    """What weights take that may not fit, each once."""
    told = [(held, part.manifest.name) for part in parts if (held := weights_held(part.manifest))]
    for held in dict.fromkeys(held for held, _ in told):
        yield f"{', '.join(name for other, name in told if other == held)}: {held}."


def _missing(parts: Sequence[Part]) -> list[Told]:
    """What a submission needs besides: a required scenario may stand in another manifest of the campaign."""
    told = []
    for part in parts:
        manifest, found = part.manifest, load_round(part.manifest.round)
        others = {f.rule: f for spec in part.specs for f in spec.broken_rules if f.scope != "test"}
        others.pop(REQUIRED_SCENARIO, None)
        measured = {
            scenario
            for other in parts
            if (other.place, other.manifest.benchmark) == (part.place, manifest.benchmark)
            for scenario in other.manifest.scenarios
        }
        lacking = missing_scenario_findings(found, found.benchmark(manifest.benchmark), manifest, measured)
        told += [(_told(finding), manifest.name) for finding in [*others.values(), *lacking]]
    return told


def _lacking_compliance(parts: Sequence[Part]) -> list[Told]:
    """The compliance tests that the manifests do not run, though a submission needs them."""
    told = [(lacking_compliance(load_round(p.manifest.round), p.manifest), p.manifest.name) for p in parts]
    return [(text, name) for text, name in told if text]


def _absent(parts: Sequence[Part]) -> Iterator[str]:
    """Benchmarks of the suite that no manifest has: nobody must, but it may be meant."""
    for place in dict.fromkeys(part.place for part in parts):
        name, suite, division = place
        found = load_round(name)
        here = [part.manifest for part in parts if part.place == place]
        absent = [b for b in found.suite(suite) if b not in {m.benchmark for m in here}]
        where = f"round {name}, suite {suite}, division {division}"
        if absent:
            yield f"{where}: without {', '.join(absent)}, which a submission may leave out."
        else:
            yield f"{where}: every benchmark of the round that LoadGrid knows is here."


def _verdict(parts: Sequence[Part], broken: list[Told], missing: list[Told]) -> Iterator[RenderableType]:
    if broken:
        lines = with_tests(broken, len(parts))
        yield listed(f"{plural(len(lines), 'rule')} broken: those results would be unofficial", lines, "red")
    untested = _lacking_compliance(parts)
    if not broken and not missing:
        told = "no rule broken, no required scenario missing."
        text = f"Green so far: {told}" if untested else f"All green: {told}"
        yield Text(text, style="bold green")
    if missing or untested:
        lines = with_tests([*missing, *untested], len(parts))
        yield listed("Missing for a submission", lines, "yellow")
    yield Text()


def _told(finding: Finding) -> str:
    return f"{finding.rule}: {finding.why} ({finding.source})"
