"""Runs a service as a container, with testcontainers, on ports of 127.0.0.1 that stay the same across restarts.

testcontainers has its own resource reaper, Ryuk, but that is another image to pull and another container that needs
the engine's socket. `sandbox.reaper` does the same: it removes the containers with our label when the owner is gone.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import docker  # type: ignore[import-untyped]  # it has no types
import requests
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host

from sandbox.processes import ReaperClient
from sandbox.service import SandboxError

_LABEL = "task-activity-log-sandbox"
_ANSWER_LIMIT_SECONDS = 10
_SILENCE_LIMIT_SECONDS = 30  # a registry that is silent for longer counts as unreachable
_PULL_LIMIT_SECONDS = 600
_REPORT_EVERY_SECONDS = 5
_FREEZE_LIMIT_SECONDS = 60
_REMOVE = f"""
import docker, sys
client = docker.from_env(timeout=60)
for container in client.containers.list(all=True, filters={{"label": "{_LABEL}=" + sys.argv[1]}}):
    container.remove(force=True, v=True)
"""
_REMOVE_NETWORK = """
import docker, sys, time
client = docker.from_env(timeout=60)
for attempt in range(100):  # after a crash others remove its containers at the same time
    try:
        for network in client.networks.list(names=[sys.argv[1]]):
            network.remove()
        break
    except docker.errors.APIError:
        time.sleep(0.2)
"""


@cache
def _engine() -> Any:
    """Return a client (`docker.DockerClient`) of this machine's engine, or a string that says why there is no client."""
    testcontainers_config.ryuk_disabled = True
    address = get_docker_host() or "unix:///var/run/docker.sock"
    if not address.startswith("unix://"):
        return "the Docker engine is on another machine, whose ports are not on 127.0.0.1"
    try:
        # Docker's client leaks its socket when nobody listens, and the tests treat a leaked socket as an error.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(address.removeprefix("unix://"))
        client = DockerClient(timeout=_ANSWER_LIMIT_SECONDS).client
        client.ping()
    except (docker.errors.DockerException, OSError):
        return "no Docker engine answers"
    return client


def missing(image: str, say: Callable[[str], None]) -> str | None:
    """Return why an image cannot be run here, or None if it can. Pulls the image if the engine does not have it.

    A registry that is silent for half a minute counts as unreachable. `say` receives progress lines.
    """
    engine = _engine()
    if isinstance(engine, str):
        return engine
    try:
        engine.images.get(image)
    except docker.errors.ImageNotFound:
        say(f"pulling the Docker image {image}")
    except docker.errors.DockerException as error:
        return f"the Docker engine failed: {error}"
    else:
        return None
    try:
        _pull(image, say)
        engine.images.get(image)
    except (docker.errors.DockerException, requests.RequestException, OSError, SandboxError) as error:
        return f"the Docker image {image} cannot be pulled ({_first_line(error)})"
    return None


def _pull(image: str, say: Callable[[str], None]) -> None:
    repository, tag = docker.utils.parse_repository_tag(image)
    layers: dict[str, tuple[int, int]] = {}
    started = spoken = time.monotonic()
    client = docker.from_env(timeout=_SILENCE_LIMIT_SECONDS)
    try:
        for event in client.api.pull(repository, tag or "latest", stream=True, decode=True):
            if "error" in event:
                raise SandboxError(event["error"])
            if event.get("status") == "Downloading" and event.get("progressDetail"):
                detail = event["progressDetail"]
                layers[event["id"]] = (detail.get("current", 0), detail.get("total", 0))
            now = time.monotonic()
            if now - started > _PULL_LIMIT_SECONDS:
                raise SandboxError(f"it took more than {_PULL_LIMIT_SECONDS} s")
            if now - spoken > _REPORT_EVERY_SECONDS:
                done, total = (sum(sizes) // 1_000_000 for sizes in zip(*layers.values(), strict=True))
                say(f"pulling the Docker image {image}: {done} of {total} MB")
                spoken = now
    finally:
        client.close()


class Container:
    """Runs a service as one container."""

    def __init__(
        self,
        image: str,
        *,
        ports: dict[int, int],
        environment: dict[str, str],
        command: list[str] | None,
        host: tuple[str, str] | None = None,
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Describe the container.

        Args:
            image: its image.
            ports: the port of 127.0.0.1 that leads to each port of the container.
            environment: its variables.
            command: replaces the image's own.
            host: a Docker network, and the container's name there; None: it needs no other container.
            files: texts by their paths in the container, where anybody may read them.
        """
        self.origin = f"the Docker image {image}"
        label = uuid4().hex
        self._reaper = ReaperClient()
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
        self._reaper.ask("set_cleanup", argv=[sys.executable, "-c", _REMOVE, label], environment=kept, save=True)
        more = {} if host is None else {"network": host[0], "hostname": host[1]}
        self._described = DockerContainer(image, env=environment).with_kwargs(labels={_LABEL: label}, **more)
        for number, (path, text) in enumerate(files.items()):
            file = self._reaper.directory / f"file-{number}"
            file.write_text(text)
            self._described.with_volume_mapping(str(file), path, "rw")  # some images change its owner
        for inside, outside in ports.items():
            # the annotation allows port numbers only, but the engine also accepts an address with the port
            self._described.ports[f"{inside}/tcp"] = ("127.0.0.1", outside)  # type: ignore[assignment]
        if command is not None:
            self._described.with_command(command)
        self._container: Any = None

    def start(self) -> None:
        """Create the container, or start it again."""
        if self._container is None:
            self._container = self._do(self._described.start).get_wrapped_container()
        else:
            self._do(self._container.start)

    def stop(self) -> None:
        """Ask the container to stop; the engine kills it after 20 s."""
        self._do(self._container.stop, timeout=20)

    def kill(self) -> None:
        """End the container at once."""
        self._do(self._container.kill)
        self._do(self._container.wait, timeout=20)

    def pause(self) -> None:
        """Freeze all processes of the container."""
        self._do(freeze, container=self._container)

    def resume(self) -> None:
        """Let them continue."""
        self._do(self._container.unpause)

    def ended(self) -> str | None:
        """Why the container no longer runs, or None while it does."""
        if self._container is None:
            return "it was not started"
        self._do(self._container.reload)
        state = self._container.attrs["State"]
        return None if state["Running"] else f"its container {state['Status']} with status {state['ExitCode']}"

    def execute(self, argv: list[str]) -> str:
        """Run a command in the container and return its output; SandboxError if it fails."""
        code, output = self._do(lambda: self._container.exec_run(argv))
        if code != 0:
            raise SandboxError(f"{argv[0]} failed: {output.decode(errors='replace')}")
        return str(output.decode())

    def log_tail(self) -> str:
        """Return the last lines of the container's log."""
        if self._container is None:
            return ""
        return bytes(self._do(self._container.logs, tail=20)).decode(errors="replace").rstrip()

    def close(self) -> None:
        """Remove the container and its volumes."""
        self._reaper.close()
        self._described.get_docker_client().client.close()

    @staticmethod
    def _do(act: Callable[..., Any], **options: Any) -> Any:
        try:
            return act(**options)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise SandboxError(f"Docker: {_first_line(error)}") from None


def freeze(container: Any) -> None:
    """Pause a container (`docker.models.containers.Container`), and try again for a minute if the engine could not.

    On a busy machine the engine may find that some processes do not freeze in time. It then lets all of them continue, and
    answers that it is "unable to freeze".

    Raises:
        docker.errors.APIError: it could not for a minute, or there is another reason.
    """
    deadline = time.monotonic() + _FREEZE_LIMIT_SECONDS
    while True:
        try:
            container.pause()
        except docker.errors.APIError as error:
            if "unable to freeze" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


class Network:
    """A Docker network, in which containers find each other by name."""

    def __init__(self) -> None:
        """Create it."""
        self.name = f"{_LABEL}-{uuid4().hex[:12]}"
        self._reaper = ReaperClient()
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
        argv = [sys.executable, "-c", _REMOVE_NETWORK, self.name]
        self._reaper.ask("set_cleanup", argv=argv, environment=kept, save=True)
        client = docker.from_env(timeout=_ANSWER_LIMIT_SECONDS)
        try:
            client.networks.create(self.name)
        except docker.errors.DockerException as error:
            self._reaper.close()
            raise SandboxError(f"Docker: {_first_line(error)}") from None
        finally:
            client.close()

    def close(self) -> None:
        """Remove it; safe to call twice."""
        self._reaper.close()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
