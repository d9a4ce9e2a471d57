"""Follow the replies: python subscriber.py (AMQP_URL names the broker; needs aio-pika). Stop it with Ctrl-C."""

import asyncio
import contextlib
import json
import os
from datetime import datetime

import aio_pika


async def main() -> None:
    """Print each new state of a record once, and never an older state after a newer one."""
    newest: dict[str, datetime] = {}  # modified_dateutc by id; a real subscriber stores it with its data
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        queue = await channel.get_queue("task_activity_log.replies")
        async with queue.iterator() as replies:
            async for reply in replies:
                # Acknowledged when the block ends without an exception; otherwise requeued and delivered again.
                async with reply.process(requeue=True):
                    if reply.type == "task_activity_log.rejected":
                        print("rejected", reply.headers["x-error-code"], reply.correlation_id, flush=True)
                        continue
                    if reply.type != "task_activity_log.stored":
                        print("not a reply of the worker:", reply.type, flush=True)
                        continue
                    if reply.content_type != "application/json":
                        continue  # the reply to a request in XML, which this example does not read
                    record = json.loads(reply.body)
                    # modified_dateutc grows with each write of a row: a repeated or late reply is not newer.
                    stamp = datetime.fromisoformat(record["modified_dateutc"])
                    if record["id"] in newest and stamp <= newest[record["id"]]:
                        continue
                    newest[record["id"]] = stamp
                    print(reply.headers["x-outcome"], record["id"], record["subject"], flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
