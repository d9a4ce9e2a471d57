"""The image, built and run as deployed: without privileges, next to real services.

Needs Docker: `make test` leaves these tests out, `make test-image` runs them.
"""

import asyncio
import json
import shlex
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import yaml

from sandbox.service import free_port
from tests.acceptance.test_process import fetch
from tests.faults.conversation import conversing

ROOT = Path(__file__).parents[2]
IMAGE = "task-activity-log-worker:test"
RESTRICTED = ("--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
"""Nothing may be written, not even to /tmp. It uses the host's network because the services listen on its loopback."""

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]


async def docker(*arguments: str, fails: bool = False) -> str:
    """Run the Docker client and return its output."""
    if shutil.which("docker") is None:
        pytest.fail("this test needs Docker: install it, and let its engine run", pytrace=False)
    process = await asyncio.create_subprocess_exec(
        "docker", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    assert (process.returncode != 0) == fails, output
    return output.strip()


@pytest.fixture
async def image() -> str:
    """The name of the image, which is built from the working tree."""
    await docker("build", "--network=host", "--quiet", "--file=deploy/Dockerfile", f"--tag={IMAGE}", ".")
    return IMAGE


@pytest.fixture
async def worker(image: str, own_amqp_url: str, own_database_url: str) -> AsyncIterator[tuple[str, int]]:
    """The name and the HTTP port of a container that runs a worker."""
    name, port = f"task-activity-log-test-{uuid4().hex}", free_port()
    variables = (f"--env=AMQP_URL={own_amqp_url}", f"--env=DATABASE_URL={own_database_url}", f"--env=HTTP_PORT={port}")
    await docker("run", "--detach", f"--name={name}", "--health-interval=1s", *RESTRICTED, *variables, image, "run")
    try:
        yield name, port
    finally:
        await docker("rm", "--force", name)


async def ready(port: int) -> None:
    """Wait until the worker is ready."""
    async with asyncio.timeout(60):
        while True:
            try:
                if (await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/readyz"))[0] == 200:
                    return
            except OSError:
                await asyncio.sleep(0.02)


async def test_the_image_runs_unprivileged_and_has_no_build_tools(image: str) -> None:
    """The image has a numeric unprivileged user, the command as entry point, labels, and no compilers or installers."""
    (found,) = json.loads(await docker("inspect", image))
    assert found["Config"]["User"] == "65532:65532"
    assert found["Config"]["Entrypoint"] == ["task-activity-log"]
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "task-activity-log-worker"
    assert found["Config"]["Healthcheck"]["Test"][0] == "CMD"
    look = (
        "import importlib.util as u, shutil; print([m for m in ('pip', 'setuptools', 'hatchling') if u.find_spec(m)]"
        " + [t for t in ('cc', 'gcc', 'ld', 'make') if shutil.which(t)])"
    )
    for python in ("python", "/usr/local/bin/python3"):
        assert await docker("run", "--rm", "--entrypoint", python, image, "-c", look) == "[]"


async def test_the_image_migrates(image: str, empty_database_url: str) -> None:
    """Migrating twice succeeds, and an unreachable database is reported in one line without the password."""

    async def migrate(url: str, *, fails: bool = False) -> str:
        return await docker("run", "--rm", *RESTRICTED, f"--env=DATABASE_URL={url}", image, "migrate", fails=fails)

    for _ in range(2):
        assert "at revision" in await migrate(empty_database_url)
    refused = await migrate(f"postgresql://u:secret@127.0.0.1:{free_port()}/d", fails=True)
    assert refused.startswith("task-activity-log: not migrated: ")
    assert "secret" not in refused
    assert "\n" not in refused


async def test_a_container_answers_is_healthy_and_drains(
    worker: tuple[str, int], own_amqp_url: str, own_database_url: str
) -> None:
    """A container that is stopped in the middle of its work exits with 0, and finishes the rest after a restart."""
    name, port = worker
    messages = 3000
    await ready(port)
    async with conversing(own_amqp_url) as talk:
        await asyncio.gather(*(talk.send() for _ in range(messages)))
        await talk.outcomes(100)
        await docker("stop", name)
        (stopped,) = json.loads(await docker("inspect", name))
        assert (stopped["State"]["ExitCode"], stopped["State"]["OOMKilled"]) == (0, False)
        assert '"event": "drained"' in await docker("logs", name)
        await docker("start", name)
        await ready(port)
        assert await talk.outcomes(messages - 100) == ["inserted"] * (messages - 100)
    connection = await asyncpg.connect(own_database_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM task_activity_log") == messages
    finally:
        await connection.close()
    async with asyncio.timeout(30):
        while await docker("inspect", "--format={{.State.Health.Status}}", name) != "healthy":
            await asyncio.sleep(0.2)
    assert await docker("diff", name) == ""


async def test_the_console_in_a_container_answers_is_healthy_and_ends(
    image: str, own_amqp_url: str, own_database_url: str
) -> None:
    """As compose runs it, with its health check: the one of the image asks a worker."""
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]["console"]
    name, port = f"task-activity-log-test-{uuid4().hex}", free_port()
    check = shlex.join(service["healthcheck"]["test"][1:]).replace("8081", str(port))
    variables = (
        f"--env=AMQP_URL={own_amqp_url}",
        f"--env=DATABASE_URL={own_database_url}",
        f"--env=CONSOLE_PORT={port}",
    )
    health = ("--health-interval=1s", f"--health-cmd={check}")
    await docker("run", "--detach", f"--name={name}", *health, *RESTRICTED, *variables, image, "console")
    try:
        async with asyncio.timeout(60):
            while await docker("inspect", "--format={{.State.Health.Status}}", name) != "healthy":
                await asyncio.sleep(0.2)
        status, page = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/")
        assert (status, "Dead letters" in page) == (200, True)
        await docker("stop", name)
        assert await docker("inspect", "--format={{.State.ExitCode}}", name) == "0"
        assert await docker("diff", name) == ""
    finally:
        await docker("rm", "--force", name)
