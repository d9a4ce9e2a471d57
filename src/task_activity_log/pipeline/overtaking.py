"""What is acknowledged while replies wait: no later request of a record before an earlier one that would be applied again.

A request whose reply waits for its address stays unacknowledged, so that it is delivered again if the worker dies. With a
key or a version it changes nothing then. Without both it is applied again; and if a later request of its record had been
acknowledged meanwhile, the older state would replace the newer one for good. So it is acknowledged together with the later
one. The same is done if its queue delivers nothing more before it. Its reply is still tried, and is lost if the worker ends
before the address takes it: order and the answers to others are promised, and such a reply is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic
from uuid import UUID

from task_activity_log.pipeline.ports import D, Settlement


class Overtaking(Generic[D]):
    """Decides which deliveries are acknowledged. No input or output."""

    def __init__(self) -> None:
        """No reply waits."""
        self._waiting: dict[UUID, list[Settlement[D]]] = {}

    def acknowledged(
        self,
        batch: Sequence[Settlement[D]],
        placed: Sequence[bool],
        has: Callable[[D], bool],
        holds_up: Callable[[D], bool],
    ) -> list[D]:
        """The deliveries of a batch that are acknowledged now, and those of earlier batches that must be before them.

        Args:
            batch: in the order in which it was stored.
            placed: for each settlement, whether nothing more is to be done for its reply.
            has: whether a delivery is in hand. Others come again, and need not be remembered.
            holds_up: whether its queue delivers nothing more before it is acknowledged.
        """
        if not self._waiting and all(placed):
            return [settlement.delivery for settlement in batch]
        self._forget(has)
        now: list[D] = []
        for settlement, done in zip(batch, placed, strict=True):
            if not done and holds_up(settlement.delivery):
                settlement.acknowledged = True
            elif not done:
                if settlement.record is not None and not settlement.protected:
                    self._waiting.setdefault(settlement.record, []).append(settlement)
                continue
            if settlement.record is not None:
                for earlier in self._waiting.pop(settlement.record, ()):
                    earlier.acknowledged = True
                    now.append(earlier.delivery)
            now.append(settlement.delivery)
        return now

    def _forget(self, has: Callable[[D], bool]) -> None:
        """Forget what is settled, and what was returned to the queue."""
        for record, settlements in list(self._waiting.items()):
            if left := [settlement for settlement in settlements if has(settlement.delivery)]:
                self._waiting[record] = left
            else:
                del self._waiting[record]
