"""systems/SYSTEM.json: its fields (system_fields.yaml), how it is read, and what is wrong with one."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.loadgen_metrics import RoundNumber
from orchestrator.loadgen_run import round_of
from orchestrator.rules import not_one_of
from orchestrator.submission.data_files import load_data
from orchestrator.submission.layout import Layout

LARGEST_SYSTEM_BYTES = 1_000_000
LARGEST_HOSTS_BYTES = 100_000_000
# The checker at b66003e1 knows v5.0 and newer; what it asks of a description it asks of all of them.
FILLED_SINCE: RoundNumber = (5, 0)
POWER_AND_ECC_SINCE: RoundNumber = (1, 0)
NETWORK = "is_network"
# Answers that are none, which the checkers take; "N/A" is one.
PLACEHOLDERS = {"?", "tbd", "tba", "undefined", "unknown"}
_ECC_OFF = re.compile(
    r"\becc[\s:=]*(?:is\s+)?(?:off|disabled)\b|\b(?:no|without|non)[\s-]+ecc\b", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class SystemError(Exception):
    """A system's description cannot be read; the text names the file and the field."""


@dataclass(frozen=True)
class Field:
    """A field of the description, as system_fields.yaml has it."""

    name: str
    meaning: str
    example: str
    key_since: RoundNumber | None = None
    filled_since: RoundNumber | None = None
    count: bool = False
    column: str = ""
    choices: tuple[str, ...] = ()


# What published descriptions write where there is no accelerator, v1.0 to v5.1.
NOTHING = {"", "-", "n/a", "na", "no", "none", "not applicable"}
BUSES = re.compile(r"\b(PCIe?|PCI.Express|CXL|NV-?Link)\b", re.IGNORECASE)


@dataclass(frozen=True)
class SystemProblem:
    """What is wrong with a field. `fatal`: the round's checker exits with 1; `logged`: it only logs it."""

    field: str
    message: str
    fatal: bool
    logged: bool = False


@dataclass(frozen=True)
class SystemDescription:
    """One system: `name` is its id in the tree, fields in `repeated` stand there more than once."""

    name: str
    values: dict[str, Any]
    repeated: tuple[str, ...] = ()


def _fields() -> dict[str, Field]:
    found = {}
    for name, given in load_data("system_fields.yaml")["fields"].items():
        rounds = {key: round_of(given[key]) for key in ("key_since", "filled_since") if key in given}
        choices = tuple(given.get("choices", ()))
        found[name] = Field(**{**given, **rounds, "name": name, "choices": choices})
    return found


FIELDS = _fields()
NETWORK_FIELDS = {
    name: Field(name=name, **given) for name, given in load_data("system_fields.yaml")["network"].items()
}
POWER_FIELDS = tuple(load_data("system_fields.yaml")["power"])
POWER_FIELDS_SINCE_V5 = (*POWER_FIELDS, *load_data("system_fields.yaml")["power_since_v5"])


def required(layout: Layout) -> list[Field]:
    """The fields that a description of the round must have, in the order in which they are written."""
    number = round_of(layout.round)
    return [field for field in FIELDS.values() if field.key_since and field.key_since <= number]


def must_be_filled(field: Field, layout: Layout) -> bool:
    """Whether the round's checker refuses the field when it is empty."""
    return field.filled_since is not None and field.filled_since <= round_of(layout.round)


def read_system(path: Path, largest_bytes: int = LARGEST_SYSTEM_BYTES) -> SystemDescription:
    """The description in a file; SystemError if it is none."""
    try:
        if path.is_symlink() or not path.is_file():
            what = "is a link" if path.is_symlink() else "is no file" if path.exists() else "is not there"
            raise SystemError(f"{path} {what}; `loadgrid describe-system --out FILE` makes a description")
        if path.stat().st_size > largest_bytes:
            raise SystemError(f"{path} has more than {largest_bytes:,} bytes: no description")
        repeated: list[str] = []
        once = partial(_last, repeated)
        values = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=once)
    except OSError as error:
        raise SystemError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SystemError(f"{path} is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise SystemError(f"{path}, line {error.lineno} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise SystemError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise SystemError(f'{path} must hold fields, such as {{"submitter": "ACME"}}')
    return SystemDescription(path.stem, values, tuple(repeated))


def hosts_file(system: Path) -> Path:
    """Where `describe-system` keeps what each host said: beside the description, and never in a tree."""
    return system.with_name(f"{system.stem}.hosts.json")


def read_hosts(system: Path) -> dict[str, Any]:
    """`found` (fields) and `hosts` (host_facts.read_host) of a description; {} where none were kept."""
    path = hosts_file(system)
    if not path.exists():
        return {}
    told = read_system(path, LARGEST_HOSTS_BYTES).values
    hosts = told.get("hosts")
    if not isinstance(told.get("found"), dict) or not isinstance(hosts, list):
        raise SystemError(f"{path} is no list of hosts; delete it, and describe the system again")
    if not all(isinstance(host, dict) for host in hosts):
        raise SystemError(f"{path} holds a host that is none; delete it, and describe the system again")
    return told


def _last(repeated: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The last value of each field, which is the one that the checkers read; notes the repeated ones."""
    found: dict[str, Any] = {}
    for field, value in pairs:
        if field in found and field not in repeated:
            repeated.append(field)
        found[field] = value
    return found


def problems(
    values: Mapping[str, Any], layout: Layout, division: str, submitter: str | None
) -> list[SystemProblem]:
    """Everything that the round's checker or the rules hold against a description, in order of its fields.

    `division` and `submitter` are those of the tree; without a submitter its name is not compared.
    """
    found = [
        *_missing(values, layout),
        *_wrong_choices(values, layout, division, submitter),
        *_wrong_types(values, layout),
        *_wrong_counts(values, layout),
        *_accelerators(values),
        *_network(values, layout, division),
        *_no_network(values, division),
        *_broken_csv(values),
        *_ecc(values, layout),
        *_unknown(values, layout),
    ]
    order = {name: number for number, name in enumerate([*FIELDS, *NETWORK_FIELDS])}
    return sorted(found, key=lambda problem: order.get(problem.field, len(order)))


def _missing(values: Mapping[str, Any], layout: Layout) -> Iterator[SystemProblem]:
    for field in required(layout):
        value = values.get(field.name)
        hint = f"{field.meaning}, such as {field.example}"
        if field.name not in values:
            yield SystemProblem(field.name, f"is missing: {hint}", fatal=True)
        elif must_be_filled(field, layout) and value == 0 and not isinstance(value, bool):
            yield SystemProblem(field.name, 'the number 0 counts as empty: write the text "0"', fatal=True)
        elif must_be_filled(field, layout) and not value:
            yield SystemProblem(field.name, f"is empty: {hint}", fatal=True)
        elif field.name in _SHOWN and (value is None or value == ""):
            yield SystemProblem(field.name, f"is empty, and the public table shows it: {hint}", fatal=False)
        elif isinstance(value, str) and _is_placeholder(value, field, layout):
            yield SystemProblem(field.name, f'"{value.strip()}" is no answer: {hint}', fatal=False)


# Empty ones pass the older checkers, and leave a hole in the public table; an accelerator need not be there.
_SHOWN = {
    field.name
    for field in FIELDS.values()
    if field.column and field.name not in ("accelerator_model_name", "hw_notes", "sw_notes")
}


def _is_placeholder(value: str, field: Field, layout: Layout) -> bool:
    if not must_be_filled(field, layout):
        return False
    return value.strip().lower() in PLACEHOLDERS or not value.strip()


def _wrong_choices(
    values: Mapping[str, Any], layout: Layout, division: str, submitter: str | None
) -> Iterator[SystemProblem]:
    """status and submitter count whatever their case, system_type exactly, division exactly before v5.0."""
    status, system_type = values.get("status"), values.get("system_type")
    if not isinstance(status, str) or status.lower() not in FIELDS["status"].choices:
        yield from _not_a_choice("status", status, values)
    if not isinstance(system_type, str) or system_type not in FIELDS["system_type"].choices:
        yield from _not_a_choice("system_type", system_type, values)
    given = values.get("division")
    exact = round_of(layout.round) < FILLED_SINCE
    if "division" in values and (str(given) if exact else str(given).lower()) != division:
        yield SystemProblem("division", f"says {_shown(given)}, the folder is {division}", fatal=True)
    named = values.get("submitter")
    if submitter is not None and "submitter" in values and str(named).lower() != submitter.lower():
        yield SystemProblem("submitter", f"says {_shown(named)}, the folder is {submitter}", fatal=True)
    if division == "network" and system_type not in (None, "", "datacenter"):
        message = "the network division is for datacenter systems only"
        yield SystemProblem("system_type", message, fatal=False)


def _not_a_choice(field: str, value: Any, values: Mapping[str, Any]) -> Iterator[SystemProblem]:
    if field in values:  # else it is missing, which is told already
        message = not_one_of(field, str(value), FIELDS[field].choices)
        yield SystemProblem(field, message, fatal=True)


def _wrong_types(values: Mapping[str, Any], layout: Layout) -> Iterator[SystemProblem]:
    """The older checkers join columns as text and end with an exception where one is no text.

    A note that is no text ends the newer ones too, and so does a submitter or a division.
    """
    old = round_of(layout.round) < FILLED_SINCE
    notes = ("hw_notes", "sw_notes")
    for name, value in values.items():
        field = FIELDS.get(name)
        if field is None or isinstance(value, str):
            continue
        lowered = name in ("submitter", "division") and value is not None
        if isinstance(value, int) and not isinstance(value, bool) and field.column != "text" and not lowered:
            continue
        # What is joined only if it says something: sw_notes.
        fatal = lowered or (old and field.column == "text" and (name != "sw_notes" or bool(value)))
        fatal = fatal or (name in notes and _ends_in_joining(values))
        kinds = "a text or a number" if field.count else "a text"
        yield SystemProblem(name, f"must be {kinds}, not {_shown(value)}", fatal)


def _ends_in_joining(values: Mapping[str, Any]) -> bool:
    """Whether `hw_notes + ". " + sw_notes` ends the checker."""
    hardware, software = values.get("hw_notes", ""), values.get("sw_notes")
    return bool(software) and not (isinstance(hardware or "", str) and isinstance(software, str))


def _wrong_counts(values: Mapping[str, Any], layout: Layout) -> Iterator[SystemProblem]:
    """The newer checker multiplies nodes and accelerators and ends where they are no numbers."""
    multiplied = ("number_of_nodes", "accelerators_per_node")
    for name, field in FIELDS.items():
        value = values.get(name)
        if not field.count or value is None or value == "":
            continue
        fatal = round_of(layout.round) >= FILLED_SINCE and name in multiplied and not _converts(value)
        least = 0 if name == "accelerators_per_node" else 1
        if not re.fullmatch(r"[0-9]{1,7}", str(value).strip()) or int(value) < least:
            message = f"must be a whole number of {least} or more, not {_shown(value)}"
            yield SystemProblem(name, message, fatal)


def _converts(value: Any) -> bool:
    try:
        int(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _accelerators(values: Mapping[str, Any]) -> Iterator[SystemProblem]:
    """Number and name of accelerators go together; nothing else says what computed."""
    number, name = values.get("accelerators_per_node"), values.get("accelerator_model_name")
    if number in (None, "") or not _converts(number) or not isinstance(name, str | None):
        return
    named = str(name or "").strip().lower() not in NOTHING
    if int(number) > 0 and not named:
        message = f"says {_shown(name)}, but accelerators_per_node is {number}: name them"
        yield SystemProblem("accelerator_model_name", message, fatal=False)
    elif int(number) == 0 and named:
        message = f"is 0, but accelerator_model_name is {_shown(name)}: say how many"
        yield SystemProblem("accelerators_per_node", message, fatal=False)


def _no_network(values: Mapping[str, Any], division: str) -> Iterator[SystemProblem]:
    """The network division's queries come over a network (rules, Network Division: Ethernet, InfiniBand)."""
    if division != "network":
        return
    kind, cards = values.get("network_type"), values.get("number_nic_sut")
    if isinstance(kind, str) and (found := BUSES.search(kind)):
        message = f"is {_shown(kind)}: {found[0]} is a link within a host, no network to LoadGen's"
        yield SystemProblem("network_type", message, fatal=False)
    if cards not in (None, "") and _converts(cards) and int(cards) < 1:
        yield SystemProblem(
            "number_nic_sut", f"is {cards}: queries came in over no network card", fatal=False
        )


def _network(values: Mapping[str, Any], layout: Layout, division: str) -> Iterator[SystemProblem]:
    if round_of(layout.round) < FILLED_SINCE:
        return
    given, present = values.get(NETWORK), NETWORK in values
    if given is not None and not isinstance(given, str):
        yield SystemProblem(NETWORK, f'must be the text "true", not {_shown(given)}', fatal=True)
    elif division == "network" and str(given).lower() != "true":
        yield SystemProblem(NETWORK, 'must be the text "true" in the network division', fatal=True)
    elif division != "network" and present:
        fatal = division == "closed" and str(given).lower() == "true"
        message = f"must not be there in the {division} division, whatever it says: delete the line"
        yield SystemProblem(NETWORK, message, fatal)
    if division != "network" and not given:
        return
    for name, field in NETWORK_FIELDS.items():
        hint = f"{field.meaning}, such as {field.example}"
        if name != NETWORK and name not in values:
            yield SystemProblem(name, f"is missing: {hint}", fatal=bool(given))
        elif name != NETWORK and values[name] in ("", None):
            yield SystemProblem(name, f"is empty: {hint}", fatal=False)


def _broken_csv(values: Mapping[str, Any]) -> Iterator[SystemProblem]:
    """Neither checker escapes what it writes: a double quote or a line break ends a field early."""
    for name, value in values.items():
        if not isinstance(value, str):
            continue
        field = FIELDS.get(name)
        if _CONTROL.search(value):
            yield SystemProblem(name, "holds a line break or another control character", fatal=False)
        if field is None or not field.column:
            continue
        if '"' in value:
            yield SystemProblem(name, "holds a double quote, which breaks the csv of results", fatal=False)
        if "," in value and field.column == "bare" and name != "system_type":
            yield SystemProblem(name, "holds a comma, which breaks the csv of results", fatal=False)


def _ecc(values: Mapping[str, Any], layout: Layout) -> Iterator[SystemProblem]:
    """Rules, section ECC (of October 2020): datacenter memory has ECC, on in every run."""
    datacenter = "datacenter" in str(values.get("system_type", "")).lower()
    if not datacenter or round_of(layout.round) < POWER_AND_ECC_SINCE:
        return
    for name in ("host_memory_configuration", "accelerator_memory_configuration", "hw_notes"):
        if _ECC_OFF.search(str(values.get(name, ""))):
            message = "says that ECC is off: datacenter systems must have it on (nvidia-smi -e 1, then reset)"
            yield SystemProblem(name, message, fatal=False)


def _unknown(values: Mapping[str, Any], layout: Layout) -> Iterator[SystemProblem]:
    """The older checkers warn of every key that they do not know."""
    if round_of(layout.round) >= FILLED_SINCE:
        return
    known = {field.name for field in FIELDS.values() if field.key_since and field.key_since < FILLED_SINCE}
    known |= set(POWER_FIELDS) if round_of(layout.round) >= POWER_AND_ECC_SINCE else set()
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            message = f"is not a field of {layout.round}{f'; did you mean {close[0]}?' if close else ''}"
            yield SystemProblem(name, message, fatal=False, logged=True)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
