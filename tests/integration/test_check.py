"""`check` against real services, as they should be and otherwise."""

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
from task_activity_log.settings import load
from tests.asking import Connection, grants
from tests.serving import serving

UPSERT = "task_activity_log.upsert"


def login(url: str, user: str, password: str) -> str:
    """The URL with another user."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))


@dataclass
class User:
    """A user of the broker who may do nothing yet."""

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
    """What is broken (or has another of the `verdicts`), and how."""
    return [(one.what, one.found) for one in found if one.verdict in (verdicts or ("broken",))]


async def test_before_the_first_start_the_schema_alone_is_broken_and_nothing_is_changed(
    rabbitmq: RabbitMQ, amqp_url: str, empty_database_url: str
) -> None:
    """What the worker will declare is fine; looking for it does not make it."""
    found = await look(amqp_url, empty_database_url, rabbitmq)
    assert worst(found) == [("schema", "not migrated yet")]
    assert [one.found for one in found if one.what == f"queue {UPSERT}"] == ["is not there; will be declared"]
    vhost = urlsplit(amqp_url).path[1:]
    assert rabbitmq.api("GET", f"/queues/{vhost}") == []
    assert not [one for one in rabbitmq.api("GET", f"/exchanges/{vhost}") if one["name"].startswith("task")]


async def test_beside_a_running_worker_nothing_is_broken(rabbitmq: RabbitMQ, amqp_url: str, database_url: str) -> None:
    """All is there, and with a second worker the order per record is a warning, of its own at its start too."""
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, rabbitmq)
        assert worst(found) == []
        assert ("fine", f"queue {UPSERT}", "delivery limit 20") in [(one.verdict, one.what, one.found) for one in found]
        with structlog.testing.capture_logs() as events:
            async with serving(amqp_url, database_url):
                found = await look(amqp_url, database_url, rabbitmq)
                assert ("order per record", "2 consumers") in worst(found, "warning")
        assert [event["count"] for event in events if event["event"] == "other_consumers"] == [1]


async def test_a_worker_that_owns_no_topology_misses_it(amqp_url: str, database_url: str) -> None:
    """It will not declare what is not there; without management what it cannot see is unknown."""
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
    """Somebody made it by hand; the policy that mends the limit is seen as well."""
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


async def test_the_permissions_that_are_documented_are_enough(
    rabbitmq: RabbitMQ, user: User, amqp_url: str, database_url: str
) -> None:
    """A user with just those runs a worker that declares, and one that checks; with one fewer `check` names it."""
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


async def test_one_who_monitors_sees_all_but_the_permissions(
    rabbitmq: RabbitMQ, user: User, amqp_url: str, database_url: str
) -> None:
    """Limits need no administrator; who may what is shown to one alone."""
    rabbitmq.api("PUT", f"/users/{user.name}", {"password": "secret", "tags": "monitoring"})
    user.may(read=".*")
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, MANAGEMENT_URL=login(rabbitmq.management_url, user.name, "secret"))
    assert "delivery limit 20" in [one.found for one in found]
    shown = urlsplit(amqp_url).username
    assert (f"user {shown}", "its permissions are not shown") in worst(found, "unknown")
    assert not worst(found)


async def exchanged(amqp_url: str) -> list[str]:
    """The outcomes of a good message with `reply_to` and a bad one without, as their replies tell."""
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
async def test_a_broker_that_does_not_let_us_in_is_one_line(
    amqp_url: str, database_url: str, host: str | None, found: str
) -> None:
    """And the database is looked at all the same."""
    url = f"amqp://nobody:wrong-password@{host}/" if host else login(amqp_url, "nobody", "wrong-password")
    [broken] = [one for one in await look(url, database_url) if one.verdict == "broken"]
    assert broken.what == "broker"
    assert found in broken.found
    assert "wrong-password" not in broken.found


async def test_a_management_api_that_is_away_leaves_unknown(amqp_url: str, database_url: str) -> None:
    """It is no reason to call anything broken."""
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, MANAGEMENT_URL="http://a:b@127.0.0.1:1")
    assert worst(found) == []
    assert "management" in [what for what, _ in worst(found, "unknown")]


async def test_a_role_that_lacks_rights_is_broken_until_they_are_granted(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """With what grants.sql grants it is fine, and no superuser's warning is left."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        url = login(database_url, role, "secret")
        found = worst(await look(amqp_url, url))
        assert [what for what, _ in found] == ["schema", f"role {role}"]
        assert "INSERT on task_activity_log" in found[1][1]
        await database.execute(grants(role))
        found_then = await look(amqp_url, url)
        assert worst(found_then, "broken", "warning") == []
        assert ("fine", f"role {role}") in [(one.verdict, one.what) for one in found_then]
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_what_was_done_to_the_database_is_seen(amqp_url: str, database_url: str, database: Connection) -> None:
    """A trigger that was switched off, a role that is read-only, a schema of another release."""
    await database.execute("ALTER TABLE task_activity_log DISABLE TRIGGER task_activity_log_modified")
    assert worst(await look(amqp_url, database_url)) == [("trigger", "modified_dateutc is not set")]
    await database.execute("ALTER TABLE task_activity_log ENABLE TRIGGER task_activity_log_modified")
    await database.execute("UPDATE task_activity_log_alembic_version SET version_num = 'ffff'")
    found = await look(amqp_url, database_url)
    assert worst(found) == []
    assert ("schema", "revision ffff: made by a newer release") in worst(found, "warning")


def test_the_exit_code_says_the_worst(
    amqp_url: str, database_url: str, empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 also with warnings unless they count; 1 if something is broken."""
    urls = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}
    assert check(load(urls), strict=False) == 0
    assert check(load(urls), strict=True) == 1  # a superuser
    assert check(load({**urls, "DATABASE_URL": empty_database_url}), strict=False) == 1
    assert "not migrated yet" in capsys.readouterr().out
