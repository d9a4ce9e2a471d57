"""Follow the replies: python subscriber.py (AMQP_URL names the broker; needs aio-pika). Ends with Ctrl-C."""

import asyncio
import json
import os
from datetime import datetime

import aio_pika


async def main() -> None:
    """Print each new state of a record, once, and never an older one after a newer."""
    newest: dict[str, datetime] = {}  # modified_dateutc by id; a real subscriber keeps it with its data
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        queue = await channel.get_queue("task_activity_log.replies")
        async with queue.iterator() as replies:
            async for reply in replies:
                # Acknowledged when the block is left without an error: what fails comes again.
                async with reply.process(requeue=True):
                    if reply.content_type != "application/json":
                        continue  # problems, and replies to requests in XML
                    record = json.loads(reply.body)
                    # It grows with every write of a row, so repeats and stragglers are those that are not newer.
                    stamp = datetime.fromisoformat(record["modified_dateutc"])
                    if record["id"] in newest and stamp <= newest[record["id"]]:
                        continue
                    newest[record["id"]] = stamp
                    print(reply.headers["x-outcome"], record["id"], record["subject"], flush=True)


if __name__ == "__main__":
    asyncio.run(main())
