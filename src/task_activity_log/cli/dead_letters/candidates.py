"""Which dead letters may be replayed, and why the others may not. Each is decoded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from task_activity_log.cli.terminal import say
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.pipeline.request import Rules, judge
from task_activity_log.problem import Problem, Unavailable
from task_activity_log.record import TaskActivityLog
from task_activity_log.settings import Settings
from task_activity_log.wiring import store_of


@dataclass(frozen=True, slots=True)
class Candidate:
    """A dead letter that the present contract accepts."""

    letter: DeadLetter
    body: bytes
    """What to send: its own body, or a corrected one."""
    record: TaskActivityLog
    """The record in `body`."""


def judged(letter: DeadLetter, body: bytes, rules: Rules) -> Candidate | Problem:
    """The dead letter with this body, or the problem that a worker would reject it with."""
    found = judge(body, letter.restored(None), rules)
    return found if isinstance(found, Problem) else Candidate(letter, body, found)


def accepted(letters: Iterable[DeadLetter], rules: Rules) -> tuple[list[Candidate], list[str]]:
    """Those that the present contract accepts as they are, and a line for each of the others."""
    candidates: list[Candidate] = []
    kept: list[str] = []
    for letter in letters:
        found = judged(letter, letter.body, rules)
        if isinstance(found, Problem):
            kept.append(f"{letter.name}: kept, as it would be rejected again: {found.code}: {found.detail}")
        else:
            candidates.append(found)
    return candidates, kept


async def without_newer_rows(candidates: Sequence[Candidate], settings: Settings) -> tuple[list[Candidate], list[str]]:
    """Those whose row has not changed since they were rejected, and a line for each of the others.

    A request with `x-version` is safe to replay in any case: the worker compares versions.
    """
    if not candidates:
        return [], []
    if settings.database_url is None:
        say("DATABASE_URL is not set: not checked whether rows have changed since the rejection")
        return list(candidates), []
    store = store_of(settings)
    try:
        changed = await store.modified(sorted({candidate.record.id for candidate in candidates}))
    except Unavailable as error:
        raise ClientError(
            f"cannot check whether rows have changed since the rejection: {error.reason};"
            " use --over-newer to skip this check"
        ) from None
    finally:
        await store.close()
    safe: list[Candidate] = []
    kept: list[str] = []
    for candidate in candidates:
        letter, at = candidate.letter, changed.get(candidate.record.id)
        if at and letter.since and at > letter.since and "x-version" not in letter.properties.headers:
            kept.append(
                f"{letter.name}: kept, as its row has changed at {at:%Y-%m-%d %H:%M:%S}, after the rejection;"
                " use --over-newer to replay it anyway"
            )
        else:
            safe.append(candidate)
    return safe, kept
