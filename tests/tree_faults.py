"""Single faults of submission trees, not about logs: how each is made, and the rule that must see it.

`official` is what the round's official checker does about it, measured with v1.0.1, r1.1 and b66003e1
(tests/test_check_official.py measures it again where these are at hand).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.made_trees import MadeTree, change_json, write

OLD, NEW = "v1.0-datacenter", "v6.1-datacenter"
Break = Callable[[MadeTree], object]


@dataclass(frozen=True)
class Fault:
    """A fault of trees of one kind.

    `rules` are all that it must be seen by; `official` is the strictest that the first's findings say.
    """

    name: str
    kind: str
    rules: tuple[str, ...]
    official: str
    broken: Break


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def emptied(path: Path) -> None:
    for child in path.iterdir():
        remove(child)


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


def all_scenarios(tree: MadeTree, old: str, new: str) -> None:
    """Rename a scenario everywhere in the tree."""
    for folder in [p for p in tree.submission.rglob(old) if p.is_dir()]:
        rename(folder, new)
    for path in list(tree.submission.rglob(f"*_{old}.json")):
        rename(path, path.name.replace(f"_{old}.json", f"_{new}.json"))


def all_models(tree: MadeTree, new: str) -> None:
    for folder in [p for p in tree.submission.rglob(tree.kind.model) if p.is_dir()]:
        rename(folder, new)


def copy_scenario(tree: MadeTree, old: str, new: str) -> None:
    for folder in [p for p in tree.submission.rglob(old) if p.is_dir()]:
        shutil.copytree(folder, folder.with_name(new))
    for folder in [p for p in tree.submission.rglob(new) if p.is_dir()]:
        for path in folder.glob(f"*_{old}.json"):
            rename(path, path.name.replace(f"_{old}.json", f"_{new}.json"))


def sparse(path: Path, size_bytes: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size_bytes)


def system_with(**values: object) -> Break:
    return lambda tree: change_json(tree.system_json, **values)


def odd_faults(kind: str) -> Sequence[Fault]:
    """What no checker sees, whatever the round: names, kinds of files, sizes, wrong places."""
    told = (*_odd_names(), *_odd_places())
    return [Fault(name, kind, rules, "unseen", broken) for name, broken, rules in told]


def _fault(name: str, rule: str, broken: Break, *more: str) -> tuple[str, Break, tuple[str, ...]]:
    return name, broken, (rule, *more)


def _odd_names() -> Sequence[tuple[str, Break, tuple[str, ...]]]:
    return (
        _fault("a dotfile", "dotfile", lambda t: write(t.measurements() / ".DS_Store", "x")),
        _fault("a folder with a dot", "dotfile", lambda t: write(t.submission / ".cache" / "x", "x")),
        _fault("a link", "symlink", lambda t: (t.performance() / "mlperf_log_trace.json").symlink_to("/x")),
        _fault(
            "a linked folder", "symlink", lambda t: (t.submission / t.layout.code / "link").symlink_to("/")
        ),
        _fault(
            "a large file", "large-file", lambda t: sparse(t.submission / t.layout.code / "w", 50_000_001)
        ),
        _fault("a space", "space-in-name", lambda t: write(t.submission / t.layout.code / "a b.py", "x")),
        _fault("an umlaut", "odd-name", lambda t: write(t.submission / t.layout.code / "größe.py", "x")),
        _fault("a colon", "odd-name", lambda t: write(t.submission / t.layout.code / "a:b.py", "x")),
        _fault(
            "a name of other bytes",
            "odd-name",
            lambda t: write(t.submission / t.layout.code / "a\udcff", "x"),
        ),
        _fault("a long path", "long-path", lambda t: write(t.submission / t.layout.code / ("a" * 240), "x")),
        _fault(
            "names alike",
            "same-but-case",
            lambda t: (
                write(t.submission / t.layout.code / "run.py", "x"),
                write(t.submission / t.layout.code / "Run.py", "x"),
            ),
        ),
        _fault(
            "a leftover", "leftover", lambda t: write(t.submission / t.layout.code / "x.partial" / "y", "x")
        ),
        _fault("an editor's copy", "leftover", lambda t: write(t.submission / t.layout.code / "x.py~", "x")),
        _fault("a pipe", "no-plain-file", lambda t: os.mkfifo(t.submission / t.layout.code / "pipe")),
    )


def _odd_places() -> Sequence[tuple[str, Break, tuple[str, ...]]]:
    return (
        _fault("an empty folder", "empty-folder", lambda t: (t.submission / t.layout.code / "x").mkdir()),
        _fault("a file above results", "stray", lambda t: write(t.cell().parent / "notes.txt", "x")),
        _fault(
            "a second run",
            "extra-run",
            lambda t: shutil.copytree(t.performance(), t.cell() / "performance/run_2"),
        ),
        _fault(
            "a folder beside the run", "stray", lambda t: write(t.cell() / "performance" / "old" / "x", "x")
        ),
        _fault("a folder beside the tests", "stray", lambda t: write(t.cell() / "logs" / "x", "x")),
        _fault(
            "a file beside systems", "stray", lambda t: write(t.submission / "systems" / "notes.txt", "x")
        ),
        _fault("a file at the top", "unknown-top-level", lambda t: write(t.root / "notes.txt", "x")),
        _fault("an empty division", "empty-division", lambda t: (t.root / "open").mkdir(), "empty-folder"),
        _fault(
            "a system without results",
            "system-without-results",
            lambda t: shutil.copy(t.system_json, t.system_json.with_name("other.json")),
        ),
        _fault("a field twice", "system-field", lambda t: twice(t.system_json)),
        _fault(
            "a README of two words",
            "readme-says-nothing",
            lambda t: write(t.measurements() / "README.md", "# Soon"),
        ),
    )


def twice(path: Path) -> None:
    path.write_text(path.read_text().replace("{", '{"cooling": "air",', 1))


def no_calibration(tree: MadeTree) -> None:
    for path in list(tree.submission.rglob("calibration*")):
        path.unlink()


def no_scenario(tree: MadeTree, scenario: str) -> None:
    for folder in [p for p in tree.submission.rglob(scenario) if p.is_dir()]:
        shutil.rmtree(folder)


def copy_model(tree: MadeTree, new: str) -> None:
    for folder in [p for p in tree.submission.rglob(tree.kind.model) if p.is_dir()]:
        shutil.copytree(folder, folder.with_name(new))


def rename_copy(path: Path, name: str) -> None:
    shutil.copytree(path, path.with_name(name))


def redirect(tree: MadeTree, line: str) -> None:
    folder = tree.submission / "code" / tree.kind.model
    shutil.rmtree(folder)
    write(folder, f"{line}\n")


def unmapped(tree: MadeTree) -> None:
    (tree.submission / "model_mapping.json").unlink()
    all_models(tree, "own")


def as_folder(path: Path) -> None:
    path.unlink()
    write(path / "x", "x")


def mapped(tree: MadeTree, official: str) -> None:
    write(tree.submission / "model_mapping.json", f'{{"own": "{official}"}}')
    all_models(tree, "own")
