"""A second way to look at the database."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.asking import Connection


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[Connection]:
    """A plain connection to the same database, on no proxy."""
    connection: Connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
