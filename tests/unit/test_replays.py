"""Which dead letters are kept while a replay is under way."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from task_activity_log.client.dead_letters import DeadLetter, judged
from task_activity_log.client.replays import Replay, StillDue, sort_out
from task_activity_log.message import Properties
from task_activity_log.pipeline.request import Rules

A, B = UUID(int=1), UUID(int=2)


def replay(name: str, record: UUID) -> Replay:
    properties = Properties(content_type="application/json", message_id=name)
    letter = DeadLetter(json.dumps({"id": str(record)}).encode(), properties, cast("Any", None))
    return Replay(letter, letter, judged(letter, Rules()))


async def test_a_row_that_is_changed_during_a_replay_is_not_overwritten() -> None:
    """Except by a later dead letter of a record of which this replay has sent an earlier one: that has changed the row."""
    rows: dict[UUID, datetime] = {}

    async def changed(ids: Sequence[UUID]) -> Mapping[UUID, datetime]:
        return {one: rows[one] for one in ids if one in rows}

    replays = [replay("a1", A), replay("a2", A), replay("b", B)]
    pairs = [(each.letter, each.request) for each in replays]
    await sort_out(replays, changed)
    still_due = StillDue(replays, changed)
    assert await still_due(pairs[:1]) == pairs[:1]
    rows |= {A: datetime.now(UTC), B: datetime.now(UTC)}
    assert await still_due(pairs[1:]) == pairs[1:2]
    assert [each.state for each in replays] == ["waiting", "waiting", "kept"]
    assert replays[2].why.startswith("its row has changed at")
