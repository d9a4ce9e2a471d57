"""How much memory a delivery takes, in bytes: its body as decoded, its headers, and its objects.

It is an upper bound that costs little, not a measurement. Batches and what is in hand are bounded by it.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple, Protocol
from weakref import WeakSet


class Holder(Protocol):
    """Whoever has deliveries in hand."""

    @property
    def weight(self) -> int:
        """What they weigh together."""


class Budget:
    """How much all deliveries in hand may weigh. All consumers of a connection take from it, and give back what is settled.

    A consumer that is alone active may have all of it. Nobody waits for ever: what is in hand can be finished without
    another delivery, and if nothing is in hand, a message may be as heavy as it likes.
    """

    def __init__(self, most: float = inf) -> None:
        """Nothing is in hand yet."""
        self._most = most
        self._weight = (
            0  # at least that of all: it is not lowered when something is settled, but counted when it is of use
        )
        self._holders: WeakSet[Holder] = WeakSet()

    def join(self, holder: Holder) -> None:
        """Count what `holder` has in hand, until it leaves."""
        self._holders.add(holder)

    def leave(self, holder: Holder) -> None:
        """Do not count what `holder` has in hand any more. It may have left before."""
        self._holders.discard(holder)

    def take(self, weight: int) -> None:
        """A delivery of this weight was added to what a holder has in hand."""
        self._weight += weight

    def full(self, arriving: int) -> bool:
        """Whether something is in hand that leaves no room for bodies of `arriving` bytes."""
        if self._weight + arriving <= self._most:
            return False
        self._weight = sum(holder.weight for holder in self._holders)
        return self._weight > 0 and self._weight + arriving > self._most


class Bounds(NamedTuple):
    """How much deliveries may weigh."""

    batch: float = inf
    """Those that are taken together, unless it is a single one."""
    in_hand: float = inf
    """Those that are not settled, of all queues together. When they weigh more, the connection is not read. A single one may."""


UNBOUNDED = Bounds()

_OBJECTS = 1_024
"""The delivery itself and its properties."""
_HEADER = 200
"""The objects of one header: its name, its value and its place in the dictionary."""
_WIDE = 4
"""Bytes that Python takes for each character of a text with a character outside the Basic Multilingual Plane."""
_LOOKED_AT = range(4_096, 2**22)
"""Shorter bodies are taken to be wide, because looking costs more than it saves; longer ones, because it takes too long: 2 ms
for each MiB, in which the event loop stands still."""


def most_weight(size: int) -> int:
    """The most that a delivery with a body of `size` bytes weighs, without its headers."""
    return _OBJECTS + _WIDE * size


def weigh(body: bytes, header: bytes, headers: int) -> int:
    """The weight of a delivery with this body, this payload of the content header, and this number of headers.

    A body of ASCII has texts of as many bytes. Escapes are ASCII, too, and may stand for any character.
    """
    size = len(body)
    weight = _OBJECTS + _HEADER * headers + _WIDE * (len(header) + size)
    if size in _LOOKED_AT and body.isascii() and b"\\u" not in body and b"&#" not in body:
        weight -= (_WIDE - 1) * size
    return weight
