"""Settings: one frozen model, read from the environment. Unsafe combinations are refused at start.

`AMQP_URL`, `DATABASE_URL`, `MANAGEMENT_URL`, `HTTP_HOST`, `HTTP_PORT`, `LOG_FORMAT` and `LOG_LEVEL` have no prefix, all others
have the prefix `WORKER_`. A value can be read from a file: `AMQP_URL_FILE` is the path of a file that contains AMQP_URL. The URLs
of broker and database are read again for each connection.
"""

import os
import re
from collections.abc import Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from task_activity_log import libpq
from task_activity_log.hosts import is_name, urls
from task_activity_log.libpq import trust
from task_activity_log.partitions import is_partition_count, valid_name
from task_activity_log.tls import Tls
from task_activity_log.variables import explained, unknown

PREFIX = "WORKER_"
_SECRET_MAX = 65_536
BATCHES_IN_HAND = 4
"""With two, each stage waits for the other one most of the time (measured in docs/performance.md)."""
_BATCHES_OF_A_PARTITION = 2
"""With half a batch, batches are small, and each message takes a tenth more CPU time (measured in docs/scaling.md)."""
_BARE = ("amqp_url", "database_url", "management_url", "http_host", "http_port", "log_format", "log_level")


_NEEDS_TLS = "AMQP_URL: should begin with amqps://, because files for TLS are set"


class SettingsError(Exception):
    """A setting is missing, unknown or invalid. Its text has one line for each problem, and no secrets."""


def _url(*schemes: str, example: str) -> AfterValidator:
    """Checks a URL. The errors do not quote it."""

    def check(url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url.get_secret_value())
        except ValueError:
            raise ValueError("is not a URL") from None
        if parts.scheme not in schemes:
            raise ValueError("should begin with " + " or ".join(f"{scheme}://" for scheme in schemes))
        if not parts.hostname:
            raise ValueError(f"should name a host, as in {example}")
        urls(url.get_secret_value())
        return url

    return AfterValidator(check)


def _database_url(url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Checks a connection string and the files that it names: what can never work is refused at start."""
    if url is not None:
        target = libpq.read(url.get_secret_value(), (info.context or {}).get("environment", os.environ))
        if unreadable := target.unreadable_file():
            raise ValueError(unreadable)
        try:
            for host in target.hosts:
                trust.context(target, host, None)
        except OSError as error:
            raise ValueError(str(error.strerror)) from None
    return url


def _patterns(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _partition_count(count: int) -> int:
    if count and not is_partition_count(count):
        raise ValueError("should be 0 or a power of two up to 256: 1, 2, 4, 8, 16, 32, 64, 128 or 256")
    return count


def _host(host: str) -> str:
    if not is_name(host):
        raise ValueError("is not the name or address of a host")
    return host


def _readable(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    return path


_Queue = Annotated[str, AfterValidator(partial(valid_name, 240))]
_Exchange = Annotated[str, AfterValidator(partial(valid_name, 117))]
_Url = Annotated[SecretStr | None, Field(exclude=True)]
"""It may contain a password, so it is never shown."""
_File = Annotated[Path, AfterValidator(_readable)]


class Settings(BaseModel):
    """All settings. The text below a setting is its description in docs/settings.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)

    amqp_url: Annotated[_Url, _url("amqp", "amqps", example="amqp://user:password@host:5672/vhost")] = None
    """URL of the broker: `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS. Several hosts, separated by commas,
    are tried in turn."""
    database_url: Annotated[_Url, AfterValidator(_database_url)] = None
    """URL of the database: `postgresql://user:password@host:5432/name`, or any other connection string that psql takes, with
    several hosts and with libpq's options ([Connecting to PostgreSQL](connecting.md))."""
    management_url: Annotated[_Url, _url("http", "https", example="http://user:password@host:15672")] = None
    """URL of RabbitMQ's management API, used by `check`, by the console and by commands that look at dead letters or replies, but
    not by workers: `http://user:password@host:15672`, or with several hosts, which are tried in turn. The user needs the tag
    `monitoring` and access to the virtual host, such as by the permissions `'^$' '^$' '^$'`."""
    http_host: Annotated[str, AfterValidator(_host)] = "0.0.0.0"  # noqa: S104 - probes come from outside the pod
    """Address on which health and metrics are served."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port on which health and metrics are served. With 0 a free port is used."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """Format of log events. `auto` means `console` on a terminal and `json` otherwise."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)] = "info"
    """Lowest level that is logged. `info` logs one event per batch, `debug` also one per message."""

    batch_max: Annotated[int, Field(ge=1, le=5000)] = 500
    """Maximum number of messages in one batch."""
    body_limit_bytes: Annotated[int, Field(ge=1024, le=128 * 2**20)] = 256 * 1024
    """Maximum length of a message body in bytes. A longer body is rejected."""
    memory_limit_bytes: Annotated[int, Field(ge=2**20)] = 512 * 2**20
    """Memory that the worker plans with, in bytes. Its resident memory stays below this and a third."""
    drain_limit_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Time allowed at a stop for finishing the current batches, in seconds."""
    default_media_type: Literal["application/json", "application/xml", "none"] = "application/json"
    """Media type assumed when content_type is absent. With `none` such a message is rejected."""
    naive_dates: Literal["utc", "reject"] = "utc"
    """How a date without an offset is read: as UTC (`utc`), or not at all (`reject`)."""
    update_mode: Literal["replace", "merge"] = "replace"
    """Whether a field that is absent in a message becomes null (`replace`) or keeps its value (`merge`)."""
    nulls: Literal["emit", "omit"] = "emit"
    """Whether JSON replies contain members with the value null (`emit`) or not (`omit`)."""
    replies: Literal["reply_to", "both"] = "reply_to"
    """Whether a reply to a `reply_to` address is sent only there, or also to the replies exchange (`both`)."""
    reply_to_allowed: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ("*",)
    """Patterns of the `reply_to` addresses to which replies may be sent, separated by commas."""

    topology: Literal["declare", "check"] = "declare"
    """Whether the worker declares queues and exchanges, or only checks them because operators declare them."""
    requests_queue: _Queue = "task_activity_log.upsert"
    """Name of the queue for requests."""
    replies_queue: _Queue = "task_activity_log.replies"
    """Name of the queue for replies."""
    dead_letters_queue: _Queue = "task_activity_log.dead-letters"
    """Name of the queue for dead letters."""
    requests_exchange: _Exchange = "task_activity_log"
    """Name of the exchange for requests (direct)."""
    replies_exchange: _Exchange = "task_activity_log.replies"
    """Name of the exchange for replies (topic)."""
    partitions: Annotated[int, AfterValidator(_partition_count)] = 0
    """Number of request queues among which the records are divided, so that any number of workers keeps the order of each
    record: a power of two up to 256, for example 16. 0: there is one queue, and no partitions."""
    partitions_exchange: _Exchange = "task_activity_log.by-record"
    """Name of the exchange for requests that are sent by record (direct). It is used only with partitions."""
    workers_queue: _Queue = "task_activity_log.workers"
    """Name of the queue by which the workers are counted. It stays empty, and is used only with partitions."""
    single_active_consumer: bool = False
    """Whether the requests queue is declared with a single active consumer: one worker consumes, the others stand by."""
    amqp_heartbeat_seconds: Annotated[int, Field(ge=1, le=300)] = 10
    """Heartbeat interval of the broker connections in seconds. A dead connection is noticed after about three intervals."""
    amqp_connect_timeout_seconds: PositiveFloat = 10.0
    """Timeout of one attempt to connect to the broker, in seconds."""
    confirm_timeout_seconds: PositiveFloat = 30.0
    """Timeout for the broker's publisher confirms, in seconds."""
    amqp_ca_file: _File | None = None
    """PEM file with the certificate authorities that may sign the broker's certificate. By default the system's
    authorities are used."""
    amqp_certificate_file: _File | None = None
    """PEM file with the worker's certificate for the broker and its chain (mutual TLS)."""
    amqp_key_file: _File | None = None
    """PEM file with the private key of that certificate, not encrypted. Not needed if the certificate file contains the
    key."""
    database_ca_file: _File | None = None
    """PEM file with the certificate authorities that may sign the database's certificate. If it is set, TLS and a check
    of the host name are required, whatever `sslmode` says."""
    database_certificate_file: _File | None = None
    """PEM file with the worker's certificate for the database and its chain (mutual TLS)."""
    database_key_file: _File | None = None
    """PEM file with the private key of that certificate, not encrypted."""
    database_connect_timeout_seconds: PositiveFloat = 10.0
    """Timeout of one attempt to connect to the database, in seconds, for each address. `connect_timeout` in DATABASE_URL
    replaces it."""
    database_command_timeout_seconds: PositiveFloat = 30.0
    """Timeout of one statement, in seconds. If one row makes it slow, other records wait for a few seconds at most."""
    database_statement_cache: NonNegativeInt = 100
    """Number of prepared statements kept per connection. Set it to 0 behind pgbouncer in transaction mode."""
    hold_limit_seconds: Annotated[float, Field(gt=0, lt=1800)] = 600.0
    """How long unsettled messages are kept during an outage, in seconds; after that they are requeued. Keep it below
    the broker's consumer timeout (30 minutes)."""
    reply_give_up_seconds: NonNegativeFloat = 30.0
    """How long a `reply_to` address may refuse a reply before the reply is given up, in seconds."""
    park_limit_seconds: Annotated[float, Field(gt=0, lt=1800)] = 600.0
    """How long a message may wait for a row that is locked, in seconds; after that everything is requeued. Keep it below the
    broker's consumer timeout (30 minutes)."""
    refused_in_a_row: NonNegativeInt = 10
    """After how many refusals in a row for one reason the worker finds out whether the database refuses every row: it writes
    rows of its own and rolls back. If these are refused too, all wait until a row passes. If the worker has stored a row since
    it started, the first refusal is enough. 0: never; each refused message is dead-lettered."""
    poison_from: Annotated[int, Field(ge=3, lt=20)] = 10
    """Number of failed deliveries after which a message is rejected if workers crashed three times while they tried it
    alone. It must be below the delivery limit of the queue (20)."""
    inbox_keep_seconds: Annotated[float, Field(ge=60, le=10 * 365 * 86_400)] = 86_400.0
    """How long a message is remembered for deduplication, in seconds."""
    journal: bool = False
    """Whether the database records how each message was answered, without payloads, so that `task-activity-log find` can say
    what became of a message ([the journal](operations.md#the-journal)). Kept as long as `WORKER_INBOX_KEEP_SECONDS` says."""

    _environment: Mapping[str, str] = PrivateAttr(default_factory=lambda: os.environ)
    _files: dict[str, str] = PrivateAttr(default_factory=dict)
    """The files that values were read from, by field."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        queues = ("requests_queue", "replies_queue", "dead_letters_queue", "workers_queue")
        exchanges = ("requests_exchange", "replies_exchange", "partitions_exchange")
        for one, other in (*combinations(queues, 2), *combinations(exchanges, 2)):
            if getattr(self, one) == getattr(self, other):
                raise ValueError(f"{variable(one)}: should not have the same value as {variable(other)}")
        return self

    @model_validator(mode="after")
    def _tls_is_of_use(self) -> Self:
        problems = []
        for name, tls in ((f"{PREFIX}AMQP", self.amqp_tls), (f"{PREFIX}DATABASE", self.database_tls)):
            if tls is not None and tls.key and not tls.certificate:
                problems.append(f"{name}_KEY_FILE: also needs {name}_CERTIFICATE_FILE")
            elif tls is not None:
                try:
                    tls.context()
                except OSError:
                    problems.append(f"{name}_…_FILE: not PEM files with certificates and a matching key")
        if self.amqp_tls is not None and self.amqp_url and not self.required_amqp_url.startswith("amqps:"):
            problems.append(_NEEDS_TLS)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def required_amqp_url(self) -> str:
        """AMQP_URL in plain text, with its password. Raises `SettingsError` if it is not set (see `load`)."""
        return _required(self.amqp_url, "AMQP_URL")

    @property
    def required_database_url(self) -> str:
        """DATABASE_URL in plain text, with its password. Raises `SettingsError` if it is not set (see `load`)."""
        return _required(self.database_url, "DATABASE_URL")

    def read_again(self, field: Literal["amqp_url", "database_url"]) -> str:
        """A URL as it is now: if it came from a file, the file is read again, because passwords are changed in it.

        Raises:
            SettingsError: it cannot be read, or is not a URL of the broker. What a URL of the database means is found out
                when it is used.
        """
        if field not in self._files:
            return _required(getattr(self, field), variable(field))
        name, errors = f"{variable(field)}_FILE", list[str]()
        url = _secret(name, self._files[field], errors)
        if field == "amqp_url" and not errors:
            errors += self._broker_errors(name, url)
        if errors:
            raise SettingsError("; ".join(errors))
        return url

    def _broker_errors(self, name: str, url: str) -> list[str]:
        """What is wrong with a URL of the broker that was read again."""
        if not url.startswith(("amqp://", "amqps://")):
            return [f"{name}: should begin with amqp:// or amqps://"]
        if self.amqp_tls is not None and not url.startswith("amqps:"):
            return [_NEEDS_TLS]
        try:
            urls(url)
        except ValueError as error:
            return [f"{name}: {error}"]
        return []

    @property
    def database_target(self) -> libpq.Target:
        """What DATABASE_URL means, together with libpq's variables and files.

        Raises `SettingsError` if it is not set, and `ValueError` if a file of libpq was changed and cannot be used now.
        """
        return libpq.read(self.required_database_url, self._environment)

    @property
    def secret_urls(self) -> tuple[str, ...]:
        """All settings that may contain a password, in plain text."""
        urls = (self.amqp_url, self.database_url, self.management_url)
        return tuple(url.get_secret_value() for url in urls if url is not None)

    @property
    def amqp_tls(self) -> Tls | None:
        """The TLS files for the broker; None if none are set, and the URL alone determines TLS."""
        files = (self.amqp_ca_file, self.amqp_certificate_file, self.amqp_key_file)
        return Tls(*files) if any(files) else None

    @property
    def database_tls(self) -> Tls | None:
        """The TLS files for the database; None if none are set, and the URL alone determines TLS."""
        files = (self.database_ca_file, self.database_certificate_file, self.database_key_file)
        return Tls(*files) if any(files) else None

    @property
    def prefetch(self) -> int:
        """The maximum number of unsettled deliveries: four batches, or fewer if the memory limit requires it.

        While one batch is stored, one waits to be answered, one is answered, and one arrives. The memory limit assumes
        bodies of the maximum length.
        """
        return max(1, min(BATCHES_IN_HAND * self.batch_max, self.memory_limit_bytes // self.body_limit_bytes))

    @property
    def in_hand_bytes(self) -> int:
        """How much unsettled deliveries may weigh: half of the memory. Then the broker's connection is not read."""
        return self.memory_limit_bytes // 2

    @property
    def batch_bytes(self) -> int:
        """How much a batch of several deliveries may weigh, and the replies that are published together.

        A batch exists several times: as texts, as parameters, as rows and as replies, and up to three are under way.
        """
        return self.memory_limit_bytes // 64

    @property
    def record_bytes(self) -> int:
        """How much text a record may have that is read for a reply, in bytes: at least what requests can have stored in it.

        A reply may be six times as long as the texts. With the row and the texts, that makes a third of the memory.
        """
        return max(self.memory_limit_bytes // 32, 3 * self.body_limit_bytes)

    @property
    def queue_prefetch(self) -> int:
        """The prefetch of each queue: that of the worker, or with partitions at most two batches.

        It must be the same for all workers, whatever their number: a queue keeps the order of what is returned to it only if
        each of its consumers has the same prefetch. A worker that is active on two partitions has as much in hand as one
        without partitions, and its batches are as large. All partitions together are bounded by `in_hand_bytes`.
        """
        return min(self.prefetch, _BATCHES_OF_A_PARTITION * self.batch_max) if self.partitions else self.prefetch


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return field.upper() if field in _BARE else PREFIX + field.upper()


def load(
    environment: Mapping[str, str] = os.environ, *, needed: tuple[str, ...] = ("amqp_url", "database_url")
) -> Settings:
    """Read the settings from the environment.

    Args:
        environment: the variables.
        needed: the URLs that must be set. A command that uses only one of the services needs only that one.

    Raises:
        SettingsError: a setting is missing, unknown or invalid.
    """
    errors: list[str] = []
    values: dict[str, Any] = {}
    files: dict[str, str] = {}
    fields = {variable(field): field for field in Settings.model_fields}
    for name, value in environment.items():
        if name in fields:
            values[fields[name]] = value
        elif (of := name.removesuffix("_FILE")) in fields:
            if value and environment.get(of):
                errors.append(f"{name}: {of} is set too; set only one of them")
            elif value:
                files[fields[of]] = value
        elif name.startswith(PREFIX) and not _OF_A_SERVICE.fullmatch(name):
            errors.append(unknown(name, fields))
    values |= {field: _secret(f"{variable(field)}_FILE", path, errors) for field, path in files.items()}
    values = {field: value for field, value in values.items() if value}  # compose files pass unset variables as empty
    errors += [_missing(variable(field)) for field in needed if not (field in values or field in files)]
    try:
        settings = Settings.model_validate(values, context={"environment": environment})
    except ValidationError as invalid:
        errors += explained(invalid, variable)
    if errors:
        raise SettingsError("\n".join(errors))
    settings._environment, settings._files = environment, files  # noqa: SLF001 - this is the other half of the class
    return settings


_OF_A_SERVICE = re.compile(
    r"WORKER_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_[A-Z]+(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes puts into each container of a namespace with a service named `worker` or `worker-…`."""


def _required(url: SecretStr | None, name: str) -> str:
    if url is None:
        raise SettingsError(_missing(name))
    return url.get_secret_value()


def _secret(name: str, path: str, errors: list[str]) -> str:
    """What the file that `name` names contains; if that is nothing, or cannot be read, an error is added."""
    content, wrong = "", ""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            content = file.read(_SECRET_MAX + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        wrong = f"cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"
    if len(content) > _SECRET_MAX:  # such as /dev/zero, which does not end
        content, wrong = "", f"is longer than {_SECRET_MAX:,} characters"
    if wrong or not content:
        errors.append(f"{name}: {wrong or 'is empty'}")
    return content


def _missing(name: str) -> str:
    return f"{name} is not set: {_EXAMPLES[name]}"


_EXAMPLES = {
    "AMQP_URL": "for example AMQP_URL=amqp://guest:guest@localhost:5672/",
    "DATABASE_URL": "for example DATABASE_URL=postgresql://postgres@localhost:5432/postgres",
}
