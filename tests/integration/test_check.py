"""`check` against real services, in order and otherwise."""

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aio_pika
import aiormq
import asyncpg
import pytest
import structlog

from sandbox import RabbitMQ
from task_activity_log import __version__
from task_activity_log.cli.check import check, findings
from task_activity_log.cli.check.finding import Finding
from task_activity_log.client import PoisonQueue, TaskActivityLog, TaskActivityLogClient, subscribe
from task_activity_log.postgresql import migrations
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.topology import Topology, declare
from task_activity_log.rabbitmq.version import number
from task_activity_log.settings import load
from tests.asking import OLDER, OPEN_SCHEMA, Connection, grants
from tests.commands import Said, command
from tests.faults.conversation import until
from tests.serving import serving
from tests.users import login

UPSERT = "task_activity_log.upsert"
DOCS = Path(__file__).parents[2] / "docs"


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
    settings = load({"AMQP_URL": amqp_url, "DATABASE_URL": database_url, "HTTP_PORT": "0", **management, **more})
    return await findings(settings, patient=False)


def worst(found: Sequence[Finding], *verdicts: str) -> list[tuple[str, str]]:
    """What is broken, or has one of the `verdicts`, and what was found."""
    wanted = verdicts or ("broken",)
    return [(one.what, one.found) for one in found if one.verdict in wanted and one.found != OPEN_SCHEMA]


async def test_the_worker_with_the_same_settings_is_shown(amqp_url: str, database_url: str) -> None:
    """As long as one answers. Whether it is ready depends on the worker alone."""
    async with serving(amqp_url, database_url) as service:
        port = str(service.http_port)
        what = f"worker at 127.0.0.1:{port}"
        [found] = [one for one in await look(amqp_url, database_url, HTTP_PORT=port) if one.what == what]
        assert (found.verdict, found.found) == ("fine", f"release {__version__}, ready")
        service.status.draining = True
        [found] = [one for one in await look(amqp_url, database_url, HTTP_PORT=port) if one.what == what]
        assert (found.verdict, found.found) == ("warning", "is not ready: draining")
    assert what not in [one.what for one in await look(amqp_url, database_url, HTTP_PORT=port)]


async def test_another_program_at_the_port_is_no_worker(rabbitmq: RabbitMQ, amqp_url: str, database_url: str) -> None:
    """Here RabbitMQ's management API."""
    port = str(urlsplit(rabbitmq.management_url).port)
    assert not [one for one in await look(amqp_url, database_url, HTTP_PORT=port) if "worker" in one.what]


async def test_before_the_first_start_only_the_schema_is_broken_and_nothing_is_changed(
    rabbitmq: RabbitMQ, amqp_url: str, empty_database_url: str
) -> None:
    """What the worker will declare is fine; checking for it does not declare it."""
    found = await look(amqp_url, empty_database_url, rabbitmq)
    assert worst(found) == [("schema", "not migrated yet")]
    assert [one.found for one in found if one.what == f"queue {UPSERT}"] == [
        "does not exist yet; the worker declares it when it starts"
    ]
    vhost = urlsplit(amqp_url).path[1:]
    assert rabbitmq.api("GET", f"/queues/{vhost}") == []
    assert not [one for one in rabbitmq.api("GET", f"/exchanges/{vhost}") if one["name"].startswith("task")]


async def test_next_to_a_running_worker_nothing_is_broken(rabbitmq: RabbitMQ, amqp_url: str, database_url: str) -> None:
    """Everything exists. With a second worker there is a warning about order, which that worker also logs at its start."""
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, rabbitmq)
        assert worst(found) == []
        assert ("fine", f"queue {UPSERT}", "delivery limit 20") in [(one.verdict, one.what, one.found) for one in found]
        with structlog.testing.capture_logs() as events:
            async with serving(amqp_url, database_url):
                found = await look(amqp_url, database_url, rabbitmq)
                assert ("order per record", "2 consumers") in worst(found, "warning")
        assert [event["count"] for event in events if event["event"] == "other_consumers"] == [1]


async def test_partitions_that_workers_share_are_fine(rabbitmq: RabbitMQ, amqp_url: str, database_url: str) -> None:
    """One line for all of them. Without the setting it is broken: a worker would not start."""
    async with serving(amqp_url, database_url, WORKER_PARTITIONS="4") as worker:
        await until(lambda: not worker.status.not_ready())
        found = await look(amqp_url, database_url, rabbitmq, WORKER_PARTITIONS="4")
        assert worst(found) == []
        assert not [one for one in worst(found, "warning") if "superuser" not in one[1]]
        fine = worst(found, "fine")
        assert ("partitions", "4 of 4, 0 waiting, 1 workers") in fine
        assert ("hash slots", "all 256 are bound, each to one partition") in fine
        assert not [what for what, _ in fine if what.startswith(f"queue {UPSERT}.")]
        found = await look(amqp_url, database_url, rabbitmq)
        assert worst(found) == [("partitions", "the broker has 4, but WORKER_PARTITIONS is not set")]


@pytest.mark.parametrize("number_", ["2", "8"])
async def test_another_number_of_partitions_is_broken(
    amqp_url: str, database_url: str, rabbitmq: RabbitMQ, number_: str
) -> None:
    async with serving(amqp_url, database_url, WORKER_PARTITIONS="4"):
        pass
    found = await look(amqp_url, database_url, rabbitmq, WORKER_PARTITIONS=number_)
    assert ("partitions", f"the broker has 4, but WORKER_PARTITIONS is {number_}") in worst(found)


async def ignore(_: object) -> None:
    """Take a delivery."""


async def test_partitions_that_get_nothing_or_give_nothing_are_broken(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    """A slot that is bound to no queue, one that is bound to two, a queue without consumer, and one that is missing."""
    vhost = urlsplit(amqp_url).path[1:]
    exchange = f"/bindings/{vhost}/e/task_activity_log.by-record/q"
    async with serving(amqp_url, database_url, WORKER_PARTITIONS="4"):
        pass
    for slot in ("00", "01"):
        rabbitmq.api("DELETE", f"{exchange}/{UPSERT}.0/{slot}")
    rabbitmq.api("POST", f"{exchange}/{UPSERT}.1", {"routing_key": "01"})
    rabbitmq.api("POST", f"{exchange}/{UPSERT}.1", {"routing_key": "ff"})
    rabbitmq.api("POST", f"{exchange}/task_activity_log.replies", {"routing_key": "80"})  # only a copy
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        for queue in ("task_activity_log.workers", f"{UPSERT}.0", f"{UPSERT}.1", f"{UPSERT}.2"):
            await (await channel.get_queue(queue)).consume(ignore)  # as a worker does, but for one partition
        found = await look(amqp_url, database_url, rabbitmq, WORKER_PARTITIONS="4")
        assert worst(found) == [
            (f"queue {UPSERT}.3", "no worker consumes it, of 1"),
            ("hash slots", "00 is bound to no partition"),
            ("hash slots", "ff is bound to several queues"),
            ("hash slots", "01 is bound to the wrong partition"),
        ]
        rabbitmq.api("DELETE", f"/queues/{vhost}/{UPSERT}.1")
        found = await look(amqp_url, database_url, rabbitmq, WORKER_PARTITIONS="4")
        assert ("partitions", "some of the queues are missing") in worst(found)


async def test_a_half_made_change_is_broken_without_the_setting(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    """An exchange without queues, as a publisher finds it; and partitions of which a slot is not bound."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.declare_exchange("task_activity_log.by-record", "direct", durable=True)
        found = await look(amqp_url, database_url)
        half_made = "exchange task_activity_log.by-record exists, but no queue of a partition"
        assert worst(found) == [("partitions", half_made)]
        await declare(connection, Topology(partitions=2))
        await (await channel.get_queue(f"{UPSERT}.1")).unbind("task_activity_log.by-record", "ff")
    found = await look(amqp_url, database_url, rabbitmq)
    assert ("hash slots", "ff is bound to no partition") in worst(found)


async def test_partitions_need_a_requests_queue_with_a_single_active_consumer(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    async with serving(amqp_url, database_url):
        pass
    found = await look(amqp_url, database_url, rabbitmq, WORKER_PARTITIONS="4")
    sentence = f"WORKER_PARTITIONS is set, but queue {UPSERT} was declared without a single active consumer"
    assert worst(found) == [("order per record", sentence)]


async def test_without_declaring_what_does_not_exist_is_broken(amqp_url: str, database_url: str) -> None:
    """Such a worker will not declare it. Without the management API, limits and permissions are unknown."""
    found = await look(amqp_url, database_url, WORKER_TOPOLOGY="check")
    assert [what for what, _ in worst(found)] == [
        "exchange task_activity_log",
        "exchange task_activity_log.replies",
        "queue task_activity_log.dead-letters",
        "queue task_activity_log.replies",
        f"queue {UPSERT}",
    ]
    assert worst(found, "unknown") == [("limits and permissions", "not visible over AMQP")]


async def test_a_queue_without_delivery_limit_and_binding_is_broken(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    """As when somebody declared the queue by hand."""
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
        (f"binding task_activity_log → {UPSERT}", "does not exist"),
    ]


async def test_the_permissions_that_are_documented_are_enough(
    rabbitmq: RabbitMQ, user: User, amqp_url: str, database_url: str
) -> None:
    """With just those, a user runs a worker that declares, and one that checks; `check` names one that is missing."""
    page = (DOCS / "operations.md").read_text()
    declaring, checking = (
        dict(zip(("configure", "write", "read"), re.findall("'(.*)'", command), strict=True))
        for command in re.findall(r"set_permissions -p VHOST worker((?: \\\n +'.*'){3})", page)
    )
    user.may(**declaring)
    assert not worst(await look(user.url, database_url, rabbitmq))
    async with serving(user.url, database_url):
        assert await exchanged(amqp_url) == ["inserted", "rejected"]
    user.may(**checking)
    assert not worst(await look(user.url, database_url, rabbitmq, WORKER_TOPOLOGY="check"))
    async with serving(user.url, database_url, WORKER_TOPOLOGY="check"):
        assert await exchanged(amqp_url) == ["inserted", "rejected"]
    user.may(**{**checking, "write": r"^task_activity_log(\..+)?$"})
    found = worst(await look(user.url, database_url, rabbitmq, WORKER_TOPOLOGY="check"))
    assert found == [(f"user {user.name}", "lacks write on amq.default")]


def documented(page: str, user: str) -> dict[str, str]:
    """The permissions of a user in the table of a page."""
    [row] = [line for line in (DOCS / page).read_text().splitlines() if line.startswith(f"| {user} |")]
    cells = [cell.strip(" `").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[2:-1]]
    return dict(zip(("configure", "write", "read"), cells, strict=True))


async def subscribed_with_poison(url: str, publisher_url: str) -> None:
    """Fail at one reply in a queue of one's own, so that it is moved."""
    with suppress(ZeroDivisionError):
        async with (
            subscribe(url, queue="crm.replies", routing_keys=["#"], on_poison=PoisonQueue("crm.poison", 1)) as replies,
            TaskActivityLogClient(publisher_url) as publisher,
        ):
            await publisher.send_many([TaskActivityLog(id=uuid4())])
            async for _ in replies:
                raise ZeroDivisionError
    async with await aio_pika.connect(publisher_url) as connection:
        channel = await connection.channel()
        assert await (await channel.get_queue("crm.poison")).get(fail=False)


async def run_resend(run: Callable[..., Awaitable[Said]], user: User, amqp_url: str) -> None:
    """To the exchange, and to one queue."""
    async with subscribe(amqp_url, queue="crm.only", routing_keys=["nothing"]):
        user.may(**documented("subscribing.md", "`resend`"))
        await run(0, "resend", "--all", "--yes")
        user.may(**documented("subscribing.md", "`resend --queue`"))
        await run(0, "resend", "--all", "--yes", "--queue", "crm.only")


async def test_the_permissions_of_the_commands_that_are_documented_are_enough(
    user: User, amqp_url: str, database_url: str
) -> None:
    """For whoever publishes, reads replies, and handles dead letters."""

    async def run(code: int, *arguments: str, stdin: bytes = b"") -> Said:
        said = await command(*arguments, stdin=stdin, AMQP_URL=user.url, DATABASE_URL=database_url)
        assert said.code == code, said
        return said

    good = json.dumps({"id": str(uuid4())}).encode()
    async with serving(amqp_url, database_url):
        user.may(**documented("publishing.md", "`publish` and the Python client with answers"))
        assert "inserted" in (await run(0, "publish", "-", stdin=good)).err
        sending = "`publish --no-wait`, `send_many`, and any language without replies of its own"
        user.may(**documented("publishing.md", sending))
        await run(0, "publish", "-", "--no-wait", stdin=good)
        user.may(**documented("subscribing.md", "`subscribe()` and `replies --take` on the shared queue"))
        await run(0, "replies", "--take", "-n", "1")
        user.may(**documented("subscribing.md", "`replies`, and `subscribe(routing_keys=…)`"))
        await run(0, "replies", "--seconds", "0.5")
        await run(0, "replies", "--since", "1h", "--seconds", "0.5")
        await run_resend(run, user, amqp_url)
        durable = documented("subscribing.md", '`subscribe(queue="crm.replies", routing_keys=…)`')
        poison = documented("subscribing.md", '`on_poison=PoisonQueue("crm.poison")`, in addition')
        user.may(**{kind: "|".join(filter(None, (durable[kind], poison[kind]))) for kind in durable})
        await subscribed_with_poison(user.url, amqp_url)
        async with await aio_pika.connect(amqp_url) as connection:
            channel = await connection.channel()
            await channel.default_exchange.publish(
                aio_pika.Message(good, message_id="kept"), "task_activity_log.dead-letters"
            )
        user.may(**documented("dead-letters.md", "`list`, `show`, `export`, `discard`"))
        assert "no reason given" in (await run(0, "dead-letters", "list")).out
        user.may(**documented("dead-letters.md", "`find`"))
        await run(0, "find", "kept")
        user.may(**documented("dead-letters.md", "`replay`"))
        await run(0, "dead-letters", "replay", "--all", "--over-newer")


async def test_a_worker_that_only_checks_needs_some_permission_on_what_it_asks_about(
    rabbitmq: RabbitMQ, user: User, amqp_url: str, database_url: str
) -> None:
    """Since RabbitMQ 4.3.1. Which one does not matter. `check` and the worker name what is missing."""
    async with serving(amqp_url, database_url):
        pass
    user.may(write=r"^(task_activity_log\.replies|amq\.default)$", read=r"^task_activity_log(\.upsert)?$")
    found = worst(await look(user.url, database_url, rabbitmq, WORKER_TOPOLOGY="check"))
    queue = "queue task_activity_log.dead-letters"
    if number(rabbitmq.version) < (4, 3):
        assert found == []
        return
    assert found == [
        (queue, "the user has no permission on it"),
        (f"user {user.name}", "lacks any permission on task_activity_log.dead-letters"),
    ]
    async with serving(user.url, database_url, consuming=False, WORKER_TOPOLOGY="check") as service:
        reason = f"not consuming: no permission on {queue}: grant the user one of configure, write and read"
        await until(lambda: reason in service.status.not_ready())


async def declared_again(rabbitmq: RabbitMQ, amqp_url: str, database_url: str, arguments: dict[str, Any]) -> None:
    """The topology as a worker declares it, but for the arguments of the requests queue."""
    async with serving(amqp_url, database_url):
        pass
    vhost = urlsplit(amqp_url).path[1:]
    rabbitmq.api("DELETE", f"/queues/{vhost}/{UPSERT}")
    rabbitmq.api("PUT", f"/queues/{vhost}/{UPSERT}", {"durable": True, "arguments": arguments})
    binding = {"routing_key": "upsert"}
    rabbitmq.api("POST", f"/bindings/{vhost}/e/task_activity_log/q/{UPSERT}", binding)


@pytest.mark.parametrize("topology", ["declare", "check"])
async def test_a_stream_is_not_consumed(rabbitmq: RabbitMQ, amqp_url: str, database_url: str, topology: str) -> None:
    """A worker that starts would skip everything in it. It says why it does not consume; so does `check`."""
    await declared_again(rabbitmq, amqp_url, database_url, {"x-queue-type": "stream"})
    for management in (rabbitmq, None):
        found = await look(amqp_url, database_url, management, WORKER_TOPOLOGY=topology)
        assert worst(found) == [(f"queue {UPSERT}", "is a stream")]
    async with serving(amqp_url, database_url, consuming=False, WORKER_TOPOLOGY=topology) as service:
        reason = f"not consuming: queue {UPSERT} is a stream: name a quorum queue in WORKER_REQUESTS_QUEUE"
        await until(lambda: reason in service.status.not_ready())


@pytest.mark.parametrize("topology", ["declare", "check"])
async def test_a_stream_for_dead_letters_is_refused(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str, topology: str
) -> None:
    """RabbitMQ 4 fails to convert some messages for it, and their dead letters would stop everything."""
    name = "task_activity_log.dead-letters"
    async with serving(amqp_url, database_url):
        pass
    vhost = urlsplit(amqp_url).path[1:]
    rabbitmq.api("DELETE", f"/queues/{vhost}/{name}")
    rabbitmq.api("PUT", f"/queues/{vhost}/{name}", {"durable": True, "arguments": {"x-queue-type": "stream"}})
    found = await look(amqp_url, database_url, rabbitmq, WORKER_TOPOLOGY=topology)
    assert worst(found) == [(f"queue {name}", "is a stream")]
    async with serving(amqp_url, database_url, consuming=False, WORKER_TOPOLOGY=topology) as service:
        reason = f"not consuming: queue {name} is a stream: name a quorum queue in WORKER_DEAD_LETTERS_QUEUE"
        await until(lambda: reason in service.status.not_ready())


@pytest.mark.parametrize("topology", ["declare", "check"])
async def test_a_classic_queue_is_consumed_with_a_warning(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str, topology: str
) -> None:
    """It counts no deliveries, so that `check` calls it broken."""
    await declared_again(rabbitmq, amqp_url, database_url, {"x-queue-type": "classic"})
    for management in (rabbitmq, None):
        found = await look(amqp_url, database_url, management, WORKER_TOPOLOGY=topology)
        assert worst(found) == [(f"queue {UPSERT}", "is a classic queue")]
    with structlog.testing.capture_logs() as events:
        async with serving(amqp_url, database_url, WORKER_TOPOLOGY=topology):
            assert await exchanged(amqp_url) == ["inserted", "rejected"]
    [warning] = [event for event in events if event["event"] == "topology_differs"]
    assert warning["what"] == f"queue {UPSERT}"


async def test_a_queue_with_a_single_active_consumer_needs_the_setting(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    """With the setting a worker keeps the order whenever it hands over."""
    async with serving(amqp_url, database_url, WORKER_SINGLE_ACTIVE_CONSUMER="true"):
        pass
    found = ("order per record", "the queue has a single active consumer, but WORKER_SINGLE_ACTIVE_CONSUMER is not set")
    assert found in worst(await look(amqp_url, database_url, rabbitmq), "warning")
    assert found not in worst(
        await look(amqp_url, database_url, rabbitmq, WORKER_SINGLE_ACTIVE_CONSUMER="true"), "warning"
    )


async def test_waiting_requests_of_several_priorities_are_a_warning(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    """Since RabbitMQ 4.0 those of a higher priority come first. Without a priority they are like those with priority 4."""
    async with serving(amqp_url, database_url):
        pass
    async with await aiormq.connect(amqp_url) as connection:
        channel = await connection.channel()
        for priority in (None, 4, None, 9):
            properties = aiormq.spec.Basic.Properties(priority=priority)
            await channel.basic_publish(b"x", routing_key=UPSERT, properties=properties)
    await shown(rabbitmq, amqp_url, 4)
    found = worst(await look(amqp_url, database_url, rabbitmq), "warning")
    expected = ("order per record", "requests of 2 priorities are waiting")
    assert (expected in found) is (number(rabbitmq.version) >= (4, 0))


async def shown(rabbitmq: RabbitMQ, amqp_url: str, messages: int) -> None:
    """Wait until the management API counts this many waiting requests: it is up to five seconds late."""
    path = f"/queues/{urlsplit(amqp_url).path[1:]}/{UPSERT}"
    while (await asyncio.to_thread(rabbitmq.api, "GET", path)).get("messages") != messages:
        await asyncio.sleep(0.2)


async def test_a_monitoring_user_sees_everything_but_permissions(
    rabbitmq: RabbitMQ, user: User, amqp_url: str, database_url: str
) -> None:
    """Limits need no administrator; permissions do."""
    rabbitmq.api("PUT", f"/users/{user.name}", {"password": "secret", "tags": "monitoring"})
    user.may(read=".*")
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, MANAGEMENT_URL=login(rabbitmq.management_url, user.name, "secret"))
    assert "delivery limit 20" in [one.found for one in found]
    shown = urlsplit(amqp_url).username
    assert (f"user {shown}", "its permissions are not shown") in worst(found, "unknown")
    assert not worst(found)


async def exchanged(amqp_url: str) -> list[str]:
    """The outcomes in the replies to a valid message with `reply_to` and an invalid one without."""
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
    ("host", "found", "advice"),
    [
        ("127.0.0.1:1", "127.0.0.1:1/: ", "check that it is running"),
        (None, ": the broker refuses the user name or password", "correct AMQP_URL"),  # it has answered, so it runs
    ],
)
async def test_a_broker_that_refuses_the_connection_is_one_line(
    amqp_url: str, database_url: str, host: str | None, found: str, advice: str
) -> None:
    """The database is checked nevertheless."""
    url = f"amqp://nobody:wrong-password@{host}/" if host else login(amqp_url, "nobody", "wrong-password")
    [broken] = [one for one in await look(url, database_url) if one.verdict == "broken"]
    assert broken.what == "broker"
    assert found in broken.found
    assert broken.advice.startswith(advice)
    assert "wrong-password" not in broken.found


async def test_without_an_answer_of_the_management_api_limits_are_unknown(amqp_url: str, database_url: str) -> None:
    """Nothing is called broken for that."""
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, MANAGEMENT_URL="http://a:b@127.0.0.1:1")
    assert worst(found) == []
    assert "management" in [what for what, _ in worst(found, "unknown")]


async def test_the_management_api_is_asked_at_each_host_in_turn(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    """The first node is away."""
    parts = urlsplit(rabbitmq.management_url)
    login_of, _, place = parts.netloc.rpartition("@")
    several = urlunsplit(parts._replace(netloc=f"{login_of}@127.0.0.1:1,{place}"))
    async with serving(amqp_url, database_url):
        found = await look(amqp_url, database_url, MANAGEMENT_URL=several)
    assert worst(found) == []
    assert "management" not in [what for what, _ in worst(found, "unknown")]


async def test_a_role_that_lacks_privileges_is_broken_until_they_are_granted(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """With the privileges of grants.sql it is fine, without the warning about a superuser."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        url = login(database_url, role, "secret")
        looked = await look(amqp_url, url)
        found = worst(looked)
        assert [what for what, _ in found] == ["schema", f"role {role}"]
        [advice] = {one.advice for one in looked if one.verdict == "broken"}
        assert re.search(rf"psql -v role={role} -f \S+grants\.sql$", advice)
        assert "INSERT on task_activity_log" in found[1][1]
        await database.execute(grants(role))
        found_then = await look(amqp_url, url)
        assert worst(found_then, "broken", "warning") == []
        assert ("fine", f"role {role}") in [(one.verdict, one.what) for one in found_then]
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_what_the_console_does_not_need_is_no_fault(
    rabbitmq: RabbitMQ, user: User, amqp_url: str, database_url: str, database: Connection
) -> None:
    """Its user and its role may do less than the workers': nobody is told to grant them more."""
    role = f"console_{secrets.token_hex(4)}"
    await database.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret' CONNECTION LIMIT 4; GRANT SELECT ON task_activity_log TO {role}"
    )
    user.may(**documented("console.md", "looking and discarding"))
    urls = {"AMQP_URL": user.url, "DATABASE_URL": login(database_url, role, "secret")}
    settings = load({**urls, "MANAGEMENT_URL": rabbitmq.management_url, "HTTP_PORT": "0", "WORKER_JOURNAL": "true"})
    try:
        async with serving(amqp_url, database_url):
            found = await findings(settings, patient=False, as_worker=False)
        assert not worst(found, "broken", "warning")
        unknown = worst(found, "unknown")
        assert (f"user {user.name}", "has fewer permissions than a worker needs") in unknown
        assert (f"role {role}", "has fewer privileges than a worker needs") in unknown
        assert ("schema", "its revision is not shown to this role") in unknown
        assert not [one for one in found if "grants.sql" in one.advice]
        assert {what for what, _ in worst(await findings(settings, patient=False))} >= {
            f"user {user.name}",
            f"role {role}",
        }
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_the_console_without_a_database_is_told_what_the_broker_shows(amqp_url: str) -> None:
    """DATABASE_URL is optional there."""
    settings = load({"AMQP_URL": amqp_url, "HTTP_PORT": "0"}, needed=("amqp_url",))
    found = await findings(settings, patient=False, as_worker=False)
    assert ("database", "is not looked at") in worst(found, "unknown")
    assert "broker" in [what for what, _ in worst(found, "fine")]


async def refusal(database_url: str) -> str:
    """Why a worker waits at its start."""
    store = Store(database_url)
    try:
        with pytest.raises(Unavailable, match=r"^not permitted \(42501\): ") as caught:
            await store.probe()
    finally:
        await store.close()
    return caught.value.reason


async def test_a_worker_names_what_it_may_not_do(database_url: str, database: Connection) -> None:
    """A right on a table, or whatever function of its statements was revoked. The text of a trigger is not shown."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; {grants(role)}")
    url = login(database_url, role, "secret")
    try:
        await database.execute(f"REVOKE INSERT ON task_activity_log, task_activity_log_inbox FROM {role}")
        assert "lacks INSERT on task_activity_log, lacks INSERT on task_activity_log_inbox, " in await refusal(url)
        await database.execute(f"GRANT INSERT ON task_activity_log, task_activity_log_inbox TO {role}")
        await database.execute("REVOKE EXECUTE ON FUNCTION set_config FROM PUBLIC")
        assert ": permission denied for function set_config, database " in await refusal(url)
    finally:
        await database.execute(
            f"GRANT EXECUTE ON FUNCTION set_config TO PUBLIC; DROP OWNED BY {role}; DROP ROLE {role}"
        )


async def test_a_function_that_was_revoked_is_named_with_the_grant(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """A hardened database lets nobody execute what proves that a commit is safe. The advice is enough."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; {grants(role)}")
    functions = await database.fetch(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'pg_logical_emit_message'"
    )
    names = ", ".join(function for (function,) in functions)
    await database.execute(f"REVOKE EXECUTE ON FUNCTION {names} FROM PUBLIC")
    try:
        url = login(database_url, role, "secret")
        found = [one for one in await look(amqp_url, url) if one.verdict == "broken"]
        assert [one.what for one in found] == [f"role {role}"]
        assert found[0].found.startswith("lacks EXECUTE on pg_logical_emit_message(boolean,text,text")
        assert f": {found[0].found}, " in await refusal(url)
        await database.execute(found[0].advice.removeprefix("run as a superuser: "))
        assert worst(await look(amqp_url, url), "broken", "warning") == []
    finally:
        await database.execute(f"GRANT EXECUTE ON FUNCTION {names} TO PUBLIC; DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_schema_without_the_journal_is_a_warning(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """The worker works without it. With WORKER_JOURNAL it says that the journal is not kept, and a missing privilege by name."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; {grants(role)}")
    url = login(database_url, role, "secret")
    try:
        found = await look(amqp_url, url, WORKER_JOURNAL="true")
        assert ("journal", "can be written: workers with WORKER_JOURNAL=true record how they answer") in worst(
            found, "fine"
        )
        await database.execute(f"REVOKE DELETE ON task_activity_log_journal FROM {role}")
        found = await look(amqp_url, url, WORKER_JOURNAL="true")
        assert worst(found, "warning") == [("journal", "is not kept: lacks DELETE on task_activity_log_journal")]
        await database.execute("ALTER TABLE task_activity_log_journal RENAME TO kept")
        found = await look(amqp_url, url, WORKER_JOURNAL="true")
        [advice] = [one.advice for one in found if one.what == "journal"]
        assert "migrate --sql --from 0001" in advice
        await database.execute("ALTER TABLE kept RENAME TO task_activity_log_journal")
        await database.execute(OLDER)
        older = ("schema", f"revision 0001, and this release has {migrations.head()}")
        assert worst(await look(amqp_url, url), "broken", "warning") == [older]
        found = await look(amqp_url, url, WORKER_JOURNAL="true")
        missing = ("journal", "is not kept: there is no table task_activity_log_journal")
        assert worst(found, "broken", "warning") == [older, missing]
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        ("ALTER ROLE {role} CONNECTION LIMIT 2", 2),
        ('ALTER DATABASE "{database}" CONNECTION LIMIT 4', 4),
        ("ALTER ROLE {role} CONNECTION LIMIT 5", None),
    ],
)
async def test_too_few_connections_are_a_warning(
    amqp_url: str, database_url: str, database: Connection, limit: str, count: int | None
) -> None:
    """Of the role or of the database: with two of them, a request that the database refuses would wait for a third one."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; {grants(role)}")
    await database.execute(limit.format(role=role, database=urlsplit(database_url).path[1:]))
    try:
        found = worst(await look(amqp_url, login(database_url, role, "secret")), "warning")
        too_few = ("database limits", f"the role may have {count} connections, and a worker needs up to 5")
        assert found == ([] if count is None else [too_few])
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_changes_to_the_schema_are_found(amqp_url: str, database_url: str, database: Connection) -> None:
    """A disabled trigger, and the schema of another release."""
    await database.execute("ALTER TABLE task_activity_log DISABLE TRIGGER task_activity_log_modified")
    assert worst(await look(amqp_url, database_url)) == [("table", "trigger task_activity_log_modified is disabled")]
    await database.execute("ALTER TABLE task_activity_log ENABLE TRIGGER task_activity_log_modified")
    await database.execute("UPDATE task_activity_log_alembic_version SET version_num = 'ffff'")
    found = await look(amqp_url, database_url)
    assert worst(found) == []
    assert ("schema", "revision ffff: made by a newer release") in worst(found, "warning")


@pytest.mark.parametrize(
    ("statement", "has"),
    [
        ("DELETE FROM task_activity_log_alembic_version", "no revision"),
        ("INSERT INTO task_activity_log_alembic_version VALUES ('0000')", f"0000, {migrations.head()}"),
        (
            "ALTER TABLE task_activity_log_alembic_version DROP CONSTRAINT task_activity_log_alembic_version_pkc,"
            " ALTER version_num DROP NOT NULL; UPDATE task_activity_log_alembic_version SET version_num = NULL",
            "no revision",
        ),
    ],
)
async def test_a_table_of_the_revision_without_one_row_is_named(
    amqp_url: str, database_url: str, database: Connection, statement: str, has: str
) -> None:
    await database.execute(statement)
    found = ("schema", f"table task_activity_log_alembic_version has {has}, and should have one row")
    assert found in worst(await look(amqp_url, database_url), "warning")


async def test_a_table_of_the_revision_with_other_columns_is_named(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """No privilege would help, so none is advised."""
    await database.execute("ALTER TABLE task_activity_log_alembic_version RENAME version_num TO other")
    found = [one for one in await look(amqp_url, database_url) if one.what == "schema"]
    assert [one.verdict for one in found] == ["warning"]
    assert found[0].found.startswith("task_activity_log_alembic_version cannot be read: schema does not fit (42703)")
    assert found[0].advice.startswith("restore table task_activity_log_alembic_version")


RAISES = """
    CREATE FUNCTION raises() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
    CREATE TRIGGER raises BEFORE {event} ON {table} EXECUTE FUNCTION raises()
"""


@pytest.mark.parametrize(
    ("event", "what", "why"),
    [
        ("INSERT", "table", "the query is refused (P0001)"),
        ("DELETE", "inbox", "keys cannot be inserted into task_activity_log_inbox and deleted again: refused (P0001)"),
    ],
)
async def test_a_trigger_that_keeps_trials_from_being_marked_is_broken(
    amqp_url: str, database_url: str, database: Connection, event: str, what: str, why: str
) -> None:
    """A trigger on the statement, which also fires if no row is deleted. What refuses every row is named once."""
    await database.execute(RAISES.format(event=event, table="task_activity_log_inbox"))
    [(broken, found)] = worst(await look(amqp_url, database_url))
    assert broken == what
    assert found.startswith(why)


async def test_a_trigger_that_keeps_marks_is_broken(amqp_url: str, database_url: str, database: Connection) -> None:
    """Without an error. A worker would wait until the marks can be removed."""
    await database.execute("""
        CREATE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER keeps BEFORE DELETE ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION keeps();
    """)
    why = "keys cannot be inserted into task_activity_log_inbox and deleted again: a trigger or a policy keeps them"
    assert worst(await look(amqp_url, database_url)) == [("inbox", why)]


async def test_an_inbox_that_cannot_be_trimmed_is_a_warning(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """A rule for deletes: rows are stored all the same, marks are removed, and the table grows."""
    await database.execute("""
        CREATE TABLE gone (request_key uuid);
        CREATE RULE r AS ON DELETE TO task_activity_log_inbox DO ALSO INSERT INTO gone VALUES (OLD.request_key);
    """)
    [found] = [one for one in await look(amqp_url, database_url) if one.what == "inbox"]
    assert found.verdict == "warning"
    assert found.found.startswith(
        "old keys cannot be deleted from task_activity_log_inbox: schema does not fit (0A000): DO ALSO rules are not"
        " supported for data-modifying statements in WITH"
    )


async def test_what_is_not_shown_of_the_catalog_is_not_said_to_be_broken(
    amqp_url: str, database_url: str, database: Connection
) -> None:
    """Hardened databases hide the names of roles. Workers do not need them."""
    role = f"worker_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; {grants(role)}")
    await database.execute("REVOKE SELECT ON pg_catalog.pg_roles FROM PUBLIC")
    try:
        [found] = [one for one in await look(amqp_url, login(database_url, role, "secret")) if one.what == "database"]
        assert found.verdict == "unknown"
        assert found.found.startswith("is not looked at: not permitted (42501): permission denied for view pg_roles")
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        (RAISES.format(event="INSERT", table="task_activity_log_journal"), "refused (P0001)"),
        (RAISES.format(event="DELETE", table="task_activity_log_journal"), "refused (P0001)"),
        (
            "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
            " CREATE TRIGGER skip BEFORE INSERT ON task_activity_log_journal FOR EACH ROW EXECUTE FUNCTION skip()",
            "refused: a trigger skips every row, or a policy hides it",
        ),
        (
            "CREATE SCHEMA other; ALTER TABLE task_activity_log_journal SET SCHEMA other",
            "table task_activity_log_journal is in the schema other",
        ),
        ("ALTER TABLE task_activity_log_journal RENAME publisher TO other", "schema does not fit (42703)"),
        ("ALTER TABLE task_activity_log_journal ADD tenant text NOT NULL", "a column that is not ours is NOT NULL"),
        (
            "INSERT INTO task_activity_log_journal (answered_at, reply_id, outcome) VALUES (now(), gen_random_uuid(), '');"
            " ALTER TABLE task_activity_log_journal ALTER number RESTART",
            "a value that no message sets is not unique: constraint task_activity_log_journal_pkey",
        ),
    ],
)
async def test_a_journal_that_cannot_be_written_is_a_warning(
    amqp_url: str, database_url: str, database: Connection, statement: str, why: str
) -> None:
    await database.execute(statement)
    found = dict(worst(await look(amqp_url, database_url, WORKER_JOURNAL="true"), "warning"))
    assert found["journal"].startswith(f"is not kept: {why}")


def test_the_exit_code_is_that_of_the_worst_finding(
    amqp_url: str, database_url: str, empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 if something is broken, or with `strict` for a warning; otherwise 0."""
    urls = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url, "HTTP_PORT": "0"}
    assert check(load(urls), strict=False) == 0
    assert check(load(urls), strict=True) == 1  # a superuser
    assert check(load({**urls, "DATABASE_URL": empty_database_url}), strict=False) == 1
    assert "not migrated yet" in capsys.readouterr().out


async def test_a_lost_table_of_the_revision_is_named_and_can_be_restored(amqp_url: str, database_url: str) -> None:
    """`migrate` fails then, and says what is missing. With the advice of `check` it works again."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("DROP TABLE task_activity_log_alembic_version")
        said = await command("migrate", DATABASE_URL=database_url)
        assert (said.code, said.err.count("\n")) == (1, 1)
        assert "42P07" in said.err
        assert "task_activity_log_alembic_version, which says how far the schema was migrated, is missing" in said.err
        [finding] = [one for one in await look(amqp_url, database_url) if one.what == "schema"]
        assert (finding.verdict, "is missing, and the others are there" in finding.found) == ("warning", True)
        await connection.execute(finding.advice.partition(": ")[2])
    finally:
        await connection.close()
    said = await command("migrate", DATABASE_URL=database_url)
    assert said.out == f"Nothing to do: the schema is at revision {migrations.head()} already.\n"


@pytest.mark.parametrize("table", ["task_activity_log", "task_activity_log_inbox"])
async def test_migrate_names_a_table_that_was_dropped(database_url: str, table: str) -> None:
    """It does not say that there is nothing to do."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"DROP TABLE {table}")
    await connection.close()
    said = await command("migrate", DATABASE_URL=database_url)
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert f"not migrated: the schema is at revision {migrations.head()}, but there is no table {table} in" in said.err


@pytest.mark.parametrize("condition", ["", " WHERE subject <> 'hidden'"])
async def test_a_view_that_hides_rows_is_named(amqp_url: str, database_url: str, condition: str) -> None:
    """What it hides is answered as if it were not there."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("ALTER TABLE task_activity_log RENAME TO base")
        await connection.execute(f"CREATE VIEW task_activity_log AS SELECT * FROM base{condition}")  # noqa: S608 - ours
    finally:
        await connection.close()
    found = worst(await look(amqp_url, database_url), "warning")
    assert (("table", "task_activity_log is a view that may hide rows") in found) is bool(condition)
