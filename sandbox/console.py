"""`make console`: the web console with 300 dead letters, a worker and a load, on a real RabbitMQ and PostgreSQL."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import sandbox
from sandbox import letters
from sandbox.demo import DemoError, command, finish, wait_until_ready
from sandbox.processes import Processes, how_ended
from sandbox.service import free_port
from task_activity_log.client import ClientError, TaskActivityLog, TaskActivityLogClient, Upsert

_QUEUE = "task_activity_log.dead-letters"
_RATE = 20.0
_RECORDS = 400
_BAD_EVERY = 300


def main() -> int:
    """Run everything until Ctrl-C; return the exit status."""
    sandbox.signals.end_in_order()
    try:
        with sandbox.start(durable=False) as services, ExitStack() as stack:
            _show({**os.environ, **services.environment}, services, stack)
    except (DemoError, sandbox.SandboxError) as error:
        print(f"console: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _show(environment: Mapping[str, str], services: sandbox.Sandbox, stack: ExitStack) -> None:
    http, port = free_port(), int(os.environ.get("CONSOLE_PORT") or free_port())
    shared = {**environment, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": str(http)}
    for _ in finish("migrate", environment=shared):
        pass
    worker = stack.enter_context(closing(Processes("make console", user=None, stop_signal=signal.SIGTERM)))
    worker.set_main(command("run"), shared)
    worker.start()
    wait_until_ready(worker, http)
    now = datetime.now(UTC)
    services.postgresql.execute(letters.rows(now))
    asyncio.run(letters.publish(services.rabbitmq.url, _QUEUE, letters.letters(now)))
    console = stack.enter_context(closing(Processes("make console", user=None, stop_signal=signal.SIGTERM)))
    own = {"CONSOLE_HOST": "127.0.0.1", "CONSOLE_PORT": str(port), "CONSOLE_WORKERS": f"http://127.0.0.1:{http}"}
    console.set_main(command("console"), {**shared, **own})
    console.start()
    print(f"\n  The console is at http://127.0.0.1:{port}/\n  Ctrl-C stops and removes everything.\n", flush=True)
    load_until_stopped(services.rabbitmq.url, {"console": console, "worker": worker})


def load_until_stopped(broker: str, watched: Mapping[str, Processes]) -> None:
    """Publish records until Ctrl-C or SIGTERM, with which the program exits. Raises `DemoError` if one of the processes ends."""
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(_load(broker, watched))
    except asyncio.CancelledError:
        sandbox.signals.end_in_order()  # the loop has removed its handler, and what was started is still to be removed
        sys.exit(128 + signal.SIGTERM)


async def _load(broker: str, watched: Mapping[str, Processes]) -> None:
    """Publish records until one of the processes ends. SIGTERM cancels this, so that the connection is closed in order."""
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    chance = random.Random(3)  # noqa: S311 - the same each time
    ids = [uuid4() for _ in range(_RECORDS)]
    began, sent = time.monotonic(), 0
    async with TaskActivityLogClient(broker, app_id="crm-ghent") as client:
        while (gone := _gone(watched)) is None:
            due = int((time.monotonic() - began) * _RATE) - sent
            records = [_record(chance, ids, sent + number) for number in range(due)]
            with suppress(ClientError):
                await client.send_many(records)
            sent += due
            await asyncio.sleep(0.25)
    raise DemoError(gone)


def _gone(watched: Mapping[str, Processes]) -> str | None:
    """Which of the processes has ended and how, with the last lines of its log; None while all run."""
    for name, process in watched.items():
        if (status := process.status()) is not None:
            why = f"the {name} {how_ended(status)}, so everything is stopped and removed"
            return f"{why}; its log ended with\n{process.log_tail()}"
    return None


def _record(chance: random.Random, ids: list[UUID], number: int) -> TaskActivityLog | Upsert:
    if number % _BAD_EVERY == _BAD_EVERY - 1:
        return Upsert(b'{"id": "not a uuid", "subject": "Call back"}')
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(days=chance.randint(1, 60))
    return TaskActivityLog(id=chance.choice(ids), subject=f"Call back ({number})", due_date=due, is_closed=False)


if __name__ == "__main__":
    sys.exit(main())
