"""What a test would run on now, hash by hash: what a finished record is held against before it is kept."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from orchestrator.fixed_interval import OWN_FILE
from orchestrator.manifest import Manifest
from orchestrator.old_logs import generator_sha256
from orchestrator.provenance import PACKAGES, commit_of, versions
from workers.backends import BackendError
from workers.backends.weight_files import onnx_files, sha256_of, sha256_of_all
from workers.installed import LocateError, locate
from workers.library import Library

CTRANSLATE2_WEIGHTS = "model.bin"  # the file whose hash workers/backends/ctranslate2_engine.py reports
# Beside these the kernel and the host's name may differ: a resumed run may stand on another head node.
VERSIONS = ("python", "code", *PACKAGES)


@dataclass(frozen=True)
class Present:
    """Hashes and versions of now. `weights`, `scales` None: the backend names none; "": not to be told here.

    `loadgens` are the hashes of LoadGen, and of our own generator, by the name of the file in records ("" for
    any other name); one that is not here has no hash.
    """

    manifest: str
    library: str
    weights: str | None
    loadgens: dict[str, str]
    commit: str | None
    versions: dict[str, str | None]
    scales: str | None = None


def present_of(manifest: Manifest, library: Library) -> Present:
    """What tests of a manifest would run on now; reads the weights, unless the manifest names their hash."""
    official = _loadgen_file(manifest)
    known = versions()
    return Present(
        manifest=hashlib.sha256(manifest.raw).hexdigest(),
        library=library.digest,
        weights=_weights(manifest),
        loadgens={OWN_FILE: generator_sha256(), "": _sha256(official)},
        commit=commit_of()["commit"],
        versions={name: known.get(name) for name in VERSIONS},
        scales=_scales(manifest),
    )


def _scales(manifest: Manifest) -> str | None:
    """As the torch engine reports it."""
    written = getattr(manifest.backend, "scales", None)
    if written is None:
        return None
    if expected := getattr(manifest.backend, "scales_sha256", None):
        return str(expected)
    try:
        return sha256_of(locate(manifest.resolve(written)))
    except (LocateError, BackendError):
        return ""  # on the workers' hosts alone


def _weights(manifest: Manifest) -> str | None:
    """As the backends report it. A hash that the manifest names is checked by every worker as it loads."""
    backend = manifest.backend
    written = getattr(backend, "weights", None)
    if written is None:
        return None
    if expected := getattr(backend, "weights_sha256", None):
        return str(expected)
    try:
        place = locate(manifest.resolve(written))
        if backend.engine == "onnx":
            return sha256_of_all(onnx_files(place))
        return sha256_of(place / CTRANSLATE2_WEIGHTS if backend.engine == "ctranslate2" else place)
    except (LocateError, BackendError):
        return ""  # on the workers' hosts alone


def _loadgen_file(manifest: Manifest) -> Path | None:
    """The module that a test would import; it is found, never imported: a driver has no LoadGen in it."""
    folder = manifest.loadgen_folder()
    if folder is None:
        spec = importlib.util.find_spec("mlperf_loadgen")
        return Path(spec.origin) if spec is not None and spec.origin else None
    files = (Path(folder) / f"mlperf_loadgen{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _sha256(file: Path | None) -> str:
    try:
        return "" if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""
