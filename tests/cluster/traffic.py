"""Upserts of some records through the client, one after the other for each record, while something breaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg

from task_activity_log.client import TaskActivityLog, TaskActivityLogClient
from tests import audit_trigger

RECORDS = 6


class Traffic:
    """What has been sent and answered."""

    def __init__(self, client: TaskActivityLogClient) -> None:
        self._client = client
        self.sent: dict[UUID, int] = {uuid4(): 0 for _ in range(RECORDS)}
        """How many upserts of each record were answered; its next one has this number as `subject`."""
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Send until `stopping` is set; the last ones are answered too."""
        async with asyncio.TaskGroup() as group:
            for record in self.sent:
                group.create_task(self._keep_sending(record))

    async def _keep_sending(self, record: UUID) -> None:
        while not self.stopping.is_set():
            number = self.sent[record]
            answer = await self._client.upsert(TaskActivityLog(id=record, subject=str(number)), timeout=None)
            # a repeat after a lost connection is a duplicate
            assert answer.outcome in ("inserted", "updated", "duplicate")
            self.sent[record] += 1

    async def goes_on(self, answers: int = 3) -> None:
        """Return when each record has `answers` more answers."""
        wanted = {record: count + answers for record, count in self.sent.items()}
        async with asyncio.timeout(120):
            while any(self.sent[record] < count for record, count in wanted.items()):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def traffic(amqp_url: str, database_url: str) -> AsyncIterator[Traffic]:
    """Send until the end of the block, then prove from an audit in the database: nothing lost, once, and in order.

    Args:
        amqp_url: of the client; workers run already.
        database_url: of the server that accepts writes now; the audit goes with it to a standby.
    """
    connection = await asyncpg.connect(database_url)
    await audit_trigger.install(connection)
    await connection.close()
    async with TaskActivityLogClient(amqp_url) as client:
        sending = Traffic(client)
        running = asyncio.create_task(sending.run())
        try:
            await sending.goes_on()
            yield sending
            sending.stopping.set()
            async with asyncio.timeout(120):
                await running
        finally:
            running.cancel()


async def check_writes(sending: Traffic, database_url: str) -> None:
    """Each upsert was applied once, and in order, as an audit trigger saw it."""
    connection = await asyncpg.connect(database_url)
    writes = [write for write in await audit_trigger.read(connection) if write.record in sending.sent]
    await connection.close()
    assert audit_trigger.disorder(writes, sending.sent) == []
