"""Publish a few records and follow their replies: python client.py (AMQP_URL names the broker)."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator

from task_activity_log.client import (
    ClientError,
    Received,
    RejectedReply,
    StoredReply,
    TaskActivityLog,
    TaskActivityLogClient,
    UnreadableReply,
    Upsert,
    UpsertRejected,
    subscribe,
)

BROKER = os.environ["AMQP_URL"]


async def follow(replies: AsyncIterator[Received]) -> None:
    """Print each reply that goes to the subscribers."""
    async for reply in replies:
        match reply:
            case StoredReply(record):
                print("subscriber:", reply.outcome, record.subject)
            case RejectedReply(problem):
                print("subscriber:", problem.code, reply.correlation_id)
            case UnreadableReply(error):
                print("subscriber:", error)


async def publish(client: TaskActivityLogClient) -> None:
    """Publish one record, an invalid one, and several."""
    stored = await client.upsert(TaskActivityLog(id=uuid.uuid4(), subject="Call back about the offer"))
    print("publisher:", stored.outcome, stored.record.modified_dateutc)
    try:
        await client.upsert(Upsert(b'{"id": "nope", "due_date": "tomorrow"}'))
    except UpsertRejected as rejection:
        print("publisher:", rejection.code, [error.name for error in rejection.errors])
    bulk = client.upsert_many(TaskActivityLog(id=uuid.uuid4(), subject=f"Number {number}") for number in range(100))
    async for answer in bulk:
        if answer.rejected:
            print("publisher:", answer.problem)
    print("publisher:", bulk.summary)
    # Without waiting for answers: the replies to these go to the subscribers.
    await client.send_many(TaskActivityLog(id=uuid.uuid4(), subject=subject) for subject in ("one", "two"))


async def main() -> None:
    """Publish, and follow two replies through a private queue, so that other subscribers get them too."""
    async with subscribe(BROKER, routing_keys=["#"], most=2) as replies:
        following = asyncio.create_task(follow(replies))
        async with TaskActivityLogClient(BROKER, app_id="example") as client:
            await publish(client)
        await following


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except ClientError as error:
        raise SystemExit(str(error)) from None
