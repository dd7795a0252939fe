# LoadGrid for every pod of a Ray cluster: head, driver, workers and KubeRay's submitter run this one image.
#
#   docker build -t loadgrid:TAG .                                           for GPUs: torch's CUDA build
#   docker build --build-arg PIP_EXTRA_INDEX_URL=URL -t loadgrid:TAG-cpu .   URL: an index with torch's CPU builds
#
# Build from a clean checkout, its .git included: the image then knows its commit, without which no run is official.
# No Docker engine was at hand when this was written: see docs/kubernetes.md for what was checked, and how.

# A tag can be moved; with BASE_DIGEST=sha256:... the base is this one for good.
ARG BASE=python:3.11.14-slim-trixie
ARG BASE_DIGEST=

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}} AS base
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]

FROM base AS build
# Debian keeps one version of a package at a time, so pinning it would break the build at the next update.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/loadgrid
ENV PATH=/opt/loadgrid/bin:$PATH
# pip reads them; without a value they are not set. torch's version is pinned without a local part, so that pip
# takes the CPU build (+cpu) where an index has one.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# Only for the onnx engine on GPUs: onnxruntime-gpu==VERSION.
ARG ONNXRUNTIME=

# The requirements first: gigabytes that change seldom, and so stay cached when only the code changes.
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY orchestrator/__init__.py orchestrator/
COPY workers/__init__.py workers/
# ray[default] has the dashboard: KubeRay asks it for jobs and health.
RUN pip install --no-cache-dir --constraint constraints.txt ".[benchmarks]" "ray[default]==2.60.0"; \
    if [ -n "${ONNXRUNTIME:-}" ]; then \
        pip uninstall --yes onnxruntime; \
        pip install --no-cache-dir --constraint constraints.txt --no-deps "$ONNXRUNTIME"; \
    fi

# All that git tracks, .git too: one file less and the checkout would count as changed.
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt --no-deps --force-reinstall .
# -P: the installed code, not the checkout's. Without its commit no run of the image is official, so the build ends
# here, unless ALLOW_UNKNOWN_COMMIT=yes.
ARG ALLOW_UNKNOWN_COMMIT=no
# hadolint ignore=DL3059
RUN python -P -m orchestrator.provenance /src || [ "$ALLOW_UNKNOWN_COMMIT" = yes ]

FROM base
# torch.compile builds code where it runs: inductor with g++ for CPUs, Triton with gcc for GPUs.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /bin/bash loadgrid; \
    install --directory --owner=loadgrid --group=loadgrid /runs /cache
COPY --from=build /opt/loadgrid /opt/loadgrid

# The root may be read-only: at run time everything is written to /tmp (Ray's sessions and logs, compiled kernels,
# matplotlib's fonts), /cache (prepared data sets) and /runs (evidence). NVIDIA's runtime reads the last one.
ENV PATH=/opt/loadgrid/bin:$PATH \
    HOME=/tmp \
    USER=loadgrid \
    LOADGRID_CACHE=/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# KubeRay 1.7 wants in the image: /bin/bash, `ray` and `python` in the PATH (its waits are `ray health-check` and
# python -c "import urllib..."). Its probes are HTTP from rayVersion 2.53 on; before, and where a RayCluster names no
# rayVersion, they run wget, which is not here. (ray-operator/controllers/ray/common/pod.go, utils/constant.go)
USER 10001:10001
WORKDIR /tmp
CMD ["loadgrid", "--help"]
