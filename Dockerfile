# Sheaf's images, one target each: operator, gateway, engine-agent, engine.
#
#   docker build --target operator --tag sheaf-operator .
#
# BASE_IMAGE is any Debian-like image with Python 3.11 or later, its pip and venv. Releases pin it by digest
# (NAME:TAG@sha256:...). Behind a proxy with its own certificates, mount them: --volume or a build secret; nothing of
# the machine that builds is written here.
#
# Dependencies are pinned with their hashes in requirements/TARGET.txt and come as wheels only: no code of theirs runs
# while an image is built, and no image holds a compiler, pip or the sources' tests.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG ENGINE_BASE_IMAGE=vllm/vllm-openai:v0.32.0

# The user has no line in /etc/passwd, and some library always asks for its name.
FROM ${BASE_IMAGE} AS base
ENV PATH=/opt/sheaf/bin:$PATH \
    HOME=/tmp \
    USER=sheaf \
    LOGNAME=sheaf \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

FROM ${BASE_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_COMPILE=1 \
    PIP_NO_DEPS=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv --without-pip /opt/sheaf

FROM builder AS wheel
COPY requirements/build.txt /tmp/build.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/sheaf/bin/python install --only-binary :all: --require-hashes --requirement /tmp/build.txt
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY crds/sheaf_crds crds/sheaf_crds
COPY engine/sheaf_engine engine/sheaf_engine
COPY gateway/sheaf_gateway gateway/sheaf_gateway
COPY operator/sheaf_operator operator/sheaf_operator
COPY sheaf/sheaf sheaf/sheaf
RUN /opt/sheaf/bin/hatchling build --target wheel --directory /dist

# Bytecode is made here, once: the file systems of the pods are read-only. It is not checked against the sources'
# times, which a copy between stages need not keep.
FROM builder AS operator-environment
COPY requirements/operator.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/sheaf/bin/python install --only-binary :all: --require-hashes --requirement /tmp/requirements.txt
COPY --from=wheel /dist /dist
RUN python3 -m pip --python /opt/sheaf/bin/python install --no-index /dist/*.whl \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/sheaf/lib

FROM builder AS gateway-environment
COPY requirements/gateway.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/sheaf/bin/python install --only-binary :all: --require-hashes --requirement /tmp/requirements.txt
COPY --from=wheel /dist /dist
RUN python3 -m pip --python /opt/sheaf/bin/python install --no-index /dist/*.whl \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/sheaf/lib

FROM builder AS engine-agent-environment
COPY requirements/engine-agent.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/sheaf/bin/python install --only-binary :all: --require-hashes --requirement /tmp/requirements.txt
COPY --from=wheel /dist /dist
RUN python3 -m pip --python /opt/sheaf/bin/python install --no-index /dist/*.whl \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/sheaf/lib

# The operator: watches the cluster, owns the engine pods. Metrics and health on 8080.
FROM base AS operator
LABEL org.opencontainers.image.title="sheaf-operator" \
      org.opencontainers.image.description="Sheaf's operator: models and adapters on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=operator-environment /opt/sheaf /opt/sheaf
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "sheaf_operator"]

# The gateway: one OpenAI-compatible endpoint for all models. Everything on 8000.
FROM base AS gateway
LABEL org.opencontainers.image.title="sheaf-gateway" \
      org.opencontainers.image.description="Sheaf's gateway: one OpenAI-compatible endpoint for many models and adapters" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=gateway-environment /opt/sheaf /opt/sheaf
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "sheaf_gateway"]

# The agent beside every engine, the fetching of models before it, and the emulator. The agent listens on 8001.
FROM base AS engine-agent
LABEL org.opencontainers.image.title="sheaf-engine-agent" \
      org.opencontainers.image.description="Sheaf's agent beside vLLM, model fetcher and engine emulator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=engine-agent-environment /opt/sheaf /opt/sheaf
USER 65532:65532
EXPOSE 8000 8001 5557 5558
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "sheaf_engine.agent"]

# vLLM with Sheaf's plug-in (the multi-LoRA kernels). It starts from an image that holds vLLM already, for the
# accelerator at hand; what is installed there keeps its version.
FROM ${ENGINE_BASE_IMAGE} AS engine
LABEL org.opencontainers.image.title="sheaf-engine" \
      org.opencontainers.image.description="vLLM with Sheaf's multi-LoRA kernels" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 0:0
COPY --from=wheel /dist /tmp/sheaf
RUN python3 -m pip freeze --exclude-editable > /tmp/sheaf/installed.txt \
 && python3 -m pip install --no-cache-dir --only-binary :all: --constraint /tmp/sheaf/installed.txt /tmp/sheaf/*.whl \
 && rm -r /tmp/sheaf
ENV PYTHONSAFEPATH=1
USER 65532:65532
EXPOSE 8000 5557 5558
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]
