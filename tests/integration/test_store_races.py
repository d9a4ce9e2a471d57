"""Two workers at the same time: the same message, the same record, opposite orders."""

import asyncio
from uuid import UUID, uuid4

import pytest

from task_activity_log.postgresql import session as driver
from task_activity_log.postgresql.faults import Fault
from task_activity_log.postgresql.store import Store
from task_activity_log.record import Outcome
from tests.asking import Connection, ask, merge, outcomes, subjects, until_blocked

ROUNDS = 15


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
async def test_the_same_message_in_two_workers(store: Store, database: Connection, ending: str) -> None:
    """The second waits for the first. If the first commits, the second is a duplicate, with the record of the first.

    The row of the first is younger than the snapshot of the second's statement, so it must be read by another statement.
    """
    request = ask(subject="second")
    await database.execute("BEGIN")
    await database.execute("INSERT INTO task_activity_log_inbox VALUES ($1)", request.key)
    await database.execute("INSERT INTO task_activity_log (id, subject) VALUES ($1, 'first')", request.record.id)
    applying = asyncio.create_task(store.apply([request, ask(subject="neighbour")]))
    await until_blocked(database)
    await database.execute(ending)
    applied = await applying
    assert outcomes(applied) == ["duplicate" if ending == "COMMIT" else "inserted", "inserted"]
    assert subjects(applied) == ["first" if ending == "COMMIT" else "second", "neighbour"]
    assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 2


async def test_the_same_messages_in_two_workers_many_times(
    store: Store, other_store: Store, database: Connection
) -> None:
    """Each is applied by exactly one of them, and both return the same record."""
    for _ in range(ROUNDS):
        wave = [ask(subject=str(number)) for number in range(60)]
        one, two = await asyncio.gather(store.apply(wave), other_store.apply(list(reversed(wave))))
        for mine, theirs in zip(one, reversed(two), strict=True):
            assert {mine.outcome, theirs.outcome} == {Outcome.INSERTED, Outcome.DUPLICATE}
            assert mine.record == theirs.record
    assert await database.fetchval("SELECT count(*) FROM task_activity_log") == ROUNDS * 60


@pytest.mark.parametrize(("versions", "expected"), [((1, 2), ("updated", "2")), ((2, 1), ("stale", "2"))])
async def test_the_version_guard_sees_what_is_committed_meanwhile(
    store: Store, database: Connection, versions: tuple[int, int], expected: tuple[str, str]
) -> None:
    """It compares with the row as the other worker leaves it, not as it was when the statement began."""
    [(_, record)] = await store.apply([ask(version=0)])
    assert record is not None
    await database.execute("BEGIN")
    await database.execute("UPDATE task_activity_log SET source_version = $1, subject = $1::bigint::text", versions[0])
    applying = asyncio.create_task(store.apply([ask(record.id, version=versions[1], subject=str(versions[1]))]))
    await until_blocked(database)
    await database.execute("COMMIT")
    applied = await applying
    assert (outcomes(applied)[0], subjects(applied)[0]) == expected


async def test_the_highest_version_wins_in_any_order(store: Store, other_store: Store) -> None:
    """Two workers apply the versions of some records in opposite orders: all end with the highest."""
    ids = [uuid4() for _ in range(20)]

    async def apply(store: Store, versions: list[int]) -> None:
        for version in versions:
            await store.apply([ask(identifier, version=version, subject=str(version)) for identifier in ids])

    versions = list(range(ROUNDS))
    await asyncio.gather(apply(store, versions), apply(other_store, versions[::-1]))
    last = await store.apply([ask(identifier, version=0) for identifier in ids])
    assert set(outcomes(last)) == {"stale"}
    assert set(subjects(last)) == {str(ROUNDS - 1)}


async def test_merges_of_two_workers_lose_nothing(store: Store, other_store: Store) -> None:
    """Each writes fields of its own, many times, to the same rows: the last of either is there at the end."""
    ids = [uuid4() for _ in range(20)]

    async def apply(store: Store, field: str) -> None:
        for number in range(ROUNDS):
            await store.apply([merge(identifier, **{field: str(number)}) for identifier in ids])

    await asyncio.gather(apply(store, "subject"), apply(other_store, "description"))
    for _, record in await store.apply([merge(identifier) for identifier in ids]):
        assert record is not None
        assert (record.subject, record.description) == (str(ROUNDS - 1), str(ROUNDS - 1))


@pytest.mark.parametrize("keyed", [True, False])
async def test_opposite_orders_do_not_deadlock(
    store: Store, other_store: Store, monkeypatch: pytest.MonkeyPatch, *, keyed: bool
) -> None:
    """Two workers write the same records, in opposite orders; a deadlock would surface, as it is not tried again."""
    monkeypatch.setitem(driver._RETRIES, Fault.CONFLICT, 0)
    ids = [uuid4() for _ in range(300)]

    async def apply(store: Store, ids: list[UUID]) -> None:
        for number in range(ROUNDS):
            # Some have no key, so that the two tables are entered at different rows.
            await store.apply([ask(one, key=keyed and index % 3 != number % 3) for index, one in enumerate(ids)])

    await asyncio.gather(apply(store, ids), apply(other_store, ids[::-1]))


async def test_a_deadlock_is_tried_again_at_once(store: Store, database: Connection) -> None:
    """Somebody else's transaction locks in another order: PostgreSQL ends ours, and the wave passes all the same.

    The server looks for deadlocks before our wait for a lock ends. With its default, a second, both come at the same time.
    """
    first, second = sorted(uuid4() for _ in range(2))
    name = await database.fetchval("SELECT quote_ident(current_database())")
    await database.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '100ms'")
    await store.apply([ask(first), ask(second)])
    await database.execute("SET deadlock_timeout = '10s'; BEGIN")  # ours is found out first
    await database.execute("UPDATE task_activity_log SET subject = 'theirs' WHERE id = $1", second)
    applying = asyncio.create_task(store.apply([ask(first, subject="ours"), ask(second, subject="ours")]))
    await until_blocked(database)
    await database.execute("UPDATE task_activity_log SET subject = 'theirs' WHERE id = $1", first)
    await database.execute("COMMIT")
    assert subjects(await applying) == ["ours", "ours"]


async def test_calls_at_the_same_time_take_turns(store: Store) -> None:
    """One connection serves them all, each in a statement of its own."""
    waves = [[ask(subject=str(number))] for number in range(10)]
    applied = await asyncio.gather(*(store.apply(wave) for wave in waves), store.probe())
    assert [subjects(answer) for answer in applied if answer] == [[str(number)] for number in range(10)]
