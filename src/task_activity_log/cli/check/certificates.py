"""The certificates in files: how long they are valid."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from task_activity_log.cli.check.finding import Finding
from task_activity_log.settings import Settings, variable
from task_activity_log.tls import CERTIFICATE_SETTINGS, expires

_SOON = timedelta(days=30)


def findings(settings: Settings) -> list[Finding]:
    """Each file that is set."""
    return list(_judge_all(settings, datetime.now(UTC)))


def _judge_all(settings: Settings, now: datetime) -> Iterator[Finding]:
    for field in CERTIFICATE_SETTINGS:
        path = getattr(settings, field)
        if path is None:
            continue
        try:
            until = expires(path.read_text(encoding="ascii", errors="replace"))
        except (OSError, ValueError) as error:
            yield Finding("unknown", variable(field), str(getattr(error, "strerror", None) or error))
        else:
            if until is not None:
                yield judge(variable(field), until, now)


def judge(what: str, until: datetime, now: datetime) -> Finding:
    """One file, whose first certificate expires at `until`."""
    found = f"a certificate is valid until {until:%Y-%m-%d %H:%M} UTC"
    if until <= now:
        advice = "renew it: connections are refused. The file is read again for each connection"
        return Finding("broken", what, f"a certificate expired at {until:%Y-%m-%d %H:%M} UTC", advice)
    if until - now < _SOON:
        return Finding("warning", what, found, "renew it; the file is read again for each connection")
    return Finding("fine", what, found)
