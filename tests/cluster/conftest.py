"""Three nodes of RabbitMQ that a test may kill and separate, and a PostgreSQL primary with a standby that takes over."""

from collections.abc import Callable, Iterator

import pytest

from sandbox import SandboxError, say_on_stderr
from sandbox import cluster as sandbox_cluster
from sandbox.cluster import Cluster
from sandbox.replication import Pair
from task_activity_log.rabbitmq import cut_off, reading
from tests.kept import kept


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Callable[[], Cluster]]:
    with kept(lambda: sandbox_cluster.start(say=say_on_stderr)) as get:
        yield get


@pytest.fixture
def cluster(_cluster: Callable[[], Cluster]) -> Cluster:
    """Three nodes, all running. A test may leave them in any state."""
    try:
        started = _cluster()
        started.ensure_running()
    except SandboxError as error:
        pytest.fail(str(error), pytrace=False)
    return started


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


@pytest.fixture
def soon_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues that deliver nothing are given a command sooner."""
    monkeypatch.setattr(cut_off, "_QUIET_SECONDS", 10.0)
    monkeypatch.setattr(reading, "_PRIVATE_QUIET_SECONDS", 10.0)
