"""A private RabbitMQ with its management API: how to start it each way, and new virtual hosts on it."""

import base64
import http.client
import json
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from sandbox.containers import Container
from sandbox.processes import Processes, unprivileged_user
from sandbox.service import NotOurs, NotReadyError, Runner, SandboxError, ServerTls, Service, free_port

_OLDEST = (3, 10)
_USER = "sandbox"
_EVALUATE = 'expressions="$1"; shift; printf "%s\\n" "$expressions" | exec erl_call -timeout 60 "$@" -e'
"""Asks an Erlang node in some milliseconds. `rabbitmqctl eval` takes half a second of CPU time, because it loads Elixir."""
_MEMBER_CONFIGURATION = "/etc/rabbitmq/conf.d/20-cluster.conf"
"""Where the Docker images look for more configuration."""


class ManagementError(Exception):
    """The management API cannot be reached, or answered with an error."""


@dataclass(frozen=True)
class Member:
    """One node of a cluster; see `sandbox.cluster`."""

    node: str
    """The name of the Erlang node."""
    password: str
    """The same for all."""
    cookie: str
    """The Erlang cookie, also the same for all."""
    configuration: Sequence[str]
    """Lines of rabbitmq.conf."""
    erlang_arguments: str
    epmd_port: int = 4369
    network: str = ""
    """The Docker network, for a container."""
    disk_megabytes: int | None = None
    """Room for its data; None: as much as the disk has."""

    @property
    def arguments(self) -> str:
        """All arguments of Erlang."""
        return f"-setcookie {self.cookie} {self.erlang_arguments}"

    @property
    def host(self) -> str:
        """The host in the name of the node."""
        return self.node.rpartition("@")[2]


class RabbitMQ(Service):
    """A RabbitMQ broker whose user may create virtual hosts."""

    name = "RabbitMQ"

    def __init__(self, runner: Runner, url: str, management_url: str, metrics_address: str | None = None) -> None:
        """Take the runner, the AMQP URL of the virtual host to use, and the management API's URL with credentials."""
        super().__init__(runner)
        self.url = url
        """The AMQP URL of a virtual host that nobody else uses. The names of further ones begin with its name."""
        self.tls_url = ""
        """The AMQP URL of the TLS port, or empty if the broker has none."""
        self.management_url = management_url
        """`http://user:password@host:port`, without a path."""
        self.metrics_address = metrics_address
        """`host:port` of the broker's Prometheus endpoint; None if it is not known."""
        self.cookie = ""
        """The Erlang cookie; empty if the broker has made its own."""
        self.node = ""
        """The name of its Erlang node, if it can be asked directly."""

    def command(self, program: str, *arguments: str) -> str:
        """Run one of RabbitMQ's own programs where the broker runs (`rabbitmqctl`, `rabbitmq-upgrade`); its output.

        It takes about a second.

        Raises:
            SandboxError: it failed, for example because the broker is not running.
        """
        cookie = ["--erlang-cookie", self.cookie] if self.cookie else []
        return self._runner.execute([program, *cookie, *arguments])

    def evaluate(self, expressions: str) -> str:
        """Evaluate expressions of Erlang, which end with a period, inside the broker; the last value as Erlang writes it.

        Raises:
            SandboxError: they failed, or the broker is not running.
        """
        if not self.node:
            return self.command("rabbitmqctl", "eval", expressions).strip()
        cookie = ["-c", self.cookie] if self.cookie else []
        answer = self._runner.execute(["sh", "-c", _EVALUATE, "sh", expressions, "-n", self.node, *cookie])
        if not answer.startswith("{ok, "):
            raise SandboxError(f"{expressions} failed: {answer}")
        return answer.strip().removeprefix("{ok, ").removesuffix("}")

    @property
    def vhost(self) -> str:
        """The name of the virtual host in `url`."""
        return unquote(urlsplit(self.url).path[1:]) or "/"

    def check(self) -> None:
        """Ask the management API for the version, and begin a handshake on the AMQP port."""
        try:
            self.version = self.api("GET", "/overview?columns=rabbitmq_version")["rabbitmq_version"]
        except ManagementError as error:
            raise NotReadyError(f"management API: {error}") from None
        parts = urlsplit(self.url)
        if parts.scheme == "amqps":
            return
        try:
            with socket.create_connection((parts.hostname or "localhost", parts.port or 5672), timeout=5) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                if not client.recv(1):
                    raise NotReadyError("the AMQP port closes connections")
        except OSError as error:
            raise NotReadyError(f"AMQP port: {error}") from None

    def url_of(self, vhost: str) -> str:
        """Return the AMQP URL of another virtual host of this broker."""
        return urlunsplit(urlsplit(self.url)._replace(path="/" + quote(vhost, safe="")))

    def create_vhost(self, name: str | None = None) -> str:
        """Create a virtual host, by default with a unique name, and return its AMQP URL."""
        if name is None:
            name = f"{self.vhost.strip('/') or 'test'}_{secrets.token_hex(6)}"
        quoted = quote(name, safe="")
        user = quote(unquote(urlsplit(self.url).username or "guest"), safe="")
        # No default queue type is set: the worker names the type of each queue itself.
        self.api("PUT", f"/vhosts/{quoted}", {})
        self.api("PUT", f"/permissions/{quoted}/{user}", {"configure": ".*", "write": ".*", "read": ".*"})
        return self.url_of(name)

    def delete_vhost(self, url: str) -> None:
        """Delete the virtual host that an AMQP URL names, with its queues and connections."""
        self.api("DELETE", f"/vhosts/{urlsplit(url).path[1:]}")

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API (`path` below `/api`) and return the decoded answer, or None if it is empty.

        Raises:
            ManagementError: The API cannot be reached, or answered with a status of 400 or above.
        """
        parts = urlsplit(self.management_url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "localhost", parts.port, timeout=15)
        credentials = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        headers = {
            "Authorization": "Basic " + base64.b64encode(credentials.encode()).decode(),
            "Content-Type": "application/json",
        }
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, f"{parts.path.rstrip('/')}/api{path}", content, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ManagementError(f"{parts.hostname}:{parts.port} {type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise ManagementError(f"{method} {path} was answered with {answer.status} {answer.reason}")
        return json.loads(text) if text else None


def from_url(origin: str, url: str, management_url: str, version: str) -> RabbitMQ:
    """Return a broker that another process of this test run has started and will stop."""
    broker = RabbitMQ(NotOurs(origin, "it is shared by all tests; ask for `own_rabbitmq`"), url, management_url)
    broker.version = version
    return broker


def from_container(
    image: str,
    *,
    durable: bool,  # noqa: ARG001  # RabbitMQ has no such switch
    member: Member | None = None,
) -> RabbitMQ:
    """Start the broker from a Docker image that has the management plugin. A `member` is returned before it has started."""
    password, port, management, metrics = secrets.token_hex(16), free_port(), free_port(), free_port()
    environment = {"RABBITMQ_DEFAULT_USER": _USER, "RABBITMQ_DEFAULT_PASS": password}
    if member is not None:
        password = environment["RABBITMQ_DEFAULT_PASS"] = member.password
        environment |= {
            "RABBITMQ_NODENAME": member.node,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": member.arguments,
        }
    container = Container(
        image,
        ports={5672: port, 15672: management, 15692: metrics},
        environment=environment,
        command=None,
        host=None if member is None else (member.network, member.host),
        files={} if member is None else {_MEMBER_CONFIGURATION: "\n".join(member.configuration) + "\n"},
    )
    broker = _described(container, password, port, management, metrics)
    if member is None:
        return _started(broker)
    broker.cookie = member.cookie
    return broker


def from_binaries(
    directory: Path,
    *,
    durable: bool,  # noqa: ARG001  # RabbitMQ has no such switch
    tls: ServerTls | None = None,
    member: Member | None = None,
) -> RabbitMQ:
    """Start the broker with the scripts in `directory`, with its own directories, node, cookie and epmd.

    With `tls` it also has a TLS port, `tls_url`, for clients that present a certificate. A `member` has the cookie and the
    epmd of its cluster, and is returned before it has started.
    """
    password = secrets.token_hex(16) if member is None else member.password
    port, management, metrics = free_port(), free_port(), free_port()
    epmd_port = free_port() if member is None else member.epmd_port
    processes = Processes(
        f"the binaries in {directory}",
        user=unprivileged_user("rabbitmq"),
        stop_signal=signal.SIGTERM,
        disk_megabytes=None if member is None else member.disk_megabytes,
    )
    try:
        data = processes.data
        configuration = [
            f"listeners.tcp.1 = 127.0.0.1:{port}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {management}",
            "prometheus.tcp.ip = 127.0.0.1",
            f"prometheus.tcp.port = {metrics}",
            f"default_user = {_USER}",
            f"default_pass = {password}",
            "disk_free_limit.absolute = 50MB",
            *(() if member is None else member.configuration),
        ]
        tls_port = free_port()
        if tls is not None:
            configuration += [
                f"listeners.ssl.1 = 127.0.0.1:{tls_port}",
                f"ssl_options.cacertfile = {processes.write('ca.pem', tls.ca)}",
                f"ssl_options.certfile = {processes.write('certificate.pem', tls.certificate)}",
                f"ssl_options.keyfile = {processes.write('key.pem', tls.key)}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = true",
            ]
        environment = processes.environment(
            ERL_EPMD_PORT=str(epmd_port),
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_CRASH_DUMP_SECONDS="0",
            RABBITMQ_NODENAME="sandbox@localhost" if member is None else member.node,
            RABBITMQ_DIST_PORT=str(free_port()),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} "
            + ("" if member is None else member.arguments),
            # The script replaces itself with the broker instead of waiting for it, so a signal reaches the broker.
            RABBITMQ_ALLOW_INPUT="true",
            RABBITMQ_SERVER_START_ARGS="-noinput",
            # All files that the broker would otherwise look for in /etc or /var.
            RABBITMQ_CONF_ENV_FILE=str(processes.write("rabbitmq-env.conf", "")),
            RABBITMQ_CONFIG_FILE=str(processes.write("rabbitmq.conf", "\n".join(configuration) + "\n")),
            RABBITMQ_ADVANCED_CONFIG_FILE=str(processes.write("advanced.config", "[].\n")),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(
                processes.write("enabled_plugins", "[rabbitmq_management,rabbitmq_prometheus].\n")
            ),
            RABBITMQ_MNESIA_BASE=str(data / "mnesia"),
            RABBITMQ_LOG_BASE=str(data / "log"),
            RABBITMQ_GENERATED_CONFIG_DIR=str(data / "config"),
            RABBITMQ_SCHEMA_DIR=str(data / "schema"),
            RABBITMQ_PLUGINS_EXPAND_DIR=str(data / "plugins"),
            RABBITMQ_PID_FILE=str(data / "pid"),
            RABBITMQ_LOGS="-",
        )
        environment["PATH"] = f"{directory}:{environment['PATH']}"  # for `command`: Debian has wrappers in /usr/sbin
        if member is None:
            # Without an epmd of ours the broker starts one itself, which outlives it.
            serve_epmd(processes, epmd_port, environment)
        processes.set_main([str(directory / "rabbitmq-server")], environment)
    except BaseException:
        processes.close()
        raise
    broker = _described(processes, password, port, management, metrics)
    if shutil.which("erl_call"):
        broker.node = environment["RABBITMQ_NODENAME"]
    broker.tls_url = f"amqps://{_USER}:{password}@localhost:{tls_port}/" if tls else ""
    if member is None:
        return _started(broker)
    broker.cookie = member.cookie
    return broker


def serve_epmd(processes: Processes, port: int, environment: Mapping[str, str]) -> None:
    """Start an epmd, which tells Erlang nodes each other's ports, as a helper process."""
    processes.serve("epmd", [_epmd(), "-address", "127.0.0.1", "-port", str(port)], environment)


def find_binaries() -> Path | str:
    """Return the directory with RabbitMQ's own scripts, or the reason why there is none.

    Debian's `rabbitmq-server` in /usr/sbin is not used: it is a wrapper that runs only for certain accounts.
    """
    places = [
        Path("/usr/lib/rabbitmq/bin"),  # Debian, Ubuntu, Red Hat
        Path("/opt/rabbitmq/sbin"),
        Path("/opt/homebrew/opt/rabbitmq/sbin"),
        Path("/usr/local/opt/rabbitmq/sbin"),
    ]
    if on_path := shutil.which("rabbitmq-server"):
        places.insert(0, Path(on_path).resolve().parent)
    for place in places:
        if (place / "rabbitmq-server").is_file() and (place / "rabbitmq-env").exists():
            return place if shutil.which("erl") else "RabbitMQ is installed, but Erlang's `erl` is not on the PATH"
    return "no RabbitMQ is installed"


def _epmd() -> str:
    if on_path := shutil.which("epmd"):
        return on_path
    ask = ["erl", "-noinput", "-boot", "start_clean", "-eval", "io:put_chars(code:root_dir()), halt()."]
    root = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    found = sorted(Path(root).glob("erts-*/bin/epmd"))
    if not found:
        raise SandboxError("Erlang is installed, but without `epmd`")
    return str(found[-1])


def _described(runner: Runner, password: str, port: int, management: int, metrics: int) -> RabbitMQ:
    credentials = f"{_USER}:{password}@127.0.0.1"
    return RabbitMQ(
        runner, f"amqp://{credentials}:{port}/", f"http://{credentials}:{management}", f"127.0.0.1:{metrics}"
    )


def _started(broker: RabbitMQ) -> RabbitMQ:
    try:
        broker.start()
        _refuse_older(broker.version)
    except BaseException:
        broker.close()
        raise
    return broker


def _refuse_older(version: str) -> None:
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        raise SandboxError(f"RabbitMQ {version} is older than 3.10, the oldest that the worker supports")
