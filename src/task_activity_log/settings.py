"""Settings: one frozen model, read from the environment; unsafe combinations are refused at start.

`AMQP_URL`, `DATABASE_URL`, `MANAGEMENT_URL`, `HTTP_HOST`, `HTTP_PORT`, `LOG_FORMAT` and `LOG_LEVEL` are read as they are, all
others with the prefix `WORKER_`. A secret can come from a file: `AMQP_URL_FILE` holds the path of one that holds the URL.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from task_activity_log.tls import Tls

PREFIX = "WORKER_"
BATCHES_IN_HAND = 4
"""With two, each stage waits for another most of the time: measured in docs/performance.md."""
_BARE = ("amqp_url", "database_url", "management_url", "http_host", "http_port", "log_format", "log_level")


class SettingsError(Exception):
    """A setting is missing, unknown or wrong. Its text is one line for each, and never holds a secret."""


def _amqp_url(url: SecretStr) -> SecretStr:
    parts = _split(url, ("amqp", "amqps"))
    if not parts.hostname:
        raise ValueError("should name a host, as in amqp://user:password@host:5672/vhost")
    return url


def _database_url(url: SecretStr) -> SecretStr:
    _split(url, ("postgresql", "postgres"), several_hosts=True)
    return url


def _management_url(url: SecretStr | None) -> SecretStr | None:
    if url is not None and not _split(url, ("http", "https")).hostname:
        raise ValueError("should name a host, as in http://user:password@host:15672")
    return url


def _split(url: SecretStr, schemes: tuple[str, ...], *, several_hosts: bool = False) -> SplitResult:
    try:
        parts = urlsplit(url.get_secret_value())
    except ValueError:
        raise ValueError("is not a URL") from None  # the parser's words may quote it
    if parts.scheme not in schemes:
        raise ValueError(f"should begin with {schemes[0]}://")
    with suppress(ValueError):
        _ = None if several_hosts else parts.port
        return parts
    raise ValueError("has a port that is no number from 1 to 65535")


def _patterns(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    amqp_url: Annotated[SecretStr, AfterValidator(_amqp_url)] = Field(
        description="The broker: `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS.",
    )
    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = Field(
        description="The database: `postgresql://user:password@host:5432/name`; several hosts and libpq's options too.",
    )
    management_url: Annotated[SecretStr | None, AfterValidator(_management_url)] = Field(
        None,
        description="RabbitMQ's management API, for `check` alone: `http://user:password@host:15672`. The user needs the"
        " tag `monitoring`.",
    )
    http_host: str = Field(
        "0.0.0.0",  # noqa: S104 - probes come from outside the pod
        description="Address that health and metrics are served on.",
    )
    http_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8080, description="Port that health and metrics are served on; 0 takes a free one."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`json`, `console`, or `auto`: console on a terminal, JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="`info` logs one event a batch, `debug` one a message as well."
    )

    batch_max: Annotated[int, Field(ge=1, le=5000)] = Field(500, description="Most messages in one batch.")
    body_limit_bytes: Annotated[int, Field(ge=1024, le=128 * 2**20)] = Field(
        256 * 1024, description="Longest body that is accepted."
    )
    memory_limit_bytes: Annotated[int, Field(ge=2**20)] = Field(
        512 * 2**20, description="Most that prefetched bodies may take; the prefetch is made smaller to fit."
    )
    drain_limit_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        10.0, description="How long a stop may take to finish what is under way."
    )
    default_media_type: Literal["application/json", "application/xml", "none"] = Field(
        "application/json", description="What a message without content_type is taken for; `none` rejects it."
    )
    naive_dates: Literal["utc", "reject"] = Field("utc", description="What a date without an offset is.")
    update_mode: Literal["replace", "merge"] = Field(
        "replace",
        description="Whether an absent field becomes null (`replace`) or keeps its value (`merge`).",
    )
    nulls: Literal["emit", "omit"] = Field("emit", description="Whether JSON replies have members that are null.")
    replies: Literal["reply_to", "both"] = Field(
        "reply_to",
        description="Whether a reply to `reply_to` goes there alone, or to the replies exchange as well.",
    )
    reply_to_allowed: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = Field(
        ("*",), description="Patterns, separated by commas, of the `reply_to` addresses that are used."
    )

    topology: Literal["declare", "check"] = Field(
        "declare",
        description="Whether queues and exchanges are declared, or only checked because operators own them.",
    )
    requests_queue: str = Field("task_activity_log.upsert", description="Queue of the requests.")
    replies_queue: str = Field("task_activity_log.replies", description="Queue of the replies.")
    dead_letters_queue: str = Field("task_activity_log.dead-letters", description="Queue of the dead letters.")
    requests_exchange: str = Field("task_activity_log", description="Exchange of the requests (direct).")
    replies_exchange: str = Field("task_activity_log.replies", description="Exchange of the replies (topic).")
    single_active_consumer: bool = Field(
        default=False,
        description="Declare the requests queue so that one worker consumes and others stand by.",
    )
    amqp_heartbeat_seconds: Annotated[int, Field(ge=1, le=300)] = Field(
        10, description="Heartbeat of the broker connections; a dead link is found after about three."
    )
    amqp_connect_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        10.0, description="How long one attempt to connect to the broker may take."
    )
    confirm_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        30.0, description="How long the broker may take to confirm what is published."
    )
    amqp_ca_file: Path | None = Field(
        None, description="PEM file of who may sign the broker's certificate; the system's authorities without it."
    )
    amqp_certificate_file: Path | None = Field(
        None, description="PEM file of our certificate for the broker, with its chain (mutual TLS)."
    )
    amqp_key_file: Path | None = Field(
        None, description="PEM file of its private key, not encrypted; not needed if the certificate's file holds it."
    )
    database_ca_file: Path | None = Field(
        None,
        description="PEM file of who may sign the database's certificate; with it, TLS and a check of the host's name"
        " are required whatever `sslmode` says.",
    )
    database_certificate_file: Path | None = Field(
        None, description="PEM file of our certificate for the database, with its chain (mutual TLS)."
    )
    database_key_file: Path | None = Field(None, description="PEM file of its private key, not encrypted.")
    database_connect_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        10.0, description="How long one attempt to connect to the database may take."
    )
    database_command_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        30.0, description="How long one statement may take."
    )
    database_statement_cache: Annotated[int, Field(ge=0)] = Field(
        100, description="Prepared statements kept per connection; 0 behind pgbouncer in transaction mode."
    )
    hold_limit_seconds: Annotated[float, Field(gt=0, lt=1800)] = Field(
        600.0,
        description="How long an outage is waited out with messages in hand; then they are given back."
        " Keep it below the broker's consumer timeout (30 minutes).",
    )
    reply_give_up_seconds: Annotated[float, Field(ge=0)] = Field(
        30.0, description="How long a `reply_to` may refuse a reply before it is given up."
    )
    poison_from: Annotated[int, Field(ge=3, lt=20)] = Field(
        10, description="Deliveries after which a message that may kill workers is rejected; below the broker's 20."
    )
    inbox_keep_seconds: Annotated[float, Field(ge=60)] = Field(
        86_400.0, description="How long a message is remembered, so that its repeat is not applied again."
    )

    @model_validator(mode="after")
    def _tls_is_of_use(self) -> Self:
        problems = []
        for service, tls in (("amqp", self.amqp_tls), ("database", self.database_tls)):
            absent = [problem for kind in ("ca", "certificate", "key") if (problem := self._unreadable(service, kind))]
            name = f"{PREFIX}{service.upper()}"
            if absent:
                problems += absent
            elif tls is not None and tls.key and not tls.certificate:
                problems.append(f"{name}_KEY_FILE: needs {name}_CERTIFICATE_FILE beside it")
            elif tls is not None:
                try:
                    tls.context()
                except OSError:
                    problems.append(f"{name}_…_FILE: not the PEM files of certificates and of a key that fits")
        if self.amqp_tls is not None and not self.amqp_url.get_secret_value().startswith("amqps:"):
            problems.append("AMQP_URL: should begin with amqps://, as there are files for TLS")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _unreadable(self, service: str, kind: str) -> str | None:
        path: Path | None = getattr(self, f"{service}_{kind}_file")
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            return f"{variable(f'{service}_{kind}_file')}: cannot be read ({error.strerror})"
        return None

    @property
    def secret_urls(self) -> tuple[str, ...]:
        """All that holds a password."""
        urls = (self.amqp_url, self.database_url, self.management_url)
        return tuple(url.get_secret_value() for url in urls if url is not None)

    @property
    def amqp_tls(self) -> Tls | None:
        """The files for the broker; None when there are none: then the URL alone says how."""
        files = (self.amqp_ca_file, self.amqp_certificate_file, self.amqp_key_file)
        return Tls(*files) if any(files) else None

    @property
    def database_tls(self) -> Tls | None:
        """The files for the database; None when there are none: then the URL alone says how."""
        files = (self.database_ca_file, self.database_certificate_file, self.database_key_file)
        return Tls(*files) if any(files) else None

    @property
    def prefetch(self) -> int:
        """Four batches, or as many bodies of the longest kind as the memory limit holds.

        While one is stored, one waits for its turn to be answered, one is answered, and one arrives.
        """
        return max(1, min(BATCHES_IN_HAND * self.batch_max, self.memory_limit_bytes // self.body_limit_bytes))


SECRETS = frozenset(("amqp_url", "database_url", "management_url"))
"""Fields that are never shown."""


def variable(field: str) -> str:
    """The environment variable of a field."""
    return field.upper() if field in _BARE else PREFIX + field.upper()


def load(
    environment: Mapping[str, str] = os.environ, *, needed: tuple[str, ...] = ("amqp_url", "database_url")
) -> Settings:
    """Read the settings from the environment.

    Args:
        environment: the variables.
        needed: the URLs that must be there; a command that uses only one of the services asks for that one alone.

    Raises:
        SettingsError: one is missing, unknown or wrong.
    """
    errors: list[str] = []
    values: dict[str, Any] = {}
    fields = {variable(field): field for field in Settings.model_fields}
    for name, value in environment.items():
        if name in fields:
            values[fields[name]] = value
        elif name.removesuffix("_FILE") in fields:
            values[fields[name.removesuffix("_FILE")]] = _secret(name, value, errors)
        elif name.startswith(PREFIX):
            close = difflib.get_close_matches(name, fields, n=1)
            errors.append(f"{name}: unknown setting" + (f"; did you mean {close[0]}?" if close else ""))
    values = {field: value for field, value in values.items() if value}  # compose files pass what is not set as empty
    for field, scheme in (("amqp_url", "amqp"), ("database_url", "postgresql")):
        if field not in needed and field not in values:
            values[field] = f"{scheme}://not-needed"
    try:
        settings = Settings(**values)
    except ValidationError as invalid:
        errors += [_explain(error["loc"], error["type"], error["msg"]) for error in invalid.errors(include_url=False)]
    if errors:
        raise SettingsError("\n".join(errors))
    return settings


def _secret(name: str, path: str, errors: list[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        errors.append(f"{name}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})")
        return ""


def _explain(location: tuple[int | str, ...], kind: str, message: str) -> str:
    if not location:  # a combination; the text names its settings
        return message.removeprefix("Value error, ")
    name = variable(str(location[0]))
    if kind == "missing":
        return f"{name}: is not set; {_EXAMPLES.get(name, 'set it')}"
    return f"{name}: {message.removeprefix('Value error, ')[:1].lower()}{message.removeprefix('Value error, ')[1:]}"


_EXAMPLES = {
    "AMQP_URL": "for example AMQP_URL=amqp://guest:guest@localhost:5672/",
    "DATABASE_URL": "for example DATABASE_URL=postgresql://postgres@localhost:5432/postgres",
}
