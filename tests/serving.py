"""A worker that runs in the process of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from task_activity_log.service import Service
from task_activity_log.settings import load
from task_activity_log.telemetry.spans import Tracing


@asynccontextmanager
async def serving(
    amqp_url: str,
    database_url: str,
    *,
    consuming: bool = True,
    traces: Tracing | None = None,
    **variables: str,
) -> AsyncIterator[Service]:
    """Run a worker; yields when it consumes, and drains it at the end."""
    urls = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": "0"}
    service = Service(load({**urls, **variables}), traces)
    running = asyncio.create_task(service.run())
    try:
        if consuming:
            await service.wait_consuming()
        yield service
    finally:
        service.drain()
        await running
