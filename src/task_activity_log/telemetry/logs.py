"""Logs: structlog, JSON in production, coloured on a terminal. Never a payload, never a secret."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog

_HIDDEN = "***"
_SHORTEST = 6
_USER_INFO = re.compile(r"(?<=://)[^/@\s]*:[^@\s]*@")


def configure(log_format: Literal["auto", "json", "console"], level: str, secrets: Iterable[str] = ()) -> None:
    """Set up structlog for the process; events go to standard error, one line each.

    Args:
        log_format: `auto` is console on a terminal, JSON elsewhere.
        level: the lowest that is told.
        secrets: what must never appear, whoever's error text it comes with.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            Redaction(secrets),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if console
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    quiet_drivers()


def quiet_drivers() -> None:
    """Drivers log what they also raise, with URLs and frames in it; we tell what we were told."""
    for name in ("aiormq", "aio_pika", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Redaction:
    """Replaces secrets in what is shown. Nobody should show any; a driver's error text may.

    Those of fewer than six characters are not looked for: they would tear holes into ordinary words.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= _SHORTEST}, key=len, reverse=True)
        words = "|".join(map(re.escape, known))
        self._secrets = re.compile(rf"(?<!\w)(?:{words})(?!\w)") if known else None

    def __call__(self, _logger: Any, _level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """The event without secrets; structlog's processor."""
        return {name: self.text(value) if isinstance(value, str) else value for name, value in event.items()}

    def text(self, text: str) -> str:
        """The text without secrets."""
        text = _USER_INFO.sub(f"{_HIDDEN}@", text)
        return text if self._secrets is None else self._secrets.sub(_HIDDEN, text)


def secrets_in(url: str) -> set[str]:
    """What is secret in a URL: the password, as it stands there and decoded, in the user part or the query."""
    parts = urlsplit(url)
    found = {value for name, value in parse_qsl(parts.query) if "password" in name}
    # A password with / ? # in it, not encoded, reaches over the parts of a URL: hence the whole of it as well.
    for before in (parts.netloc.rpartition("@")[0], url.partition("://")[2].rpartition("@")[0]):
        password = before.partition(":")[2]
        found |= {password, unquote(password)}
    return found - {""}


def address(url: str) -> str:
    """Hosts and path of a URL, for people; without user, password and options."""
    parts = urlsplit(url)
    rest = f"{parts.path}?{parts.query}#{parts.fragment}"
    return _HIDDEN if "@" in rest else parts.netloc.rpartition("@")[2] + parts.path


def is_local(url: str) -> bool:
    """Whether a URL leads no further than this machine; sockets have no host."""
    host = urlsplit(url).hostname or "localhost"
    return host in ("localhost", "::1") or host.startswith("127.")


def whereabouts(error: BaseException) -> str:
    """Where an error came from and what it is, without its text, which may quote a message."""
    cause = error.__cause__ or error.__context__
    before = [whereabouts(cause), "and then"] if cause else []
    frames = [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    parts = map(whereabouts, error.exceptions) if isinstance(error, BaseExceptionGroup) else ()
    return "\n".join([*before, *frames, type(error).__name__, *parts])
