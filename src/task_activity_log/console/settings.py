"""Settings of the console: one frozen model, read from the environment like those of the worker."""

import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from task_activity_log.console.users import PasswordFile
from task_activity_log.settings import SettingsError
from task_activity_log.variables import explained, unknown

PREFIX = "CONSOLE_"
_OF_A_SERVICE = re.compile(r"CONSOLE_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_\w+)")
"""What Kubernetes puts into each container of a namespace with a service named `console`."""


def _list(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _worker(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} should be the URL of a worker, as in http://task-activity-log-worker:8080")
    if parts.username or parts.password:
        raise ValueError("a worker asks for no user and no password: leave them out of the URL")
    return url


def _network(value: object) -> object:
    try:
        return ip_network(str(value))
    except ValueError:
        raise ValueError(f"{value} should be an address or a network, as in 10.0.0.7 or 10.0.0.0/24") from None


def _password_file(path: Path) -> Path:
    PasswordFile.read(path)  # it raises a ValueError
    return path


_Names = Annotated[tuple[str, ...], BeforeValidator(_list)]
_Workers = Annotated[tuple[Annotated[str, AfterValidator(_worker)], ...], BeforeValidator(_list)]
_Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
_Networks = Annotated[tuple[_Network, ...], BeforeValidator(_list)]


class ConsoleSettings(BaseModel):
    """All settings of the console. The text below a setting is its description in docs/console.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address on which the console listens. One that others reach needs CONSOLE_PASSWORD_FILE or CONSOLE_PROXY_ADDRESSES."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8081
    """Port on which the console listens. With 0 a free port is used."""
    workers: _Workers = ("http://localhost:8080",)
    """URLs of the workers' HTTP ports, separated by commas. Each address of a name, as of a headless Service, is a worker."""
    password_file: Annotated[Path, AfterValidator(_password_file)] | None = None
    """File with the users for basic authentication, a line each, as `task-activity-log console --password-for NAME` prints it.
    It is read again when it has changed."""
    proxy_addresses: _Networks = ()
    """Addresses or networks, separated by commas, of the proxies that authenticate users. Only their headers are trusted."""
    proxy_user_header: str = "X-Forwarded-User"
    """Header in which a proxy names the user."""
    proxy_groups_header: str = "X-Forwarded-Groups"
    """Header in which a proxy names the groups of the user, separated by commas."""
    look_groups: _Names = ("look",)
    """Groups whose users may look, separated by commas. `*` means every user of the proxy."""
    act_groups: _Names = ("act",)
    """Groups whose users may replay, edit, discard and send."""
    bodies_groups: _Names = ("bodies",)
    """Groups whose users see the bodies of messages and the values of rows."""
    memory_limit_bytes: Annotated[int, Field(ge=2**20)] = 256 * 2**20
    """How many bytes of dead letters are kept in memory to show them. Beyond that only the oldest are shown."""

    @model_validator(mode="after")
    def _nobody_else_reaches_it(self) -> Self:
        if not (self.is_local or self.password_file or self.proxy_addresses):
            raise ValueError(
                f"{PREFIX}HOST: others can reach {self.host}, so say who may use the console: set {PREFIX}PASSWORD_FILE or"
                f" {PREFIX}PROXY_ADDRESSES, or listen on 127.0.0.1"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach the console."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + field.upper()


def load(environment: Mapping[str, str] = os.environ) -> ConsoleSettings:
    """Read the settings of the console. Raises `SettingsError` if one is unknown or invalid."""
    fields = {variable(field): field for field in ConsoleSettings.model_fields}
    own = [name for name in environment if name.startswith(PREFIX) and not _OF_A_SERVICE.fullmatch(name)]
    values = {fields[name]: environment[name] for name in own if name in fields and environment[name]}  # compose: empty
    errors = [unknown(name, fields) for name in own if name not in fields]
    try:
        settings = ConsoleSettings.model_validate(values)
    except ValidationError as invalid:
        errors += explained(invalid, variable)
    if errors:
        raise SettingsError("\n".join(errors))
    return settings
