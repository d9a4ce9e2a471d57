"""Splits a batch into waves, and a wave into parts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TypeVar

from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request, UpdateMode

D = TypeVar("D", bound=Delivery)
T = TypeVar("T")


def waves(requests: Sequence[Request[D]]) -> list[list[Request[D]]]:
    """Split a batch into waves. Each wave contains an id once and has one update mode; requests of one id keep their order.

    One statement cannot update a row twice (SQLSTATE 21000), and it cannot both replace and merge.
    """
    split: list[list[Request[D]]] = []
    by_mode: dict[UpdateMode, list[int]] = {mode: [] for mode in UpdateMode}
    earliest: dict[object, int] = {}
    for request in requests:
        candidates = by_mode[request.mode]
        position = bisect_left(candidates, earliest.get(request.record.id, 0))
        if position == len(candidates):
            candidates.append(len(split))
            split.append([])
        index = candidates[position]
        split[index].append(request)
        earliest[request.record.id] = index + 1
    return split


def halve(wave: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """The two halves of a wave of at least two requests. By halving, one bad row in n is found in O(log n) statements."""
    middle = len(wave) // 2
    return wave[:middle], wave[middle:]
