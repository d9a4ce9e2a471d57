"""A message that the broker cannot deliver: it ends the connection each time, and counts all that it was to deliver with it."""

from typing import Any
from uuid import UUID

import pytest

from task_activity_log.rabbitmq.topology import Topology
from tests import audit_trigger
from tests.asking import Connection
from tests.faults.conversation import conversing, until
from tests.serving import serving
from tests.undeliverable import FailingBroker

MARKER = "cannot be delivered"
COUNT = 140
RECORDS = [UUID(int=number) for number in range(1, 8)]
WAYS: dict[str, tuple[Topology, dict[str, Any]]] = {
    "plain": (Topology(), {}),
    "single active": (Topology(single_active_consumer=True), {"WORKER_SINGLE_ACTIVE_CONSUMER": "true"}),
    "partitions": (Topology(partitions=2), {"WORKER_PARTITIONS": "2"}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_that_cannot_be_delivered_takes_no_other_with_it(
    way: str, amqp_url: str, database_url: str, admin: Connection
) -> None:
    """In the middle of a backlog, with two workers. It alone reaches its delivery limit; the others are stored in order."""
    topology, variables = WAYS[way]
    await audit_trigger.install(admin)
    broker = FailingBroker(amqp_url, MARKER.encode())
    async with conversing(amqp_url, topology=topology) as talk, broker.running():
        missing = set()
        for number in range(COUNT):
            missing.add(await talk.send(RECORDS[number % len(RECORDS)], subject=f"{number}"))
            if number == COUNT // 2:
                await talk.send(subject=MARKER)
        async with (
            serving(broker.url, database_url, consuming=False, **variables),
            serving(broker.url, database_url, consuming=False, **variables),
        ):
            while missing:
                missing.discard((await talk.answers.get()).correlation_id or "")
            await until(lambda: broker.failures > topology.delivery_limit)
            missing.add(await talk.send(RECORDS[0], subject=f"{COUNT}"))
            while missing:
                missing.discard((await talk.answers.get()).correlation_id or "")
        [dead] = await talk.kept()
        assert (MARKER.encode() in dead.body, dead.headers["x-first-death-reason"]) == (True, "delivery_limit")
    if topology.is_single_active:
        writes = await audit_trigger.read(admin)
        for record in RECORDS:
            numbers = [int(subject or 0) for subject in audit_trigger.subjects(writes, record)]
            assert numbers == sorted(numbers)
