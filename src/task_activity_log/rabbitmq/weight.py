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
_LONG = 4_096
"""Shorter bodies are taken to be wide, because looking costs more than it saves."""


def weigh(body: bytes, header: bytes, headers: int) -> int:
    """The weight of a delivery with this body, this payload of the content header, and so many headers."""
    return _OBJECTS + _WIDE * len(header) + _HEADER * headers + _decoded(body)


def _decoded(body: bytes) -> int:
    """A body of ASCII has texts of as many bytes. Escapes are ASCII, too, and may stand for any character."""
    if len(body) <= _LONG or not body.isascii() or b"\\u" in body or b"&#" in body:
        return _WIDE * len(body)
    return len(body)
