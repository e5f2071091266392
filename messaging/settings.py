"""Settings that both services share, from environment variables that start with ``FORKJOIN_``."""

from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from messaging.telemetry import LogFormat, LogLevel
from messaging.tls import TlsFiles

PREFIX: Final = "FORKJOIN_"

# What aiormq would take from the URL.
_TLS_PARAMETERS: Final = frozenset({"cafile", "capath", "cadata", "certfile", "keyfile", "no_verify_ssl"})


class SettingsInvalid(Exception):
    """Some settings are wrong; names each variable and what would be right, and never shows a value."""


class ServiceSettings(BaseSettings):
    """What every service can be told; the name of each variable is the field's in capitals, after ``FORKJOIN_``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    amqp_url: SecretStr = Field(
        SecretStr("amqp://guest:guest@localhost:5672/"), description="RabbitMQ, amqp:// or amqps://."
    )
    amqp_ca_file: Path | None = Field(
        None, description="For amqps://: the authorities to trust, as PEM; by default the system's."
    )
    amqp_key_file: Path | None = Field(None, description="For amqps://: our certificate's key, without a passphrase.")
    amqp_cert_file: Path | None = Field(
        None, description="For amqps://: our certificate as PEM, where RabbitMQ wants one.", validate_default=True
    )
    amqp_sign: bool = Field(False, description="Sign what is published with our user's name, which RabbitMQ verifies.")
    log_level: LogLevel = Field(LogLevel.INFO, description="DEBUG, INFO, WARNING, ERROR or CRITICAL.")
    log_format: LogFormat | None = Field(None, description="console or json; by default console on a terminal.")

    tracing: bool = Field(
        False, description="Export spans by OTLP over HTTP; where to and how many, the OTEL_ variables say."
    )

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
        if not _TLS_PARAMETERS.isdisjoint(name for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
            raise ValueError(
                "certificates do not go into the URL, and are always verified; set FORKJOIN_AMQP_CA_FILE, "
                "FORKJOIN_AMQP_CERT_FILE and FORKJOIN_AMQP_KEY_FILE"
            )
        return value

    @field_validator("amqp_ca_file", "amqp_key_file", "amqp_cert_file")
    @classmethod
    def _goes_with_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        url = info.data.get("amqp_url")
        if value is not None and url is not None and urlsplit(url.get_secret_value()).scheme != "amqps":
            raise ValueError("it is for TLS, and FORKJOIN_AMQP_URL has none: write amqps://")
        return value

    @field_validator("amqp_ca_file")
    @classmethod
    def _holds_authorities(cls, value: Path | None) -> Path | None:
        TlsFiles(ca=value).context()
        return value

    @field_validator("amqp_cert_file")
    @classmethod
    def _has_its_key(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        key = info.data.get("amqp_key_file")
        if value is None and key is not None:
            raise ValueError("the key in FORKJOIN_AMQP_KEY_FILE goes with a certificate")
        if value is not None:
            TlsFiles(certificate=value, key=key).context()
        return value

    @property
    def amqp_tls(self) -> TlsFiles:
        """The files for `amqps://`."""
        return TlsFiles(self.amqp_ca_file, self.amqp_cert_file, self.amqp_key_file)


def _told(found: Any) -> str:
    variable = PREFIX + str(found["loc"][0]).upper()
    message = found["msg"].removeprefix("Value error, ")
    return f"{variable} is wrong: {message[:1].lower()}{message[1:]}"
