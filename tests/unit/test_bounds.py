"""What is bounded in bytes and in time: batches, what is in hand, what is passed on, and slices of work."""

import asyncio
import gc
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from task_activity_log import wire
from task_activity_log.aio import Slices, Waiting
from task_activity_log.message import Properties
from task_activity_log.pipeline import reply, request
from task_activity_log.pipeline.batches import Decoding, Parts
from task_activity_log.pipeline.ports import Settlement
from task_activity_log.pipeline.request import Rules
from task_activity_log.problem import Code
from task_activity_log.rabbitmq import headers
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import FrameReader, Inbound
from task_activity_log.rabbitmq.weight import Budget, weigh
from task_activity_log.settings import load
from task_activity_log.wire import as_json
from task_activity_log.wiring import forward_prefetch_of
from tests.fakes import delivered, upsert
from tests.unit.test_frames import OURS, content
from tests.unit.test_frames import delivered as delivery_frames


async def test_a_batch_ends_at_its_weight() -> None:
    """It has the items that fit, in their order; one that does not fit alone is a batch by itself."""
    waiting: Waiting[str] = Waiting(10)
    for item, weight in (("a", 4), ("b", 6), ("c", 1), ("d", 11), ("e", 30), ("f", 0), ("g", 10)):
        waiting.put(item, weight)
    batches = [await waiting.take(5) for _ in range(5)]
    assert batches == [["a", "b"], ["c"], ["d"], ["e"], ["f", "g"]]
    for item in "hijk":
        waiting.put(item, 1)
    assert await waiting.take(3) == ["h", "i", "j"]
    waiting.clear()
    waiting.put("l", 10)
    waiting.put("m", 1)
    assert await waiting.take(5) == ["l"]
    assert waiting.take_waiting(5) == ["m"]
    assert waiting.take_waiting(5) == []


def test_what_is_put_first_keeps_its_order_and_its_weights() -> None:
    """So do the others behind it."""
    waiting: Waiting[str] = Waiting(10)
    for item, weight in (("a", 4), ("B", 6), ("c", 1), ("D", 5)):
        waiting.put(item, weight)
    waiting.put_first(str.isupper)
    assert [waiting.take_waiting(5), waiting.take_waiting(5)] == [["B"], ["D", "a", "c"]]


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, "é" * 100_000, "😀" + "a" * 200_000, "\\ud83d\\ude00" + "a" * 200_000, "short", "ж" * 100],
    ids=["ascii", "latin", "emoji", "escaped emoji", "short", "cyrillic"],
)
def test_a_delivery_weighs_at_least_its_text_as_decoded(text: str) -> None:
    """Python takes one, two or four bytes for each character, by the widest of them."""
    body = f'{{"id":"{uuid4()}","subject":"{text}"}}'.encode()
    record = wire.decode(body.decode(), wire.JSON)
    assert record.subject is not None
    assert weigh(body, b"", 0) >= max(len(body), sys.getsizeof(record.subject), sys.getsizeof(body.decode()))


def test_long_ascii_weighs_as_much_as_it_has_bytes() -> None:
    """Otherwise a backlog of long requests would be taken for four times as long."""
    assert weigh(b"a" * 100_000, b"", 0) < 102_000


def test_a_very_long_body_is_not_looked_at() -> None:
    """The event loop would stand still for 0.2 s if it had 128 MiB. It is taken to be wide."""
    assert weigh(b"a" * 2**22, b"", 0) == 4 * 2**22 + weigh(b"", b"", 0)


async def test_a_very_long_body_is_hashed_in_a_thread() -> None:
    """Its problem has a message_id that depends on the body. It is the same as that of the whole."""
    threads: list[int] = []
    body = b"a" * (2**21 + 1)

    def hashing(*parts: bytes) -> bytes:
        threads.append(threading.get_ident())
        return request.digest(*parts)

    with patch.object(reply, "digest", hashing):
        _, [settlement] = await Decoding[Any](Rules(), Slices()).all([delivered(body, "m")])
    assert threads[0] != threading.get_ident()
    assert settlement.problem is not None
    assert settlement.problem.code is Code.BODY_TOO_LARGE
    whole = (1).to_bytes(8, "big") + b"m" + len(body).to_bytes(8, "big") + body
    assert settlement.reply.seed == sha256(whole).digest()[:16]


def test_many_headers_weigh_what_their_objects_take() -> None:
    """A header of five bytes takes some 150 as an entry of a dictionary."""
    table = b"".join(b"\3%03dV" % number for number in range(1_000))
    header = headers.encode(Properties(table=table), 0)
    found = headers.decode(header).headers
    taken = sys.getsizeof(found) + sum(sys.getsizeof(name) for name in found)
    assert weigh(b"", header, len(found)) > taken > 10 * len(table)


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No slice ends because other processes keep this one waiting."""
    monkeypatch.setattr(Slices, "SECONDS", 3_600.0)


class Loop:
    """A loop whose timers run when they are told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_later(self, _seconds: float, call: Any) -> Any:
        self.timers.append(call)
        return SimpleNamespace(cancel=lambda: self.timers.remove(call))

    def call_soon(self, call: Any) -> None:
        self.timers.append(call)

    def run_timers(self) -> None:
        timers, self.timers = self.timers, []
        for call in timers:
            call()

    def create_future(self) -> object:
        return SimpleNamespace(done=lambda: False)

    def get_debug(self) -> bool:
        return False


class Socket(asyncio.Transport):
    """A transport that remembers whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self._reading = True

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def is_closing(self) -> bool:
        return False


class Intake:
    """A connection with a consumer that may have 10,000 bytes in hand."""

    def __init__(self) -> None:
        self.loop, self.socket = Loop(), Socket()
        self.driver = asyncio.StreamReader(loop=cast("Any", self.loop))
        self.reader = FrameReader(self.driver, cast("Any", self.loop))
        self.reader.connection_made(self.socket)
        self.waiting: Waiting[RabbitDelivery] = Waiting()
        channel = cast("Any", SimpleNamespace(on_consumer_cancel_callbacks=set(), number=OURS))
        self.budget = Budget(10_000)
        self.consumer = Consumer(channel, "queue", self.waiting, budget=self.budget)
        self.consumer._registered_as = "tag"
        self.reader.channels[OURS] = Inbound(deliver=self.consumer.deliver, full=self.consumer.full)

    def receive(self, *frames: bytes) -> None:
        self.reader.data_received(b"".join(frames))

    @property
    def tags(self) -> list[int]:
        return [delivery.tag for delivery in self.waiting._items]


def test_the_connection_is_not_read_while_too_much_is_in_hand() -> None:
    """It is read again when deliveries are settled. Meanwhile the driver gets heartbeats, as if the broker had sent them."""
    intake = Intake()
    intake.receive(*delivery_frames(1, b"x" * 2_000))
    assert intake.socket.is_reading()
    intake.receive(*delivery_frames(2, b"x" * 2_000))
    assert not intake.socket.is_reading()
    assert intake.reader.read_seconds == 0
    intake.loop.now = 3.0
    intake.loop.run_timers()
    assert not intake.socket.is_reading()
    assert bytes(intake.driver._buffer) == b"\x08\0\0\0\0\0\0\xce"  # type: ignore[attr-defined]
    del intake.consumer._unsettled[1]
    intake.loop.now = 4.0
    intake.loop.run_timers()
    assert intake.socket.is_reading()
    assert intake.reader.read_seconds == 1.0
    intake.receive(*delivery_frames(3, b"x"))
    assert intake.tags == [1, 2, 3]


def test_a_little_is_read_every_ten_seconds() -> None:
    """RabbitMQ closes a connection on which it can send nothing for 30 seconds."""
    intake = Intake()
    intake.receive(*delivery_frames(1, b"x" * 9_000))
    for now, tag in ((11.0, 2), (22.0, 3)):
        assert not intake.socket.is_reading()
        intake.loop.now = now - 2
        intake.loop.run_timers()
        assert not intake.socket.is_reading()
        intake.loop.now = now
        intake.loop.run_timers()
        assert intake.socket.is_reading()
        intake.receive(*delivery_frames(tag, b"x" * 2**20))
    assert not intake.socket.is_reading()
    assert intake.tags == [1, 2, 3]


def test_a_body_that_leaves_no_room_waits_until_nothing_is_in_hand() -> None:
    """It is announced with its size. Alone it is read, however long it is."""
    intake = Intake()
    intake.receive(*delivery_frames(1, b"x"))
    long = delivery_frames(2, b"x" * 50_000, b"x" * 50_000)
    intake.receive(*long[:2])
    assert not intake.socket.is_reading()
    intake.consumer._unsettled.clear()
    intake.loop.run_timers()
    assert intake.socket.is_reading()
    intake.receive(*long[2:])
    assert intake.tags == [1, 2]
    assert not intake.socket.is_reading()  # the next one waits until this one is settled


@dataclass(eq=False)
class InHand:
    """What one consumer has in hand."""

    weight: int = 0


def test_one_queue_may_have_all_the_room_and_all_together_no_more() -> None:
    """Which of them gives messages to this worker is not known: a worker may own one partition of sixteen, or all."""
    budget, first, second = Budget(1_000), InHand(), InHand()
    for holder in (first, second):
        budget.join(holder)
    for part in (600, 400):
        assert not budget.full(part)
        first.weight += part
        budget.take(part)
    assert budget.full(1)
    first.weight -= 400  # settled
    assert not budget.full(400)
    second.weight = 400
    budget.take(400)
    assert budget.full(1)
    budget.leave(first)  # its channel ends
    assert not budget.full(600)
    assert budget.full(601)


@pytest.mark.parametrize(
    ("variables", "prefetch"),
    [
        ({}, None),
        ({"WORKER_PARTITIONS": "8"}, 127),
        ({"WORKER_PARTITIONS": "8", "WORKER_BODY_LIMIT_BYTES": "1024"}, 1000),
        ({"WORKER_PARTITIONS": "8", "WORKER_BODY_LIMIT_BYTES": str(2**26)}, 1),
    ],
)
def test_what_waits_to_be_forwarded_leaves_room_for_what_is_in_the_partitions(
    variables: dict[str, str], prefetch: int | None
) -> None:
    """A partition that takes no messages can be emptied only if it can be read."""
    settings = load({"AMQP_URL": "amqp://broker", "DATABASE_URL": "postgresql://db/app", **variables})
    assert forward_prefetch_of(settings) == prefetch
    if prefetch is not None and prefetch > 1:
        assert prefetch * weigh(b"x" * settings.body_limit_bytes, b"", 0) <= settings.in_hand_bytes / 2


def test_a_message_that_is_too_heavy_for_all_the_room_comes_alone() -> None:
    """On whatever queue: it would stop the worker for ever."""
    budget, first, second = Budget(1_000), InHand(), InHand()
    budget.join(first)
    budget.join(second)
    assert not budget.full(5_000)
    first.weight = 1
    budget.take(1)
    assert budget.full(5_000)
    first.weight = 0
    assert not budget.full(5_000)


def test_consumers_that_are_gone_take_no_room() -> None:
    """Also one that nobody has told to leave."""
    budget, holder = Budget(1_000), InHand(1_000)
    budget.join(holder)
    budget.take(1_000)
    assert budget.full(1)
    del holder
    gc.collect()
    assert not budget.full(1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 700), st.booleans()), max_size=60))
def test_the_room_is_never_exceeded_and_never_lost(steps: Sequence[tuple[int, int, bool]]) -> None:
    """Whatever arrives and is settled on whatever queue."""
    budget, holders = Budget(1_000), [InHand() for _ in range(4)]
    for holder in holders:
        budget.join(holder)
    for number, weight, arrives in steps:
        used = sum(holder.weight for holder in holders)
        assert budget.full(weight) == (used > 0 and used + weight > 1_000)
        if not arrives:
            holders[number].weight = 0
        elif not budget.full(weight):
            holders[number].weight += weight
            budget.take(weight)


def test_bodies_that_arrive_at_the_same_time_need_room_for_all_of_them() -> None:
    """The frames of two channels may be mixed."""
    intake = Intake()
    other = Consumer(
        cast("Any", SimpleNamespace(on_consumer_cancel_callbacks=set(), number=OURS + 1)),
        "other",
        intake.waiting,
        budget=intake.budget,
    )
    other._registered_as = "tag"
    intake.reader.channels[OURS + 1] = Inbound(deliver=other.deliver, full=other.full)
    intake.receive(*delivery_frames(1, b"x"))
    first, second = delivery_frames(2, b"x" * 5_000), delivery_frames(1, b"x" * 5_000, channel=OURS + 1)
    intake.receive(*first[:2])
    assert intake.socket.is_reading()
    intake.receive(*second[:2])
    assert not intake.socket.is_reading()


def test_what_is_returned_is_not_in_hand() -> None:
    """A channel that ends, or a consumer that is cancelled, must not keep the connection from being read."""
    for end in (lambda one: one.consumer.abandon(), lambda one: setattr(one.consumer, "_registered_as", None)):
        intake = Intake()
        intake.receive(*delivery_frames(1, b"x" * 9_000))
        assert not intake.socket.is_reading()
        end(intake)
        intake.loop.run_timers()
        assert intake.socket.is_reading()


def test_frames_that_take_long_are_handled_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop runs between them, and nothing is lost."""
    monkeypatch.setattr(Slices, "SECONDS", -1.0)
    intake = Intake()
    frames = b"".join(b"".join(content(OURS, b"x", method=delivery_method(tag))) for tag in range(1, 4))
    intake.receive(frames)
    assert intake.tags == []
    assert not intake.socket.is_reading()
    intake.receive(b"")  # what comes although reading is paused is kept behind the rest
    monkeypatch.setattr(Slices, "SECONDS", 3_600.0)
    intake.loop.run_timers()
    assert intake.tags == [1, 2, 3]
    assert intake.socket.is_reading()


def test_a_slice_ends_when_the_event_loop_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop reads many times before the event loop runs: all of these are one slice."""
    clock = iter(range(0, 1_000, 8))  # each look at the clock is 8 ms later
    monkeypatch.setattr(Slices, "SECONDS", 0.02)
    monkeypatch.setattr("task_activity_log.rabbitmq.frames.perf_counter", lambda: next(clock) / 1_000)
    monkeypatch.setattr("task_activity_log.aio.time", SimpleNamespace(perf_counter=lambda: next(clock) / 1_000))
    intake = Intake()
    reads = 0
    while intake.socket.is_reading():
        reads += 1
        intake.receive()
    assert reads == 2
    intake.loop.run_timers()
    assert intake.socket.is_reading()


def delivery_method(tag: int) -> Any:
    return Basic.Deliver("consumer", tag, False, "", "key")


async def test_the_loop_runs_while_a_batch_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of each slice; here each message is one."""
    monkeypatch.setattr(Slices, "SECONDS", -1.0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    requests, rejected = await Decoding[Any](Rules(), Slices()).all([*(upsert() for _ in range(5)), delivered(b"{")])
    counting.cancel()
    assert turns >= 6
    assert len(requests) == 5
    assert [each.problem.code for each in rejected if each.problem] == [Code.MALFORMED_JSON]


async def test_long_replies_are_passed_on_in_parts() -> None:
    """A part ends with the reply that exceeds its bytes. The next is not begun before the one before is taken."""
    stored: asyncio.Queue[list[Settlement[Any]] | None] = asyncio.Queue(maxsize=1)
    parts: Parts[Any] = Parts(stored, 100)

    def settlement(name: str, size: int) -> Settlement[Any]:
        return Settlement(name, cast("Any", SimpleNamespace(body=b"x" * size)))

    sizes = {"a": 60, "b": 60, "c": 500, "d": 10, "e": 10}
    adding = asyncio.create_task(parts.add_all(settlement(name, size) for name, size in sizes.items()))
    taken = []
    for _ in range(2):
        part = await stored.get()
        assert part is not None
        taken.append([each.delivery for each in part])
    await adding
    for _ in range(2):
        await parts.pass_on()
        last = stored.get_nowait()
        assert last is not None
        taken.append([each.delivery for each in last])
    assert taken == [["a", "b"], ["c"], ["d", "e"], []]


def test_json_is_as_deep_as_its_brackets() -> None:
    """Brackets in strings, and quotation marks in those, do not count."""
    values: list[object] = [1, [], [[{}], []], {"[": "]]]"}, {'"[[': ['\\"[', "é[", [[]]]}]
    for value in values:
        assert as_json._depth(json.dumps(value, ensure_ascii=False)) == depth(value)


def depth(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0
