"""The fake worker of `task_activity_log.testing` and a real one are given the same requests, and answer the same."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4, uuid5

import asyncpg
from hypothesis import example, given, settings
from hypothesis import strategies as st

from task_activity_log.client import Answer, TaskActivityLogClient, Upsert
from task_activity_log.record import STORED_FIELDS
from task_activity_log.testing import FakeWorker
from tests.asking import Connection
from tests.commands import World
from tests.effort import examples

XML = "application/xml"


@dataclass(frozen=True)
class Step:
    """One request, or the deletion of a row by somebody else. Records and messages are named by small numbers."""

    record: int
    message: int
    body: str
    content_type: str = "application/json"
    headers: tuple[tuple[str, str | int], ...] = ()
    delete: bool = False

    def upsert(self, run: UUID) -> Upsert:
        """The request in this run, which has records and messages of its own."""
        body = self.body.replace("RECORD", str(uuid5(run, f"record {self.record}")))
        return Upsert(body.encode(), self.content_type, str(uuid5(run, f"message {self.message}")), dict(self.headers))


def json_body(fields: dict[str, Any]) -> str:
    return json.dumps({"id": "RECORD", **fields})


TEXTS = st.sampled_from(["", "a", "Größe 😀", "\\ \" ' %s $1 NULL", "line\nfeed", " x "])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "subject": st.none() | TEXTS,
        "description": st.none() | TEXTS,
        "is_closed": st.none() | st.booleans(),
        "task_id": st.none() | st.just("EC77BDFE-882b-4254-84a2-979f5c2b20a9"),
        "due_date": st.sampled_from([None, "2026-01-11", "2026-01-11T20:58:34.123456789+02:00", "2026-01-11T20:58:34"]),
        "unknown": st.just(1),
    },
)
JSON_BODIES = FIELDS.map(json_body)
XML_BODIES = TEXTS.map(
    lambda text: (
        f"<task_activity_log><id>RECORD</id><subject><![CDATA[{text}]]></subject><is_closed>true</is_closed></task_activity_log>"
    )
)
BAD = st.sampled_from(
    [
        "",
        "{",
        "[]",
        "null",
        '{"id": null}',
        '{"id": "RECORD", "id": "RECORD"}',
        '{"id": "nope", "due_date": "tomorrow", "is_closed": "perhaps"}',
        '{"id": "RECORD", "subject": "\\u0000"}',
        '{"id": "RECORD", "due_date": "0000-01-01"}',
    ]
)
VERSIONS = st.sampled_from([1, 2, 2, 3, 3, "2", "03", -1, 2**63 - 1, str(2**63), "one", "", True])
HEADERS = st.fixed_dictionaries(
    {}, optional={"x-version": VERSIONS, "x-update-mode": st.sampled_from(["merge", "replace", "MERGE", "other"])}
)
BODIES = st.one_of(
    JSON_BODIES.map(lambda body: (body, "application/json")),
    JSON_BODIES.map(lambda body: (body, "application/json")),
    XML_BODIES.map(lambda body: (body, XML)),
    BAD.map(lambda body: (body, "application/json")),
    st.just((json_body({}), "text/plain")),
)


def _step(record: int, message: int, body: tuple[str, str], headers: dict[str, str | int], delete: bool) -> Step:
    return Step(record, message, body[0], body[1], tuple(headers.items()), delete)


STEPS = st.builds(
    _step,
    st.integers(0, 1),
    st.integers(0, 4) | st.integers(10, 10_000),
    BODIES,
    HEADERS,
    st.integers(0, 19).map(lambda number: number == 0),
)
KNOWN = [
    Step(0, 0, json_body({"subject": "a"}), headers=(("x-version", 2),)),
    Step(0, 1, json_body({"subject": "b"}), headers=(("x-version", 1),)),
    Step(0, 0, json_body({"subject": "a"}), headers=(("x-version", 2),)),
    Step(0, 5, json_body({"subject": "c"}), headers=(("x-version", 2),)),
    Step(0, 2, json_body({"is_closed": True}), headers=(("x-update-mode", "merge"),)),
    Step(0, 3, json_body({}), headers=(("x-version", "one"),)),
    Step(0, 4, "{}"),
    Step(0, 4, "", delete=True),
    Step(0, 2, json_body({"is_closed": True}), headers=(("x-update-mode", "merge"),)),
]
"""One of each outcome, and the repeat of a request whose row was deleted."""


class Told:
    """What a worker answers, with times that can be compared: the number of the moment instead of the moment."""

    def __init__(self) -> None:
        self._moments: list[object] = []

    def moment(self, value: object) -> int:
        if value not in self._moments:
            self._moments.append(value)
        return self._moments.index(value)

    def of(self, answer: Answer) -> tuple[object, ...]:
        """The whole reply."""
        common = (
            answer.outcome,
            answer.code,
            answer.content_type,
            answer.correlation_id,
            answer.message_id,
            answer.ignored,
        )
        if answer.rejected:
            return (*common, answer.body)
        fields = answer.record.model_dump()
        return (*common, fields | {"modified_dateutc": self.moment(fields["modified_dateutc"])})


async def asked(client: TaskActivityLogClient, upsert: Upsert) -> Answer:
    [answer] = [one async for one in client.upsert_many([upsert], timeout=60)]
    return answer


async def rows(database: Connection, ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """The rows of these records, without the moment of their change."""
    found = await database.fetch("SELECT * FROM task_activity_log WHERE id = ANY ($1)", ids)
    names = [name for name in STORED_FIELDS if name != "modified_dateutc"]
    return {row["id"]: {name: row[name] for name in names} for row in found}


def test_a_real_worker_answers_the_same(world: World) -> None:
    """Upserts, merges, versions, repeats, bad messages and deleted rows: the same replies, and the same rows at the end."""
    seen: set[str] = set()

    async def compare(steps: list[Step], real: TaskActivityLogClient, database: Connection) -> None:
        run, worker = uuid4(), FakeWorker()
        ids = [uuid5(run, f"record {number}") for number in range(2)]
        fake_told, told = Told(), Told()
        async with worker.client() as fake:
            for step in steps:
                if step.delete:
                    identifier = ids[step.record]
                    worker.rows.pop(identifier, None)
                    await database.execute("DELETE FROM task_activity_log WHERE id = $1", identifier)
                    continue
                upsert = step.upsert(run)
                answer = await asked(real, upsert)
                assert fake_told.of(await asked(fake, upsert)) == told.of(answer)
                seen.add(answer.code or answer.outcome)
        expected = {one: row.model_dump(exclude={"modified_dateutc"}) for one, row in worker.rows.items()}
        assert await rows(database, ids) == expected

    with asyncio.Runner() as runner:
        real = TaskActivityLogClient(world.amqp_url)
        runner.run(real.__aenter__())
        database: Connection = runner.run(asyncpg.connect(world.database_url))
        try:

            @settings(max_examples=examples(40))
            @example(KNOWN)
            @given(st.lists(STEPS, min_size=3, max_size=15))
            def compared(steps: list[Step]) -> None:
                runner.run(compare(steps, real, database))

            compared()
        finally:
            runner.run(database.close())
            runner.run(real.__aexit__())
    assert seen >= {"inserted", "updated", "duplicate", "stale", "invalid_version", "missing_id", "record_gone"}
