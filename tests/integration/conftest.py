"""A store on a database for this test alone, and a second connection to that database."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from task_activity_log.postgresql.store import Store
from tests.asking import Connection


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store as the worker uses it."""
    store = Store(database_url)
    yield store
    await store.close()


@pytest.fixture
async def other_store(database_url: str) -> AsyncIterator[Store]:
    """The store of another worker on the same database."""
    store = Store(database_url)
    yield store
    await store.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection]:
    """A connection to the same database, next to the store's."""
    connection: Connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
