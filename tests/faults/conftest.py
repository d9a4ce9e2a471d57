"""A direct connection to the database, for tests that put a proxy between the worker and it."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.asking import Connection


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[Connection]:
    """A connection to the worker's database that does not go through a proxy."""
    connection: Connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
