"""One suite for two stores: the real one on PostgreSQL, and the one in memory that tests of the worker stand on."""

from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from task_activity_log.message import Delivery
from task_activity_log.pipeline.ports import Store as StorePort
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.pipeline.waves import waves
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Refused
from task_activity_log.record import FIELDS, Applied, Outcome
from tests.asking import Connection, ask, merge, outcomes, subjects
from tests.fakes import FakeStore

REFUSED = "refuse me"
FULL: dict[str, Any] = {
    "task_id": UUID(int=1),
    "user_id": UUID(int=0),
    "subject": "subject",
    "description": "description",
    "due_date": datetime(2026, 1, 11, 20, 58, 34, 720383, tzinfo=UTC),
    "is_closed": False,
    "reference_back_office": "",
}


class Held:
    """A store that is held to the suite, and a way to delete a row behind its back."""

    def __init__(self, store: StorePort, database: "Connection | None") -> None:
        self.store = store
        self._database = database

    async def apply(self, *wave: Request[Delivery]) -> list[Applied]:
        """One wave."""
        return await self.store.apply(wave)

    async def delete(self, identifier: UUID) -> None:
        """Delete a row, as an operator might."""
        if self._database is not None:
            await self._database.execute("DELETE FROM task_activity_log WHERE id = $1", identifier)
        elif isinstance(self.store, FakeStore):
            del self.store.rows[identifier]


@pytest.fixture(params=["in memory", "on PostgreSQL"])
async def held(request: pytest.FixtureRequest, store: Store, database: Connection) -> Held:
    """Each store in turn; either refuses the subject REFUSED."""
    if request.param == "in memory":
        fake = FakeStore()
        fake.refuses = {REFUSED}
        return Held(fake, None)
    await database.execute(f"ALTER TABLE task_activity_log ADD CHECK (subject <> '{REFUSED}')")
    return Held(store, database)


def values(applied: Applied) -> dict[str, object]:
    """The fields of an answer that a publisher may set."""
    assert applied.record is not None
    return {name: getattr(applied.record, name) for name in FIELDS}


async def test_a_new_id_is_inserted_and_a_known_one_updated(held: Held) -> None:
    """And answered with every field as it was asked for, absent ones as null."""
    identifier = uuid4()
    [first] = await held.apply(ask(identifier, **FULL))
    [second] = await held.apply(ask(identifier, subject="second"))
    assert (first.outcome, second.outcome) == (Outcome.INSERTED, Outcome.UPDATED)
    assert values(first) == {name: FULL.get(name) for name in FIELDS} | {"id": identifier}
    assert values(second) == dict.fromkeys(FIELDS) | {"id": identifier, "subject": "second"}


async def test_modified_dateutc_grows_with_each_write_and_only_then(held: Held) -> None:
    """A repeat and a stale request leave it as it is."""
    request = ask(version=2)
    identifier = request.record.id
    [(_, written)] = await held.apply(request)
    [(_, repeated)] = await held.apply(request)
    [(_, stale)] = await held.apply(ask(identifier, version=1))
    [(_, later)] = await held.apply(ask(identifier, version=3))
    assert written == repeated == stale
    assert written is not None
    assert later is not None
    assert written.modified_dateutc < later.modified_dateutc


@pytest.mark.parametrize("mode", UpdateMode)
async def test_a_repeat_writes_nothing(held: Held, mode: UpdateMode) -> None:
    """M1 stored, ack lost, M2 stored, M1 again: answered `duplicate` with what M2 has stored."""
    first = ask(mode=mode, subject="first")
    await held.apply(first)
    [(_, second)] = await held.apply(ask(first.record.id, mode=mode, subject="second"))
    assert await held.apply(first) == [Applied(Outcome.DUPLICATE, second)]


async def test_without_a_key_it_is_applied_each_time(held: Held) -> None:
    """Nothing is remembered of such a request."""
    request = ask(key=False)
    assert outcomes(await held.apply(request) + await held.apply(request)) == ["inserted", "updated"]


@pytest.mark.parametrize("mode", UpdateMode)
@pytest.mark.parametrize(
    ("stored", "asked", "outcome", "next_stale"),
    [
        (None, -1, "updated", -1),
        (1, None, "updated", 1),
        (1, 2, "updated", 2),
        (2, 2, "stale", 2),
        (2, -3, "stale", 2),
        (0, -1, "stale", 0),
        (-1, 0, "updated", 0),
        (2**63 - 2, 2**63 - 1, "updated", 2**63 - 1),
    ],
)
async def test_only_a_higher_version_is_applied(
    held: Held, mode: UpdateMode, stored: int | None, asked: int | None, outcome: str, next_stale: int
) -> None:
    """One without version is applied, and the remembered version stays."""
    identifier = uuid4()
    await held.apply(ask(identifier, mode=mode, version=stored, subject="stored"))
    applied = await held.apply(ask(identifier, mode=mode, version=asked, subject="asked"))
    assert outcomes(applied) == [outcome]
    assert subjects(applied) == ["stored" if outcome == "stale" else "asked"]
    assert outcomes(await held.apply(ask(identifier, mode=mode, version=next_stale))) == ["stale"]


async def test_the_repeat_of_a_stale_request_is_a_duplicate(held: Held) -> None:
    """It was taken."""
    newer, stale = ask(version=2), ask(version=1)
    stale = ask(newer.record.id, version=1)
    await held.apply(newer)
    assert outcomes(await held.apply(stale) + await held.apply(stale)) == ["stale", "duplicate"]


async def test_a_merge_keeps_what_it_does_not_name(held: Held) -> None:
    """Absent keeps, null clears, and on a new id absent is null."""
    identifier = uuid4()
    await held.apply(ask(identifier, **FULL))
    [applied] = await held.apply(merge(identifier, subject=None, task_id=UUID(int=7)))
    assert values(applied) == {name: FULL.get(name) for name in FIELDS} | {
        "id": identifier,
        "subject": None,
        "task_id": UUID(int=7),
    }
    [new] = await held.apply(merge(subject="new"))
    assert new.outcome is Outcome.INSERTED
    assert {name for name, value in values(new).items() if value is not None} == {"id", "subject"}


async def test_the_row_of_a_repeat_may_be_gone(held: Held) -> None:
    """Nothing is written, and there is no record to answer with; a new message makes the row again, from any version."""
    request = ask(version=5)
    await held.apply(request)
    await held.delete(request.record.id)
    assert await held.apply(request) == [Applied(Outcome.DUPLICATE, None)]
    assert outcomes(await held.apply(ask(request.record.id, version=1))) == ["inserted"]


async def test_a_wave_with_a_refused_row_leaves_nothing(held: Held) -> None:
    """Neither its rows nor its keys: its neighbours are inserted when they come alone."""
    good, bad = ask(subject="good"), ask(subject=REFUSED)
    with pytest.raises(Refused) as refused:
        await held.apply(good, bad)
    assert not refused.value.doubtful
    assert outcomes(await held.apply(good)) == ["inserted"]


async def test_answers_are_in_the_order_of_the_wave(held: Held) -> None:
    """Whatever the order of the ids."""
    wave = [ask(subject=str(number)) for number in range(50)]
    assert subjects(await held.apply(*wave)) == [str(number) for number in range(50)]
    assert outcomes(await held.apply(*reversed(wave))) == ["duplicate"] * 50


@pytest.mark.parametrize("seed", range(5))
async def test_both_stores_answer_alike(store: Store, seed: int) -> None:
    """Three hundred random requests of all kinds, repeats among them, in waves: the same outcomes and the same records."""
    random = Random(seed)  # noqa: S311 - the same tests each time
    ids = [UUID(int=random.getrandbits(128)) for _ in range(5)]
    asked: list[Request[Delivery]] = []
    for number in range(300):
        if asked and random.random() < 0.2:
            asked.append(random.choice(asked))
            continue
        given: dict[str, Any] = {
            name: value
            for name, value in (("subject", f"s{number}"), ("description", None), ("task_id", UUID(int=number)))
            if random.random() < 0.6
        }
        asked.append(
            ask(
                random.choice(ids),
                key=random.random() < 0.8,
                version=random.choice([None, None, number // 10, number // 10 - 2]),
                mode=random.choice(list(UpdateMode)),
                **given,
            )
        )
    fake = FakeStore()
    for start in range(0, len(asked), 20):
        for wave in waves(asked[start : start + 20]):
            assert _comparable(await store.apply(wave)) == _comparable(await fake.apply(wave))


def _comparable(applied: Sequence[Applied]) -> list[tuple[str, dict[str, object]]]:
    return [(str(one.outcome), values(one)) for one in applied]
