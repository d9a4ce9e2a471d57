"""Why one server does not let in: the causes of a login that fails, in words for people."""

import ssl

import asyncpg

from task_activity_log.libpq import Host, Target
from task_activity_log.postgresql.faults import label
from task_activity_log.postgresql.messages import closing, one_line


class NoConnection(Exception):
    """One server cannot be used: the label, and what else is known."""

    def __init__(self, place: str, why: str, said: str = "") -> None:
        super().__init__(why)
        self.place, self.label, self.said = place, why, said

    def __str__(self) -> str:
        """In one line, without the server."""
        return f"{self.label}, {self.said}" if self.said else self.label


_LABELS = {
    "08": "login refused",  # poolers use it for whatever they refuse
    "22": "option refused",
    "28": "access refused",
    "28P01": "wrong password",
    "42": "option refused",
    "42501": "access refused",  # no CONNECT on the database, or an option that only a superuser may set
}
"""By SQLSTATE or class, where a login has other reasons than a statement."""


def explained(error: Exception, place: str, host: Host, target: Target, seconds: float) -> NoConnection:
    """Why a server cannot be used. A driver's text is not shown; a server's is, without the password."""
    error = closing(error) or error
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.ConnectionDoesNotExistError):
        return NoConnection(place, *_refused(error, host.password, target))
    if isinstance(error, ConnectionError) and _NO_TLS in str(error):
        return NoConnection(place, "no TLS", "the server does not offer it")
    # GSSAPI without the package for it; or TLS 1.3, where the server refuses our certificate after the handshake
    if isinstance(error.__cause__, asyncpg.InterfaceError | ssl.SSLError):
        error = error.__cause__
    if isinstance(error, FileNotFoundError | PermissionError) and host.socket:
        return NoConnection(place, "no socket", f"{host.socket}: {error.strerror}")
    for kind, why, said in _CAUSES:
        if isinstance(error, kind):
            known = {"seconds": f"{seconds:g}", "strerror": getattr(error, "strerror", None) or type(error).__name__}
            known["tls"] = getattr(error, "verify_message", None) or getattr(error, "reason", None) or ""
            return NoConnection(place, why, said.format(**known))
    return NoConnection(place, "not PostgreSQL", "its answer is not that of a PostgreSQL server")


CERTIFICATE = "certificate not accepted"
_CAUSES: tuple[tuple[type[Exception], str, str], ...] = (
    (
        asyncpg.ConnectionDoesNotExistError,
        "connection lost",
        "the server closed it during the login: is it PostgreSQL?",
    ),
    (ssl.SSLCertVerificationError, CERTIFICATE, "{tls}"),
    (ssl.SSLError, "TLS failed", "{tls}"),
    (TimeoutError, "connect timeout", "no answer within {seconds} s"),
    (ConnectionRefusedError, "connection refused", ""),
    (ConnectionError, "connection lost", "it was closed before the login: is it PostgreSQL?"),
    (OSError, "unreachable", "{strerror}"),
    (asyncpg.InterfaceError, "login not supported", "the driver does not know this way to log in"),
)
"""The first type that matches."""


def _refused(error: asyncpg.PostgresError, password: str | None, target: Target) -> tuple[str, str]:
    """The server's reason."""
    sqlstate = error.sqlstate or "XX000"
    words = _LABELS.get(sqlstate) or _LABELS.get(sqlstate[:2])
    said = _clean(str(error.args[0]), password if password in target.secrets else None)
    if password is None and sqlstate.startswith("28"):
        said += f"; {target.no_password}"
    return (f"{words} ({sqlstate})" if words else label(sqlstate)), said


_NO_TLS = "rejected SSL upgrade"  # the driver has no type for it


def is_about_tls(error: Exception) -> bool:
    """Whether it may work the other way, with TLS or without: with sslmode=prefer or allow both are tried."""
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate == "28000"  # pg_hba.conf has no line for it
    return isinstance(error, ssl.SSLError) or (isinstance(error, ConnectionError) and _NO_TLS in str(error))


def _clean(said: str, password: str | None) -> str:
    """A server's message as one line, if it does not quote the password."""
    return "" if password and password in said else one_line(said)
