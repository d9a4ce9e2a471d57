"""Outages: the database or the broker is down, refuses or is slow. A whole worker runs against real services."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from sandbox.proxy import Proxy
from task_activity_log import service as service_module
from task_activity_log.service import Service
from tests.asking import Connection
from tests.faults.conversation import TOPOLOGY, conversing, until
from tests.serving import serving

QUICK: dict[str, Any] = {
    "WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS": "0.5",
    "WORKER_DATABASE_CONNECT_TIMEOUT_SECONDS": "0.5",
    "WORKER_CONFIRM_TIMEOUT_SECONDS": "2",
}


def ready(service: Service) -> bool:
    return not service.status.not_ready()


async def test_an_outage_of_the_database_is_waited_out(amqp_url: str, database_url: str) -> None:
    """While the database is down the worker is alive but not ready, and says why; then it stores the message."""
    async with Proxy.to(database_url) as proxy, conversing(amqp_url) as talk:
        async with serving(amqp_url, proxy.url, **QUICK) as service:
            proxy.refuse()
            proxy.cut()
            await talk.send(subject="during")
            await until(lambda: any("holding" in reason for reason in service.status.not_ready()))
            assert service.status.not_alive() == []
            proxy.accept()
            assert await talk.outcomes(1) == ["inserted"]
            await until(lambda: ready(service))


async def test_an_idle_worker_notices_an_outage_of_the_database(
    amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So `/readyz` says that a message could not be stored, before one comes, and says when it could be again."""
    monkeypatch.setattr(service_module, "_LOOK_EVERY_SECONDS", 0.05)
    async with Proxy.to(database_url) as proxy, conversing(amqp_url) as talk:
        async with serving(amqp_url, proxy.url, **QUICK) as service:
            proxy.refuse()
            proxy.cut()
            await until(lambda: any("holding: connection" in reason for reason in service.status.not_ready()))
            assert service.status.not_alive() == []
            proxy.accept()
            await until(lambda: ready(service))
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]


async def test_a_column_whose_type_changes_values_is_noticed_while_the_worker_runs(
    amqp_url: str, database_url: str, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL takes the rows without an error, and would store less than was sent. Messages wait, as at a start."""
    monkeypatch.setattr(service_module, "_LOOK_EVERY_SECONDS", 0.05)
    instant = "2026-01-11T20:58:34.720383+00:00"
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, **QUICK) as service:
        await talk.send()
        assert await talk.outcomes(1) == ["inserted"]
        await admin.execute("ALTER TABLE task_activity_log ALTER due_date TYPE date")
        await until(lambda: any("holding: column due_date is date" in reason for reason in service.status.not_ready()))
        await talk.send(due_date=instant)
        await until(lambda: service._worker.store_hold.reason is not None)
        await admin.execute("ALTER TABLE task_activity_log ALTER due_date TYPE timestamptz")
        assert await talk.outcomes(1) == ["inserted"]
        await until(lambda: ready(service))
    stored = await admin.fetchval("SELECT due_date FROM task_activity_log WHERE due_date IS NOT NULL")
    assert stored == datetime.fromisoformat(instant)


async def test_a_database_that_does_not_answer_is_an_outage_and_not_an_error_of_a_row(
    amqp_url: str, database_url: str
) -> None:
    """On a half-open connection the statement and then the probe time out, so the worker holds and rejects nothing."""
    async with Proxy.to(database_url) as proxy, conversing(amqp_url) as talk:
        async with serving(amqp_url, proxy.url, **QUICK) as service:
            proxy.hold()
            for _ in range(5):
                await talk.send()
            await until(lambda: any("holding" in reason for reason in service.status.not_ready()))
            proxy.strand()
            proxy.resume()
            assert await talk.outcomes(5) == ["inserted"] * 5
            assert await talk.kept() == []


async def test_a_read_only_database_is_waited_out(amqp_url: str, database_url: str, admin: Connection) -> None:
    """After a failover to a standby (SQLSTATE 25006) the worker holds until the database accepts writes again."""
    name = database_url.rpartition("/")[2].partition("?")[0]
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        await admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
            name,
        )
        await talk.send()
        await until(lambda: any("read-only" in reason for reason in service.status.not_ready()))
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
            name,
        )
        assert await talk.outcomes(1) == ["inserted"]


async def test_a_locked_row_does_not_delay_other_rows(amqp_url: str, database_url: str, admin: Connection) -> None:
    """While one row is locked, messages for other rows are answered; the locked one is answered after the lock ends."""
    locked = uuid4()
    await admin.execute("INSERT INTO task_activity_log (id) VALUES ($1)", locked)
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, **QUICK):
        async with admin.transaction():
            await admin.execute("UPDATE task_activity_log SET subject = 'held' WHERE id = $1", locked)
            for _ in range(7):
                await talk.send()
            await talk.send(locked, subject="late")
            assert await talk.outcomes(7) == ["inserted"] * 7
        assert await talk.outcomes(1) == ["updated"]
        assert await talk.kept() == []


async def test_a_row_that_a_trigger_refuses_is_rejected_and_the_others_are_stored(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """When a trigger raises an error for one row, that message alone is rejected as refused_by_database."""
    await admin.execute(
        """
        CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF new.subject = 'guilty' THEN RAISE EXCEPTION 'never that'; END IF; RETURN new; END $$;
        CREATE TRIGGER picky BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION picky();
        """
    )
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url):
        for number in range(20):
            await talk.send(subject="guilty" if number == 11 else "good")
        assert await talk.outcomes(20) == ["inserted"] * 19 + ["rejected"]
        assert [message.headers["x-error-code"] for message in await talk.kept()] == ["refused_by_database"]
    assert await admin.fetchval("SELECT count(*) FROM task_activity_log") == 19


async def test_after_the_hold_limit_everything_is_requeued(amqp_url: str, database_url: str) -> None:
    """After the hold limit the worker stops consuming and stays alive; after the outage it stores the message."""
    async with Proxy.to(database_url) as proxy, conversing(amqp_url) as talk:
        async with serving(amqp_url, proxy.url, **QUICK, WORKER_HOLD_LIMIT_SECONDS="0.3") as service:
            proxy.refuse()
            proxy.cut()
            await talk.send()
            await until(lambda: "not consuming" in service.status.not_ready())
            assert service.status.not_alive() == []
            proxy.accept()
            assert await talk.outcomes(1) == ["inserted"]
            await until(lambda: ready(service))


async def test_a_start_in_an_outage_registers_no_consumer(amqp_url: str, database_url: str) -> None:
    """Restarts while the database is down do not increase any delivery count."""
    async with Proxy.to(database_url) as proxy, conversing(amqp_url) as talk:
        proxy.refuse()
        await talk.send()
        for _ in range(3):
            async with serving(amqp_url, proxy.url, consuming=False, **QUICK) as service:
                await until(lambda: any("holding" in reason for reason in service.status.not_ready()))
        queue = await talk.channel.get_queue(TOPOLOGY.requests_queue)
        message = await queue.get()
        assert message.headers.get("x-delivery-count", 0) == 0
        assert not message.redelivered


@pytest.mark.parametrize("how", ["cut", "strand"])
async def test_a_lost_broker_connection_is_opened_again(
    amqp_url: str, database_url: str, admin: Connection, how: str
) -> None:
    """Unsettled messages are delivered again and answered, and none is applied twice."""
    async with Proxy.to(amqp_url) as proxy, conversing(amqp_url) as talk:
        async with serving(proxy.url, database_url, WORKER_AMQP_HEARTBEAT_SECONDS="1", **QUICK) as service:
            for number in range(50):
                await talk.send()
                if number == 25:
                    getattr(proxy, how)()
            answered = await talk.outcomes(50, seconds=60)
            assert set(answered) <= {"inserted", "duplicate"}
            await until(lambda: ready(service))
    assert await admin.fetchval("SELECT count(*) FROM task_activity_log") == 50


async def test_a_deleted_requests_queue_is_declared_and_consumed_again(amqp_url: str, database_url: str) -> None:
    """When the broker cancels its consumer, the worker notices and consumes again."""
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        await talk.channel.queue_delete(TOPOLOGY.requests_queue)
        await until(lambda: not ready(service))
        await until(lambda: ready(service))
        await talk.send()
        assert await talk.outcomes(1) == ["inserted"]


async def test_a_reply_to_that_refuses_is_given_up_and_delays_nobody(amqp_url: str, database_url: str) -> None:
    """If a reply_to queue is full, other messages are answered, and after a while its message is settled anyway."""
    async with (
        conversing(amqp_url) as talk,
        serving(amqp_url, database_url, WORKER_REPLY_GIVE_UP_SECONDS="3") as service,
    ):
        full = await talk.channel.declare_queue(
            exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
        await talk.send(reply_to=full.name)
        await talk.send(reply_to=full.name)
        await talk.send()
        assert await talk.outcomes(1) == ["inserted"]
        count = service.metrics.registry.get_sample_value
        labels = {"why": "refused"}
        await until(lambda: count("task_activity_log_replies_given_up_total", labels) == 1)
        await until(lambda: service.in_hand == 0)


async def test_a_missing_replies_queue_holds_the_worker_until_it_exists_again(amqp_url: str, database_url: str) -> None:
    """Replies to the worker's own exchange are never given up: the worker holds until they can be routed."""
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        await talk.channel.queue_delete(TOPOLOGY.replies_queue)
        await talk.send()
        await until(lambda: any("replies returned" in reason for reason in service.status.not_ready()))
        queue = await talk.channel.declare_queue(
            TOPOLOGY.replies_queue, durable=True, arguments=TOPOLOGY.queues()[TOPOLOGY.replies_queue]
        )
        await queue.bind(TOPOLOGY.replies_exchange, "#")
        await queue.consume(talk.answers.put, no_ack=True)
        assert await talk.outcomes(1) == ["inserted"]


@pytest.mark.parametrize("away", ["database", "broker"])
async def test_draining_in_an_outage_ends_within_the_limit(amqp_url: str, database_url: str, away: str) -> None:
    """A worker that holds or reconnects can be drained, and the next worker handles its message."""
    async with Proxy.to(database_url if away == "database" else amqp_url) as proxy, conversing(amqp_url) as talk:
        urls = (amqp_url, proxy.url) if away == "database" else (proxy.url, database_url)
        async with asyncio.timeout(60), serving(*urls, **QUICK, WORKER_DRAIN_LIMIT_SECONDS="5") as service:
            proxy.refuse()
            proxy.cut()
            await talk.send()
            await until(lambda: not ready(service))
        async with serving(amqp_url, database_url):
            assert await talk.outcomes(1) == ["inserted"]
