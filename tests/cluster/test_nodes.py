"""The worker, the client and the commands go on when nodes of RabbitMQ die, are cut off, drained or short of memory.

In each test a client sends upserts of a few records all the time. In the end an audit in the database proves that each was
applied once and in order.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import asyncpg
import pytest

from sandbox.cluster import Cluster
from sandbox.rabbitmq import RabbitMQ
from task_activity_log.client import StoredReply, subscribe
from task_activity_log.client.connections import publishing
from task_activity_log.message import Properties
from task_activity_log.rabbitmq.link import LinkOptions, connect
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.topology import declare
from task_activity_log.service import Service
from tests.cluster.traffic import Traffic, check_writes, traffic
from tests.commands import command
from tests.faults.conversation import TOPOLOGY, until
from tests.serving import serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

REQUESTS, REPLIES = TOPOLOGY.requests_queue, TOPOLOGY.replies_queue
QUICK: dict[str, Any] = {
    "WORKER_AMQP_CONNECT_TIMEOUT_SECONDS": "4",
    "WORKER_AMQP_HEARTBEAT_SECONDS": "2",
    "WORKER_CONFIRM_TIMEOUT_SECONDS": "5",
}


@asynccontextmanager
async def working(cluster_url: str, database_url: str, **variables: str) -> AsyncIterator[tuple[Service, Traffic]]:
    """A worker and a client, both with all nodes; the client goes on to the end."""
    settings: dict[str, Any] = {**QUICK, **variables}
    async with serving(cluster_url, database_url, **settings) as service:
        async with traffic(cluster_url, database_url) as sending:
            yield service, sending
            await sending.goes_on()
        await check_writes(sending, database_url)


def others(cluster: Cluster, node: RabbitMQ) -> list[RabbitMQ]:
    return [other for other in cluster.nodes if other is not node]


async def publish(folder: Path, cluster_url: str, database_url: str) -> None:
    """`publish` sends a record and gets its answer; `replies`, `dead-letters list` and `check` exit with 0."""
    record = folder / "record.json"
    record.write_text('{"id": "00000000-0000-0000-0000-000000000001"}')
    said = await command("publish", str(record), "--no-partitioned", AMQP_URL=cluster_url)
    assert said.code == 0, said
    for arguments in (("dead-letters", "list"), ("replies", "--take", "--seconds", "1")):
        said = await command(*arguments, AMQP_URL=cluster_url, DATABASE_URL=database_url)
        assert said.code == 0, said


@asynccontextmanager
async def request_in_hand(service: Service, cluster_url: str, database_url: str) -> AsyncIterator[None]:
    """A request that the worker cannot store before the end of the block, because its row is locked.

    Its reply goes to the replies exchange.
    """
    record = uuid4()
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO task_activity_log (id) VALUES ($1)", record)
    async with connection.transaction():
        await connection.execute("UPDATE task_activity_log SET subject = 'locked' WHERE id = $1", record)
        async with publishing(cluster_url, "in hand") as publisher:
            body = f'{{"id": "{record}"}}'.encode()
            properties = Properties(message_id=str(uuid4()), delivery_mode=2)
            assert await publisher.publish([Outgoing(TOPOLOGY.requests_exchange, "upsert", properties, body)]) == [
                Fate.CONFIRMED
            ]
        await until(lambda: service.status.parking.messages > 0)
        yield
    await connection.close()


@pytest.mark.parametrize("queue", [REQUESTS, REPLIES])
async def test_the_node_with_the_leader_dies_for_good(
    cluster: Cluster, cluster_url: str, database_url: str, tmp_path: Path, queue: str
) -> None:
    """Everybody goes on with the two that are left, and `check` names the member that is away."""
    async with working(cluster_url, database_url) as (_, sending):
        leader = await asyncio.to_thread(cluster.leader, cluster_url, queue)
        await asyncio.to_thread(leader.kill)
        await sending.goes_on()
        await publish(tmp_path, cluster_url, database_url)
        found = await findings(cluster, cluster_url, database_url, "2 of 3 members are online")
        assert f"queue {queue}" in found


async def findings(cluster: Cluster, cluster_url: str, database_url: str, text: str) -> str:
    """What `check` prints, once it says this: the management API is some seconds late. It asks the nodes in turn."""
    async with asyncio.timeout(120):
        while True:
            urls: dict[str, Any] = {
                "AMQP_URL": cluster_url,
                "MANAGEMENT_URL": cluster.management_url(),
                "DATABASE_URL": database_url,
            }
            said = await command("check", COLUMNS="200", **urls)
            assert "Traceback" not in said.err
            if text in said.out:
                return said.out


async def test_the_majority_dies_and_comes_back(cluster: Cluster, cluster_url: str, database_url: str) -> None:
    """Meanwhile the worker is unready and says why, at the latest when a reply is not confirmed.

    A leader that is left keeps its consumers on RabbitMQ 4.3, and tells nobody that it commits nothing.
    """
    async with working(cluster_url, database_url) as (service, sending):
        left = await asyncio.to_thread(cluster.leader, cluster_url, REQUESTS)
        async with request_in_hand(service, cluster_url, database_url):
            for node in others(cluster, left):
                await asyncio.to_thread(node.kill)
        await until(lambda: any(word in str(service.status.not_ready()) for word in ("consuming", "holding")), 120)
        if cluster.version.startswith("3."):
            # It pauses itself. Nobody answers at any host.
            await until(lambda: "connection refused" in str(service.status.not_ready()), 120)
        await asyncio.to_thread(cluster.ensure_running)
        await sending.goes_on()


async def test_check_names_the_queue_that_has_lost_its_majority(
    cluster: Cluster, cluster_url: str, database_url: str
) -> None:
    """And no other. Of two members one dies, while most nodes run: on RabbitMQ 3.10 the last of three would pause itself."""
    async with working(cluster_url, database_url) as (service, sending):
        leader = await asyncio.to_thread(cluster.leader, cluster_url, REQUESTS)
        without = cluster.name_of(others(cluster, leader)[0])
        vhost = unquote(urlsplit(cluster_url).path[1:])
        delete = ("rabbitmq-queues", "delete_member", "--vhost", vhost, REQUESTS, without)
        await asyncio.to_thread(leader.command, *delete)
        await asyncio.to_thread(leader.kill)
        found = await findings(cluster, cluster_url, database_url, "has no majority: 1 of 2 members are online")
        assert [line for line in found.splitlines() if "has no majority" in line and REQUESTS not in line] == []
        await until(lambda: "consuming" in str(service.status.not_ready()), 120)
        await asyncio.to_thread(cluster.ensure_running)
        await sending.goes_on()


async def test_a_drained_node_is_left(cluster: Cluster, cluster_url: str, database_url: str, tmp_path: Path) -> None:
    """One node after the other, as in a rolling upgrade."""
    async with working(cluster_url, database_url) as (_, sending):
        for node in cluster.nodes:
            await asyncio.to_thread(node.command, "rabbitmq-upgrade", "drain")
            await sending.goes_on()
            await publish(tmp_path, cluster_url, database_url)
            await asyncio.to_thread(node.command, "rabbitmq-upgrade", "revive")


async def test_a_memory_alarm_is_waited_out(cluster: Cluster, cluster_url: str, database_url: str) -> None:
    """On one node; it blocks publishers on all of them, the client too. `check` names the node."""
    async with working(cluster_url, database_url) as (_, sending):
        node = cluster.nodes[-1]
        await asyncio.to_thread(node.command, "rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "1")
        found = await findings(cluster, cluster_url, database_url, "short of memory")
        assert f"node {cluster.name_of(node)}" in found
        await asyncio.to_thread(node.command, "rabbitmqctl", "set_vm_memory_high_watermark", "0.4")
        await sending.goes_on()


async def connected_node(cluster: Cluster) -> RabbitMQ:
    """The node to which the worker's intake is connected."""
    async with asyncio.timeout(60):
        while True:
            for connection in cluster.nodes[0].api("GET", "/connections"):
                if "intake" in connection["client_properties"].get("connection_name", ""):
                    return cluster.nodes[cluster.names.index(connection["node"])]
            await asyncio.sleep(0.5)  # the management API is some seconds late


@pytest.mark.usefixtures("soon_quiet")
@pytest.mark.parametrize("leader", ["here", "elsewhere"])
@pytest.mark.parametrize("mode", [{}, {"WORKER_SINGLE_ACTIVE_CONSUMER": "true"}, {"WORKER_PARTITIONS": "8"}], ids=str)
async def test_a_worker_on_the_minority_side_leaves_it(
    cluster: Cluster, cluster_url: str, database_url: str, leader: str, mode: dict[str, str]
) -> None:
    """Its node is cut off from the others; before 4.3 it then pauses. The client is connected to the same node."""
    await leave_minority(cluster, cluster_url, database_url, leader, mode)
    await asyncio.to_thread(cluster.ensure_running)


async def leave_minority(
    cluster: Cluster, cluster_url: str, database_url: str, leader: str, mode: dict[str, str]
) -> None:
    """A worker and a client go on although their node is cut off. The leaders of the queues are on that node or elsewhere."""
    declares = cluster.nodes[0 if leader == "here" else 1]
    topology = replace(
        TOPOLOGY,
        partitions=int(mode.get("WORKER_PARTITIONS", "0")),
        single_active_consumer="WORKER_SINGLE_ACTIVE_CONSUMER" in mode,
    )
    async with connect(LinkOptions(cluster.url_of(declares, cluster_url)), "test") as (connection, _):
        await declare(connection, topology)
    async with working(cluster_url, database_url, **mode) as (service, sending):
        node = await connected_node(cluster)
        assert await asyncio.to_thread(cluster.leader, cluster_url, REQUESTS) is declares
        assert (node is declares) is (leader == "here")
        await asyncio.to_thread(cluster.isolate, node)
        await sending.goes_on()
        await connected_elsewhere(cluster, node)
        assert service.status.not_alive() == []
        assert service.status.not_ready() == []


@pytest.mark.usefixtures("soon_quiet")
@pytest.mark.parametrize("kind", ["durable", "private"])
async def test_a_subscriber_on_the_minority_side_leaves_it(
    cluster: Cluster, cluster_url: str, database_url: str, kind: str
) -> None:
    """Its queue has its leader on the node that is cut off, or is on that node alone. It gets replies that come afterwards."""
    elsewhere = cluster.url_at_first(cluster.nodes[1], cluster_url)
    async with working(elsewhere, database_url, WORKER_REPLIES="both") as (_, sending):
        replies = subscribe(
            cluster_url, queue="mine" if kind == "durable" else None, routing_keys=["stored.*"], prefetch=5
        )
        async with replies:
            await anext(replies)
            await asyncio.to_thread(cluster.isolate, cluster.nodes[0])
            await sending.goes_on()
            now = dict(sending.sent)
            async with asyncio.timeout(120):
                async for reply in replies:
                    if isinstance(reply, StoredReply) and int(reply.record.subject or 0) > now[reply.record.id]:
                        break
        await asyncio.to_thread(cluster.ensure_running)


async def connected_elsewhere(cluster: Cluster, node: RabbitMQ) -> None:
    """Return once the intake is connected to another node."""
    name = cluster.name_of(node)
    async with asyncio.timeout(60):
        while True:
            for connection in others(cluster, node)[0].api("GET", "/connections"):
                purpose = connection["client_properties"].get("connection_name", "")
                if "intake" in purpose and connection["node"] != name:
                    return
            await asyncio.sleep(0.5)  # the management API is some seconds late


async def test_partitions_are_all_consumed_after_a_node_has_died(
    cluster: Cluster, cluster_url: str, database_url: str
) -> None:
    """The client sends by record, and each of eight queues gets a new active consumer."""
    async with working(cluster_url, database_url, WORKER_PARTITIONS="8") as (_, sending):
        leader = await asyncio.to_thread(cluster.leader, cluster_url, f"{REQUESTS}.0")
        await asyncio.to_thread(leader.kill)
        await sending.goes_on()
