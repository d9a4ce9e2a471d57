"""Follow the replies: python subscriber.py (AMQP_URL names the broker; needs aio-pika).

It connects again after an outage; stop it with Ctrl-C.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from datetime import datetime

import aio_pika

newest: dict[str, datetime] = {}  # modified_dateutc by id; a real subscriber stores it with its data


def handle(reply: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Print each new state of a record once, and never an older state after a newer one."""
    if reply.type == "task_activity_log.rejected":
        print("rejected", reply.headers["x-error-code"], reply.correlation_id, flush=True)
    elif reply.type != "task_activity_log.stored":
        print("not a reply of the worker:", reply.type, flush=True)
    elif reply.content_type != "application/json":  # a reply has the format of its request
        print("in XML, which this example does not read:", reply.correlation_id, flush=True)
    else:
        record = json.loads(reply.body)
        # modified_dateutc grows with each write of a row: a repeated or late reply is not newer.
        stamp = datetime.fromisoformat(record["modified_dateutc"])
        if record["id"] not in newest or stamp > newest[record["id"]]:
            newest[record["id"]] = stamp
            print(reply.headers["x-outcome"], record["id"], record["subject"], flush=True)


async def follow() -> None:
    """Handle the replies until the connection is lost."""
    async with await aio_pika.connect(os.environ["AMQP_URL"]) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        queue = await channel.get_queue("task_activity_log.replies")
        async with queue.iterator() as replies:
            async for reply in replies:
                # Acknowledged when the block ends without an exception; otherwise requeued and delivered again.
                async with reply.process(requeue=True):
                    handle(reply)
    raise ConnectionError("the broker has closed the connection")


async def main() -> None:
    """Follow the replies, and connect again after an outage."""
    while True:
        try:
            await follow()
        except (OSError, aio_pika.exceptions.AMQPError) as error:
            print(f"no replies: {error}; trying again in 5 s", file=sys.stderr)
        await asyncio.sleep(5)


if __name__ == "__main__":
    logging.getLogger("aiormq.connection").setLevel(logging.CRITICAL)  # it logs what it raises
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
