"""How long the pages of the console take with 50,100 dead letters: `python -m benchmarks.console`.

The first page includes the look at the queue. The others are pages of the same look, as users see them within 15 seconds.
"""

import asyncio
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import aio_pika

import sandbox
from sandbox import letters
from task_activity_log.rabbitmq.topology import Topology, declare
from tests.consoles import console_process

_TIMES = 167
"""How often the 300 samples are published."""
_PAGES = (
    "/dead-letters",
    "/dead-letters",
    "/dead-letters?code=invalid_date&publisher=crm-brussels",
    "/dead-letters?text=alert",
    "/dead-letters?page=500",
    "/bulk",
)


async def _fill(amqp_url: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, Topology())
    samples = letters.letters(datetime.now(UTC))
    for _ in range(_TIMES):
        await letters.publish(amqp_url, Topology().dead_letters_queue, samples)


def _get(url: str) -> float:
    began = time.monotonic()
    with urllib.request.urlopen(url, timeout=300) as answer:  # noqa: S310 - the console's own address
        answer.read()
    return time.monotonic() - began


def main() -> None:
    """Print a line for each page."""
    with sandbox.start(durable=False) as services:
        amqp_url = services.environment["AMQP_URL"]
        asyncio.run(_fill(amqp_url))
        with console_process(Path(tempfile.mkdtemp()), AMQP_URL=amqp_url) as base:
            for page in _PAGES:
                print(f"{_get(base.rstrip('/') + page):6.2f} s  {page}")


if __name__ == "__main__":
    main()
