"""A private PostgreSQL: how to start it each way, and new databases on it."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import asyncpg

from sandbox.containers import Container
from sandbox.processes import Processes, unprivileged_user
from sandbox.service import NotOurs, NotReadyError, Runner, SandboxError, ServerTls, Service, free_port

DATABASE = "task_activity_log"
"""The database that `url` names on a server that the sandbox has started."""

_T = TypeVar("_T")
_SHARED_LIMIT_SECONDS = 60.0
"""How long the shared server may take to answer on a busy machine; below the time limit of a test."""
_OLDEST = 13  # the first version with DROP DATABASE … WITH (FORCE)
_COPIES_BY_WAL = 15  # the first version that copies a template through the WAL, unless it is told otherwise


_HBA_WITH_CERTIFICATES = """\
hostssl all all all scram-sha-256 clientcert=verify-ca
hostnossl all all all scram-sha-256
"""


class PostgreSQL(Service):
    """A PostgreSQL server whose role may create databases."""

    name = "PostgreSQL"

    def __init__(self, runner: Runner, url: str) -> None:
        """Take the runner and the DSN of the database to use."""
        super().__init__(runner)
        self.url = url
        """The DSN of a database that nobody else uses. The names of further databases begin with its name."""
        self._strategy = ""

    def check(self) -> None:
        """Connect and learn the version; raise `NotReadyError` if that does not work yet."""
        major, self.version, syncs = in_thread(_described(self.url))
        # Copying the files needs two checkpoints. They are expensive where they sync; elsewhere they are the faster way.
        self._strategy = " STRATEGY FILE_COPY" if major >= _COPIES_BY_WAL and not syncs else ""

    def url_of(self, database: str) -> str:
        """Return the DSN of another database of this server."""
        return urlunsplit(urlsplit(self.url)._replace(path="/" + quote(database, safe="")))

    @property
    def database(self) -> str:
        """The name of the database in `url`."""
        return unquote(urlsplit(self.url).path[1:])

    def create_database(self, template: str | None = None) -> str:
        """Create a database with a unique name, empty or as a copy of `template`, and return its DSN."""
        name = f"{self.database}_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}"{self._copy(template)}')
        return self.url_of(name)

    def drop_database(self, url: str) -> None:
        """Drop the database that a DSN names, and disconnect whoever is still connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{unquote(urlsplit(url).path[1:])}" WITH (FORCE)')

    def template(self, fill: Callable[[str], None], name: str = "template") -> str:
        """Return the name of a template database, which `fill` fills (it takes the DSN). Concurrent processes share one.

        The database is built under another name and renamed when it is complete, so a crash leaves no incomplete one.
        """
        name = f"{self.database}_{name}"

        async def make() -> None:
            connection = await asyncpg.connect(self.url)
            try:
                # This session holds the lock until it ends: other processes wait here, then use the template.
                await connection.execute("SELECT pg_advisory_lock(hashtext($1))", name)
                if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                    return
                await connection.execute(f'DROP DATABASE IF EXISTS "{name}_new" WITH (FORCE)')
                await connection.execute(f'CREATE DATABASE "{name}_new"')
                await asyncio.to_thread(fill, self.url_of(f"{name}_new"))
                await connection.execute(f'ALTER DATABASE "{name}_new" RENAME TO "{name}"')
            finally:
                await connection.close()

        in_thread(make())
        return name

    def execute(self, statement: str) -> None:
        """Execute one statement, outside of a transaction."""

        async def run() -> None:
            connection = await asyncpg.connect(self.url)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        in_thread(run())

    def promote(self) -> None:
        """Make a primary of a standby, and return when it is one."""
        self.execute("SELECT pg_promote()")

    def _copy(self, template: str | None) -> str:
        return "" if template is None else f' TEMPLATE "{template}"{self._strategy}'


def from_url(origin: str, url: str, version: str) -> PostgreSQL:
    """Return a server that another process of this test run has started and will stop."""
    server = PostgreSQL(NotOurs(origin, "it is shared by all tests; ask for `own_postgresql`"), url)
    server.version = version
    server.wait_until_ready(_SHARED_LIMIT_SECONDS)
    return server


def from_container(image: str, *, durable: bool) -> PostgreSQL:
    """Start the server from a Docker image."""
    password, port = secrets.token_hex(16), free_port()
    container = Container(
        image,
        ports={5432: port},
        environment={"POSTGRES_USER": "sandbox", "POSTGRES_PASSWORD": password, "POSTGRES_DB": DATABASE},
        command=["postgres", *_settings(durable=durable)],
    )
    return _started(container, _url(port, password, DATABASE))


def from_binaries(
    directory: Path, *, durable: bool, tls: ServerTls | None = None, disk_megabytes: int | None = None
) -> PostgreSQL:
    """Start the server from the binaries in `directory`, on a new and empty cluster.

    With `tls`, clients that connect with TLS must present a certificate. With `disk_megabytes` its data has a file system
    of its own of that size; that needs root.
    """
    password, port = secrets.token_hex(16), free_port()
    processes = Processes(
        f"the binaries in {directory}",
        user=unprivileged_user("postgres"),
        stop_signal=signal.SIGINT,
        disk_megabytes=disk_megabytes,
    )
    try:
        environment = processes.environment()
        cluster = str(processes.data / "cluster")
        processes.run(
            [
                str(directory / "initdb"),
                f"--pgdata={cluster}",
                "--username=sandbox",
                f"--pwfile={processes.write('password', password)}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",  # a cluster that was lost to a power cut now would simply be created again
            ],
            environment,
        )
        here = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        if tls is not None:
            here |= {
                "ssl": "on",
                "ssl_ca_file": str(processes.write("ca.pem", tls.ca)),
                "ssl_cert_file": str(processes.write("certificate.pem", tls.certificate)),
                "ssl_key_file": str(processes.write("key.pem", tls.key)),
                "hba_file": str(processes.write("hba.conf", _HBA_WITH_CERTIFICATES)),
            }
        processes.set_main(
            [str(directory / "postgres"), "-D", cluster, *_settings(durable=durable, **here)], environment
        )
    except BaseException:
        processes.close()
        raise
    # DATABASE does not exist yet, so the first connection is to another one
    server = _started(processes, _url(port, password, "postgres"))
    server.execute(f'CREATE DATABASE "{DATABASE}"')
    server.url = server.url_of(DATABASE)
    return server


def standby_from_binaries(directory: Path, primary: PostgreSQL, port: int | None = None) -> PostgreSQL:
    """Start a streaming standby of a server that was started from the binaries in `directory`. `promote` ends the streaming.

    `port` is that of a server that is no more; None: a new one.
    """
    port = port or free_port()
    processes = Processes(
        f"a standby of {primary.origin}", user=unprivileged_user("postgres"), stop_signal=signal.SIGINT
    )
    try:
        environment = processes.environment()
        cluster = str(processes.data / "cluster")
        processes.run(
            [
                str(directory / "pg_basebackup"),
                f"--pgdata={cluster}",
                f"--dbname={primary.url}",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--write-recovery-conf",
                "--no-sync",
            ],
            environment,
        )
        here = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        processes.set_main([str(directory / "postgres"), "-D", cluster, *_settings(durable=True, **here)], environment)
    except BaseException:
        processes.close()
        raise
    return _started(processes, _url(port, unquote(urlsplit(primary.url).password or ""), DATABASE))


def find_binaries() -> Path | str:
    """Return the directory with the newest `postgres` and `initdb`, or the reason why none is usable.

    SANDBOX_POSTGRESQL_BIN names the only directory to look in, to test with another version.

    Raises:
        SandboxError: that directory has no usable ones.
    """
    if chosen := os.environ.get("SANDBOX_POSTGRESQL_BIN"):
        if _binary_version(Path(chosen)) < _OLDEST:
            raise SandboxError(f"SANDBOX_POSTGRESQL_BIN={chosen} has no PostgreSQL {_OLDEST} or newer")
        return Path(chosen)
    places = [
        *Path("/usr/lib/postgresql").glob("*/bin"),  # Debian, Ubuntu
        *Path("/usr").glob("pgsql-*/bin"),  # Red Hat
        *Path("/opt/homebrew/opt").glob("postgresql@*/bin"),
        *Path("/usr/local/opt").glob("postgresql@*/bin"),
    ]
    if on_path := shutil.which("postgres"):
        places.append(Path(on_path).resolve().parent)
    found = [(version, place) for place in places if (version := _binary_version(place)) >= _OLDEST]
    if found:
        return max(found)[1]
    return f"no PostgreSQL {_OLDEST} or newer is installed"


def _binary_version(directory: Path) -> int:
    """Return the major version of the server in a directory, or 0 if it has no complete installation."""
    if not (directory / "initdb").is_file():
        return 0
    try:
        said = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=True)
        return int(said.stdout.split()[2].split(".")[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return 0


def _settings(*, durable: bool, **more: str) -> list[str]:
    settings = {
        "max_connections": "200",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "dynamic_shared_memory_type": "mmap",  # below the data directory: a server that is killed leaves nothing else behind
        **more,
    }
    if not durable:
        settings |= {"fsync": "off", "full_page_writes": "off"}
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _url(port: int, password: str, database: str) -> str:
    return f"postgresql://sandbox:{password}@127.0.0.1:{port}/{database}"


def _started(runner: Runner, url: str) -> PostgreSQL:
    server = PostgreSQL(runner, url)
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


async def _described(url: str) -> tuple[int, str, bool]:
    """The major version, the whole one, and whether the server syncs its files."""
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise NotReadyError(str(error) or type(error).__name__) from None
    try:
        version = connection.get_server_version()
        said = str(await connection.fetchval("SHOW server_version"))
        return version.major, said.split(maxsplit=1)[0], await connection.fetchval("SHOW fsync") == "on"
    finally:
        await connection.close(timeout=5)


def in_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end on a new event loop, even if this thread is running a loop already."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()
