"""A private Prometheus that evaluates the alerts and scrapes the targets of a test."""

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from sandbox import SandboxError, packages
from sandbox.processes import Processes, unprivileged_user
from sandbox.service import NotReadyError, Service, free_port
from tests.queries import DEPLOY, RULES

_SCRAPE_EVERY = "1s"


class Prometheus(Service):
    """Prometheus with deploy/prometheus/prometheus.yaml, but with the test's targets and shorter intervals."""

    name = "Prometheus"

    def __init__(self, targets: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Install Prometheus if necessary, and start it. `targets` are addresses by the name of their job.

        Raises:
            SandboxError: It is not available, or does not start.
        """
        binary = _binary(say)
        processes = Processes("the binary on this machine", user=unprivileged_user(), stop_signal=signal.SIGTERM)
        super().__init__(processes)
        self.address = f"127.0.0.1:{free_port()}"
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": _SCRAPE_EVERY, "evaluation_interval": _SCRAPE_EVERY}
        for scrape in config["scrape_configs"]:
            scrape["static_configs"] = [{"targets": [targets[scrape["job_name"]]]}]
        processes.write("rules.yaml", RULES.read_text(encoding="utf-8"))
        path = processes.write("prometheus.yaml", yaml.safe_dump(config))
        options = [
            f"--config.file={path}",
            f"--storage.tsdb.path={processes.data / 'tsdb'}",
            f"--web.listen-address={self.address}",
        ]
        processes.set_main([binary, *options], processes.environment())
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Ask whether it is ready."""
        try:
            with urlopen(f"http://{self.address}/-/ready", timeout=5):  # our own port
                pass
        except (URLError, OSError) as error:
            raise NotReadyError(str(error)) from None

    def ask(self, path: str, **parameters: str | float) -> Any:
        """Call its API and return the `data` of the answer; AssertionError with its message if it refuses a query."""
        try:
            with urlopen(f"http://{self.address}/api/v1/{path}?{urlencode(parameters)}", timeout=15) as answer:
                return json.load(answer)["data"]
        except URLError as error:
            assert getattr(error, "code", None) == HTTPStatus.BAD_REQUEST, error
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None  # type: ignore[attr-defined]

    def now(self, expression: str) -> list[Any]:
        """The current result of an expression, one entry for each series."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found


def _binary(say: Callable[[str], None]) -> str:
    if (found := shutil.which("prometheus")) is not None:
        return found
    if (obstacle := packages.cannot_install()) is not None:
        raise SandboxError(f"Prometheus is not installed, and {obstacle} (Debian, Ubuntu: apt-get install prometheus)")
    packages.install("prometheus", say)
    if (found := shutil.which("prometheus")) is not None:
        return found
    raise SandboxError("the package prometheus was installed but has no command prometheus")
