"""What the worker needs from the outside. `rabbitmq`, `postgresql` and `telemetry` provide it.

Their classes match these protocols by structure. The worker imports none of them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar
from uuid import UUID

from task_activity_log.message import Delivery
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import Failed, Problem, Unavailable
from task_activity_log.record import Applied, Outcome, TaskActivityLog

D = TypeVar("D", bound=Delivery)
D_contra = TypeVar("D_contra", bound=Delivery, contravariant=True)


@dataclass(slots=True)  # not frozen, because creating a frozen instance takes three times as long
class Settlement(Generic[D]):
    """What must be done before a delivery may be acknowledged."""

    delivery: D
    reply: Reply
    """Replaced by a problem when it is published, if the broker would not take it. Nothing else is modified."""
    problem: Problem | None = None
    """Why the message is dead-lettered; None if it is not."""
    answers: bool = True
    """Whether the reply is published. An answer to one of our own replies could come back again and again."""
    record: UUID | None = None
    """The record that was stored; None if the message is rejected."""
    asked: UUID | None = None
    """The record that was asked for, if the message was decoded and is rejected all the same."""
    protected: bool = True
    """Whether the request changes nothing when it is delivered again, because it has a key or a version."""
    acknowledged: bool = False
    """Whether the delivery was acknowledged although the reply still waits; see `overtaking`. Then nobody delivers it again."""


Stored: TypeAlias = "asyncio.Queue[list[Settlement[D]] | None]"
"""What must be settled, batch by batch, in the order in which it was stored; None at the end."""


class Intake(Protocol[D]):
    """Where deliveries come from and where they are settled.

    No method fails. A delivery that is settled too late, after its channel was lost, is delivered again.
    """

    @property
    def in_hand(self) -> int:
        """How many deliveries are unsettled."""

    def has(self, delivery: D) -> bool:
        """Whether this delivery is unsettled: it was not requeued meanwhile, and its channel is not lost.

        If it is not, the message is delivered again, perhaps to another worker, which may have stored later messages of
        its record by now. So it must not be stored for this delivery any more.
        """
        ...

    async def take(self, most: int) -> list[D] | None:
        """Wait for the next batch, in delivery order; None if the worker drains.

        An empty batch says that nothing more is to be taken before `renew` is called.
        """

    def coming(self, most: int) -> Sequence[D]:
        """What may be taken next, as far as it has arrived, at most `most`. It is not taken, and may go back to the queue."""
        ...

    def set_apart(self, suspects: Sequence[D]) -> bool:
        """Whether these, of which the first one is about to be tried alone, must come again one by one before that.

        Then nothing more is to be taken before `renew` is called.
        """
        ...

    async def renew(self) -> None:
        """Return what is unsettled to the queue, in order, and consume again.

        To be called after an empty batch or `set_apart`, when all that was taken is stored and settled as far as possible. No
        later message is delivered to anybody before that.
        """

    async def synchronize(self) -> None:
        """Return when the broker has read the acknowledgements so far."""

    async def acknowledge(self, deliveries: Sequence[D]) -> None:
        """Acknowledge these deliveries."""

    async def prove(self, deliveries: Sequence[D]) -> None:
        """These were processed safely, although they cannot be acknowledged yet, and stay in hand.

        A consumer that delivers one message at a time at first must go on to its full prefetch.
        """

    def holds_up(self, delivery: D) -> bool:
        """Whether this delivery is unsettled, and its queue delivers nothing more before it is settled."""

    async def pause(self, by: str) -> None:
        """Take nothing more until `resume` is called with the same name."""

    async def resume(self, by: str) -> None:
        """Consume again, one message at a time at first."""

    async def requeue(self) -> int:
        """Return all unsettled deliveries to the queue, in order, while paused. Nothing of them may be under way."""


class Patience(NamedTuple):
    """How long a statement may take before it fails with `TimedOut`."""

    lock_seconds: float = 1.0
    """Longest wait for one lock."""
    seconds: float | None = None
    """Longest time for the statement; None: WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS."""


PATIENT: Final = Patience()


OWN_ROWS_SECONDS: Final = 2.0
"""How long rows of the worker's own may take when they are timed. Others wait meanwhile."""


class Store(Protocol):
    """Where records are kept."""

    async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        """Write a wave and return the outcome of each of its requests, in the wave's order.

        Raises:
            Refused: the database refuses a value in the wave.
            Failed: the database or a row is the cause; `TimedOut` if it took too long. A smaller wave may pass.
            Unavailable: the database cannot be used.
        """
        ...

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of these records whose rows are locked by another transaction now.

        A row that another transaction inserts and has not committed is not seen.

        Raises:
            Unavailable: the database cannot be used.
        """

    async def try_own_rows(self, like: TaskActivityLog | None) -> Sequence[Failed]:
        """Write rows of the worker's own, roll back, and return why each of them is refused; empty if one passes.

        One of them has the values of `like`.

        Raises:
            Unavailable: the database cannot be used, for example because its disk is full.
        """

    async def time_own_rows(self, count: int) -> float:
        """How many seconds it takes to write rows of the worker's own, which have all values. They are rolled back.

        It is given up after `OWN_ROWS_SECONDS`.

        Raises:
            Unavailable: the database cannot be used.
        """

    async def read(self, request: Request[Delivery], outcome: Outcome) -> Applied:
        """The outcome of a request that was stored, with its record as it is now: for one that was left unread.

        Raises:
            Unavailable: the database cannot be used.
        """

    async def marked(self, marks: Sequence[UUID]) -> set[UUID]:
        """Those of these marks that exist.

        Raises:
            Unavailable: the database cannot be used.
        """

    async def mark(self, marks: Sequence[UUID]) -> None:
        """Make these marks. It does no harm if they exist.

        Raises:
            Unavailable: the database cannot be used.
        """

    async def unmark(self, marks: Sequence[UUID]) -> None:
        """Remove these marks, as far as they exist.

        Raises:
            Unavailable: the database cannot be used.
        """

    async def probe(self) -> None:
        """Prove that writing is possible, without writing anything.

        Raises:
            Unavailable: it is not possible.
        """

    async def survives(self) -> bool:
        """Whether the connection that was used last can still be used. It is not opened again."""
        ...

    async def close(self) -> None:
        """Disconnect. The next call connects again."""
        ...


class Replies(Protocol[D]):
    """Where replies go."""

    async def publish(self, settlements: Sequence[Settlement[D]]) -> list[bool]:
        """Publish the replies of these and return, for each, whether nothing more is to be done for it.

        True: it is confirmed or was given up. False: its address takes nothing at present. It is tried again apart, and
        `settled` returns the settlement when its reply is confirmed or given up, unless its delivery was requeued.

        Raises:
            Unavailable: call it again later with all of them. What is confirmed by then is not published again.
        """

    async def settled(self) -> list[Settlement[D]]:
        """Wait for settlements for which `publish` returned False and nothing more is to be done now."""
        ...


class DeadLetters(Protocol[D_contra]):
    """Where rejected messages are kept."""

    async def keep(self, rejected: Sequence[tuple[D_contra, Problem]]) -> None:
        """Return when a copy of each message is confirmed.

        Raises:
            Unavailable: keep all of them again later.
        """


class Forwarder(Protocol[D_contra]):
    """Where requests go that were not sent by record."""

    async def forward(self, requests: Sequence[Request[D_contra]]) -> None:
        """Return when each request, of different records, is confirmed in the partition of its record.

        Raises:
            Unavailable: forward all of them again later.
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
