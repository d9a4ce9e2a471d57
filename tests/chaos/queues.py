"""How many messages queues have, to the message and at one moment.

What RabbitMQ tells its clients will not do: the counts of the management API are up to ten seconds old, and a passive
declaration says nothing about deliveries that are not settled, and zero for a queue that has no leader.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from sandbox import SandboxError
from sandbox.containers import Container
from sandbox.processes import Processes
from sandbox.rabbitmq import RabbitMQ, find_binaries

_COUNT = """
    [begin
        {{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, Name)),
        Leader = amqqueue:get_pid(Queue),
        {{ok, Count, _}} = try ra:consistent_query(Leader, fun rabbit_fifo:query_messages_{which}/1)
            catch error:function_clause -> ra:consistent_query(Leader, {{rabbit_fifo, query_messages_{which}, []}}) end,
        Count
    end || Name <- [{names}]].
"""
"""The leader answers once a majority has confirmed that it still is. The second form is that of RabbitMQ 4.3."""


async def totals(broker: RabbitMQ, amqp_url: str, names: Sequence[str]) -> list[int]:
    """How many messages each quorum queue has, with deliveries that are not settled.

    Raises:
        SandboxError: the broker does not know: it is not running, or a queue has no leader.
    """
    return await _counts(broker, amqp_url, names, "total")


async def waiting(broker: RabbitMQ, amqp_url: str, name: str) -> int:
    """How many messages a quorum queue has that are in no consumer's hands. Raises as `totals` does."""
    [count] = await _counts(broker, amqp_url, [name], "ready")
    return count


async def _counts(broker: RabbitMQ, amqp_url: str, names: Sequence[str], which: str) -> list[int]:
    vhost = unquote(urlsplit(amqp_url).path[1:])
    expression = _COUNT.format(vhost=vhost, which=which, names=", ".join(f'<<"{name}">>' for name in names))
    answer = await asyncio.to_thread(_evaluate, broker, expression)
    return [int(number) for number in answer.strip().strip("[]").split(",")]


def _evaluate(broker: RabbitMQ, expression: str) -> str:
    """The value of an Erlang expression, as text. It takes about a second."""
    runner = broker._runner
    if isinstance(runner, Container):
        code, output = runner._container.exec_run(["rabbitmqctl", "eval", expression])
        if code != 0:
            raise SandboxError(output.decode())
        return str(output.decode())
    assert isinstance(runner, Processes)
    command = [f"{find_binaries()}/rabbitmqctl", "eval", expression]
    done = subprocess.run(  # noqa: S603 - our own command
        command, env=runner._environment, user=runner.user, cwd="/", capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SandboxError(done.stderr)
    return done.stdout
