"""Writes the table of values in loadgrid/README.md: meanings of the schema, defaults of values.yaml.

`python helm/make_readme.py`, in an environment with LoadGrid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

# What every kind of pod takes is told with the first one that has it.
SHARED = {"nodeSelector", "tolerations", "affinity", "env"}
CHART = Path(__file__).resolve().parent / "loadgrid"
README = CHART / "README.md"
BEGIN, END = "<!-- values: made by helm/make_readme.py -->\n", "<!-- end of values -->\n"


def rows(schema: dict[str, Any], values: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Value, default and meaning of everything that has a meaning of its own, in the schema's order."""
    for key, field in schema["properties"].items():
        name = f"{path}.{key}" if path else key
        inner = values.get(key) if isinstance(values, dict) else None
        if "description" in field and not (key in SHARED and path in ("driver", "head", "submitter")):
            default = "" if inner is None or "properties" in field else f"`{json.dumps(inner)}`"
            yield name, default, field["description"]
        if "properties" in field:
            yield from rows(field, inner, name)
        elif "properties" in field.get("items", {}):
            yield from rows(field["items"], None, f"{name}[]")


def table() -> str:
    """The table, in Markdown."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    lines = ["| value | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in rows(schema, values)]
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    """The README with the table of today between its marks."""
    head, rest = text.split(BEGIN)
    return head + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
