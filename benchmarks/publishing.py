"""Measures publishing: with a confirm for each message, and what the client and the command `publish` do with it."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TypeAlias
from uuid import uuid4

import aio_pika

from benchmarks import drain, show
from benchmarks.load import BATCH, body, properties_of, publishing, requests
from benchmarks.workers import OURS, Services, ours, running
from task_activity_log.client import TaskActivityLogClient, Upsert
from task_activity_log.rabbitmq.outgoing import Outgoing
from task_activity_log.rabbitmq.publisher import Publisher

Publish = Callable[[Sequence[Outgoing]], Awaitable[object]]
Found: TypeAlias = dict[str, dict[str, list[float]]]
"""What each round has measured, by way to publish: `messages_per_second` and `cpu_us` of the publishing process a message."""

_COMMAND = (sys.executable, "-c", "from task_activity_log.cli import main; main()", "publish")
_DRY = 5
"""A dry run reads this many times as many records, so that the start of the command does not count for much."""


async def compare(services: Services, *, messages: int, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """The medians of messages a second and of the publishing process's CPU microseconds a message, by way to publish."""
    confirmed = await _confirmed(services, messages=messages, rounds=rounds)
    answered = await _answered(services, messages=messages, rounds=rounds, seconds=seconds)
    return {
        **_table("Publishing, with a confirm for each message", confirmed),
        **_table("Publishing while a worker answers, and a dry run", answered),
    }


def _table(title: str, found: Found) -> dict[str, dict[str, float]]:
    """Print the medians, compared with the first way, and return them."""
    medians = {way: {name: median(values) for name, values in some.items()} for way, some in found.items()}
    first = next(iter(medians))
    show.table(
        title,
        ("", "messages/s", f"{first} is", "CPU µs"),
        [
            (
                way,
                f"{some['messages_per_second']:,.0f}",
                f"{medians[first]['messages_per_second'] / some['messages_per_second']:.2f} ×",
                f"{some['cpu_us']:,.0f}",
            )
            for way, some in medians.items()
        ],
    )
    return medians


def _note(found: Found, way: str, count: int, took: float, cpu: float) -> None:
    some = found.setdefault(way, {"messages_per_second": [], "cpu_us": []})
    some["messages_per_second"].append(count / took)
    some["cpu_us"].append(cpu / count * 1e6)
    show.say(f"{way:45} {count / took:8,.0f} messages/s   {cpu / count * 1e6:6.1f} CPU µs")


# ---- confirmed


async def _confirmed(services: Services, *, messages: int, rounds: int) -> Found:
    """`Publisher` and aio-pika in turn. More than one batch or connection at a time shows what the broker can take."""
    url = os.environ["AMQP_URL"]
    found: Found = {}
    async with AsyncExitStack() as stack:
        publishers = [await stack.enter_async_context(publishing(url)) for _ in range(4)]
        connection = await stack.enter_async_context(await aio_pika.connect(url))
        exchange = await (await connection.channel()).get_exchange("task_activity_log")
        one = partial(_publish_one, exchange)
        ways: dict[str, tuple[Publish, int]] = {
            f"Publisher, {BATCH:,} a batch": (partial(_in_batches, publishers[:1], 1), messages),
            "two batches at a time": (partial(_in_batches, publishers[:1], 2), messages),
            "two connections": (partial(_in_batches, publishers[:2], 2), messages),
            "four connections": (partial(_in_batches, publishers, 4), messages),
            "aio-pika, one awaited after the other": (partial(_one_by_one, one), messages // 10),
            "aio-pika, 1,000 gathered": (partial(_gathered, one), messages // 2),
        }
        for number in range(rounds):
            for way, (publish, count) in list(ways.items())[:: -1 if number % 2 else 1]:
                await services.empty(tables=False)
                coming = list(requests(count))
                with show.bar(way):
                    began, cpu = time.perf_counter(), time.process_time()
                    await publish(coming)
                    _note(found, way, count, time.perf_counter() - began, time.process_time() - cpu)
        await services.empty(tables=False)
        return {way: found[way] for way in ways}


async def _in_batches(publishers: Sequence[Publisher], at_a_time: int, coming: Sequence[Outgoing]) -> None:
    starts = iter(range(0, len(coming), BATCH))

    async def publish(publisher: Publisher) -> None:
        for start in starts:
            await publisher.publish(coming[start : start + BATCH])

    await asyncio.gather(*map(publish, islice(cycle(publishers), at_a_time)))


async def _publish_one(exchange: aio_pika.abc.AbstractExchange, message: Outgoing) -> None:
    properties = properties_of(message)
    await exchange.publish(
        aio_pika.Message(
            message.body,
            content_type=properties.content_type,
            delivery_mode=properties.delivery_mode,
            message_id=properties.message_id,
        ),
        message.routing_key,
    )


async def _one_by_one(one: Callable[[Outgoing], Awaitable[None]], coming: Sequence[Outgoing]) -> None:
    for message in coming:
        await one(message)


async def _gathered(one: Callable[[Outgoing], Awaitable[None]], coming: Sequence[Outgoing]) -> None:
    for start in range(0, len(coming), BATCH):
        await asyncio.gather(*map(one, coming[start : start + BATCH]))


# ---- answered


async def _answered(services: Services, *, messages: int, rounds: int, seconds: float) -> Found:
    """What the worker drains, and what the client and the command publish and get answered by such a worker."""
    found: Found = {}
    drains, bulk, lines, dry = f"{OURS} drains", "upsert_many, answered", "publish of JSON lines, answered", "dry run"
    with TemporaryDirectory() as folder:
        few, many = Path(folder, "few.jsonl"), Path(folder, "many.jsonl")
        _write(few, messages)
        _write(many, _DRY * messages)
        for number in range(rounds):
            for way in (drains, bulk, lines, dry)[:: -1 if number % 2 else 1]:
                if way == drains:
                    cost = await drain.once(services, ours(), waiting=messages, seconds=seconds)
                    _note(found, way, cost.messages, cost.seconds, 0.0)
                elif way == dry:
                    _note(found, way, _DRY * messages, *await asyncio.to_thread(_command, "--dry-run", str(many)))
                else:
                    await services.empty()
                    upserting = _upserted(messages) if way == bulk else asyncio.to_thread(_command, "--yes", str(few))
                    _note(found, way, messages, *await _with_worker(services, upserting))
    return {way: found[way] for way in (drains, bulk, lines, dry)}


def _write(file: Path, count: int) -> None:
    """Write requests as JSON lines."""
    with file.open("wb") as opened:
        opened.writelines(b" ".join(body(uuid4(), xml=False).split()) + b"\n" for _ in range(count))


async def _with_worker(services: Services, upserting: Awaitable[tuple[float, float]]) -> tuple[float, float]:
    """Await this while a worker answers."""
    with running(ours(), services.python) as [process]:
        async with TaskActivityLogClient(os.environ["AMQP_URL"]) as client:
            async for _ in client.upsert_many([_upsert()], timeout=60.0):
                services.prefer([process.pid])  # also what has connected to the database: the worker has answered
        return await upserting


async def _upserted(count: int) -> tuple[float, float]:
    """Upsert this many records; the seconds until all were answered, and the seconds of CPU."""
    upserts = [_upsert() for _ in range(count)]
    async with TaskActivityLogClient(os.environ["AMQP_URL"]) as client:
        began, cpu = time.perf_counter(), time.process_time()
        bulk = client.upsert_many(upserts)
        async for _ in bulk:
            pass
        if bulk.summary.outcomes["inserted"] != count:
            raise SystemExit(f"not all were inserted: {bulk.summary}")
        return time.perf_counter() - began, time.process_time() - cpu


def _upsert() -> Upsert:
    return Upsert(body(uuid4(), xml=False))


def _command(*arguments: str) -> tuple[float, float]:
    """Run `task-activity-log publish`; its seconds, and its seconds of CPU."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run((*_COMMAND, *arguments), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
