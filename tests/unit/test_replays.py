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
    """Nor by a later dead letter of a record of which an earlier one was sent in another part: a newer request may have come."""
    rows: dict[UUID, datetime] = {}

    async def changed(ids: Sequence[UUID]) -> Mapping[UUID, datetime]:
        return {one: rows[one] for one in ids if one in rows}

    replays = [replay("a1", A), replay("a2", A), replay("a3", A), replay("b", B)]
    pairs = [(each.letter, each.request) for each in replays]
    await sort_out(replays, changed)
    still_due = StillDue(replays, changed)
    assert await still_due(pairs[:1]) == pairs[:1]
    assert await still_due(pairs[1:2]) == pairs[1:2]
    rows |= {A: datetime.now(UTC), B: datetime.now(UTC)}
    assert await still_due(pairs[2:]) == []
    assert [each.state for each in replays] == ["waiting", "waiting", "kept", "kept"]
    assert all(each.why.startswith("its row has changed at") for each in replays[2:])
    assert replays[2].why.endswith("an earlier dead letter of the record, which was sent in this replay")
    assert "this replay" not in replays[3].why
