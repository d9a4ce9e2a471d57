"""A broker whose disk is really full, and one that ignores network partitions."""

import asyncio
from collections.abc import Iterator

import pytest

from sandbox import SandboxError, say_on_stderr
from sandbox import cluster as sandbox_cluster
from sandbox.cluster import Cluster
from tests.cluster.test_database import data_of, fill
from tests.cluster.test_nodes import REQUESTS, findings, leave_minority, working
from tests.serving import serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]


def started(**options: object) -> Iterator[Cluster]:
    """A cluster for one test."""
    try:
        with sandbox_cluster.start(say=say_on_stderr, **options) as cluster:  # type: ignore[arg-type]
            yield cluster
    except SandboxError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def small() -> Iterator[Cluster]:
    """Each node has room for 300 MB."""
    yield from started(disk_megabytes=300)


@pytest.fixture
def ignoring() -> Iterator[Cluster]:
    """The nodes of a smaller side go on, as they do by default before RabbitMQ 4.3."""
    yield from started(partition_handling="ignore")


async def test_a_full_disk_of_the_broker_is_waited_out(small: Cluster, database_url: str) -> None:
    """The node blocks all publishers. Its queues do not come back by themselves when there is room: it is restarted."""
    if "Docker" in small.origin:
        pytest.skip("containers have no disks of their own")
    url = small.create_vhost()
    async with working(url, database_url) as (service, sending):
        node = await asyncio.to_thread(small.leader, url, REQUESTS)
        filler = await asyncio.to_thread(fill, data_of(node))
        found = await findings(small, url, database_url, "is short of disk space")
        assert f"node {small.name_of(node)}" in found
        assert service.status.not_alive() == []
        filler.unlink()
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(small.ensure_running)
        await sending.goes_on()


@pytest.mark.usefixtures("soon_quiet")
async def test_a_node_that_ignores_that_it_is_cut_off_is_left(ignoring: Cluster, database_url: str) -> None:
    """It has the leader of the requests queue, and the worker is connected to it. `check` has named the setting before."""
    if not ignoring.version.startswith(("3.", "4.0", "4.1", "4.2")):
        pytest.skip("RabbitMQ 4.3 has no partition handling")
    url = ignoring.create_vhost()
    async with serving(url, database_url):
        assert "with ignore" in await findings(ignoring, url, database_url, "partition handling")
    await leave_minority(ignoring, url, database_url, "here", {})
