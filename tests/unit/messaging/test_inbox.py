import asyncio

import pytest

from messaging.inbox import Inbox
from messaging.port import ConsumerClosed, Delivery


def delivery(number: int) -> Delivery:
    return Delivery("q", "", "q", None, None, b"%d" % number, None, None, {}, False, (1, number))


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [delivery.tag[1] for delivery in deliveries]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox("the-queue")


async def test_everything_that_waits_is_taken_in_order_up_to_the_limit(inbox: Inbox) -> None:
    for number in range(5):
        inbox.put(delivery(number))
    assert numbers(await inbox.take(3)) == [0, 1, 2]
    assert numbers(await inbox.take(3)) == [3, 4]


async def test_two_who_wait_share_what_arrives(inbox: Inbox) -> None:
    first, second = asyncio.create_task(inbox.take(1)), asyncio.create_task(inbox.take(1))
    await asyncio.sleep(0)
    inbox.put(delivery(1))
    inbox.put(delivery(2))
    assert sorted(numbers(await first) + numbers(await second)) == [1, 2]


async def test_a_cancelled_take_leaves_everything_there(inbox: Inbox) -> None:
    taking = asyncio.create_task(inbox.take(1))
    await asyncio.sleep(0)
    inbox.put(delivery(1))
    taking.cancel()
    await asyncio.wait([taking])
    assert taking.cancelled()
    assert numbers(await inbox.take(1)) == [1]


async def test_what_was_cleared_is_not_given_out(inbox: Inbox) -> None:
    inbox.put(delivery(1))
    inbox.clear()
    inbox.put(delivery(2))
    assert numbers(await inbox.take(10)) == [2]


async def test_closing_wakes_who_waits_and_refuses_who_comes_later(inbox: Inbox) -> None:
    taking = asyncio.create_task(inbox.take(1))
    await asyncio.sleep(0)
    inbox.close()
    with pytest.raises(ConsumerClosed, match="the-queue"):
        await taking
    inbox.put(delivery(1))
    with pytest.raises(ConsumerClosed):
        await inbox.take(1)


async def test_a_limit_below_one_is_a_mistake(inbox: Inbox) -> None:
    with pytest.raises(ValueError, match="0"):
        await inbox.take(0)
