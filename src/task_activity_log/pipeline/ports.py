"""What the worker needs from the outside. `rabbitmq`, `postgresql` and `telemetry` provide it.

Their classes match these protocols by structure. The worker imports none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from task_activity_log.message import Delivery
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import Problem, Unavailable
from task_activity_log.record import Applied, Outcome

D = TypeVar("D", bound=Delivery)
D_contra = TypeVar("D_contra", bound=Delivery, contravariant=True)


@dataclass(slots=True)  # not frozen, because creating a frozen instance takes three times as long
class Settlement(Generic[D]):
    """What must be done before a delivery may be acknowledged. It is not modified."""

    delivery: D
    reply: Reply
    problem: Problem | None = None
    """Why the message is dead-lettered; None if it is not."""


class Intake(Protocol[D]):
    """Where deliveries come from and where they are settled.

    No method fails. A delivery that is settled too late, after its channel was lost, is delivered again.
    """

    @property
    def in_hand(self) -> int:
        """How many deliveries are unsettled."""

    async def take(self, most: int) -> list[D]:
        """Wait for the next batch, in delivery order; empty if the worker drains."""

    def take_waiting(self, most: int) -> list[D]:
        """Take the deliveries that are waiting now; may be empty."""

    async def acknowledge(self, deliveries: Sequence[D]) -> None:
        """Acknowledge these deliveries."""

    async def prove(self, deliveries: Sequence[D]) -> None:
        """These were processed safely, although they cannot be acknowledged yet.

        A consumer that delivers one message at a time at first may go on to its full prefetch.
        """

    async def pause(self, by: str) -> None:
        """Stop new deliveries until `resume` is called with the same name."""

    async def resume(self, by: str) -> None:
        """Consume again, one message at a time at first."""

    async def requeue(self, *, one_by_one: bool = False) -> int:
        """Return all unsettled deliveries to the queue. With `one_by_one` they are delivered again one at a time."""


class Store(Protocol):
    """Where records are kept."""

    async def apply(self, wave: Sequence[Request[Delivery]]) -> list[Applied]:
        """Write a wave and return the outcome of each of its requests, in the wave's order.

        Raises:
            Refused: the database refuses a value in the wave.
            TimedOut: the statement took too long. A smaller wave may pass.
            Unavailable: the database cannot be used.
        """

    async def read(self, request: Request[Delivery], outcome: Outcome) -> Applied:
        """The outcome of a request that was stored, with its record as it is now: for one that was left unread.

        Raises:
            Unavailable: the database cannot be used.
        """

    async def probe(self) -> None:
        """Prove that writing is possible, without writing anything.

        Raises:
            Unavailable: it is not possible.
        """


class Replies(Protocol):
    """Where replies go."""

    async def publish(self, replies: Sequence[Reply]) -> list[bool]:
        """Publish replies and return, for each, whether nothing more is to be done for it.

        True: it is confirmed or was given up. False: its address refuses it at present; publish it again soon.

        Raises:
            Unavailable: publish all of them again later.
        """


class DeadLetters(Protocol[D_contra]):
    """Where rejected messages are kept."""

    async def keep(self, rejected: Sequence[tuple[D_contra, Problem]]) -> None:
        """Return when a copy of each message is confirmed.

        Raises:
            Unavailable: keep all of them again later.
        """


class Watch(Protocol):
    """Counts, times and logs (see `telemetry`). It is called once per batch, so that it costs little per message."""

    def took(self, stage: Literal["decode", "store", "reply"], seconds: float) -> None:
        """A stage took this long for one batch."""

    def answered(self, settlements: Sequence[Settlement[D]]) -> None:
        """A batch was answered and settled."""

    def held(self, place: str, outage: Unavailable) -> None:
        """Work at `place` failed because of an outage and will be tried again."""

    def released(self, place: str, seconds: float) -> None:
        """Work at `place` succeeded after it had been held for this long."""

    def set_apart(self, suspects: Sequence[D]) -> None:
        """These deliveries will be tried alone."""
