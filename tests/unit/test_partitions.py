"""Hash slots and the partitions they belong to."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from task_activity_log.cli.partitions import plan, show_or_change
from task_activity_log.partitions import hash_slot, is_partition_count, partition_of, queue_of, slots_of
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.link import OutageKind
from task_activity_log.rabbitmq.repartition import Partition, Partitions, _look_up
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import load


def test_the_example_in_the_contract_is_right() -> None:
    contract = Path("docs/contract/README.md").read_text(encoding="utf-8")
    example = "00000000-0000-4000-8000-000000000001"
    assert f"`{example}` has the slot `{hash_slot(UUID(example))}`" in contract


def test_the_slot_is_the_first_byte_of_sha_256_of_the_id_as_text() -> None:
    record_id = UUID("0190163D-8694-739B-AEA5-966C26F8AD91")
    assert hash_slot(record_id) == hashlib.sha256(b"0190163d-8694-739b-aea5-966c26f8ad91").hexdigest()[:2] == "65"


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_each_slot_is_in_one_partition(count: int) -> None:
    slots = [slot for partition in range(count) for slot in slots_of(partition, count)]
    assert slots == [f"{slot:02x}" for slot in range(256)]
    assert all(partition_of(slot, count) == number for number in range(count) for slot in slots_of(number, count))


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32, 64, 128])
def test_doubling_divides_each_partition_into_two(count: int) -> None:
    for partition in range(count):
        halves = [*slots_of(2 * partition, 2 * count), *slots_of(2 * partition + 1, 2 * count)]
        assert halves == list(slots_of(partition, count))


@pytest.mark.parametrize("count", [-8, -1, 0, 3, 6, 12, 100, 255, 257, 512])
def test_other_numbers_of_partitions_are_refused(count: int) -> None:
    assert not is_partition_count(count)


def test_the_topology_binds_each_slot_once() -> None:
    topology = Topology(partitions=16)
    bound = {key: queue for queue, exchange, key in topology.bindings() if exchange == topology.partitions_exchange}
    assert bound == {f"{slot:02x}": queue_of("task_activity_log.upsert", slot // 16) for slot in range(256)}
    assert all((topology.queues()[each] or {})["x-single-active-consumer"] is True for each in topology.request_queues)


def test_without_partitions_the_topology_is_as_it_was() -> None:
    assert set(Topology().queues()) == {
        "task_activity_log.upsert",
        "task_activity_log.replies",
        "task_activity_log.dead-letters",
    }
    assert "x-single-active-consumer" not in (Topology().queues()["task_activity_log.upsert"] or {})


class Broker:
    """A connection to a broker that has these partitions. It closes a channel that asks for what does not exist."""

    def __init__(self, *numbers: int) -> None:
        self._queues = {queue_of(Topology().requests_queue, number) for number in numbers} | {Topology().requests_queue}
        self.opened = 0
        self.open = 0

    async def channel(self) -> Any:
        self.opened += 1
        self.open += 1

        async def ask(name: str, *, passive: bool = True) -> Any:
            assert passive
            if name not in self._queues and name != Topology().partitions_exchange:
                self.open -= 1
                raise ChannelNotFoundEntity
            return SimpleNamespace(declaration_result=SimpleNamespace(message_count=1, consumer_count=0))

        return SimpleNamespace(declare_queue=ask, get_exchange=ask)


@pytest.mark.parametrize(
    "numbers",
    [
        (),
        range(1),
        range(8),
        range(256),
        range(7),  # the declaration was interrupted
        range(3, 8),  # the deletion was interrupted
        range(200, 256),
        (0, 1, 2, 3, 5, 6, 7),  # somebody has deleted one
        (0, 1, 2, 3, 4, 5, 6, 9, 15),
    ],
)
async def test_the_partitions_are_found_over_few_channels(numbers: Collection[int]) -> None:
    """One after the other, and one more only where the broker has closed the one before."""
    broker = Broker(*numbers)
    found = await _look_up(cast("Any", broker), Topology())
    assert list(found.found) == list(numbers)
    assert found.messages == len(numbers) + 1  # and the one in the requests queue
    assert broker.open == 1
    missing = max(numbers, default=-1) + 1 - len(numbers)
    assert broker.opened <= 12 + missing


REQUESTS = Partition(Topology().requests_queue, 1, 1)
QUEUES = {number: Partition(queue_of(REQUESTS.queue, number), 3, 0) for number in range(2)}


@pytest.mark.parametrize(
    ("there", "to", "now", "said", "unsaid"),
    [
        (Partitions({}, False, REQUESTS), 4, "0 partitions, 1 message, consumers on 1 queue", "4 queues", "by"),
        (
            Partitions(QUEUES, True, REQUESTS),
            4,
            "2 partitions, 7 messages, consumers on 1 queue",
            "by-record",
            "WORKER_PARTITIONS=2",
        ),
        (
            Partitions(QUEUES, False),
            4,
            "an unfinished change, 6 messages, consumers on 0 queues",
            "4 queues",
            "by-record",
        ),
        (Partitions({}, True, REQUESTS), 0, "an unfinished change, 1 message", "by-record", "Stop"),
        (Partitions(QUEUES, True), 0, "2 partitions, 6 messages", "without WORKER_PARTITIONS", "It declares"),
    ],
)
def test_the_steps_are_those_that_apply(there: Partitions, to: int, now: str, said: str, unsaid: str) -> None:
    """The requests queue counts, too. An exchange is deleted, and publishers are stopped, only where there are some."""
    steps = plan(there, Topology(partitions=to))
    assert steps.startswith(f"Now: {now}")
    assert said in steps
    assert unsaid not in steps
    assert steps.endswith("\nNothing was changed.")


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("connection refused", "run the same command again"),
        ("ACCESS_REFUSED - configure access to queue 'a' refused", "use a user with the permissions of a worker"),
        (OutageKind.VHOST_REFUSED.value, "correct AMQP_URL"),
    ],
)
def test_what_to_do_about_a_broker_that_does_not_answer_or_refuses(
    reason: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To try again helps nobody who lacks a permission."""

    async def fail(*_: object) -> None:
        raise Unavailable(reason)

    monkeypatch.setattr("task_activity_log.cli.partitions.look_up", fail)
    settings = load({"AMQP_URL": "amqp://broker/", "DATABASE_URL": "postgresql://database/app"})
    assert show_or_change(settings, None, yes=False) == 1
    assert f"broker broker/: {reason}; {advice}" in capsys.readouterr().err
