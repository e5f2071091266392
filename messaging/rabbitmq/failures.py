"""What goes wrong between aiormq and us, in the port's words.

BrokerError
├── BrokerUnavailable
│   ├── ConnectionRefused   wrong credentials or certificates, no such vhost: waiting does not help
│   ├── ChannelLost         a channel or its connection ended in the middle: trying again helps
│   └── AccessRefused       our user may not do this
├── TopologyMismatch        406, 405
└── QueueMissing            404
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    InvalidFrameError,
    ProbableAuthenticationError,
)

from messaging.port import BrokerUnavailable, QueueMissing, TopologyMismatch


class ConnectionRefused(BrokerUnavailable):
    """The broker was reached and refused us."""


class ChannelLost(BrokerUnavailable):
    """The channel or its connection ended while something was under way."""


class AccessRefused(BrokerUnavailable):
    """The broker does not permit this to our user."""


@contextmanager
def connecting(to: str) -> Iterator[None]:
    """Translate what connecting raises.

    Args:
        to: The broker's address and vhost, without the password.

    Raises:
        ConnectionRefused: Neither waiting nor trying again helps.
        BrokerUnavailable: It cannot be reached at the moment.
    """
    with _heeding_cancellation():
        try:
            yield
        except (ProbableAuthenticationError, AuthenticationError) as error:
            raise ConnectionRefused(f"{to} refused the user name or the password: {error}") from error
        except InvalidFrameError as error:
            # aiormq does not tell why connection.open was refused: it only says which frame it did not expect.
            if "Connection.Close" not in str(error):
                raise BrokerUnavailable(f"{to} does not speak AMQP 0-9-1: {error}") from error
            raise ConnectionRefused(
                f"{to} refused the vhost: it does not exist, our user may not use it, or it takes no more connections "
                "(the broker's log says which)"
            ) from error
        except (AMQPError, OSError, RuntimeError) as error:
            if (objection := tls_objection(error)) is not None:
                raise ConnectionRefused(f"{to} {objection}") from error
            raise BrokerUnavailable(f"{to} cannot be reached: {reason(error)}") from error
        except asyncio.CancelledError as error:
            raise BrokerUnavailable(f"{to} cannot be reached: the connection ended while it was made") from error


@contextmanager
def using_channel(what: str) -> Iterator[None]:
    """Translate what a call on a channel raises.

    Args:
        what: What is being done, and to what: the beginning of the message.

    Raises:
        TopologyMismatch: The thing exists otherwise, or belongs to another connection.
        QueueMissing: It does not exist.
        AccessRefused: Our user may not.
        ChannelLost: The channel or the connection ended.
    """
    with _heeding_cancellation():
        try:
            yield
        except (ChannelPreconditionFailed, ChannelLockedResource) as error:
            raise TopologyMismatch(f"{what} was refused; RabbitMQ says: {reason(error)}") from error
        except ChannelNotFoundEntity as error:
            raise QueueMissing(f"{what} failed; RabbitMQ says: {reason(error)}") from error
        except ChannelAccessRefused as error:
            raise AccessRefused(f"{what} is not permitted; RabbitMQ says: {reason(error)}") from error
        except (AMQPError, OSError, RuntimeError) as error:  # RuntimeError: what aiormq raises on closed channels
            raise ChannelLost(f"{what} was cut off: {reason(error)}") from error
        except asyncio.CancelledError as error:
            raise ChannelLost(f"{what} was cut off: the connection was lost") from error


def reason(error: BaseException | None) -> str:
    """Return what *error* says, in one line; some of aiormq's errors say nothing but their name."""
    if error is None:
        return "closed"
    text = " ".join(str(argument) for argument in error.args if argument is not None) or str(error)
    return text or type(error).__name__


def tls_objection(error: BaseException) -> str | None:
    """Return what one side has against the other's TLS, or None where that is not what went wrong."""
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, ssl.SSLError):
        origin = origin.__cause__
    match origin:
        case None:
            return None
        case ssl.SSLCertVerificationError(verify_message=why):
            return (
                f"shows a certificate that is not to be trusted: {why}. Name the authority that signed it in "
                "FORKJOIN_AMQP_CA_FILE, and the host in FORKJOIN_AMQP_URL as the certificate has it"
            )
        case ssl.SSLError(reason=str(why)) if "CERTIFICATE" in why or "UNKNOWN_CA" in why:
            return (
                f"does not take our certificate ({_in_words(why)}): set FORKJOIN_AMQP_CERT_FILE and "
                "FORKJOIN_AMQP_KEY_FILE to one that it trusts"
            )
        case ssl.SSLError(reason=str(why)) if why != "UNEXPECTED_EOF_WHILE_READING":
            return f"does not speak TLS as we do ({_in_words(why)}): is it the port for it? That is usually 5671"
        case _:
            return None


def _in_words(reason: str) -> str:
    return reason.lower().replace("_", " ")


@contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """Raise CancelledError if and only if our task was cancelled meanwhile.

    aiormq cancels whoever waits when a connection dies of missed heartbeats, and the other way round it loses a
    cancellation that meets the end of a channel: that comes out as the channel's error, or not at all. Only a task that
    somebody cancelled counts cancellations; one that cleans up after an earlier one goes on.
    """
    before = _times_cancelled()
    try:
        yield
    except BaseException as error:
        if _times_cancelled() > before:
            raise asyncio.CancelledError from error
        raise
    if _times_cancelled() > before:
        raise asyncio.CancelledError


def _times_cancelled() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
