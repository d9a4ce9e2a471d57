"""Logs with structlog: JSON in production, colours on a terminal. They never contain a payload or a secret."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog

from task_activity_log.streams import dropped, has_colours, one_line, printable, trusted

_HIDDEN = "***"
_SHORTEST = 6
_USER_INFO = re.compile(r"(?<=://)[^/@\s]*:[^@\s]*@")
_OPTION = re.compile(r"(?<=password=)(?:'[^']*'|[^\s&]+)", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z]?[a-z]+(?:[-_ ][A-Za-z]?[a-z]+)*|[A-Z]+(?:[-_ ][A-Z]+)*")


def configure(log_format: Literal["auto", "json", "console"], level: str, redaction: Redaction | None = None) -> None:
    """Configure structlog for the process. Events are written to standard error, one line each.

    Args:
        log_format: `auto` means console on a terminal and JSON otherwise.
        level: the lowest level that is logged.
        redaction: knows the texts that must never appear, even if another library's error message contains them.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redaction or Redaction(),
            _count_dropped,
            *((_escape, structlog.dev.ConsoleRenderer(colors=has_colours(sys.stderr))) if console else ()),
            *(() if console else (structlog.processors.JSONRenderer(),)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=trusted(sys.stderr)),
        cache_logger_on_first_use=True,
    )
    quiet_drivers()


def _escape(_logger: Any, _level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The event, escaped for a terminal, with each text but a traceback on one line. JSON needs none: it has only ASCII."""
    return {
        name: value if not isinstance(value, str) else printable(value) if name == "exception" else one_line(value)
        for name, value in event.items()
    }


def _count_dropped(_logger: Any, _level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The event with the number of lines that were dropped because nobody read them, if there are any."""
    if lines := dropped():
        event["lines_dropped"] = lines
    return event


def quiet_drivers() -> None:
    """Silence the drivers. They log what they also raise, with URLs and frames, and the worker logs the error itself."""
    for name in ("aiormq", "aio_pika", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Redaction:
    """Replaces secrets in texts before they are shown. A driver's error message could contain one.

    A secret that consists of ordinary words is replaced only where a text quotes it, or before an `@`. Elsewhere the same words
    say something else ("rejected", "no such host"), and `***` in a known text would tell the secret. Secrets of fewer than
    six characters are not replaced for the same reason.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: set[str] = set()
        self._secrets: re.Pattern[str] | None = None
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Replace these as well from now on: a password was changed. Earlier ones are still replaced."""
        new = {secret for secret in secrets if len(secret) >= _SHORTEST}
        if not new <= self._known:
            self._known |= new
            by_length = sorted(self._known, key=len, reverse=True)
            self._secrets = re.compile("|".join(map(_pattern, by_length)))

    def __call__(self, _logger: Any, _level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """The event without secrets. This makes the class a processor for structlog."""
        return {name: self.text(value) if isinstance(value, str) else value for name, value in event.items()}

    def text(self, text: str) -> str:
        """The text without secrets."""
        text = _OPTION.sub(_HIDDEN, _USER_INFO.sub(f"{_HIDDEN}@", text))
        return text if self._secrets is None else self._secrets.sub(_HIDDEN, text)


def _pattern(secret: str) -> str:
    before, after = (r"(?<=[\"':])", r"(?=[\"'@])") if _WORDS.fullmatch(secret) else (r"(?<!\w)", r"(?!\w)")
    return f"{before}{re.escape(secret)}{after}"


def secrets_in(url: str) -> set[str]:
    """The secrets in a URL: the password in the user part or in the query, both encoded and decoded.

    A password that is also the name of the user, of the host or of what is in the path is not one of them: names are shown.
    """
    parts = urlsplit(url)
    found = {value for name, value in parse_qsl(parts.query) if "password" in name}
    # A password with an unencoded / ? or # extends beyond its part of the URL, so it is also searched in the whole URL.
    for before in (parts.netloc.rpartition("@")[0], url.partition("://")[2].rpartition("@")[0]):
        password = before.partition(":")[2]
        found |= {password, unquote(password)}
    names = {parts.username, parts.hostname, parts.path[1:]}
    names |= {value for name, value in parse_qsl(parts.query) if name in ("user", "host", "dbname")}
    return found - {"", *(unquote(name) for name in names if name)}


def address(url: str) -> str:
    """The hosts and the path of a URL, for people: without user, password and options."""
    parts = urlsplit(url)
    rest = f"{parts.path}?{parts.query}#{parts.fragment}"
    return _HIDDEN if "@" in rest else parts.netloc.rpartition("@")[2] + parts.path


def is_local(url: str) -> bool:
    """Whether all hosts of a URL are this machine. The URL of a Unix socket has no host."""
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    names = [urlsplit(f"//{host}").hostname or "localhost" for host in hosts]
    return all(name in ("localhost", "::1") or name.startswith("127.") for name in names)


def whereabouts(error: BaseException) -> str:
    """The type of an error and where it was raised, without its text, which could quote a message."""
    cause = error.__cause__ or error.__context__
    before = [whereabouts(cause), "and then"] if cause else []
    frames = [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    parts = map(whereabouts, error.exceptions) if isinstance(error, BaseExceptionGroup) else ()
    return "\n".join([*before, *frames, type(error).__name__, *parts])
