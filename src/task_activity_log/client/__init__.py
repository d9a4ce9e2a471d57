"""For publishers, for subscribers, and for the commands that handle dead letters.

A publisher:

    async with TaskActivityLogClient("amqp://user:password@host/") as client:
        stored = await client.upsert(TaskActivityLog(id=id, subject="Call back"))
        print(stored.outcome, stored.record.modified_dateutc)

        bulk = client.upsert_many(records)
        async for answer in bulk:
            ...
        print(bulk.summary)

A subscriber:

    async with subscribe("amqp://user:password@host/") as replies:
        async for reply in replies:
            match reply:
                case StoredReply(record):
                    ...  # acknowledged once the body completes
                case RejectedReply(problem):
                    print(problem.code)

Both take `LinkOptions` instead of the URL, for a private certificate authority or a client certificate:

    LinkOptions("amqps://host/", tls=Tls(ca=Path("ca.pem"), certificate=Path("mine.pem")))

client         the publisher's client
bulk           many upserts, a limited number of them unanswered at a time
asks           upserts that wait for their answers: sent, sent again, answered
subscription   the subscriber's loop
subscribing    `subscribe`: a loop over a queue of a broker
following      the latest replies, for a program that shows them to several people
news           which replies a subscriber has not seen yet
order          a later upsert of a record is published after the earlier ones are confirmed
routing        by record to partitions, or all to one queue
dead_letters   borrow the dead letters, and remove them
replaying      send them again, in the order of each record
replays        which dead letters are sent again, which are kept, and what becomes of each
letters        dead letters judged by today's contract, grouped, and filtered                pure
looks          one look at the dead letters for everybody, for a program that shows them to several people
rate           a limit of how many are sent per second
record_id      the id of the record in a message that may be invalid otherwise
finding        the dead letters and the waiting replies of a message or a record
preview        what a worker would say of a message, and what it would store                pure
marking        a body for people: indented, with what is wrong marked, and differences       pure
snapshots      records as they are now, as replies
notices        what the caller is told of the connections
opener         the process and the event loop that have opened something
connections    the first connection succeeds or fails at once; later ones are opened again
messages       what is sent and what is received
errors         what the client raises
copying        errors that are pickled, copied, and raised again                             pure
names          names of queues and exchanges that can be sent                                  pure
exported       messages as lines of JSON, which `publish` reads again
misspelled     members that are not fields, and which field was meant
"""

from task_activity_log.client.bulk import Bulk, Summary
from task_activity_log.client.client import TaskActivityLogClient
from task_activity_log.client.errors import ClientError, FieldProblem, NoAnswer, NotSent, UpsertRejected
from task_activity_log.client.messages import (
    Answer,
    Received,
    RejectedReply,
    Reply,
    StoredReply,
    UnreadableReply,
    Upsert,
)
from task_activity_log.client.subscribing import subscribe
from task_activity_log.client.subscription import PoisonQueue, Subscription
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
    "NotSent",
    "Outcome",
    "PoisonQueue",
    "Received",
    "RejectedReply",
    "Reply",
    "StoredReply",
    "StoredTaskActivityLog",
    "Subscription",
    "Summary",
    "TaskActivityLog",
    "TaskActivityLogClient",
    "Tls",
    "UnreadableReply",
    "Upsert",
    "UpsertRejected",
    "subscribe",
]
