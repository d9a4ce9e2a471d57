"""Three nodes of RabbitMQ that a test may kill and separate, and a PostgreSQL primary with a standby that takes over."""

from collections.abc import Iterator

import pytest

from sandbox import SandboxError, say_on_stderr
from sandbox import cluster as sandbox_cluster
from sandbox.cluster import Cluster
from sandbox.replication import Pair


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    try:
        with sandbox_cluster.start(say=say_on_stderr) as started:
            yield started
    except SandboxError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    """Three nodes, all running. A test may leave them in any state."""
    _cluster.ensure_running()
    return _cluster


@pytest.fixture
def cluster_url(cluster: Cluster) -> str:
    """The AMQP URL of a virtual host for this test alone, with all nodes."""
    return cluster.create_vhost()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A primary and its standby."""
    try:
        servers = Pair()
    except SandboxError as error:
        pytest.fail(str(error), pytrace=False)
    yield servers
    servers.close()
