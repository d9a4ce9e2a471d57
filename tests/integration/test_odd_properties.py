"""Each message is answered, whatever its AMQP properties and headers are. They are published as raw bytes."""

import asyncio
import json
import struct
from contextlib import AbstractAsyncContextManager
from uuid import uuid4

import aio_pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from task_activity_log.rabbitmq.frames import publish_frames, write
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.service import Service
from tests.serving import serving

TOPOLOGY = Topology()


def header(body: bytes, flags: int, values: bytes) -> bytes:
    return struct.pack(">HHQH", 60, 0, len(body), flags) + values


def short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def table(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


SIZES = {
    b"t": 1,
    b"b": 1,
    b"B": 1,
    b"s": 2,
    b"u": 2,
    b"I": 4,
    b"i": 4,
    b"l": 8,
    b"D": 5,
    b"T": 8,
    b"V": 0,
}
# The broker itself reads these two headers, and refuses a publish in which they are not lists of strings.
TEXT = st.binary(max_size=60).filter(lambda name: name not in (b"CC", b"BCC")).map(short)
FINITE = st.floats(allow_nan=False, allow_infinity=False)  # any other one is an internal error of the broker
VALUE = st.recursive(
    st.one_of(
        *(st.binary(min_size=size, max_size=size).map(kind.__add__) for kind, size in SIZES.items()),
        FINITE.filter(lambda value: abs(value) < 1e38).map(lambda value: b"f" + struct.pack(">f", value)),
        FINITE.map(lambda value: b"d" + struct.pack(">d", value)),
        st.tuples(st.sampled_from((b"S", b"x")), st.binary(max_size=200).map(table)).map(b"".join),
    ),
    lambda value: st.one_of(
        st.lists(value, max_size=3).map(lambda values: b"A" + table(b"".join(values))),
        st.lists(st.tuples(TEXT, value).map(b"".join), max_size=3).map(lambda entries: b"F" + table(b"".join(entries))),
    ),
    max_leaves=5,
)
OCTET, EIGHT = (st.binary(min_size=size, max_size=size) for size in (1, 8))
MODE = st.sampled_from([b"\1", b"\2"])
HEADERS = st.lists(st.tuples(TEXT, VALUE).map(b"".join), max_size=6).map(lambda entries: table(b"".join(entries)))
# The broker accepts only valid values of delivery mode, expiration and user_id.
PARTS = {15: TEXT, 14: TEXT, 13: HEADERS, 12: MODE, 11: OCTET, 10: TEXT, 9: TEXT, 8: st.just(short(b"600000"))}
PARTS |= {7: TEXT, 6: EIGHT, 5: TEXT, 3: TEXT, 2: TEXT}


@st.composite
def odd_headers(draw: st.DrawFn) -> tuple[int, bytes]:
    """Flags and values of a content header: any bytes for strings, any timestamp, tables of every type."""
    flags, values = 0, b""
    for bit, strategy in PARTS.items():
        if draw(st.booleans()):
            flags |= 1 << bit
            values += draw(strategy)
    return flags, values


def patient(amqp_url: str, database_url: str) -> AbstractAsyncContextManager[Service]:
    """A worker whose connections survive missed heartbeats on a busy machine, and which always replies to the exchange.

    A random reply_to leads to no queue.
    """
    return serving(amqp_url, database_url, WORKER_AMQP_HEARTBEAT_SECONDS="120", WORKER_REPLIES="both")


async def answers_to(amqp_url: str, sent: list[tuple[bytes, bytes]]) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Publish content headers and bodies as they are; return one reply for each."""
    async with await aio_pika.connect(amqp_url) as connection:
        opened = await connection.channel(publisher_confirms=False)
        channel = await opened.get_underlay_channel()
        for head, body in sent:
            await write(
                channel,
                publish_frames(
                    channel.number,
                    TOPOLOGY.requests_exchange,
                    "upsert",
                    mandatory=False,
                    header=head,
                    body=body,
                    frame_max=131_072,
                ),
            )
        replies: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        await (await opened.get_queue(TOPOLOGY.replies_queue)).consume(replies.put, no_ack=True)
        async with asyncio.timeout(100):
            return [await replies.get() for _ in sent]


def lost_connections(service: Service) -> float:
    return sum(
        service.metrics.registry.get_sample_value("task_activity_log_connections_lost_total", {"link": link}) or 0
        for link in ("intake", "replies")
    )


async def test_random_properties_are_answered_and_the_connection_is_kept(amqp_url: str, database_url: str) -> None:
    """Each of three hundred random messages gets a reply, and no connection is lost."""
    sent: list[tuple[bytes, bytes]] = []

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(odd_headers())
    def collect(odd: tuple[int, bytes]) -> None:
        body = json.dumps({"id": str(uuid4())}).encode()
        sent.append((header(body, *odd), body))

    collect()
    async with patient(amqp_url, database_url) as service:
        replies = await answers_to(amqp_url, sent)
        assert len(replies) == len(sent)
        assert lost_connections(service) == 0


LATIN1 = short("Müller".encode("latin-1"))


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        pytest.param(1 << 10, LATIN1, id="correlation_id_in_latin1"),
        pytest.param(1 << 7, LATIN1, id="message_id_in_latin1"),
        pytest.param(1 << 6, (639_000_000_000_000_000).to_bytes(8, "big"), id="timestamp_in_dotnet_ticks"),
        pytest.param(1 << 6, b"\xff" * 8, id="largest_timestamp"),
        pytest.param(1 << 13, table(LATIN1 + b"t\x01"), id="header_name_in_latin1"),
        pytest.param(1 << 13, table(short(b"at") + b"T" + b"\xff" * 8), id="header_timestamp_out_of_range"),
    ],
)
async def test_undecodable_properties_are_rejected_as_invalid_properties(
    amqp_url: str, database_url: str, flags: int, values: bytes
) -> None:
    """Problem and dead letter have the readable properties, and other drivers can read the dead letter."""
    body = json.dumps({"id": str(uuid4())}).encode()
    async with patient(amqp_url, database_url) as service:
        (reply,) = await answers_to(amqp_url, [(header(body, flags, values), body)])
        assert json.loads(reply.body)["code"] == "invalid_properties"
        assert lost_connections(service) == 0
    async with await aio_pika.connect(amqp_url) as connection:
        queue = await (await connection.channel()).get_queue(TOPOLOGY.dead_letters_queue)
        kept = await queue.get(no_ack=True)
        assert kept is not None
        assert kept.body == body
        assert kept.headers["x-error-code"] == "invalid_properties"


async def test_headers_near_the_frame_limit_are_answered(amqp_url: str, database_url: str) -> None:
    """A header table may fill its frame with one value, with thousands, which are too many, or with nested tables."""
    body = json.dumps({"id": str(uuid4())}).encode()
    room = 131_072 - 8 - 14 - 4 - 50
    many = b"".join(short(b"n%05d" % number) + b"t\x01" for number in range(room // 9))
    # Not deeper: the broker's time grows with depth times size.
    nested = short(b"n") + b"x" + table(b"\xff" * (room - 301 * 7))
    for _ in range(300):
        nested = short(b"n") + b"F" + table(nested)
    tables = [short(b"large") + b"S" + table(b"x" * (room - 20)), many, nested]
    assert all(room - 20 < len(one) <= room for one in tables)
    async with patient(amqp_url, database_url) as service:
        replies = await answers_to(amqp_url, [(header(body, 1 << 13, table(t)), body) for t in tables])
        assert sorted(str(reply.headers["x-outcome"]) for reply in replies) == ["inserted", "rejected", "updated"]
        assert lost_connections(service) == 0


async def test_a_rejected_message_with_headers_near_the_frame_limit_is_kept(amqp_url: str, database_url: str) -> None:
    """Its `x-first-seen`, which a copy keeps, may fill the frame by itself."""
    forged = short(b"x-first-seen") + b"S" + table(b"x" * 130_900)
    async with patient(amqp_url, database_url) as service:
        (reply,) = await answers_to(amqp_url, [(header(b"", 1 << 13, table(forged)), b"")])
        assert reply.headers["x-error-code"] == "empty_body"
        assert lost_connections(service) == 0


async def test_a_delivery_count_from_the_publisher_is_ignored(amqp_url: str, database_url: str) -> None:
    """Otherwise a publisher could have any message rejected as poison."""
    body = json.dumps({"id": str(uuid4())}).encode()
    forged = short(b"x-delivery-count") + b"l" + (100).to_bytes(8, "big")
    async with patient(amqp_url, database_url):
        (reply,) = await answers_to(amqp_url, [(header(body, 1 << 13, table(forged)), body)])
        assert reply.headers["x-outcome"] == "inserted"
