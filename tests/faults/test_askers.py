"""Replies that cannot be placed harm nobody: a whole worker on a real broker, and an address that takes no reply.

In each test innocent requests, with and without a `reply_to`, are answered while the bad ones wait, and hardly delayed,
before and after a restart of the worker. The bad one's record is stored, and its request leaves the queue.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractQueue
from pamqp.common import Arguments

from sandbox import RabbitMQ
from task_activity_log.rabbitmq.topology import declare
from task_activity_log.service import Service
from tests.acceptance.test_process import fetch
from tests.askers import (
    DIRECT_REPLY_TO,
    INNOCENTS,
    Scene,
    direct_address,
    ends_connections,
    full_queue,
    problem,
    quorum_queue,
    scene,
    survive,
)
from tests.broker_control import elect, largest_message, silenced
from tests.faults.conversation import TOPOLOGY
from tests.faults.test_hostile_bodies import lost_connections

NEVER = "600"
"""Seconds until a reply is given up, where the test shows that nobody waits for it."""


@pytest.fixture
async def here(amqp_url: str, database_url: str) -> AsyncIterator[Scene]:
    """A scene on the broker that all tests share."""
    async with scene(amqp_url, database_url) as one:
        yield one


@pytest.fixture
async def apart(own_amqp_url: str, database_url: str) -> AsyncIterator[Scene]:
    """A scene on a broker whose insides the test may change."""
    async with scene(own_amqp_url, database_url) as one:
        yield one


# an address that ends the connection of whoever publishes to it


@pytest.mark.parametrize(
    "forms",
    [
        ("x.y", "AAAA.AAAA", "garbage!.key", "a b.c d"),
        (
            "é.ü",
            "A" * 200 + ".A",
            direct_address().removeprefix(DIRECT_REPLY_TO)[8:],  # its beginning is cut off
            direct_address().removeprefix(DIRECT_REPLY_TO).replace("=.", "==."),
        ),
        ("g2EB.key", "", ".", ".."),  # the first is an Erlang term that is not a pid
        ("garbage", ".y", "x."),
    ],
    ids=["keys", "pids", "terms", "halves"],
)
async def test_a_forged_direct_reply_to_is_given_up(here: Scene, forms: tuple[str, ...]) -> None:
    """No asker has such an address. Most of them end the connection with INTERNAL_ERROR on RabbitMQ 3.10 and 4.0."""
    addresses = [DIRECT_REPLY_TO + form for form in forms]
    await survive(here, *addresses)
    for address in addresses:
        assert await here.given_up(address) == {"returned"}


async def test_a_direct_reply_to_of_another_cluster_is_given_up(here: Scene) -> None:
    """Well formed, and of a node that is not here, as a shovel brings it: 3.10 ends the connection, 4.x drops the reply."""
    address = direct_address()
    if await ends_connections(here.amqp_url, address):
        await survive(here, address)
    else:
        await here.ask(address)
        async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER) as service:
            await here.innocents_are_answered()
            await here.settled(service)


async def test_many_addresses_that_end_the_connection_harm_nobody(here: Scene) -> None:
    """Ten different ones, so that knowing one does not help with the next."""
    for number in range(10):
        await here.ask(direct_address(number=number))
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER):
        await here.innocents_are_answered()
        await here.innocents_are_answered()
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS="1") as service:
        await here.innocents_are_answered()
        await here.settled(service)


async def test_addresses_that_end_the_connection_do_not_take_the_prefetch(here: Scene) -> None:
    """There are more of them than messages may be in hand, all different, and each takes a connection to try.

    After two seconds the first of them are given up, and then others are given up sooner.
    """
    await asyncio.gather(*(here.ask(direct_address(number=number)) for number in range(1000)))
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER, WORKER_BATCH_MAX="50"):
        await here.innocents_are_answered(most=20)
        await here.innocents_are_answered()


# a queue that never answers whoever publishes to it


async def test_a_silent_reply_to_is_given_up(apart: Scene, own_rabbitmq: RabbitMQ) -> None:
    """A quorum queue that accepts and never confirms, and holds everything else on the channel for 65 s."""
    queue = await quorum_queue(apart.talk)
    async with silenced(own_rabbitmq, apart.amqp_url, queue.name):
        await apart.ask(queue.name, 100)
        await survive(apart, queue.name)


async def test_sixty_silent_addresses_at_once_harm_nobody(apart: Scene, own_rabbitmq: RabbitMQ) -> None:
    """Each batch that has some that are new makes everybody wait, so there must not be many such batches."""
    names = [(await quorum_queue(apart.talk)).name for _ in range(60)]
    async with silenced(own_rabbitmq, apart.amqp_url, *names):
        for name in names:
            await apart.ask(name)
        async with apart.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER, WORKER_BATCH_MAX="16"):
            await apart.innocents_are_answered()
            await apart.innocents_are_answered()


async def test_a_silent_reply_to_with_1500_requests_harms_nobody(apart: Scene, own_rabbitmq: RabbitMQ) -> None:
    """With some 500 unconfirmed messages to such a queue the broker reads nothing more from the connection."""
    queue = await quorum_queue(apart.talk)
    async with silenced(own_rabbitmq, apart.amqp_url, queue.name):
        await apart.ask(queue.name, 1500)
        async with apart.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER):
            await until_stored(apart, 1500)
            await apart.innocents_are_answered()
        async with apart.worker(WORKER_REPLY_GIVE_UP_SECONDS="1") as service:
            await apart.given_up(queue.name)
            await apart.settled(service)
            await apart.innocents_are_answered()


async def test_a_reply_to_that_is_silent_for_a_while_gets_its_replies(apart: Scene, own_rabbitmq: RabbitMQ) -> None:
    """It took a reply before. Afterwards it has each reply in order, and at most one repeat of it."""
    queue = await quorum_queue(apart.talk)
    async with apart.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER) as service:
        await apart.ask(queue.name)
        await apart.settled(service)
        async with silenced(own_rabbitmq, apart.amqp_url, queue.name):
            await apart.ask(queue.name, 2)
            await until_stored(apart, 3)
            for _ in range(3):
                await apart.innocents_are_answered()
        await apart.settled(service)
    got = Counter(await contents(queue))  # in the order of their first copies
    assert list(got) == ["0", "1", "2"]
    assert max(got.values()) <= 2
    assert apart.events_of("reply_given_up") == []


async def test_a_queue_whose_broker_was_killed_as_it_was_declared_harms_nobody(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str
) -> None:
    """It has no leader on RabbitMQ 3.10 and 4.0, and a message to it holds the channel. After an election it is answered."""
    async with await aio_pika.connect(own_amqp_url) as connection:
        await declare(connection, TOPOLOGY)
    async with await aio_pika.connect(own_amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("young", durable=True, arguments={"x-queue-type": "quorum"})
    await asyncio.to_thread(own_rabbitmq.kill)
    await asyncio.to_thread(own_rabbitmq.start)
    async with scene(own_amqp_url, database_url) as one:
        await one.ask("young", 3)
        async with one.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER):
            await one.innocents_are_answered()
            await one.innocents_are_answered()
        async with one.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER) as service:
            await one.innocents_are_answered()
            await elect(own_rabbitmq, own_amqp_url, "young")
            await one.settled(service)
        young = await one.talk.channel.get_queue("young")
        assert set(await contents(young)) == {"0", "1", "2"}


# a queue that refuses


async def test_a_full_reply_to_is_given_up(here: Scene) -> None:
    """Its queue is full and refuses; nobody reads it."""
    queue = await full_queue(here.talk)
    await survive(here, queue.name)
    assert await here.given_up(queue.name) == {"refused"}


async def test_a_reply_to_that_was_full_gets_all_its_replies_in_order(here: Scene) -> None:
    """Its reader comes back before they are given up. Until then /status names the address."""
    queue = await full_queue(here.talk)
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER) as service:
        await here.ask(queue.name, 5)
        await until_stored(here, 5)
        await here.innocents_are_answered()
        async with asyncio.timeout(10):
            while queue.name not in await shown(service.http_port):
                await asyncio.sleep(0.1)
        got: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(got.put, no_ack=True)
        await here.settled(service)
        assert [text(await got.get()) for _ in range(6)] == ["in the way", "0", "1", "2", "3", "4"]
        assert got.empty()
        assert here.events_of("reply_given_up") == []
        async with asyncio.timeout(10):
            while queue.name in await shown(service.http_port):
                await asyncio.sleep(0.1)


async def test_many_full_addresses_harm_nobody(here: Scene) -> None:
    """A hundred queues that take nothing at all, each with a request."""
    names = [f"nothing.{uuid4()}" for _ in range(100)]
    arguments: Arguments = {"x-queue-type": "classic", "x-max-length": 0, "x-overflow": "reject-publish"}
    for name in names:
        await here.talk.channel.declare_queue(name, exclusive=True, arguments=arguments)
    await survive(here, *names)


async def test_a_reply_that_also_goes_to_the_exchange_is_not_repeated_there(here: Scene) -> None:
    """WORKER_REPLIES=both, and the address refuses: what the exchange has confirmed is not published again."""
    queue = await full_queue(here.talk)
    async with here.worker(WORKER_REPLIES="both", WORKER_REPLY_GIVE_UP_SECONDS="2") as service:
        await here.ask(queue.name, 3)
        await here.innocents_are_answered()
        await here.given_up(queue.name)
        await here.settled(service)
        await here.innocents_are_answered()
    here.read_on()
    assert [text(message) for message in here.read if text(message) in {"0", "1", "2"}] == ["0", "1", "2"]
    assert max(here.copies.values()) == 1


async def test_a_slow_reply_to_does_not_take_the_prefetch(here: Scene) -> None:
    """2,600 requests for a full queue that is read slowly: more than may be in hand. They do not starve others."""
    queue = await full_queue(here.talk)
    await here.ask(queue.name, 2600)
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS=NEVER):
        await until_stored(here, 2600)
        await here.innocents_are_answered()
        await queue.get(no_ack=True)
        await here.innocents_are_answered()
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS="2") as service:
        await here.innocents_are_answered()
        async with read_slowly(queue):
            await here.settled(service)
        await here.innocents_are_answered()
    assert here.events_of("reply_given_up")


async def test_a_reply_to_that_is_read_slowly_does_not_keep_its_replies_alive(here: Scene) -> None:
    """Each is given up in its own time, although the queue takes another one now and then."""
    queue = await full_queue(here.talk)
    await here.ask(queue.name, 60)
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS="2") as service, read_slowly(queue):
        await here.innocents_are_answered()
        await here.settled(service)
        assert given_up(service) > 30


async def test_replies_that_are_refused_and_come_back_as_requests_are_not_answered(here: Scene) -> None:
    """The asker's queue dead-letters what it refuses into the requests: five must not become thousands."""
    queue = await here.talk.channel.declare_queue(
        "loop",
        durable=True,
        arguments={
            "x-queue-type": "classic",
            "x-max-length": 0,
            "x-overflow": "reject-publish-dlx",
            "x-dead-letter-exchange": TOPOLOGY.requests_exchange,
            "x-dead-letter-routing-key": "upsert",
        },
    )
    await here.ask(queue.name, 3)
    await survive(here, queue.name)
    assert len(here.read) == 0
    kept = await here.talk.kept()
    assert {message.headers["x-error-code"] for message in kept} == {"reply_as_request"}
    assert len(kept) < 100


async def test_a_reply_sent_as_a_request_is_dead_lettered_and_not_answered(here: Scene) -> None:
    """Whoever sent it, with an address and without: an answer would keep a loop going. Its record is not stored."""
    queue = await here.talk.channel.declare_queue(exclusive=True)
    exchange = await here.talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    identifiers = []
    async with here.worker() as service:
        for kind in ("task_activity_log.stored", "task_activity_log.rejected"):
            for address in (queue.name, None):
                identifiers.append(uuid4())
                body = json.dumps({"id": str(identifiers[-1])}).encode()
                message = aio_pika.Message(body, message_id=str(uuid4()), type=kind, reply_to=address)
                await exchange.publish(message, "upsert")
        await here.settled(service)
        await here.innocents_are_answered()
    assert [message.headers["x-error-code"] for message in await here.talk.kept()] == ["reply_as_request"] * 4
    assert await contents(queue) == []
    assert here.read == []
    assert await here.rows(*identifiers) == 0


# a reply or a dead letter that the broker does not take


@pytest.mark.parametrize("addressed", [True, False])
async def test_a_reply_that_is_too_large_becomes_a_problem(
    apart: Scene, own_rabbitmq: RabbitMQ, addressed: bool
) -> None:
    """Two merges make a record that no message of this broker can hold. It stays stored; the asker is told."""
    queue = await apart.talk.channel.declare_queue(exclusive=True)
    address = queue.name if addressed else None
    identifier = uuid4()
    async with largest_message(own_rabbitmq, 200_000):
        for round_ in range(2):
            async with apart.worker(WORKER_UPDATE_MODE="merge") as service:
                await apart.talk.send(identifier, reply_to=address, subject="s" * 120_000)
                sent = await apart.talk.send(identifier, reply_to=address, description="d" * 120_000)
                await apart.innocents_are_answered()
                await apart.settled(service)
                assert await apart.rows(identifier) == 1, round_
    answer = [message async for message in everything(queue)][-1] if addressed else await apart.answer_to(sent)
    assert (answer.correlation_id, answer.headers["x-error-code"]) == (sent, "reply_too_large")
    assert (problem(answer)["code"], problem(answer)["status"]) == ("reply_too_large", 507)
    assert await apart.talk.kept() == []
    assert apart.events_of("reply_given_up") == []


async def test_a_dead_letter_that_is_too_large_to_be_published_harms_nobody(
    apart: Scene, own_rabbitmq: RabbitMQ
) -> None:
    """The broker's limit was lowered while the message waited. It ends as a dead letter all the same."""
    body = json.dumps({"id": "no uuid", "subject": "s" * 150_000}).encode()
    exchange = await apart.talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    await exchange.publish(aio_pika.Message(body, message_id="large"), "upsert")
    async with largest_message(own_rabbitmq, 100_000):
        async with apart.worker() as service:
            await apart.innocents_are_answered()
            await apart.settled(service)
        async with apart.worker() as service:
            await apart.innocents_are_answered()
    kept = await apart.talk.channel.get_queue(TOPOLOGY.dead_letters_queue)
    async with asyncio.timeout(10):
        while (message := await kept.get(no_ack=True, fail=False)) is None:
            await asyncio.sleep(0.05)
    assert message.body == body
    assert apart.events_of("settled_late") == []


# a queue of a subscriber's own, bound to the replies exchange


async def test_a_full_queue_bound_to_the_replies_exchange_stops_nobody(here: Scene) -> None:
    """It gets nothing more; every other queue gets each reply, and at most one repeat of it."""
    full = await full_queue(here.talk)
    await full.bind(TOPOLOGY.replies_exchange, "#")
    copies = await copies_of_a_healthy_subscriber(here)
    assert len(copies) == len(here.copies)
    assert max(copies.values()) <= 2


async def test_a_silent_queue_bound_to_the_replies_exchange_stops_nobody(apart: Scene, own_rabbitmq: RabbitMQ) -> None:
    """The broker then holds the whole channel for 65 s, other subscribers' copies included; requests go on."""
    silent = await quorum_queue(apart.talk)
    await silent.bind(TOPOLOGY.replies_exchange, "#")
    async with silenced(own_rabbitmq, apart.amqp_url, silent.name):
        copies = await copies_of_a_healthy_subscriber(apart)
        assert max(copies.values(), default=0) <= 2


async def test_nothing_is_answered_again_and_again_because_a_queue_stays_silent(
    apart: Scene, own_rabbitmq: RabbitMQ
) -> None:
    """Each reply is in a batch of its own, of which each could hold a channel. There are more than may be held."""
    silent = await quorum_queue(apart.talk)
    await silent.bind(TOPOLOGY.replies_exchange, "#")
    async with silenced(own_rabbitmq, apart.amqp_url, silent.name), apart.worker() as service:
        for _ in range(24):
            await apart.answer_to(await apart.talk.send())
        await apart.settled(service)
        assert lost_connections(service) == 0
    apart.read_on()
    assert len(apart.copies) == 24
    assert max(apart.copies.values()) <= 2
    assert apart.events_of("holding") == []


async def test_many_replies_at_once_do_not_wait_for_a_silent_queue(apart: Scene, own_rabbitmq: RabbitMQ) -> None:
    """One batch holds the connection, because the broker reads some hundreds of messages for a channel that waits."""
    silent = await quorum_queue(apart.talk)
    await silent.bind(TOPOLOGY.replies_exchange, "#")
    sent = {await apart.talk.send() for _ in range(800)}
    async with silenced(own_rabbitmq, apart.amqp_url, silent.name), apart.worker(WORKER_BATCH_MAX="800") as service:
        answered = {str((await apart.talk.answers.get()).correlation_id)}
        while answered != sent:
            answered.add(str((await apart.talk.answers.get()).correlation_id))
        await apart.innocents_are_answered()
        await apart.settled(service)
    assert apart.events_of("stood_down") == []


async def copies_of_a_healthy_subscriber(one: Scene) -> Counter[str]:
    """Have innocents answered by two workers one after the other, and count what another bound queue was sent."""
    healthy = await one.talk.channel.declare_queue(exclusive=True)
    await healthy.bind(TOPOLOGY.replies_exchange, "#")
    for _ in range(2):
        async with one.worker() as service:
            await one.innocents_are_answered()
            await one.innocents_are_answered()
            await one.settled(service)
    one.read_on()
    assert len(one.copies) == 4 * (INNOCENTS - INNOCENTS // 2)
    assert max(one.copies.values()) <= 2
    assert one.events_of("holding") == []
    return Counter([str(message.message_id) async for message in everything(healthy)])


@pytest.mark.parametrize("queue", [TOPOLOGY.replies_queue, TOPOLOGY.dead_letters_queue])
async def test_a_silent_queue_of_the_workers_own_is_held_by_name(
    apart: Scene, own_rabbitmq: RabbitMQ, queue: str
) -> None:
    """Nobody can be answered without it, so the worker holds; /readyz says which queue it is."""
    async with apart.worker(WORKER_CONFIRM_TIMEOUT_SECONDS="1") as service:
        await apart.innocents_are_answered()
        async with silenced(own_rabbitmq, apart.amqp_url, queue):
            await apart.talk.send(due_date="tomorrow")
            async with asyncio.timeout(20):
                while queue not in await shown(service.http_port, "/readyz"):
                    await asyncio.sleep(0.1)
        await apart.settled(service)
        await apart.innocents_are_answered()


# an address in the form of AMQP 1.0


AMQP_1_0 = ("/queues/{}", "/amq/queue/{}", "/queue/{}")


async def test_an_address_in_the_form_of_amqp_1_0_reaches_the_queue(here: Scene) -> None:
    """As a client of AMQP 1.0 names its queue; in /queues/ the name is percent-encoded."""
    names = [f"client/of:{uuid4()}#1" if form.startswith("/queues/") else f"client.{uuid4()}" for form in AMQP_1_0]
    queues = [await here.talk.channel.declare_queue(name, exclusive=True) for name in names]
    async with here.worker() as service:
        for form, name in zip(AMQP_1_0, names, strict=True):
            await here.ask(form.format(quote(name, safe="")))
        await here.innocents_are_answered()
        await here.settled(service)
    assert [await contents(queue) for queue in queues] == [["0"], ["1"], ["2"]]
    assert here.events_of("reply_given_up") == []


async def test_a_queue_of_the_workers_own_is_no_address_in_any_form(here: Scene) -> None:
    """A reply there would be a loop or a forged reply: it goes to the replies exchange."""
    async with here.worker() as service:
        for form in AMQP_1_0:
            for name in TOPOLOGY.own_queues:
                await here.ask(form.format(quote(name, safe="")))
        await here.settled(service)
        await here.innocents_are_answered()
    assert sorted(text(message) for message in here.read) == sorted(map(str, range(9)))
    assert await here.talk.kept() == []


# all of them


async def test_several_bad_askers_at_a_time_harm_nobody(apart: Scene, own_rabbitmq: RabbitMQ) -> None:
    """Forged, foreign, gone, full and silent, in one batch."""
    silent = await quorum_queue(apart.talk)
    full = await full_queue(apart.talk)
    async with silenced(own_rabbitmq, apart.amqp_url, silent.name):
        await apart.ask(direct_address())
        await survive(apart, DIRECT_REPLY_TO + "x.y", "gone", full.name, silent.name)


async def contents(queue: AbstractQueue) -> list[str]:
    """What is in a queue: the subjects of the records, taken out."""
    return [text(message) async for message in everything(queue)]


async def everything(queue: AbstractQueue) -> AsyncIterator[aio_pika.abc.AbstractIncomingMessage]:
    """All messages of a queue, taken out."""
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        yield message


def text(message: aio_pika.abc.AbstractIncomingMessage) -> str:
    """The subject of the record in a reply, or else the whole body."""
    with suppress(ValueError):
        return str(json.loads(message.body)["subject"])
    return message.body.decode()


@asynccontextmanager
async def read_slowly(queue: AbstractQueue) -> AsyncIterator[None]:
    """Take a message twice a second."""
    over = asyncio.Event()

    async def read() -> None:
        while not over.is_set():
            await queue.get(no_ack=True, fail=False)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await over.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        yield
        over.set()


async def until_stored(one: Scene, count: int) -> None:
    """Wait until this number of records of bad askers is stored."""
    async with asyncio.timeout(20):
        while await one.stored() < count:
            await asyncio.sleep(0.05)


def given_up(service: Service) -> float:
    """How many replies this worker has given up, for whatever reason."""
    metric = "task_activity_log_replies_given_up_total"
    families = service.metrics.registry.collect()
    return sum(one.value for family in families for one in family.samples if one.name == metric)


async def shown(port: int, page: str = "/status") -> str:
    """The text of a page of the worker."""
    return (await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}{page}"))[1]
