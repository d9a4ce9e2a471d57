"""How many messages queues have, to the message and at one moment.

What RabbitMQ tells its clients will not do: the counts of the management API are up to ten seconds old, and a passive
declaration says nothing about deliveries that are not settled, and zero for a queue that has no leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from sandbox import RabbitMQ
from sandbox.cluster import Cluster

_COUNT = """
    list_to_tuple([begin
        {{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, Name)),
        Leader = amqqueue:get_pid(Queue),
        {{ok, Count, _}} = try ra:consistent_query(Leader, fun rabbit_fifo:query_messages_{which}/1)
            catch error:function_clause -> ra:consistent_query(Leader, {{rabbit_fifo, query_messages_{which}, []}}) end,
        Count
    end || Name <- [{names}]]).
"""
"""The leader answers once a majority has confirmed that it still is. The second form is that of RabbitMQ 4.3.

A tuple, because Erlang may write a list of small numbers as text.
"""


async def totals(broker: RabbitMQ | Cluster, amqp_url: str, names: Sequence[str]) -> list[int]:
    """How many messages each quorum queue has, with deliveries that are not settled.

    Raises:
        SandboxError: the broker does not know: it is not running, or a queue has no leader.
    """
    return await _counts(broker, amqp_url, names, "total")


async def waiting(broker: RabbitMQ | Cluster, amqp_url: str, name: str) -> int:
    """How many messages a quorum queue has that are in no consumer's hands. Raises as `totals` does."""
    [count] = await _counts(broker, amqp_url, [name], "ready")
    return count


async def _counts(broker: RabbitMQ | Cluster, amqp_url: str, names: Sequence[str], which: str) -> list[int]:
    vhost = unquote(urlsplit(amqp_url).path[1:])
    expression = _COUNT.format(vhost=vhost, which=which, names=", ".join(f'<<"{name}">>' for name in names))
    answer = await asyncio.to_thread(broker.evaluate, expression)
    return [int(number) for number in answer.strip("{}").split(",")]
