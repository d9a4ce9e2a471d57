"""`make console`: how it ends while it publishes."""

import asyncio
import signal
import sys
from subprocess import PIPE

import aio_pika
import pytest

LOAD = """
import asyncio, os, sys
from types import SimpleNamespace
from sandbox import console, signals

async def end():
    os.kill(os.getpid(), int(sys.argv[2]))

tasks = []
signals.end_in_order()
worker = SimpleNamespace(status=lambda: tasks.append(asyncio.get_running_loop().create_task(end())))
try:
    console.load_until_stopped(sys.argv[1], {"worker": worker})
finally:
    print("removed", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 0)])
async def test_a_signal_ends_the_load_without_a_traceback(amqp_url: str, number: signal.Signals, code: int) -> None:
    """It comes while another task runs, as those of the connection do. The connection is closed first."""
    async with await aio_pika.connect(amqp_url) as connection:
        await (await connection.channel()).declare_exchange("task_activity_log")
    program = [sys.executable, "-c", LOAD, amqp_url, str(int(number))]
    process = await asyncio.create_subprocess_exec(*program, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (code, b"removed\n", b"")
