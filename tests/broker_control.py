"""What tests change inside a private RabbitMQ, in Erlang: silent queues, lost consumers, limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import unquote, urlsplit

from sandbox import RabbitMQ, SandboxError
from sandbox.cluster import Cluster


async def rabbitmqctl(broker: RabbitMQ | Cluster, *arguments: str) -> str:
    """Run `rabbitmqctl` on a private broker and return its output; it takes about a second.

    Raises:
        SandboxError: it failed, for example because the broker is not running.
    """
    return await asyncio.to_thread(broker.command, "rabbitmqctl", *arguments)


async def evaluate(broker: RabbitMQ | Cluster, expressions: str) -> None:
    """Evaluate expressions of Erlang inside a private broker.

    Raises:
        SandboxError: they failed, for example because the broker is not running.
    """
    if isinstance(broker, RabbitMQ):
        await asyncio.to_thread(broker.evaluate, expressions)
    else:
        await rabbitmqctl(broker, "eval", expressions)


@asynccontextmanager
async def silenced(broker: RabbitMQ | Cluster, amqp_url: str, *queues: str) -> AsyncIterator[None]:
    """Make quorum queues silent: the Raft process of each is suspended, as if a majority of its members did not answer.

    The first message that a channel publishes to such a queue holds everything behind it on that channel, and is
    nacked after 65 s. On a channel that has published to the queue before, messages are taken and never answered; more
    than 32 of them hold the channel, and some hundreds more the connection. The same on RabbitMQ 3.10, 4.0 and 4.3.
    """
    await evaluate(broker, _raft(amqp_url, "sys:suspend(Raft)", *queues))
    try:
        yield
    finally:
        await evaluate(broker, _raft(amqp_url, "sys:resume(Raft)", *queues))


async def on_raft(broker: RabbitMQ, amqp_url: str, queue: str, expression: str) -> None:
    """Evaluate an expression of Erlang in which `Raft` is the Raft process of a quorum queue."""
    await evaluate(broker, _raft(amqp_url, expression, queue))


@asynccontextmanager
async def consumer_timeout(broker: RabbitMQ, amqp_url: str, milliseconds: int) -> AsyncIterator[None]:
    """Set the consumer timeout, and let the broker look at it often, for queues and channels that are new from now on."""
    if int(broker.version.split(".")[0]) >= 4:
        policy = {"pattern": ".*", "definition": {"consumer-timeout": milliseconds}}
        path = f"/policies/{urlsplit(amqp_url).path[1:]}/consumer-timeout"
        await asyncio.to_thread(broker.api, "PUT", path, policy)  # it goes with the virtual host
    await _set(broker, consumer_timeout=milliseconds, channel_tick_interval=min(milliseconds, 500))
    try:
        yield
    finally:
        await _set(broker, consumer_timeout=1_800_000, channel_tick_interval=60_000)


async def _set(broker: RabbitMQ, **values: int) -> None:
    await evaluate(
        broker,
        ", ".join(f"application:set_env(rabbit, {name}, {value})" for name, value in values.items()) + ".",
    )


async def elect(broker: RabbitMQ, amqp_url: str, queue: str) -> None:
    """Start an election in a quorum queue that has no leader."""
    await evaluate(broker, _raft(amqp_url, "ra:trigger_election(Raft)", queue))


def _raft(amqp_url: str, expression: str, *queues: str) -> str:
    """An expression of Erlang about the Raft process of each of these queues."""
    vhost = unquote(urlsplit(amqp_url).path[1:])
    names = ", ".join(f'<<"{queue}">>' for queue in queues)
    return (
        f'[begin {{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, Name)),'
        f" Raft = amqqueue:get_pid(Queue), {expression} end || Name <- [{names}]]."
    )


async def limit_messages(broker: RabbitMQ, size: int | None) -> None:
    """Set `max_message_size` of a private broker, in bytes, for channels that are opened from now on, until it restarts.

    None sets the default.
    """
    if size is None:
        size = 134_217_728 if broker.version.startswith("3.") else 16_777_216
    # 3.10 reads the application's environment when a channel is opened, 4.x a persistent term at each publish
    write = (
        f"application:set_env(rabbit, max_message_size, {size}),"
        " case persistent_term:get(max_message_size, none) of"
        f" none -> ok; _ -> persistent_term:put(max_message_size, {size}) end."
    )
    await evaluate(broker, write)


@asynccontextmanager
async def largest_message(broker: RabbitMQ, size: int) -> AsyncIterator[None]:
    """Set `max_message_size`, and set the default at the end."""
    await limit_messages(broker, size)
    try:
        yield
    finally:
        await limit_messages(broker, None)


async def forget_consumers(broker: RabbitMQ, amqp_url: str, queue: str) -> None:
    """Let a quorum queue forget its consumers without telling them, as on the other side of a partition."""
    forget = (
        "[_ | _] = Consumers = rabbit_amqqueue:consumers(Queue),"
        " [ra:process_command(Raft, rabbit_fifo:make_checkout({element(2, Consumer), element(1, Consumer)}, cancel, #{}))"
        " || Consumer <- Consumers]"
    )
    async with asyncio.timeout(30):
        while True:
            with suppress(SandboxError):  # a node lists a consumer a moment after it has delivered to it
                return await evaluate(broker, _raft(amqp_url, forget, queue))
            await asyncio.sleep(0.1)
