"""Commands start fast: each imports only what it needs."""

import os
import subprocess
import sys

import pytest

HEAVY = {
    "aiormq", "alembic", "asyncpg", "lxml", "opentelemetry", "prometheus_client", "pydantic", "rich.progress",
    "sqlalchemy", "typer",
}  # fmt: skip
_LOADED = "import sys; sys.stdout.write(' '.join(name for name in sys.argv[1:] if name in sys.modules))"


def loaded(statement: str) -> set[str]:
    """Which heavy modules a fresh interpreter has loaded after a statement."""
    said = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", f"{statement}; {_LOADED}", *sorted(HEAVY)], capture_output=True, text=True, check=True
    )
    return set(said.stdout.split())


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import task_activity_log.cli", {"pydantic", "typer"}),
        ("import task_activity_log.cli.publish", {"aiormq", "lxml", "pydantic", "typer"}),
        ("import task_activity_log.client", {"aiormq", "lxml", "pydantic"}),
        (
            "import task_activity_log.cli, task_activity_log.service",
            {"aiormq", "asyncpg", "lxml", "prometheus_client", "pydantic", "typer"},
        ),
    ],
    ids=["--help", "publish", "client", "run"],
)
def test_a_command_loads_only_what_it_needs(statement: str, expected: set[str]) -> None:
    """No database for a publisher or a client, and neither migrations nor tables for a worker."""
    assert loaded(statement) == expected


def test_a_dry_run_and_a_list_of_dead_letters_need_no_database() -> None:
    """Only a replay that compares rows does, and it imports the driver then."""
    commands = "import task_activity_log.cli.publish; from task_activity_log.cli.dead_letters import editing, listing, replaying"
    assert "asyncpg" not in loaded(commands)


_INTERRUPTED = """
import signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == module:
            signal.raise_signal(signal.SIGINT)

module = sys.argv[1]
sys.meta_path.insert(0, Interrupt())
from task_activity_log.start import main
sys.argv[1:] = ["publish", "--dry-run", "no-such-file"]
main()
"""


@pytest.mark.parametrize("module", ["typer", "task_activity_log.settings", "task_activity_log.cli.publish"])
def test_ctrl_c_during_the_imports_ends_a_command_without_a_traceback(module: str) -> None:
    """They take most of the first half second. Those that one command alone needs come when it is known."""
    process = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", _INTERRUPTED, module], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")


_TERMINATED = """
import signal, sys

class Terminating:
    def __set_name__(self, *_):
        signal.raise_signal(signal.SIGTERM)

class Terminate:
    def find_spec(self, name, *_):
        if name == "task_activity_log.service":
            type("Class", (), {"field": Terminating()})

sys.meta_path.insert(0, Terminate())
sys.argv[1:] = ["run"]
from task_activity_log.start import main
main()
"""


def test_sigterm_during_the_imports_ends_the_worker_with_0() -> None:
    """Also while a class is made, where Python 3.11 turns every exception into a RuntimeError."""
    urls = {"AMQP_URL": "amqp://nobody.invalid", "DATABASE_URL": "postgresql://nobody.invalid/none"}
    process = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", _TERMINATED], capture_output=True, text=True, check=False, env={**os.environ, **urls}
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
