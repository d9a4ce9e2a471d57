"""The pipeline: take → decode → store → reply → settle. The only control flow that matters.

Two stages overlap: while the replies of one batch are being confirmed, the next batch is in the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, Literal, TypeVar

import structlog

from task_activity_log.pipeline import reply
from task_activity_log.pipeline.hold import Abandoned, Hold
from task_activity_log.pipeline.ports import Answer, D, DeadLetters, Intake, Replies, Store, Watch
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.pipeline.suspects import may_mention, part
from task_activity_log.pipeline.waves import halve, waves
from task_activity_log.problem import POISON, TIMEOUT, UNREADABLE, Problem, Refused, Rejected, Unavailable
from task_activity_log.record import Applied, Outcome

log = structlog.get_logger(__name__)

T = TypeVar("T")

_LAGGARD_SECONDS = 1.0
"""How often a reply that only its `reply_to` refuses is tried again, when there is no other work."""


class _StoodDown(Exception):
    """The outage lasted longer than the hold limit: what was in hand has been given back."""


class _TimedOut(Exception):
    """A wave took too long on a database that is there: it is too big, or one of its rows is locked."""


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
        hold_limit_seconds: float = 600.0,
        poison_from: int = 10,
    ) -> None:
        self._intake = intake
        self._store = store
        self._dead_letters = dead_letters
        self._replies = replies
        self._watch = watch
        self._rules = rules
        self._batch_max = batch_max
        self._nulls = nulls
        self._hold_limit = hold_limit_seconds
        self._poison_from = poison_from
        self._stored: asyncio.Queue[list[Answer[D]] | None] = asyncio.Queue(maxsize=1)
        self._laggards: list[Answer[D]] = []
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
                try:
                    await self._store_batch(batch)
                except _StoodDown:
                    await self._until_done(self.store_hold, self._store.probe)
                    await self._intake.resume("store")
        except Abandoned:
            log.info("batch_abandoned", stage="store")
        await self._stored.put(None)

    async def _store_batch(self, batch: Sequence[D]) -> None:
        go_on, suspects = part(batch, self._poison_from)
        if suspects and self._intake.in_hand > 1:
            await self._set_apart(go_on, suspects)
        else:
            await self._store_all(batch)

    async def _set_apart(self, go_on: Sequence[D], suspects: list[D]) -> None:
        """Settle everything else in hand, then try the suspect that is left alone.

        Several go back at once, with what must not overtake them, which keeps their order, and come again one by one.
        One does not: it might go from one busy worker to the next until it passed for poison.
        """
        self._watch.set_apart(suspects)
        await self._intake.pause("suspect")
        try:
            await self._store_all(go_on, behind=suspects)
            while waiting := self._intake.take_waiting(self._batch_max):
                go_on, more = part(waiting, self._poison_from)
                suspects += more
                await self._store_all(go_on, behind=suspects)
            await self._stored.join()
            if self._intake.in_hand == 1:
                await self._store_all(suspects)
                await self._stored.join()
            else:
                await self._intake.requeue(one_by_one=True)
        finally:
            await self._intake.resume("suspect")

    async def _store_all(self, batch: Sequence[D], behind: Sequence[D] = ()) -> None:
        """Decode and store a batch, and hand on what is owed for it.

        Requests that must not overtake a suspect of the same record, `behind`, are left out: they are given back.
        """
        requests, answers = self._decode(batch)
        if behind:
            requests = [r for r in requests if not any(may_mention(suspect, r.record.id) for suspect in behind)]
        started = time.perf_counter()
        stubborn: list[Request[D]] = []
        for wave in waves(requests):
            stuck = {request.record.id for request in stubborn}
            answers += await self._apply([r for r in wave if r.record.id not in stuck], stubborn)
            stubborn += [r for r in wave if r.record.id in stuck]
        self._watch.took("store", time.perf_counter() - started)
        await self._stored.put(answers)
        for request in stubborn:
            await self._stored.put([await self._insist(request)])

    def _decode(self, batch: Sequence[D]) -> tuple[list[Request[D]], list[Answer[D]]]:
        started = time.perf_counter()
        requests: list[Request[D]] = []
        rejected: list[Answer[D]] = []
        for delivery in batch:
            try:
                requests.append(self._request(delivery))
            except Rejected as error:
                answer = reply.rejected(delivery, error.problem, self._rules.default_media_type)
                rejected.append(Answer(delivery, answer, error.problem))
        self._watch.took("decode", time.perf_counter() - started)
        return requests, rejected

    def _request(self, delivery: D) -> Request[D]:
        if delivery.attempts >= self._poison_from:
            raise Rejected(POISON)
        return decode(delivery, self._rules)

    async def _apply(self, wave: Sequence[Request[D]], stubborn: list[Request[D]]) -> list[Answer[D]]:
        """Store a wave, in ever smaller parts where it does not pass as a whole, and say what is owed.

        A row that the database refuses is so found in O(log n) statements, and its neighbours are stored. A single one
        that may pass later, or that may not be the row's fault, is added to `stubborn`.
        """
        answers: list[Answer[D]] = []
        parts = [wave] if wave else []
        while parts:
            some = parts.pop()
            try:
                applied = await self._until_done(self.store_hold, partial(self._try_wave, some), stand_down=True)
            except (Refused, _TimedOut) as error:
                if len(some) > 1:
                    parts += reversed(halve(some))
                elif isinstance(error, Refused) and not error.doubtful:
                    answers.append(_rejected(some[0], error.problem))
                else:
                    stubborn += some
            else:
                answers += map(self._owed, some, applied)
        return answers

    async def _try_wave(self, wave: Sequence[Request[D]]) -> list[Applied]:
        try:
            return await self._store.apply(wave)
        except Unavailable as outage:
            if outage.reason != TIMEOUT:
                raise
            await self._store.probe()  # a database that does not answer this either is away, whatever the wave
            raise _TimedOut from outage

    async def _insist(self, request: Request[D]) -> Answer[D]:
        """Store one request that did not pass alone: wait while it may pass, reject it when it is its fault."""
        doubted = False
        while True:
            try:
                attempt = partial(self._store.apply, [request])
                [applied] = await self._until_done(self.store_hold, attempt, stand_down=True)
            except Refused as error:
                if doubted or not error.doubtful:
                    return _rejected(request, error.problem)
                doubted = True
                # If we may not write at all, this says so and holds. If we may, it was the row twice.
                await self._until_done(self.store_hold, self._store.probe, stand_down=True)
            else:
                return self._owed(request, applied)

    def _owed(self, request: Request[D], applied: Applied) -> Answer[D]:
        if applied.outcome is Outcome.REJECTED:
            return _rejected(request, UNREADABLE)
        return Answer(request.delivery, reply.stored(request, applied, self._nulls))

    async def _answer_batches(self) -> None:
        abandoned = False
        while (answers := await self._next_answers()) is not None:
            try:
                if not abandoned:
                    await self._answer(answers)
            except Abandoned:
                # What follows is abandoned too: answers of one id must not overtake each other.
                abandoned = True
                log.info("batch_abandoned", stage="reply")
            self._stored.task_done()

    async def _next_answers(self) -> list[Answer[D]] | None:
        """The answers of the next batch, of none when laggards are due, or None at the end."""
        try:
            async with asyncio.timeout(_LAGGARD_SECONDS if self._laggards else None):
                return await self._stored.get()
        except TimeoutError:
            if self._stored.empty():  # a batch may have come in the moment that the time was up
                self._stored.put_nowait([])
            return self._stored.get_nowait()

    async def _answer(self, answers: Sequence[Answer[D]]) -> None:
        """Keep the dead letters, publish the replies, acknowledge: who reads an answer finds all behind it."""
        started = time.perf_counter()
        rejected = [(answer.delivery, answer.problem) for answer in answers if answer.problem is not None]
        if rejected:
            await self._until_done(self.reply_hold, lambda: self._dead_letters.keep(rejected))
        owed = [*self._laggards, *answers]
        refused = await self._until_done(self.reply_hold, lambda: self._replies.publish([a.reply for a in owed]))
        done = [answer for answer in owed if answer.reply not in refused] if refused else owed
        self._laggards = [answer for answer in owed if answer.reply in refused] if refused else []
        await self._intake.prove([answer.delivery for answer in self._laggards])
        await self._intake.acknowledge([answer.delivery for answer in done])
        self._watch.took("reply", time.perf_counter() - started)
        self._watch.answered(done)

    async def _until_done(self, hold: Hold, attempt: Callable[[], Awaitable[T]], *, stand_down: bool = False) -> T:
        """Try until the outside lets us, backing off in between.

        Past the hold limit everything in hand is given back, once, and nothing more is taken until it works again.
        Replies go on being tried: a repeat does no harm. A wave (`stand_down`) is not: it may have been overtaken.

        Raises:
            Abandoned: the worker drains and one last try has failed.
            _StoodDown: the hold limit is over.
        """
        given_back = False
        while True:
            try:
                result = await attempt()
            except Unavailable as error:
                self._watch.held(hold.place, error.reason)
                await hold.wait(error.reason)
                if hold.seconds > self._hold_limit and not given_back:
                    given_back = True
                    await self._intake.pause(hold.place)
                    log.warning("stood_down", place=hold.place, given_back=await self._intake.requeue())
                    if stand_down:
                        raise _StoodDown from error
            except (Refused, _TimedOut):
                self._release(hold)  # it answers
                raise
            else:
                self._release(hold)
                if given_back:
                    await self._intake.resume(hold.place)
                return result

    def _release(self, hold: Hold) -> None:
        if hold.reason is not None:
            self._watch.released(hold.place, hold.release())


def _rejected(request: Request[D], problem: Problem) -> Answer[D]:
    return Answer(request.delivery, reply.rejected(request, problem), problem)
