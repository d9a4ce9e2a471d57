"""Content headers are read as the driver's library reads them, and also where that library fails."""

import struct
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from task_activity_log.message import OUTCOME, TRACE_PARENT, Properties, Timestamp
from task_activity_log.pipeline.reply import Reply
from task_activity_log.rabbitmq.headers import (
    HEADERS_MAX,
    TABLE_MAX,
    Template,
    Templated,
    decode,
    encode,
    encode_header,
    latest_death,
    raw_headers,
)
from task_activity_log.rabbitmq.properties import properties_of, properties_of_all
from task_activity_log.record import Outcome

short = st.text(max_size=40).filter(lambda text: len(text.encode()) <= 255)
integers = st.integers(-(2**63), 2**63 - 1)


def by_the_library(properties: Basic.Properties, size: int = 0) -> bytes:
    return ContentHeader(body_size=size, properties=properties).marshal()


@given(
    content_type=st.none() | short,
    correlation_id=st.none() | short,
    reply_to=st.none() | short,
    message_id=st.none() | short,
    priority=st.none() | st.integers(0, 255),
    seconds=st.none() | st.integers(1, 2**32 - 1),
    headers=st.dictionaries(short, st.booleans() | integers | short, max_size=5),
)
def test_what_the_library_writes_is_read(
    content_type: str | None,
    correlation_id: str | None,
    reply_to: str | None,
    message_id: str | None,
    priority: int | None,
    seconds: int | None,
    headers: dict[str, object],
) -> None:
    """Every property that pamqp writes is read back unchanged."""
    written = by_the_library(
        Basic.Properties(
            content_type=content_type,
            correlation_id=correlation_id,
            reply_to=reply_to,
            message_id=message_id,
            priority=priority,
            timestamp=None if seconds is None else datetime.fromtimestamp(seconds, UTC),
            headers=headers,  # type: ignore[arg-type]
        )
    )
    found = decode(written)
    # pamqp leaves empty strings out.
    assert (found.content_type or None) == (content_type or None)
    assert (found.correlation_id or None) == (correlation_id or None)
    assert (found.reply_to or None) == (reply_to or None)
    assert (found.message_id or None) == (message_id or None)
    assert found.priority == priority
    assert found.timestamp == seconds
    assert found.headers == headers
    assert found.unreadable is None


@given(
    message_id=st.none() | short,
    seconds=st.none() | st.integers(0, 2**32 - 1),
    size=st.integers(0, 2**40),
    headers=st.dictionaries(short, st.booleans() | integers | short, max_size=5),
)
def test_what_we_write_is_read_by_the_library(
    message_id: str | None, seconds: int | None, size: int, headers: dict[str, object]
) -> None:
    """pamqp reads every property that we write."""
    header = ContentHeader()
    header.unmarshal(encode(Properties(message_id=message_id, timestamp=seconds, headers=headers), size))
    assert header.body_size == size
    assert header.properties.message_id == message_id
    assert header.properties.headers == (headers or None)
    assert header.properties.timestamp == (None if seconds is None else datetime.fromtimestamp(seconds, UTC))


@given(
    content_type=st.none() | short,
    message_type=st.none() | short,
    correlation_id=short,
    message_id=short,
    size=st.integers(0, 2**40),
    headers=st.dictionaries(short, st.booleans() | integers | short, max_size=5),
)
def test_a_template_writes_what_is_written_without_one(
    content_type: str | None,
    message_type: str | None,
    correlation_id: str,
    message_id: str,
    size: int,
    headers: dict[str, object],
) -> None:
    """The content header is the same, byte for byte, whatever the properties."""
    properties = Properties(content_type, headers=headers, type=message_type, timestamp=1, delivery_mode=2)
    templated = Templated(Template(properties), correlation_id, message_id)
    properties.correlation_id, properties.message_id = correlation_id, message_id
    assert encode(templated, size) == encode(properties, size)


def test_an_id_that_is_too_long_for_a_template_raises() -> None:
    """As it does without one: a length in one byte would make the rest of the frame unreadable."""
    with pytest.raises(ValueError, match="too long"):
        encode(Templated(Template(Properties()), "x" * 256, ""), 0)


replies = st.builds(
    Reply,
    outcome=st.sampled_from(Outcome),
    body=st.just(b""),
    content_type=st.sampled_from(("application/json", "text/xml")),
    correlation_id=st.none() | short,
    message_id=short,
    type=short,
    headers=st.dictionaries(st.sampled_from((OUTCOME, TRACE_PARENT, "x-error-code")), short),
    reply_to=st.none(),
)


@given(st.lists(replies, max_size=20))
def test_the_replies_of_a_batch_have_their_own_properties(batch: list[Reply]) -> None:
    """Replies that share a template are published with the same bytes as each reply by itself."""
    written = [encode(properties, 7) for properties in properties_of_all(batch)]
    alone = [encode(properties_of(reply), 7) for reply in batch]
    assert [without_second(header) for header in written] == [without_second(header) for header in alone]


def without_second(header: bytes) -> Properties:
    """The properties without their timestamp, because a second may begin in between."""
    found = decode(header)
    found.timestamp = None
    return found


def test_no_text_of_a_publisher_can_be_the_place_of_an_id() -> None:
    """A reply has the trace context of its request. The mark was a constant once, and a request that had it ended the worker."""
    headers: dict[str, object] = {"tracestate": "\x19\0\1 the id of a message \1\0"}
    properties = Properties(headers=headers, correlation_id="c", message_id="m")
    assert encode(Templated(Template(properties), "c", "m"), 7) == encode(properties, 7)


@given(payload=st.binary(min_size=14, max_size=400))
def test_no_content_header_raises(payload: bytes) -> None:
    """Decoding never raises, because that would end the connection for all other messages."""
    decode(payload)


def header_of(flags: int, values: bytes) -> bytes:
    return struct.pack(">HHQH", 60, 0, 0, flags) + values


def test_a_string_that_is_not_utf8_is_left_out_and_named() -> None:
    """A Latin-1 correlation_id is reported and does not prevent reading the message_id after it."""
    found = decode(header_of(1 << 10 | 1 << 7, b"\x03caf\x03abc".replace(b"\x03caf", b"\x04caf\xe9")))
    assert found.correlation_id is None
    assert found.message_id == "abc"
    assert found.unreadable == "correlation_id is not UTF-8"


@pytest.mark.parametrize(
    "instant",
    [639_000_000_000_000_000, 1_768_165_114_720_383, 2**64 - 1],
    ids=["dotnet_ticks", "microseconds", "largest"],
)
def test_a_timestamp_out_of_range_is_left_out_and_named(instant: int) -> None:
    """.NET ticks and microseconds are neither seconds nor milliseconds of our time."""
    found = decode(header_of(1 << 6, instant.to_bytes(8, "big")))
    assert found.timestamp is None
    assert found.unreadable == "timestamp is out of range"


def table(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return header_of(1 << 13, len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (b"\x01at\x01", True),
        (b"\x01ab\xff", -1),
        (b"\x01aB\xff", 255),
        (b"\x01as\xff\xfe", -2),
        (b"\x01au\xff\xfe", 65534),
        (b"\x01aI\xff\xff\xff\xff", -1),
        (b"\x01ai\xff\xff\xff\xff", 2**32 - 1),
        (b"\x01al" + b"\xff" * 8, -1),
        (b"\x01at\0", False),
        (b"\x01aL" + b"\xff" * 8, -1),
        (b"\x01aT" + (7).to_bytes(8, "big"), 7),
        (b"\x01aD\x02\0\0\x04\xd2", Decimal("12.34")),
        (b"\x01aD\0\xff\xff\xff\xff", Decimal(-1)),
        (b"\x01aA\0\0\0\x02t\x01", b"t\x01"),
        (b"\x01aS\0\0\x01\0" + b"x" * 256, "x" * 256),
        (b"\x01ad" + struct.pack(">d", 1.5), 1.5),
        (b"\x01af" + struct.pack(">f", 0.5), 0.5),
        (b"\x01aV", None),
        (b"\x01aS\0\0\0\x02hi", "hi"),
        (b"\x01aS\0\0\0\x02\xff\xfe", b"\xff\xfe"),
        (b"\x01ax\0\0\0\x01\x00", b"\0"),
        (b"\x01aF\0\0\0\x00", b""),
    ],
)
def test_every_field_type_is_read(entry: bytes, value: object) -> None:
    """All types of RabbitMQ's tables are read, also a byte[] header of .NET, a long string that is not text."""
    found = decode(table(entry, b"\x04nextt\x01"))
    assert found.headers == {"a": value, "next": True}
    assert found.unreadable is None


def test_a_timestamp_is_not_taken_for_a_number() -> None:
    """A header of type T has whole seconds. Its value is one that a rule can tell from an integer."""
    found = decode(table(b"\x01aT" + (7).to_bytes(8, "big"), b"\x01bl" + (7).to_bytes(8, "big")))
    assert {name: type(value) for name, value in found.headers.items()} == {"a": Timestamp, "b": int}


def death(*entries: bytes) -> bytes:
    one = b"".join(entries)
    one = b"F" + len(one).to_bytes(4, "big") + one
    return b"\x07x-deathA" + len(one * 2).to_bytes(4, "big") + one * 2


def test_what_the_broker_noted_at_a_dead_lettering_is_read() -> None:
    """The latest entry of x-death counts. Whatever else a publisher puts there is ignored."""
    reason, at = b"\x06reasonS\0\0\0\x06maxlen", b"\x04timeT" + (7).to_bytes(8, "big")
    assert latest_death(decode(table(death(reason, at)))) == {"reason": "maxlen", "time": 7}
    for forged in (death(reason[:-1]), b"\x07x-deathS\0\0\0\x02Fx", b"\x07x-deathA\0\0\0\x02FF", b"\x01at\x01"):
        assert "time" not in latest_death(decode(table(forged)))


def test_the_first_of_several_headers_with_the_same_name_counts() -> None:
    """The broker replaces the first when it sets a header of its own. A publisher can send more of that name."""
    assert decode(table(b"\x01at\x01", b"\x01bt\x01", b"\x01at\x00")).headers == {"a": True, "b": True}


def test_a_header_name_that_is_not_utf8_is_left_out_and_named() -> None:
    """The header is omitted and reported, and the others are read."""
    found = decode(table(b"\x01\xfft\x01", b"\x01bt\x01"))
    assert found.headers == {"b": True}
    assert found.unreadable == "the name of a header is not UTF-8"


def test_a_header_timestamp_out_of_range_is_left_out_and_named() -> None:
    """The header is omitted and reported, and the others are read."""
    found = decode(table(b"\x01aT" + (2**63).to_bytes(8, "big"), b"\x01bt\x01"))
    assert found.headers == {"b": True}
    assert found.unreadable is not None


def test_the_last_instant_is_read() -> None:
    """The end of the year 9999 in milliseconds is read; a millisecond later is out of range."""
    for late, unreadable in ((0, None), (1, "timestamp is out of range")):
        instant = (253_402_300_799_999 + late).to_bytes(8, "big")
        assert decode(header_of(1 << 6, instant)).unreadable == unreadable
        found = decode(table(b"\x01aT" + instant))
        assert found.headers == ({} if late else {"a": 253_402_300_799_999})
        assert (found.unreadable is None) is (unreadable is None)


@pytest.mark.parametrize("entry", [b"\x01aS\0\0\0\x02x", b"\x01al\0", b"\x01a", b"\x09a", b"\x01a?\0"])
def test_a_table_that_is_cut_short_or_of_unknown_types_is_named(entry: bytes) -> None:
    """The error is reported, and the entries before it are read."""
    found = decode(table(b"\x01bt\x01", entry))
    assert found.headers == {"b": True}
    assert found.unreadable == "the header table is not well-formed"
    assert raw_headers(found.table) == [(b"b", b"\x01bt\x01")]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, b"\x01at\x01"),
        (False, b"\x01at\0"),
        (-1, b"\x01al" + b"\xff" * 8),
        ("é", b"\x01aS\0\0\0\x02\xc3\xa9"),
    ],
)
def test_headers_are_written_with_their_types(value: object, written: bytes) -> None:
    """A boolean is written as a boolean, although Python treats it as an integer."""
    assert encode_header(("a", value)) == written


def test_deep_nesting_costs_nothing() -> None:
    """Nested tables are not decoded."""
    nested = b""
    for _ in range(20_000):
        nested = b"\x01aF" + len(nested).to_bytes(4, "big") + nested
        if len(nested) > 100_000:
            break
    assert set(decode(table(nested)).headers) == {"a"}


def test_a_table_that_is_too_long_is_left_out_and_named() -> None:
    """RabbitMQ 4 delivers 16 MiB of headers of an AMQP 1.0 publisher in one frame. The properties around them are read."""
    entries = [b"\x03%03xS\0\0\x03\xf7%1015d" % (number, number) for number in range(TABLE_MAX // 1024)]
    longest, longer = b"".join(entries[:-1]), b"".join(entries)
    assert len(decode(header_of(1 << 13, len(longest).to_bytes(4, "big") + longest)).headers) == TABLE_MAX // 1024 - 1
    found = decode(
        header_of(1 << 15 | 1 << 13 | 1 << 7, b"\x01c" + len(longer).to_bytes(4, "big") + longer + b"\x03abc")
    )
    assert (found.headers, found.table) == ({}, b"")
    assert (found.content_type, found.message_id) == ("c", "abc")
    assert found.unreadable == "the headers have more than 262,144 bytes together"


def test_more_headers_than_are_read_are_named() -> None:
    """29,000 fit into a frame. They would take 6 MiB, and in hand they would keep others away."""
    entries = [b"\x04%04dV" % number for number in range(HEADERS_MAX + 1)]
    most = decode(table(*entries[:-1]))
    assert (len(most.headers), most.unreadable) == (HEADERS_MAX, None)
    found = decode(table(*entries, *(entry.replace(b"\x04", b"\x05x") for entry in entries)))
    assert (len(found.headers), found.unreadable) == (HEADERS_MAX, "there are more than 1,000 headers")


@pytest.mark.parametrize(
    "name", ["x-delivery-count", "x-acquired-count", "x-death", "x-first-death-queue", "x-first-seen"]
)
def test_what_is_added_on_the_way_does_not_count(name: str) -> None:
    """A message with as many headers as permitted is as valid when it is delivered again, or replayed."""
    headers = {**{f"h{number}": number for number in range(HEADERS_MAX)}, name: 1}
    found = decode(encode(Properties(headers=headers), 0))
    assert (len(found.headers), found.headers[name], found.unreadable) == (HEADERS_MAX + 1, 1, None)


def test_the_name_of_direct_reply_to_is_no_address() -> None:
    """RabbitMQ 4 hands it on from publishers of AMQP 1.0, and closes the channel that publishes a copy with it."""
    direct = "amq.rabbitmq.reply-to"
    assert decode(encode(Properties(reply_to=direct, message_id="m"), 0)) == Properties(message_id="m")
    assert decode(encode(Properties(reply_to=f"{direct}.g1.x"), 0)).reply_to == f"{direct}.g1.x"


def test_raw_entries_are_the_bytes_as_sent() -> None:
    """A dead-letter copy has the original headers byte for byte, with their types."""
    entries = (b"\x01as\0\x01", b"\x02bbS\0\0\0\x01x")
    assert raw_headers(decode(table(*entries)).table) == [(b"a", entries[0]), (b"bb", entries[1])]


def test_our_headers_follow_the_copied_ones() -> None:
    """The copied table comes before the headers that are given as values."""
    found = decode(encode(Properties(table=b"\x01as\0\x01", headers={"b": "x"}), 0))
    assert found.headers == {"a": 1, "b": "x"}
    assert found.table == b"\x01as\0\x01" + encode_header(("b", "x"))
