"""The worker's settings, from environment variables that start with ``FORKJOIN_``."""

from typing import Annotated

from pydantic import Field

from agent_worker.options import (
    DEFAULT_CONCURRENCY,
    DEFAULT_MAX_DELIVERIES,
    DEFAULT_MAX_RESULT_BYTES,
    WorkerOptions,
    new_worker_id,
)
from messaging.limits import MAX_MESSAGE_BYTES, MAX_PREFETCH
from messaging.settings import ServiceSettings

Duration = Annotated[float, Field(gt=0, le=7 * 86_400)]  # seconds


class WorkerSettings(ServiceSettings):
    """What a worker can be told, beside what every service can."""

    worker_id: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        default_factory=new_worker_id, description="Unique to the process; stands in results and logs."
    )
    worker_concurrency: Annotated[int, Field(ge=1, le=MAX_PREFETCH)] = Field(
        DEFAULT_CONCURRENCY, description="Attempts of each agent at once in this process."
    )
    worker_declare: bool = Field(True, description="Declare queues; false: first check that they exist.")
    worker_drain_timeout: Duration = Field(30.0, description="Seconds to finish what runs after SIGTERM.")
    worker_report_started_after: Annotated[float, Field(ge=0, le=86_400)] = Field(
        0.1, description="Seconds after which an attempt is reported as started."
    )
    worker_heartbeat_interval: Duration = Field(30.0, description="Seconds between signs of life of an attempt.")
    worker_max_result_bytes: Annotated[int, Field(ge=1_024, le=MAX_MESSAGE_BYTES)] = Field(
        DEFAULT_MAX_RESULT_BYTES, description="The largest result that is sent."
    )
    worker_max_deliveries: Annotated[int, Field(ge=1)] = Field(
        DEFAULT_MAX_DELIVERIES, description="A task that came back as often is failed, not run."
    )

    def options(self) -> WorkerOptions:
        """Return what the worker itself needs of this."""
        return WorkerOptions(
            worker_id=self.worker_id,
            concurrency=self.worker_concurrency,
            declare=self.worker_declare,
            report_started_after=self.worker_report_started_after,
            heartbeat_interval=self.worker_heartbeat_interval,
            drain_timeout=self.worker_drain_timeout,
            max_result_bytes=self.worker_max_result_bytes,
            max_deliveries=self.worker_max_deliveries,
        )
