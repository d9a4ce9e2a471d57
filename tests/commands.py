"""The product's commands as users run them, and a worker process for the tests of a module."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from task_activity_log.cli import app

COMMAND = str(Path(sys.executable).parent / "task-activity-log")


class World(NamedTuple):
    """The URLs of the services that a worker uses."""

    amqp_url: str
    database_url: str


class Said(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of standard output; fails if there is a traceback on standard error."""
        assert "Traceback" not in self.err, self.err
        return self.out.splitlines()


def environment(**variables: str) -> dict[str, str]:
    """The environment of a command, without the variables of the test run."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "SSL_CERT_FILE")}
    return {**kept, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": "0", "LOG_FORMAT": "json", **variables}


async def start(*arguments: str, **variables: str) -> asyncio.subprocess.Process:
    """Start a command as a process."""
    return await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        env=environment(**variables),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process, stdin: bytes = b"", err: str = "") -> Said:
    """Wait until a process ends, and return its output."""
    async with asyncio.timeout(60):
        out, more = await process.communicate(stdin)
    return Said(process.returncode or 0, out.decode(), err + more.decode())


async def command(*arguments: str, stdin: bytes = b"", **variables: str) -> Said:
    """Run a command within this process. Tests of signals and editors need a process instead: see `start`."""

    def invoke() -> Said:
        hidden: dict[str, str | None] = dict.fromkeys(("AMQP_URL", "MANAGEMENT_URL", "DATABASE_URL"))
        result = CliRunner().invoke(app, arguments, input=stdin, env={**hidden, **variables})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    async with asyncio.timeout(60):
        return await asyncio.to_thread(invoke)


@contextmanager
def worker(folder: Path, amqp_url: str, database_url: str) -> Iterator[None]:
    """Run a worker process; yields when it consumes."""
    log = folder / "worker.log"
    with log.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [COMMAND, "run"], env=environment(AMQP_URL=amqp_url, DATABASE_URL=database_url), stderr=said
        )
        try:
            began = time.monotonic()
            while not any(json.loads(line).get("link") == "intake" for line in log.read_text().splitlines()):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() - began < 60, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(20)
