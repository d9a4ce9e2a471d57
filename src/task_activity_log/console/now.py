"""What the first page says of the present, in words. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from task_activity_log.console.history import History, Worker

Tone = Literal["good", "attention", "bad"]
_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
_MANY_SECONDS = 60.0
"""A queue that takes longer than this to become empty is worth a word."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """What there is to say, and how urgent it is."""

    text: str
    tone: Tone


def sentence(
    history: History, requests: Sequence[str], dead_letters: str, newest: datetime | None, now: datetime
) -> Sentence:
    """The state of everything in a few short sentences, the most urgent tone of them all.

    `requests` and `dead_letters` are names of queues; `newest` is when the newest dead letter was rejected, if known.
    """
    parts = [_workers(history.workers), *_holds(history.workers), _waiting(history, requests)]
    parts.append(_dead(history, dead_letters, newest, now))
    tones = {part.tone for part in parts}
    tone: Tone = "bad" if "bad" in tones else "attention" if "attention" in tones else "good"
    return Sentence(" ".join(part.text for part in parts), tone)


def _workers(workers: Sequence[Worker]) -> Sentence:
    consuming = sum(worker.consumes for worker in workers)
    silent = sum(worker.status is None for worker in workers)
    idle = len(workers) - consuming - silent
    if not workers:
        return Sentence("No worker is known.", "bad")
    text = f"{number(consuming)} {'worker consumes' if consuming == 1 else 'workers consume'}."
    if silent:
        text += f" {number(silent)} {'does' if silent == 1 else 'do'} not answer."
    if idle:
        text += f" {number(idle)} {'is' if idle == 1 else 'are'} not ready."
    return Sentence(text, "bad" if not consuming else "attention" if silent or idle else "good")


def _holds(workers: Iterable[Worker]) -> list[Sentence]:
    reasons = {str(hold["reason"]): float(hold["seconds"]) for worker in workers for hold in worker.holds}
    return [Sentence(f"Held for {span(seconds)}: {reason}.", "bad") for reason, seconds in sorted(reasons.items())]


def _waiting(history: History, requests: Sequence[str]) -> Sentence:
    if history.broker_error:
        return Sentence(f"The broker does not answer: {history.broker_error}.", "bad")
    found = [history.queues[name].messages for name in requests if name in history.queues]
    known = [messages for messages in found if messages is not None]
    if not known:
        return Sentence("The requests queue is not known yet.", "attention")
    waiting = sum(known)
    if not waiting:
        return Sentence("Nothing waits.", "good")
    text = f"{waiting:,} {'request waits' if waiting == 1 else 'requests wait'}"
    times = [seconds for name in requests if (seconds := history.seconds_to_empty(name)) is not None]
    if times:
        longest = max(times)
        return Sentence(f"{text}, for about {span(longest)}.", "attention" if longest > _MANY_SECONDS else "good")
    return Sentence(f"{text}.", "good" if sum(history.rates().values()) else "attention")


def _dead(history: History, queue: str, newest: datetime | None, now: datetime) -> Sentence:
    depth = history.queues.get(queue)
    if depth is None or depth.messages is None:
        return Sentence("The dead letters are not known.", "attention")
    if not depth.messages:
        return Sentence("No dead letters.", "good")
    text = f"{depth.messages:,} dead {'letter' if depth.messages == 1 else 'letters'}"
    if newest is not None:
        old = f"{span((now - newest).total_seconds())} old"
        text += f", {old}" if depth.messages == 1 else f", the newest {old}"
    return Sentence(f"{text}.", "attention")


def number(count: int) -> str:
    """A small number as a word that begins a sentence, any other in figures."""
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"


def span(seconds: float | timedelta | None) -> str:
    """A time in its largest unit, as in `4 minutes`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    left = max(0.0, seconds.total_seconds() if isinstance(seconds, timedelta) else seconds)
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if left >= size or unit == "second":
            count = round(left / size)
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    raise AssertionError


def short(seconds: float | None) -> str:
    """A duration for a table: `35 ms`, `2.1 s`, `4 min`, `3 h`; a dash for None."""
    if seconds is None:
        return "-"
    for limit, size, unit in ((1.0, 0.001, "ms"), (90.0, 1.0, "s"), (5400.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"
