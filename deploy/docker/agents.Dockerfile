# A worker with your agents: copy this beside them, with a requirements.txt of what they need, and build it there.
#   docker build --file agents.Dockerfile --tag my-agents .
ARG WORKER=forkjoin-worker

FROM ${WORKER} AS worker

FROM python:3.12-slim AS build
COPY --from=worker /opt/forkjoin /opt/forkjoin
COPY requirements.txt ./
RUN pip --python /opt/forkjoin/bin/python install --no-cache-dir --disable-pip-version-check \
    --requirement requirements.txt

FROM worker
COPY --from=build /opt/forkjoin /opt/forkjoin
# The module `agents.py` with an AgentRegistry named `agents`, and what it imports from beside it.
COPY *.py ./
CMD ["agents:agents"]
