"""Content headers of AMQP 0-9-1: bytes to properties, leniently, and properties to bytes.

pamqp raises on strings that are not UTF-8 and on timestamps that are out of range. The driver then drops the connection,
and does so again at each redelivery until the broker has dead-lettered everything in hand. So deliveries are decoded
here: a property that cannot be read is left out and named in `unreadable`, and no error is raised.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import Any, Final
from uuid import uuid4

from task_activity_log.message import UPDATE_MODE, VERSION, Properties, Timestamp
from task_activity_log.rabbitmq.reply_to import DIRECT

BROKERS_HEADERS = frozenset((b"CC", b"BCC", b"x-death", b"x-delivery-count", b"x-acquired-count"))
"""Headers that a message must not have when it is published again: the first two would send it to more queues, and the
broker sets the others itself."""

NEEDED_HEADERS = frozenset(name.encode() for name in (UPDATE_MODE, VERSION, "MessageId"))
"""What determines how a request is processed."""

OWN_HEADERS: Final = frozenset(
    {
        "x-error-code",
        "x-error-detail",
        "x-headers-dropped",
        "x-last-seen",
        "x-original-expiration",
        "x-original-user-id",
        "x-redelivered",
    }
)
"""The worker's own headers. A request that has one of these has it from its publisher: it is not copied. `x-first-seen` is
copied, because a replayed request has it; its reader must not rely on it."""

_ADDED_HEADERS = frozenset((b"x-death", b"x-delivery-count", b"x-acquired-count", b"x-first-seen")) | {
    *(name.encode() for name in OWN_HEADERS),
    *(f"x-{which}-death-{what}".encode() for which in ("first", "last") for what in ("exchange", "queue", "reason")),
}
"""What workers and the broker add to a message on its way: always read, and not counted among its headers. Otherwise the reason
would be missing from the copy of a message with many headers, and one with as many as permitted would be valid only once."""
_ADDED = re.compile(b"|".join(map(re.escape, sorted(_ADDED_HEADERS))))

TABLE_MAX = 2**18
"""The longest header table that is read, in bytes. A publisher of AMQP 0-9-1 cannot send one that is longer than a frame, which
has 131,072 bytes by default. RabbitMQ 4 delivers what publishers of AMQP 1.0 send in one frame of whatever length, up to 16 MiB:
two million headers, which would take seconds and hundreds of MiB."""
TABLE_TOO_LONG = f"the headers have more than {TABLE_MAX:,} bytes together"
"""The reason in `unreadable` if they do. Then none of them is in `table` or `headers`."""
HEADERS_MAX = 1_000
"""How many headers of a publisher are read. Those that fit into a frame of AMQP 0-9-1 are 29,000, which take 6 MiB."""
TOO_MANY = f"there are more than {HEADERS_MAX:,} headers"  # the reason in `unreadable`

_LATEST_MILLISECOND = 253_402_300_799_999
"""The last instant of the year 9999. Publishers send seconds or milliseconds; any larger number is out of range."""

_SHORT_STRING, _TABLE, _OCTET, _TIMESTAMP = range(4)

_LAYOUT = (
    ("content_type", _SHORT_STRING),
    ("content_encoding", _SHORT_STRING),
    ("headers", _TABLE),
    ("delivery_mode", _OCTET),
    ("priority", _OCTET),
    ("correlation_id", _SHORT_STRING),
    ("reply_to", _SHORT_STRING),
    ("expiration", _SHORT_STRING),
    ("message_id", _SHORT_STRING),
    ("timestamp", _TIMESTAMP),
    ("type", _SHORT_STRING),
    ("user_id", _SHORT_STRING),
    ("app_id", _SHORT_STRING),
    ("cluster_id", _SHORT_STRING),
)
"""The properties in the order of their flag bits, from bit 15 down (AMQP 0-9-1, section 4.2.6.1)."""


@lru_cache(maxsize=256)
def _plan(flags: int) -> tuple[tuple[str, int], ...]:
    return tuple(entry for bit, entry in zip(range(15, 1, -1), _LAYOUT, strict=True) if flags & 1 << bit)


def decode(payload: bytes) -> Properties:
    """The properties in the payload of a content header frame (class, weight, body size, flags, values)."""
    found = Properties()
    unreadable: dict[str, None] = {}  # each reason once: a message can have 40,000 unreadable headers
    offset = 14
    try:
        for name, kind in _plan(payload[12] << 8 | payload[13]):
            if kind == _SHORT_STRING:
                end = offset + 1 + payload[offset]
                try:
                    setattr(found, name, payload[offset + 1 : end].decode())
                except UnicodeDecodeError:
                    unreadable[f"{name} is not UTF-8"] = None
                offset = end
            elif kind == _TABLE:
                end = offset + 4 + int.from_bytes(payload[offset : offset + 4], "big")
                if end - offset > TABLE_MAX:
                    unreadable[TABLE_TOO_LONG] = None
                else:
                    found.table = payload[offset + 4 : end]
                    found.headers = _headers(found.table, unreadable)
                offset = end
            elif kind == _OCTET:
                setattr(found, name, payload[offset])
                offset += 1
            else:
                instant = int.from_bytes(payload[offset : offset + 8], "big")
                if instant > _LATEST_MILLISECOND:
                    unreadable["timestamp is out of range"] = None
                else:
                    found.timestamp = instant
                offset += 8
    except IndexError:
        unreadable["the content header is cut short"] = None
    if unreadable:
        found.unreadable = "; ".join(unreadable)
    return _without_direct(found)


def _without_direct(properties: Properties) -> Properties:
    """Leave out a `reply_to` that is no address. RabbitMQ replaces this name, but not for publishers of AMQP 1.0.

    The broker closes the channel on which a copy with it is published.
    """
    if properties.reply_to == DIRECT:
        properties.reply_to = None
    return properties


def _headers(table: bytes, unreadable: dict[str, None]) -> dict[str, object]:
    headers: dict[str, object] = {}
    try:
        count = 0
        for name, kind, start, end in _entries(table):
            if name not in _ADDED_HEADERS:
                count += 1
                if count > HEADERS_MAX:
                    unreadable[TOO_MANY] = None
                    if count == HEADERS_MAX + 1 and not _ADDED.search(table, end):
                        break  # the others would take up to 0.1 s
                    continue
            try:
                # The first of several with the same name: RabbitMQ sets its own in place of the first.
                headers.setdefault(name.decode(), _VALUES[kind](table[start:end]))
            except UnicodeDecodeError:
                unreadable["the name of a header is not UTF-8"] = None
            except ValueError:
                unreadable["a timestamp among the headers is out of range"] = None
    except (IndexError, KeyError, struct.error):
        unreadable["the header table is not well-formed"] = None
    return headers


def _entries(table: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Each header's name and type, and where its value starts and ends."""
    offset, end = 0, len(table)
    while offset < end:
        named = offset + 1 + table[offset]
        kind = table[named]
        start = named + 1
        size = _SIZES[kind]
        if size < 0:
            start += 4
            size = int.from_bytes(table[named + 1 : start], "big")
        if start + size > end:
            raise IndexError
        yield table[offset + 1 : named], kind, start, start + size
        offset = start + size


def raw_headers(table: bytes) -> list[tuple[bytes, bytes]]:
    """The entries of a header table, each as its name and the bytes of the whole entry, up to the first malformed one."""
    entries: list[tuple[bytes, bytes]] = []
    begin = 0
    with suppress(IndexError, KeyError):
        for name, _, _, end in _entries(table):
            entries.append((name, table[begin:end]))
            begin = end
    return entries


def received(properties: Properties) -> Properties:
    """The properties as the receiver of the message reads them: all headers are in `table`, and in `headers` as values."""
    return decode(encode(properties, 0))


def latest_death(properties: Properties) -> dict[str, object]:
    """What the broker noted when it dead-lettered a message last: `reason`, `time`, `queue`; empty if it never did."""
    deaths = properties.headers.get("x-death")
    if not isinstance(deaths, bytes) or deaths[:1] != b"F":  # an array of tables, the latest first
        return {}
    return _headers(deaths[5 : 5 + int.from_bytes(deaths[1:5], "big")], {})


def readable_headers(table: bytes, *, without: Collection[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """The entries of a header table, as `raw_headers`, that other programs' drivers can read. Some names are left out.

    They cannot read a name that is not UTF-8, an instant after the year 9999, a type or a nested table or array that is
    not well-formed, and none that is nested too deeply.
    """
    entries: list[tuple[bytes, bytes]] = []
    begin = 0
    with suppress(IndexError, KeyError):
        for name, kind, start, end in islice(_entries(table), HEADERS_MAX + len(_ADDED_HEADERS)):  # more are not valid
            text = name not in without and (name.isascii() or _is_text(name))
            if text and (kind not in _CHECKED or _is_readable(table, kind, start, end)):
                entries.append((name, table[begin:end]))
            begin = end
    return entries


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_readable(table: bytes, kind: int, start: int, end: int) -> bool:
    try:
        if kind == _INSTANT_TYPE:
            _instant(table[start:end])
        else:
            _read_nested(table, start, end, named=kind == _TABLE_TYPE)
    except (IndexError, KeyError, ValueError):
        return False
    return True


def _read_nested(table: bytes, offset: int, end: int, *, named: bool) -> None:
    """Read a table (`named`) or an array in one pass, without recursion, and keep nothing.

    Raises `IndexError`, `KeyError` or `ValueError` if it is not readable.
    """
    outer: list[tuple[int, bool]] = []
    while True:
        if not named and (scalars := _SCALARS.match(table, offset, end)):
            offset = scalars.end()
        if offset == end:
            if not outer:
                return
            end, named = outer.pop()
            continue
        if named:
            offset = _after_name(table, offset, end)
        kind, offset, after = _value_at(table, offset, end)
        if kind in _NESTING:
            if len(outer) == _DEPTH_MAX - 1:
                raise ValueError
            outer.append((end, named))
            end, named = after, kind == _TABLE_TYPE
        else:
            offset = after


def _after_name(table: bytes, offset: int, end: int) -> int:
    after = offset + 1 + table[offset]
    if after >= end:
        raise IndexError
    table[offset + 1 : after].decode()
    return after


def _value_at(table: bytes, offset: int, end: int) -> tuple[int, int, int]:
    """The type of a value, and where it starts and ends."""
    kind = table[offset]
    size = _SIZES[kind]
    offset += 1
    if size < 0:
        size = int.from_bytes(table[offset : offset + 4], "big")
        offset += 4
    after = offset + size
    if after > end:
        raise IndexError
    if kind == _INSTANT_TYPE:
        _instant(table[offset:after])
    return kind, offset, after


def _long_string(value: bytes) -> str | bytes:
    # .NET writes a byte[] header as a long string, so bytes that are not text are a value, not an error.
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _decimal(value: bytes) -> Decimal:
    return Decimal(int.from_bytes(value[1:], "big", signed=True)).scaleb(-value[0])


def _instant(value: bytes) -> Timestamp:
    instant = Timestamp.from_bytes(value, "big")
    if instant > _LATEST_MILLISECOND:
        raise ValueError
    return instant


def _signed(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def _unsigned(value: bytes) -> int:
    return int.from_bytes(value, "big")


_FIELDS: dict[str, tuple[int, Callable[[bytes], object]]] = {
    "t": (1, lambda value: value != b"\0"),
    "b": (1, _signed),
    "B": (1, _unsigned),
    "s": (2, _signed),
    "u": (2, _unsigned),
    "I": (4, _signed),
    "i": (4, _unsigned),
    "l": (8, _signed),
    "L": (8, _signed),
    "f": (4, lambda value: struct.unpack(">f", value)[0]),
    "d": (8, lambda value: struct.unpack(">d", value)[0]),
    "D": (5, _decimal),
    "T": (8, _instant),
    "V": (0, lambda _: None),
    "S": (-1, _long_string),
    "x": (-1, lambda value: value),
    "A": (-1, lambda value: value),
    "F": (-1, lambda value: value),
}
"""Field types: the size in bytes (-1: a length of four bytes comes first), and how the value is read. The letters are
those that RabbitMQ uses, which differ from the specification (AMQP 0-9-1 errata, section 3)."""
_SIZES = {ord(letter): size for letter, (size, _) in _FIELDS.items()}
_VALUES = {ord(letter): read for letter, (_, read) in _FIELDS.items()}
_TABLE_TYPE, _INSTANT_TYPE = ord("F"), ord("T")
_NESTING = frozenset(map(ord, "FA"))
_CHECKED = _NESTING | {_INSTANT_TYPE}
_DEPTH_MAX = 100
"""How deeply readable tables and arrays may be nested. Drivers read them recursively, in Python at most some 300 levels."""
_SCALARS = re.compile(rb"(?s:V|[tbB].|[su].{2}|[Iif].{4}|[lLd].{8}|D.{5}|[SxAF]\0{4})*+")
"""Values of a fixed size, and empty ones, in an array. There can be 130,000, which would take 50 ms one by one."""


def encode(properties: Properties | Templated, body_size: int) -> bytes:
    """The payload of a content header frame.

    Raises:
        ValueError: a short string is longer than 255 bytes.
    """
    if isinstance(properties, Templated):
        return properties.template.fill(properties.correlation_id, properties.message_id, body_size)
    values = list(_in_order(properties))
    values[_TABLE_AT] = properties.table + b"".join(map(encode_header, properties.headers.items())) or None
    flags = 0
    parts = [b""]  # replaced when the flags are known
    for index, value in enumerate(values):
        if value is not None:
            flags |= _FIRST_FLAG >> index
            parts.append(_WRITERS[index](value))
    parts[0] = _START.pack(60, 0, body_size, flags)
    return b"".join(parts)


def _short_string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > _SHORT_STRING_MAX:
        raise ValueError("too long for a short string")
    return _OCTETS[len(raw)] + raw


class Template:
    """The content header of messages that differ only in correlation_id, message_id and the size of the body.

    `encode` writes it once, with marks in the place of both ids, and `fill` replaces the marks. That takes a third of the
    time, and there is no second writer of the format.
    """

    __slots__ = ("_after", "_before", "_between")

    def __init__(self, properties: Properties) -> None:
        """`properties` are those of all of them; its own correlation_id and message_id are ignored."""
        written = encode(replace(properties, correlation_id=_MARK, message_id=_MARK), 0)
        self._before, self._between, self._after = written[_FLAGS_AT:].split(_short_string(_MARK))

    def fill(self, correlation_id: str, message_id: str, body_size: int) -> bytes:
        """The payload of the content header frame of one message.

        Raises:
            ValueError: an id is longer than 255 bytes.
        """
        return b"".join(
            (
                _CLASS, body_size.to_bytes(8, "big"), self._before,
                _short_string(correlation_id), self._between, _short_string(message_id), self._after,
            )
        )  # fmt: skip


class Templated:
    """The properties of one message, as a template and what is not in it."""

    __slots__ = ("correlation_id", "message_id", "template")

    def __init__(self, template: Template, correlation_id: str, message_id: str) -> None:
        self.template = template
        self.correlation_id = correlation_id
        self.message_id = message_id


_MARK = f"\0\1 the id of a message {uuid4()} \1\0"
"""No other property of a templated message may contain it: `Template` would raise ValueError. So nobody can know it."""
_CLASS = bytes((0, 60, 0, 0))
_FLAGS_AT = 12  # behind class, weight and body size
_SHORT_STRING_MAX = 255
_START = struct.Struct(">HHQH")
_OCTETS = [bytes((number,)) for number in range(256)]
_WRITE: dict[int, Callable[[Any], bytes]] = {
    _SHORT_STRING: _short_string,
    _TABLE: lambda table: len(table).to_bytes(4, "big") + table,
    _OCTET: lambda number: bytes((number,)),
    _TIMESTAMP: lambda instant: instant.to_bytes(8, "big"),
}
_FIRST_FLAG = 1 << 15
_WRITERS = [_WRITE[kind] for _, kind in _LAYOUT]
_NAMES = [name for name, _ in _LAYOUT]
_TABLE_AT = _NAMES.index("headers")
_in_order = attrgetter(*_NAMES)


def encode_header(item: tuple[str, object]) -> bytes:
    """One entry of a header table: text, a boolean or an integer of at most 64 bits."""
    name, value = item
    raw = name.encode()
    if isinstance(value, bool):
        written = b"t" + bytes((value,))
    elif isinstance(value, int):
        written = b"l" + value.to_bytes(8, "big", signed=True)
    else:
        text = str(value).encode()
        written = b"S" + len(text).to_bytes(4, "big") + text
    return bytes((len(raw),)) + raw + written
