"""The store on somebody's own table: triggers, rules, partitions, views, other columns, types and encodings."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from sandbox import PostgreSQL
from task_activity_log.cli.check.database import _judge_table
from task_activity_log.message import Delivery
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.ports import Patience, Settlement
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.postgresql import migrations, writing
from task_activity_log.postgresql import store as postgresql_store
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.faults import SKIPPED_ROW
from task_activity_log.postgresql.journal import Journal
from task_activity_log.postgresql.reading import READ, TABLE
from task_activity_log.postgresql.statements import sql
from task_activity_log.postgresql.store import Store
from task_activity_log.postgresql.survey import Survey
from task_activity_log.problem import SKIPPED, UNKEPT, Code, Failed, Problem, Refused, Rule, Unavailable
from task_activity_log.record import UNKNOWN_INSTANT, Outcome
from tests.asking import Connection, ask, merge, outcomes, subjects
from tests.fakes import delivered

ROUND_TRIP: dict[str, Any] = {"task_id": uuid4(), "subject": "subject", "is_closed": True}


async def refusal(store: Store, *wave: Request[Delivery]) -> Refused:
    """Why a wave is refused."""
    with pytest.raises(Refused) as caught:
        await store.apply(wave)
    return caught.value


async def failure(store: Store, *wave: Request[Delivery]) -> str:
    """Why a wave fails, although no row is at fault."""
    with pytest.raises(Failed) as caught:
        await store.apply(wave)
    return caught.value.label


async def skip(database: Connection, when: str, timing: str = "INSERT OR UPDATE") -> None:
    """Have a trigger skip the rows for which `when` is true."""
    await database.execute(f"""
        CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER skip BEFORE {timing} ON task_activity_log FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION skip();
    """)


class TestSkippedRows:
    """A row that is not written, without an error, is refused. It is neither stale nor a duplicate."""

    @pytest.mark.parametrize("options", [{}, {"key": False}, {"version": 3}, {"mode": UpdateMode.MERGE}])
    @pytest.mark.parametrize("timing", ["INSERT", "UPDATE"])
    async def test_a_row_that_a_trigger_skips_is_refused_and_not_remembered(
        self, store: Store, database: Connection, timing: str, options: dict[str, Any]
    ) -> None:
        """Nothing of its wave is stored. When the trigger is gone, the same message is applied."""
        identifier = uuid4()
        if timing == "UPDATE":
            await store.apply([ask(identifier, version=1, subject="before")])
        await skip(database, "NEW.subject = 'skip'", timing)
        request, neighbour = (
            ask(identifier, subject="skip", **options),
            ask(mode=options.get("mode", UpdateMode.REPLACE)),
        )
        for wave in ([request], [neighbour, request]):
            error = await refusal(store, *wave)
            assert (error.sqlstate, error.problem.code) == (SKIPPED, Code.REFUSED_BY_DATABASE)
        await database.execute("DROP TRIGGER skip ON task_activity_log")
        expected = "updated" if timing == "UPDATE" else "inserted"
        assert outcomes(await store.apply([neighbour, request])) == ["inserted", expected]

    async def test_a_version_that_is_not_higher_is_stale_whatever_a_trigger_does(
        self, store: Store, database: Connection
    ) -> None:
        """The stored version says so. A higher one is refused."""
        await store.apply([kept := ask(version=5, subject="kept")])
        await skip(database, "OLD.subject = 'kept'", "UPDATE")
        applied = await store.apply([ask(kept.record.id, version=5, subject="late")])
        assert (outcomes(applied), subjects(applied)) == (["stale"], ["kept"])
        assert (await refusal(store, ask(kept.record.id, version=6))).sqlstate == SKIPPED
        assert outcomes(await store.apply([ask(kept.record.id, version=-(2**63))])) == ["stale"]

    async def test_an_update_without_changes_that_a_trigger_suppresses_is_refused(
        self, store: Store, database: Connection
    ) -> None:
        """suppress_redundant_updates_trigger, with a name that sorts before the trigger of modified_dateutc."""
        await database.execute("""
            CREATE TRIGGER a BEFORE UPDATE ON task_activity_log FOR EACH ROW
                EXECUTE FUNCTION suppress_redundant_updates_trigger()
        """)
        request = ask(key=False, subject="same")
        await store.apply([request])
        assert (await refusal(store, request)).sqlstate == SKIPPED

    async def test_a_row_that_a_trigger_stores_elsewhere_is_refused(self, store: Store, database: Connection) -> None:
        """As with partitions made by inheritance and a trigger: what became of the row cannot be known."""
        await database.execute("""
            CREATE TABLE child () INHERITS (task_activity_log);
            CREATE FUNCTION route() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN NEW.modified_dateutc := now(); INSERT INTO child SELECT NEW.*; RETURN NULL; END $$;
            CREATE TRIGGER route BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION route();
        """)
        assert (await refusal(store, ask())).sqlstate == SKIPPED
        assert await database.fetchval("SELECT count(*) FROM child") == 0

    async def test_a_row_whose_id_a_trigger_changes_is_refused(self, store: Store, database: Connection) -> None:
        """Otherwise the request would be answered with another record, or none."""
        await database.execute("""
            CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN NEW.id := gen_random_uuid(); RETURN NEW; END $$;
            CREATE TRIGGER change BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION change();
        """)
        assert (await refusal(store, ask())).sqlstate == SKIPPED
        assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 0

    async def test_a_trigger_that_quotes_the_marks_harms_only_its_row(self, store: Store, database: Connection) -> None:
        """Whoever writes the texts of our own errors into a record is refused like any other bad value."""
        await database.execute("""
            CREATE FUNCTION quote() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM NEW.subject::boolean; RETURN NEW; END $$;
            CREATE TRIGGER quote BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION quote();
        """)
        assert (await refusal(store, ask(subject="no boolean"))).sqlstate == "22P02"
        assert (await refusal(store, ask(subject=SKIPPED_ROW))).sqlstate == SKIPPED


KEYS = {
    "skipped": "RETURN NULL;",
    "changed": "NEW.request_key := gen_random_uuid(); RETURN NEW;",
    "stored elsewhere": "INSERT INTO child SELECT NEW.*; RETURN NULL;",
}
"""What a trigger of the inbox does with a key."""


class TestSkippedKeys:
    """A request is a duplicate only if its key is in the inbox. That nothing was inserted proves nothing."""

    @pytest.mark.parametrize("options", [{}, {"version": 3}, {"mode": UpdateMode.MERGE}])
    @pytest.mark.parametrize("how", KEYS)
    async def test_a_request_whose_key_is_not_remembered_is_no_duplicate(
        self, store: Store, database: Connection, how: str, options: dict[str, Any]
    ) -> None:
        """It is refused, with its wave, and not answered as if it were stored. Without the trigger it is applied."""
        await store.apply([old := ask(subject="before", version=1), repeated := ask(subject="kept")])
        await database.execute(f"""
            CREATE TABLE child () INHERITS (task_activity_log_inbox);
            CREATE FUNCTION key() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {KEYS[how]} END $$;
            CREATE TRIGGER key BEFORE INSERT ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION key();
        """)
        new, changed = ask(**options), ask(old.record.id, subject="after", **options)
        for wave in ([new], [changed], [changed, ask(key=False, mode=options.get("mode", UpdateMode.REPLACE))]):
            with pytest.raises(Failed) as caught:
                await store.apply(wave)
            assert (caught.value.sqlstate, caught.value.lasting) == (UNKEPT, True)
        found = await store.try_own_rows(None)
        assert {failure.rule.sqlstate for failure in found} == {UNKEPT}
        assert found[0].reason.startswith("task_activity_log_inbox does not keep the keys: trigger key, ")
        assert await database.fetchval("SELECT count(*) FROM task_activity_log_inbox") == 2
        assert (
            await database.fetchval("SELECT string_agg(subject, ' ' ORDER BY subject) FROM task_activity_log")
            == "before kept"
        )
        await database.execute("DROP TRIGGER key ON task_activity_log_inbox")
        assert outcomes(await store.apply([new])) == ["inserted"]
        assert outcomes(await store.apply([changed])) == ["updated"]
        assert outcomes(await store.apply([repeated])) == ["duplicate"]


async def test_a_mark_that_a_trigger_keeps_is_an_outage(store: Store, database: Connection) -> None:
    """If it stayed without a word, the message would seem to have crashed a worker each time that it is returned."""
    await database.execute("""
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER keep BEFORE DELETE ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION keep();
    """)
    await store.mark(marks := [uuid4()])
    with pytest.raises(Unavailable, match="keys cannot be deleted from task_activity_log_inbox"):
        await store.unmark(marks)
    await database.execute("DROP TRIGGER keep ON task_activity_log_inbox")
    await store.unmark(marks)
    assert await store.marked(marks) == set()


UNSET = {
    "dropped": "DROP TRIGGER task_activity_log_modified ON task_activity_log",
    "disabled": "ALTER TABLE task_activity_log DISABLE TRIGGER ALL",
    "overruled": """
        CREATE FUNCTION z() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.modified_dateutc := '2020-01-01 Z'; RETURN NEW; END $$;
        CREATE TRIGGER z BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION z()
    """,
}
"""What leaves modified_dateutc as it was."""


class TestEverybodysFault:
    """What no message can cause is not blamed on a row."""

    @pytest.mark.parametrize("how", UNSET)
    @pytest.mark.parametrize("default", [False, True])
    async def test_without_the_trigger_nothing_is_written(
        self, store: Store, database: Connection, how: str, *, default: bool
    ) -> None:
        """Neither a new row nor a change of one, which would keep its old instant. No row is refused."""
        await store.apply([old := ask(subject="before")])
        await database.execute("UPDATE task_activity_log SET subject = 'before'")
        if default:
            await database.execute("ALTER TABLE task_activity_log ALTER modified_dateutc SET DEFAULT '2020-01-01 Z'")
        await database.execute(UNSET[how])
        await database.execute("SELECT pg_sleep(1.1)")  # an instant of this second could be of this statement
        assert await failure(store, ask())
        assert await failure(store, ask(old.record.id, subject="after"))
        assert await failure(store, merge(old.record.id, subject="after"))
        assert await database.fetchval("SELECT string_agg(subject, ' ') FROM task_activity_log") == "before"

    async def test_without_triggers_in_a_session_of_replication_nothing_is_written(
        self, store: Store, database: Connection
    ) -> None:
        """session_replication_role, set for the database."""
        await store.close()
        name = await database.fetchval("SELECT quote_ident(current_database())")
        await database.execute(f"ALTER DATABASE {name} SET session_replication_role = replica")
        assert await failure(store, ask()) == "modified_dateutc is not set"

    async def test_a_column_of_another_team_that_is_not_null(self, store: Store, database: Connection) -> None:
        """It has no default, and no message can set it. One of the record's own columns is the message's to set."""
        await store.apply([old := ask()])
        await database.execute("ALTER TABLE task_activity_log ADD COLUMN tenant int NOT NULL DEFAULT 1")
        assert outcomes(await store.apply([ask(old.record.id)])) == ["updated"]
        await database.execute("ALTER TABLE task_activity_log ALTER COLUMN tenant DROP DEFAULT")
        for request in (ask(), ask(old.record.id), merge(old.record.id)):
            assert await failure(store, request) == "a column that is not ours is NOT NULL"
        await database.execute(
            "TRUNCATE task_activity_log; ALTER TABLE task_activity_log DROP tenant, ALTER subject SET NOT NULL"
        )
        assert (await refusal(store, ask())).sqlstate == "23502"

    async def test_a_domain_that_is_not_null_of_a_column_that_no_message_sets(
        self, store: Store, database: Connection
    ) -> None:
        """The error names the domain alone. One that a field has as well may be the message's fault."""
        await database.execute("CREATE DOMAIN tenants AS int NOT NULL; CREATE DOMAIN texts AS text NOT NULL")
        await database.execute("ALTER TABLE task_activity_log ADD tenant tenants, ADD note texts DEFAULT ''")
        await store.probe()
        with pytest.raises(Failed, match="a column that is not ours is NOT NULL: domain tenants, "):
            await store.apply([ask()])
        await database.execute("ALTER TABLE task_activity_log DROP tenant, ALTER subject TYPE texts")
        await store.probe()
        assert (await refusal(store, ask())).sqlstate == "23502"

    @pytest.mark.parametrize("kind", ["table", "partitioned table"])
    async def test_a_key_of_a_table_in_which_a_trigger_writes(
        self, store: Store, database: Connection, kind: str
    ) -> None:
        """Its sequence was set back, as after a restore. The key is called id, as that of the records is."""
        await database.execute(KINDS[kind])
        await database.execute("""
            CREATE TABLE audit (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, what text);
            CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN INSERT INTO audit (what) VALUES (NEW.subject); RETURN NULL; END$$;
            CREATE TRIGGER audit AFTER INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION audit();
            INSERT INTO audit (id) SELECT generate_series(1, 9)
        """)
        await store.probe()
        with pytest.raises(Failed, match="a table of others has a value already: constraint audit_pkey"):
            await store.apply([ask()])
        await database.execute("SELECT setval('audit_id_seq', 9)")
        request = ask()
        assert outcomes(await store.apply([request])) == ["inserted"]
        await database.execute("CREATE UNIQUE INDEX unique_subject ON task_activity_log (id, subject)")
        await database.execute("ALTER TABLE audit RENAME TO audit2")
        with pytest.raises(Failed, match=r"a table of others is missing \(42P01\)"):
            await store.apply([ask()])

    async def test_a_column_of_the_inbox_that_a_trigger_clears(self, store: Store, database: Connection) -> None:
        """It is one of ours, and is named."""
        await database.execute("""
            CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.processed_at := NULL; RETURN NEW; END';
            CREATE TRIGGER clear BEFORE INSERT ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION clear();
        """)
        with pytest.raises(
            Failed, match="a column of the inbox is NOT NULL: column processed_at of task_activity_log_inbox"
        ):
            await store.apply([ask()])

    async def test_a_domain_that_is_not_null(self, store: Store, database: Connection) -> None:
        """PostgreSQL names no column. It is the type of one of ours, whose value a message can set."""
        await database.execute(
            "CREATE DOMAIN given AS text NOT NULL; ALTER TABLE task_activity_log ALTER subject TYPE given"
        )
        assert (await refusal(store, ask())).rule == Rule("23502")
        assert outcomes(await store.apply([ask(subject="a")])) == ["inserted"]

    async def test_a_sequence_without_numbers(self, store: Store, database: Connection) -> None:
        """No message can cause it, so the first row already starts a trial with rows of the worker's own."""
        await database.execute(
            "ALTER TABLE task_activity_log ADD n int GENERATED ALWAYS AS IDENTITY (START 2 MAXVALUE 2)"
        )
        await store.apply([ask()])
        with pytest.raises(Failed) as caught:
            await store.apply([ask()])
        assert (caught.value.sqlstate, caught.value.lasting) == ("2200H", True)

    async def test_a_unique_column_that_no_message_sets(self, store: Store, database: Connection) -> None:
        """A sequence that was set back, or a table that a trigger writes to. With a field among the columns it is the row's."""
        await database.execute("ALTER TABLE task_activity_log ADD n int GENERATED BY DEFAULT AS IDENTITY UNIQUE")
        await store.apply([ask(subject="a")])
        await database.execute("ALTER TABLE task_activity_log ALTER n RESTART")
        with pytest.raises(Failed) as caught:
            await store.apply([ask()])
        assert (caught.value.sqlstate, caught.value.lasting) == ("23505", True)
        await database.execute("CREATE UNIQUE INDEX ON task_activity_log ((lower(subject)), (1))")
        assert (await refusal(store, ask(subject="A"))).sqlstate == "23505"


MISFITS = {
    "DROP TRIGGER task_activity_log_modified ON task_activity_log": "trigger task_activity_log_modified is missing",
    "ALTER TABLE task_activity_log DISABLE TRIGGER ALL": "trigger task_activity_log_modified is disabled",
    "ALTER TABLE task_activity_log ENABLE REPLICA TRIGGER task_activity_log_modified": (
        "trigger task_activity_log_modified does not fire: session_replication_role is origin"
    ),
    "ALTER TABLE task_activity_log ADD tenant int NOT NULL": "column tenant is NOT NULL and not ours",
    "ALTER TABLE task_activity_log ALTER due_date TYPE timestamp": (
        "column due_date is timestamp without time zone, not timestamp with time zone"
    ),
    "ALTER TABLE task_activity_log ALTER date_closed TYPE date": "column date_closed is date, not timestamp with time zone",
    "ALTER TABLE task_activity_log ALTER modified_dateutc TYPE timestamp(3)": (
        "column modified_dateutc is timestamp(3) without time zone, not timestamp with time zone"
    ),
    "ALTER TABLE task_activity_log ALTER id TYPE varchar(36)": "column id is character varying(36), not uuid",
    "ALTER TABLE task_activity_log ALTER is_closed TYPE smallint USING 0": "column is_closed is smallint, not boolean",
    "ALTER TABLE task_activity_log ALTER description TYPE bytea USING ''": "column description is bytea, not text",
    "ALTER TABLE task_activity_log ALTER source_version TYPE text": "column source_version is text, not bigint",
    "ALTER TABLE task_activity_log DROP COLUMN contact_id": "column contact_id is missing",
    "ALTER TABLE task_activity_log DROP subject, ADD subject text GENERATED ALWAYS AS ('x') STORED": (
        "column subject is generated"
    ),
    "ALTER TABLE task_activity_log DROP source_version, ADD source_version bigint GENERATED ALWAYS AS IDENTITY": (
        "column source_version is generated"
    ),
    "ALTER TABLE task_activity_log DROP CONSTRAINT task_activity_log_pkey": (
        "task_activity_log has no unique index on id alone"
    ),
    (
        "ALTER TABLE task_activity_log_inbox DROP request_key,"
        " ADD request_key uuid GENERATED ALWAYS AS ('00000000-0000-0000-0000-000000000001') STORED PRIMARY KEY"
    ): "column request_key of task_activity_log_inbox is generated",
    (
        "ALTER TABLE task_activity_log DROP CONSTRAINT task_activity_log_pkey, ADD PRIMARY KEY (id, modified_dateutc);"
        "CREATE UNIQUE INDEX ON task_activity_log (id) WHERE is_closed"
    ): "task_activity_log has no unique index on id alone",
    "ALTER TABLE task_activity_log DROP CONSTRAINT task_activity_log_pkey, ADD PRIMARY KEY (id) DEFERRABLE": (
        "the unique constraint on id of task_activity_log is deferrable"
    ),
    "CREATE SCHEMA app; ALTER TABLE task_activity_log SET SCHEMA app": (
        "table task_activity_log is in the schema app: it is not in the search path, or the role lacks USAGE on it"
    ),
    "CREATE SCHEMA app; ALTER TABLE task_activity_log_inbox SET SCHEMA app": (
        "table task_activity_log_inbox is in the schema app: it is not in the search path, or the role lacks USAGE on it"
    ),
    "DROP TABLE task_activity_log": "table task_activity_log is missing",
    "DROP TABLE task_activity_log_inbox": "table task_activity_log_inbox is missing",
    "ALTER TABLE task_activity_log_inbox ALTER request_key TYPE text": (
        "column request_key of task_activity_log_inbox is text, not uuid"
    ),
    "ALTER TABLE task_activity_log_inbox RENAME processed_at TO at": (
        "column processed_at of task_activity_log_inbox is missing"
    ),
    "ALTER TABLE task_activity_log_inbox ALTER processed_at DROP DEFAULT": (
        "column processed_at of task_activity_log_inbox is NOT NULL and has no default"
    ),
    "ALTER TABLE task_activity_log_inbox ADD tenant int NOT NULL": (
        "column tenant of task_activity_log_inbox is NOT NULL and has no default"
    ),
    "ALTER TABLE task_activity_log_inbox DROP CONSTRAINT task_activity_log_inbox_pkey": (
        "task_activity_log_inbox has no unique index on request_key alone"
    ),
    (
        "ALTER TABLE task_activity_log_inbox DROP CONSTRAINT task_activity_log_inbox_pkey,"
        " ADD PRIMARY KEY (request_key) DEFERRABLE"
    ): "the unique constraint on request_key of task_activity_log_inbox is deferrable",
    "CREATE RULE r AS ON INSERT TO task_activity_log_inbox DO INSTEAD NOTHING": (
        "task_activity_log_inbox has rules, which ON CONFLICT does not permit"
    ),
    "CREATE RULE r AS ON INSERT TO task_activity_log DO INSTEAD NOTHING": (
        "task_activity_log has rules, which ON CONFLICT does not permit"
    ),
    (
        "DROP TABLE task_activity_log; CREATE EXTENSION file_fdw; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE task_activity_log (id uuid) SERVER s OPTIONS (filename '/dev/null')"
    ): "task_activity_log is a foreign table",
    (
        "DROP TABLE task_activity_log_inbox; CREATE EXTENSION file_fdw; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE task_activity_log_inbox (request_key uuid, processed_at timestamptz) SERVER s"
        " OPTIONS (filename '/dev/null')"
    ): "task_activity_log_inbox is a foreign table",
}
"""What somebody does to the table, and what the worker says at its start, and `check`."""


class TestProbe:
    """What cannot work is named before a message costs anything."""

    @pytest.mark.parametrize("change", MISFITS)
    async def test_what_cannot_work_is_named(self, store: Store, database: Connection, change: str) -> None:
        """By the probe, which a worker makes before it takes messages, and after each failure."""
        await store.probe()
        await database.execute(change)
        with pytest.raises(Unavailable) as caught:
            await store.probe()
        assert caught.value.label == MISFITS[change]
        assert MISFITS[change] in [
            finding.found for finding in _judge_table(await store.look()) if finding.verdict == "broken"
        ]

    @pytest.mark.parametrize(
        ("change", "records_alone"),
        [
            ("CREATE SCHEMA app; ALTER TABLE task_activity_log SET SCHEMA app", False),
            ("ALTER TABLE task_activity_log ALTER id TYPE varchar(36)", False),
            ("ALTER TABLE task_activity_log DROP COLUMN contact_id", True),
            ("ALTER TABLE task_activity_log ALTER is_closed TYPE smallint USING 0", True),
        ],
    )
    async def test_whoever_looks_for_records_is_told_too(
        self, store: Store, database: Connection, database_url: str, change: str, *, records_alone: bool
    ) -> None:
        """Commands that only read, and the console: `schema does not fit (42703)` would not say what to do."""
        await database.execute(change)
        survey, ids = Survey(Connector(database_url)), [uuid4()]
        looks: list[Awaitable[Any]] = [store.current(ids), survey.records(ids)]
        if records_alone:
            assert (await store.modified(ids), await survey.count(datetime.now(UTC))) == ({}, 0)
        else:
            looks += [store.modified(ids), survey.count(datetime.now(UTC))]
        for look in looks:
            with pytest.raises(Unavailable) as caught:
                await look
            assert caught.value.reason.startswith(f"{MISFITS[change]}: database ")
            assert caught.value.reason.endswith("; task-activity-log check says what to do")
        await survey.close()

    async def test_triggers_that_nobody_knows_may_make_up_for_what_is_missing(
        self, store: Store, database: Connection
    ) -> None:
        """One fills a column of another team, and one with another name sets modified_dateutc: `check` warns, all works."""
        await database.execute("""
            REVOKE CREATE ON SCHEMA public FROM PUBLIC; -- of which `check` warns too, on PostgreSQL 14
            CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.tenant := 1; RETURN NEW; END $$;
            CREATE TRIGGER fill BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION fill();
            ALTER TABLE task_activity_log ADD tenant int NOT NULL;
            ALTER TRIGGER task_activity_log_modified ON task_activity_log RENAME TO stamp;
        """)
        await store.probe()
        assert outcomes(await store.apply([request := ask()])) == ["inserted"]
        assert outcomes(await store.apply([merge(request.record.id)])) == ["updated"]
        assert [(one.verdict, one.found) for one in _judge_table(await store.look())] == [
            ("warning", "trigger task_activity_log_modified is missing"),
            ("warning", "column tenant is NOT NULL and not ours"),
        ]

    @pytest.mark.parametrize("enabled", ["ALWAYS", "REPLICA"])
    async def test_a_trigger_that_fires_in_a_session_of_replication(
        self, store: Store, database: Connection, enabled: str
    ) -> None:
        """It does its work there."""
        await store.close()
        name = await database.fetchval("SELECT quote_ident(current_database())")
        await database.execute(f"ALTER DATABASE {name} SET session_replication_role = replica")
        await database.execute(f"ALTER TABLE task_activity_log ENABLE {enabled} TRIGGER task_activity_log_modified")
        await store.probe()
        assert outcomes(await store.apply([ask()])) == ["inserted"]

    async def test_what_works_and_is_odd_is_a_warning(self, store: Store, database: Connection) -> None:
        """Row security, less precise instants, uuids in other columns, a schema in which everybody may create objects."""
        await database.execute("""
            ALTER TABLE task_activity_log ENABLE ROW LEVEL SECURITY;
            ALTER TABLE task_activity_log ALTER modified_dateutc TYPE timestamptz(0), ALTER task_id TYPE varchar(36),
                ALTER due_date TYPE timestamptz(3), ALTER subject TYPE char(20);
            ALTER TABLE task_activity_log_inbox SET UNLOGGED;
            GRANT CREATE ON SCHEMA public TO PUBLIC;
        """)
        await store.probe()
        assert {(one.verdict, one.found) for one in _judge_table(await store.look())} == {
            ("warning", "row security is enabled"),
            ("warning", "task_activity_log_inbox is unlogged, or a part of it"),
            ("warning", "modified_dateutc is timestamp(0) with time zone"),
            ("warning", "due_date is timestamp(3) with time zone"),
            ("warning", "column task_id is character varying(36)"),
            ("warning", "column subject is character(20)"),
            ("warning", "everybody may create objects in the schema public, which is in the search path"),
        }


class TestOwnRows:
    """Rows of the worker's own, written and rolled back."""

    async def test_they_pass_and_leave_nothing(self, store: Store, database: Connection) -> None:
        """Neither a row nor a request key."""
        [(_, record)] = await store.apply([ask(subject="kept")])
        for like in (None, record):
            assert await store.try_own_rows(like) == []
        assert await database.fetchval("SELECT string_agg(subject, ' ') FROM task_activity_log") == "kept"
        assert await database.fetchval("SELECT count(*) FROM task_activity_log_inbox") == 1

    @pytest.mark.parametrize(
        ("change", "rules"),
        [
            ("ADD CONSTRAINT never CHECK (false) NOT VALID", [Rule("23514", "never")] * 3),
            ("ADD CHECK (subject <> 'kept') NOT VALID", []),
            ("ALTER subject SET NOT NULL", []),
            (
                "ALTER subject SET NOT NULL, ADD CONSTRAINT few CHECK (subject LIKE 'X%') NOT VALID",
                [Rule("23514", "few"), Rule("23502", "subject"), Rule("23514", "few")],
            ),
        ],
    )
    async def test_why_all_of_them_are_refused(
        self, store: Store, database: Connection, change: str, rules: list[Rule]
    ) -> None:
        """Each for its own reason; none if one passes. The one with the values of a stored record comes first."""
        await store.apply([ask(subject="kept")])
        await database.execute(f"ALTER TABLE task_activity_log {change}")
        assert [failure.rule for failure in await store.try_own_rows(None)] == rules

    async def test_a_copy_that_is_refused_as_a_copy(self, store: Store, database: Connection) -> None:
        """That proves nothing. With other values in its unique columns it passes, unless every row is refused."""
        user = uuid4()
        await database.execute("""
            CREATE TABLE users (id uuid PRIMARY KEY);
            ALTER TABLE task_activity_log ALTER user_id SET NOT NULL, ADD FOREIGN KEY (user_id) REFERENCES users,
                ADD UNIQUE (user_id, due_date), ADD UNIQUE (reference_back_office), ADD UNIQUE (task_id, subject),
                ADD CHECK (reference_back_office ~ '^BO-[0-9]{5}$');
        """)
        await database.execute("INSERT INTO users VALUES ($1)", user)
        stored = ask(
            user_id=user,
            due_date=datetime(2026, 1, 1, tzinfo=UTC),
            reference_back_office="BO-12345",
            task_id=uuid4(),
            subject="a",
        )
        [(_, like)] = await store.apply([stored])
        for one in (None, like):
            assert await store.try_own_rows(one) == []
        await database.execute("ALTER TABLE users RENAME TO others; CREATE TABLE users (id uuid PRIMARY KEY)")
        await database.execute("ALTER TABLE task_activity_log ADD FOREIGN KEY (user_id) REFERENCES users NOT VALID")
        rules = {failure.sqlstate for failure in await store.try_own_rows(like)}
        assert rules == {"23505", "23502", "23514"}

    @pytest.mark.parametrize("local", [True, False])
    async def test_a_trigger_that_changes_the_session_refuses_nothing(
        self, store: Store, database: Connection, local: bool
    ) -> None:
        """It changes the search path: with the transaction it ends, or with the session, which the probe then replaces."""
        await database.execute(f"""
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM set_config('search_path', '', {local}); RETURN NEW;
            END $$;
            CREATE TRIGGER f BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION f();
        """)
        for _ in range(3):
            assert outcomes(await store.apply([ask()])) == ["inserted"]
            await store.probe()
        assert await store.try_own_rows(None) == []

    async def test_names_that_a_trigger_makes_up_are_not_compared(self, store: Store, database: Connection) -> None:
        """Otherwise each row would be refused by a rule of its own, and none of the worker's own by the same one."""
        await database.execute("""
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE EXCEPTION 'no' USING ERRCODE = '23514', CONSTRAINT = NEW.id::text;
            END $$;
            CREATE TRIGGER f BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION f();
        """)
        assert (await refusal(store, ask())).rule == Rule("23514")
        assert {failure.rule for failure in await store.try_own_rows(None)} == {Rule("23514")}

    async def test_their_reasons_quote_nothing_that_is_not_in_the_catalog(
        self, store: Store, database: Connection
    ) -> None:
        """A trigger may put anything into the names in an error."""
        await database.execute("""
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE EXCEPTION 'secret' USING ERRCODE = '23502', CONSTRAINT = 'secret', COLUMN = 'secret', TABLE = 'secret';
            END $$;
            CREATE TRIGGER f BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION f();
        """)
        found = await store.try_own_rows(None)
        assert found
        assert "secret" not in " ".join(failure.reason for failure in found)
        with pytest.raises(Refused) as caught:
            await store.apply([ask()])
        assert (caught.value.rule, "secret" in str(caught.value)) == (Rule("23502", ""), False)

    async def test_what_the_probe_finds_is_an_outage(self, store: Store, database: Connection) -> None:
        """It has a name already."""
        await database.execute("DROP TRIGGER task_activity_log_modified ON task_activity_log")
        with pytest.raises(Unavailable, match="is missing"):
            await store.try_own_rows(None)


PARTITIONED = """
    ALTER TABLE task_activity_log RENAME TO old;
    CREATE TABLE task_activity_log (LIKE old INCLUDING ALL) PARTITION BY HASH (id);
    CREATE TABLE part_0 PARTITION OF task_activity_log FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE part_1 (spare int, LIKE task_activity_log INCLUDING ALL);
    ALTER TABLE part_1 DROP COLUMN spare;
    ALTER TABLE task_activity_log ATTACH PARTITION part_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TRIGGER task_activity_log_modified BEFORE INSERT OR UPDATE ON task_activity_log
        FOR EACH ROW EXECUTE FUNCTION task_activity_log_modified();
"""
VIEW = """
    ALTER TABLE task_activity_log RENAME TO base;
    CREATE VIEW task_activity_log AS SELECT * FROM base;
"""
KINDS = {"table": "SELECT 1", "partitioned table": PARTITIONED, "view": VIEW}


class TestKindsOfTables:
    """What the records are stored in."""

    @pytest.mark.parametrize("connected", [True, False])
    async def test_a_table_that_becomes_a_view(self, store: Store, database: Connection, *, connected: bool) -> None:
        """Without a probe between: another store of the worker has had it, and other rows pass there."""
        await store.apply([ask()])
        await database.execute(VIEW)
        if not connected:
            await store.close()
        patience = Patience(0.5, 1.0)
        with pytest.raises(Failed, match="schema does not fit"):
            await store.apply([ask()], patience)
        assert outcomes(await store.apply([ask()], patience)) == ["inserted"]

    @pytest.mark.parametrize("kind", KINDS)
    async def test_all_outcomes(self, store: Store, database: Connection, kind: str) -> None:
        """The same as on a table: new and old records, in both modes, repeats, and versions."""
        await database.execute(KINDS[kind])
        new, old = [ask(version=5, subject="a") for _ in range(20)], [merge(description="d") for _ in range(20)]
        await store.probe()
        assert set(outcomes(await store.apply(new))) == {"inserted"}
        assert set(outcomes(await store.apply(old))) == {"inserted"}
        wave = [
            new[0],
            ask(new[1].record.id, version=5),
            ask(new[2].record.id, version=6),
            ask(old[0].record.id),
            ask(),
        ]
        assert outcomes(await store.apply(wave)) == ["duplicate", "stale", "updated", "updated", "inserted"]
        [(outcome, record)] = await store.apply([merge(old[1].record.id, subject="s")])
        assert record is not None
        assert (outcome, record.subject, record.description) == (Outcome.UPDATED, "s", "d")

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_locked_row_is_seen(self, store: Store, database: Connection, kind: str) -> None:
        """So that it is parked alone."""
        await database.execute(KINDS[kind])
        await store.apply([free := ask(), locked := ask()])
        async with database.transaction():
            await database.execute("SELECT FROM task_activity_log WHERE id = $1 FOR UPDATE", locked.record.id)
            assert await store.locked([free.record.id, locked.record.id]) == {locked.record.id}

    async def test_the_documented_partitioning_keeps_each_row_as_it_is(
        self, store: Store, database: Connection
    ) -> None:
        """Also when it was changed: otherwise each would look as if it had been changed just now."""
        [(_, stored)] = await store.apply([request := ask(subject="a")])
        await store.close()
        text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
        [block] = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
        await database.execute(block)
        await store.probe()
        assert await store.modified([request.record.id]) == {request.record.id: stored and stored.modified_dateutc}
        assert outcomes(await store.apply([ask(request.record.id), ask()])) == ["updated", "inserted"]

    async def test_a_table_that_is_partitioned_while_the_worker_runs(self, store: Store, database: Connection) -> None:
        """The next probe notices it."""
        await store.apply([ask()])
        await database.execute(PARTITIONED)
        wave = [ask() for _ in range(20)]  # in both partitions
        with pytest.raises(Failed, match="0A000"):
            await store.apply(wave)
        await store.probe()
        assert outcomes(await store.apply(wave)) == ["inserted"] * 20

    async def test_triggers_of_partitions_are_seen(self, store: Store, database: Connection) -> None:
        """The table's own trigger may be on each partition instead, and a column that is not ours may be set there."""
        await database.execute(PARTITIONED)
        assert (await store.look())["has_code_of_others"] is False  # partitions have copies of the table's own
        await database.execute("DROP TRIGGER task_activity_log_modified ON task_activity_log")
        with pytest.raises(Unavailable, match="trigger task_activity_log_modified is missing"):
            await store.probe()
        for part in ("part_0", "part_1"):
            await database.execute(f"""
                CREATE TRIGGER task_activity_log_modified BEFORE INSERT OR UPDATE ON {part}
                    FOR EACH ROW EXECUTE FUNCTION task_activity_log_modified();
            """)
        await store.probe()
        assert (await store.look())["has_code_of_others"] is True
        assert outcomes(await store.apply([ask() for _ in range(20)])) == ["inserted"] * 20

    async def test_a_row_whose_partition_was_detached_waits(self, store: Store, database: Connection) -> None:
        """No message can cause it, and rows of the worker's own may belong to another partition."""
        await database.execute(PARTITIONED)
        requests = [ask() for _ in range(20)]
        await store.apply(requests)
        await database.execute("ALTER TABLE task_activity_log DETACH PARTITION part_1")
        detached = await database.fetch("SELECT id FROM part_1")
        await store.open()
        connection = store._writer._connection
        for row in detached[:3]:
            with pytest.raises(Failed) as caught:
                await store.apply([ask(row["id"])])
            assert (caught.value.label, caught.value.lasting) == ("no partition for the row (23514)", False)
            assert caught.value.detail.startswith("table task_activity_log, database ")
        assert store._writer._connection is connection
        await database.execute(
            "ALTER TABLE task_activity_log ATTACH PARTITION part_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
        )
        assert outcomes(await store.apply([ask(detached[0]["id"])])) == ["updated"]

    async def test_a_partition_of_the_inbox_that_is_missing_is_named(self, store: Store, database: Connection) -> None:
        """Or of a table in which a trigger writes: the reason says which one."""
        await database.execute("""
            ALTER TABLE task_activity_log_inbox RENAME TO before;
            CREATE TABLE task_activity_log_inbox (request_key uuid PRIMARY KEY, processed_at timestamptz DEFAULT now())
                PARTITION BY HASH (request_key);
        """)
        with pytest.raises(Failed) as caught:
            await store.apply([ask()])
        assert caught.value.detail.startswith("table task_activity_log_inbox, database ")

    async def test_a_partition_that_is_missing_is_named(self, store: Store, database: Connection) -> None:
        """If no row has one, the reason says so."""
        await database.execute(f"{PARTITIONED}; DROP TABLE part_0, part_1")
        assert {failure.label for failure in await store.try_own_rows(None)} == {
            "task_activity_log has no partition for the rows"
        }

    @pytest.mark.parametrize("name", ["task_activity_log", "task_activity_log_inbox"])
    @pytest.mark.parametrize(
        "change",
        [
            "CREATE RULE r AS ON DELETE TO {name} DO INSTEAD NOTHING",
            "CREATE RULE r AS ON INSERT TO {name} DO INSTEAD NOTHING; DROP RULE r ON {name}",
            "CREATE RULE r AS ON INSERT TO {name} DO INSTEAD NOTHING; ALTER TABLE {name} DISABLE RULE r",
            "CREATE RULE r AS ON INSERT TO {name} DO INSTEAD NOTHING; ALTER TABLE {name} ENABLE REPLICA RULE r",
        ],
    )
    async def test_rules_that_do_not_fire_for_what_is_written_do_no_harm(
        self, store: Store, database: Connection, name: str, change: str
    ) -> None:
        """PostgreSQL permits them with ON CONFLICT. One that was dropped leaves a mark in pg_class until a VACUUM."""
        await database.execute(change.format(name=name))
        await store.probe()
        assert outcomes(await store.apply([ask()])) == ["inserted"]

    async def test_a_rule_for_updates_fails_the_probe_also_if_it_is_disabled(
        self, store: Store, database: Connection
    ) -> None:
        """PostgreSQL then refuses ON CONFLICT as well."""
        await database.execute("CREATE RULE r AS ON UPDATE TO task_activity_log DO INSTEAD NOTHING")
        await database.execute("ALTER TABLE task_activity_log DISABLE RULE r")
        with pytest.raises(Unavailable, match="has rules"):
            await store.probe()

    @pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
    async def test_rules_fail_the_probe(self, store: Store, database: Connection, event: str) -> None:
        """PostgreSQL permits neither rules with ON CONFLICT nor INSTEAD rules in WITH: no message can be at fault."""
        await database.execute(f"CREATE RULE r AS ON {event} TO task_activity_log DO INSTEAD NOTHING")
        with pytest.raises(Unavailable, match="has rules"):
            await store.probe()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE task_activity_log SET due_date = 'infinity'", "known"),
        ("UPDATE task_activity_log SET date_closed = '0044-03-15 00:00:00 BC'", "known"),
        ("UPDATE task_activity_log SET description = repeat('x', 3000000)", "known"),
        (
            "ALTER TABLE task_activity_log ALTER modified_dateutc DROP NOT NULL, DISABLE TRIGGER ALL;"
            "UPDATE task_activity_log SET modified_dateutc = NULL",
            "unknown",
        ),
        (
            "ALTER TABLE task_activity_log DISABLE TRIGGER ALL;"
            "UPDATE task_activity_log SET modified_dateutc = 'infinity'",
            "unknown",
        ),
    ],
)
async def test_that_there_is_a_row_is_known_whatever_is_in_it(
    store: Store, database: Connection, change: str, expected: str
) -> None:
    """Otherwise a replay would take the record for a new one, and put an older state over this row."""
    await store.apply([request := ask(subject="newer")])
    await database.execute(change)
    found = await store.modified([request.record.id, uuid4()])
    assert list(found) == [request.record.id]
    assert (found[request.record.id] == UNKNOWN_INSTANT) is (expected == "unknown")


@pytest.mark.parametrize(
    "hide",
    [
        "CREATE OR REPLACE VIEW task_activity_log AS SELECT * FROM base WHERE subject = 'shown'",
        "CREATE VIEW few AS SELECT * FROM base WHERE subject = 'shown';"
        "CREATE OR REPLACE VIEW task_activity_log AS SELECT * FROM few",
        "ALTER TABLE base ENABLE ROW LEVEL SECURITY",
    ],
)
async def test_a_row_that_a_view_may_hide_is_not_said_to_be_missing(
    store: Store, database: Connection, hide: str
) -> None:
    """A replay would put an older state over it: ON CONFLICT finds it all the same."""
    await database.execute(VIEW)
    shown, hidden, missing = ask(subject="shown"), ask(subject="hidden"), uuid4()
    await store.apply([shown, hidden])
    ids = [shown.record.id, hidden.record.id, missing]
    assert set(await store.modified(ids)) == {shown.record.id, hidden.record.id}
    await database.execute(hide)
    found = await store.modified(ids)
    assert found.pop(shown.record.id) != UNKNOWN_INSTANT
    if "SECURITY" in hide:  # which the owner of the view bypasses
        assert found.pop(hidden.record.id) != UNKNOWN_INSTANT
        found[hidden.record.id] = UNKNOWN_INSTANT
    assert found == dict.fromkeys((hidden.record.id, missing), UNKNOWN_INSTANT)


async def test_a_row_that_row_security_may_hide_is_not_said_to_be_missing(
    database: Connection, database_url: str
) -> None:
    """The role of a command may see less than that of the workers."""
    role = f"role_{uuid4().hex}"
    shown, hidden, missing = (uuid4() for _ in range(3))
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT SELECT ON task_activity_log TO {role}")
    store = Store(re.sub(r"//[^@]*@", f"//{role}:x@", database_url))
    try:
        for identifier, subject in ((shown, "shown"), (hidden, "hidden")):
            await database.execute("INSERT INTO task_activity_log (id, subject) VALUES ($1, $2)", identifier, subject)
        assert set(await store.modified([shown, hidden, missing])) == {shown, hidden}
        await database.execute("""
            ALTER TABLE task_activity_log ENABLE ROW LEVEL SECURITY;
            CREATE POLICY a_few ON task_activity_log FOR SELECT USING (subject = 'shown');
        """)
        found = await store.modified([shown, hidden, missing])
        assert found.pop(shown) != UNKNOWN_INSTANT
        assert found == dict.fromkeys((hidden, missing), UNKNOWN_INSTANT)
        assert set(await store.modified([shown])) == {shown}
    finally:
        await store.close()
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


SAME_VALUES = {
    "varchar": "ALTER subject TYPE varchar(100), ALTER description TYPE varchar",
    "char": "ALTER subject TYPE char(20)",
    "uuid in a varchar": "ALTER task_id TYPE varchar(36)",
    "uuid in a text": "ALTER task_id TYPE text",
    "domains": "ALTER subject TYPE short, ALTER task_id TYPE key",
    "milliseconds": "ALTER due_date TYPE timestamptz(3), ALTER modified_dateutc TYPE timestamptz(3)",
    "seconds": "ALTER modified_dateutc TYPE timestamptz(0)",
    "integer version": "ALTER source_version TYPE integer",
    "numeric version": "ALTER source_version TYPE numeric",
    "generated column": "ADD upper text GENERATED ALWAYS AS (upper(subject)) STORED, ADD n int GENERATED ALWAYS AS IDENTITY",
    "confusing names": (
        "ADD request_key uuid, ADD version int, ADD inserted text, ADD outcome text, ADD readable text, ADD kept text,"
        " ADD asked text, ADD stored text, ADD excluded text, ADD written text, ADD before text"
    ),
}
"""Changes of columns after which all values of `ROUND_TRIP` fit."""


@pytest.mark.parametrize("mode", UpdateMode)
@pytest.mark.parametrize("change", SAME_VALUES)
async def test_columns_of_other_types(store: Store, database: Connection, change: str, mode: UpdateMode) -> None:
    """Values are the same in Python whatever the type of the column, also those of duplicates and stale requests."""
    await database.execute("CREATE DOMAIN short AS varchar(50); CREATE DOMAIN key AS uuid")
    await database.execute(f"ALTER TABLE task_activity_log {SAME_VALUES[change]}")
    request = ask(version=1, mode=mode, **ROUND_TRIP)
    for expected in ("inserted", "duplicate"):
        [(outcome, record)] = await store.apply([request])
        assert record is not None
        assert outcome == expected
        assert {name: getattr(record, name) for name in ROUND_TRIP} == ROUND_TRIP
    again = ask(request.record.id, version=1, mode=mode)
    changed = ask(request.record.id, version=2, mode=mode, **ROUND_TRIP)
    assert outcomes(await store.apply([again])) == ["stale"]
    assert outcomes(await store.apply([changed])) == ["updated"]


@pytest.fixture
async def ascii_url(postgresql: PostgreSQL) -> AsyncIterator[str]:
    """A migrated database with the encoding SQL_ASCII, which takes any bytes from anybody."""
    name = f"ascii_{uuid4().hex}"
    server = postgresql.create_database()
    url = urlsplit(server)._replace(path=f"/{name}").geturl()
    admin: Connection = await asyncpg.connect(server)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
    await asyncio.to_thread(migrations.migrate, url)
    yield url
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()
    postgresql.drop_database(server)


async def test_bytes_of_others_that_are_not_text_cost_their_row_alone(ascii_url: str) -> None:
    """The database cannot return such a row, and changes nothing."""
    store, database = Store(ascii_url), await asyncpg.connect(ascii_url)
    victim, neighbour = ask(subject="Société \U0001f600"), ask()
    assert subjects(await store.apply([victim, neighbour])) == ["Société \U0001f600", None]
    await database.execute(r"UPDATE task_activity_log SET subject = E'Soci\351t\351' WHERE subject IS NOT NULL")
    assert (await refusal(store, merge(victim.record.id, description="changed"))).sqlstate == "22021"
    assert await database.fetchval("SELECT count(*) FROM task_activity_log WHERE description = 'changed'") == 0
    wave = [ask(neighbour.record.id), ask(victim.record.id, subject="replaced")]
    assert outcomes(await store.apply(wave)) == ["updated", "updated"]
    await store.close()
    await database.close()


async def test_a_name_that_is_not_text_is_why_the_tables_cannot_be_looked_at(ascii_url: str) -> None:
    """A constraint of somebody with another encoding."""
    store, database = Store(ascii_url), await asyncpg.connect(ascii_url)
    await database.execute(r"""
        DO $$BEGIN EXECUTE pg_catalog.format(
            'ALTER TABLE task_activity_log ADD CONSTRAINT %I CHECK (true)', pg_catalog.convert_from('\351', 'SQL_ASCII')
        ); END$$
    """)
    with pytest.raises(
        Unavailable, match=r"^the query is refused \(22021\): a name or a value in the database is not UTF-8"
    ):
        await store.look()
    await store.close()
    await database.close()


async def test_a_row_that_cannot_be_read_hides_no_others(store: Store, database: Connection, database_url: str) -> None:
    """From commands that read many: here it has a value that is no uuid. If no row can be read, the reason says so."""
    requests = sorted((ask(subject="a") for _ in range(9)), key=lambda request: request.record.id)
    await store.apply(requests)
    ids = [request.record.id for request in requests]
    await database.execute("ALTER TABLE task_activity_log ALTER task_id TYPE text")
    await database.execute("UPDATE task_activity_log SET task_id = 'x' WHERE id = $1", ids[4])
    survey = Survey(Connector(database_url))
    assert [record.id for record in await survey.records(ids)] == [*ids[:4], *ids[5:]]
    assert await survey.exist(ids) == set(ids)
    await database.execute("ALTER TABLE task_activity_log DROP COLUMN contact_id")
    with pytest.raises(Unavailable, match="column contact_id is missing"):
        await survey.records(ids)
    await survey.close()


async def test_all_records_include_one_without_a_time_of_its_change(
    store: Store, database: Connection, database_url: str
) -> None:
    """It was written while the trigger was missing. Nobody knows whether it was changed since a time."""
    requests = sorted((ask(subject="a") for _ in range(3)), key=lambda request: request.record.id)
    await store.apply(requests)
    await database.execute("ALTER TABLE task_activity_log ALTER modified_dateutc DROP NOT NULL, DISABLE TRIGGER USER")
    await database.execute("UPDATE task_activity_log SET modified_dateutc = NULL WHERE id = $1", requests[1].record.id)
    survey = Survey(Connector(database_url))
    ids = [request.record.id for request in requests]
    assert (await survey.count(None), [page async for page in survey.changed(None)]) == (3, [ids])
    assert await survey.count(None, ids[0]) == 2
    long_ago = datetime.min.replace(tzinfo=UTC)
    assert (await survey.count(long_ago), [page async for page in survey.changed(long_ago)]) == (2, [ids[::2]])
    await survey.close()


async def test_an_error_does_not_quote_a_long_text_that_is_no_uuid(store: Store, database: Connection) -> None:
    """The driver takes a time for it that grows with the square of its length, and everybody would wait."""
    await store.apply([request := ask()])
    await database.execute("ALTER TABLE task_activity_log ALTER task_id TYPE text")
    await database.execute("UPDATE task_activity_log SET task_id = repeat('x', 100000)")
    write = writing.arguments([merge(request.record.id, subject="s")], UpdateMode.MERGE, 1.0)
    for statement, arguments in (
        (READ, ([request.record.id], 1_000_000, 1_000_000)),
        (writing.statement(UpdateMode.MERGE, 1_000_000, has_uuids=False), write),
    ):
        with pytest.raises(asyncpg.InvalidTextRepresentationError) as caught:
            await database.fetch(statement, *arguments)
        assert len(str(caught.value)) < 200
    await store.look()
    with pytest.raises(Refused):
        await store.apply([merge(request.record.id, subject="s")])
    assert store._statement(UpdateMode.MERGE) == writing.statement(UpdateMode.MERGE, store._read_bytes, has_uuids=False)
    await database.execute("UPDATE task_activity_log SET task_id = '{6F9619FF-8B86-D011-B42D-00C04FC964FF}'")
    [(_, record)] = await store.apply([merge(request.record.id, subject="s")])
    assert record is not None
    assert record.task_id == UUID("6f9619ff-8b86-d011-b42d-00c04fc964ff")


async def test_characters_that_an_encoding_lacks_are_refused(postgresql: PostgreSQL) -> None:
    """A database in LATIN1 stores what Latin-1 has."""
    name = f"latin_{uuid4().hex}"
    server = postgresql.create_database()
    url = urlsplit(server)._replace(path=f"/{name}").geturl()
    admin: Connection = await asyncpg.connect(server)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    await asyncio.to_thread(migrations.migrate, url)
    store = Store(url)
    try:
        assert subjects(await store.apply([ask(subject="Société")])) == ["Société"]
        assert (await refusal(store, ask(subject="\U0001f600"))).sqlstate == "22P05"
    finally:
        await store.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
        postgresql.drop_database(server)


async def test_a_reply_has_what_the_request_has_stored_whatever_fires_after_it(
    store: Store, database: Connection
) -> None:
    """Most triggers that fire after a row is written keep its history. To read it again would show what others wrote since."""
    await database.execute("""
        CREATE FUNCTION after() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE task_activity_log SET subject = 'of somebody else' WHERE id = NEW.id AND subject = 'of the request';
            RETURN NULL;
        END $$;
        CREATE TRIGGER t AFTER INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION after();
    """)
    [(_, record)] = await store.apply([ask(subject="of the request")])
    assert record is not None
    assert record.subject == "of the request"
    assert await database.fetchval("SELECT subject FROM task_activity_log") == "of somebody else"


HIJACK = """
    CREATE ROLE {role};
    CREATE SCHEMA evil AUTHORIZATION {role};
    SET ROLE {role};
    CREATE TABLE evil.caught (what text DEFAULT pg_catalog.current_query());
    GRANT USAGE ON SCHEMA evil TO PUBLIC;
    GRANT INSERT ON evil.caught TO PUBLIC;
    CREATE FUNCTION evil.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE sql AS
        $$ INSERT INTO evil.caught DEFAULT VALUES; SELECT pg_catalog.unnest($1) $$;
    CREATE FUNCTION evil.unnest(uuid[]) RETURNS SETOF uuid LANGUAGE sql AS
        $$ INSERT INTO evil.caught DEFAULT VALUES; SELECT pg_catalog.unnest($1) $$;
    CREATE FUNCTION evil.same(uuid, uuid) RETURNS boolean LANGUAGE sql AS
        $$ INSERT INTO evil.caught DEFAULT VALUES; SELECT $1 OPERATOR(pg_catalog.=) $2 $$;
    CREATE OPERATOR evil.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = evil.same);
    CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS
        $$ INSERT INTO evil.caught DEFAULT VALUES; SELECT '' $$;
    CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS
        $$ INSERT INTO evil.caught DEFAULT VALUES; SELECT pg_catalog.now() $$;
    CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
        $$ INSERT INTO evil.caught DEFAULT VALUES; SELECT pg_catalog.now() $$;
    CREATE FUNCTION evil.later(timestamptz, interval) RETURNS timestamptz LANGUAGE sql AS
        $$ INSERT INTO evil.caught DEFAULT VALUES; SELECT $1 OPERATOR(pg_catalog.+) $2 $$;
    CREATE OPERATOR evil.+ (LEFTARG = timestamptz, RIGHTARG = interval, FUNCTION = evil.later);
    CREATE DOMAIN evil.uuid AS text;
    CREATE DOMAIN evil.timestamptz AS text;
    CREATE DOMAIN evil.interval AS text;
    RESET ROLE;
"""
"""What somebody who may create objects in a schema of the search path does, as everybody may in `public` up to PostgreSQL 14."""


async def test_nobody_else_runs_anything_as_the_worker(store: Store, database: Connection, database_url: str) -> None:
    """Nor as a command. Even if the schema of somebody else comes first in the search path, before pg_catalog."""
    role = f"evil_{uuid4().hex}"
    survey, journal = Survey(Connector(database_url)), Journal(Connector(database_url))
    message = delivered(b"", "m")
    rejected = Settlement(message, reply.undecoded(message, Problem(Code.INVALID_DATE, "")))
    await database.execute(HIJACK.format(role=role))
    try:
        name = await database.fetchval("SELECT quote_ident(current_database())")
        await database.execute(f"ALTER DATABASE {name} SET search_path = evil, public, pg_catalog")
        await store.probe()
        await store.apply([request := ask(version=1)])
        await store.apply([request, ask(request.record.id, version=1), ask(request.record.id, version=2), merge()])
        await store.apply([merge(request.record.id)])
        await store.locked([request.record.id])
        await store.modified([request.record.id])
        await store.describe()
        await store.look()
        await store.try_own_rows(None)
        await store.try_own_rows(request.record)
        await store.trim(timedelta(0), 10)
        await store.trim_journal(timedelta(0), 10)
        await store.inbox_age()
        await store.mark([uuid4()])
        await store.unmark(list(await store.marked([uuid4()])))
        await survey.count(datetime.now(UTC))
        assert [page async for page in survey.changed(datetime.min.replace(tzinfo=UTC))]
        assert await survey.records([request.record.id])
        await survey.answers("m", request.record.id, 1)
        journal.add([rejected])
        await journal.finish(asyncio.create_task(journal.run()), 10)
        assert await database.fetchval("SELECT string_agg(what, '; ') FROM evil.caught") is None
    finally:
        await survey.close()
        await database.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


SQL = Path(postgresql_store.__file__).parent / "sql"
_PARENTHESES = {
    *(
        "ANY",
        "ARRAY",
        "AS",
        "FROM",
        "VALUES",
        "OR",
        "AND",
        "NOT",
        "CASE",
        "WHEN",
        "EXISTS",
        "MATERIALIZED",
        "WHERE",
        "CONFLICT",
        "OPERATOR",
        "SELECT",
    ),
    *("coalesce", "least", "greatest", "OVER", "FILTER", "LATERAL"),
    *(
        "asked",
        "sent",
        "path",
        "roots",
        "limits",
        "more",
        "needed",
        "task_activity_log_inbox",
        "stored",
        "answer",
        "task_activity_log_journal",
    ),
}
"""What may be followed by a parenthesis and has no schema: keywords, our tables and our aliases."""


@pytest.mark.parametrize(
    "statement",
    [
        *(getattr(postgresql_store, name) for name in vars(postgresql_store) if re.fullmatch("_[A-Z_]+", name)),
        *(writing.statement(mode, 1, has_xmax=ours, has_uuids=ours) for mode in UpdateMode for ours in (True, False)),
        *map(sql, sorted({path.stem for path in SQL.glob("*.sql")} - {"grants"})),
    ],
)
def test_every_function_operator_and_type_has_its_schema(statement: object) -> None:
    """In each statement of ours."""
    for text in statement.values() if isinstance(statement, dict) else [statement]:
        if not isinstance(text, str) or "SELECT" not in text:
            continue
        bare = re.sub(r"OPERATOR\(pg_catalog\.[^ )]+\)|'[^']*'", ",", re.sub(r"(?m)^ *--.*", "", text))
        called = set(re.findall(r"(?<![.\w])(\w+) *\(", bare))
        assert called - _PARENTHESES == set()
        assert re.findall(r"::(?!pg_catalog\.)\w+", bare) == []
        assignments = re.sub(r"(?m)^( *(SET)? *\w+) = ", r"\1 ", bare.replace("DO UPDATE SET", "").replace("(*)", ""))
        assert re.findall(r"[-+*/<>=~!@#%^&|`?]+", assignments.replace("*,", "")) == []
        assert not re.search(r"\b(IN|LIKE|ILIKE|BETWEEN|SIMILAR|DISTINCT)\b", bare)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_look_at_the_tables_is_not_compiled(database: Connection, kind: str) -> None:
    """PostgreSQL compiles a plan that it takes for costly: the look would take a second instead of a millisecond."""
    await database.execute(KINDS[kind])
    plan = json.loads(await database.fetchval(f"EXPLAIN (FORMAT JSON) {TABLE}"))
    assert plan[0]["Plan"]["Total Cost"] < float(await database.fetchval("SHOW jit_above_cost"))
