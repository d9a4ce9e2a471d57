"""The sandbox provides a cluster of RabbitMQ, and a PostgreSQL that fails over."""

import asyncio
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import pytest
from asyncpg.connect_utils import SessionAttribute

from sandbox import cluster as sandbox_cluster
from sandbox.cluster import Cluster
from sandbox.proxy import Proxies
from sandbox.rabbitmq import RabbitMQ
from sandbox.replication import Pair

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

QUEUE = "kept"


async def declare(cluster: Cluster, url: str) -> None:
    async with await aio_pika.connect(cluster.url_of(cluster.nodes[0], url)) as connection:
        channel = await connection.channel()
        await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})


async def publish(cluster: Cluster, node: RabbitMQ, url: str) -> None:
    """Return when a majority has the message."""
    async with await aio_pika.connect(cluster.url_of(node, url)) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(b""), QUEUE)


async def leader_among(cluster: Cluster, url: str, nodes: list[RabbitMQ]) -> RabbitMQ:
    """The leader, once it is one of these nodes."""
    async with asyncio.timeout(60):
        while (leader := await asyncio.to_thread(cluster.leader, url, QUEUE, nodes)) not in nodes:
            pass  # asking takes a second
    return leader


async def test_a_queue_has_three_members_and_gets_a_new_leader(cluster: Cluster, cluster_url: str) -> None:
    """Its leader is killed, and the others go on."""
    await declare(cluster, cluster_url)
    assert await asyncio.to_thread(cluster.member_count, cluster_url, QUEUE) == 3
    old = await asyncio.to_thread(cluster.leader, cluster_url, QUEUE)
    await asyncio.to_thread(old.kill)
    others = [node for node in cluster.nodes if node is not old]
    await leader_among(cluster, cluster_url, others)
    await publish(cluster, others[0], cluster_url)


async def test_an_isolated_node_is_away_until_it_joins_again(cluster: Cluster, cluster_url: str) -> None:
    """The others elect a leader among them. Afterwards all see each other."""
    await declare(cluster, cluster_url)
    old = await asyncio.to_thread(cluster.leader, cluster_url, QUEUE)
    others = [node for node in cluster.nodes if node is not old]
    await asyncio.to_thread(cluster.isolate, old)
    await leader_among(cluster, cluster_url, others)
    await publish(cluster, others[0], cluster_url)
    for node in others:
        assert sum(seen["running"] for seen in node.api("GET", "/nodes?columns=running")) == 2
    await asyncio.to_thread(cluster.ensure_running)
    await publish(cluster, old, cluster_url)


async def test_the_other_nodes_do_not_pause_when_it_takes_long_to_cut_one_off(
    cluster: Cluster, cluster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them loses the node two seconds before the second does."""
    slowly = sandbox_cluster._CUT.replace("(Node) ||", "(Node) andalso timer:sleep(2000) ||")
    assert "sleep" in slowly
    monkeypatch.setattr(sandbox_cluster, "_CUT", slowly)
    await declare(cluster, cluster_url)
    node, *others = cluster.nodes
    await asyncio.to_thread(cluster.isolate, node)
    await leader_among(cluster, cluster_url, others)
    for other in others:
        await publish(cluster, other, cluster_url)
        assert await asyncio.to_thread(other.evaluate, sandbox_cluster._PAUSING) == "undefined"


async def test_a_node_that_is_about_to_pause_is_waited_for(cluster: Cluster) -> None:
    """It still answers. The process that pauses a node has this name; here it does nothing for a while."""
    node = cluster.nodes[1]
    pausing = "register(rabbit_outside_app_process, spawn(fun() -> timer:sleep(8000) end))"
    await asyncio.to_thread(node.evaluate, f"{pausing}.")
    assert await asyncio.to_thread(node.evaluate, sandbox_cluster._PAUSING) != "undefined"
    await asyncio.to_thread(cluster.ensure_running)
    assert await asyncio.to_thread(node.evaluate, sandbox_cluster._PAUSING) == "undefined"


async def test_the_proxies_of_a_url_lead_to_its_hosts(cluster: Cluster, cluster_url: str) -> None:
    """In their order."""
    async with Proxies(cluster_url) as proxies:
        places = urlsplit(proxies.url).netloc.rpartition("@")[2].split(",")
        assert places == [f"127.0.0.1:{proxy.port}" for proxy in proxies.of]
        for node, place in zip(cluster.nodes, places, strict=True):
            url = cluster.url_of(node, cluster_url)
            assert [proxy._target[1] for proxy in proxies.of if str(proxy.port) in place] == [urlsplit(url).port]
            await (await aio_pika.connect(url.replace(str(urlsplit(url).port), place.rpartition(":")[2]))).close()


async def test_the_standby_takes_over_and_another_one_follows(pair: Pair) -> None:
    """Twice; nothing that was committed is lost, and the old primary that comes back accepts writes of its own."""
    url = await asyncio.to_thread(pair.create_database)
    ports = urlsplit(url).netloc
    database = urlsplit(url).path[1:]
    connection = await asyncpg.connect(pair.primary.url_of(database))
    await connection.execute("CREATE TABLE kept (number int)")
    await connection.close()
    for number in (1, 2):
        await asyncio.to_thread(pair.wait_replicated)
        connection = await asyncpg.connect(url, target_session_attrs=SessionAttribute.primary)
        await connection.execute("INSERT INTO kept VALUES ($1)", number)
        await connection.close()
        await asyncio.to_thread(pair.fail_over)
        await asyncio.to_thread(pair.return_old_primary)
        for server, expected in ((pair.primary, number), (pair.other, number + 1)):
            connection = await asyncpg.connect(server.url_of(database))
            if server is pair.other:
                await connection.execute("INSERT INTO kept VALUES (0)")  # nobody will see it
            assert await connection.fetchval("SELECT count(*) FROM kept") == expected
            await connection.close()
        await asyncio.to_thread(pair.rebuild_standby)
        assert urlsplit(pair.url_of(database)).netloc == ports
