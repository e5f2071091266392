#!/bin/sh
# Start everything, submit the example, and show its result and its steps. It may be run again.
set -eu
cd "$(dirname "$0")"
if [ ! -f .env ]; then
    echo "Copy .env.example to .env, and choose passwords in it." >&2
    exit 2
fi
docker compose up --build --detach --wait
run() { docker compose run --rm --no-TTY client "$@"; }
run submit /examples/parallel_workflow_example.json --input @/examples/parallel_workflow_input.json --wait
run runs list
