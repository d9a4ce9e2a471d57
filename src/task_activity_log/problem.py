"""What can go wrong, named by what is done about it.

Three exceptions carry the whole policy:

* `Rejected`: the message's own fault. Answered with its problem and dead-lettered; its neighbours go on.
* `Refused`: the database refuses something in a wave. Halved until the guilty row is alone, which is then rejected.
* `Unavailable`: the database or the broker is away. Held and waited out; nothing is settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """Error codes, as on the wire (contract, section 6)."""

    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNSUPPORTED_CHARSET = "unsupported_charset"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    BODY_TOO_LARGE = "body_too_large"
    INVALID_PROPERTIES = "invalid_properties"
    EMPTY_BODY = "empty_body"
    INVALID_ENCODING = "invalid_encoding"
    MALFORMED_JSON = "malformed_json"
    MALFORMED_XML = "malformed_xml"
    DTD_FORBIDDEN = "dtd_forbidden"
    NOT_AN_OBJECT = "not_an_object"
    WRONG_ROOT = "wrong_root"
    DUPLICATE_FIELD = "duplicate_field"
    UNSUPPORTED_UPDATE_MODE = "unsupported_update_mode"
    INVALID_VERSION = "invalid_version"
    MISSING_ID = "missing_id"
    INVALID_UUID = "invalid_uuid"
    INVALID_DATE = "invalid_date"
    INVALID_BOOLEAN = "invalid_boolean"
    INVALID_STRING = "invalid_string"
    REFUSED_BY_DATABASE = "refused_by_database"
    RECORD_GONE = "record_gone"
    POISON_MESSAGE = "poison_message"
    UNREADABLE_RECORD = "unreadable_record"

    @property
    def status(self) -> int:
        """The HTTP status that says the same (RFC 9457, member `status`)."""
        return _STATUS.get(self, 400)


_STATUS = {
    Code.UNSUPPORTED_MEDIA_TYPE: 415,
    Code.UNSUPPORTED_CHARSET: 415,
    Code.UNSUPPORTED_ENCODING: 415,
    Code.BODY_TOO_LARGE: 413,
    Code.MISSING_ID: 422,
    Code.INVALID_UUID: 422,
    Code.INVALID_DATE: 422,
    Code.INVALID_BOOLEAN: 422,
    Code.INVALID_STRING: 422,
    Code.REFUSED_BY_DATABASE: 409,
    Code.RECORD_GONE: 410,
    Code.POISON_MESSAGE: 500,
    Code.UNREADABLE_RECORD: 500,
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field: its name, the code, and what was expected. Never the value that was sent."""

    field: str
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a message was rejected, fit to be sent to its publisher: it never holds the payload."""

    code: Code
    detail: str
    errors: tuple[FieldError, ...] = ()

    @property
    def type(self) -> str:
        """The URI that names the code (RFC 9457, member `type`)."""
        return f"urn:task-activity-log:problem:{self.code}"

    @property
    def title(self) -> str:
        """The code in words, the same for every occurrence (RFC 9457, member `title`)."""
        return self.code.replace("_", " ").capitalize()


POISON = Problem(
    Code.POISON_MESSAGE,
    "This message was delivered again and again without being settled: workers may have died of it. It is not tried"
    " any more.",
)
UNREADABLE = Problem(
    Code.UNREADABLE_RECORD,
    "The record was stored, but the row now holds values that cannot be answered; ask who else writes to the table.",
)

TIMEOUT = "timeout"
"""The reason of an `Unavailable` that a smaller wave may not meet: it took too long, or a row in it is locked."""


class Rejected(Exception):
    """The message's own fault: answer with `problem`, dead-letter, go on."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


class Refused(Exception):
    """The database refuses something in this wave: halve it until the guilty row is alone.

    `sqlstate` is PostgreSQL's five characters, or `client` where the driver could not send a value or read an answer.
    `doubtful` when it may be everybody's fault as well as one row's (no privilege, an error class that we do not know):
    if the others pass it is the row's, if nothing passes it is an outage.
    """

    def __init__(self, sqlstate: str, *, doubtful: bool = False) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate
        self.doubtful = doubtful

    @property
    def problem(self) -> Problem:
        """What the publisher is told: the SQLSTATE, and nothing of the database's text, which quotes rows."""
        detail = (
            f"The database refuses this record (SQLSTATE {self.sqlstate}); correct it, or ask who runs the database."
        )
        return Problem(Code.REFUSED_BY_DATABASE, detail)


class Unavailable(Exception):
    """The database or the broker is away: hold what is in hand, back off, try again.

    `reason` is a short label without secrets or payloads, fit for logs and metrics, such as `connection lost`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
