"""The `backend` section of a manifest, one class an engine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.manifest_types import Name, PathText, Section, Seed, Sha256


class EchoBackend(Section):
    """No model: answers at once or after a simulated service time."""

    engine: Literal["echo"] = Field(description="echo: answers without computing.")
    service_time_us: float = Field(
        default=0.0, ge=0, le=6e7, description="Simulated service time of a batch, us. 0: at once."
    )
    service_time_per_sample_us: float = Field(
        default=0.0,
        ge=0,
        le=6e7,
        description="Simulated service time of each sample of a batch, in addition, us.",
    )
    service_time_distribution: Literal["fixed", "exponential"] = Field(
        default="fixed", description="fixed: always the service time; exponential: that on average, seeded."
    )
    response_bytes: int = Field(
        default=4, ge=0, le=2**30, description="Bytes of an answer; the first 4 are the index."
    )
    seed: Seed = Field(default=0, description="Seed of the random service times.")


class TorchBackend(Section):
    """A PyTorch module."""

    engine: Literal["torch"] = Field(description="torch: a PyTorch module on CPU or CUDA.")
    model: Name = Field(description="The architecture, a file of workers/models.")
    weights: PathText | None = Field(
        default=None,
        description="File of weights; relative to the manifest, or package:NAME/FILE. null: seeded weights.",
    )
    weights_sha256: Sha256 | None = Field(default=None, description="Hash that the weights file must have.")
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8"] = Field(
        default="fp32",
        description="Number format of the computation. int8 and fp8: the networks that have kernels for it.",
    )
    scales: PathText | None = Field(
        default=None,
        description="File of the scales of int8 and fp8, made by loadgrid calibrate; relative to the "
        "manifest. null: of random samples, with seeded weights only.",
    )
    scales_sha256: Sha256 | None = Field(default=None, description="Hash that the scales' file must have.")
    channels_last: bool = Field(default=False, description="Lay images out channels last.")
    cuda_graphs: bool = Field(
        default=True, description="Capture a CUDA graph for every batch size in use (CUDA only)."
    )
    gather: Literal["auto", "host"] = Field(
        default="auto",
        description="How loaded samples get to a GPU. auto: it fetches them from pinned memory where "
        "it can; host: a thread of the host stacks them.",
    )
    compile: bool = Field(default=False, description="torch.compile the module, before the clock starts.")
    threads: int | None = Field(
        default=None, ge=1, le=4096, description="CPU threads of a worker. null: its share."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the model, which checks them."
    )


class OnnxBackend(Section):
    """An ONNX file, computed by onnxruntime."""

    engine: Literal["onnx"] = Field(description="onnx: onnxruntime on CPU or CUDA.")
    weights: PathText = Field(description="The ONNX file; relative to the manifest, or package:NAME/FILE.")
    weights_sha256: Sha256 | None = Field(default=None, description="Hash that the file must have.")
    model: Name | None = Field(default=None, description="The reference network that the file holds.")
    threads: int | None = Field(
        default=None, ge=1, le=4096, description="CPU threads of a worker. null: its share."
    )


class Ctranslate2Backend(Section):
    """A folder of CTranslate2 weights."""

    engine: Literal["ctranslate2"] = Field(description="ctranslate2: CTranslate2 on CPU or CUDA.")
    weights: PathText = Field(description="The folder; relative to the manifest, or package:NAME/FOLDER.")
    weights_sha256: Sha256 | None = Field(default=None, description="Hash that its model.bin must have.")
    model: Name | None = Field(default=None, description="The reference network that the folder holds.")
    precision: Literal["fp32", "fp16", "bf16", "int8"] = Field(
        default="fp32", description="Number format of the computation."
    )
    threads: int | None = Field(
        default=None, ge=1, le=4096, description="CPU threads of a worker. null: its share."
    )
