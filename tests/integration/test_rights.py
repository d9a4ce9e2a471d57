"""Each command works with exactly the permissions and privileges that docs/operations.md says it needs."""

import json
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from sandbox import RabbitMQ
from task_activity_log.rabbitmq.version import number
from tests.asking import OLDER, Connection
from tests.commands import Said, command
from tests.faults.conversation import conversing, until
from tests.serving import serving
from tests.users import user_who_may

DOCS = Path(__file__).parents[2] / "docs"
UPSERT = "task_activity_log.upsert"


def row(page: str, first: str) -> list[str]:
    """The cells of a row of a table in the documents, without its first one."""
    [line] = [line for line in (DOCS / page).read_text().splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[2:-1]]


def permissions(page: str, first: str) -> dict[str, str]:
    """The three patterns in a row."""
    return dict(zip(("configure", "write", "read"), (cell.strip("`") for cell in row(page, first)), strict=True))


class Role:
    """A role of the database that has exactly what a row of the table in operations.md says."""

    def __init__(self, database: Connection, url: str, name: str) -> None:
        self._database, self.url, self.name = database, url, name

    async def may(self, first: str) -> str:
        """Its URL, now that it has the privileges of this row."""
        await self._database.execute(f"DROP OWNED BY {self.name}")
        words = row("operations.md", first)[-1]
        if words.startswith("`SELECT` on "):
            tables = ", ".join(re.findall(r"`(task_\w+)`", words))
            await self._database.execute(f"GRANT SELECT ON {tables} TO {self.name}")
        else:
            assert words.startswith("nothing")
        return self.url


@pytest.fixture
async def role(database: Connection, database_url: str) -> AsyncIterator[Role]:
    name = f"role_{secrets.token_hex(4)}"
    await database.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield Role(database, re.sub(r"//[^@]*@", f"//{name}:secret@", database_url), name)
    await database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def run(code: int, *arguments: str, **variables: str) -> Said:
    said = await command(*arguments, stdin=b"", **variables)
    assert said.code == code, said
    return said


async def dead_letters(amqp_url: str, *names: str) -> None:
    """Leave messages in the dead-letter queue, for records that exist nowhere."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        for name in names:
            message = aio_pika.Message(json.dumps({"id": str(uuid4())}).encode(), message_id=name)
            await channel.default_exchange.publish(message, "task_activity_log.dead-letters")


async def test_commands_that_read_the_database_may_do_nothing_else(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str, role: Role
) -> None:
    """`find`, `resend`, `replay`, `--answered`, and the commands that do not need it at all."""
    page = "dead-letters.md"
    async with serving(amqp_url, database_url), conversing(amqp_url) as talk:
        await talk.send()
        await talk.outcomes(1)
    await dead_letters(amqp_url, "first", "second")

    async def as_documented(first: str, broker: dict[str, str], code: int, *arguments: str) -> Said:
        with user_who_may(rabbitmq, amqp_url, **broker) as url:
            return await run(code, *arguments, AMQP_URL=url, DATABASE_URL=await role.may(first))

    listing = permissions(page, "`list`, `show`, `export`, `discard`")
    handled = "`dead-letters list`, `show`, `export`, `discard`"
    assert "2\tunknown" in (await as_documented(handled, listing, 0, "dead-letters", "list")).out
    await as_documented("`dead-letters replay`", listing, 0, "dead-letters", "list", "--answered")
    await as_documented("`find`", permissions(page, "`find`"), 0, "find", "first")
    await as_documented("`dead-letters replay`", permissions(page, "`replay`"), 0, "dead-letters", "replay", "first")
    await as_documented(handled, listing, 0, "dead-letters", "discard", "second", "--yes")
    sending = permissions("subscribing.md", "`resend`")
    assert "1 record sent" in (await as_documented("`resend`", sending, 0, "resend", "--all", "--yes")).err
    for arguments in (["settings"], ["contract", "xsd"], ["migrate", "--sql"]):
        await run(0, *arguments)


async def test_check_may_only_ask(rabbitmq: RabbitMQ, amqp_url: str, database_url: str, role: Role) -> None:
    """It says what the role cannot do as a worker, and everything else."""
    async with serving(amqp_url, database_url):
        pass
    asking = number(rabbitmq.version) >= (4, 3)
    with user_who_may(rabbitmq, amqp_url, read=".*" if asking else "^$") as url:
        said = await run(1, "check", AMQP_URL=url, DATABASE_URL=await role.may("`check`"), HTTP_PORT="0")
    assert re.search(r"^fine +schema +revision ", said.out, re.MULTILINE)
    broken = [line.split()[1] for line in said.lines if line.startswith("broken")]
    assert broken == ["role"]


async def test_the_owner_of_the_tables_migrates(database: Connection, role: Role) -> None:
    """Creating them needs CREATE on the schema, upgrading them is for their owner."""
    await database.execute("DROP TABLE task_activity_log, task_activity_log_inbox, task_activity_log_journal")
    await database.execute("DROP TABLE task_activity_log_alembic_version; DROP FUNCTION task_activity_log_modified")
    await database.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert "may create tables here" in (await run(1, "migrate", DATABASE_URL=role.url)).err
    await database.execute(f"GRANT CREATE ON SCHEMA public TO {role.name}")
    assert "created" in (await run(0, "migrate", DATABASE_URL=role.url)).out
    await database.execute(OLDER)
    assert "upgraded" in (await run(0, "migrate", DATABASE_URL=role.url)).out


async def test_who_may_create_tables_but_does_not_own_them_is_told_so(database: Connection, role: Role) -> None:
    """CREATE on the schema, which the role has, is not what is missing."""
    await database.execute(OLDER)
    await database.execute(f"GRANT CREATE ON SCHEMA public TO {role.name}")
    assert "connect as the role that owns the tables" in (await run(1, "migrate", DATABASE_URL=role.url)).err


async def test_partitions_are_changed_by_whoever_may_declare(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str
) -> None:
    """The same permissions as those of a worker that declares; to show them needs none, or one since 4.3.1."""
    text = (DOCS / "operations.md").read_text()
    [patterns, *_] = re.findall(r"set_permissions -p VHOST worker((?: \\\n +'.*'){3})", text)
    declaring: dict[str, Any] = dict(zip(("configure", "write", "read"), re.findall("'(.*)'", patterns), strict=True))
    with user_who_may(rabbitmq, amqp_url, **declaring) as url:
        async with serving(url, database_url, WORKER_PARTITIONS="2") as worker:
            await until(lambda: not worker.status.not_ready())
        await run(0, "partitions", "--to", "4", "--yes", AMQP_URL=url)
    asking = number(rabbitmq.version) >= (4, 3)
    with user_who_may(rabbitmq, amqp_url, read=".*" if asking else "^$") as url:
        assert f"{UPSERT}.3" in (await run(0, "partitions", AMQP_URL=url)).out
