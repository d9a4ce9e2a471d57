"""How the client reaches the broker, and the one line it says where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from yarl import URL

from task_activity_log.client.messages import ClientError
from task_activity_log.rabbitmq.link import LinkOptions

PROGRAM = "task-activity-log"


def options(broker: str | LinkOptions, on_outage: Callable[[str], None]) -> LinkOptions:
    """The options for a URL, or those given, under the client's name.

    Raises:
        ClientError: the URL is none of a broker.
    """
    given = LinkOptions(broker) if isinstance(broker, str) else broker
    try:
        url = URL(given.url)
        usable = url.scheme in ("amqp", "amqps") and bool(url.host)
    except ValueError:
        usable = False
    if not usable:
        raise ClientError("the broker's URL should be one such as amqp://user:password@host:5672/vhost")
    return replace(given, program=PROGRAM, on_outage=on_outage)


def no_connection(given: LinkOptions, reason: str) -> ClientError:
    """Nobody answers at that address, or the broker refuses."""
    url = URL(given.url)
    if "NOT_FOUND" in reason:
        return ClientError(f"{_missing(reason)} does not exist on this broker: a worker declares it when it starts")
    if "Connect call failed" in reason:
        reason = "nobody listens there"
    return ClientError(f"no connection to {url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}: {reason}")


def _missing(reason: str) -> str:
    """What the broker does not have, out of `NOT_FOUND - no queue 'x' in vhost '/'`."""
    return reason.partition(" - no ")[2].partition(" in vhost")[0] or "what is needed"
