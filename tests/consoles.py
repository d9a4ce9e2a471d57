"""A console without services for tests of its pages, with dead letters that it has seen."""

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from starlette.testclient import TestClient

from sandbox.letters import letters
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.client.letters import Letter
from task_activity_log.client.looks import Look
from task_activity_log.console.app import create
from task_activity_log.console.parts import Console
from task_activity_log.console.settings import load as load_console
from task_activity_log.message import Properties
from task_activity_log.pipeline.request import Rules
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import received
from task_activity_log.settings import load
from tests.commands import COMMAND, environment

NOBODY_LISTENS = "amqp://guest:guest@127.0.0.1:1/"


async def no_findings() -> list[Any]:
    """In place of what `check` finds."""
    return []


def console_of(amqp_url: str = NOBODY_LISTENS, database_url: str = "", **variables: str) -> Console:
    """A console with these settings."""
    urls = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}
    needed = ("amqp_url", "database_url") if database_url else ("amqp_url",)
    return Console(
        load(urls, needed=needed),
        load_console({"CONSOLE_WORKERS": "http://127.0.0.1:1", **variables}),  # nobody listens there
        check=no_findings,
        contract={"schema.json": b'{"title": "record"}'},
    )


def letter(body: bytes, properties: Properties) -> Letter:
    """A dead letter as it comes from the broker."""
    return Letter.of(DeadLetter(body, received(properties), cast("RabbitDelivery", None)), Rules())


def sample_letters() -> list[Letter]:
    """Those of `make console`."""
    return [letter(body, properties) for body, properties in letters(datetime.now(UTC))]


def seen(console: Console, found: Sequence[Letter], **more: int) -> None:
    """Let a console have seen these just now."""
    values = {"waiting": len(found), "others": 0, **more}
    console.looks.last = Look(found, at=datetime.now(UTC), taken=time.monotonic(), seconds=60.0, **values)


@dataclass
class Browser:
    """Asks a console as a browser does, from an address on this machine or any other."""

    client: TestClient
    console: Console

    def get(self, path: str, **headers: str) -> Any:
        """The answer to a GET."""
        return self.client.get(path, headers=_names(headers))

    def post(self, path: str, members: dict[str, str], **headers: str) -> Any:
        """The answer to a form, where it leads to."""
        return self.client.post(path, data=members, headers={"sec-fetch-site": "same-origin", **_names(headers)})


def _names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def browser(console: Console, peer: str = "127.0.0.1") -> Iterator[Browser]:
    """A browser at this address, and the running console."""
    with TestClient(
        create(console), base_url="http://127.0.0.1:8081", follow_redirects=False, client=(peer, 50_000)
    ) as client:
        yield Browser(client, console)


def password_file(folder: Path, *lines: str) -> str:
    """A password file with these lines."""
    file = folder / "passwords"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(file)


@contextmanager
def console_process(folder: Path, **variables: str) -> Iterator[str]:
    """A console as a process of its own; its URL."""
    log = folder / f"console-{time.monotonic_ns()}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [COMMAND, "console"], env=environment(CONSOLE_PORT="0", **variables), stderr=said
        )
        try:
            began = time.monotonic()
            while (found := re.search(r"the console is at (http://\S+/);", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() - began < 60, log.read_text()
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()
            assert process.wait(20) == 0, log.read_text()
            assert "Traceback" not in log.read_text(), log.read_text()
