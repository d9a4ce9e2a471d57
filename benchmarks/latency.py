"""Measures the time from publish to reply at a steady rate, for this worker and others in turn."""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_right
from collections.abc import Sequence
from random import Random
from statistics import median, quantiles
from uuid import uuid4

from aiormq.abc import DeliveredMessage

from benchmarks import show
from benchmarks.load import TOPOLOGY, publishing, request
from benchmarks.workers import PLAIN, Services, Worker, running
from task_activity_log.rabbitmq.channel import open_channel
from task_activity_log.rabbitmq.frames import Inbound
from task_activity_log.rabbitmq.headers import decode as properties_of
from task_activity_log.rabbitmq.link import LinkOptions, connect
from task_activity_log.rabbitmq.publisher import Publisher

_WARM_UP = 0.2
"""The first messages, as a share of all, whose times are ignored because the worker has just started."""
_LAST_REPLY_SECONDS = 30.0
_PLAIN_MOST = 1_000
"""From this rate on the plain one falls behind for ever."""


async def in_turn(
    services: Services, workers: Sequence[Worker], *, rates: Sequence[int], rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """The medians of all rounds' p50 and p99, in milliseconds, by worker and rate."""
    found: dict[str, dict[str, list[float]]] = {}
    for rate in rates:
        for _ in range(rounds):
            for worker in workers:
                if worker.name == PLAIN and rate > _PLAIN_MOST:
                    continue
                took = await once(services, worker, rate=rate, seconds=seconds)
                cuts = quantiles(took, n=100)
                some = found.setdefault(f"{worker.name}, {rate:,}/s", {"p50_ms": [], "p99_ms": []})
                some["p50_ms"].append(cuts[49] * 1000)
                some["p99_ms"].append(cuts[98] * 1000)
                show.say(
                    f"{worker.name:24} {rate:6,}/s   p50 {cuts[49] * 1000:7.1f} ms   p99 {cuts[98] * 1000:7.1f} ms"
                )
    medians = {name: {cut: median(values) for cut, values in some.items()} for name, some in found.items()}
    show.table(
        "Time from publish to reply",
        ("", "p50 ms", "p99 ms"),
        [(name, f"{some['p50_ms']:.1f}", f"{some['p99_ms']:.1f}") for name, some in medians.items()],
    )
    return medians


async def once(services: Services, worker: Worker, *, rate: int, seconds: float) -> list[float]:
    """The seconds from publish to reply of each message. They are sent at random moments, on average `rate` a second."""
    await services.empty()
    count = int(rate * seconds)
    sent: dict[str, float] = {}
    took: dict[str, float] = {}
    first, complete = asyncio.Event(), asyncio.Event()

    def on_reply(_: int, __: bool, header: bytes, ___: bytes) -> None:
        name = properties_of(header).correlation_id or ""
        took[name] = time.perf_counter() - sent[name]
        first.set()
        if len(took) == count:
            complete.set()

    url = os.environ["AMQP_URL"]
    with running(worker, services.python) as [process], show.bar(f"{worker.name} at {rate:,} messages/s") as progress:
        async with connect(LinkOptions(url), "answers") as (connection, frame_reader), publishing(url) as publisher:
            channel = await open_channel(connection)
            # aio-pika's consumer would take longer for a reply than a worker does.
            frame_reader.channels[channel.number] = Inbound(deliver=on_reply)
            await channel.basic_consume(TOPOLOGY.replies_queue, _not_called, no_ack=True)
            sending: list[asyncio.Task[None]] = []
            services.prefer([process.pid])
            await _send(publisher, sent, 1)
            await asyncio.wait_for(first.wait(), _LAST_REPLY_SECONDS)  # the worker has started
            services.prefer([process.pid])  # also what has connected to the database
            random = Random(rate)  # noqa: S311 - the same moments for every worker
            at = time.perf_counter()
            moments = [at, *(at := at + random.expovariate(rate) for _ in range(count - 1))]
            while len(sent) < count:
                await asyncio.sleep(max(0.0, moments[len(sent)] - time.perf_counter()))
                due = bisect_right(moments, time.perf_counter()) - len(sent)
                sending.append(asyncio.create_task(_send(publisher, sent, due)))
                await asyncio.sleep(0)
                progress(len(sent) / count)
                if count // 10 <= len(sent) < count // 5:
                    services.prefer([process.pid])  # also what has connected to the database since the first reply
            await asyncio.gather(*sending)
            await asyncio.wait_for(complete.wait(), _LAST_REPLY_SECONDS)
    return [took[name] for name in sent][int(count * _WARM_UP) :]


async def _not_called(_: DeliveredMessage) -> None:
    """The frame reader takes all deliveries."""


async def _send(publisher: Publisher, sent: dict[str, float], count: int) -> None:
    """Publish what is due in one write."""
    messages = [request(uuid4()) for _ in range(count)]
    sent.update((message.properties.correlation_id or "", time.perf_counter()) for message in messages)
    await publisher.publish(messages)
