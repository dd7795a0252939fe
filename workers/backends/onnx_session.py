"""An ONNX file as a network: a session of onnxruntime, its facts, and one batch through it.

The task translates between its samples and the names and layouts of the reference's published file
(onnx_inputs, onnx_outputs), so that a submitter brings that file and nothing else.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from workers.backends import BackendError
from workers.backends.slots import Computed
from workers.backends.weight_files import onnx_files, sha256_of_all
from workers.installed import LocateError, locate
from workers.tasks import Task, counts_of

PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


@dataclass(frozen=True)
class OnnxOptions:
    """The manifest's `backend` section as far as it concerns this engine, and two facts from the driver.

    These are `device` and `workers_on_host`. `threads` 0 means the host's cores divided by its workers;
    `model` is the name of the reference network that the file is said to be.
    """

    weights: str = ""
    weights_sha256: str = ""
    model: str = ""
    device: str = "cpu"
    threads: int = 0
    workers_on_host: int = 1


class OnnxTask(Task, Protocol):
    """A task whose reference has an ONNX file."""

    def onnx_inputs(self, rows: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The file's inputs by name, from what collate and counts gave."""

    def onnx_outputs(
        self, outputs: dict[str, np.ndarray], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What respond takes, from the file's outputs by name."""


class OnnxNetwork:
    """One session and the task's names for its inputs and outputs.

    A file that takes batches of one size only gets smaller ones filled up with their last sample.
    """

    def __init__(self, options: OnnxOptions, task: OnnxTask, max_batch: int, threads: int) -> None:
        file, sha256 = _checked_file(options)
        available = onnxruntime.get_available_providers()
        wanted = PROVIDERS[options.device]
        if wanted[0] not in available:
            raise BackendError(
                f"engine 'onnx' on {options.device} needs {wanted[0]}, this onnxruntime has "
                f"{', '.join(available)}; pip install onnxruntime-gpu in place of onnxruntime"
            )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3  # errors; warnings about folded constants are no user's business
        try:
            self._session = onnxruntime.InferenceSession(str(file), settings, providers=wanted)
        except Exception as error:
            # onnxruntime's own exception classes are not part of its documented interface.
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise BackendError(f"backend.weights: {file} is no ONNX file that loads: {why}") from None
        if self._session.get_providers()[0] != wanted[0]:
            raise BackendError(
                f"onnxruntime fell back to {self._session.get_providers()[0]}: is CUDA installed?"
            )
        self._task = task
        self._file = file
        self._inputs = {i.name: i.shape for i in self._session.get_inputs()}
        self._fixed_batch = _fixed_batch(list(self._inputs.values()))
        if 0 < self._fixed_batch < max_batch:
            raise BackendError(
                f"backend.weights: {file} takes batches of {self._fixed_batch} at most, not {max_batch}; "
                f"set workers.max_batch: {self._fixed_batch}"
            )
        self.output_names = [output.name for output in self._session.get_outputs()]
        self.facts: dict[str, Any] = {
            "engine": "onnx",
            "model": options.model or file.stem,
            "model_hash": sha256,
            "weights": file.name,
            "weights_sha256": sha256,
            "precision": "as in the file",
            "device": _device(options.device),
            "threads": threads,
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        }

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        """One batch through the file."""
        began = time.perf_counter()
        counts = counts_of(self._task, samples)
        inputs = self._task.onnx_inputs(self._task.collate(samples), counts)
        inputs = self._chosen(inputs)
        rows = self._filled_up(inputs)
        fed = time.perf_counter()
        found = self._session.run(self.output_names, inputs)
        done = time.perf_counter()
        if rows < self._fixed_batch:
            full = (self._fixed_batch,)
            found = [one[:rows] if getattr(one, "shape", ())[:1] == full else one for one in found]
        named = dict(zip(self.output_names, found, strict=True))
        outputs, out_counts = self._answers(named, counts)
        return Computed(outputs, out_counts, fed - began, done - fed)

    def _filled_up(self, inputs: dict[str, np.ndarray]) -> int:
        """Repeat the last row of every input up to the file's batch; returns how many there were."""
        rows = len(next(iter(inputs.values()))) if inputs else 0
        missing = self._fixed_batch - rows
        if self._fixed_batch and missing:
            if missing < 0 or any(len(array) != rows for array in inputs.values()):
                raise BackendError(
                    f"{self._file} takes {self._fixed_batch} rows at a time, and a batch of task "
                    f"{self._task.name!r} has {rows}; lower workers.max_batch"
                )
            for name, array in inputs.items():
                inputs[name] = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        return rows

    def _answers(
        self, named: dict[str, np.ndarray], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The task's outputs; BackendError unless there is one for each sample."""
        try:
            outputs, out_counts = self._task.onnx_outputs(named, counts)
        except KeyError as error:
            raise BackendError(
                f"the ONNX file has no output {error}; it has {', '.join(self.output_names)}: it is not the "
                f"reference's file for task {self._task.name!r}"
            ) from None
        except (IndexError, ValueError):
            outputs, out_counts = np.empty(0), None  # of another shape than the task can read
        wanted = len(counts) if out_counts is None else int(out_counts.sum())
        if len(outputs) != wanted or (out_counts is not None and len(out_counts) != len(counts)):
            shapes = ", ".join(f"{name} {getattr(one, 'shape', 'a list')}" for name, one in named.items())
            raise BackendError(
                f"{self._file} does not answer a batch of {len(counts)} samples one by one; it gives "
                f"{shapes}: it is not the reference's file for task {self._task.name!r}"
            )
        return outputs, out_counts

    def _chosen(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the file takes of what the task offers: files of one reference differ in their names."""
        if missing := [name for name in self._inputs if name not in inputs]:
            raise BackendError(
                f"the ONNX file takes {', '.join(missing)}, but task {self._task.name!r} gives only "
                f"{', '.join(sorted(inputs))}: it is not the reference's file for this task"
            )
        return {name: inputs[name] for name in self._inputs}


def _fixed_batch(shapes: list[Any]) -> int:
    """The batch that every input of the file begins with; 0: any, or not all begin with the batch."""
    sizes = {shape[0] if shape and type(shape[0]) is int else 0 for shape in shapes}
    return sizes.pop() if len(sizes) == 1 else 0


def _checked_file(options: OnnxOptions) -> tuple[Path, str]:
    """The file and its sha256, with those that its tensors lie in; the manifest's must be the same."""
    try:
        file = locate(options.weights)
    except LocateError as error:
        raise BackendError(f"backend.weights: {error}") from None
    files = onnx_files(file)
    sha256 = sha256_of_all(files)
    if options.weights_sha256 not in ("", sha256):
        what, how = str(file), ""
        if len(files) > 1:
            what = f"{file} with the other files of its tensors"
            how = f" (`sha256sum {' '.join(sorted(files))} | sha256sum`)"
        raise BackendError(f"backend.weights: {what} has sha256 {sha256}{how}, not backend.weights_sha256")
    return file, sha256


def _device(device: str) -> str:
    return f"cuda ({onnxruntime.get_device()})" if device == "cuda" else "cpu"
