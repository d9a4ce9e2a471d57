"""What can go wrong. Each exception is named after what is done about it.

* `Rejected`: the message is at fault. It is answered with its problem and dead-lettered; other messages are not affected.
* `Refused`: the database refuses a value in a wave. The wave is halved until the row at fault is alone and rejected.
* `Unavailable`: the database or the broker cannot be used. The worker keeps its deliveries and tries again.
* `Misconfigured`: the broker was set up for other settings. The worker ends, because only an operator can decide.
* `Failed`, a kind of `Unavailable`: a statement failed, and the database or one of the rows may be the cause. If a probe
  passes, the row is found by halving and parked. Two subclasses name failures that are treated in their own way:
  `TimedOut` and `NotMigrated`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


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
    MISROUTED = "misrouted"
    REFUSED_BY_DATABASE = "refused_by_database"
    RECORD_GONE = "record_gone"
    REPLY_AS_REQUEST = "reply_as_request"
    REPLY_TOO_LARGE = "reply_too_large"
    POISON_MESSAGE = "poison_message"
    UNREADABLE_RECORD = "unreadable_record"

    @property
    def status(self) -> int:
        """The corresponding HTTP status (RFC 9457, member `status`)."""
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
    Code.MISROUTED: 422,
    Code.REFUSED_BY_DATABASE: 409,
    Code.RECORD_GONE: 410,
    Code.REPLY_TOO_LARGE: 507,
    Code.POISON_MESSAGE: 500,
    Code.UNREADABLE_RECORD: 500,
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One invalid field: its name, the code, and what was expected. Never the value that was sent."""

    name: str
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a message was rejected, for its publisher. It never contains the payload."""

    code: Code
    detail: str
    errors: tuple[FieldError, ...] = ()

    @property
    def type(self) -> str:
        """The URI of the code (RFC 9457, member `type`)."""
        return f"urn:task-activity-log:problem:{self.code}"

    @property
    def title(self) -> str:
        """The code as words. It is the same for every occurrence (RFC 9457, member `title`)."""
        return self.code.replace("_", " ").capitalize()


POISON = Problem(
    Code.POISON_MESSAGE,
    "This message was delivered several times and never settled; it may have crashed a worker. It was not tried again.",
)
CLIENT, SKIPPED, UNSET, UNKEPT = "client", "skipped", "unset", "unkept"
"""What takes the place of an SQLSTATE if the driver could not read a result, if a trigger or a rule did not let a row be
written, if no trigger has set modified_dateutc, and if the inbox has not kept a request key."""
_NOT_STORED = Problem(
    Code.REFUSED_BY_DATABASE,
    "The database did not store this record as it should, without an error: a trigger or a rule interfered. Ask the people"
    " who run the database.",
)
REPLY_AS_REQUEST = Problem(
    Code.REPLY_AS_REQUEST,
    "This message has the type of a reply of the worker. It is not answered, because the answer could come back again.",
)
UNREADABLE = Problem(
    Code.UNREADABLE_RECORD,
    "The record was stored, but the row now has values that a reply cannot contain. Find out who else writes to the"
    " table.",
)


class Rule(NamedTuple):
    """What refuses a row. To compare, and not to show: a trigger may have put anything into the name."""

    sqlstate: str
    name: str = ""
    """The constraint or the column, if PostgreSQL names one."""


class Rejected(Exception):
    """The message is at fault: answer it with `problem` and dead-letter it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


class Refused(Exception):
    """The database refuses a value in this wave: halve the wave until the row at fault is alone.

    Attributes:
        sqlstate: PostgreSQL's five characters, or one of `CLIENT`, `SKIPPED`, `UNSET` and `UNKEPT`.
        rule: what refuses it.
    """

    def __init__(self, sqlstate: str, name: str = "") -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate
        self.rule = Rule(sqlstate, name)

    @property
    def problem(self) -> Problem:
        """The problem for the publisher. It has the SQLSTATE but not the database's message, which quotes rows."""
        if self.sqlstate == CLIENT:
            return UNREADABLE
        if self.sqlstate in (SKIPPED, UNSET, UNKEPT):
            return _NOT_STORED
        detail = (
            f"The database refuses this record (SQLSTATE {self.sqlstate}). Correct it, or ask the people who run the"
            " database."
        )
        return Problem(Code.REFUSED_BY_DATABASE, detail)


class Unavailable(Exception):
    """The database or the broker cannot be used: keep the deliveries, back off, and try again.

    Attributes:
        label: the kind of outage, such as `connection lost`. It is one of a small set of texts, so it can label a metric.
        detail: what else is known, such as the database and its server.
        reason: the label and the detail, for people. Like the label it has no secrets and no payload.
    """

    def __init__(self, label: str, detail: str = "") -> None:
        self.label = label
        self.detail = detail
        self.reason = f"{label}: {detail}" if detail else label
        super().__init__(self.reason)


class Failed(Unavailable):
    """A statement failed with an error that a single row can cause as well as the whole database.

    If a probe fails too, it is an outage. If the probe passes, a row is at fault: halve the wave until it is alone.

    Attributes:
        sqlstate: PostgreSQL's five characters, or one of `UNSET` and `UNKEPT`.
        rule: what refuses the row.
        lasting: whether the row has little hope to pass later (a trigger that does not fit the schema, corrupt data). It
            is then refused, unless the database refuses every row. Any other row is tried again until it passes.
        nobodys: whether it is lasting, and yet never the fault of a row: it is tried again until it passes.
        of_values: whether a row of the worker's own is refused for its values, so that one with others may pass.
    """

    def __init__(
        self,
        label: str,
        sqlstate: str,
        detail: str = "",
        *,
        name: str = "",
        lasting: bool = False,
        nobodys: bool = False,
        of_values: bool = False,
    ) -> None:
        super().__init__(label, detail)
        self.nobodys, self.of_values = nobodys, of_values
        self.sqlstate = sqlstate
        self.rule = Rule(sqlstate, name)
        self.lasting = lasting

    @property
    def lost_connection(self) -> bool:
        """Whether the connection ended during the statement, or a trigger says so of its own (class 08)."""
        return self.sqlstate.startswith("08")


class TimedOut(Failed):
    """A statement took too long, or waited too long for a lock. A smaller wave may pass.

    Attributes:
        locked: whether it is known that it has waited for a lock.
    """

    def __init__(self, detail: str = "", *, locked: bool = False) -> None:
        super().__init__("timeout", "57014", detail)
        self.locked = locked


class NotMigrated(Failed):
    """A table does not exist. If the probe says so too, the database was not migrated yet."""


class Misconfigured(Exception):
    """What was found on the broker does not fit the settings, and waiting changes nothing. The text says what to do."""
