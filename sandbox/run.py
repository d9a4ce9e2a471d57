"""`make run`: a worker with a private RabbitMQ and PostgreSQL, until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping

import sandbox
from sandbox.demo import DemoError, command, finish, is_ready
from sandbox.processes import how_ended
from sandbox.service import free_port

_PORT = 8080
_LOOK_SECONDS = 0.1
_REMOVED = "so the RabbitMQ and the PostgreSQL that were started for it were stopped and removed, with their data"


def main() -> int:
    """Run the worker until it ends; return its exit status."""
    sandbox.signals.end_in_order()
    try:
        port = _port()
        with sandbox.start() as services:
            status, asked = _run(services.environment, port)
        if not asked:
            print(f"run: the worker {how_ended(status)}, {_REMOVED}", file=sys.stderr)
        return status if status >= 0 else 128 - status
    except (DemoError, sandbox.SandboxError) as error:
        print(f"run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _port() -> int:
    """The port in HTTP_PORT; without it 8080, or a free one if that is taken. DemoError if the one in HTTP_PORT is taken."""
    given = os.environ.get("HTTP_PORT")
    port = int(given) if given else _PORT
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if given:
                raise DemoError(
                    f"cannot listen on port {port}: {error.strerror}; set HTTP_PORT to a free port"
                ) from None
            return free_port()
    return port


def _run(services: Mapping[str, str], port: int) -> tuple[int, bool]:
    """Run the worker, and say what to do in another terminal once it is ready.

    Returns how the worker ended, as `Popen` says it, and whether this process was asked to end it.
    """
    environment = {"HTTP_HOST": "127.0.0.1", **os.environ, **services, "HTTP_PORT": str(port)}
    for line in finish("migrate", environment=environment):
        sandbox.say_on_stderr(line)
    worker: subprocess.Popen[bytes] | None = None
    asked = False

    def stop(*_: object) -> None:
        # `kill -INT` reaches this process alone. A terminal sends Ctrl-C to the worker as well: the second signal changes
        # nothing while it drains.
        nonlocal asked
        asked = True
        if worker is not None:
            worker.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    worker = subprocess.Popen(command("run"), env=environment)
    if asked:  # before there was a worker
        worker.terminate()
    threading.Thread(target=_say_when_ready, args=(worker, services, port), daemon=True).start()
    return worker.wait(), asked


def _say_when_ready(worker: subprocess.Popen[bytes], services: Mapping[str, str], port: int) -> None:
    ended = threading.Event()
    while worker.poll() is None and not ended.wait(_LOOK_SECONDS):
        if is_ready(port):
            print(_next_steps(services, port), flush=True)
            return


def _next_steps(services: Mapping[str, str], port: int) -> str:
    """Lines for another terminal, to be copied as they are."""
    lines = [*sandbox.shell_lines(services), "task-activity-log publish docs/examples/samples/record.json"]
    return "\n".join(
        ["", f"The worker is ready: http://127.0.0.1:{port}/readyz. Ctrl-C stops it and removes everything.",
         "In another terminal, in this folder:", "", *(f"    {line}" for line in lines), ""]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
