"""Errors of the database: some reject a message, others hold the worker. A whole worker runs on a real server."""

import secrets
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from task_activity_log import service as service_module
from task_activity_log.cli.check import database as check
from task_activity_log.record import STORED_FIELDS
from task_activity_log.service import Service
from task_activity_log.settings import load
from tests.asking import OPEN_SCHEMA, Connection
from tests.commands import command
from tests.faults.conversation import SINGLE_ACTIVE, conversing, until
from tests.serving import serving


@pytest.fixture
async def role_url(database_url: str, admin: Connection) -> AsyncIterator[str]:
    """The DSN of a role for this test alone, with the privileges that a worker needs. Its password is its name."""
    name = f"worker_{secrets.token_hex(6)}"
    await admin.execute(
        f"""
        CREATE ROLE {name} LOGIN PASSWORD '{name}';
        GRANT SELECT, INSERT, UPDATE ON task_activity_log TO {name};
        GRANT SELECT, INSERT, DELETE ON task_activity_log_inbox TO {name};
        """
    )
    parts = urlsplit(database_url)
    yield urlunsplit(parts._replace(netloc=f"{name}:{name}@{parts.netloc.rpartition('@')[2]}"))
    await admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def role_of(url: str) -> str:
    return urlsplit(url).username or ""


def holding(service: Service, reason: str) -> bool:
    return any(reason in line for line in service.status.not_ready())


async def test_a_row_that_row_security_forbids_is_rejected_alone(
    amqp_url: str, role_url: str, admin: Connection
) -> None:
    """SQLSTATE 42501 for one row only rejects its message, and the other rows are stored."""
    await admin.execute(
        """
        ALTER TABLE task_activity_log ENABLE ROW LEVEL SECURITY;
        CREATE POLICY readable ON task_activity_log FOR SELECT USING (true);
        CREATE POLICY insertable ON task_activity_log FOR INSERT WITH CHECK (subject <> 'guilty');
        CREATE POLICY updatable ON task_activity_log FOR UPDATE USING (true);
        """
    )
    async with conversing(amqp_url) as talk, serving(amqp_url, role_url):
        for number in range(12):
            await talk.send(subject="guilty" if number == 7 else "good")
        assert await talk.outcomes(12) == ["inserted"] * 11 + ["rejected"]
        assert [message.headers["x-error-code"] for message in await talk.kept()] == ["refused_by_database"]


@pytest.mark.parametrize(
    "privilege",
    [
        "INSERT ON task_activity_log",
        "UPDATE ON task_activity_log",
        "SELECT ON task_activity_log",
        "INSERT ON task_activity_log_inbox",
    ],
)
async def test_a_missing_privilege_holds_the_worker(
    amqp_url: str, role_url: str, admin: Connection, privilege: str
) -> None:
    """SQLSTATE 42501 for every row is not a message's fault: the worker holds until the privilege is granted."""
    async with conversing(amqp_url) as talk, serving(amqp_url, role_url) as service:
        await admin.execute(f"REVOKE {privilege} FROM {role_of(role_url)}")
        await talk.send()
        await until(lambda: holding(service, "not permitted (42501)"))
        await admin.execute(f"GRANT {privilege} TO {role_of(role_url)}")
        assert await talk.outcomes(1) == ["inserted"]
        assert await talk.kept() == []


async def test_a_wave_that_is_too_big_for_the_statement_timeout_is_stored_in_parts(
    amqp_url: str, role_url: str, admin: Connection
) -> None:
    """Each row takes 20 ms and a statement may take 300 ms: waves are halved until they fit, and none is rejected."""
    await admin.execute(
        f"""
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(0.02); RETURN new; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION slow();
        ALTER ROLE {role_of(role_url)} SET statement_timeout = '300ms';
        """
    )
    async with conversing(amqp_url) as talk, serving(amqp_url, role_url):
        for _ in range(60):
            await talk.send()
        assert await talk.outcomes(60, seconds=60) == ["inserted"] * 60
        assert await talk.kept() == []


async def test_a_stored_row_that_python_cannot_read_is_answered_with_a_problem(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """A merge keeps a date in the year 20000, which others wrote: the merge is stored and answered with a problem."""
    identifier = uuid4()
    await admin.execute(
        "INSERT INTO task_activity_log (id, due_date) VALUES ($1, '20000-01-01'::timestamptz)", identifier
    )
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, WORKER_UPDATE_MODE="merge"):
        await talk.send(identifier, subject="merged")
        await talk.send()
        assert await talk.outcomes(2) == ["inserted", "rejected"]
        assert [message.headers["x-error-code"] for message in await talk.kept()] == ["unreadable_record"]
    assert await admin.fetchval("SELECT subject FROM task_activity_log WHERE id = $1", identifier) == "merged"


@pytest.mark.parametrize(
    ("sqlstate", "reason"), [("53100", "disk full (53100)"), ("53200", "out of resources"), ("57P03", "starting up")]
)
async def test_a_server_that_is_full_or_starting_is_waited_out(
    amqp_url: str, database_url: str, admin: Connection, sqlstate: str, reason: str
) -> None:
    """The worker holds, shows the reason, and rejects no message."""
    await admin.execute(
        f"""
        CREATE FUNCTION full_up() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$;
        CREATE TRIGGER full_up BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION full_up();
        """
    )
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        await talk.send()
        await until(lambda: holding(service, reason))
        await admin.execute("DROP TRIGGER full_up ON task_activity_log")
        assert await talk.outcomes(1) == ["inserted"]
        assert await talk.kept() == []


async def test_too_many_connections_are_waited_out(amqp_url: str, role_url: str, admin: Connection) -> None:
    """While other clients use all connections, the worker holds until one is free."""
    role = role_of(role_url)
    async with conversing(amqp_url) as talk, serving(amqp_url, role_url) as service:
        await talk.send()
        assert await talk.outcomes(1) == ["inserted"]
        await admin.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)
        await talk.send()
        await until(lambda: holding(service, "too many connections (53300)"))
        await admin.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
        assert await talk.outcomes(1) == ["inserted"]


BROKEN: dict[str, tuple[str, str, str]] = {
    "the trigger is missing": (
        "ALTER TRIGGER task_activity_log_modified ON task_activity_log RENAME TO other; DROP TRIGGER other ON task_activity_log",
        "CREATE TRIGGER task_activity_log_modified BEFORE INSERT OR UPDATE ON task_activity_log"
        " FOR EACH ROW EXECUTE FUNCTION task_activity_log_modified()",
        "trigger task_activity_log_modified is missing",
    ),
    "the trigger is disabled": (
        "ALTER TABLE task_activity_log DISABLE TRIGGER ALL",
        "ALTER TABLE task_activity_log ENABLE TRIGGER ALL",
        "trigger task_activity_log_modified is disabled",
    ),
    "a column of another team": (
        "ALTER TABLE task_activity_log ADD COLUMN tenant int; UPDATE task_activity_log SET tenant = 1;"
        "ALTER TABLE task_activity_log ALTER tenant SET NOT NULL",
        "ALTER TABLE task_activity_log ALTER tenant SET DEFAULT 1",
        "column tenant is NOT NULL and not ours",
    ),
    "a column that a trigger does not fill": (
        "CREATE TRIGGER no_help BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION nothing();"
        "ALTER TABLE task_activity_log ADD COLUMN tenant int; UPDATE task_activity_log SET tenant = 1;"
        "ALTER TABLE task_activity_log ALTER tenant SET NOT NULL",
        "ALTER TABLE task_activity_log ALTER tenant SET DEFAULT 1",
        "column tenant is NOT NULL and not ours",
    ),
    "a constraint that nothing satisfies": (
        "ALTER TABLE task_activity_log ADD CONSTRAINT never CHECK (false) NOT VALID",
        "ALTER TABLE task_activity_log DROP CONSTRAINT never",
        "every row is refused (23514): constraint never",
    ),
    "a trigger that raises for every row": (
        "CREATE TRIGGER raises AFTER INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION raising()",
        "DROP TRIGGER raises ON task_activity_log",
        "every row is refused (P0001)",
    ),
    "a trigger that raises at the commit": (
        "CREATE CONSTRAINT TRIGGER raises AFTER INSERT OR UPDATE ON task_activity_log DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION raising()",
        "DROP TRIGGER raises ON task_activity_log",
        "every row is refused (P0001)",
    ),
    "a trigger that names a missing function": (
        "CREATE TRIGGER lacks BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION lacking()",
        "CREATE FUNCTION not_there() RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$",
        "every row is refused (42883)",
    ),
    "a trigger that skips every row": (
        "CREATE TRIGGER skips BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION skipping()",
        "DROP TRIGGER skips ON task_activity_log",
        "a trigger or a rule skips every row",
    ),
    "a trigger of the inbox that skips every key": (
        "CREATE TRIGGER skips BEFORE INSERT ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION skipping()",
        "DROP TRIGGER skips ON task_activity_log_inbox",
        "task_activity_log_inbox does not keep the keys: trigger skips, ",
    ),
    "a constraint of the inbox": (
        "ALTER TABLE task_activity_log_inbox ADD CONSTRAINT never CHECK (false) NOT VALID",
        "ALTER TABLE task_activity_log_inbox DROP CONSTRAINT never",
        "every row is refused (23514): constraint never",
    ),
}
"""What refuses every row: how it is broken, how it is fixed, and the reason that is shown."""

FUNCTIONS = """
    CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
    CREATE FUNCTION raising() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
    CREATE FUNCTION skipping() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
    CREATE FUNCTION lacking() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.description := not_there(); RETURN NEW; END $$;
"""


@pytest.mark.parametrize("how", BROKEN)
async def test_what_refuses_every_row_makes_no_dead_letters(
    amqp_url: str, database_url: str, admin: Connection, how: str
) -> None:
    """The worker holds and names the reason, for new records and for changes; when it is fixed, all are stored."""
    broken, fixed, reason = BROKEN[how]
    await admin.execute(FUNCTIONS)
    records = [uuid4() for _ in range(20)]
    async with (
        conversing(amqp_url, topology=SINGLE_ACTIVE) as talk,
        serving(amqp_url, database_url, WORKER_SINGLE_ACTIVE_CONSUMER="true") as service,
    ):
        for record in records:
            await talk.send(record)
        assert await talk.outcomes(20) == ["inserted"] * 20
        await admin.execute(broken)
        for record in records:
            await talk.send(record, subject="changed")
            await talk.send()
        await until(lambda: holding(service, reason), 30)
        assert await talk.kept() == []
        await admin.execute(fixed)
        assert await talk.outcomes(40, seconds=60) == ["inserted"] * 20 + ["updated"] * 20
        await until(lambda: not service.status.not_ready(), 30)
        assert await talk.kept() == []


DISABLED = "trigger task_activity_log_modified does not fire on the partition part_0"


async def warnings(database_url: str) -> list[str]:
    """What `check` says of the table."""
    found = await check.findings(load({"AMQP_URL": "amqp://h/", "DATABASE_URL": database_url}))
    return [one.found for one in found if one.what == "table" and one.found != OPEN_SCHEMA]


@pytest.mark.parametrize(
    ("before", "broken", "fixed", "warning"),
    [
        ("VALIDATE CONSTRAINT fine", "DISABLE TRIGGER USER", "ENABLE TRIGGER USER", DISABLED),
        (
            "ALTER modified_dateutc DROP NOT NULL", "ENABLE REPLICA TRIGGER task_activity_log_modified", "ENABLE TRIGGER USER",
            DISABLED,
        ),
        (
            "VALIDATE CONSTRAINT fine", "ALTER tenant SET NOT NULL", "ALTER tenant DROP NOT NULL",
            "column tenant of the partition part_0 is NOT NULL and has no default",
        ),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_one_partition_rejects_no_message(
    amqp_url: str, database_url: str, admin: Connection, before: str, broken: str, fixed: str, warning: str
) -> None:
    """Its rows wait, and those of the others are stored. Rows of the worker's own may all be in others."""
    await admin.execute(f"""
        ALTER TABLE task_activity_log RENAME TO old;
        CREATE TABLE task_activity_log (LIKE old INCLUDING ALL, tenant int, CONSTRAINT fine CHECK (true))
            PARTITION BY HASH (id);
        CREATE TABLE part_0 PARTITION OF task_activity_log FOR VALUES WITH (MODULUS 4, REMAINDER 0);
        CREATE TABLE part_1 PARTITION OF task_activity_log FOR VALUES WITH (MODULUS 4, REMAINDER 1);
        CREATE TABLE part_2 PARTITION OF task_activity_log FOR VALUES WITH (MODULUS 4, REMAINDER 2);
        CREATE TABLE part_3 PARTITION OF task_activity_log FOR VALUES WITH (MODULUS 4, REMAINDER 3);
        CREATE TRIGGER task_activity_log_modified BEFORE INSERT OR UPDATE ON task_activity_log
            FOR EACH ROW EXECUTE FUNCTION task_activity_log_modified();
        ALTER TABLE task_activity_log {before};
    """)
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        for _ in range(8):
            await talk.send()
        assert await talk.outcomes(8) == ["inserted"] * 8
        await admin.execute("UPDATE task_activity_log SET tenant = 1")
        await admin.execute(f"ALTER TABLE part_0 {broken}")
        assert await warnings(database_url) == [warning]
        for _ in range(24):
            await talk.send()
        await until(lambda: service.in_hand == service._worker.parking.messages > 0, 30)
        assert await talk.kept() == []
        await admin.execute(f"ALTER TABLE part_0 {fixed}")
        assert await talk.outcomes(24) == ["inserted"] * 24
        assert await talk.kept() == []


ALIKE = "ALTER TABLE {0} ADD k int DEFAULT 7; UPDATE {0} SET k = NULL;"
AUDIT = """
    CREATE SCHEMA audit;
    CREATE TABLE audit.task_activity_log (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, k int, what text{0});
    INSERT INTO audit.task_activity_log (id, k) SELECT 1000 + n, 7 FROM generate_series(1, 100) AS n {1};
    ALTER TABLE audit.task_activity_log ALTER id RESTART WITH 1001, ALTER k SET DEFAULT 7;
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO audit.task_activity_log (what) VALUES (NEW.subject); RETURN NEW; END $$;
    CREATE TRIGGER keeps AFTER INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION keep();
"""


NEEDED = """
    CREATE DOMAIN needed AS text NOT NULL;
    ALTER TABLE {0} ADD tenant needed DEFAULT 'x';
    ALTER TABLE {0} ALTER tenant DROP DEFAULT;
"""
VIEW = f"""
    ALTER TABLE task_activity_log RENAME TO records;
    CREATE VIEW task_activity_log AS SELECT {", ".join(STORED_FIELDS)}, source_version FROM records;
"""  # noqa: S608 - our own names


def _unique(table: str, key: str, before: str = "") -> tuple[str, str, str]:
    """A unique index on a column that has the same value in each new row."""
    return before, ALIKE.format(table) + f"CREATE UNIQUE INDEX few ON {table} {key}", "DROP INDEX few"


DEPLOYED = {
    "domain": ("", NEEDED.format("task_activity_log"), "ALTER DOMAIN needed DROP NOT NULL"),
    "domain behind a view": (VIEW, NEEDED.format("records"), "ALTER DOMAIN needed DROP NOT NULL"),
    "exclusion": (
        "",
        ALIKE.format("task_activity_log")
        + "ALTER TABLE task_activity_log ADD CONSTRAINT few EXCLUDE USING btree (k WITH =)",
        "ALTER TABLE task_activity_log DROP CONSTRAINT few",
    ),
    "unique behind a view": _unique("records", "(k)", before=VIEW),
    "unique with another column included": _unique("task_activity_log", "(k) INCLUDE (id)"),
    "unique expression": _unique("task_activity_log", "((k + 0))"),
    "inbox": _unique("task_activity_log_inbox", "(k)"),
    "audit table of our name": ("", AUDIT.format("", ""), "DROP TRIGGER keeps ON task_activity_log"),
    "exclusion of an audit table": (
        "",
        AUDIT.format(", EXCLUDE USING btree (k WITH =)", "WHERE n = 50"),
        "DROP TRIGGER keeps ON task_activity_log",
    ),
}
"""What there is before, what is made while a worker runs, and how it is corrected."""


@pytest.mark.parametrize("stored", [0, 5], ids=["a new worker", "one that has stored rows"])
@pytest.mark.parametrize("what", DEPLOYED)
async def test_what_is_deployed_while_a_worker_runs_rejects_no_message(
    amqp_url: str, database_url: str, admin: Connection, what: str, stored: int
) -> None:
    """The worker has looked at the tables before, and looks again before a message is rejected. No message sets these values."""
    before, broken, fixed = DEPLOYED[what]
    await admin.execute(before or "SELECT 1")
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        for _ in range(stored):
            await talk.send()
        assert await talk.outcomes(stored) == ["inserted"] * stored
        await admin.execute(broken)
        if stored == 0 and "k int DEFAULT 7;" in broken:  # the first one is stored, with the value that all have
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
        for _ in range(24):
            await talk.send()
        await until(lambda: service.in_hand > 0 and bool(service.status.not_ready()), 30)
        assert await talk.kept() == []
        await admin.execute(fixed)
        assert sorted(set(await talk.outcomes(24, seconds=60))) == ["inserted"]
        assert await talk.kept() == []


RANGE = """
    ALTER TABLE task_activity_log RENAME TO old;
    CREATE TABLE task_activity_log (LIKE old INCLUDING ALL) PARTITION BY RANGE (id);
    CREATE TABLE part PARTITION OF task_activity_log
        FOR VALUES FROM ('01900000-0000-7000-8000-000000000000') TO ('01a00000-0000-7000-8000-000000000000');
    CREATE TRIGGER task_activity_log_modified BEFORE INSERT OR UPDATE ON task_activity_log
        FOR EACH ROW EXECUTE FUNCTION task_activity_log_modified();
"""


@pytest.mark.parametrize(
    "rule",
    [
        "ALTER TABLE task_activity_log ADD CHECK (substr(id::text, 15, 1) = '7')",
        "ALTER TABLE task_activity_log ADD FOREIGN KEY (id) REFERENCES tasks",
        RANGE,
    ],
    ids=["version of the id", "foreign key", "range of ids"],
)
async def test_the_worker_holds_also_where_its_own_ids_are_not_taken(
    amqp_url: str, database_url: str, admin: Connection, rule: str
) -> None:
    """Rows of its own have ids that are similar to one that was stored; or the stored record itself is written again."""
    ids = [UUID(f"01999999-0000-7000-8000-{number:012}") for number in range(25)]
    await admin.execute(f"CREATE TABLE tasks (id uuid PRIMARY KEY); {rule}")
    await admin.executemany("INSERT INTO tasks VALUES ($1)", [(one,) for one in ids])
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        for one in ids[:5]:
            await talk.send(one)
        assert await talk.outcomes(5) == ["inserted"] * 5
        await admin.execute("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
            CREATE TRIGGER zz AFTER INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION refuse();
        """)
        for one in ids[5:]:
            await talk.send(one)
        await until(lambda: service.in_hand > 0 and bool(service.status.not_ready()), 30)
        assert await talk.kept() == []
        await admin.execute("DROP TRIGGER zz ON task_activity_log")
        assert await talk.outcomes(20, seconds=60) == ["inserted"] * 20
        assert await talk.kept() == []


async def test_a_trigger_of_the_inbox_that_changes_keys_holds_a_worker_that_has_stored_nothing(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """The first message is not at fault: no key can be the cause."""
    await admin.execute("""
        CREATE FUNCTION changing() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.request_key := gen_random_uuid(); RETURN NEW; END $$;
        CREATE TRIGGER changes BEFORE INSERT ON task_activity_log_inbox FOR EACH ROW EXECUTE FUNCTION changing();
    """)
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        await talk.send()
        await until(lambda: holding(service, "task_activity_log_inbox does not keep the keys: trigger changes, "), 30)
        assert await talk.kept() == []
        await admin.execute("DROP TRIGGER changes ON task_activity_log_inbox")
        assert await talk.outcomes(1) == ["inserted"]
        assert await talk.kept() == []


SEVENTH = "01999999-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("ALTER TABLE task_activity_log ADD CHECK (subject <> 'bad')", {"subject": "bad"}, {"subject": "good"}),
        ("ALTER TABLE task_activity_log ALTER subject SET NOT NULL", {}, {"subject": "good"}),
        ("ALTER TABLE task_activity_log ADD CHECK (subject LIKE 'X%' AND subject IS NOT NULL)", {}, {"subject": "X"}),
        (
            "CREATE TABLE tasks (id uuid PRIMARY KEY); ALTER TABLE task_activity_log ALTER task_id SET NOT NULL,"
            " ADD FOREIGN KEY (task_id) REFERENCES tasks; INSERT INTO tasks VALUES ('00000000-0000-0000-0000-000000000001')",
            {"task_id": "00000000-0000-0000-0000-000000000002"},
            {"task_id": "00000000-0000-0000-0000-000000000001"},
        ),
        (
            "ALTER TABLE task_activity_log ADD g text GENERATED ALWAYS AS (upper(description)) STORED NOT NULL",
            {},
            {"description": "good"},
        ),
        ("ALTER TABLE task_activity_log ADD CHECK (substr(id::text, 15, 1) = '7')", {}, {"id": SEVENTH}),
        (
            "CREATE TABLE tasks (id uuid PRIMARY KEY); ALTER TABLE task_activity_log ADD FOREIGN KEY (id) REFERENCES tasks;"
            " INSERT INTO tasks VALUES ('01999999-0000-7000-8000-000000000001')",
            {},
            {"id": SEVENTH},
        ),
        (
            "ALTER TABLE task_activity_log ADD g text GENERATED ALWAYS AS (lower(subject)) STORED UNIQUE;"
            " INSERT INTO task_activity_log (id, subject) VALUES (gen_random_uuid(), 'taken')",
            {"subject": "TAKEN"},
            {"subject": "free"},
        ),
        (
            "ALTER TABLE task_activity_log ADD tenant text NOT NULL; CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.tenant := CASE NEW.subject WHEN 'good' THEN 'one' END; RETURN NEW; END $$;"
            " CREATE TRIGGER fills BEFORE INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION fill()",
            {},
            {"subject": "good"},
        ),
        (
            VIEW + "ALTER TABLE records ADD g text GENERATED ALWAYS AS (upper(description)) STORED NOT NULL",
            {},
            {"description": "good"},
        ),
        (
            "CREATE TABLE audit (what text) PARTITION BY LIST (what);"
            " CREATE TABLE part PARTITION OF audit FOR VALUES IN ('good');"
            " CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO audit VALUES (NEW.subject); RETURN NEW; END $$;"
            " CREATE TRIGGER keeps AFTER INSERT OR UPDATE ON task_activity_log FOR EACH ROW EXECUTE FUNCTION keep()",
            {"subject": "bad"},
            {"subject": "good"},
        ),
    ],
)
async def test_bad_messages_of_one_publisher_stop_nobody(
    amqp_url: str, database_url: str, admin: Connection, rule: str, bad: dict[str, Any], good: dict[str, Any]
) -> None:
    """Also if they come first, when no row is stored yet, and if rows of the worker's own do not satisfy the rule either."""
    await admin.execute(rule)
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        for _ in range(40):
            await talk.send(**bad)
        await talk.send(**good)
        assert await talk.outcomes(41, seconds=60) == ["inserted"] + ["rejected"] * 40
        assert len(await talk.kept()) == 40
        await until(lambda: not service.status.not_ready())
        for _ in range(40):
            await talk.send(**bad)
        assert await talk.outcomes(40, seconds=60) == ["rejected"] * 40
        assert service.status.not_ready() == []


@pytest.mark.parametrize(
    "words",
    [
        "task_activity_log: no trigger has set modified_dateutc",
        "task_activity_log: a trigger or a rule skipped the row",
        "task_activity_log: the inbox has not kept the request key",
    ],
)
async def test_a_text_with_the_workers_own_words_is_the_messages_fault(
    amqp_url: str, database_url: str, admin: Connection, words: str
) -> None:
    """The server quotes it in the error of a cast, as it quotes the words that write.sql reports something with."""
    await admin.execute("CREATE INDEX numbers ON task_activity_log ((subject::int))")
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        await talk.send(subject="7")
        assert await talk.outcomes(1) == ["inserted"]
        for _ in range(12):
            await talk.send(subject=words)
        assert await talk.outcomes(12) == ["rejected"] * 12
        assert service.status.not_ready() == []


async def test_a_refused_request_is_not_replayed_over_the_good_one_behind_it(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """Both are in one batch, so the good one is stored before the dead letter is published. Without the rule it stays."""
    await admin.execute("ALTER TABLE task_activity_log ADD CONSTRAINT few CHECK (subject <> 'bad')")
    replay = ("dead-letters", "replay", "--all")
    services: dict[str, Any] = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url):
        for record in [uuid4() for _ in range(20)]:
            await talk.send(record, subject="bad")
            await talk.send(record, subject="good")
        await talk.send(alone := uuid4(), subject="bad")
        assert await talk.outcomes(41) == ["inserted"] * 20 + ["rejected"] * 21
        await admin.execute("ALTER TABLE task_activity_log DROP CONSTRAINT few")
        said = await command(*replay, **services)
        assert (said.code, "1 replayed, 20 kept" in said.err) == (3, True)
        assert await talk.outcomes(1) == ["inserted"]
        assert await admin.fetchval("SELECT subject FROM task_activity_log WHERE id = $1", alone) == "bad"
        assert await admin.fetchval("SELECT count(*) FROM task_activity_log WHERE subject = 'good'") == 20
        assert (await command(*replay, "--over-newer", **services)).code == 0
        assert await talk.outcomes(20) == ["updated"] * 20


async def test_an_inbox_that_cannot_be_trimmed_is_seen(
    amqp_url: str, database_url: str, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its age is known although nothing can be deleted, and it is logged once why. Messages are stored meanwhile."""
    monkeypatch.setattr(service_module, "_TRIM_EVERY_SECONDS", 0.01)
    await admin.execute("""
        INSERT INTO task_activity_log_inbox SELECT gen_random_uuid(), now() - interval '60 days';
        CREATE TABLE others (key uuid REFERENCES task_activity_log_inbox);
        INSERT INTO others SELECT request_key FROM task_activity_log_inbox;
    """)
    with capture_logs() as events:
        async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
            await until(lambda: service._inbox_age > 59 * 86_400)
            await until(lambda: any(event["event"] == "trim_failing" for event in events))
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            await admin.execute("DELETE FROM others")
            await until(lambda: service._inbox_age < 86_400)
    [failing] = [event for event in events if event["event"] == "trim_failing"]
    assert failing["reason"].startswith("the query is refused (23503)")
