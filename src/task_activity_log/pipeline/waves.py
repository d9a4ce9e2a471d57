"""Splits a batch into waves, and a wave into parts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import isqrt
from typing import TypeVar

from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request, UpdateMode

D = TypeVar("D", bound=Delivery)


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


def halve(wave: Sequence[Request[D]]) -> tuple[Sequence[Request[D]], Sequence[Request[D]]]:
    """The two halves of a wave of at least two requests. By halving, one bad row in n is found in O(log n) statements."""
    middle = len(wave) // 2
    return wave[:middle], wave[middle:]


def divide(wave: Sequence[Request[D]]) -> list[Sequence[Request[D]]]:
    """A wave of at least two requests in parts: about as many as each has requests, or single requests if it is small.

    For rows that are found only by waiting: one among 500 is alone after two of these waits, and not after nine.
    """
    size = isqrt(len(wave) - 1) + 1 if len(wave) > _SINGLY else 1
    return [wave[start : start + size] for start in range(0, len(wave), size)]


_SINGLY = 32
"""A statement takes a millisecond or two, so as many requests are sooner tried one by one than divided again."""
