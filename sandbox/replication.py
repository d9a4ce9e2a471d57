"""A private PostgreSQL primary with a synchronous streaming standby that takes over, again and again."""

from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sandbox import postgresql
from sandbox.postgresql import PostgreSQL
from sandbox.service import SandboxError


class Pair:
    """Two servers. Their ports stay the same, whichever of them is the primary."""

    def __init__(self) -> None:
        """Start a primary and its standby; commits do not wait for the standby yet.

        Raises:
            SandboxError: there are no binaries of PostgreSQL, or a server does not start.
        """
        binaries = postgresql.find_binaries()
        if isinstance(binaries, str):
            raise SandboxError(f"{binaries}: install it (Debian and Ubuntu: postgresql)")
        self._binaries = binaries
        self.primary = postgresql.from_binaries(binaries, durable=True)
        """The one with the highest timeline."""
        try:
            self.other = postgresql.standby_from_binaries(binaries, self.primary)
            """Its standby, or after `fail_over` the old primary."""
        except BaseException:
            self.primary.close()
            raise
        self._hosts = (_host(self.primary.url), _host(self.other.url))

    @property
    def version(self) -> str:
        """PostgreSQL's version."""
        return self.primary.version

    def url_of(self, database: str) -> str:
        """The DSN of a database with both hosts, in the same order always."""
        parts = urlsplit(self.primary.url_of(database))
        login = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{login}@{','.join(self._hosts)}"))

    def primary_url(self, url: str) -> str:
        """The DSN of the primary alone, for the database of another DSN."""
        return self.primary.url_of(urlsplit(url).path[1:])

    def start(self) -> None:
        """Start the primary again."""
        self.primary.start()

    def kill(self) -> None:
        """End the primary at once, without a failover."""
        self.primary.kill()

    def restart(self) -> None:
        """Stop the primary cleanly and start it again."""
        self.primary.restart()

    def pause(self) -> None:
        """Freeze the primary."""
        self.primary.pause()

    def resume(self) -> None:
        """Let it continue."""
        self.primary.resume()

    def wait_replicated(self) -> None:
        """Let commits wait for the standby from now on, and return when one is connected that they wait for."""
        self.primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.execute("SELECT pg_reload_conf()")
        self.primary.execute(
            "DO $$ BEGIN WHILE NOT EXISTS (SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync') LOOP"
            " PERFORM pg_sleep(0.05), pg_stat_clear_snapshot(); END LOOP; END $$"
        )

    def fail_over(self) -> None:
        """Kill the primary and promote the standby. Nothing that was committed is lost if commits waited for it."""
        self.primary.kill()
        self.other.promote()
        _unwait(self.other)
        self.primary, self.other = self.other, self.primary

    def return_old_primary(self) -> None:
        """Start the old primary again, as somebody might who does not know of the failover. It accepts writes."""
        self.other.start()
        _unwait(self.other)

    def rebuild_standby(self) -> None:
        """Make a new standby of the primary, in place of the old primary and with its port."""
        port = urlsplit(self.other.url).port
        self.other.close()
        self.other = postgresql.standby_from_binaries(self._binaries, self.primary, port)

    def ensure_running(self) -> None:
        """Resume or start both servers if they were left paused or killed."""
        self.primary.ensure_running()
        self.other.ensure_running()

    def create_database(self, **options: Any) -> str:
        """Create a database with a unique name, and return its DSN with both hosts."""
        return self.url_of(urlsplit(self.primary.create_database(**options)).path[1:])

    def close(self) -> None:
        """Stop both for good and remove their data; safe to call twice."""
        self.primary.close()
        self.other.close()


def _unwait(server: PostgreSQL) -> None:
    """Let no commit wait for a standby: there is none."""
    server.execute("ALTER SYSTEM RESET synchronous_standby_names")
    server.execute("SELECT pg_reload_conf()")


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
