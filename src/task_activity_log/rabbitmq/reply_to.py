"""Forms of `reply_to`: a queue's name, an address of AMQP 1.0, or RabbitMQ's direct reply-to (contract, section 6)."""

from __future__ import annotations

import binascii
from base64 import b64decode
from functools import lru_cache
from urllib.parse import unquote

DIRECT = "amq.rabbitmq.reply-to"

_PIDS = {88: 12, 103: 9}
"""Tags of a process id in Erlang's external term format (NEW_PID_EXT, PID_EXT), and the bytes that follow its node."""
_ATOMS = {118: 2, 119: 1, 100: 2, 115: 1}
"""Tags of an atom there, and the bytes of its length."""


@lru_cache(maxsize=4096)
def queue_of(reply_to: str) -> str:
    """The name of the queue. Addresses of AMQP 1.0 (`/queues/NAME`, `/queue/NAME`, `/amq/queue/NAME`) are translated.

    In `/queues/NAME`, the form of RabbitMQ 4, the name is percent-encoded.
    """
    if reply_to.startswith("/queues/"):
        return unquote(reply_to.removeprefix("/queues/")) or reply_to
    for prefix in ("/amq/queue/", "/queue/"):
        if reply_to.startswith(prefix):
            return reply_to.removeprefix(prefix) or reply_to
    return reply_to


def is_direct(address: str) -> bool:
    """Whether this is an address of direct reply-to, well formed or not."""
    return address.startswith(DIRECT)


@lru_cache(maxsize=4096)
def is_malformed(address: str) -> bool:
    """Whether this is an address of direct reply-to that RabbitMQ cannot have made.

    RabbitMQ 3 ends the connection of a client that publishes to most of these. It makes `PREFIX.PID.KEY`: a process id in
    Erlang's external term format and 16 bytes, both in base64.
    """
    if not is_direct(address):
        return False
    pid, dot, key = address.removeprefix(DIRECT).removeprefix(".").partition(".")
    try:
        term, random = (
            b64decode(pid, validate=True),
            b64decode(key, altchars=b"-_" if set(key) & set("-_") else None, validate=True),
        )
    except (ValueError, binascii.Error):
        return True
    return not (dot and len(random) == 16 and _is_pid(term))  # noqa: PLR2004 - see above


def _is_pid(term: bytes) -> bool:
    if len(term) < 4 or term[0] != 131 or term[1] not in _PIDS or term[2] not in _ATOMS:  # noqa: PLR2004 - version byte
        return False
    size = _ATOMS[term[2]]
    start = 3 + size
    node = int.from_bytes(term[3:start], "big")
    return b"@" in term[start : start + node] and len(term) == start + node + _PIDS[term[1]]
