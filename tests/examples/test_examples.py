"""The examples of the documentation, run as their readers would.

Those for Node need npm: `make test` leaves these tests out, `make test-examples` runs them.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aio_pika
import pytest

from sandbox.proxy import Proxy
from tests.faults.conversation import conversing
from tests.serving import serving

pytestmark = pytest.mark.examples

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


async def run(*command: str, directory: Path, **variables: str) -> str:
    """Run a command, which must exit with 0, and return its standard output."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return out.decode()


@pytest.fixture(params=["python", "node"])
async def language(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Path, str]:
    """The interpreter command, the directory to run in, and the extension of the files."""
    if request.param == "python":
        return [sys.executable], EXAMPLES / "python", "py"
    for name in ("package.json", "package-lock.json", "publisher.js", "subscriber.js"):
        (tmp_path / name).write_bytes((EXAMPLES / "node" / name).read_bytes())
    await run("npm", "ci", "--silent", "--no-audit", "--no-fund", directory=tmp_path)
    return ["node"], tmp_path, "js"


@asynccontextmanager
async def started(
    language: tuple[list[str], Path, str],
    program: str,
    amqp_url: str,
    *,
    stdout: int | None = None,
    stderr: int | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An example that is ended at the end of the block, if it runs still."""
    command, directory, ending = language
    process = await asyncio.create_subprocess_exec(
        *command,
        f"{program}.{ending}",
        cwd=directory,
        env={**os.environ, "AMQP_URL": amqp_url},
        stdout=stdout,
        stderr=stderr,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def line_of(stream: asyncio.StreamReader | None) -> bytes:
    """The next line that an example prints."""
    assert stream is not None
    return await asyncio.wait_for(stream.readline(), 60)


async def test_the_publisher_prints_the_stored_record(
    amqp_url: str, database_url: str, language: tuple[list[str], Path, str]
) -> None:
    """The publisher example prints the outcome and the record with its modified_dateutc."""
    command, directory, ending = language
    async with serving(amqp_url, database_url):
        printed = await run(*command, f"publisher.{ending}", directory=directory, AMQP_URL=amqp_url)
    assert printed.startswith("inserted {")
    assert "modified_dateutc" in printed


async def test_a_broker_that_is_away_is_one_line(language: tuple[list[str], Path, str]) -> None:
    """No traceback. A publisher ends with 1, and a subscriber tries again."""
    nobody = "amqp://guest:guest@127.0.0.1:1/"
    async with started(language, "publisher", nobody, stderr=asyncio.subprocess.PIPE) as publisher:
        assert (await line_of(publisher.stderr)).startswith(b"not answered: ")
        assert await asyncio.wait_for(publisher.wait(), 60) == 1
        assert publisher.stderr is not None
        assert await publisher.stderr.read() == b""
    async with started(language, "subscriber", nobody, stderr=asyncio.subprocess.PIPE) as subscriber:
        line = await line_of(subscriber.stderr)
        assert line.startswith(b"no replies: ")
        assert line.endswith(b"; trying again in 5 s\n")


async def test_the_subscriber_connects_again(
    amqp_url: str, database_url: str, language: tuple[list[str], Path, str]
) -> None:
    """After a lost connection it gets what was published since, and the reply that it had not acknowledged."""
    async with (
        serving(amqp_url, database_url),
        Proxy.to(amqp_url) as proxy,
        started(language, "subscriber", proxy.url, stdout=asyncio.subprocess.PIPE) as process,
        conversing(amqp_url, answers=False) as talk,
    ):
        for subject in (b"before", b"after"):
            await talk.send(subject=subject.decode())
            assert (await line_of(process.stdout)).endswith(subject + b"\n")
            proxy.cut()


async def test_the_subscriber_follows_the_replies(
    amqp_url: str, database_url: str, language: tuple[list[str], Path, str]
) -> None:
    """The subscriber example prints the new state of a record, and does not end at a message that is not a reply."""
    async with serving(amqp_url, database_url), await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(
            aio_pika.Message(b"not a reply"), routing_key="task_activity_log.replies"
        )
        async with (
            started(language, "subscriber", amqp_url, stdout=asyncio.subprocess.PIPE) as process,
            conversing(amqp_url, answers=False) as talk,
        ):
            foreign = await line_of(process.stdout)
            await talk.send(subject="first")
            line = await line_of(process.stdout)
            assert process.returncode is None
    assert foreign.startswith(b"not a reply of the worker")
    assert line.startswith(b"inserted ")
    assert line.endswith(b"first\n")


async def test_the_client_publishes_and_follows(amqp_url: str, database_url: str) -> None:
    """The client example publishes one record, an invalid one and a hundred, and follows replies as a subscriber."""
    async with serving(amqp_url, database_url):
        printed = await run(sys.executable, "client.py", directory=EXAMPLES / "python", AMQP_URL=amqp_url)
    assert "publisher: invalid_uuid ['id', 'due_date']" in printed
    assert "100 inserted" in printed
    assert min(line for line in printed.splitlines() if line.startswith("subscriber")) == "subscriber: inserted one"
