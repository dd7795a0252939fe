"""The evidence runs (manifests/evidence) as small packs for the tests: one tar.xz for every round.

Everything that LoadGrid wrote is kept, byte for byte: manifests, records, LoadGen's logs, verdicts. Accuracy
logs are the exception in form only: the echo backend's answers follow from the samples' indices, so a pack
holds the order of the samples, and the log is written again from it. Records name every file's sha256.

    python -m tests.evidence_packs RUNS   packs the run folders below RUNS into tests/evidence
"""

from __future__ import annotations

import io
import lzma
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from orchestrator.paths import ACCURACY_LOG, RECORD
from orchestrator.record import read_record

FOLDER = Path(__file__).resolve().parent / "evidence"
ORDER = "mlperf_log_accuracy.order"
# As loadgen/logging.cc writes an entry; the echo backend's answer is the index, 4 bytes.
ENTRY = '{ "seq_id" : %d, "qsl_idx" : %d, "data" : "%s" }'
_ENTRY = re.compile(rb'\{ "seq_id" : (\d+), "qsl_idx" : (\d+), "data" : "([0-9A-F]*)" \}')
# The last pack of a round is of some 10 MB before it is compressed: the window must hold all of it.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]


def order_of(log: bytes) -> bytes | None:
    """The order of an accuracy log's samples; None where the log does not follow from it."""
    found = _ENTRY.findall(log)
    pairs = np.array([(int(seq), int(index)) for seq, index, _ in found], np.int64).reshape(-1, 2)
    # The numbers of queries lie close together: their differences compress.
    steps = np.diff(pairs[:, 0], prepend=0).astype("<i4").tobytes()
    order = steps + pairs[:, 1].astype("<u4").reshape(-1, 1).view(np.uint8).T.tobytes()
    return order if log_of(order) == log else None


def log_of(order: bytes) -> bytes:
    """The accuracy log of an order."""
    half = len(order) // 2
    seqs = np.frombuffer(order[:half], "<i4").cumsum()
    indices = np.frombuffer(order[half:], np.uint8).reshape(4, -1).T.copy()
    answers = indices.tobytes().hex().upper()
    numbers = indices.view("<u4")[:, 0].tolist()
    entries = [
        ENTRY % (seq, index, answers[8 * i : 8 * i + 8])
        for i, (seq, index) in enumerate(zip(seqs.tolist(), numbers, strict=True))
    ]
    return ("[\n" + ",\n".join(entries) + "\n]\n").encode()


def pack(runs: list[Path], target: Path) -> None:
    """Write the run folders into one pack; names and contents alone decide its bytes."""
    with (
        lzma.open(target, "wb", format=lzma.FORMAT_XZ, filters=FILTERS) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, data in sorted(_contents(runs), key=lambda each: (Path(each[0]).name, each[0])):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _contents(runs: list[Path]) -> Iterator[tuple[str, bytes]]:
    for run in runs:
        for path in sorted(p for p in run.rglob("*") if p.is_file() and not p.is_symlink()):
            name = f"{run.name}/{path.relative_to(run)}"
            data = path.read_bytes()
            order = order_of(data) if path.name == ACCURACY_LOG and data else None
            yield (f"{Path(name).parent}/{ORDER}", order) if order else (name, data)


def unpack(source: Path, target: Path) -> list[Path]:
    """The run folders of a pack, below `target`."""
    found: set[str] = set()
    with tarfile.open(source, "r:xz") as archive:
        for entry in archive:
            file, path = archive.extractfile(entry), target / entry.name
            if file is None or ".." in path.parts:
                raise ValueError(f"{source} holds {entry.name}")
            data = file.read()
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name == ORDER:
                path, data = path.with_name(ACCURACY_LOG), log_of(data)
            path.write_bytes(data)
            found.add(path.relative_to(target).parts[0])
    return [target / name for name in sorted(found)]


def main(runs: Path) -> None:
    """Pack every finished run folder below `runs`, by round."""
    by_round: dict[str, list[Path]] = {}
    for folder in sorted({path.parent.parent for path in runs.rglob(RECORD)}):
        first = read_record(next(folder.glob(f"*/{RECORD}")))
        by_round.setdefault(first.round, []).append(folder)
    FOLDER.mkdir(exist_ok=True)
    for name, folders in by_round.items():
        target = FOLDER / f"{name}.tar.xz"
        pack(folders, target)
        print(f"{target.name}: {len(folders)} runs, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
