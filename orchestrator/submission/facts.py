"""The description of an implementation (measurements json): from the records where they say, else as told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.manifest_backends import Ctranslate2Backend, EchoBackend, OnnxBackend, TorchBackend
from orchestrator.submission.gather import Evidence
from workers.models import EIGHT_BITS, SIZING

# SYSTEM_IMP_REQUIRED_FILES of the checkers, with what each is, for who must say it.
FIELDS = {
    "input_data_types": "number format of the network's inputs, such as fp32",
    "retraining": "No, or what was retrained",
    "starting_weights_filename": "the file of weights that was started from",
    "weight_data_types": "number format of the weights as computed with, such as fp16",
    "weight_transformations": "what was done to the weights before the clock starts, or none",
}
UNKNOWN = "unknown (draft)"
# What the tasks hand to the network (workers/tasks: "input" of a library's meta); a test compares them.
INPUTS = {
    "brain-mask": "float32",
    "brats": "float32",
    "coco-300": "uint8",
    "coco-1200": "uint8",
    "criteo": "int32",
    "imagenet": "uint8",
    "kits": "float32",
    "librispeech": "float32",
    "squad": "int32",
}
_SHORT = {"float32": "fp32", "float16": "fp16"}
_QUANTISED = re.compile(r"\b(u?int[248]|[iu]8|i4|fp[48]|nvfp4|mxfp\d|e[45]m\d)", re.IGNORECASE)


def implementation(cell: Evidence, given: Mapping[str, str]) -> dict[str, str]:
    """The five fields; one that nobody knows is empty. `given` beats what the records say."""
    told = dict.fromkeys(FIELDS, "") | _derived(cell)
    for name in FIELDS:
        for key in (name, f"{cell.benchmark}.{name}"):
            if given.get(key):
                told[name] = given[key]
    return told


def quantised(cell: Evidence, facts: Mapping[str, str]) -> bool:
    """Whether something is in fewer bits than 16, so that the rules ask how it was calibrated.

    `facts`: the fields of `implementation`, where a user's own word may be any; so the manifest counts too.
    """
    precision = getattr(cell.performance.manifest.backend, "precision", "")
    return bool(_QUANTISED.search(facts["weight_data_types"]) or _QUANTISED.search(precision))


def _derived(cell: Evidence) -> dict[str, str]:
    """What follows from the manifest and from what the workers told."""
    manifest, facts = cell.performance.manifest, cell.performance.model_facts
    backend, found = manifest.backend, {}
    dtype = manifest.task.options.get("dtype") or INPUTS.get(manifest.task.name)
    if dtype:
        found["input_data_types"] = _SHORT.get(str(dtype), str(dtype))
    if cell.performance.record.division != "open":
        found["retraining"] = "No"  # rules, closed division: retraining is not allowed
    if isinstance(backend, EchoBackend):
        return {**found, "starting_weights_filename": "none: the echo backend has no model"}
    if facts.get("weights") not in (None, "", "seeded", "none"):
        found["starting_weights_filename"] = str(facts["weights"])
    if isinstance(backend, TorchBackend | Ctranslate2Backend):
        found["weight_data_types"] = str(facts.get("weight_data_types") or backend.precision)
    found |= _transformations(backend, facts)
    return found


def _transformations(backend: Any, facts: Mapping[str, Any]) -> dict[str, str]:
    if isinstance(backend, OnnxBackend):
        return {"weight_transformations": "none: onnxruntime computes the file as it is"}
    if isinstance(backend, TorchBackend):
        cast = "" if backend.precision == "fp32" else f", cast to {backend.precision}"
        if backend.precision in EIGHT_BITS.values():
            kinds = facts.get("weight_data_types") or backend.precision
            scales = facts.get("scales")
            by = f"scales {SIZING}, for sizing" if scales == SIZING else f"the scales of {scales}"
            cast = f", quantised after training to {kinds} by {by}"
        loaded = f"loaded into LoadGrid's PyTorch network {facts.get('model', backend.model)}{cast}"
        return {"weight_transformations": loaded}
    return {}
