"""What can be set, by environment variables with the prefix FORKJOIN_."""

import os
import secrets
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _replica_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Settings(BaseSettings):
    """The orchestrator's settings."""

    model_config = SettingsConfigDict(env_prefix="FORKJOIN_", extra="ignore")

    amqp_url: SecretStr = Field(SecretStr("amqp://guest:guest@localhost:5672/"), description="RabbitMQ.")
    database_url: SecretStr | None = Field(
        None, description="Postgres: postgresql://user:password@host/name. Without it, the embedded one is used."
    )
    database_pool_size: int = Field(10, ge=4, description="Connections to Postgres at most.")
    data_dir: Path = Field(Path(".forkjoin"), description="Where the embedded Postgres keeps its data.")
    replica_id: str = Field(default_factory=_replica_id, min_length=1, max_length=100, pattern=r"^[\w.-]+$")
    unknown_agent_after: float = Field(
        60.0, gt=0, description="Seconds for which a task that no queue takes is tried before its step fails."
    )
    max_message_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="The broker's limit for one message.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"
