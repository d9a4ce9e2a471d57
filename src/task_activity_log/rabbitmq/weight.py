"""How much memory a delivery takes, in bytes: its body as decoded, its headers, and its objects.

It is an upper bound that costs little, not a measurement. Batches and what is in hand are bounded by it.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple


class Bounds(NamedTuple):
    """How much deliveries may weigh."""

    batch: float = inf
    """Those that are taken together, unless it is a single one."""
    in_hand: float = inf
    """Those that are not settled. When they weigh more, the connection is not read. A single one may."""


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


def weigh(body: bytes, header: bytes, headers: int) -> int:
    """The weight of a delivery with this body, this payload of the content header, and this number of headers.

    A body of ASCII has texts of as many bytes. Escapes are ASCII, too, and may stand for any character.
    """
    size = len(body)
    weight = _OBJECTS + _HEADER * headers + _WIDE * (len(header) + size)
    if size in _LOOKED_AT and body.isascii() and b"\\u" not in body and b"&#" not in body:
        weight -= (_WIDE - 1) * size
    return weight
