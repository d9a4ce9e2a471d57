"""For publishers, subscribers and the person with the dead letters.

A publisher:

    async with TaskActivityLogClient("amqp://user:password@host/") as client:
        stored = await client.upsert(TaskActivityLog(id=id, subject="Call back"))
        print(stored.outcome, stored.record.modified_dateutc)

        bulk = client.upsert_many(records)
        async for answer in bulk:
            ...
        print(bulk.summary)

A subscriber:

    async for reply in subscribe("amqp://user:password@host/"):
        ...  # acknowledged when the body is left at its end

Both take a `LinkOptions` in place of the URL, for an authority of your own or a client certificate:

    LinkOptions("amqps://host/", tls=Tls(ca=Path("ca.pem"), certificate=Path("mine.pem")))

upserts        the publisher's client
bulk           many upserts through a window
subscription   the subscriber's loop
messages       what is sent and what comes back
dead_letters   look at dead letters, replay and remove them
"""

from task_activity_log.client.bulk import Bulk, Summary
from task_activity_log.client.messages import Answer, ClientError, FieldProblem, NoAnswer, Reply, Upsert, UpsertRejected
from task_activity_log.client.subscription import subscribe
from task_activity_log.client.upserts import TaskActivityLogClient
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.record import Outcome, StoredTaskActivityLog, TaskActivityLog
from task_activity_log.tls import Tls

__all__ = [
    "Answer",
    "Bulk",
    "ClientError",
    "FieldProblem",
    "LinkOptions",
    "NoAnswer",
    "Outcome",
    "Reply",
    "StoredTaskActivityLog",
    "Summary",
    "TaskActivityLog",
    "TaskActivityLogClient",
    "Tls",
    "Upsert",
    "UpsertRejected",
    "subscribe",
]
