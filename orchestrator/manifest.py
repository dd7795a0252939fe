"""YAML -> frozen Manifest, the only reader of manifests: any bytes give a Manifest or a ManifestError."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.manifest_fields import Manifest
from orchestrator.manifest_meaning import Problem, meaning_problems, problem_of, schema
from orchestrator.rules import RulesError, load_round

__all__ = [
    "Manifest",
    "ManifestError",
    "error_at",
    "load_manifest",
    "manifest_files",
    "manifest_schema",
    "parse_manifest",
]

# A manifest of people fits many times over; what does not fit is an attack or a mistake.
MAX_BYTES = 128 * 1024
MAX_NODES = 10_000
MAX_DEPTH = 20

# YAML 1.2's core words. YAML 1.1 would make a boolean of "no", 90 of "1:30" and 8 of "010".
_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,40}|0x[0-9a-fA-F]{1,32}|0o[0-7]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_A_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")} | {
    "!"
}


class ManifestError(Exception):
    """What is wrong with a manifest: file, line (None: unknown), dotted field ("": the whole), message."""

    def __init__(self, file: str, line: int | None, field: str, message: str) -> None:
        self.file, self.line, self.field, self.message = file, line, field, message
        where = f"{file}:{line}" if line is not None else file
        super().__init__(f"{where}: {field}: {message}" if field else f"{where}: {message}")


class _BadYaml(Exception):
    def __init__(self, message: str, line: int | None, field: str = "") -> None:
        super().__init__(message)
        self.message, self.line, self.field = message, line, field


@dataclass(slots=True)
class _Node:
    """A value of the file: data (of nodes), its line, its count of nodes with every alias written out."""

    value: Any
    line: int
    size: int = 1
    height: int = 0


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read."""

    node: _Node
    anchor: str | None
    key: str | None = None
    key_line: int = 0


def manifest_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files meant by `paths`: a folder means every *.yaml in it, in order of name."""
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.yaml"), key=lambda file: file.stem) if path.is_dir() else [path]
        if not found:
            raise ManifestError(str(path), None, "", "is a folder without a manifest (*.yaml)")
        files += found
    return list(dict.fromkeys(files))


def load_manifest(path: str | Path) -> Manifest:
    """The manifest in a file; ManifestError names file, line and field."""
    path = Path(path)
    try:
        if path.is_dir():
            raise ManifestError(str(path), None, "", "is a folder; name a manifest file in it")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ManifestError(str(path), None, "", "no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ManifestError(str(path), None, "", f"cannot be read: {reason}") from None
    return parse_manifest(raw, path)


def parse_manifest(raw: bytes, path: str | Path = "manifest.yaml") -> Manifest:
    """The manifest in `raw`; messages call it `path`, in whose folder its relative paths start."""
    path = Path(path)
    try:
        root = _read(raw)
        lines = dict(_lines(root))
    except _BadYaml as error:
        raise ManifestError(str(path), error.line, error.field, error.message) from None
    if not isinstance(root.value, dict):
        raise ManifestError(
            str(path), root.line, "", "must be a mapping of fields, such as `benchmark: resnet`"
        )
    data = _plain(root)
    data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")[:100] or "manifest")
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        problems = [problem_of(dict(detail), data) for detail in error.errors(include_url=False)]
        raise _first(problems, lines, path) from None
    try:
        found = load_round(manifest.round)
    except RulesError as error:
        raise _first([Problem("round", str(error))], lines, path) from None
    problems = list(meaning_problems(manifest, found))
    if problems:
        raise _first(problems, lines, path)
    manifest = manifest.model_copy(update={"benchmark": found.benchmark(manifest.benchmark).name})
    manifest._path, manifest._raw, manifest._lines = path, raw, lines
    return manifest


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of a manifest, for editors: every field with its meaning, unit and bounds."""
    return schema()


def error_at(manifest: Manifest, field: str, message: str) -> ManifestError:
    """The error for what shows only later (a missing data set, say), at the field's line."""
    return _first([Problem(field, message)], manifest.lines, manifest.path)


def _first(problems: list[Problem], lines: dict[str, int], path: Path) -> ManifestError:
    """The problem that stands first in the file; what is missing comes last, at the line of its section."""

    def line_of(field: str) -> int | None:
        while field and field not in lines:
            field = re.sub(r"(\.[^.\[]*|\[\d+\]|^[^.\[]*)$", "", field)
        return lines.get(field)

    # A misspelt field is also a missing one: the misspelling is what helps.
    placed = [(problem.message == "is missing", line_of(problem.field), problem) for problem in problems]
    _, line, problem = min(placed, key=lambda each: (each[0], each[1] or 0))
    return ManifestError(str(path), line, problem.field, problem.message)


def _read(raw: bytes) -> _Node:
    """The tree of one YAML document, bounded in bytes, depth and nodes before anything is built from it."""
    if len(raw) > MAX_BYTES:
        raise _BadYaml(f"is larger than {MAX_BYTES // 1024} KiB, too large for a manifest", None)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _BadYaml("is not text in UTF-8", raw[: error.start].count(b"\n") + 1) from None
    try:
        return _build(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "unreadable"
        raise _BadYaml(f"is not YAML: {problem}", mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        raise _BadYaml(
            "holds a character that YAML does not allow", text[: error.position].count("\n") + 1
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError, IndexError, RecursionError) as error:
        raise _BadYaml(f"is not YAML: {type(error).__name__}", None) from None


def _build(events: Iterator[Any]) -> _Node:
    """Events to a tree, without recursion, so that depth is a number to check and not a stack to overflow."""
    anchors: dict[str, _Node | None] = {}
    stack: list[_Open] = []
    root: _Node | None = None
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            if root is not None:
                raise _BadYaml("holds a second document; a manifest is one", line)
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            _check_tag(event.tag, line)
            if len(stack) >= MAX_DEPTH:
                raise _BadYaml(f"is nested deeper than {MAX_DEPTH} levels", line)
            empty: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            stack.append(_Open(_Node(empty, line), event.anchor))
            if event.anchor:
                anchors[event.anchor] = None
        elif isinstance(event, yaml.ScalarEvent):
            node = _Node(_scalar(event, line), line)
            if event.anchor:
                anchors[event.anchor] = node
            root = _place(node, stack, line) or root
        elif isinstance(event, yaml.AliasEvent):
            root = _place(_aliased(anchors, event.anchor, line), stack, line) or root
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            done = stack.pop()
            if done.anchor:
                anchors[done.anchor] = done.node
            root = _place(done.node, stack, done.node.line) or root
    if root is None or root.value is None:
        raise _BadYaml("is empty; a manifest needs at least round, suite, division, benchmark", None)
    return root


def _aliased(anchors: dict[str, _Node | None], anchor: str | None, line: int) -> _Node:
    node = anchors.get(anchor or "")
    if node is None:
        reason = "refers to itself" if anchor in anchors else "is not defined above"
        raise _BadYaml(f"alias *{anchor} {reason}", line)
    return _Node(node.value, line, node.size, node.height)


def _place(node: _Node, stack: list[_Open], line: int) -> _Node | None:
    """Puts a finished node where it belongs; returns it if it is the whole document."""
    if not stack:
        return node
    parent = stack[-1]
    parent.node.size += node.size
    parent.node.height = max(parent.node.height, node.height + 1)
    if parent.node.size > MAX_NODES:
        raise _BadYaml(f"has more than {MAX_NODES} values with its aliases written out", line)
    if len(stack) + node.height > MAX_DEPTH:
        raise _BadYaml(f"is nested deeper than {MAX_DEPTH} levels with its aliases written out", line)
    if isinstance(parent.node.value, list):
        parent.node.value.append(node)
    elif parent.key is None:
        parent.key, parent.key_line = _key(node, parent.node.value, line), line
    else:
        node.line = parent.key_line
        parent.node.value[parent.key] = node
        parent.key = None
    return None


def _key(node: _Node, mapping: dict[str, _Node], line: int) -> str:
    key = node.value
    if not isinstance(key, str) or not key or len(key) > 200:
        shown = repr(key) if isinstance(key, (bool, int, float)) or key is None else "this one"
        raise _BadYaml(f"a key must be a short text, {shown} is not; put it in quotes", line)
    if key in mapping:
        raise _BadYaml(
            f'key "{key}" stands here a second time; the first is in line {mapping[key].line}', line
        )
    return key


def _check_tag(tag: str | None, line: int) -> None:
    if tag is not None and tag not in _TAGS:
        raise _BadYaml(f"the YAML tag {tag[:60]!r} is not allowed in a manifest", line)


def _scalar(event: Any, line: int) -> Any:
    """The value of a plain or quoted scalar by YAML 1.2's core words."""
    _check_tag(event.tag, line)
    text: str = event.value
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadYaml("holds half of a character (a lone surrogate)", line) from None
    if event.style is not None or (event.tag or "").endswith((":str", "!")):
        return text
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _NOT_A_NUMBER.fullmatch(text):
        return math.nan
    if len(text) <= 100 and _FLOAT.fullmatch(text):
        return float(text)
    return text


def _plain(node: _Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(value) for value in node.value]
    return node.value


def _lines(node: _Node, field: str = "") -> Iterator[tuple[str, int]]:
    """Dotted field -> line, the whole under ""; refuses numbers that are none, wherever they stand."""
    if isinstance(node.value, float) and not math.isfinite(node.value):
        raise _BadYaml("must be a finite number (not nan, not infinite)", node.line, field)
    yield field, node.line
    if isinstance(node.value, dict):
        for key, value in node.value.items():
            yield from _lines(value, f"{field}.{key}" if field else key)
    elif isinstance(node.value, list):
        for position, value in enumerate(node.value):
            yield from _lines(value, f"{field}[{position}]")
