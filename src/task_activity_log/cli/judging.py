"""What `publish` says of records before it sends them: what a worker would reject, and misspelled fields."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TextIO, TypeAlias

from task_activity_log import wire
from task_activity_log.cli import values
from task_activity_log.cli.sources import line_of, syntax_error
from task_activity_log.client import Upsert, UpsertRejected, exported, misspelled
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.rabbitmq.headers import received
from task_activity_log.streams import going_on_without_reader, one_line

Complaints: TypeAlias = list[tuple[str, str]]
"""Where something is wrong, as `file:line`, and what."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is wrong with a record."""

    complaints: Complaints
    """What a worker would reject, and fields that are probably misspelled; if `strict`, every member that is not a field."""
    rejected: bool = False
    """Whether a worker would reject it."""
    unknown: Sequence[str] = ()
    """The names of all members that are not fields."""
    others: Sequence[str] = ()
    """Those of them that are not among the complaints."""


_ROOT = "task_activity_log"
"""The element of a record in XML."""
_NOTHING_WRONG = Judgement([])


def judged(upsert: Upsert, rules: Rules, *, strict: bool, to: TextIO) -> Judgement:
    """Judge a record before it is sent. All that is wrong with it is named, so that it can be corrected at once."""
    try:
        request = decode(Delivery(upsert.body, _arriving(upsert)), rules)
    except Rejected as rejected:
        problem = rejected.problem
        complaints = complaints_of(upsert, problem, [error.name for error in problem.errors], to=to)
        present = [error.name for error in problem.errors if error.code is not Code.MISSING_ID]
        unknown = misspelled.unknown(upsert)
        if problem.code is Code.WRONG_ROOT:  # records in a list are no misspelled fields
            unknown = [name for name in unknown if name != _ROOT]
        return _judgement(upsert, unknown, present, complaints, strict=strict)
    # The worker notes only some of the elements of XML that are not fields.
    if not request.ignored and not wire.is_xml(request.media_type):
        return _NOTHING_WRONG
    unknown = misspelled.unknown(upsert)
    return _judgement(upsert, unknown, request.record.model_fields_set, [], strict=strict)


def complaints_of(
    upsert: Upsert, problem: Problem | UpsertRejected, fields: Sequence[str], *, to: TextIO
) -> Complaints:
    """Where each bad field is in its file, and what is wrong with it; or the same of the whole record.

    On a terminal with its value: not elsewhere, because a log is read by others.
    """
    reasons = exported.reasons(problem)
    places = [line_of(upsert, field) for field in fields]
    if not places:
        place, syntax = syntax_error(upsert)
        if problem.code != Code.MALFORMED_XML:
            syntax = ""
        return [(place, f"{reason} {syntax}".rstrip()) for reason in reasons]
    if fields and to.isatty():
        found = (values.shown(upsert, field) for field in fields)
        reasons = [reason + (f" It is {value}." if value else "") for reason, value in zip(reasons, found, strict=True)]
    return list(zip(places, reasons, strict=True))


def _judgement(
    upsert: Upsert, unknown: Sequence[str], present: Collection[str], rejections: Complaints, *, strict: bool
) -> Judgement:
    """The rejections, and a complaint for each probably misspelled field; if `strict`, for each member that is not a field."""
    meant = {name: misspelled.meant(name, present) for name in unknown}
    typos = [
        (line_of(upsert, name), f"{name} is not a field" + (f"; did you mean {field}?" if field else ""))
        for name, field in meant.items()
        if field or strict
    ]
    others = [name for name, field in meant.items() if not (field or strict)]
    return Judgement(rejections + typos, bool(rejections), unknown, others)


def _arriving(upsert: Upsert) -> Properties:
    """The properties as the worker reads them, as far as it judges them."""
    if type(upsert) is Upsert and not upsert.headers and upsert.content_encoding is None:
        return _with_content_type(upsert.content_type)
    return received(upsert.properties(None, ""))


@lru_cache(maxsize=16)
def _with_content_type(content_type: str) -> Properties:
    return Properties(content_type=content_type)


def print_complaint(place: str, reason: str) -> None:
    """Print where something is wrong, and what."""
    with going_on_without_reader():
        print(one_line(f"{place}: {reason}"))
