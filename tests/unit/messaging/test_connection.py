import aiormq

import messaging.rabbitmq.connection


async def test_an_answer_to_a_closed_channel_always_finds_room_among_the_frames_to_be_written() -> None:
    assert messaging.rabbitmq.connection.__name__, "importing it sees to that"
    assert aiormq.Connection("amqp://localhost").write_queue.maxsize == 0
