"""Settings that both services share, from environment variables that start with ``FORKJOIN_``."""

from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from messaging.telemetry import LogFormat, LogLevel

PREFIX: Final = "FORKJOIN_"


class SettingsInvalid(Exception):
    """Some settings are wrong; names each variable and what would be right, and never shows a value."""


class ServiceSettings(BaseSettings):
    """What every service can be told; the name of each variable is the field's in capitals, after ``FORKJOIN_``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    amqp_url: SecretStr = Field(
        SecretStr("amqp://guest:guest@localhost:5672/"), description="RabbitMQ, amqp:// or amqps://."
    )
    log_level: LogLevel = Field(LogLevel.INFO, description="DEBUG, INFO, WARNING, ERROR or CRITICAL.")
    log_format: LogFormat | None = Field(None, description="console or json; by default console on a terminal.")

    http_host: Annotated[str, Field(min_length=1)] = Field(
        "127.0.0.1", description="Where the HTTP port is open; 0.0.0.0 or :: for every address of the machine."
    )
    http_port: Annotated[int, Field(ge=0, le=65_535)] | None = Field(
        None, description="The port for /livez, /readyz and /metrics; 0 takes a free one. Off unless set."
    )

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Return the settings from the environment; what is *given* and not None goes first.

        Raises:
            SettingsInvalid: Some are wrong.
        """
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise SettingsInvalid("\n".join(_told(found) for found in error.errors(include_input=False))) from None

    @classmethod
    def variables(cls) -> list[tuple[str, str]]:
        """Return each environment variable with what it sets, for ``--help``."""
        return [(f"{PREFIX}{name.upper()}", field.description or "") for name, field in cls.model_fields.items()]

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("amqp_url")
    @classmethod
    def _names_a_broker(cls, value: SecretStr) -> SecretStr:
        right = "write amqp://user:password@host:5672/vhost, or amqps:// for TLS"
        try:
            parts = urlsplit(value.get_secret_value())
            port_is_wrong = parts.port == 0
        except ValueError:  # its text may quote the URL, and with it the password
            raise ValueError(f"not a URL that can be read; {right}") from None
        if parts.scheme not in {"amqp", "amqps"}:
            raise ValueError(f"not a URL of RabbitMQ; {right}")
        if not parts.hostname or port_is_wrong:
            raise ValueError(f"it names no host, or port 0; {right}")
        return value


def _told(found: Any) -> str:
    variable = PREFIX + str(found["loc"][0]).upper()
    message = found["msg"].removeprefix("Value error, ")
    return f"{variable} is wrong: {message[:1].lower()}{message[1:]}"
