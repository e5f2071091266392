"""The orchestrator's settings, from environment variables that start with ``FORKJOIN_``."""

import os
import secrets
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from messaging.limits import MAX_MESSAGE_BYTES
from messaging.settings import ServiceSettings
from schemas.messages import AgentName

WorkerUser = Annotated[str, Field(min_length=1, max_length=255)]


def _replica_id() -> str:
    return f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(3)}"


class Settings(ServiceSettings):
    """What the orchestrator and the `forkjoin` command can be told."""

    database_url: SecretStr | None = Field(
        None, description="Postgres: postgresql://user:password@host/name. Without it, the embedded one."
    )
    database_pool_size: Annotated[int, Field(ge=4, le=1_000)] = Field(
        10, description="Connections to Postgres at most."
    )
    data_dir: Path = Field(Path(".forkjoin"), description="Where the embedded Postgres keeps its data.")
    agents: str | None = Field(None, description="For `forkjoin run`: the MODULE:REGISTRY of the agents.")
    replica_id: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")] = Field(
        default_factory=_replica_id, description="Unique to the process; stands in leases and logs."
    )
    unknown_agent_after: Annotated[float, Field(gt=0)] = Field(
        60.0, description="Seconds for which a task that no queue takes is tried before its step fails."
    )
    silent_after: Annotated[float, Field(ge=0.1)] = Field(
        30.0,
        description="Seconds without a sign of life after which a task that its queue does not hold is sent again.",
    )
    worker_users: dict[WorkerUser, frozenset[AgentName]] | None = Field(
        None,
        description='As JSON, who may report for which agents: {"analysts": ["keywords"]}. Reports that such a user '
        "has not signed are refused. Needs FORKJOIN_AMQP_SIGN, here and at the workers.",
    )
    management_url: SecretStr | None = Field(
        None, description="RabbitMQ's management API, http://user:password@host:15672, for `forkjoin doctor`."
    )
    drain_timeout: Annotated[float, Field(gt=0)] = Field(
        30.0, description="Seconds to finish what is under way after SIGTERM."
    )
    max_message_bytes: Annotated[int, Field(ge=1_024)] = Field(
        MAX_MESSAGE_BYTES, description="The broker's limit for one message."
    )

    @field_validator("worker_users")
    @classmethod
    def _is_signed_with(cls, value: dict[str, frozenset[str]] | None, info: ValidationInfo) -> Any:
        if value is not None and not info.data.get("amqp_sign"):
            raise ValueError("set FORKJOIN_AMQP_SIGN too: results of sub-workflows must be signed by orchestrators")
        return value
