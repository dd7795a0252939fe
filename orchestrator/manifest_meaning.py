"""What is wrong with a manifest, in words: pydantic's findings, and what only several fields show."""

from __future__ import annotations

import ipaddress
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from orchestrator.audit import problems_of as audit_problems
from orchestrator.manifest_backends import Ctranslate2Backend, EchoBackend, OnnxBackend, TorchBackend
from orchestrator.manifest_fields import (
    SEED_WORDS,
    EveryScenarioWords,
    LoadgenSection,
    Manifest,
    MultiStreamWords,
    OfflineWords,
    ServerWords,
    SingleStreamWords,
)
from orchestrator.rules import Round, RulesError, load_round, nearest, not_a_round, not_one_of, round_names
from workers.models import EIGHT_BITS, why_not_eight_bits

ENGINES: dict[str, type[BaseModel]] = {
    "echo": EchoBackend,
    "torch": TorchBackend,
    "onnx": OnnxBackend,
    "ctranslate2": Ctranslate2Backend,
}
WORDS: dict[str, type[EveryScenarioWords]] = {
    "SingleStream": SingleStreamWords,
    "MultiStream": MultiStreamWords,
    "Server": ServerWords,
    "Offline": OfflineWords,
}
LEAST_SHARE = 1e-4  # of a CPU or a GPU, to Ray
OLD_MULTISTREAM_WORDS = ("target_qps", "max_async_queries")
MILLISECONDS = ("min_duration", "max_duration", "target_latency")  # LoadGen's words whose names have no unit

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text (in quotes, if it looks like a number)",
    "bool_type": "true or false",
    "tuple_type": "a list, such as [a, b]",
    "dict_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "finite_number": "a finite number",
}


class Problem(NamedTuple):
    """A dotted field and what is wrong with it."""

    field: str
    message: str


def problem_of(detail: dict[str, Any], data: dict[str, Any]) -> Problem:
    """One of pydantic's errors in a user's words. `data` is what was validated."""
    loc = _without_engine(detail["loc"])
    field = dotted(loc)
    kind, context = detail["type"], detail.get("ctx", {})
    shown = _shown(detail.get("input"))
    if kind == "missing":
        return Problem(field, "is missing")
    if kind == "extra_forbidden":
        return Problem(field, _unknown_key(loc, data))
    if kind == "literal_error":
        return Problem(field, _not_in(detail.get("input"), shown, _choices(context["expected"])))
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        engine = context.get("tag")
        if engine is None:
            return Problem(f"{field}.engine", f"is missing; it is one of {', '.join(ENGINES)}")
        return Problem(f"{field}.engine", _not_in(engine, _shown(engine), list(ENGINES)))
    if loc == ("round",) and type(detail["input"]) in (int, float):  # 6.1 for v6.1
        return Problem(field, not_a_round(shown, round_names()))
    if kind in _TYPES:
        unit = " of milliseconds" if loc[-1] in MILLISECONDS else ""
        return Problem(field, f"must be {_TYPES[kind]}{unit}, not {shown}")
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        bound = next(iter(context.values()))
        words = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below"}
        return Problem(field, f"must be {words.get(kind, 'at most')} {bound:.12g}, not {shown}")
    if kind in ("too_short", "string_too_short") and not detail["input"]:
        return Problem(field, "must not be empty")
    if kind == "string_pattern_mismatch":
        return Problem(field, f"{shown} does not match {context['pattern']}")
    return Problem(field, f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {shown}")


def dotted(loc: Iterable[str | int]) -> str:
    """("loadgen", "Server", 0) as loadgen.Server[0]."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _without_engine(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """pydantic puts the engine's name between `backend` and the field."""
    return (loc[0], *loc[2:]) if len(loc) > 1 and loc[0] == "backend" and loc[1] in ENGINES else loc


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f'"{value[:60]}"'
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else str(value).lower()[:60]


def _choices(expected: str) -> list[str]:
    return (
        expected.replace(" or ", ", ").replace("'", "").split(", ")
        if "'" in expected
        else expected.split(" or ")
    )


def _not_in(value: object, shown: str, choices: list[str]) -> str:
    text = f"{shown} is not one of {', '.join(choices)}"
    close = nearest(value, choices) if isinstance(value, str) else None
    return f'{text}; did you mean "{close}"?' if close else text


def _unknown_key(loc: tuple[str | int, ...], data: dict[str, Any]) -> str:
    """Why a key is unknown: it is another engine's, another scenario's, or nobody's."""
    key, section = str(loc[-1]), loc[:-1]
    if section == ("backend",):
        owners = [engine for engine, model in ENGINES.items() if key in model.model_fields]
        if owners:
            return f'does nothing for engine "{data["backend"]["engine"]}"; it is for {", ".join(owners)}'
    if section[:1] == ("loadgen",):
        owners = [name for name, model in WORDS.items() if key in model.model_fields]
        if owners and len(section) == 1:
            places = " or ".join(f"loadgen.{owner}" for owner in owners)
            return f"is not a word for every scenario; write it under {places}"
        if owners:
            return f"is not a word of {section[1]}; it is one of {', '.join(owners)}"
        if key in SEED_WORDS:
            return "is one for all scenarios; write it under loadgen"
    known = _fields_at(section, data)
    close = nearest(key, known)
    return (
        f'is not a known key; did you mean "{close}"?'
        if close
        else f"is not a known key; known: {', '.join(known)}"
    )


def _fields_at(section: tuple[str | int, ...], data: dict[str, Any]) -> list[str]:
    model: type[BaseModel] = Manifest
    for part in section:
        if part == "backend":
            model = ENGINES[data["backend"]["engine"]]
            continue
        inner = model.model_fields.get(str(part))
        found = inner and _model_in(inner.annotation)
        if not found:
            return []
        model = found
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
    return None


def meaning_problems(manifest: Manifest, found: Round) -> Iterator[Problem]:
    """What no single field shows: names that the round lacks, fields that contradict or do nothing."""
    try:
        benchmark = found.benchmark(manifest.benchmark)
    except RulesError as error:
        yield Problem("benchmark", str(error))
    else:
        for position, why in audit_problems(found, benchmark, manifest.runs):
            yield Problem(f"runs[{position}]", why)
    for field, names in (("scenarios", manifest.scenarios), ("runs", manifest.runs)):
        for position, name in enumerate(names):
            if name in names[:position]:
                yield Problem(f"{field}[{position}]", f'"{name}" stands here a second time')
    for position, scenario in enumerate(manifest.scenarios):
        if scenario not in found.scenarios:
            yield Problem(
                f"scenarios[{position}]",
                not_one_of(f"round {found.name}: scenario", scenario, found.scenarios),
            )
    yield from _workers_problems(manifest)
    yield from _other_problems(manifest)
    yield from _loadgen_problems(manifest.loadgen, found)


def _workers_problems(manifest: Manifest) -> Iterator[Problem]:
    workers = manifest.workers
    for key, asked in (("num_cpus", workers.num_cpus), ("num_gpus", workers.num_gpus)):
        if 0 < asked < LEAST_SHARE:
            yield Problem(f"workers.{key}", f"must be 0, or {LEAST_SHARE:g} and more (Ray counts in such)")
    if workers.num_gpus > 1 and workers.num_gpus != int(workers.num_gpus):
        yield Problem(
            "workers.num_gpus", f"must be whole above 1 (Ray cannot give {workers.num_gpus:g} GPUs)"
        )
    if workers.where == "local":
        for key in ("placement", "num_cpus", "num_gpus"):
            if key in workers.model_fields_set:
                yield Problem(f"workers.{key}", "does nothing for workers in the test process (where: local)")
        for key in ("listen", "ports", "io_threads"):
            if getattr(manifest.dispatch, key) is not None:
                yield Problem(
                    f"dispatch.{key}", "does nothing for workers in the test process (where: local)"
                )


def _other_problems(manifest: Manifest) -> Iterator[Problem]:
    dispatch = manifest.dispatch
    if dispatch.listen is not None and _is_wildcard(dispatch.listen):
        yield Problem("dispatch.listen", "name one address: workers must know where to connect")
    if dispatch.ports is not None:
        low, high = dispatch.ports
        if not 1024 <= low <= high <= 65535:
            yield Problem(
                "dispatch.ports", f"must be [lowest, highest] within 1024 and 65535, not [{low}, {high}]"
            )
    if dispatch.index_approval is not None and dispatch.payload == "value":
        yield Problem("dispatch.index_approval", "does nothing with payload value")
    if isinstance(manifest.backend, TorchBackend):
        yield from _torch_problems(manifest.backend)
    if manifest.accuracy_target is not None and "accuracy" not in manifest.runs:
        yield Problem("accuracy_target", "does nothing without an accuracy test; add accuracy to runs")
    if manifest.power is not None and "performance" not in manifest.runs:
        yield Problem("power", "does nothing without a performance test; add performance to runs")


def _torch_problems(backend: TorchBackend) -> Iterator[Problem]:
    for key in backend.options:
        if key in TorchBackend.model_fields:
            yield Problem(f"backend.options.{key}", "is a field of the engine; write it under backend")
    if backend.precision not in EIGHT_BITS.values():
        for key in ("scales", "scales_sha256"):
            if getattr(backend, key) is not None:
                yield Problem(f"backend.{key}", "does nothing without precision int8 or fp8")
        return
    if wrong := why_not_eight_bits(backend.model, backend.precision, backend.channels_last, backend.compile):
        yield Problem(f"backend.{wrong[0]}", wrong[1])
    if backend.weights is not None and backend.scales is None:
        why = "is missing: name the file of the scales of these weights, which loadgrid calibrate makes"
        yield Problem("backend.scales", why)
    if backend.scales_sha256 is not None and backend.scales is None:
        yield Problem("backend.scales_sha256", "does nothing without backend.scales")


def _is_wildcard(address: str) -> bool:
    """Whether it means every address of the machine, in any of its spellings."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        # The C library also reads 0, 0.0 and 0x0 as 0.0.0.0.
        return address[0] == "0" and not address.strip("0x.")
    return found.is_unspecified or (getattr(found, "ipv4_mapped", None) or found).is_unspecified


def _loadgen_problems(loadgen: LoadgenSection, found: Round) -> Iterator[Problem]:
    if not found.fixed_interval_multistream:
        for word in OLD_MULTISTREAM_WORDS:
            if getattr(loadgen.MultiStream, word) is not None:
                yield Problem(
                    f"loadgen.MultiStream.{word}", f"is not a word of MultiStream in round {found.name}"
                )


def schema() -> dict[str, Any]:
    """The JSON schema of Manifest, with the names that the rounds know."""
    made = Manifest.model_json_schema()
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["title"] = "LoadGrid manifest"
    made["required"] = [name for name in made["required"] if name != "name"]
    rounds = [load_round(name) for name in round_names()]
    made["properties"]["round"]["enum"] = [found.name for found in rounds]
    made["properties"]["benchmark"]["enum"] = sorted(
        {name for found in rounds for name in found.benchmark_names()}
    )
    return made
