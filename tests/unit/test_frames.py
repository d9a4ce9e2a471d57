"""The frame reader: whatever the cuts between reads, deliveries, confirms and returns are taken, and the driver gets the rest."""

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
from aiormq.base import FutureStore
from aiormq.exceptions import AMQPConnectionError
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, frame, heartbeat
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from task_activity_log.aio import Slices
from task_activity_log.message import Properties
from task_activity_log.rabbitmq import headers
from task_activity_log.rabbitmq.confirms import Batch, ConfirmChannel
from task_activity_log.rabbitmq.frames import FrameReader, Inbound, publish_frames, write
from task_activity_log.rabbitmq.link import LOST
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing

OURS, OTHER = 1, 2
BEAT = frame.marshal(heartbeat.Heartbeat(), 0)


def content(channel: int, *bodies: bytes, method: Frame, headers: str = "") -> list[bytes]:
    """The frames of a method with content, as the driver's library writes them."""
    what = commands.Basic.Properties(message_id=headers or None)
    size = sum(map(len, bodies))
    return [
        frame.marshal(method, channel),
        frame.marshal(ContentHeader(0, size, what), channel),
        *(frame.marshal(ContentBody(body), channel) for body in bodies),
    ]


def delivered(tag: int, *bodies: bytes, channel: int = OURS, redelivered: bool = False) -> list[bytes]:
    return content(channel, *bodies, method=Basic.Deliver("consumer", tag, redelivered, "exchange", "key"))


@pytest.fixture(autouse=True, scope="module")
def _one_slice() -> Iterator[None]:
    """There is no event loop that would go on after a slice of time."""
    with patch.object(Slices, "SECONDS", 3_600.0):
        yield


class Seen:
    """What a frame reader took, and what it handed on to the driver."""

    def __init__(self) -> None:
        self.taken: list[object] = []
        self.reader = asyncio.StreamReader(loop=cast("Any", _NoLoop()))
        self.frame_reader = FrameReader(self.reader, cast("Any", _NoLoop()))
        self.frame_reader.channels[OURS] = Inbound(
            deliver=lambda tag, again, header, body: self.taken.append((tag, again, headers.decode(header), body)),
            confirm=lambda tag, multiple, took: self.taken.append((tag, multiple, took)),
            returned=lambda exchange, key, header: self.taken.append((exchange, key, headers.decode(header))),
        )

    @property
    def handed_on(self) -> bytes:
        return bytes(self.reader._buffer)  # type: ignore[attr-defined]


class _NoLoop:
    def time(self) -> float:
        return 0.0

    def create_future(self) -> object:
        return SimpleNamespace(done=lambda: False)  # the reader asks when it goes

    def get_debug(self) -> bool:
        return False

    def call_soon(self, call: Callable[[], None]) -> None:
        call()


STREAMS = st.lists(
    st.one_of(
        st.builds(
            lambda tag, body, again: (delivered(tag, body, redelivered=again), True),
            st.integers(1, 2**63 - 1),
            # what a body must not be mistaken for: the method of a delivery, a frame's head
            st.binary(min_size=1, max_size=40) | st.sampled_from([b"\0\x3c\0\x3c" + b"\0" * 30, b"\1\0\1\0\0\0\x04"]),
            st.booleans(),
        ),
        st.builds(
            lambda a, b: (delivered(7, b"\0\x3c\0\x3c" + a, b"\0\x3c\0\x3c" + b), True), st.binary(), st.binary()
        ),
        st.just((delivered(8), True)),  # no body
        st.builds(lambda body: (delivered(9, body, channel=OTHER), False), st.binary(min_size=1, max_size=9)),
        st.just(([frame.marshal(Basic.Ack(5, multiple=True), OURS)], True)),
        st.just(([frame.marshal(Basic.Nack(6), OURS)], True)),
        st.just((content(OURS, b"body", method=Basic.Return(312, "NO_ROUTE", "", "queue"), headers="id"), True)),
        st.just(([frame.marshal(Basic.QosOk(), OURS)], False)),
        st.just(([BEAT], False)),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(STREAMS, st.lists(st.integers(1, 60)), st.booleans())
def test_cuts_in_the_stream_change_nothing(
    stream: list[tuple[list[bytes], bool]], cuts: list[int], beats: bool
) -> None:
    """The result is the same wherever the stream is cut and wherever heartbeats come."""
    between = BEAT if beats else b""
    data = b"".join(between.join(frames) for frames, _ in stream)
    others = b"".join(between.join(frames) if not ours else between * (len(frames) - 1) for frames, ours in stream)
    whole, cut = Seen(), Seen()
    whole.frame_reader.data_received(data)
    start = 0
    for size in cuts:
        cut.frame_reader.data_received(data[start : start + size])
        start += size
    cut.frame_reader.data_received(data[start:])
    assert cut.taken == whole.taken
    assert len(whole.taken) == sum(ours for _, ours in stream)
    assert cut.handed_on == whole.handed_on == others


def test_a_delivery_is_what_the_driver_would_read() -> None:
    """Tag, redelivered flag, properties and body are read whether the body has one, several or no frames."""
    seen = Seen()
    for frames in (delivered(3, b"one", redelivered=True), delivered(4, b"on", b"e"), delivered(5)):
        seen.frame_reader.data_received(b"".join(frames))
    assert seen.taken == [
        (3, True, Properties(), b"one"),
        (4, False, Properties(), b"one"),
        (5, False, Properties(), b""),
    ]


def test_the_driver_gets_no_properties() -> None:
    """It drops the connection when it cannot read them. Everything else of a message that is left to it stays."""
    got = Basic.GetOk(5, redelivered=False, exchange="", routing_key="queue", message_count=0)
    seen = Seen()
    for headers_of in ("id", ""):
        seen.frame_reader.data_received(b"".join(content(OURS, b"on", b"e", method=got, headers=headers_of)))
    assert not seen.taken
    assert seen.handed_on == 2 * b"".join(content(OURS, b"on", b"e", method=got))


def test_published_frames_are_what_the_driver_would_write() -> None:
    """The driver's library can read back the method, the header and a body of several frames."""
    header = headers.encode(Properties(content_type="text/json", delivery_mode=2, message_id="é"), 10)
    data = b"".join(
        publish_frames(OURS, "exchange", "key", mandatory=True, header=header, body=b"0123456789", frame_max=8 + 4)
    )
    read: list[Any] = []
    while data:
        size, channel, value = frame.unmarshal(data)
        assert channel == OURS
        read.append(value)
        data = data[size:]
    assert (read[0].exchange, read[0].routing_key, read[0].mandatory) == ("exchange", "key", True)
    assert (read[1].body_size, read[1].properties.content_type, read[1].properties.message_id) == (10, "text/json", "é")
    assert [part.value for part in read[2:]] == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("why", [None, AMQPConnectionError("reset")])
async def test_a_write_to_a_connection_that_is_closed_is_a_lost_one(why: Exception | None, *, before: bool) -> None:
    """Also when the driver has closed it in order: then the driver gives no reason."""
    store = FutureStore(asyncio.get_running_loop())
    connection = SimpleNamespace(write_queue=asyncio.Queue[Any]())
    channel = cast("Any", SimpleNamespace(create_future=store.create_future, connection=connection))
    if before:
        await store.reject_all(why)
    writing = asyncio.create_task(write(channel, [b"frame"]))
    await connection.write_queue.get()
    await store.reject_all(why)
    with pytest.raises(LOST, match="reset" if why else "closed"):
        await writing


def test_another_protocol_is_left_to_the_driver() -> None:
    """The driver reports a protocol error itself."""
    seen = Seen()
    seen.frame_reader.data_received(b"HTTP/1.1 400 Bad Request\r\n")
    assert seen.handed_on == b"HTTP/1.1 400 Bad Request\r\n"


@pytest.fixture
async def channel() -> ConfirmChannel:
    """A channel in confirm mode with two unconfirmed batches, of 3 and 2 messages."""
    made = ConfirmChannel(cast("Any", SimpleNamespace(closing=asyncio.get_running_loop().create_future())), 131_072)
    for first, count in ((1, 3), (4, 2)):
        batch = Batch(first, [Outgoing("", f"q{n}", Properties(message_id=f"m{n}"), b"") for n in range(count)])
        made._batches.append(batch)
    return made


C, R, N = Fate.CONFIRMED, Fate.RETURNED, Fate.NACKED


@pytest.mark.parametrize(
    ("words", "fates"),
    [
        ([(5, True, True)], [[C, C, C], [C, C]]),
        ([(2, True, True), (5, False, True), (3, False, False), (4, True, True)], [[C, C, N], [C, C]]),
        ([(4, False, False), (3, True, True), (5, True, True)], [[C, C, C], [N, C]]),
        ([(3, True, False), (5, True, True)], [[N, N, N], [C, C]]),
        ([(1, False, True), (3, True, False), (99, True, True)], [[C, N, N], [C, C]]),
    ],
)
async def test_confirms_are_matched_in_any_grouping(
    channel: ConfirmChannel, words: list[tuple[int, bool, bool]], fates: list[list[Fate]]
) -> None:
    """Each message gets the broker's first answer, single or `multiple`, and a batch ends with its last one."""
    batches = list(channel._batches)
    for tag, multiple, taken in words:
        assert not all(batch.done.done() for batch in batches)
        channel.confirm(tag, multiple, taken)
    assert all(batch.done.done() for batch in batches)
    assert [batch.fates for batch in batches] == fates
    assert not channel._batches


async def test_a_return_is_matched_to_its_message(channel: ConfirmChannel) -> None:
    """A return is matched by address and message_id to a message that is not confirmed yet."""
    batches = list(channel._batches)
    channel.confirm(1, False, True)

    def header(name: str) -> bytes:
        return headers.encode(Properties(message_id=name), 0)

    channel.returned("", "q0", header("m0"))  # 1 has been confirmed: it is 4, which has the same name
    channel.returned("", "q1", header("m2"))  # nobody's
    channel.confirm(5, True, True)
    assert [batch.fates for batch in batches] == [[C, C, C], [R, C]]


async def test_one_return_is_all_for_equal_messages(channel: ConfirmChannel) -> None:
    """Unconfirmed messages with the same address and message_id are repeats of one message: its queue is gone for all."""
    equal = [Outgoing("", "gone", Properties(message_id="m"), b"") for _ in range(3)]
    batch = Batch(6, [*equal, Outgoing("", "gone", Properties(message_id="other"), b"")])
    channel._batches.append(batch)
    for _ in equal:
        channel.returned("", "gone", headers.encode(Properties(message_id="m"), 0))
    channel.confirm(9, True, True)
    assert batch.fates == [R, R, R, C]


async def test_thousands_of_returns_look_at_each_message_once() -> None:
    """A search for each return would look at 5,000 messages 5,000 times."""
    looks = 0

    class Messages(list[Outgoing]):
        def __iter__(self) -> Iterator[Outgoing]:
            nonlocal looks
            looks += len(self)
            return super().__iter__()

        def __getitem__(self, index: Any) -> Any:
            nonlocal looks
            looks += 1
            return super().__getitem__(index)

    count = 5_000
    channel = ConfirmChannel(cast("Any", SimpleNamespace(closing=asyncio.get_running_loop().create_future())), 131_072)
    batch = Batch(1, Messages(Outgoing("", f"gone-{number}", Properties(), b"") for number in range(count)))
    channel._batches.append(batch)
    for number in range(count):
        channel.returned("", f"gone-{number}", headers.encode(Properties(), 0))
    assert batch.fates == [R] * count
    assert looks <= 2 * count
