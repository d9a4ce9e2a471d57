"""Splitting a batch into waves, halving a wave, and the queue from which batches are taken."""

import asyncio
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.pipeline.waves import halve, waves
from task_activity_log.record import TaskActivityLog
from tests.fakes import delivered


def request(number: int, mode: UpdateMode = UpdateMode.REPLACE) -> Request[Delivery]:
    return Request(
        delivery=delivered(b""),
        record=TaskActivityLog(id=UUID(int=number + 1)),
        media_type="application/json",
        mode=mode,
        version=None,
        key=None,
    )


batches = st.lists(st.builds(request, st.integers(0, 5), st.sampled_from(UpdateMode)), max_size=40)


@given(batches)
def test_waves_hold_each_request_once(batch: list[Request[Delivery]]) -> None:
    """Splitting neither loses nor duplicates a request."""
    split = [id(one) for wave in waves(batch) for one in wave]
    assert sorted(split) == sorted(id(one) for one in batch)


@given(batches)
def test_a_wave_holds_an_id_once_and_one_mode(batch: list[Request[Delivery]]) -> None:
    """One statement cannot update a row twice, and cannot both replace and merge."""
    for wave in waves(batch):
        assert len({one.record.id for one in wave}) == len(wave)
        assert len({one.mode for one in wave}) == 1


@given(batches)
def test_the_requests_of_an_id_stay_in_order(batch: list[Request[Delivery]]) -> None:
    """Across all waves the requests of an id are in delivery order."""
    flat = [one for wave in waves(batch) for one in wave]
    for identifier in {one.record.id for one in batch}:
        assert [id(one) for one in flat if one.record.id == identifier] == [
            id(one) for one in batch if one.record.id == identifier
        ]


def test_distinct_ids_are_one_wave() -> None:
    """In the common case a batch is one statement."""
    assert len(waves([request(number) for number in range(500)])) == 1


@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_two_halves_make_the_whole_wave(size: int) -> None:
    """Neither half is empty, so halving ends; together they have all requests, in order."""
    wave = [request(number) for number in range(size)]
    first, second = halve(wave)
    assert first
    assert second
    assert [*first, *second] == wave
    assert abs(len(first) - len(second)) <= 1


async def test_taking_waits_for_the_first_item_and_takes_all_that_are_waiting() -> None:
    """There is no timer: one message is a batch of one, and three waiting messages are a batch of three."""
    waiting: Waiting[int] = Waiting()
    taking = asyncio.create_task(waiting.take(10))
    await asyncio.sleep(0)
    waiting.put(1)
    assert await taking == [1]
    for number in (2, 3, 4):
        waiting.put(number)
    assert await waiting.take(2) == [2, 3]
    assert await waiting.take(2) == [4]


async def test_closing_wakes_the_taker_and_gives_out_no_more() -> None:
    """Waiting items are not taken, so that they can be requeued."""
    waiting: Waiting[int] = Waiting()
    taking = asyncio.create_task(waiting.take(10))
    await asyncio.sleep(0)
    waiting.close()
    assert await taking == []
    waiting.put(1)
    assert await waiting.take(10) == []
    assert len(waiting) == 1


async def test_cleared_items_are_not_taken() -> None:
    """Deliveries of a lost channel are delivered again by the broker."""
    waiting: Waiting[int] = Waiting()
    waiting.put(1)
    waiting.clear()
    waiting.put(2)
    assert await waiting.take(10) == [2]
