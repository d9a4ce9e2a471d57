"""Fixtures for all tests: a virtual host and a database for each test, and services that a test may kill.

RabbitMQ and PostgreSQL come from the sandbox. They start once for the whole run, only if a selected test needs them,
and all processes of pytest-xdist share them. If a service is not available, its tests fail with an error that says
what to do; they are never skipped.
"""

import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import hypothesis
import pytest

from sandbox import PostgreSQL, RabbitMQ, SandboxError, in_background, sharing
from tests.commands import World, worker
from tests.effort import examples
from tests.kept import kept
from tests.memory import in_memory

SOURCE = pytest.StashKey[sharing.Source]()
OWNER = pytest.StashKey[sharing.Owner]()

_T = TypeVar("_T")

# In CI the same examples and the same faults are tried each time, so that a change is judged by what it changes; elsewhere
# new ones, which find more.
_IN_CI = "CI" in os.environ

# Speed is measured in benchmarks/: no test fails because the machine is busy.
hypothesis.settings.register_profile(
    "patient",
    deadline=None,
    max_examples=examples(100),
    derandomize=_IN_CI,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Own the services, or as a worker of pytest-xdist know whom to ask for them. Choose what workers inherit."""
    if (memory := in_memory()) is not None:
        os.environ.setdefault("TMPDIR", memory)
        tempfile.tempdir = None  # it may have been determined before
    os.environ.setdefault("CHAOS_SEED", "7" if _IN_CI else str(secrets.randbelow(10_000)))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell that runs `make test &` ignores SIGINT for it, and commands that a test interrupts would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        config.stash[SOURCE] = sharing.Visitor(config.workerinput["sandbox"])
        return
    terminal: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")

    def say(line: str) -> None:
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"sandbox: {line}")

    config.stash[OWNER] = config.stash[SOURCE] = sharing.Owner(say)


def pytest_report_header() -> str:
    """Print the seed of tests/acceptance/test_chaos.py, so that a run can be repeated."""
    return f"chaos: CHAOS_SEED={os.environ['CHAOS_SEED']}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Before a worker of pytest-xdist starts, tell it how to ask for the services."""
    config: pytest.Config = node.config  # type: ignore[attr-defined]  # pytest-xdist has no types
    node.workerinput["sandbox"] = config.stash[OWNER].listen()  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the services that were started."""
    if OWNER in config.stash:
        config.stash[OWNER].close()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the services that the selected tests need, at the same time and before any test's time limit begins.

    If that fails, the first test that needs the service tries again, and a failure then belongs to that test alone.
    """
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    source = session.config.stash[SOURCE]
    names: tuple[sharing.Name, ...] = ("rabbitmq", "postgresql")
    wait(
        [in_background(partial(source.service, name)) for name in names if f"_{name}" in wanted]
        + [in_background(partial(source.private_way, name)) for name in names if f"_own_{name}" in wanted]
    )


def _have(get: Callable[[], _T]) -> _T:
    """Get a service, or fail with the sandbox's message instead of a traceback."""
    try:
        return get()
    except SandboxError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def _rabbitmq(pytestconfig: pytest.Config) -> Iterator[Callable[[], RabbitMQ]]:
    with kept(lambda: nullcontext(sharing.shared_rabbitmq(pytestconfig.stash[SOURCE]))) as get:
        yield get


@pytest.fixture(scope="session")
def _postgresql(pytestconfig: pytest.Config) -> Iterator[Callable[[], PostgreSQL]]:
    with kept(lambda: nullcontext(sharing.shared_postgresql(pytestconfig.stash[SOURCE]))) as get:
        yield get


@pytest.fixture
def rabbitmq(_rabbitmq: Callable[[], RabbitMQ]) -> RabbitMQ:
    """The broker that all tests share; `api` calls its management API. It cannot be stopped."""
    return _have(_rabbitmq)


@pytest.fixture
def postgresql(_postgresql: Callable[[], PostgreSQL]) -> PostgreSQL:
    """The database server that all tests share. It cannot be stopped."""
    return _have(_postgresql)


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ) -> Iterator[str]:
    """The AMQP URL of a virtual host for this test alone."""
    url = rabbitmq.create_vhost()
    yield url
    rabbitmq.delete_vhost(url)


@pytest.fixture
def empty_database_url(postgresql: PostgreSQL) -> Iterator[str]:
    """The DSN of an empty database for this test alone."""
    url = postgresql.create_database()
    yield url
    postgresql.drop_database(url)


@pytest.fixture
def database_url(postgresql: PostgreSQL) -> Iterator[str]:
    """The DSN of a migrated database for this test alone."""
    url = postgresql.create_database(postgresql.template(_migrate))
    yield url
    postgresql.drop_database(url)


@pytest.fixture(scope="session")
def _own_rabbitmq(pytestconfig: pytest.Config) -> Iterator[Callable[[], RabbitMQ]]:
    with kept(lambda: sharing.private_rabbitmq(pytestconfig.stash[SOURCE])) as get:
        yield get


@pytest.fixture(scope="session")
def _own_postgresql(pytestconfig: pytest.Config) -> Iterator[Callable[[], PostgreSQL]]:
    with kept(lambda: sharing.private_postgresql(pytestconfig.stash[SOURCE])) as get:
        yield get


@pytest.fixture
def own_rabbitmq(_own_rabbitmq: Callable[[], RabbitMQ]) -> RabbitMQ:
    """A broker that this test may pause, stop, kill and restart, and leave in any state.

    Its methods block: `await asyncio.to_thread(own_rabbitmq.restart)`.
    """
    broker = _have(_own_rabbitmq)
    broker.ensure_running()
    return broker


@pytest.fixture
def own_postgresql(_own_postgresql: Callable[[], PostgreSQL]) -> PostgreSQL:
    """A database server that this test may pause, stop, kill and restart, and leave in any state.

    Its methods block: `await asyncio.to_thread(own_postgresql.restart)`.
    """
    server = _have(_own_postgresql)
    server.ensure_running()
    return server


@pytest.fixture
def own_amqp_url(own_rabbitmq: RabbitMQ) -> Iterator[str]:
    """The AMQP URL of a new virtual host on `own_rabbitmq`."""
    url = own_rabbitmq.create_vhost()
    yield url
    own_rabbitmq.ensure_running()
    own_rabbitmq.wait_until_ready()  # its management API may start later than the rest
    own_rabbitmq.delete_vhost(url)


@pytest.fixture
def own_database_url(own_postgresql: PostgreSQL) -> Iterator[str]:
    """The DSN of a new, migrated database on `own_postgresql`."""
    url = own_postgresql.create_database(own_postgresql.template(_migrate))
    yield url
    own_postgresql.ensure_running()
    own_postgresql.drop_database(url)


@pytest.fixture(scope="module")
def _world(
    _rabbitmq: Callable[[], RabbitMQ],
    _postgresql: Callable[[], PostgreSQL],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], World]]:
    @contextmanager
    def working() -> Iterator[World]:
        rabbitmq, postgresql = _rabbitmq(), _postgresql()
        amqp_url = rabbitmq.create_vhost()
        database_url = postgresql.create_database(postgresql.template(_migrate))
        with worker(tmp_path_factory.mktemp("worker"), amqp_url, database_url):
            yield World(amqp_url, database_url)
        rabbitmq.delete_vhost(amqp_url)
        postgresql.drop_database(database_url)

    with kept(working) as get:
        yield get


@pytest.fixture
def world(_world: Callable[[], World]) -> World:
    """A worker that all tests of a module share; each uses its own records."""
    return _have(_world)


def _migrate(url: str) -> None:
    from task_activity_log.postgresql import migrations  # noqa: PLC0415  # Alembic is slow to import, and few tests need it

    migrations.migrate(url)
