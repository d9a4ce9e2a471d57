"""`make demo`: migrate, run, publish and stop, with a real RabbitMQ and PostgreSQL."""

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
_SOME_REJECTED = 3  # the exit status of `publish` when the worker rejected a message
_READY_LIMIT_SECONDS = 30.0

HOW_TO_GO_ON = """
Next steps:
  make run
      Runs the worker with a private RabbitMQ and PostgreSQL until Ctrl-C. It prints what to type in another terminal to
      publish records.
  README.md
      Says how to publish, subscribe and operate.
  .venv/bin/task-activity-log --help
      Lists all commands."""


class DemoError(Exception):
    """A step failed; the message says which one, with the end of its log."""


def main() -> int:
    """Run the demo; return the exit status."""
    began = time.monotonic()
    sandbox.signals.end_in_order()
    try:
        with sandbox.start(say=_print) as services:
            _show({**os.environ, **services.environment, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": str(free_port())})
    except (DemoError, sandbox.SandboxError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything was stopped and removed", file=sys.stderr)
        return 130
    print(f"\nEverything was stopped and removed. The demo took {time.monotonic() - began:.1f} s.\n{HOW_TO_GO_ON}")
    return 0


def _show(environment: Mapping[str, str]) -> None:
    _step("Create the tables.", "task-activity-log migrate")
    for line in finish("migrate", environment=environment):
        _print(line)

    _step("Start a worker in the background.", "task-activity-log run &")
    worker = Processes("the demo", user=None, stop_signal=signal.SIGTERM)
    with closing(worker):
        worker.set_main(command("run"), environment)
        worker.start()
        wait_until_ready(worker, int(environment["HTTP_PORT"]))

        _step(
            "Publish a record in JSON, the same record in XML, and an invalid one, and print the replies. "
            "Without --send-invalid the invalid one would not be sent.",
            "task-activity-log publish --send-invalid " + " ".join(map(str, SAMPLES)),
        )
        publish = ["publish", "--send-invalid", *map(str, SAMPLES)]
        for line in finish(*publish, environment=environment, status=_SOME_REJECTED):
            _print(_pretty(line))

        _step("List what was rejected: it waits in the dead-letter queue.", "task-activity-log dead-letters list")
        for line in finish("dead-letters", "list", environment=environment):
            _print(line)

        _step("Stop the worker.", "kill %1")
        worker.stop()
        if (status := worker.status()) != 0:
            raise DemoError(f"the worker exited with status {status}:\n{worker.log_tail()}")
        _print("the worker finished the messages that it had taken and exited with status 0")


def finish(*arguments: str, environment: Mapping[str, str], status: int = 0) -> Iterator[str]:
    """Run a command of the product and return its output lines; DemoError if it exits with a status other than `status`."""
    done = subprocess.run(
        command(*arguments),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != status:
        said = "\n".join(done.stdout.splitlines()[-20:])
        raise DemoError(f"task-activity-log {arguments[0]} exited with status {done.returncode}:\n{said}")
    return iter(done.stdout.splitlines())


def wait_until_ready(worker: Processes, port: int) -> None:
    """Return when a worker is ready; DemoError if it ends or takes too long."""
    began = time.monotonic()
    while not is_ready(port):
        if ended := worker.ended():
            raise DemoError(f"the worker did not start: {ended}\n{worker.log_tail()}")
        if time.monotonic() - began > _READY_LIMIT_SECONDS:
            raise DemoError(f"the worker was not ready after {_READY_LIMIT_SECONDS:.0f} s:\n{worker.log_tail()}")
        time.sleep(0.05)
    _print(f"the worker is ready (/readyz returns 200) after {time.monotonic() - began:.1f} s")


def is_ready(port: int) -> bool:
    """Whether a worker on this machine serves its health at this port, and is ready."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False


def command(*arguments: str) -> list[str]:
    """Return the command line of a command of the product."""
    return [str(Path(sys.executable).with_name("task-activity-log")), *arguments]


def _pretty(line: str) -> str:
    """Return a reply indented over several lines, and any other line unchanged."""
    if line.startswith("{"):
        return json.dumps(json.loads(line), indent=2, ensure_ascii=False)
    if line.startswith("<"):
        pretty = minidom.parseString(line).toprettyxml(indent="  ")  # noqa: S318  # a reply from our own worker
        return pretty.partition("\n")[2].rstrip()
    return line


def _step(purpose: str, command: str) -> None:
    print(f"\n# {purpose}\n$ {command}", flush=True)


def _print(text: str) -> None:
    for line in text.splitlines():
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
