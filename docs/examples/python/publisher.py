"""Send one upsert and wait for its answer: python publisher.py (AMQP_URL names the broker; needs aio-pika)."""

import asyncio
import json
import logging
import os
import time
import uuid

import aio_pika


async def main() -> None:
    """Publish, wait, and print the stored record or the problem."""
    connection = await aio_pika.connect(os.environ["AMQP_URL"])
    async with connection:
        # With on_return_raises, a message that reaches no queue raises an exception instead of being lost silently.
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        replies = await channel.declare_queue(exclusive=True)
        exchange = await channel.get_exchange("task_activity_log")

        record = {
            "id": str(uuid.uuid4()),
            "subject": "Call back about the offer",
            "due_date": "2026-01-11T20:58:34.7203833+00:00",
            "is_closed": False,
        }
        # Create one message_id per change and keep it: a change sent again with the same message_id is not applied twice.
        message_id = str(uuid.uuid4())
        await exchange.publish(
            aio_pika.Message(
                json.dumps(record).encode(),
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=message_id,
                app_id="example",  # the name of your program, by which operators select its dead letters
                priority=4,  # the same as that of publishers that set none; aio-pika would set 0
                reply_to=replies.name,
                timestamp=time.time(),
            ),
            # Where workers share partitions: exchange "task_activity_log.by-record", and as routing key
            # hashlib.sha256(record["id"].encode()).hexdigest()[:2] (the id in lower case).
            routing_key="upsert",
            mandatory=True,
        )
        async with asyncio.timeout(30), replies.iterator(no_ack=True) as answers:
            async for answer in answers:
                if answer.correlation_id == message_id:
                    print(answer.headers["x-outcome"], answer.body.decode())
                    return


if __name__ == "__main__":
    logging.getLogger("aiormq.connection").setLevel(logging.CRITICAL)  # it logs what it raises
    try:
        asyncio.run(main())
    except (OSError, aio_pika.exceptions.AMQPError) as error:  # no connection, no answer in time, or the broker refuses
        raise SystemExit(f"not answered: {error or 'no answer in 30 s'}") from None
