"""`make demo`: the whole story in a quarter of a minute, with a real RabbitMQ and PostgreSQL."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from xml.dom import minidom

import sandbox
from sandbox.processes import Processes
from sandbox.service import free_port

SAMPLES = [Path("docs", "examples", "samples", name) for name in ("record.json", "record.xml", "bad.json")]
_SOME_REJECTED = 3  # the exit status of `publish` when it was answered with a problem
_READY_LIMIT_SECONDS = 30.0

HOW_TO_GO_ON = """
Go on:
  make run      the worker with a private RabbitMQ and PostgreSQL, until Ctrl-C; it prints their URLs
  .venv/bin/task-activity-log publish FILE...   in another terminal, with AMQP_URL set to the one printed
  .venv/bin/task-activity-log --help            everything else
  README.md     settings, guarantees, operation"""


class DemoError(Exception):
    """A step did not go as it should; the message says which, with the end of its log."""


def main() -> int:
    """Show it; returns the exit status."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with sandbox.start(say=_print) as services:
            _show({**os.environ, **services.environment, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": str(free_port())})
    except (DemoError, sandbox.SandboxError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"\nEverything is stopped and removed. That took {time.monotonic() - began:.1f} s.\n{HOW_TO_GO_ON}")
    return 0


def _show(environment: Mapping[str, str]) -> None:
    _step("task-activity-log migrate")
    for line in _finish("migrate", environment=environment):
        _print(line)

    _step("task-activity-log run &")
    worker = Processes("the demo", user=None, stop_signal=signal.SIGTERM)
    with closing(worker):
        worker.set_main(_command("run"), environment)
        worker.start()
        _wait_until_ready(worker, int(environment["HTTP_PORT"]))

        _step("task-activity-log publish " + " ".join(map(str, SAMPLES)))
        for line in _finish("publish", *map(str, SAMPLES), environment=environment, status=_SOME_REJECTED):
            _print(_pretty(line))

        _step("kill %1")
        worker.stop()
        if (status := worker.status()) != 0:
            raise DemoError(f"the worker ended with status {status}:\n{worker.log_tail()}")
        _print("the worker finished what it had in hand and ended with status 0")


def _finish(*arguments: str, environment: Mapping[str, str], status: int = 0) -> Iterator[str]:
    """Run a command of the product to its end and return its lines; DemoError if it ends with another status."""
    command = subprocess.run(
        _command(*arguments),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if command.returncode != status:
        said = "\n".join(command.stdout.splitlines()[-20:])
        raise DemoError(f"task-activity-log {arguments[0]} ended with status {command.returncode}:\n{said}")
    return iter(command.stdout.splitlines())


def _wait_until_ready(worker: Processes, port: int) -> None:
    began = time.monotonic()
    while not _is_ready(port):
        if ended := worker.ended():
            raise DemoError(f"the worker did not start: {ended}\n{worker.log_tail()}")
        if time.monotonic() - began > _READY_LIMIT_SECONDS:
            raise DemoError(f"the worker was not ready after {_READY_LIMIT_SECONDS:.0f} s:\n{worker.log_tail()}")
        time.sleep(0.05)
    _print(f"/readyz answers 200 after {time.monotonic() - began:.1f} s")


def _is_ready(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False


def _command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("task-activity-log")), *arguments]


def _pretty(line: str) -> str:
    """Return a reply over several lines, and anything else as it is."""
    if line.startswith("{"):
        return json.dumps(json.loads(line), indent=2, ensure_ascii=False)
    if line.startswith("<"):
        pretty = minidom.parseString(line).toprettyxml(indent="  ")  # noqa: S318  # the reply of our own worker
        return pretty.partition("\n")[2].rstrip()
    return line


def _step(command: str) -> None:
    print(f"\n$ {command}", flush=True)


def _print(text: str) -> None:
    for line in text.splitlines():
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
