"""Compares what was sent with what happened to it. Each failure names the message and what went wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from tests.audit_trigger import Write
from tests.chaos.collector import REPLIES, Answer, Collected
from tests.chaos.locks import Locks
from tests.chaos.messages import REPLY_QUEUE, Message
from tests.chaos.plan import Plan

POISON = "poison_message"
TOO_LARGE = "reply_too_large"
"""The code of an answer that stands for one that the broker does not take. Nothing was rejected."""
PROMPT_SECONDS = 5.0
"""Nobody's answer may take longer than this because of somebody else's row, body or reply."""
_SLOWNESS = 60
"""On a busy machine everything takes longer. A tenth of the answers took some milliseconds at most on a quiet one; each may take
this many times as long, in addition."""
_WROTE = ("inserted", "updated")


@dataclass(frozen=True)
class Account:
    """Everything that is known after a run, and the checks on it."""

    plan: Plan
    sent: Mapping[int, Message]
    sent_at: Mapping[int, float]
    """When the broker first confirmed each message (`time.monotonic`)."""
    locks: Locks
    collected: Collected
    writes: Sequence[Write]
    rows: Mapping[UUID, Mapping[str, object]]

    def missing(self) -> list[Message]:
        """The messages without any result: neither answered nor dead-lettered nor, if nobody reads the answer, stored."""
        stored = {write.subject for write in self.writes}
        return [
            message
            for number, message in self.sent.items()
            if number not in self.collected.answers
            and number not in self.collected.dead_letters
            and (message.is_answered or message.fields.get("subject") not in stored)
            and not (not message.is_answered and message.version is not None)  # it may have been stale
        ]

    def failures(self) -> list[str]:
        """All broken promises; empty if everything is as promised."""
        return [
            *(f"{_name(message)}: neither answered nor dead-lettered" for message in self.missing()),
            *self.collected.unrelated,
            *self._answers(),
            *self._applied_once(),
            *self._each_write_follows_from_the_one_before(),
            *(self._newest_wins() if self.plan.versions else self._in_order()),
            *(() if self.plan.outages else self._promptly()),
        ]

    def figures(self) -> dict[str, int]:
        """Counts for the report, by what they count."""
        answers, dead = self.collected.answers, self.collected.dead_letters
        sent = self.sent.keys()
        return {
            "sent": len(sent),
            "answered": len(sent & answers.keys()),
            "dead-lettered": len(sent & dead.keys()),
            "answered or dead-lettered": len(sent & (answers.keys() | dead.keys())),
            "sent with a reply queue that is gone or full": sum(not m.is_answered for m in self.sent.values()),
            **{f"sent: {kind}": count for kind, count in sorted(self._hostile().items())},
            "answers, including repeated ones": sum(map(len, answers.values())),
            "dead letters, including repeated ones": sum(map(len, dead.values())),
            "writes": len(self.writes),
            "rows": len(self.rows),
            "rejected as poison": sum(POISON in codes for codes in dead.values()),
            "dead-lettered by the broker": sum(None in codes for codes in dead.values()),
            "answered as duplicate": sum(any(a.outcome == "duplicate" for a in given) for given in answers.values()),
            "answered as stale": sum(any(a.outcome == "stale" for a in given) for given in answers.values()),
            **self._slowest(),
        }

    def _hostile(self) -> Counter[str]:
        return Counter(message.hostile for message in self.sent.values() if message.hostile)

    def _slowest(self) -> dict[str, int]:
        """How long innocent messages took to be answered. With outages this says nothing."""
        if self.plan.outages or not (took := sorted(seconds for _, seconds in self._took())):
            return {}
        return {
            "innocent messages whose answers were timed": len(took),
            "ms until a tenth of them were answered": round(1000 * took[len(took) // 10]),
            "ms until half of them were answered": round(1000 * took[len(took) // 2]),
            "ms until 99 of 100 were answered": round(1000 * took[len(took) * 99 // 100]),
            "ms until all were answered": round(1000 * took[-1]),
        }

    def _took(self) -> Iterator[tuple[Message, float]]:
        """The innocent messages that were answered, and how long that took from when nobody else held their rows."""
        for number, message in self.sent.items():
            answers = self.collected.answers.get(number)
            if answers and not message.hostile:
                at = answers[0].at
                yield message, at - self.locks.free_since(message.record, self.sent_at[number], at)

    def _promptly(self) -> Iterator[str]:
        took = list(self._took())
        quickly = sorted(seconds for _, seconds in took)[len(took) // 10] if took else 0.0
        most = PROMPT_SECONDS + _SLOWNESS * quickly
        for message, seconds in took:
            if seconds > most:
                yield f"{_name(message)}: answered after {seconds:.1f} s, and a tenth of all after {quickly:.3f} s"

    def _answers(self) -> Iterator[str]:
        modified = {write.subject: write.modified for write in self.writes}
        for number in [*self.collected.answers, *self.collected.dead_letters]:
            if number not in self.sent:
                yield f"message {number}: answered or dead-lettered, but never sent"
        for number, message in self.sent.items():
            answers = self.collected.answers.get(number, [])
            yield from _rejections(message, answers, self.collected.dead_letters.get(number, []))
            yield from _address_and_name(message, answers)
            yield from _record_is_its_own(message, answers, modified)

    def _applied_once(self) -> Iterator[str]:
        by_subject: defaultdict[str | None, list[Write]] = defaultdict(list)
        for write in self.writes:
            by_subject[write.subject].append(write)
        for message in self.sent.values():
            if message.record is None:
                continue
            writes = by_subject.pop(str(message.fields["subject"]), [])
            if message.message_id is not None and len(writes) > 1:
                at = ", ".join(str(write.modified) for write in writes)
                yield f"{_name(message)}: applied {len(writes)} times ({at})"
            outcomes = {answer.outcome for answer in self.collected.answers.get(message.number, [])}
            stale = message.version is not None and not outcomes & set(_WROTE)
            if not writes and outcomes - {"rejected"} and not stale:
                yield f"{_name(message)}: answered as {sorted(outcomes)}, but never written"
        for subject, writes in by_subject.items():
            yield f"record {writes[0].record}: written as {subject!r}, which was never sent"

    def _each_write_follows_from_the_one_before(self) -> Iterator[str]:
        """A replace writes all fields, a merge leaves absent fields unchanged, and `modified_dateutc` always increases."""
        by_subject = {message.fields.get("subject"): message for message in self.sent.values()}
        before: dict[UUID, Write] = {}
        for write in self.writes:
            last = before.get(write.record)
            before[write.record] = write
            message = by_subject.get(write.subject)
            if message is None:
                continue
            if last is not None and last.modified >= write.modified:
                yield f"{_name(message)}: modified_dateutc did not increase"
            for name in ("description", "reference_back_office", "is_closed", "task_id"):
                kept = last.row[name] if last is not None and message.merges else None
                if write.row[name] != message.fields.get(name, kept):
                    yield f"{_name(message)}: wrote {name} as {write.row[name]!r}"
        for record, row in self.rows.items():
            if record not in before or before[record].row != row:
                yield f"record {record}: the row is not what was written last"

    def _newest_wins(self) -> Iterator[str]:
        applied: defaultdict[UUID, int] = defaultdict(lambda: -1)
        for write in self.writes:
            version = write.row["source_version"]
            if isinstance(version, int):
                if version <= applied[write.record]:
                    yield f"record {write.record}: {write.subject} (version {version}) over version {applied[write.record]}"
                applied[write.record] = version
        newest: defaultdict[UUID, int] = defaultdict(int)
        for message in self.sent.values():
            if message.record and message.version and not self._rejected(message):
                newest[message.record] = max(newest[message.record], message.version)
        for record, version in newest.items():
            if applied[record] < version:
                yield f"record {record}: the row ended at version {applied[record]}, but version {version} was accepted"

    def _in_order(self) -> Iterator[str]:
        number_of = {m.fields["subject"]: m.number for m in self.sent.values() if m.ordered}
        last: dict[UUID, int] = {}
        for write in self.writes:
            number = number_of.get(write.subject)
            if number is not None:
                if number < last.get(write.record, -1):
                    yield f"record {write.record}: message {number} was applied after message {last[write.record]}"
                last[write.record] = max(number, last.get(write.record, -1))
        for queue in (REPLIES, REPLY_QUEUE):
            latest: dict[UUID | None, int] = {}
            for number in self.collected.first_answers[queue]:
                message = self.sent.get(number)
                if message is not None and message.ordered and not self._rejected(message):
                    if number < latest.get(message.record, -1):
                        yield f"{_name(message)}: answered after message {latest[message.record]}"
                    latest[message.record] = number

    def _rejected(self, message: Message) -> bool:
        return message.code is not None or message.number in self.collected.dead_letters


def _rejections(message: Message, answers: Sequence[Answer], codes: Sequence[str | None]) -> Iterator[str]:
    """A message is rejected only for its own error or as poison; if it is, it is answered and dead-lettered."""
    rejected = {answer.code for answer in answers if answer.outcome == "rejected"}
    rejected -= {TOO_LARGE} if message.may_be_too_large else set()
    if wrong := (rejected | set(codes)) - {message.code, POISON, None}:
        yield f"{_name(message)}: rejected as {sorted(map(str, wrong))}"
    if rejected and not codes:
        yield f"{_name(message)}: answered as rejected, but not dead-lettered"
    if message.is_answered and any(codes) and not rejected:
        yield f"{_name(message)}: dead-lettered as {codes[0]}, but not answered"
    if message.code is not None and any(answer.outcome != "rejected" for answer in answers):
        yield f"{_name(message)}: answered as stored, but it had to be rejected"


def _address_and_name(message: Message, answers: Sequence[Answer]) -> Iterator[str]:
    """Answers arrive in the queue that was asked for, and repeated answers have the same message_id."""
    if message.is_answered and any(answer.queue != (message.reply_to or REPLIES) for answer in answers):
        yield f"{_name(message)}: answered in the wrong queue"
    if message.message_id is not None:
        for kind in (True, False):
            names = {answer.message_id for answer in answers if (answer.outcome == "rejected") is kind}
            if len(names) > 1:
                yield f"{_name(message)}: its repeated answers have {len(names)} different message_ids"


def _record_is_its_own(
    message: Message, answers: Sequence[Answer], modified: Mapping[str | None, object]
) -> Iterator[str]:
    for answer in answers:
        if answer.outcome in _WROTE:
            subject = message.fields.get("subject")
            if answer.subject != subject:
                yield f"{_name(message)}: answered as {answer.outcome} with the record of {answer.subject!r}"
            elif answer.modified and message.message_id and modified.get(answer.subject) != answer.modified:
                yield f"{_name(message)}: answered with modified_dateutc {answer.modified}, which the row never had"


def _name(message: Message) -> str:
    parts = [f"message {message.number}"]
    parts += [f"of record {message.record}"] if message.record else []
    parts += [f"version {message.version}"] if message.version is not None else []
    parts += [] if message.message_id else ["without message_id"]
    parts += [f"to {message.reply_to}"] if message.reply_to else []
    return ", ".join(parts)
