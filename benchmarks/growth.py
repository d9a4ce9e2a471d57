"""Measures how speed and memory depend on what exists already: a long queue, a big table, a big inbox, a long run."""

from __future__ import annotations

import asyncio
import os
import time
from itertools import islice

from benchmarks import drain, show
from benchmarks.drain import Costs
from benchmarks.load import publishing, requests
from benchmarks.workers import Services, ours, resident, running

_USUAL = 20_000
_MEMORY_RATE = 1_000
_SECOND = 1.0


async def backlog(services: Services, *, waiting: int, rounds: int, seconds: float) -> Costs:
    """Drain a queue of 20,000 messages, then one of `waiting` messages, then one of 20,000 again."""
    few, many = f"{_USUAL:,} waiting", f"{waiting:,} waiting"
    costs: Costs = {few: [], many: []}
    for name, count, times in ((few, _USUAL, rounds), (many, waiting, 1), (few, _USUAL, rounds)):
        for _ in range(times):
            costs[name].append(await drain.once(services, ours(), waiting=count, seconds=seconds))
    return costs


async def table(services: Services, *, rows: int, waiting: int, rounds: int, seconds: float) -> Costs:
    """Drain into an empty table, then into one of `rows` rows, which half of the requests update, then an empty one."""
    empty, full = "empty table", f"{rows:,} rows"
    costs: Costs = {empty: [], full: []}
    for name, there in ((empty, None), (full, rows), (empty, None)):
        if there:
            with show.bar(f"inserting {rows:,} rows into the table"):
                await _fill_table(services, rows)
        for _ in range(rounds):
            costs[name].append(await drain.once(services, ours(), waiting=waiting, seconds=seconds, rows=there))
    return costs


async def inbox(services: Services, *, keys: int, waiting: int, rounds: int, seconds: float) -> Costs:
    """Drain with an empty inbox, then with one of `keys` request keys, then with an empty one again."""
    empty, full = "empty inbox", f"{keys:,} keys"
    costs: Costs = {empty: [], full: []}
    for name in (empty, full, empty):
        if name == full:
            with show.bar(f"inserting {keys:,} keys into the inbox"):
                await _fill_inbox(services, keys)
        for _ in range(rounds):
            rows = 0 if name == full else None  # 0: do not empty the tables, and update no existing rows
            costs[name].append(await drain.once(services, ours(), waiting=waiting, seconds=seconds, rows=rows))
    await services.empty()
    return costs


def _for_database(what: str) -> str:
    """A statement that changes a setting of this database for all later connections."""
    return f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {what}', current_database()); END $$"


_VARIANTS = {
    "as shipped": "",
    "fillfactor 100": "ALTER TABLE task_activity_log SET (fillfactor = 100)",
    "fillfactor 70": "ALTER TABLE task_activity_log SET (fillfactor = 70)",
    "synchronous_commit off": _for_database("SET synchronous_commit = off"),
    "commit_delay 1 ms": _for_database("SET commit_delay = 1000"),
    "wal_compression on": _for_database("SET wal_compression = on"),
    "no inbox index by time": "DROP INDEX task_activity_log_inbox_processed_at",
}
_INBOX_BY_TIME = (
    "CREATE INDEX IF NOT EXISTS task_activity_log_inbox_processed_at ON task_activity_log_inbox (processed_at)"
)
_AS_SHIPPED = (
    "ALTER TABLE task_activity_log SET (fillfactor = 85)",
    _for_database("RESET ALL"),
    _INBOX_BY_TIME,
)


async def database(services: Services, *, rows: int, waiting: int, rounds: int, seconds: float) -> Costs:
    """Drain with one changed setting at a time, into a table of `rows` rows; also print the share of HOT updates."""
    costs: Costs = {name: [] for name in _VARIANTS}
    for _ in range(rounds):
        for name, statement in _VARIANTS.items():
            await services.empty()
            await _as_shipped(services)
            if statement:
                await services.database.execute(statement)
            await _fill_table(services, rows)
            await services.database.execute("SELECT pg_stat_reset()")
            costs[name].append(await drain.once(services, ours(name), waiting=waiting, seconds=seconds, rows=rows))
            show.say(f"    HOT updates, which need no new index entry: {await _hot_share(services):.0%}")
    await _as_shipped(services)
    return costs


async def _as_shipped(services: Services) -> None:
    for statement in _AS_SHIPPED:
        await services.database.execute(statement)


async def _hot_share(services: Services) -> float:
    """The share of heap-only tuple (HOT) updates, from 0 to 1."""
    await asyncio.sleep(_SECOND)  # a backend reports its statistics when it ends, or up to a second later
    share = await services.database.fetchval(
        "SELECT n_tup_hot_upd::float8 / greatest(n_tup_upd, 1) FROM pg_stat_user_tables"
        " WHERE relname = 'task_activity_log'"
    )
    return float(share)


async def _fill_table(services: Services, rows: int) -> None:
    async with services.database.transaction():  # so that the trigger is enabled again even after an error
        await services.database.execute("ALTER TABLE task_activity_log DISABLE TRIGGER USER")
        await services.database.execute(
            "INSERT INTO task_activity_log SELECT md5(number::text)::uuid, gen_random_uuid(), gen_random_uuid(),"
            " gen_random_uuid(), gen_random_uuid(), 'sample string 6', 'sample string 7', now(), true, now(),"
            " 'sample string 11', now() FROM generate_series(1, $1::bigint) AS number",
            rows,
        )
        await services.database.execute("ALTER TABLE task_activity_log ENABLE TRIGGER USER")
    await services.database.execute("VACUUM ANALYZE task_activity_log")


async def _fill_inbox(services: Services, keys: int) -> None:
    # The indexes are created afterwards: keys are random, and inserting each one would read the index from disk.
    await services.empty()
    await services.database.execute("SET maintenance_work_mem = '1GB'")
    async with services.database.transaction():
        await services.database.execute(
            "ALTER TABLE task_activity_log_inbox DROP CONSTRAINT task_activity_log_inbox_pkey"
        )
        await services.database.execute("DROP INDEX task_activity_log_inbox_processed_at")
        await services.database.execute(
            "INSERT INTO task_activity_log_inbox SELECT gen_random_uuid(),"
            " now() - interval '12 hours' * number / $1 FROM generate_series(1, $1::bigint) AS number",
            keys,
        )
        await services.database.execute("ALTER TABLE task_activity_log_inbox ADD PRIMARY KEY (request_key)")
        await services.database.execute(_INBOX_BY_TIME)
    await services.database.execute("VACUUM ANALYZE task_activity_log_inbox")


async def memory(services: Services, *, seconds: float) -> dict[str, float]:
    """One worker's resident memory at 1,000 messages a second, after a minute (or a tenth of the time) and at the end."""
    await services.empty()
    settled = min(60.0, seconds / 10)
    samples: list[tuple[float, int]] = []
    coming = requests(int(_MEMORY_RATE * seconds) + _MEMORY_RATE)
    async with publishing(os.environ["AMQP_URL"]) as publisher:
        with (
            running(ours(), services.python) as [process],
            show.bar(f"{_MEMORY_RATE:,} messages/s for {seconds:,.0f} s") as progress,
        ):
            began = time.perf_counter()
            while (now := time.perf_counter() - began) < seconds:
                await publisher.publish(list(islice(coming, _MEMORY_RATE)))
                await services.take_replies()
                samples.append((now, resident(process.pid)))
                progress(now / seconds)
                await asyncio.sleep(max(0.0, began + now + _SECOND - time.perf_counter()))
    after = next(size for at, size in samples if at >= settled)
    found = {
        "seconds": seconds,
        "messages": float(len(samples) * _MEMORY_RATE),
        "settled_mib": after / 2**20,
        "end_mib": samples[-1][1] / 2**20,
        "most_mib": max(size for _, size in samples) / 2**20,
    }
    show.say(
        f"memory: {found['settled_mib']:.1f} MiB after {settled:.0f} s, {found['end_mib']:.1f} MiB after {seconds:.0f} s,"
        f" {found['most_mib']:.1f} MiB at most; {found['messages']:,.0f} messages"
    )
    return found
