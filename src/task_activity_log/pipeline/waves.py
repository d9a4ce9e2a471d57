"""Splits a batch into waves, and a wave into halves."""

from collections.abc import Sequence
from typing import TypeVar

from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request, UpdateMode

D = TypeVar("D", bound=Delivery)


def waves(requests: Sequence[Request[D]]) -> list[list[Request[D]]]:
    """Split a batch into waves. Each wave contains an id once and has one update mode; requests of one id keep their order.

    One statement cannot update a row twice (SQLSTATE 21000), and it cannot both replace and merge.
    """
    split: list[tuple[UpdateMode, list[Request[D]]]] = []
    earliest: dict[object, int] = {}
    for request in requests:
        index = earliest.get(request.record.id, 0)
        while index < len(split) and split[index][0] is not request.mode:
            index += 1
        if index == len(split):
            split.append((request.mode, []))
        split[index][1].append(request)
        earliest[request.record.id] = index + 1
    return [wave for _, wave in split]


def halve(wave: Sequence[Request[D]]) -> tuple[Sequence[Request[D]], Sequence[Request[D]]]:
    """The two halves of a wave of at least two requests. By halving, one bad row in n is found in O(log n) statements."""
    middle = len(wave) // 2
    return wave[:middle], wave[middle:]
