"""YAML for submissions: the data that come with LoadGrid, and what a person writes as `field: value`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from orchestrator.plain_files import read_plain

LARGEST_GIVEN_BYTES = 1_000_000


class GivenError(Exception):
    """A file of given fields cannot be used; the text names the file and the line."""


@cache
def load_data(name: str) -> dict[str, Any]:
    """The contents of a data file beside this one; its users do not change it."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def read_yaml(text: str) -> Any:
    """What a YAML text says; GivenError says why it says nothing."""
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise GivenError(f"is not YAML (line {line}: {error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise GivenError("is not YAML") from None


def read_given(path: Path) -> dict[str, str]:
    """The fields of a YAML or JSON file as text, as they are written: `on` stays on, 1e3 stays 1e3."""
    try:
        text = read_plain(path, LARGEST_GIVEN_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise GivenError(f"{path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, ValueError):
        raise GivenError(f"{path} is not text in UTF-8") from None
    try:
        pairs = list(_json_pairs(text, path) if path.suffix == ".json" else _yaml_pairs(text, path))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise GivenError(f"{path}{line} is not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise GivenError(f"{path} is not {kind}: {str(error).splitlines()[0]}") from None
    return _once(pairs, path)


def _once(pairs: list[tuple[str, str, str]], path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, value, where in pairs:
        if field in found:
            raise GivenError(f"{path}{where}: the field {field} stands here a second time")
        found[field] = value
    return found


def _yaml_pairs(text: str, path: Path) -> Iterator[tuple[str, str, str]]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise GivenError(f"{path} must hold fields, such as `submitter: ACME`")
    for key, value in root.value:
        where = f", line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            raise GivenError(f"{path}{where}: a field is one text or number, not a list or more fields")
        empty = value.tag == "tag:yaml.org,2002:null"
        yield str(key.value), "" if empty else str(value.value), where


def _json_pairs(text: str, path: Path) -> Iterator[tuple[str, str, str]]:
    def fields(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return pairs

    found = json.loads(text, object_pairs_hook=fields, parse_int=str, parse_float=str)
    if not text.lstrip().startswith("{"):
        raise GivenError(f'{path} must hold fields, such as {{"submitter": "ACME"}}')
    for field, value in found:
        if isinstance(value, bool) or (value is not None and not isinstance(value, str)):
            raise GivenError(f"{path}: the field {field} is neither a text nor a number")
        yield field, value or "", ""
