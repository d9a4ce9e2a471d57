"""What the client raises. Each text is one line and says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from task_activity_log.client.copying import remade

if TYPE_CHECKING:
    from task_activity_log.client.messages import Answer, Upsert

_NAMED = 3


class ClientError(Exception):
    """The broker is away or refuses, or what it delivered cannot be read. The text is one line and says what to do."""

    refused: tuple[Answer, ...] = ()
    """What `send_many` could not send before it failed, and why. The text names it too. See also `NotSent.answers`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """For `pickle` and `copy`. They would pass the text alone to `__init__`, and a pool of processes would wait for ever."""
        return remade, (type(self), self.args), self.__dict__


class NoAnswer(ClientError):
    """No answer came in time. What was sent is waiting in the worker's queue, or was applied.

    It is safe to send `upsert` again: with the same message_id and body it is applied once.
    """

    def __init__(self, text: str, upsert: Upsert) -> None:
        super().__init__(text)
        self.upsert = upsert


class NotSent(ClientError):
    """Some upserts could not be sent, and all others were; `answers` says why for each of them."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        named = "; ".join(f"{one.upsert.source or one.upsert.message_id}: {one.problem}" for one in answers[:_NAMED])
        others = f"; and {len(answers) - _NAMED:,} more" if len(answers) > _NAMED else ""
        super().__init__(f"{len(answers):,} upsert{'' if len(answers) == 1 else 's'} not sent: {named}{others}")
        self.answers = self.refused = tuple(answers)


def failed_after(error: ClientError, refused: Sequence[Answer]) -> ClientError:
    """The error with what could not be sent before. It is a copy, as others may get the same error."""
    failure = ClientError(f"{error}; before that, {NotSent(refused)}")
    failure.refused = tuple(refused)
    return failure


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One bad field of a rejected record."""

    name: str
    code: str
    message: str


class UpsertRejected(ClientError):
    """The worker rejected an upsert, and a copy of it is in the dead-letter queue; or the client could not send it.

    It is not sent if it is larger than the broker's limit (`body_too_large`), or if the broker refuses its properties
    (`invalid_properties`), or if the record cannot be encoded (`invalid_string`): see `Answer.sent`.
    """

    def __init__(self, code: str, detail: str, errors: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        """One of the contract's codes (`task_activity_log.problem.Code`), or a later release's."""
        self.detail = detail
        self.errors = errors
