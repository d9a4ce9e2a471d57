"""Uses the RabbitMQ and PostgreSQL that AMQP_URL and DATABASE_URL name, and nothing of what they hold.

The sandbox makes a virtual host and a database of its own there, with names that begin with
`task_activity_log_sandbox_`, and removes them at the end. Where it may not, it says so: sharing a virtual host or
database with somebody's data is no way out, as the worker's queues and tables have the same names everywhere.
"""

import contextlib
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from sandbox.postgresql import PostgreSQL, in_thread
from sandbox.processes import Leash
from sandbox.rabbitmq import ManagementError, RabbitMQ
from sandbox.service import NotOurs, NotReadyError, SandboxError

_PREFIX = "task_activity_log_sandbox_"
_MANAGEMENT_PORTS = {"amqp": 15672, "amqps": 15671}


class _Part(NotOurs):
    """The runner of a part of ours of a server that is not: closing it removes the part, a crash does so too."""

    def __init__(self, variable: str, **kept: str) -> None:
        super().__init__(variable, f"{variable} names it, so it is not ours")
        self._leash = Leash()
        # -m needs the folder that holds this package; the URLs travel in the environment, which others cannot read
        folder = str(Path(__file__).parents[1])
        self._leash.ask(
            "last",
            argv=[sys.executable, "-m", "sandbox.environment"],
            environment={"PYTHONPATH": folder, **kept},
            keep=False,
        )

    def close(self) -> None:
        self._leash.close()


def rabbitmq() -> RabbitMQ:
    """Make a virtual host of our own on the broker that AMQP_URL names.

    The management API does that; it is looked for beside the broker or where MANAGEMENT_URL says.
    """
    url = os.environ["AMQP_URL"]
    management = os.environ.get("MANAGEMENT_URL") or _management_url(url)
    given = RabbitMQ(NotOurs("AMQP_URL", "it is not ours"), url, management)
    name = _PREFIX + secrets.token_hex(6)
    part = _Part("AMQP_URL", AMQP_URL=url, MANAGEMENT_URL=management, NAME=name)
    try:
        given.check()
        ours = RabbitMQ(part, given.create_vhost(name), management)
        ours.check()
    except (NotReadyError, ManagementError) as error:
        part.close()
        raise SandboxError(
            f"cannot make a virtual host on the broker that AMQP_URL names ({error}), and the sandbox does not touch "
            "existing ones. It needs the management API and a user with the tag `administrator`: enable "
            "rabbitmq_management, name its address in MANAGEMENT_URL, or unset AMQP_URL"
        ) from None
    return ours


def postgresql() -> PostgreSQL:
    """Make a database of our own on the server that DATABASE_URL names."""
    url = os.environ["DATABASE_URL"]
    given = PostgreSQL(NotOurs("DATABASE_URL", "it is not ours"), url)
    name = _PREFIX + secrets.token_hex(6)
    part = _Part("DATABASE_URL", DATABASE_URL=url, NAME=name)
    try:
        given.check()
        given.execute(f'CREATE DATABASE "{name}"')
        ours = PostgreSQL(part, given.url_of(name))
        ours.check()
    except NotReadyError as error:
        part.close()
        raise SandboxError(
            f"the server that DATABASE_URL names does not answer ({error}): start it, or unset DATABASE_URL"
        ) from None
    except asyncpg.InsufficientPrivilegeError:
        part.close()
        raise SandboxError(
            "the role in DATABASE_URL may not create databases, and the sandbox does not touch existing ones: "
            "ALTER ROLE … CREATEDB, or unset DATABASE_URL"
        ) from None
    return ours


def _management_url(amqp_url: str) -> str:
    parts = urlsplit(amqp_url)
    port = _MANAGEMENT_PORTS.get(parts.scheme, 15672)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
    credentials = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
    return urlunsplit(("https" if parts.scheme == "amqps" else "http", f"{credentials}@{host}:{port}", "", "", ""))


def _remove_databases(url: str, prefix: str) -> None:
    async def remove() -> None:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            names = await connection.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", prefix)
            for (name,) in names:
                await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await connection.close(timeout=10)

    in_thread(remove())


def _remove_vhosts(broker: RabbitMQ, prefix: str) -> None:
    for vhost in broker.api("GET", "/vhosts?columns=name"):
        if vhost["name"].startswith(prefix):
            broker.api("DELETE", f"/vhosts/{quote(vhost['name'], safe='')}")


def main() -> None:
    """Remove what one sandbox made; run by its leash at the end. The server may be gone, which is as good."""
    prefix = os.environ["NAME"]
    if not prefix.startswith(_PREFIX):
        raise SystemExit("refusing to remove what is not the sandbox's")
    with contextlib.suppress(OSError, asyncpg.PostgresError, ManagementError):
        if url := os.environ.get("DATABASE_URL"):
            _remove_databases(url, prefix)
        if url := os.environ.get("AMQP_URL"):
            _remove_vhosts(RabbitMQ(NotOurs("AMQP_URL", "it is not ours"), url, os.environ["MANAGEMENT_URL"]), prefix)


if __name__ == "__main__":
    main()
