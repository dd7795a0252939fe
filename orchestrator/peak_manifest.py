"""Manifests with other values: those that probes are planned from, and the file that holds what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.manifest import Manifest, parse_manifest
from orchestrator.manifest_fields import PACKAGE_PREFIX, PATH_OPTIONS

WORDS = {"Server": "target_qps", "MultiStream": "samples_per_query"}
MOST_BATCH = 65536  # the manifest's bound
NAME_LETTERS = 90  # of 100 that a name may have
SUFFIX = "-at-peak"
# How much a deadline may take of the latency limit, where the manifest has none.
DEADLINE_SHARE = 0.05


@dataclass(frozen=True)
class Batching:
    """The fields that decide how large batches get; how much a worker holds beside is no field."""

    max_batch: int
    batch_deadline_ms: float

    def words(self, usual: Batching) -> str:
        """What is not as in the manifest, as a folder's name can have it; nothing where all is."""
        batch = f"batch{self.max_batch}" if self.max_batch != usual.max_batch else ""
        other = self.batch_deadline_ms != usual.batch_deadline_ms
        deadline = f"deadline{self.batch_deadline_ms:g}ms" if other else ""
        return "-".join(part for part in (batch, deadline) if part)


def batching_of(manifest: Manifest) -> Batching:
    """As the manifest has it."""
    return Batching(manifest.workers.max_batch, manifest.workers.batch_deadline_ms)


def alternatives(now: Batching, limit_ms: float) -> list[Batching]:
    """What may hold more: batches of twice and of half the size, and a deadline where there is none."""
    sizes = [size for size in (2 * now.max_batch, now.max_batch // 2) if 1 <= size <= MOST_BATCH]
    deadline_ms = 0.0 if now.batch_deadline_ms else float(f"{DEADLINE_SHARE * limit_ms:.2g}")
    return [
        *(Batching(size, now.batch_deadline_ms) for size in sizes),
        Batching(now.max_batch, deadline_ms),
    ]


def further(before: Batching, better: Batching, left: list[Batching]) -> list[Batching]:
    """What to try when `better` holds more than `before`: the same step again, then what is left."""
    if better.max_batch == before.max_batch:
        return []
    again = better.max_batch**2 // before.max_batch
    deadlines = [each for each in left if each.max_batch == before.max_batch]
    return [
        *([Batching(again, better.batch_deadline_ms)] if 1 <= again <= MOST_BATCH else []),
        *(Batching(better.max_batch, each.batch_deadline_ms) for each in deadlines),
    ]


def with_value(manifest: Manifest, scenario: str, words: dict[str, Any], batching: Batching) -> Manifest:
    """The manifest with other words of a scenario and other batches; its file and bytes stay."""
    own = getattr(manifest.loadgen, scenario).model_copy(update=words)
    loadgen = manifest.loadgen.model_copy(update={scenario: own})
    changed = vars(batching) if batching != batching_of(manifest) else {}
    workers = manifest.workers.model_copy(update=changed)
    return manifest.model_copy(update={"loadgen": loadgen, "workers": workers})


def manifest_at(manifest: Manifest, scenario: str, value: float, batching: Batching) -> Manifest:
    """A manifest of its own, bytes and all, that holds these values; its paths are absolute.

    The same for the same values, whenever and wherever it is made.
    """
    made = with_value(manifest, scenario, {WORDS[scenario]: value}, batching)
    body = made.model_dump(mode="json", exclude_unset=True)
    body = {"name": f"{manifest.name[:NAME_LETTERS]}{SUFFIX}"} | {
        k: v for k, v in body.items() if k != "name"
    }
    resolve_paths(manifest, body)
    head = f"# What loadgrid peak found for {json.dumps(manifest.path.name)}: {scenario} at {value:.10g}.\n"
    text = head + "\n".join(_lines(body, "")) + "\n"
    return parse_manifest(text.encode(), manifest.path)


def resolve_paths(manifest: Manifest, body: dict[str, Any]) -> None:
    """Make every path in a manifest's dumped body absolute: the file lies in another folder."""
    folder = manifest.path.absolute().parent
    places = [(body["task"], key) for key in PATH_OPTIONS]
    places += [(body["backend"], "weights"), (body["backend"], "scales"), (body.get("loadgen", {}), "path")]
    for section, key in places:
        if isinstance(section.get(key), str) and section[key]:
            section[key] = manifest.resolve(section[key])
    power = body.get("power") or {}
    for key in ("client", "documents"):
        if key in power:  # of the client's words only those that name a file there
            power[key] = [_resolved(manifest, folder, word, key == "documents") for word in power[key]]


def _resolved(manifest: Manifest, folder: Path, word: str, is_path: bool) -> str:
    if is_path or (not word.startswith(PACKAGE_PREFIX) and "/" in word and (folder / word).exists()):
        return manifest.resolve(word)
    return word


def _lines(body: dict[str, Any], indent: str) -> Iterator[str]:
    """YAML of nested mappings: a field a line, every value as JSON has it, which is YAML."""
    for key, value in body.items():
        name = key if key.isidentifier() else json.dumps(key, ensure_ascii=False)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}"
