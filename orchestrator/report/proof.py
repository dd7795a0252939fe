"""Whether a record says what LoadGen's logs beside it say: anybody can edit a record, so a page looks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.logs import LogError, read_detail
from orchestrator.paths import DETAIL, SUMMARY
from orchestrator.phrases import Verdict, result_key, verdict
from orchestrator.record import Record
from orchestrator.submission.copying import sha256_of
from orchestrator.submission.proven import differences
from orchestrator.submission.refusal import SubmitError
from orchestrator.verdict import value_of


@dataclass(frozen=True)
class Proof:
    """What was compared with a record, `logs` by name, and `doubts`: where it does not fit them."""

    logs: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What a reader may rely on."""
        if not self.logs:
            return "Not compared with LoadGen's logs: they do not lie beside the record."
        if self.doubts:
            return "The record does not fit the logs beside it."
        return f"The record fits the logs beside it: {' and '.join(self.logs)}."


def proof_of(record: Record, folder: Path) -> Proof:
    """Compare the record of a test's folder with LoadGen's detail log and summary, where they lie there."""
    logs = tuple(name for name in (DETAIL, SUMMARY) if os.path.lexists(folder / name))
    doubts = [*_own_doubts(record), *(text for name in logs for text in _changed(record, folder, name))]
    if DETAIL in logs and not (folder / DETAIL).is_symlink():
        doubts += _otherwise(record, folder / DETAIL)
    return Proof(logs, tuple(doubts))


def verdict_of(record: Record, proof: Proof) -> Verdict:
    """The record's verdict, unless the record does not fit its logs."""
    if not proof.doubts:
        return verdict(record)
    words = f"The record says {verdict(record).word}, and it is not to be believed:"
    return Verdict("DOUBTED", "red", words, proof.doubts)


def _own_doubts(record: Record) -> Iterator[str]:
    if record.official and record.unofficial_because:
        yield "it calls itself official and names reasons why it is not"


def _changed(record: Record, folder: Path, name: str) -> Iterator[str]:
    digest = record.files.get(name)
    if digest is None:
        yield f"it names no sha256 of {name}, which lies beside it"
        return
    try:
        if sha256_of(folder / name) != digest:
            yield f"{name} is not the file whose sha256 it names"
    except (SubmitError, OSError) as error:
        yield f"{name} cannot be read: {error}"


def _otherwise(record: Record, detail_log: Path) -> Iterator[str]:
    """What `loadgrid submit` would refuse, as far as it can be told without the manifest."""
    if record.status != "finished":
        return
    try:
        detail = read_detail(detail_log)
    except LogError as error:
        yield str(error)
        return
    told, key = record.result, result_key(record)
    value = value_of(record.scenario, key, detail) if key else told.value
    yield from differences(told, detail.valid, value, told.metric, told.unit)
    if told.percentiles_ms != detail.percentiles_ms():
        yield f"its percentiles are not those of {DETAIL}"
