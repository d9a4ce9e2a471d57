"""`check` against real services that are set up correctly, and against others."""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aio_pika
import pytest
import structlog

from sandbox import RabbitMQ
from task_activity_log.cli.check import Finding, check, findings
from task_activity_log.postgresql import migrations
from task_activity_log.settings import load
from tests.asking import Connection
from tests.serving import serving

UPSERT = "task_activity_log.upsert"


def login(url: str, user: str, password: str) -> str:
    """The URL with another user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))


@dataclass
class User:
    """A user of the broker who has no permissions yet."""

    rabbitmq: RabbitMQ
    url: str
    name: str

    def may(self, **permissions: str) -> None:
        vhost = urlsplit(self.url).path[1:]
        self.rabbitmq.api(
            "PUT", f"/permissions/{vhost}/{self.name}", {"configure": "", "write": "", "read": "", **permissions}
        )


@pytest.fixture
def user(rabbitmq: RabbitMQ, amqp_url: str) -> Iterator[User]:
    name = f"u{secrets.token_hex(4)}"
    rabbitmq.api("PUT", f"/users/{name}", {"password": "secret", "tags": ""})
    yield User(rabbitmq, login(amqp_url, name, "secret"), name)
    rabbitmq.api("DELETE", f"/users/{name}")


async def look(amqp_url: str, database_url: str, rabbitmq: RabbitMQ | None = None, **more: str) -> list[Finding]:
    management = {"MANAGEMENT_URL": rabbitmq.management_url} if rabbitmq else {}
    return await findings(load({"AMQP_URL": amqp_url, "DATABASE_URL": database_url, **management, **more}))


def worst(found: Sequence[Finding], *verdicts: str) -> list[tuple[str, str]]:
    """What is broken (or has another of the `verdicts`), and the finding."""
    return [(one.what, one.found) for one in found if one.verdict in (verdicts or ("broken",))]


async def test_before_the_first_start_the_schema_alone_is_broken_and_nothing_is_changed(
    rabbitmq: RabbitMQ, amqp_url: str, empty_database_url: str
) -> None:
    """`check` finds nothing wrong with what the worker will declare, and declares nothing itself."""
    found = await look(amqp_url, empty_database_url, rabbitmq)
    assert worst(found) == [("schema", "not migrated yet")]
    assert [one.found for one in found if one.what == f"queue {UPSERT}"] == ["is not there; will be declared"]
    vhost = urlsplit(amqp_url).path[1:]
    assert rabbitmq.api("GET", f"/queues/{vhost}") == []
    assert not [one for one in rabbitmq.api("GET", f"/exchanges/{vhost}") if one["name"].startswith("task")]


async def test_nothing_is_broken_while_a_worker_runs(rabbitmq: RabbitMQ, amqp_url: str, database_url: str) -> None:
    """With a second worker, `check` and the second worker itself warn about the order per record."""
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, rabbitmq)
        assert worst(found) == []
        assert ("fine", f"queue {UPSERT}", "delivery limit 20") in [(one.verdict, one.what, one.found) for one in found]
        with structlog.testing.capture_logs() as events:
            async with serving(amqp_url, database_url):
                found = await look(amqp_url, database_url, rabbitmq)
                assert ("order per record", "2 consumers") in worst(found, "warning")
        assert [event["count"] for event in events if event["event"] == "other_consumers"] == [1]


async def test_a_worker_that_only_checks_its_topology_misses_it(amqp_url: str, database_url: str) -> None:
    """It will not declare what is missing; limits that AMQP does not show are unknown."""
    found = await look(amqp_url, database_url, WORKER_TOPOLOGY="check")
    assert [what for what, _ in worst(found)] == [
        "exchange task_activity_log",
        "exchange task_activity_log.replies",
        "queue task_activity_log.dead-letters",
        "queue task_activity_log.replies",
        f"queue {UPSERT}",
    ]
    assert worst(found, "unknown") == [("limits and permissions", "AMQP does not show them")]


async def test_a_queue_without_delivery_limit_and_binding_is_broken(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    """A queue that somebody has created by hand lacks its limit, its dead-lettering and its binding."""
    vhost = urlsplit(amqp_url).path[1:]
    async with serving(amqp_url, database_url):
        pass
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    if rabbitmq.version.startswith("4"):
        arguments["x-delivery-limit"] = -1
    rabbitmq.api("DELETE", f"/queues/{vhost}/{UPSERT}")
    rabbitmq.api("PUT", f"/queues/{vhost}/{UPSERT}", {"durable": True, "arguments": arguments})
    found = worst(await look(amqp_url, database_url, rabbitmq, WORKER_TOPOLOGY="check"))
    assert found == [
        (f"queue {UPSERT}", "has no delivery limit"),
        (f"queue {UPSERT}", "does not dead-letter"),
        (f"binding task_activity_log → {UPSERT}", "is not there"),
    ]


async def test_the_documented_permissions_are_enough(
    rabbitmq: RabbitMQ, user: User, amqp_url: str, database_url: str
) -> None:
    """They let a worker run that declares or only checks its topology, and `check` names a missing one."""
    user.may(
        configure=r"^task_activity_log(\..+)?$",
        write=r"^(task_activity_log(\..+)?|amq\.default)$",
        read=r"^task_activity_log(\..+)?$",
    )
    assert not worst(await look(user.url, database_url, rabbitmq))
    async with serving(user.url, database_url):
        assert await exchanged(amqp_url) == ["inserted", "rejected"]
    user.may(write=r"^(task_activity_log\.replies|amq\.default)$", read=r"^task_activity_log\.upsert$")
    assert not worst(await look(user.url, database_url, rabbitmq, WORKER_TOPOLOGY="check"))
    async with serving(user.url, database_url, WORKER_TOPOLOGY="check"):
        assert await exchanged(amqp_url) == ["inserted", "rejected"]
    user.may(write=r"^task_activity_log\.replies$", read=r"^task_activity_log\.upsert$")
    found = worst(await look(user.url, database_url, rabbitmq, WORKER_TOPOLOGY="check"))
    assert found == [(f"user {user.name}", "lacks write on amq.default")]


async def test_a_monitoring_user_sees_everything_but_the_permissions(
    rabbitmq: RabbitMQ, user: User, amqp_url: str, database_url: str
) -> None:
    """Limits need no administrator, but only an administrator is shown the permissions."""
    rabbitmq.api("PUT", f"/users/{user.name}", {"password": "secret", "tags": "monitoring"})
    user.may(read=".*")
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, MANAGEMENT_URL=login(rabbitmq.management_url, user.name, "secret"))
    assert "delivery limit 20" in [one.found for one in found]
    shown = urlsplit(amqp_url).username
    assert (f"user {shown}", "its permissions are not shown") in worst(found, "unknown")
    assert not worst(found)


async def exchanged(amqp_url: str) -> list[str]:
    """The outcomes of a good message with `reply_to` and a bad one without, taken from their replies."""
    outcomes = []
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        own = await channel.declare_queue(exclusive=True)
        replies = await channel.get_queue("task_activity_log.replies")
        good = aio_pika.Message(json.dumps({"id": str(uuid4())}).encode(), reply_to=own.name)
        for message, queue in ((good, own), (aio_pika.Message(b"{"), replies)):
            await channel.default_exchange.publish(message, UPSERT)
            async with queue.iterator(no_ack=True, timeout=20) as coming:
                outcomes.append(str((await anext(coming)).headers["x-outcome"]))
    return outcomes


@pytest.mark.parametrize(
    ("host", "found"),
    [("127.0.0.1:1", "127.0.0.1:1/: "), (None, ": the broker refuses the user name or password")],
)
async def test_a_broker_that_refuses_the_connection_is_one_line(
    amqp_url: str, database_url: str, host: str | None, found: str
) -> None:
    """The finding has no password, and the database is checked as well."""
    url = f"amqp://nobody:wrong-password@{host}/" if host else login(amqp_url, "nobody", "wrong-password")
    [broken] = [one for one in await look(url, database_url) if one.verdict == "broken"]
    assert broken.what == "broker"
    assert found in broken.found
    assert "wrong-password" not in broken.found


async def test_an_unreachable_management_api_makes_limits_unknown(amqp_url: str, database_url: str) -> None:
    """It does not make anything broken."""
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, MANAGEMENT_URL="http://a:b@127.0.0.1:1")
    assert worst(found) == []
    assert "management" in [what for what, _ in worst(found, "unknown")]


async def test_a_role_without_privileges_is_broken_until_they_are_granted(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """After grants.sql it is fine, and without the warning that a superuser gets."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        url = login(database_url, role, "secret")
        found = worst(await look(amqp_url, url))
        assert [what for what, _ in found] == ["schema", f"role {role}"]
        assert "INSERT on task_activity_log" in found[1][1]
        await database.execute(migrations.grants(role))
        found_then = await look(amqp_url, url)
        assert worst(found_then, "broken", "warning") == []
        assert ("fine", f"role {role}") in [(one.verdict, one.what) for one in found_then]
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_disabled_trigger_and_a_newer_schema_are_reported(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """A disabled trigger is broken, and a schema of a newer release is a warning."""
    await database.execute("ALTER TABLE task_activity_log DISABLE TRIGGER task_activity_log_modified")
    assert worst(await look(amqp_url, database_url)) == [("trigger", "modified_dateutc is not set")]
    await database.execute("ALTER TABLE task_activity_log ENABLE TRIGGER task_activity_log_modified")
    await database.execute("UPDATE task_activity_log_alembic_version SET version_num = 'ffff'")
    found = await look(amqp_url, database_url)
    assert worst(found) == []
    assert ("schema", "revision ffff: made by a newer release") in worst(found, "warning")


def test_the_exit_code_is_that_of_the_worst_finding(
    amqp_url: str, database_url: str, empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is 1 if something is broken, and with `strict` also if there is a warning."""
    urls = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}
    assert check(load(urls), strict=False) == 0
    assert check(load(urls), strict=True) == 1  # a superuser is a warning
    assert check(load({**urls, "DATABASE_URL": empty_database_url}), strict=False) == 1
    assert "not migrated yet" in capsys.readouterr().out
