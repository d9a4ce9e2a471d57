"""What the worker needs of the world. `broker`, `store` and `telemetry` fit these by their shape, and import none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from task_activity_log.message import Delivery
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import Problem
from task_activity_log.record import Applied

D = TypeVar("D", bound=Delivery)
D_contra = TypeVar("D_contra", bound=Delivery, contravariant=True)


@dataclass(slots=True)  # not frozen, which would take three times as long to make
class Answer(Generic[D]):
    """What is owed for one delivery before it may be acknowledged. It is not changed."""

    delivery: D
    reply: Reply
    problem: Problem | None = None
    """Why the message is dead-lettered; None when it is not."""


class Intake(Protocol[D]):
    """Where deliveries come from and are settled. None of it fails: what is too late comes again."""

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        ...

    async def take(self, most: int) -> list[D]:
        """The next batch, in the order delivered; empty when the worker drains."""
        ...

    def take_waiting(self, most: int) -> list[D]:
        """What is waiting now."""
        ...

    async def acknowledge(self, deliveries: Sequence[D]) -> None:
        """Acknowledge."""
        ...

    async def prove(self, deliveries: Sequence[D]) -> None:
        """These were processed safely, although they cannot be acknowledged yet."""
        ...

    async def pause(self, by: str) -> None:
        """Let nothing more come until `resume`."""
        ...

    async def resume(self, by: str) -> None:
        """Consume again, from one message at a time on."""
        ...

    async def requeue(self, *, one_by_one: bool = False) -> int:
        """Return everything in hand to the queue; with `one_by_one` it comes again one message at a time."""
        ...


class Store(Protocol):
    """Where records are kept."""

    async def apply(self, wave: Sequence[Request[Delivery]]) -> list[Applied]:
        """Write a wave and say what became of each of its requests, in order.

        Raises:
            Refused: something in the wave is not acceptable to the database.
            Unavailable: the database is away.
        """
        ...

    async def probe(self) -> None:
        """Prove that writing is possible, without writing anything.

        Raises:
            Unavailable: it is not.
        """
        ...


class Replies(Protocol):
    """Where replies go."""

    async def publish(self, replies: Sequence[Reply]) -> list[Reply]:
        """Return when every reply is confirmed or given up, but for those returned: try these again soon.

        Raises:
            Unavailable: try them all again later.
        """
        ...


class DeadLetters(Protocol[D_contra]):
    """Where rejected messages are kept."""

    async def keep(self, rejected: Sequence[tuple[D_contra, Problem]]) -> None:
        """Return when a copy of every message is confirmed.

        Raises:
            Unavailable: try them all again later.
        """
        ...


class Watch(Protocol):
    """Who counts, times and tells; see `telemetry`. Asked once a batch, so that it costs a message next to nothing."""

    def took(self, stage: Literal["decode", "store", "reply"], seconds: float) -> None:
        """A stage of one batch took this long."""
        ...

    def answered(self, answers: Sequence[Answer[D]]) -> None:
        """A batch was answered and settled."""
        ...

    def held(self, place: str, reason: str) -> None:
        """Work at `place` failed for `reason` and will be tried again."""
        ...

    def released(self, place: str, seconds: float) -> None:
        """Work at `place` passed, after it was held for so long."""
        ...

    def set_apart(self, suspects: Sequence[D]) -> None:
        """These go back to be tried alone."""
        ...
