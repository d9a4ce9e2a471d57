"""A real Prometheus scrapes a worker under load and answers every query of the alerts and the dashboard.

Needs Prometheus: `make test` leaves this test out, `make test-deploy` runs it.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import aio_pika
import pytest

from sandbox import PostgreSQL, RabbitMQ, say_on_stderr
from task_activity_log.rabbitmq.topology import REQUEST_KEY, Topology
from tests import queries
from tests.deploy.prometheus import Prometheus
from tests.serving import serving

pytestmark = pytest.mark.deploy

TOPOLOGY = Topology()
KNOWN = UUID(int=1)


@asynccontextmanager
async def load(amqp_url: str) -> AsyncIterator[None]:
    """Publish ten times a second: new and updated records, a repeat, a stale version, a bad one, and a lost reply_to."""

    def message(
        body: dict[str, Any], message_id: str, *, reply_to: str | None = None, version: int | None = None
    ) -> aio_pika.Message:
        return aio_pika.Message(
            json.dumps(body).encode(),
            content_type="application/json",
            message_id=message_id,
            timestamp=int(time.time()),
            reply_to=reply_to,
            headers={} if version is None else {"x-version": version},
        )

    async def publish() -> None:
        async with await aio_pika.connect(amqp_url) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(TOPOLOGY.requests_exchange)
            for version in range(2, 1_000_000):
                repeated, known = str(uuid4()), {"id": str(KNOWN), "subject": "known"}
                for each in (
                    *(message({"id": str(uuid4())}, str(uuid4())) for _ in range(10)),
                    message(known, repeated, version=version),
                    message(known, repeated, version=version),
                    message(known, str(uuid4()), version=1),
                    message({"id": "none"}, str(uuid4())),
                    message({"id": str(uuid4())}, str(uuid4()), reply_to="nobody"),
                ):
                    await exchange.publish(each, REQUEST_KEY)
                await asyncio.sleep(0.1)

    publishing = asyncio.create_task(publish())
    yield
    publishing.cancel()
    await asyncio.wait([publishing])


async def seen(prometheus: Prometheus, expression: str) -> None:
    """Wait until an expression has a result in Prometheus."""
    try:
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(prometheus.now, expression):
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"{expression} had no result for a minute") from None


def has_data(series: list[Any]) -> bool:
    """Whether a range has at least one number."""
    return any(not math.isnan(float(value)) for each in series for _, value in each["values"])


@pytest.mark.timeout(400)
async def test_every_query_has_data(
    own_amqp_url: str, own_database_url: str, own_rabbitmq: RabbitMQ, own_postgresql: PostgreSQL
) -> None:
    """Every query of the dashboard and the alerts has data after load, a database outage and a lost connection.

    There are partitions, of which some panels and alerts tell. What is not sent by record is forwarded to them.
    """
    began = time.time()
    assert own_rabbitmq.metrics_address is not None
    async with serving(own_amqp_url, own_database_url, WORKER_PARTITIONS="2") as service:
        targets = {
            "task-activity-log-worker": f"127.0.0.1:{service.http_port}",
            "rabbitmq": own_rabbitmq.metrics_address,
        }
        with await asyncio.to_thread(Prometheus, targets, say_on_stderr) as prometheus:
            async with load(own_amqp_url):
                for outcome in ("inserted", "updated", "duplicate", "stale", "rejected"):
                    await seen(prometheus, f'rate(task_activity_log_messages_total{{outcome="{outcome}"}}[5s]) > 0')
                await asyncio.to_thread(own_postgresql.stop)
                await seen(prometheus, "rate(task_activity_log_hold_seconds_total[5s]) > 0")
                await seen(prometheus, 'ALERTS{alertname="TaskActivityLogHolding", alertstate="pending"}')
                await asyncio.to_thread(own_postgresql.start)
                await seen(prometheus, "task_activity_log_holding == 0")
                for connection in await asyncio.to_thread(own_rabbitmq.api, "GET", "/connections"):
                    await asyncio.to_thread(own_rabbitmq.api, "DELETE", f"/connections/{quote(connection['name'])}")
                await seen(prometheus, "task_activity_log_connections_lost_total > 0")
            async with load(own_amqp_url):
                await seen(prometheus, "task_activity_log_consuming == 1")
                await seen(prometheus, 'ALERTS{alertname="TaskActivityLogRepliesGivenUp", alertstate="firing"}')
                await seen(prometheus, 'ALERTS{alertname="TaskActivityLogDeadLetters", alertstate="pending"}')
            silent: list[str] = []
            for title, expression in queries.panels():
                drawn = queries.as_drawn(expression, interval="5s")
                found = prometheus.ask("query_range", query=drawn, start=began, end=time.time(), step="1s")["result"]
                if not has_data(found) and title != "Restarts":  # the worker was not restarted
                    silent.append(f"{title}: {drawn}")
            for name, rule in queries.alerts().items():
                if name == "TaskActivityLogCertificateExpires":
                    continue  # these services have no TLS
                silent += [f"{name}: {each}" for each in queries.selectors(rule["expr"]) if not prometheus.now(each)]
            assert silent == []
            (group,) = prometheus.ask("rules")["groups"]
            healths = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in group["rules"]}
            assert healths == dict.fromkeys(queries.alerts(), ("ok", None))
