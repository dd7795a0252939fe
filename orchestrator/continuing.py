"""One manifest of a campaign, gone on with: what is done is kept, the rest makes room and runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.campaign_files import Campaign, Ended, found_in
from orchestrator.manifest import Manifest
from orchestrator.paths import RunPaths
from orchestrator.phrases import plural
from orchestrator.plan import TestSpec
from orchestrator.prepare import open_library
from orchestrator.present import present_of
from orchestrator.record import Record
from orchestrator.resume import reasons_to_run
from orchestrator.watching import Watcher
from workers.library import Library


@dataclass
class Kept:
    """What a campaign has of one manifest: the records that stay, the tests that are left to run."""

    campaign: Campaign
    manifest: Manifest
    specs: Sequence[TestSpec]
    held: ExitStack
    left: Sequence[TestSpec]
    run: RunPaths | None = None
    library: Library | None = None
    done: dict[str, Record] = field(default_factory=dict)

    def begin(self) -> RunPaths:
        """The run's folder, locked, in which the place of every test that is left is free.

        Last tests first: a compliance test leaves before the tests that it was compared with, so a kill
        between two steps never leaves a verdict on logs that have been replaced.
        """
        if self.run is None:
            folder = self.campaign.begin(self.manifest, [spec.name for spec in self.specs])
            self.run = self.held.enter_context(self.campaign.writing(folder))
        for spec in reversed(self.left):
            self.run.test(spec.name).set_aside()
        return self.run

    @property
    def folder(self) -> Path:
        """The run's folder, once it is known."""
        assert self.run is not None
        return self.run.root

    def end(self, ran: Sequence[Record]) -> list[Record]:
        """Tell the campaign how it ended; all records, in the plan's order."""
        known = self.done | {record.test: record for record in ran}
        records = [known[spec.name] for spec in self.specs if spec.name in known]
        not_run = [spec.name for spec in self.specs if spec.name not in known]
        folder = None if self.run is None else self.run.root
        ended = Ended(self.manifest.name, folder, records, frozenset(self.done), not_run)
        self.campaign.ended.append(ended)
        return records


def kept_of(
    campaign: Campaign, manifest: Manifest, specs: Sequence[TestSpec], watcher: Watcher, held: ExitStack
) -> Kept:
    """Look up what is done of a manifest, and say what is kept and what runs again; moves nothing yet.

    `held` gets the lock on the run's folder.
    """
    kept = Kept(campaign, manifest, specs, held, specs)
    folder = campaign.folder_of(manifest)
    if folder is None:
        if campaign.has_run(manifest):
            watcher.warned(f"{manifest.name} has changed: all its tests run again, in a folder of their own")
        elif campaign.resumed and specs:
            watcher.warned(f"all tests of {manifest.name} run: the campaign had not begun it")
        return kept
    kept.run = held.enter_context(campaign.writing(folder))
    found = found_in(folder, specs)
    if not found:
        _tell_new(kept.run, [spec.name for spec in specs], watcher)
        return kept
    kept.library = open_library(manifest, watcher)
    why = reasons_to_run(specs, found, present_of(manifest, kept.library))
    kept.left = [spec for spec in specs if spec.name in why]
    kept.done = {name: there.record for name, there in found.items() if name not in why and there.record}
    if kept.done:
        watcher.warned(f"{plural(len(kept.done), 'test')} done before: {', '.join(kept.done)}, in {folder}")
    for name, reason in why.items():
        if reason:
            watcher.warned(f"{name} runs again: {reason}")
    _tell_new(kept.run, [name for name, reason in why.items() if not reason], watcher)
    return kept


def _tell_new(run: RunPaths, names: Sequence[str], watcher: Watcher) -> None:
    """Why tests without a record run: some were begun and never ended, the others not begun."""
    begun = [name for name in names if run.test(name).partial.exists()]
    never = [name for name in names if name not in begun]
    for tests, again, why in ((begun, " again", "had begun and never ended"), (never, "", "had not begun")):
        if tests:
            run_s, it = ("runs", "it") if len(tests) == 1 else ("run", "they")
            watcher.warned(f"{', '.join(tests)} {run_s}{again}: {it} {why}")
