"""What `make bench` runs: every benchmark, against a RabbitMQ that the tests' own services provide."""

import asyncio
import sys

from tests.benchmarks import bench_messaging
from tests.services import rabbitmq

MESSAGES = 10_000


def main() -> None:
    """Take a broker, measure, and give it back."""
    broker = rabbitmq.take(_tell)
    try:
        _tell(f"RabbitMQ: {broker.origin}")
        asyncio.run(bench_messaging.main(broker.new_vhost(), MESSAGES))
    finally:
        broker.remove()


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
