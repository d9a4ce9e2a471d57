"""The same tests for two stores: the real one on PostgreSQL, and the one in memory that tests of the worker use."""

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
    "task_activity_id": UUID(int=2),
    "user_id": UUID(int=0),
    "contact_id": UUID(int=3),
    "subject": "subject",
    "description": "description",
    "due_date": datetime(2026, 1, 11, 20, 58, 34, 720383, tzinfo=UTC),
    "is_closed": False,
    "date_closed": datetime(1980, 1, 1, tzinfo=UTC),
    "reference_back_office": "",
}
OTHER: dict[str, Any] = {
    "task_id": UUID(int=4),
    "task_activity_id": UUID(int=5),
    "user_id": UUID(int=6),
    "contact_id": UUID(int=7),
    "subject": "other subject",
    "description": "other description",
    "due_date": datetime(2027, 1, 1, tzinfo=UTC),
    "is_closed": True,
    "date_closed": datetime(2028, 1, 1, tzinfo=UTC),
    "reference_back_office": "other",
}


class Held:
    """A store under test, and a way to delete one of its rows."""

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
    """Each store in turn. Both refuse the subject REFUSED."""
    if request.param == "in memory":
        fake = FakeStore()
        fake.refuses = {REFUSED}
        return Held(fake, None)
    await database.execute(f"ALTER TABLE task_activity_log ADD CHECK (subject <> '{REFUSED}')")
    return Held(store, database)


def values(applied: Applied) -> dict[str, object]:
    """The fields of the record that a publisher can set."""
    assert applied.record is not None
    return {name: getattr(applied.record, name) for name in FIELDS}


async def test_a_new_id_is_inserted_and_a_known_one_updated(held: Held) -> None:
    """Each record is returned with every field as sent; in a replace, absent fields are null."""
    identifier = uuid4()
    [first] = await held.apply(ask(identifier, **FULL))
    assert first.outcome is Outcome.INSERTED
    assert values(first) == FULL | {"id": identifier}
    for subject in ("second", "third"):
        [later] = await held.apply(ask(identifier, subject=subject))
        assert later.outcome is Outcome.UPDATED
        assert values(later) == dict.fromkeys(FIELDS) | {"id": identifier, "subject": subject}


async def test_modified_dateutc_grows_with_each_write_and_only_then(held: Held) -> None:
    """A repeat and a stale request do not change it."""
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
    """M1 is stored, its acknowledgement is lost, M2 is stored, M1 is delivered again: a duplicate with the record of M2."""
    first = ask(mode=mode, subject="first")
    await held.apply(first)
    [(_, second)] = await held.apply(ask(first.record.id, mode=mode, subject="second"))
    assert await held.apply(first) == [Applied(Outcome.DUPLICATE, second)]


async def test_a_request_without_a_key_is_applied_each_time(held: Held) -> None:
    """Such a request is not remembered."""
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
    """A request without a version is applied, and the stored version does not change."""
    identifier = uuid4()
    await held.apply(ask(identifier, mode=mode, version=stored, subject="stored"))
    applied = await held.apply(ask(identifier, mode=mode, version=asked, subject="asked"))
    assert outcomes(applied) == [outcome]
    assert subjects(applied) == ["stored" if outcome == "stale" else "asked"]
    assert outcomes(await held.apply(ask(identifier, mode=mode, version=next_stale))) == ["stale"]


async def test_the_repeat_of_a_stale_request_is_a_duplicate(held: Held) -> None:
    """A stale request is remembered too."""
    newer = ask(version=2)
    stale = ask(newer.record.id, version=1)
    await held.apply(newer)
    assert outcomes(await held.apply(stale) + await held.apply(stale)) == ["stale", "duplicate"]


async def test_a_merge_changes_only_the_fields_that_it_has(held: Held) -> None:
    """For every field: an absent one keeps its value, null clears it, and a value replaces it; each row has its own fields."""
    rows = {name: uuid4() for name in FULL}
    await held.apply(*(ask(identifier, **FULL) for identifier in rows.values()))
    for new in (OTHER, dict.fromkeys(FULL)):
        applied = await held.apply(*(merge(identifier, **{name: new[name]}) for name, identifier in rows.items()))
        assert outcomes(applied) == ["updated"] * len(rows)
        assert [values(one) for one in applied] == [
            FULL | {name: new[name], "id": identifier} for name, identifier in rows.items()
        ]


async def test_a_merge_of_a_new_id_is_an_insert(held: Held) -> None:
    """Absent fields are null then."""
    [new] = await held.apply(merge(subject="new"))
    assert new.outcome is Outcome.INSERTED
    assert {name for name, value in values(new).items() if value is not None} == {"id", "subject"}


@pytest.mark.parametrize("seed", range(3))
async def test_a_merge_of_all_fields_does_the_same_as_a_replace(held: Held, seed: int) -> None:
    """The two statements differ only in the values that they set: outcomes, versions and repeats are the same."""
    random = Random(seed)  # noqa: S311 - the same tests each time
    ids = {mode: [uuid4() for _ in range(3)] for mode in UpdateMode}
    asked: list[dict[UpdateMode, Request[Delivery]]] = []
    seen: set[str] = set()
    for number in range(100):
        if asked and random.random() < 0.2:
            pair = random.choice(asked)
        else:
            fields = {name: random.choice([FULL[name], OTHER[name], None]) for name in FULL}
            version, key = random.choice([None, number // 5, number // 5 - 2]), random.random() < 0.8
            index = random.randrange(3)
            pair = {mode: ask(ids[mode][index], key=key, version=version, mode=mode, **fields) for mode in UpdateMode}
            asked.append(pair)
        [replaced], [merged] = [await held.apply(pair[mode]) for mode in UpdateMode]
        assert replaced.outcome is merged.outcome
        assert values(replaced) | {"id": None} == values(merged) | {"id": None}
        seen.add(replaced.outcome)
    assert seen == {"inserted", "updated", "duplicate", "stale"}


async def test_the_row_of_a_repeat_may_be_gone(held: Held) -> None:
    """Nothing is written, and there is no record to return; a new message creates the row again, with any version."""
    request = ask(version=5)
    await held.apply(request)
    await held.delete(request.record.id)
    applied = await held.apply(request, ask())
    assert applied[0] == Applied(Outcome.DUPLICATE, None)
    assert outcomes(applied) == ["duplicate", "inserted"]
    assert outcomes(await held.apply(ask(request.record.id, version=1))) == ["inserted"]


async def test_a_wave_with_a_refused_row_leaves_nothing(held: Held) -> None:
    """Neither its rows nor its keys are stored: alone, the good one is inserted and the bad one is refused again."""
    good, bad = ask(subject="good"), ask(subject=REFUSED)
    with pytest.raises(Refused, match="23514"):
        await held.apply(good, bad)
    assert outcomes(await held.apply(good)) == ["inserted"]
    with pytest.raises(Refused):
        await held.apply(bad)


async def test_results_are_in_the_order_of_the_wave(held: Held) -> None:
    """The order of the ids does not matter."""
    wave = [ask(subject=str(number)) for number in range(50)]
    assert subjects(await held.apply(*wave)) == [str(number) for number in range(50)]
    assert outcomes(await held.apply(*reversed(wave))) == ["duplicate"] * 50


@pytest.mark.parametrize("seed", range(5))
async def test_both_stores_return_the_same(store: Store, seed: int) -> None:
    """For three hundred random requests of all kinds in waves, with repeats, the outcomes and records are the same."""
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
