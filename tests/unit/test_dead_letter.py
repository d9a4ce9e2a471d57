"""A dead letter as the commands read it: what is the worker's, what is the broker's, and what is only its publisher's."""

from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from task_activity_log.client.dead_letters import DeadLetter, answered, judged, may_be_newer
from task_activity_log.client.letters import shown_headers
from task_activity_log.message import Properties
from task_activity_log.pipeline.request import Rules
from task_activity_log.problem import Code, Problem
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.dead_letters import copied
from task_activity_log.rabbitmq.headers import decode, encode, encode_header
from task_activity_log.record import UNKNOWN_INSTANT

PROBLEM = Problem(Code.REFUSED_BY_DATABASE, "Why not.")
TAKEN = datetime(2026, 3, 4, 12, tzinfo=UTC)
SENT = TAKEN - timedelta(hours=1)
BODY = b'{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994"}'


def read(properties: Properties) -> DeadLetter:
    return DeadLetter(BODY, decode(encode(properties, len(BODY))), cast("RabbitDelivery", None))


def rejected(original: Properties, *, redelivered: bool = False) -> DeadLetter:
    """A worker's copy."""
    received = decode(encode(original, 0))
    return read(copied(received, PROBLEM, 131_064, TAKEN, redelivered=redelivered))


def died(reason: str, at: datetime | None = TAKEN, **properties: object) -> DeadLetter:
    """A request that the broker has dead-lettered."""
    entries = encode_header(("reason", reason)) + encode_header(("original-expiration", "60000"))
    if at is not None:
        entries += b"\x04timeT" + int(at.timestamp()).to_bytes(8, "big")
    one = b"F" + len(entries).to_bytes(4, "big") + entries
    table = b"\x07x-deathA" + len(one).to_bytes(4, "big") + one + encode_header(("x-first-death-reason", reason))
    return read(Properties(table=table, **properties))  # type: ignore[arg-type]


# ---- forged headers


@pytest.mark.parametrize("expiration", ["abc", "-1", "", "9" * 300, "315360000001", "1.5", "\u0661"])
def test_an_expiration_that_the_broker_would_refuse_is_not_restored(expiration: str) -> None:
    """One such message would end the channel, and with it the replay of all others."""
    forged = {"x-original-expiration": expiration, "x-error-code": "empty_body"}
    assert read(Properties(headers=forged)).restored(None).expiration is None
    assert died("maxlen", headers=forged).restored(None).expiration == "60000"


def test_only_the_broker_dead_letters_for_the_broker() -> None:
    """A dead letter of another program that has a code and no detail was not dead-lettered by the broker."""
    assert read(Properties(headers={"x-error-code": "c"})).detail == "no reason given"
    assert read(Properties(headers={"x-first-death-reason": "maxlen"})).detail == "dead-lettered by the broker"


def test_the_original_properties_are_restored() -> None:
    """The expiration, and the user if it is the one who replays."""
    letter = rejected(Properties(user_id="me", expiration="60000", priority=3, headers={"x-version": 7}))
    assert (letter.restored("me").user_id, letter.restored("you").user_id) == ("me", None)
    assert letter.restored("me").expiration == "60000"
    assert letter.headers == {"x-version": 7, "x-first-seen": "2026-03-04T12:00:00.000+00:00"}


def test_a_publishers_own_reason_user_and_time_are_not_believed() -> None:
    """Neither in a worker's copy nor in what the broker has dead-lettered."""
    forged = {
        "x-error-code": "poison_message",
        "x-error-detail": "forged",
        "x-first-seen": "2020-01-01T00:00:00+00:00",
        "x-last-seen": "2020-01-01T00:00:00+00:00",
        "x-original-user-id": "admin",
        "x-original-expiration": "1",
    }
    copy = rejected(Properties(headers=forged))
    assert (copy.code, copy.detail, copy.publisher, copy.since) == ("refused_by_database", "Why not.", "-", TAKEN)
    assert copy.restored("admin").user_id is None
    assert copy.restored("admin").expiration is None
    dead = died("delivery_limit", headers=forged)
    assert (dead.code, dead.detail) == ("delivery_limit", "dead-lettered by the broker")
    assert (dead.publisher, dead.since) == ("-", TAKEN)
    assert dead.restored("admin").user_id is None
    assert dead.headers == forged  # sent again as they were


# ---- older never over newer


def newer(letter: DeadLetter, **after: float) -> bool:
    return may_be_newer(letter, TAKEN + timedelta(**after)) is not None


def test_a_row_changed_after_the_delivery_was_taken_is_newer() -> None:
    """With a margin: the clocks of a worker and of the database differ."""
    letter = rejected(Properties())
    assert newer(letter, seconds=0.001)
    assert newer(letter, seconds=-2)
    assert not newer(letter, minutes=-1)


def test_the_first_rejection_counts() -> None:
    """A row may have changed between two rejections. A later time in the header is not believed."""
    day_before = (TAKEN - timedelta(days=1)).isoformat()
    assert newer(rejected(Properties(headers={"x-first-seen": day_before})), hours=-1)
    day_after = (TAKEN + timedelta(days=1)).isoformat()
    assert newer(rejected(Properties(headers={"x-first-seen": day_after})), seconds=1)
    assert not newer(rejected(Properties(headers={"x-first-seen": "soon"})), hours=-1)


def test_what_was_delivered_before_may_have_been_overtaken_at_any_time() -> None:
    """Later messages may have been stored before it came again: only its publisher's timestamp says something."""
    assert newer(rejected(Properties(), redelivered=True), days=-1000)
    stamped = rejected(Properties(timestamp=int(SENT.timestamp())), redelivered=True)
    assert newer(stamped, minutes=-30)
    assert not newer(stamped, minutes=-61)


@pytest.mark.parametrize(("reason", "since_death"), [("expired", True), ("maxlen", True), ("delivery_limit", False)])
def test_the_brokers_dead_letters(reason: str, since_death: bool) -> None:
    """The broker's time counts if nobody had the message before."""
    letter = died(reason)
    assert letter.since == TAKEN
    assert newer(letter, seconds=1)
    assert newer(letter, minutes=-1) is not since_death
    stamped = died(reason, timestamp=int(SENT.timestamp()))
    assert newer(stamped, minutes=-1) is not since_death
    assert not newer(stamped, minutes=-61)


def test_a_dead_letter_without_any_time_stays() -> None:
    """Unknown is not unchanged; a copy of an earlier release has only the time when it was published."""
    assert newer(died("maxlen", None), days=-1000)
    assert newer(read(Properties(headers={"x-error-code": "x"})), days=-1000)
    assert newer(read(Properties(headers={"x-error-code": "x", "x-first-seen": TAKEN.isoformat()})), days=-1)


def test_a_row_of_which_it_is_not_known_when_it_changed_is_left_alone() -> None:
    """Neither is something older put over it, nor is the dead letter taken for answered."""
    letter = rejected(Properties(timestamp=int(SENT.timestamp())))
    assert "cannot be read" in (may_be_newer(letter, UNKNOWN_INSTANT) or "")
    assert not answered(letter, UNKNOWN_INSTANT)
    assert may_be_newer(rejected(Properties(headers={"x-version": 7})), UNKNOWN_INSTANT) is None


# ---- held against the contract


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x-version": "one"}, "invalid_version"),
        ({"x-update-mode": "patch"}, "unsupported_update_mode"),
        ({"x-version": 7, "x-update-mode": "merge"}, None),
    ],
)
def test_headers_are_held_against_the_contract(headers: dict[str, object], code: str | None) -> None:
    """As the worker does; otherwise the same dead letter comes back after each replay."""
    found = judged(rejected(Properties(headers=headers)), Rules())
    assert (found.code if isinstance(found, Problem) else None) == code


def test_a_dead_letter_is_shown_without_the_counts_of_the_broker() -> None:
    """They tell how often somebody has looked at it. All others stay."""
    headers = {"x-version": 1, "x-delivery-count": 3, "x-acquired-count": 4}
    assert shown_headers(read(Properties(headers=headers))) == {"x-version": 1}


def test_dead_letters_that_differ_in_their_headers_are_not_the_same() -> None:
    """Requests of one message_id and body with two versions are two; deliveries of one message are one."""
    one, other = (rejected(Properties(message_id="m", headers={"x-version": version})) for version in (1, 2))
    assert one.key != other.key
    again = rejected(Properties(message_id="m", headers={"x-version": 1}))
    again.properties.table += encode_header(("x-delivery-count", 3))
    assert again.key == one.key
