"""`python -m sandbox`: starts both services and keeps them until Ctrl-C, or runs a command against them."""

import argparse
import os
import signal
import subprocess
import sys
import threading

import sandbox


def main() -> int:
    """Start the sandbox, then wait for Ctrl-C or run the command; return the exit status."""
    options = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="Start a private RabbitMQ and PostgreSQL. Without COMMAND keep them until Ctrl-C; with it, run "
        "it with AMQP_URL, MANAGEMENT_URL and DATABASE_URL set and stop them when it ends.",
    )
    options.add_argument("--fast", action="store_true", help="do not sync PostgreSQL's files to the disk")
    options.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")
    chosen = options.parse_args()
    command = chosen.command[1:] if chosen.command[:1] == ["--"] else chosen.command
    sandbox.signals.end_in_order()
    try:
        with sandbox.start(durable=not chosen.fast) as services:
            return _run(command, services) if command else _keep(services)
    except sandbox.SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _keep(services: sandbox.Sandbox) -> int:
    sandbox.say_on_stderr("running until Ctrl-C; in another terminal, in this folder:")
    for line in sandbox.shell_lines(services.environment):
        print(line, flush=True)
    sandbox.say_on_stderr(
        "then `task-activity-log migrate` once, and `task-activity-log run` for each worker (HTTP_PORT=0 for all but one)"
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        sandbox.say_on_stderr("stopping")
    return 0


def _run(command: list[str], services: sandbox.Sandbox) -> int:
    """Run the command to its end. The terminal sends it Ctrl-C itself, so ignore Ctrl-C here; pass SIGTERM on."""
    for line in sandbox.exports(services.environment):
        sandbox.say_on_stderr(line)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        process = subprocess.Popen(command, env={**os.environ, **services.environment})
    except OSError as error:
        raise sandbox.SandboxError(f"cannot run {command[0]}: {error.strerror}") from None
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
