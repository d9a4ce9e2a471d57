"""What others wrote is shown on a terminal, and readers of the output that went away: the commands and the worker."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from task_activity_log.client import TaskActivityLog, TaskActivityLogClient
from task_activity_log.rabbitmq.topology import Topology, declare
from tests.commands import COMMAND, World, command, environment, start
from tests.terminals import HOSTILE, controls, on_a_terminal

TOPOLOGY = Topology()
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """A channel to a virtual host in which everything that a stranger can write is hostile."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        channel = await connection.channel()
        record = {"id": str(uuid4()), "subject": HOSTILE, "modified_dateutc": "2026-01-01T00:00:00+00:00"}
        problem = {
            "code": HOSTILE,
            "detail": HOSTILE,
            "errors": [{"name": HOSTILE, "code": HOSTILE, "message": HOSTILE}],
        }
        for kind, body in (("", record), ("problem+", problem), ("", HOSTILE)):
            for outcome in ("inserted", "rejected", HOSTILE):
                text = json.dumps(body, ensure_ascii=False) if isinstance(body, dict) else body
                message = hostile(text, f"application/{kind}json", {"x-outcome": outcome, "x-error-code": HOSTILE})
                exchange = await channel.get_exchange(TOPOLOGY.replies_exchange, ensure=False)
                await exchange.publish(message, "rejected")
                await channel.default_exchange.publish(message, TOPOLOGY.dead_letters_queue)
        yield channel


def hostile(body: str, content_type: str, headers: dict[str, Any]) -> aio_pika.Message:
    texts = dict.fromkeys(("correlation_id", "message_id", "app_id", "type", "reply_to", "content_encoding"), HOSTILE)
    return aio_pika.Message(
        body.encode(errors="replace"),
        content_type=content_type,
        headers={HOSTILE: HOSTILE, "x-error-detail": HOSTILE, "x-first-seen": HOSTILE, **headers},
        **texts,  # type: ignore[arg-type]  # all of them are texts
    )


COMMANDS = [
    ("replies", "--take", "-n", "4"),
    ("replies", "--take", "-n", "5", "--json"),
    ("dead-letters", "list"),
    ("dead-letters", "list", "--each"),
    ("dead-letters", "list", "--json"),
    ("dead-letters", "show", "--all"),
    ("dead-letters", "export", "-", "--all"),
    ("dead-letters", "export", HOSTILE, "--all"),
    ("dead-letters", "replay", "--all", "--dry-run"),
    ("dead-letters", "discard", "--code", HOSTILE, "--yes"),
    ("dead-letters", "show", HOSTILE),
    ("publish", HOSTILE),
    ("contract", HOSTILE),
    ("partitions",),
    ("check",),
    (HOSTILE,),
]


@pytest.mark.usefixtures("channel")
async def test_no_command_lets_a_stranger_control_the_terminal(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    """Whatever a publisher, the queue or the user names: it is escaped, and only the outcome of a reply has a colour."""
    variables = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}
    for each in COMMANDS:
        arguments = [COMMAND, *each]
        shown = await asyncio.to_thread(on_a_terminal, arguments, folder=tmp_path, LANG="C.UTF-8", **variables)
        assert "Traceback" not in shown, shown
        assert controls(_COLOUR.sub("", shown)) == [], (each, shown)
        assert "\x1b[35" not in shown, "a colour of the stranger's"


async def test_no_stranger_writes_lines(amqp_url: str, database_url: str) -> None:
    """A line feed in a property or a header begins no line of the output, which would look like one of ours."""
    forged = "x\ntask-activity-log: forged\r\nforged\vforged\u2028forged"
    texts: dict[str, Any] = dict.fromkeys(("correlation_id", "message_id", "app_id", "type", "reply_to"), forged)
    headers: Any = dict.fromkeys(
        (forged, "x-error-code", "x-error-detail", "x-first-seen", "x-last-seen", "x-outcome"), forged
    )
    problem = json.dumps(
        {"code": forged, "detail": forged, "errors": [{"name": forged, "code": forged, "message": forged}]}
    )
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        channel = await connection.channel()
        exchange = await channel.get_exchange(TOPOLOGY.replies_exchange, ensure=False)
        for outcome in (forged, "rejected"):
            content_type = "application/problem+json"
            message = aio_pika.Message(
                problem.encode(), content_type=content_type, headers={**headers, "x-outcome": outcome}, **texts
            )
            await exchange.publish(message, "rejected")
            await channel.default_exchange.publish(message, TOPOLOGY.dead_letters_queue)
    commands = [
        *(("dead-letters", *each) for each in (("list",), ("list", "--each"), ("show", "--all"), ("show", forged))),
        *(("dead-letters", "replay", "--all", "--dry-run"), ("dead-letters", "discard", "--publisher", "y", "--yes")),
        *(("find", forged), ("find", "x"), ("publish", forged), ("replies", "--take", "-n", "2")),
    ]
    for arguments in commands:
        said = await command(*arguments, AMQP_URL=amqp_url, DATABASE_URL=database_url)
        for line in (said.out + said.err).split("\n"):
            assert not line.startswith(("forged", "task-activity-log: forged")), (arguments, line)


async def test_no_event_lets_a_stranger_control_the_terminal(amqp_url: str, database_url: str) -> None:
    """The worker's log on a terminal, with an event for each message."""
    worker = asyncio.create_task(
        asyncio.to_thread(
            on_a_terminal,
            [COMMAND, "run"],
            answer="",
            until="message_id",
            LOG_FORMAT="console",
            LOG_LEVEL="debug",
            AMQP_URL=amqp_url,
            DATABASE_URL=database_url,
        )
    )
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await declare(connection, TOPOLOGY)
        await channel.default_exchange.publish(hostile("{}", HOSTILE, {}), TOPOLOGY.requests_queue)
        shown = await worker
    assert "title" in shown
    assert controls(_COLOUR.sub("", shown)) == []
    assert "\x1b[35" not in shown.replace("\x1b[35m", ""), "a colour of the stranger's"


# ---- readers that went away


async def until_ready(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                answer = await reader.read()
                writer.close()
                if b" 200 " in answer:
                    return
            await asyncio.sleep(0.1)


def unread_pipe() -> tuple[int, int]:
    """A pipe that is full, and whose reader does not read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    return reading, writing


@pytest.mark.parametrize("reader", ["left", "stalled", "full disk"])
async def test_a_worker_whose_log_nobody_takes_works_and_drains(amqp_url: str, database_url: str, reader: str) -> None:
    """It stores and answers, and on SIGTERM it drains and ends with 0."""
    reading, writing = unread_pipe()
    if reader == "left":
        os.close(reading)
    log = os.open("/dev/full", os.O_WRONLY) if reader == "full disk" else writing
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    worker = subprocess.Popen(  # noqa: ASYNC220, S603 - our own program, started before there is anything to wait for
        [COMMAND, "run"],
        env=environment(AMQP_URL=amqp_url, DATABASE_URL=database_url, HTTP_PORT=str(port), LOG_LEVEL="debug"),
        stderr=log,
    )
    try:
        await until_ready(port)
        async with TaskActivityLogClient(amqp_url) as client:
            assert (await client.upsert(TaskActivityLog(id=uuid4()))).outcome == "inserted"
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, 30) == 0
    finally:
        worker.kill()
        worker.wait()


async def test_publishing_whose_replies_nobody_reads_says_how_to_continue(world: World, tmp_path: Path) -> None:
    """The rest was not sent, so it is a failure: `publish … | head -1`."""
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"id": "{uuid4()}", "description": "{"x" * 2000}"}}\n' for _ in range(3000)))
    process = await start("publish", str(file), AMQP_URL=world.amqp_url)
    assert process.stdout is not None
    assert process.stderr is not None
    assert await process.stdout.readline()
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # as `head` does
    said = (await process.stderr.read()).decode()
    assert await process.wait() == 1
    assert "task-activity-log: cannot write to standard output: Broken pipe: interrupted; " in said
    assert " of 3,000 were answered. To continue (" in said
    assert "): task-activity-log publish " in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize(("name", "invalid", "code"), [("check", 0, 1), ("publish", 3, 3), ("publish", 3_000, 3)])
async def test_a_command_fails_also_if_its_reader_has_read_enough(
    name: str, invalid: int, code: int, tmp_path: Path
) -> None:
    """`check | head -1`: the exit code is that of what was found, whether the output fits into a pipe or not."""
    reading, writing = os.pipe()
    os.close(reading)
    file = tmp_path / "records.jsonl"
    file.write_text('{"id": "x", "due_date": "soon"}\n' * invalid + f'{{"id": "{uuid4()}"}}\n')
    arguments = ["publish", "--dry-run", str(file)] if name == "publish" else [name]
    variables = environment(AMQP_URL="amqp://127.0.0.1:1/", DATABASE_URL="postgresql://127.0.0.1:1/x")
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, env=variables, stdout=writing, stderr=asyncio.subprocess.PIPE
    )
    os.close(writing)
    assert process.stderr is not None
    said = (await process.stderr.read()).decode()
    assert "Traceback" not in said
    assert (f"{invalid:,} rejected" in said, await process.wait()) == (name == "publish", code)


async def test_a_list_whose_reader_has_read_enough_is_no_failure(channel: AbstractChannel, amqp_url: str) -> None:
    """`dead-letters list --json | head -1`: without a word, and everything is still in the queue."""
    await channel.default_exchange.publish(hostile("x" * 200_000, "", {}), TOPOLOGY.dead_letters_queue)
    process = await start("dead-letters", "show", "--all", AMQP_URL=amqp_url)
    assert process.stdout is not None
    assert process.stderr is not None
    assert await process.stdout.readline()
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # as `head` does
    assert (await process.stderr.read(), await process.wait()) == (b"", 0)
