"""Which of the ways in which RabbitMQ ends a channel is which."""

import pytest
from aiormq.exceptions import AMQPConnectionError, ChannelNotFoundEntity, ChannelPreconditionFailed

from messaging.rabbitmq.ending import CANCELLED, channel_ending

# As RabbitMQ 3.10.8 writes it.
TIMED_OUT = (
    "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms. "
    "This timeout value can be configured, see consumers doc guide to learn more"
)


def test_a_delivery_that_was_held_too_long_is_told_with_the_time_that_was_allowed() -> None:
    ending = channel_ending(ChannelPreconditionFailed(TIMED_OUT))
    assert (ending.consumer_timeout, ending.connection_lost) == (1_800.0, False)


@pytest.mark.parametrize(
    "error",
    [
        ChannelPreconditionFailed("PRECONDITION_FAILED - unknown delivery tag 7"),
        ChannelPreconditionFailed("PRECONDITION_FAILED - inequivalent arg in queue 'a timed out b'"),
        ChannelNotFoundEntity(TIMED_OUT),
    ],
)
def test_other_reasons_to_close_a_channel_name_no_timeout(error: BaseException) -> None:
    ending = channel_ending(error)
    assert (ending.consumer_timeout, ending.connection_lost) == (None, False)
    assert str(error.args[0]) in ending.reason


@pytest.mark.parametrize("error", [None, AMQPConnectionError("gone"), ConnectionResetError()])
def test_a_lost_connection_is_told_apart(error: BaseException | None) -> None:
    assert channel_ending(error).connection_lost


def test_a_cancelled_consumer_may_have_timed_out_too() -> None:
    assert "consumer_timeout" in CANCELLED.reason
