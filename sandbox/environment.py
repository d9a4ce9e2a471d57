"""Uses the RabbitMQ and PostgreSQL that AMQP_URL and DATABASE_URL name, without touching anything stored there.

The sandbox creates its own virtual host and database on them, with names that begin with
`task_activity_log_sandbox_`, and removes both at the end. If it lacks the permission, it says so. It never falls back
to an existing virtual host or database: the worker's queues and tables have the same names everywhere, so it would
mix with the data there.
"""

import contextlib
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from sandbox.postgresql import PostgreSQL, in_thread
from sandbox.processes import ReaperClient
from sandbox.rabbitmq import ManagementError, RabbitMQ
from sandbox.service import NotOurs, NotReadyError, SandboxError

_PREFIX = "task_activity_log_sandbox_"
_MANAGEMENT_PORTS = {"amqp": 15672, "amqps": 15671}


class _Part(NotOurs):
    """The runner for our virtual host or database on a server that is not ours. Closing it, or a crash, removes it."""

    def __init__(self, variable: str, **kept: str) -> None:
        super().__init__(variable, f"{variable} names it, so it is not ours")
        self._reaper = ReaperClient()
        # -m needs the folder that holds this package, which imports this module before it is run: Python would warn. URLs go
        # into the environment, which other users cannot read.
        folder = str(Path(__file__).parents[1])
        self._reaper.ask(
            "set_cleanup",
            argv=[sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", "sandbox.environment"],
            environment={"PYTHONPATH": folder, **kept},
            save=False,
        )

    def close(self) -> None:
        self._reaper.close()


def rabbitmq() -> RabbitMQ:
    """Create our own virtual host on the broker that AMQP_URL names.

    The management API does that: at the URL that the environment names or, by default, on the usual port of the
    broker's host.
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
            f"cannot create a virtual host on the broker that AMQP_URL names ({error}), and the sandbox does not use "
            "existing ones. It needs the management API and a user with the tag `administrator`: enable "
            "rabbitmq_management, name its address in MANAGEMENT_URL, or unset AMQP_URL"
        ) from None
    return ours


def postgresql() -> PostgreSQL:
    """Create our own database on the server that DATABASE_URL names."""
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
            "the role in DATABASE_URL may not create databases, and the sandbox does not use existing ones. Grant it "
            "the right with ALTER ROLE … CREATEDB, or unset DATABASE_URL"
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
    """Remove what one sandbox created. Its reaper runs this at the end; if the server is gone, nothing is left to remove."""
    prefix = os.environ["NAME"]
    if not prefix.startswith(_PREFIX):
        raise SystemExit("refusing to remove anything that the sandbox did not create")
    with contextlib.suppress(OSError, asyncpg.PostgresError, ManagementError):
        if url := os.environ.get("DATABASE_URL"):
            _remove_databases(url, prefix)
        if url := os.environ.get("AMQP_URL"):
            _remove_vhosts(RabbitMQ(NotOurs("AMQP_URL", "it is not ours"), url, os.environ["MANAGEMENT_URL"]), prefix)


if __name__ == "__main__":
    main()
