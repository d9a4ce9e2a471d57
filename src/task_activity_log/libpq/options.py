"""libpq's options (PostgreSQL 18): the variable of each, and which values are taken."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from task_activity_log.libpq.strings import Unquotable

_SWITCH = ("0", "1")
_UTF8 = ("UTF8", "utf8", "UTF-8", "utf-8", "auto")
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_VERSIONS = (("TLSv1.2", "TLSv1.3"), "Python no longer supports older ones", ("TLSv1", "TLSv1.1"))
_OFF = ("0", "false", "off", "no")


@dataclass(frozen=True, slots=True)
class Option:
    """One option of libpq."""

    variable: str | None = None
    """The environment variable that sets it."""
    values: tuple[str, ...] | None = None
    """The values that are taken; None: any text."""
    refused: str = ""
    """Why libpq's other values are refused; if `values` is empty, why the whole option is."""
    others: tuple[str, ...] = ()
    """libpq's other values."""
    number: bool = False
    """Whether it is a whole number."""
    most: int | None = None
    """The largest number that the system takes."""


_NOT_IN_DRIVER = "the driver cannot do it"
_WRITES = "the worker writes"

OPTIONS: Mapping[str, Option] = {
    # where
    "host": Option("PGHOST"),
    "hostaddr": Option("PGHOSTADDR"),
    "port": Option("PGPORT"),
    "dbname": Option("PGDATABASE"),
    "service": Option("PGSERVICE"),
    "servicefile": Option("PGSERVICEFILE"),
    "target_session_attrs": Option(
        "PGTARGETSESSIONATTRS", ("any", "read-write", "primary"), _WRITES, ("read-only", "standby", "prefer-standby")
    ),
    "load_balance_hosts": Option("PGLOADBALANCEHOSTS", ("disable", "random")),
    # who
    "user": Option("PGUSER"),
    "password": Option("PGPASSWORD"),
    "passfile": Option("PGPASSFILE"),
    "require_auth": Option("PGREQUIREAUTH", (), _NOT_IN_DRIVER),
    "channel_binding": Option("PGCHANNELBINDING", ("disable", "prefer"), _NOT_IN_DRIVER, ("require",)),
    "scram_client_key": Option(None, (), _NOT_IN_DRIVER),
    "scram_server_key": Option(None, (), _NOT_IN_DRIVER),
    "oauth_issuer": Option(None, (), _NOT_IN_DRIVER),
    "oauth_client_id": Option(None, (), _NOT_IN_DRIVER),
    "oauth_client_secret": Option(None, (), _NOT_IN_DRIVER),
    "oauth_scope": Option(None, (), _NOT_IN_DRIVER),
    "krbsrvname": Option("PGKRBSRVNAME"),
    "gsslib": Option("PGGSSLIB", ("gssapi", "sspi")),
    "gssencmode": Option("PGGSSENCMODE", ("disable", "prefer"), _NOT_IN_DRIVER, ("require",)),
    "gssdelegation": Option("PGGSSDELEGATION", ("0",), _NOT_IN_DRIVER, ("1",)),
    "requirepeer": Option("PGREQUIREPEER", (), _NOT_IN_DRIVER),
    # TLS
    "sslmode": Option("PGSSLMODE", _MODES),
    "requiressl": Option("PGREQUIRESSL", _SWITCH),
    "sslnegotiation": Option("PGSSLNEGOTIATION", ("postgres", "direct")),
    "sslcompression": Option("PGSSLCOMPRESSION", _SWITCH),
    "sslcert": Option("PGSSLCERT"),
    "sslkey": Option("PGSSLKEY"),
    "sslpassword": Option(),
    "sslcertmode": Option("PGSSLCERTMODE", ("disable", "allow"), _NOT_IN_DRIVER, ("require",)),
    "sslrootcert": Option("PGSSLROOTCERT"),
    "sslcrl": Option("PGSSLCRL"),
    "sslcrldir": Option("PGSSLCRLDIR"),
    "sslsni": Option("PGSSLSNI", _SWITCH),
    "sslkeylogfile": Option(),
    "ssl_min_protocol_version": Option("PGSSLMINPROTOCOLVERSION", *_TLS_VERSIONS),
    "ssl_max_protocol_version": Option("PGSSLMAXPROTOCOLVERSION", *_TLS_VERSIONS),
    # the session
    "application_name": Option("PGAPPNAME"),
    "fallback_application_name": Option(),
    "options": Option("PGOPTIONS"),
    "client_encoding": Option("PGCLIENTENCODING", _UTF8, "the driver uses UTF8"),
    "replication": Option(None, _OFF, "the worker sends SQL", ("true", "on", "yes", "1", "database")),
    "min_protocol_version": Option("PGMINPROTOCOLVERSION", ("3.0",), "the driver uses 3.0", ("3.2", "latest")),
    "max_protocol_version": Option("PGMAXPROTOCOLVERSION", ("3.0", "3.2", "latest")),
    # timeouts
    "connect_timeout": Option("PGCONNECT_TIMEOUT", number=True),
    "keepalives": Option(number=True),
    "keepalives_idle": Option(number=True, most=32_767),
    "keepalives_interval": Option(number=True, most=32_767),
    "keepalives_count": Option(number=True, most=127),
    "tcp_user_timeout": Option(number=True),
}
"""All options that libpq knows, in the order of docs/operations.md."""


SERVER_SETTINGS = frozenset(
    {
        "bytea_output",
        "check_function_bodies",
        "client_min_messages",
        "datestyle",
        "default_table_access_method",
        "default_tablespace",
        "default_transaction_deferrable",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "extra_float_digits",
        "geqo",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "intervalstyle",
        "jit",
        "lc_messages",
        "lock_timeout",
        "log_min_duration_statement",
        "log_statement",
        "plan_cache_mode",
        "role",
        "row_security",
        "search_path",
        "session_replication_role",
        "statement_timeout",
        "synchronous_commit",
        "temp_tablespaces",
        "timezone",
        "transaction_timeout",
        "work_mem",
    }
)
"""Settings of the server that are taken like options, in lower case. libpq has them in `options` alone; asyncpg takes them."""


def is_server_setting(name: str) -> bool:
    """Whether it is one of `SERVER_SETTINGS`, or one of an extension, such as `app.tenant`."""
    return name.lower() in SERVER_SETTINGS or re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", name) is not None


def verify(found: Mapping[str, str], *, service: bool = False) -> None:
    """Check names and values. An empty value is as none.

    Raises:
        ValueError: an option is unknown, or cannot be taken. The text names it. It quotes a value only if it is one of
            libpq's words.
    """
    for name, value in found.items():
        option = OPTIONS.get(name)
        if option is None and not is_server_setting(name):
            raise ValueError(_unknown(name, service=service))
        if option and value:
            _verify(name, value.strip(), option)


def _verify(name: str, value: str, option: Option) -> None:
    if option.number and not re.fullmatch(r"[+-]?[0-9]{1,9}", value):
        raise ValueError(f"{name} should be a whole number")
    if option.most is not None and int(value) > option.most:
        raise ValueError(f"{name} should be at most {option.most}")
    if option.values is None or value in option.values:
        return
    shown = f"{name}={value}" if value in option.others else name
    if option.refused and (value in option.others or not option.values):
        wrong = f"{shown} is not supported, because {option.refused}"
    else:
        wrong = f"{name} should have another value" + (f", because {option.refused}" if option.refused else "")
    raise ValueError(
        f"{wrong}; " + (f"use {_either(option.values)}, or leave it out" if option.values else "leave it out")
    )


def _either(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"


def _unknown(name: str, *, service: bool) -> str:
    if isinstance(name, Unquotable):
        return (
            "has an unknown option, which is not shown because it may be a part of the password; in a password, write / as"
            " %2F, ? as %3F, # as %23, @ as %40 and & as %26"
        )
    close = difflib.get_close_matches(name, OPTIONS, n=1)
    what = "the service file has an unknown option" if service else "unknown option"
    shown = "".join(letter if letter.isprintable() else "?" for letter in name[:63])
    return f"{what} {shown}" + (f"; did you mean {close[0]}?" if close else "")
