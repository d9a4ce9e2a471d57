"""Which partitions a worker hands over, and where it leaves its place in the line."""

from random import Random

import pytest

from benchmarks.balance import Model
from task_activity_log.rabbitmq.balance import Balance, Moves


def balance(seed: int = 1, partitions: int = 8) -> Balance:
    return Balance(partitions, Random(seed))  # noqa: S311 - chance that can be repeated


def decided(active: int, *, partitions: int = 8, workers: int, short: int = 0) -> Moves:
    return balance(partitions=partitions).decide(range(active), workers, short)


def test_a_single_worker_keeps_everything() -> None:
    assert not decided(8, workers=1).hand_over


@pytest.mark.parametrize(("active", "workers", "handed_over"), [(8, 2, 2), (5, 2, 1), (4, 2, 0), (3, 3, 0), (4, 3, 1)])
def test_half_of_what_is_too_much_is_handed_over(active: int, workers: int, handed_over: int) -> None:
    assert len(decided(active, workers=workers).hand_over) == handed_over


def test_one_partition_goes_to_whoever_is_short_even_if_nobody_has_too_much() -> None:
    # 8 partitions and 5 workers: 2, 2, 2, 2 and 0 are within the largest share.
    moves = [balance(seed).decide(range(2), 5, 1) for seed in range(200)]
    given = sum(len(each.hand_over) for each in moves)
    assert set(map(len, (each.hand_over for each in moves))) == {0, 1}
    assert 40 < given < 100, "three workers can have two, so each gives one away in about a third of the cases"


def test_whoever_is_short_keeps_its_place_in_every_line() -> None:
    worker = balance()
    assert not worker.decide({0}, 2, 1)
    assert worker.short


def test_whoever_has_its_share_leaves_its_place_once() -> None:
    worker = balance()
    assert worker.decide({0, 1, 2, 3}, 2, 0).rejoin == {4, 5, 6, 7}
    assert not worker.decide({0, 1, 2, 3}, 2, 0)


def test_it_leaves_its_place_again_when_the_share_changes_or_others_stay_short() -> None:
    worker = balance()
    worker.decide({0, 1}, 4, 0)
    assert worker.decide({0, 1}, 3, 0).rejoin == {2, 3, 4, 5, 6, 7}
    again = [bool(worker.decide({0, 1}, 3, 1).rejoin) for _ in range(7)]
    assert again.count(True) == 1


@pytest.mark.parametrize(("partitions", "workers"), [(8, 3), (8, 5), (8, 8), (8, 11), (16, 5), (64, 10), (256, 20)])
def test_workers_that_come_and_go_get_their_shares(partitions: int, workers: int) -> None:
    model = Model(partitions, seed=partitions + workers)
    for _ in range(workers):
        model.start()
    assert model.seconds_to_balance(300) < 300
    for worker in sorted(model.workers)[: workers // 2]:
        model.stop(worker)
    assert model.seconds_to_balance(300) < 300
    model.run(5)  # until all know that nobody is short any more
    before = model.handed_over
    model.run(60)
    assert model.handed_over == before, "partitions are handed over although everybody has its share"
