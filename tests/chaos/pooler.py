"""A private pgbouncer in transaction mode, in front of the database."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from sandbox import packages
from sandbox.postgresql import in_thread
from sandbox.processes import Processes, unprivileged_user
from sandbox.service import READY_LIMIT_SECONDS, SandboxError, free_port


class Pooler:
    """One pgbouncer. Its methods block."""

    def __init__(self, dsn: str) -> None:
        """Start it in front of the server that `dsn` names; `url` leads through it."""
        parts = urlsplit(dsn)
        port = free_port()
        path = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        if not Path(path).exists():
            if obstacle := packages.cannot_install():
                raise SandboxError(
                    f"pgbouncer is not installed, and {obstacle}; Debian, Ubuntu: apt-get install pgbouncer"
                )
            packages.install("pgbouncer", lambda _: None)
        self.url = urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"))
        self._processes = Processes(path, user=unprivileged_user("postgres"), stop_signal=signal.SIGINT)
        users = self._processes.write(
            "users.txt", f'"{unquote(parts.username or "")}" "{unquote(parts.password or "")}"\n'
        )
        configuration = self._processes.write(
            "pgbouncer.ini",
            f"""
            [databases]
            * = host={parts.hostname} port={parts.port}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {port}
            unix_socket_dir =
            auth_type = plain
            auth_file = {users}
            pool_mode = transaction
            default_pool_size = 5
            server_login_retry = 1
            """.replace("            ", ""),
        )
        self._processes.set_main([path, str(configuration)], self._processes.environment())
        self.start()

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self._processes.start()
        deadline = time.monotonic() + READY_LIMIT_SECONDS
        while not in_thread(_accepts(self.url)):
            if self._processes.ended() is not None or time.monotonic() > deadline:
                raise SandboxError(f"pgbouncer did not start\n{self._processes.log_tail()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once. All its clients lose their connections."""
        self._processes.kill()

    def close(self) -> None:
        """End it for good."""
        self._processes.close()


async def _accepts(url: str) -> bool:
    import asyncpg  # noqa: PLC0415 - next to its only use

    try:
        connection = await asyncpg.connect(url, timeout=5, statement_cache_size=0)
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return False
    await connection.close()
    return True
