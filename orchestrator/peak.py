"""The highest rate that a manifest's Server holds (or MultiStream's samples a query): probed, then confirmed.

Probes are short LoadGen tests in one run folder, none of them official. What they find is tested at full
length, in run folders of their own, as `loadgrid run` would of a manifest that has the value; only such tests
make a result, and all that a campaign has count, whichever program asked for them (peak_history). Every test
is asked for by a pure policy (peak_search), so a search that was killed asks for the same ones again: those
with a record that still counts are not repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field, replace

from orchestrator.campaign import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_VALID,
    Session,
    SetUpError,
)
from orchestrator.campaign_files import Campaign, found_in
from orchestrator.cluster import ClusterError
from orchestrator.continuing import kept_of
from orchestrator.manifest import Manifest
from orchestrator.manifest_power import PowerSection
from orchestrator.paths import RunPaths
from orchestrator.peak_history import Found, Row, settle, tests_before
from orchestrator.peak_manifest import Batching, alternatives, batching_of, further, manifest_at
from orchestrator.peak_probe import (
    is_hopeless,
    limit_ms,
    own_value,
    performance_spec,
    probe_manifest,
    probe_of,
    refuse_too_few,
    scenario_of,
    seen_of,
    trouble_of,
    warm_capacity,
)
from orchestrator.peak_search import CONFIRMATIONS, Confirmation, PeakSearch, capacity_of, rounded
from orchestrator.plan import TestSpec
from orchestrator.prepare import open_library
from orchestrator.present import Present, present_of
from orchestrator.record import Record
from orchestrator.report.write import report_of_run
from orchestrator.resume import changes
from orchestrator.rules import load_round
from orchestrator.stop import Stop
from orchestrator.watching import Watcher
from workers.library import Library

PROBES = 12
PEAK_NAME = "-peak"
MOST_SAMPLES = 10**6  # samples a query, the manifest's bound
UNKNOWN_QPS = 1000.0  # where a manifest names no rate; LoadGen's own word is 1
GAIN = 1.03  # other batches must hold so much more than the best so far
RISE_OF_OTHER = 1.25  # what they may gain beyond is seldom much


class Ended(Exception):
    """The search is over before its end; the text says why."""


@dataclass
class Workers:
    """The session that tests run in: begun when the first test must, anew where its workers would differ."""

    address: str
    watcher: Watcher
    stop: Stop
    library: Library
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _session: Session | None = None

    def run(self, manifest: Manifest, spec: TestSpec, run: RunPaths, power: PowerSection | None) -> Record:
        """Run one test of a manifest on workers as it has them."""
        session = self._session
        if session is None or session.manifest.workers != manifest.workers:
            self.close()
            session = Session(
                manifest, self.address, self.watcher, self.stop, (spec,), manifest.power, self.library
            )
            self._session = self._held.enter_context(session)
        session.manifest, session.power = manifest, power
        return session.run(spec, run)

    def close(self) -> None:
        """Let the workers go."""
        self._session = None
        self._held.close()


class Peak:
    """One search: `find()` plays it to its end, whatever that is."""

    def __init__(
        self, manifest: Manifest, campaign: Campaign, address: str, watcher: Watcher, stop: Stop, probes: int
    ) -> None:
        self.manifest, self.campaign, self.watcher, self.stop = manifest, campaign, watcher, stop
        self.scenario = scenario_of(manifest)
        self.probes = probes
        self._full = performance_spec(manifest, self.scenario)
        old = load_round(manifest.round).fixed_interval_multistream and manifest.loadgen.path is not None
        self.found = Found(
            self.scenario, batching_of(manifest), not old, self._full.result_key, CONFIRMATIONS
        )
        first = probe_manifest(manifest, self.scenario, self._first().start, self.found.usual)
        refuse_too_few(manifest, probe_of(first, self.scenario, self.found.usual, 0), not old)
        self._library = open_library(manifest, watcher)
        self._workers = Workers(address, watcher, stop, self._library)
        self._held = contextlib.ExitStack()
        self._present: Present | None = None

    def find(self, tune: bool) -> Found:
        """Search, with other batches too if it is to `tune`, and confirm; SetUpError if it cannot begin."""
        found = self.found
        with self._held, contextlib.closing(self._workers), self.stop.patience():
            run = self._folder(self.manifest.model_copy(update={"name": f"{self.manifest.name}{PEAK_NAME}"}))
            found.folder = run.root
            found.full += tests_before(
                self.campaign, self.manifest, self.scenario, self._now, not found.early_stopping
            )
            for folder in dict.fromkeys(row.folder.parent for row in found.full):
                # It is taken: a further test of its value gets another.
                self._held.enter_context(self.campaign.writing(folder))
            try:
                search = self._search(run, found.usual, self._first())
                if tune and search.low:
                    search = self._tune(run, search)
                if search.low:
                    self._confirm(search)
            except Ended as error:
                found.trouble = str(error)
            settle(found, self.manifest)
            found.exit_code = EXIT_VALID if found.confirmed else EXIT_INVALID
            if found.trouble:
                found.exit_code = EXIT_INTERRUPTED if self.stop() else EXIT_FAILED
        return found

    def _first(self) -> PeakSearch:
        value = own_value(self._full)
        if self.scenario != "Server":
            return PeakSearch(value, MOST_SAMPLES, whole=True)
        known = self.manifest.conf_words("Server").get("target_qps")
        return PeakSearch(float(known or UNKNOWN_QPS))

    def _folder(self, manifest: Manifest) -> RunPaths:
        """The run folder of a manifest in this campaign, locked; a new one where there is none."""
        return kept_of(self.campaign, manifest, (), self.watcher, self._held).begin()

    # -- probes --------------------------------------------------------------------------------------------

    def _search(self, run: RunPaths, batching: Batching, search: PeakSearch) -> PeakSearch:
        """Probe until the search is over, or no probe is left."""
        while self._probes_left() and (value := search.next()) is not None:
            row = self._probe(run, batching, value)
            search.add(row.seen)
            search.hint = self._hint(row)
            if batching == self.found.usual or search.low > self.found.low:
                self.found.low, self.found.high, self.found.batching = search.low, search.high, batching
        return search

    def _probes_left(self) -> int:
        return self.probes - len(self.found.probes)

    def _hint(self, row: Row) -> float | None:
        """The value at which nothing is left: by the warm-up; in MultiStream twice that of the interval."""
        if self.scenario == "Server":
            return warm_capacity([row.record])
        room = row.seen.room
        return 2 * row.seen.value / (2 - room) if room is not None and room < 2 else None

    def _probe(self, run: RunPaths, batching: Batching, value: float) -> Row:
        changed = probe_manifest(self.manifest, self.scenario, value, batching)
        probes = self.found.probes
        tries = sum(row.seen.value == value and row.batching == batching for row in probes)
        spec = probe_of(changed, self.scenario, self.found.usual, tries)
        row = self._test(changed, spec, run, batching)
        probes.append(row)
        return row

    def _tune(self, run: RunPaths, best: PeakSearch) -> PeakSearch:
        """Try other batches a little above the edge; where they hold, search on with them."""
        batching = self.found.usual
        left = alternatives(batching, limit_ms(self._full))
        while left:
            other = left.pop(0)
            if not self._probes_left():
                self.found.not_tried += [each.words(self.found.usual) for each in (other, *left)]
                break
            start = best.low + 1 if best.whole else rounded(GAIN * best.low)
            search = PeakSearch(start, best.most, best.whole, hint=best.hint, rise=RISE_OF_OTHER)
            try:
                row = self._probe(run, other, start)
            except (SetUpError, ClusterError) as error:
                self.watcher.warned(f"{other.words(self.found.usual)} is not tried: {error}")
                continue
            search.add(row.seen)
            if not row.seen.held:
                continue
            left = further(batching, other, left)
            best, batching = self._search(run, other, search), other
        self.found.low, self.found.high, self.found.batching = best.low, best.high, batching
        return best

    # -- confirmation --------------------------------------------------------------------------------------

    def _confirm(self, search: PeakSearch) -> None:
        """Tests of full length, the first at what the probes passed, until a value is confirmed."""
        found, batching = self.found, self.found.batching or self.found.usual
        # The campaign has so many in all, those of other batches and of earlier programs among them.
        same = [row.seen for row in found.full if row.batching == batching]
        most = CONFIRMATIONS - len(found.full) + len(same)
        capacity = capacity_of(search.seen) or search.hint
        confirmation = Confirmation(search.low, capacity, search.whole, up=search.closed, most=most)
        confirmation.failed, confirmation.seen = search.high, same
        while (value := confirmation.next()) is not None:
            made = manifest_at(self.manifest, self.scenario, value, batching)
            spec = performance_spec(made, self.scenario)
            folder = self.campaign.folder_of(made) or self.campaign.begin(made)
            run = self._held.enter_context(self.campaign.writing(folder))
            row = self._test(made, spec, run, batching, confirms=True)
            confirmation.add(row.seen)
            found.full.append(row)
            settle(found, self.manifest)
            report_of_run(row.folder.parent, self.watcher.warned)

    # -- one test ------------------------------------------------------------------------------------------

    def _test(
        self, manifest: Manifest, spec: TestSpec, run: RunPaths, batching: Batching, confirms: bool = False
    ) -> Row:
        """The row of a test: from a record that still counts, or run now; Ended if it tells nothing."""
        record = self._done(manifest, spec, run)
        before = record is not None
        if record is None:
            if reason := self.stop():
                raise Ended(reason)
            record = self._workers.run(manifest, spec, run, manifest.power if confirms else None)
        if trouble := trouble_of(record, manifest, self._first_record()):
            raise Ended(f"{spec.name}: {trouble}")
        folder = run.test(spec.name).final
        seen = seen_of(record, spec, folder, self.found.early_stopping)
        return Row(record, folder, seen, batching, confirms, before)

    def _first_record(self) -> Record | None:
        """The search's first test, on whose workers all others must run."""
        return next((row.record for row in self.found.rows), None)

    def _done(self, manifest: Manifest, spec: TestSpec, run: RunPaths) -> Record | None:
        """The record of a test that was run before and still counts; what does not count makes room."""
        there = found_in(run.root, [spec]).get(spec.name)
        if there is None:
            return None
        if there.record is None:
            why = there.trouble
        else:
            known = self._with_loadgen(there.record)
            trouble = trouble_of(known, manifest, self._first_record())
            why = trouble or "; ".join(changes(spec, known, self._now(manifest))) or there.trouble
            if not why:
                return there.record
        self.watcher.warned(f"{spec.name} runs again: {why}")
        run.test(spec.name).set_aside()
        return None

    def _with_loadgen(self, record: Record) -> Record:
        """A test that was ended early could not say which LoadGen it had: the installed one, if no other.

        That it is of the same version is among the versions that every record has.
        """
        if not is_hopeless(record) or self.manifest.loadgen.path is not None:
            return record
        sha256 = self._now(self.manifest).loadgens[""]
        return record.model_copy(update={"loadgen": {**record.loadgen, "sha256": sha256}})

    def _now(self, manifest: Manifest) -> Present:
        """What a test of a manifest would run on now; weights and code are looked at once."""
        if self._present is None:
            self._present = present_of(self.manifest, self._library)
        return replace(self._present, manifest=hashlib.sha256(manifest.raw).hexdigest())
