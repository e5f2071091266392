# The worker: `forkjoin-worker`, without agents and without any database package. From the repository's root:
#   docker build --file deploy/docker/worker.Dockerfile --tag forkjoin-worker .
# With the agents of examples/: add --target example. With yours: agents.Dockerfile.

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY agent_worker agent_worker
COPY messaging messaging
COPY orchestrator orchestrator
COPY schemas schemas
# Without pip in it: the environment is copied as it is, and whoever adds to it brings one (agents.Dockerfile).
RUN python -m venv --without-pip /opt/forkjoin \
    && pip --python /opt/forkjoin/bin/python install --no-cache-dir --disable-pip-version-check \
        ".[monitoring,tracing]"

FROM python:3.12-slim AS worker
LABEL org.opencontainers.image.title="forkjoin worker" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN python -m pip uninstall --yes --quiet --root-user-action ignore pip \
    && groupadd --system --gid 10001 forkjoin \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin forkjoin
COPY --from=build /opt/forkjoin /opt/forkjoin
# Agents are imported from the working directory.
WORKDIR /app
ENV PATH=/opt/forkjoin/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FORKJOIN_LOG_FORMAT=json \
    FORKJOIN_HTTP_HOST=0.0.0.0 \
    FORKJOIN_HTTP_PORT=8080
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-m", "messaging.monitoring.probe", "/livez"]
ENTRYPOINT ["forkjoin-worker"]
CMD ["agents:agents"]

FROM worker AS example
COPY examples examples
CMD ["examples.agents:agents"]

# What is built unless a target is named.
FROM worker
