"""Where to connect and how: the connection string, the service, the environment and the password file together."""

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from task_activity_log.libpq import files, options
from task_activity_log.libpq.strings import split

_PORT = 5432
_TLS_MODES = ("require", "verify-ca", "verify-full")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_SOCKET_DIRECTORIES = ("/run/postgresql", "/var/run/postgresql", "/tmp")  # noqa: S108 - where PostgreSQL puts its socket

_SOCKET_PATH_MAX = 107
"""Bytes that Linux takes."""


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a target."""

    name: str
    """The host's name or address, or the directory of the server's socket."""
    address: str
    """The address to use instead of looking up the name; may be empty."""
    port: int
    password: str | None

    @property
    def socket(self) -> str | None:
        """The path of the server's socket; None if it is a host of the network."""
        return f"{self.name}/.s.PGSQL.{self.port}" if self.name.startswith("/") and not self.address else None

    def __str__(self) -> str:
        """Host and port, for people."""
        name = self.name or self.address
        return f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """A database: its hosts, and the options that are the same for all of them."""

    hosts: tuple[Host, ...]
    user: str
    database: str
    options: Mapping[str, str]
    """All other options that are set, by name."""
    home: Path | None
    password_file: Path | None
    """Where passwords are looked up; None if one is given."""

    @property
    def tls(self) -> bool:
        """Whether a connection without TLS is refused here."""
        return self.options["sslmode"] in _TLS_MODES

    def number(self, name: str) -> int | None:
        """An option that is a number; None if it is not set."""
        return int(self.options[name]) if name in self.options else None

    @property
    def server_settings(self) -> dict[str, str]:
        """What the server is asked to set for the session."""
        return {name: value for name, value in self.options.items() if options.is_server_setting(name)}

    @property
    def addresses(self) -> str:
        """The hosts and the database, for people: `db1:5432,db2:5432/app`."""
        return f"{','.join(map(str, self.hosts))}/{self.database}"

    @property
    def is_local(self) -> bool:
        """Whether all hosts are this machine."""
        names = [host.address or host.name for host in self.hosts]
        return all(name in ("localhost", "::1") or name.startswith(("127.", "/")) for name in names)

    @property
    def secrets(self) -> set[str]:
        """The passwords, without those that are also the name of the user, the database or a host: names are shown."""
        found = {host.password for host in self.hosts} | {self.options.get("sslpassword")}
        names = {self.user, self.database, *(host.name for host in self.hosts)}
        return {secret for secret in found if secret} - names

    @property
    def no_password(self) -> str:
        """Why a host has no password, for people."""
        path = self.password_file
        if path is None or not (path.exists() or "passfile" in self.options):
            return "no password is set"
        if why := files.ignored(path):
            return f"no password is set, and the password file {path} does not count: {why}"
        return f"no password is set, and the password file {path} has none for this host, port, database and user"

    def unreadable_file(self) -> str | None:
        """Which file of the options cannot be read and why, if there is one."""
        for name in _FILES:
            path = self.options.get(name, "")
            if not path or (name, path) == ("sslrootcert", "system") or self.options["sslmode"] == "disable":
                continue
            try:
                Path(path).open("rb").close()
            except OSError as error:
                return f"{name} {path} cannot be read ({error.strerror})"
        return None


def read(text: str, environment: Mapping[str, str]) -> Target:
    """The target that a connection string means. Reads the service file and the password file.

    Raises:
        ValueError: it can never work: it cannot be read, or an option is unknown or not supported. The text is one line
            for people without secrets.
    """
    found = _all_options(text, environment)
    if (requires := found.pop("requiressl", "")) and "sslmode" not in found:
        found["sslmode"] = "require" if requires == "1" else "prefer"
    if found.get("sslrootcert") == "system":
        found.setdefault("sslmode", "verify-full")
        if found["sslmode"] != "verify-full":
            raise ValueError("sslrootcert=system needs sslmode=verify-full")
    found.setdefault("sslmode", "prefer")
    _verify_combinations(found)
    user = found.pop("user", "") or _login()
    database = found.pop("dbname", "") or user
    places = _places(found.pop("host", ""), found.pop("hostaddr", ""), found.pop("port", ""))
    given, file = found.pop("password", None), found.get("passfile")
    hosts = []
    for name, address, port in places:
        looked_up = "localhost" if name in _SOCKET_DIRECTORIES else name or address
        password = given or files.password(file, environment, host=looked_up, port=port, dbname=database, user=user)
        hosts.append(Host(name, address, port, password))
        if (path := hosts[-1].socket) and len(os.fsencode(path)) > _SOCKET_PATH_MAX:
            raise ValueError(f"has a path of a socket that is longer than {_SOCKET_PATH_MAX} bytes")
    if found["sslmode"] == "verify-full" and any(not host.name for host in hosts):
        raise ValueError("sslmode=verify-full needs host next to hostaddr, because it checks the host's name")
    password_file = None if given else files.password_file(file, environment)
    return Target(tuple(hosts), user, database, found, files.home(environment), password_file)


def _all_options(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The options in the order of precedence: the string, the service, the environment. Empty ones are not set."""
    found = split(text)
    options.verify(found)
    found = {name: value for name, value in found.items() if value}
    of_variables = {
        name: value
        for name, option in options.OPTIONS.items()
        if option.variable and (value := environment.get(option.variable))
    }
    service = found.get("service") or of_variables.get("service")
    if service:
        file = found.get("servicefile") or of_variables.get("servicefile")
        of_service = files.service(service, file, environment)
        options.verify(of_service, service=True)
        found = {name: value for name, value in of_service.items() if value} | found
    for name, value in of_variables.items():
        if name not in found:
            try:
                options.verify({name: value})
            except ValueError as error:
                raise ValueError(f"{options.OPTIONS[name].variable}: {error}") from None
            found[name] = value
    for name in ("service", "servicefile"):
        found.pop(name, None)
    numbers = {name for name, option in options.OPTIONS.items() if option.number}
    return {name: value.strip() if name in numbers else value for name, value in found.items()}


def _verify_combinations(found: Mapping[str, str]) -> None:
    mode = found["sslmode"]
    if found.get("sslnegotiation") == "direct" and mode not in _TLS_MODES:
        raise ValueError("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")
    if found.get("sslsni") == "0" and mode.startswith("verify"):
        raise ValueError(f"sslsni=0 with sslmode={mode} is not supported; leave sslsni out")
    oldest, newest = (found.get(f"ssl_{which}_protocol_version", "") for which in ("min", "max"))
    if oldest and newest and oldest > newest:
        raise ValueError("ssl_min_protocol_version is above ssl_max_protocol_version")


def _places(host: str, hostaddr: str, port: str) -> list[tuple[str, str, int]]:
    """Name, address and port of each host."""
    addresses = hostaddr.split(",") if hostaddr else []
    names = host.split(",") if host else [""] * max(1, len(addresses))
    if addresses and len(addresses) != len(names):
        raise ValueError(f"has {len(names)} hosts and {len(addresses)} in hostaddr")
    addresses = addresses or [""] * len(names)
    ports = [_port(each) for each in port.split(",")] if port else [_PORT]
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise ValueError(f"has {len(names)} hosts and {len(ports)} ports")
    names = [_name(name, address, port) for name, address, port in zip(names, addresses, ports, strict=True)]
    return list(zip(names, addresses, ports, strict=True))


def _port(text: str) -> int:
    if not text.strip():
        return _PORT
    if not (text.strip().isascii() and text.strip().isdigit() and 0 < int(text) < 2**16):
        raise ValueError(
            "has a port that is not a number from 1 to 65535; in a password, write / as %2F, ? as %3F, # as %23 and @ as %40"
        )
    return int(text)


def _name(name: str, address: str, port: int) -> str:
    if "@" in name:  # it may be the rest of a password
        raise ValueError("has a host with an @ in it; in a password, write @ as %40")
    if name or address:
        return name
    sockets = [Path(directory, f".s.PGSQL.{port}") for directory in _SOCKET_DIRECTORIES]
    return next((str(path.parent) for path in sockets if path.exists()), "localhost")


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ValueError("names no user, and this account has no name") from None
