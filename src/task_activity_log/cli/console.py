"""`task-activity-log console`: start the web console, or print a line of its password file."""

import getpass
import os
import signal
import socket
import sys
from importlib import resources

from task_activity_log.cli import CONTRACT_FILES
from task_activity_log.cli.exit_codes import DONE, WRONG_USE, fail
from task_activity_log.cli.terminal import say
from task_activity_log.settings import Settings, SettingsError

_SHUTDOWN_SECONDS = 5
_NOT_INSTALLED = "the console needs further packages: pip install '.[console]' in the folder of its source"


def serve(settings: Settings) -> None:
    """Serve until a signal; exit with one line if that is not possible."""
    try:
        import uvicorn

        from task_activity_log.console.app import create
        from task_activity_log.console.parts import Console
        from task_activity_log.console.settings import load
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("task_activity_log"):
            raise
        fail(_NOT_INSTALLED, WRONG_USE)
    from task_activity_log.cli.check import findings
    from task_activity_log.telemetry import logs
    from task_activity_log.wiring import secrets_of

    try:
        own = load()
    except SettingsError as error:
        fail(str(error), WRONG_USE)
    logs.configure(settings.log_format, settings.log_level, logs.Redaction(secrets_of(settings)))
    contract = {
        file: resources.files("task_activity_log.cli").joinpath("contract", file).read_bytes()
        for file in CONTRACT_FILES.values()
    }
    console = Console(
        settings, own, check=lambda: findings(settings, patient=False, as_worker=False), contract=contract
    )
    # uvicorn ends at a signal and then raises it again, which would kill the process.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit())
    config = uvicorn.Config(
        create(console),
        log_config=None,
        access_log=False,
        proxy_headers=False,  # the address of the peer decides whether a header is trusted
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    server = uvicorn.Server(config)
    console.stopping = lambda: server.should_exit
    try:
        family = socket.AF_INET6 if ":" in own.host else socket.AF_INET
        with socket.create_server((own.host, own.port), family=family) as bound:
            host = f"[{own.host}]" if ":" in own.host else own.host
            say(f"the console is at http://{host}:{bound.getsockname()[1]}/; press Ctrl-C to stop it")
            server.run(sockets=[bound])
    except OSError as error:
        where = f"CONSOLE_HOST={own.host} CONSOLE_PORT={own.port}"
        reason = os.strerror(error.errno) if error.errno else str(error)
        fail(f"cannot listen on {where}: {reason}; set CONSOLE_PORT to a free port", WRONG_USE)


def print_password_line(name: str, roles: str) -> int:
    """Ask for a password, or read it from standard input, and print the line for a user; exit if it cannot be made.

    Returns the exit code.
    """
    from task_activity_log.console.users import Role, password_line

    try:
        chosen = [Role(role.strip()) for role in roles.split(",")]
    except ValueError:
        fail(f"--roles {roles}: should be some of {', '.join(Role)}", WRONG_USE)
    try:
        if sys.stdin.isatty():
            password = getpass.getpass(f"Password for {name}: ")
        else:
            password = sys.stdin.buffer.readline().decode().rstrip("\r\n")  # in UTF-8, whatever the locale
    except UnicodeError:
        fail("the password cannot be read: it is not in UTF-8, or not in the encoding of the terminal", WRONG_USE)
    if not password:
        fail("the password is empty", WRONG_USE)
    try:
        print(password_line(name, password, chosen))
    except ValueError as error:
        fail(f"--password-for: {error}", WRONG_USE)
    return DONE
