"""Replays: which dead letters are sent again, which are kept and why, and what becomes of each."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias
from uuid import UUID

from task_activity_log.client.dead_letters import DeadLetter, may_be_newer
from task_activity_log.client.replaying import Part
from task_activity_log.problem import Problem
from task_activity_log.record import TaskActivityLog

Changed: TypeAlias = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, datetime]]]
"""Says when the rows of these records were last changed, or `UNKNOWN_INSTANT`, as far as there are rows."""


@dataclass(slots=True)
class Replay:
    """A dead letter that somebody has chosen, and what has become of it."""

    letter: DeadLetter
    request: DeadLetter
    """What is sent: the dead letter as it was, or corrected."""
    found: TaskActivityLog | Problem
    """What `judged` says of the request."""
    state: Literal["waiting", "sent", "kept", "gone", "discarded"] = "waiting"
    why: str = ""
    """Why it is kept, or not in the queue any more."""
    answer: str = ""
    """The outcome of its reply, once that is known."""
    code: str = ""
    """The code with which it was rejected again."""

    @property
    def record(self) -> UUID | None:
        """The id of its record; None if the contract rejects it."""
        return None if isinstance(self.found, Problem) else self.found.id


async def sort_out(replays: Iterable[Replay], changed: Changed | None) -> None:
    """Keep those that would be rejected again; and, unless `changed` is None, those whose row may be newer.

    Raises what `changed` raises: then all that the contract accepts are still waiting.
    """
    accepted: dict[UUID, list[Replay]] = {}
    for each in replays:
        if isinstance(each.found, Problem):
            each.state, each.why = "kept", f"it would be rejected again: {each.found.code}: {each.found.detail}"
        else:
            accepted.setdefault(each.found.id, []).append(each)
    times = await changed(sorted(accepted)) if changed and accepted else {}
    for record, at in times.items():
        for each in accepted[record]:
            if newer := may_be_newer(each.request, at):
                each.state, each.why = "kept", newer


class StillDue:
    """Keeps replays, directly before they are sent, whose row has changed since they were sorted out: a replay can take long.

    So are those kept of whose record earlier ones were sent in another part (see `dead_letters.replay`), as soon as the row
    has changed: it is not known whether these or a newer request have changed it.
    """

    def __init__(self, replays: Iterable[Replay], changed: Changed | None) -> None:
        """Of those that are waiting; `changed` is as for `sort_out`."""
        self._replays = {id(each.letter): each for each in replays}
        self._changed = changed
        self._sent: set[UUID | None] = set()

    async def __call__(self, part: Part) -> Part:
        """What of this part of the replays is to be sent. Raises what `changed` raises."""
        replays = [self._replays[id(letter)] for letter, _ in part]
        await sort_out(replays, self._changed)
        for each in replays:
            if each.state == "kept" and each.record in self._sent:
                each.why += "; this may be due to an earlier dead letter of the record, which was sent in this replay"
        going = [each for each in replays if each.state == "waiting"]
        self._sent.update(each.record for each in going)
        return [(each.letter, each.request) for each in going]


def present(replays: Iterable[Replay], on_loan: Iterable[DeadLetter]) -> list[Replay]:
    """Those whose dead letters are on loan, the oldest first. The others are gone.

    The queue has another order if some were taken out of it before: it may have returned the others in any order.
    """
    waiting: dict[str, list[Replay]] = {}
    for each in replays:
        waiting.setdefault(each.letter.key, []).append(each)
    found = []
    for letter in on_loan:
        each = waiting[letter.key].pop(0)
        each.letter = letter
        found.append(each)
    for left in waiting.values():
        for each in left:
            each.state = "gone"
            each.why = "it was not in the queue: somebody else has replayed, discarded or taken it, or another replay has it now"
    return sorted(found, key=lambda each: each.letter.rejected_at)
