"""The first peer: a worker written as the documentation of aio-pika, pydantic and asyncpg suggests.

It has a prefetch of 100. For each message it does one upsert and publishes one confirmed reply, and acknowledges the
message when both are done. It has no inbox, no dead letters and no batches.
"""

import asyncio
import os
import signal
from datetime import datetime
from uuid import UUID
from xml.etree import ElementTree

import aio_pika
import asyncpg
from pydantic import BaseModel


class TaskActivityLog(BaseModel):
    """The record, as a reader of the API page would define it."""

    id: UUID
    task_id: UUID | None = None
    task_activity_id: UUID | None = None
    user_id: UUID | None = None
    contact_id: UUID | None = None
    subject: str | None = None
    description: str | None = None
    due_date: datetime | None = None
    is_closed: bool | None = None
    date_closed: datetime | None = None
    reference_back_office: str | None = None
    modified_dateutc: datetime | None = None


FIELDS = [name for name in TaskActivityLog.model_fields if name != "modified_dateutc"]
UPSERT = (
    f"INSERT INTO task_activity_log ({', '.join(FIELDS)})"  # noqa: S608 - made of the model's own names
    f" VALUES ({', '.join(f'${number}' for number in range(1, len(FIELDS) + 1))})"
    f" ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = EXCLUDED.{name}' for name in FIELDS[1:])}"
    f" RETURNING {', '.join(FIELDS)}, modified_dateutc"
)


async def main() -> None:
    """Consume until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=10, max_size=10)
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=100)
    replies = await channel.get_exchange("task_activity_log.replies")
    queue = await channel.get_queue("task_activity_log.upsert")

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process():
            if message.content_type == "application/xml":
                children = ElementTree.fromstring(message.body)
                record = TaskActivityLog.model_validate(
                    {child.tag.rpartition("}")[2]: child.text for child in children}
                )
            else:
                record = TaskActivityLog.model_validate_json(message.body)
            row = await pool.fetchrow(UPSERT, *(getattr(record, name) for name in FIELDS))
            stored = TaskActivityLog.model_validate(dict(row or {}))
            await replies.publish(
                aio_pika.Message(
                    stored.model_dump_json().encode(),
                    content_type="application/json",
                    correlation_id=message.correlation_id,
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                ),
                "stored.updated",
            )

    await queue.consume(handle)
    await stop.wait()
    await connection.close()
    await pool.close()


if __name__ == "__main__":
    asyncio.run(main())
