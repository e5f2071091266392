"""The worker of the bare request/reply: aio-pika as its documentation shows it, and nothing of ours.

For each request it publishes a reply, waits for the confirm, and acks.
"""

import asyncio
import sys

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage


async def main(url: str, queue_name: str, prefetch: int) -> None:
    """Answer requests until the process is killed."""
    connection = await aio_pika.connect(url)
    publishing, consuming = await connection.channel(), await connection.channel()
    await consuming.set_qos(prefetch)
    queue = await consuming.get_queue(queue_name)

    async def answer(request: AbstractIncomingMessage) -> None:
        assert request.reply_to is not None
        reply = aio_pika.Message(request.body, correlation_id=request.correlation_id, delivery_mode=2)
        await publishing.default_exchange.publish(reply, request.reply_to, mandatory=True)
        await request.ack()

    await queue.consume(answer)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
