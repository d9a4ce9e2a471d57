"""The pipeline: take → decode → store → reply → settle. The only control flow that matters.

Two stages overlap: while the replies of one batch are being confirmed, the next batch is in the database.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import structlog

from task_activity_log import reply, request
from task_activity_log.batch import halve, waves
from task_activity_log.hold import Abandoned, Hold
from task_activity_log.problem import Code, Problem, Refused, Rejected, Unavailable
from task_activity_log.record import Applied
from task_activity_log.reply import Reply
from task_activity_log.request import Delivery, Request, Rules

log = structlog.get_logger(__name__)

D = TypeVar("D", bound=Delivery)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[D]):
    """What is owed for one delivery before it may be acknowledged."""

    delivery: D
    reply: Reply
    problem: Problem | None = None
    """Why the message is dead-lettered; None when it is not."""


class Intake(Protocol[D]):
    """Where deliveries come from and are settled."""

    async def take(self, most: int) -> list[D]:
        """The next batch, in the order delivered; empty when the worker drains."""
        ...

    async def accept(self, deliveries: Sequence[D]) -> None:
        """Acknowledge. Never fails: what is too late comes again."""
        ...


class Store(Protocol):
    """Where records are kept."""

    async def apply(self, wave: Sequence[Request]) -> list[Applied]:
        """Write a wave and say what became of each of its requests, in order.

        Raises:
            Refused: something in the wave is not acceptable to the database.
            Unavailable: the database is away.
        """
        ...


class Replies(Protocol):
    """Where replies go."""

    async def publish(self, replies: Sequence[Reply]) -> None:
        """Return when every reply is confirmed or given up.

        Raises:
            Unavailable: try them all again later.
        """
        ...


class DeadLetters(Protocol[D]):
    """Where rejected messages are kept."""

    async def keep(self, rejected: Sequence[tuple[D, Problem]]) -> None:
        """Return when a copy of every message is confirmed.

        Raises:
            Unavailable: try them all again later.
        """
        ...


class Watch(Protocol):
    """Who counts and times; see `telemetry`."""

    def took(self, stage: Literal["decode", "store", "reply"], seconds: float) -> None:
        """A stage of one batch took this long."""
        ...

    def answered(self, answers: Sequence[Answer[D]]) -> None:
        """A batch was answered and settled."""
        ...

    def held(self, place: str, reason: str) -> None:
        """Work at `place` failed for `reason` and will be tried again."""
        ...


class Worker(Generic[D]):
    """Moves batches through the pipeline until its intake drains."""

    def __init__(
        self,
        *,
        intake: Intake[D],
        store: Store,
        dead_letters: DeadLetters[D],
        replies: Replies,
        watch: Watch,
        rules: Rules,
        batch_max: int,
        nulls: Literal["emit", "omit"] = "emit",
    ) -> None:
        self._intake = intake
        self._store = store
        self._dead_letters = dead_letters
        self._replies = replies
        self._watch = watch
        self._rules = rules
        self._batch_max = batch_max
        self._nulls = nulls
        self._stored: asyncio.Queue[list[Answer[D]]] = asyncio.Queue(maxsize=1)
        self.store_hold = Hold("store")
        self.reply_hold = Hold("reply")

    @property
    def hold_reason(self) -> str | None:
        """Why the worker waits; None while it does not."""
        return self.store_hold.reason or self.reply_hold.reason

    def drain(self) -> None:
        """Hold no longer than one last try, so that `run` returns soon after the intake gives nothing more."""
        self.store_hold.drain()
        self.reply_hold.drain()

    async def run(self) -> None:
        """Work until the intake drains."""
        async with asyncio.TaskGroup() as stages:
            stages.create_task(self._store_batches(), name="store")
            stages.create_task(self._answer_batches(), name="answer")

    async def _store_batches(self) -> None:
        try:
            while batch := await self._intake.take(self._batch_max):
                await self._stored.put(await self._answers(batch))
        except Abandoned:
            log.info("batch_abandoned", stage="store")
        await self._stored.put([])

    async def _answer_batches(self) -> None:
        abandoned = False
        while answers := await self._stored.get():
            if abandoned:
                continue
            try:
                await self._answer(answers)
            except Abandoned:
                # What follows is abandoned too: answers of one id must not overtake each other.
                abandoned = True
                log.info("batch_abandoned", stage="reply")

    async def _answers(self, batch: Sequence[D]) -> list[Answer[D]]:
        """Decode and store a batch; what is owed for each of its deliveries."""
        requests, answers = self._decode(batch)
        started = time.perf_counter()
        for wave in waves(requests):
            answers += await self._apply(wave)
        self._watch.took("store", time.perf_counter() - started)
        return answers

    def _decode(self, batch: Sequence[D]) -> tuple[list[Request[D]], list[Answer[D]]]:
        started = time.perf_counter()
        requests: list[Request[D]] = []
        rejected: list[Answer[D]] = []
        for delivery in batch:
            try:
                requests.append(request.decode(delivery, self._rules))
            except Rejected as error:
                rejected.append(_reject(delivery, error.problem))
        self._watch.took("decode", time.perf_counter() - started)
        return requests, rejected

    async def _apply(self, wave: Sequence[Request[D]]) -> list[Answer[D]]:
        """Store a wave. A row that the database refuses is found by halving; its neighbours are stored."""
        try:
            applied = await self._until_done(self.store_hold, lambda: self._store.apply(wave))
        except Refused as error:
            if len(wave) == 1:
                return [_reject(wave[0].delivery, _refused(error))]
            first, second = halve(wave)
            return await self._apply(first) + await self._apply(second)
        return [
            Answer(asked.delivery, reply.stored(asked, done, self._nulls))
            for asked, done in zip(wave, applied, strict=True)
        ]

    async def _answer(self, answers: Sequence[Answer[D]]) -> None:
        """Keep the dead letters, publish the replies, acknowledge: who reads an answer finds all behind it."""
        started = time.perf_counter()
        rejected = [(answer.delivery, answer.problem) for answer in answers if answer.problem is not None]
        if rejected:
            await self._until_done(self.reply_hold, lambda: self._dead_letters.keep(rejected))
        replies = [answer.reply for answer in answers]
        await self._until_done(self.reply_hold, lambda: self._replies.publish(replies))
        await self._intake.accept([answer.delivery for answer in answers])
        self._watch.took("reply", time.perf_counter() - started)
        self._watch.answered(answers)
        log.info("batch", size=len(answers), **Counter(str(answer.reply.outcome) for answer in answers))

    async def _until_done(self, hold: Hold, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until the outside lets us, backing off in between.

        Raises:
            Abandoned: the worker drains and one last try has failed.
        """
        while True:
            try:
                result = await attempt()
            except Unavailable as error:
                if error.reason != hold.reason:
                    log.warning("holding", place=hold.place, reason=error.reason)
                self._watch.held(hold.place, error.reason)
                await hold.wait(error.reason)
            else:
                if hold.reason is not None:
                    log.info("hold_over", place=hold.place, seconds=round(hold.release(), 3))
                return result


def _reject(delivery: D, problem: Problem) -> Answer[D]:
    return Answer(delivery, reply.rejected(delivery, problem), problem)


def _refused(error: Refused) -> Problem:
    return Problem(
        Code.REFUSED_BY_DATABASE,
        f"The database refuses this record (SQLSTATE {error.sqlstate}); correct it, or ask who runs the database.",
    )
