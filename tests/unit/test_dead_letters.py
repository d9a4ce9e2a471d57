"""The copy of a rejected message, clause by clause of the contract's section 6, without a broker."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest

from task_activity_log.message import Properties
from task_activity_log.problem import Code, Problem, Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.dead_letters import DeadLetters, copied
from task_activity_log.rabbitmq.headers import HEADERS_MAX, OWN_HEADERS, TABLE_TOO_LONG, decode, encode, received
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher

PROBLEM = Problem(Code.EMPTY_BODY, "Send the record in the body, which was empty.")
FRAME = 131_064
TAKEN = datetime(2026, 3, 4, 5, 6, 7, 890_000, tzinfo=UTC)
SEEN = "2026-03-04T05:06:07.890+00:00"


def table(**headers: object) -> bytes:
    return decode(
        encode(Properties(headers={name.replace("_", "-"): value for name, value in headers.items()}), 0)
    ).table


def copy_of(original: Properties, header_max: int = FRAME, problem: Problem = PROBLEM) -> Properties:
    """The properties that a reader of the copy sees."""
    received = decode(encode(original, 0))
    return decode(encode(copied(received, problem, header_max, TAKEN), 0))


def test_properties_are_kept_but_for_what_the_broker_would_act_on() -> None:
    """The copy is persistent, user_id and expiration are moved to headers, and all other properties are kept."""
    original = Properties(
        content_type="a/b", content_encoding="gzip", delivery_mode=1, priority=3, correlation_id="c", reply_to="r",
        expiration="60000", message_id="m", timestamp=7, type="t", user_id="guest", app_id="a", cluster_id="k",
    )  # fmt: skip
    copy = copy_of(original)
    assert replace(copy, headers={}, table=b"") == replace(original, delivery_mode=2, user_id=None, expiration=None)
    assert copy.headers["x-original-user-id"] == "guest"
    assert copy.headers["x-original-expiration"] == "60000"
    assert copy.headers["x-error-code"] == "empty_body"
    assert copy.headers["x-error-detail"] == PROBLEM.detail


def test_the_moment_when_the_delivery_was_taken_is_the_time_of_the_rejection() -> None:
    """Requests behind it can be stored before the copy is published. The first rejection is kept, with its type."""
    first = copy_of(Properties())
    assert (first.headers["x-first-seen"], first.headers["x-last-seen"]) == (SEEN, SEEN)
    for earlier in ("earlier", 7):
        again = copy_of(Properties(headers={"x-first-seen": earlier}))
        assert (again.headers["x-first-seen"], again.headers["x-last-seen"]) == (earlier, SEEN)


@pytest.mark.parametrize("count", [HEADERS_MAX - 2, HEADERS_MAX, HEADERS_MAX + 1, 2 * HEADERS_MAX])
def test_the_reason_is_read_behind_any_number_of_headers(count: int) -> None:
    """The copy has more headers than are read of a publisher. RabbitMQ may have sorted them by name."""
    copy = copy_of(Properties(headers={f"h{number}": number for number in range(count)}))
    assert (copy.headers["x-error-code"], copy.headers["x-error-detail"]) == ("empty_body", PROBLEM.detail)
    assert (copy.headers["x-first-seen"], copy.headers["x-last-seen"]) == (SEEN, SEEN)


def test_a_delivery_that_came_again_is_marked() -> None:
    """It was delivered before, and requests behind it may have been stored since."""
    assert "x-redelivered" not in copy_of(Properties()).headers
    copy = decode(encode(copied(Properties(), PROBLEM, FRAME, TAKEN, redelivered=True), 0))
    assert copy.headers["x-redelivered"] is True


@pytest.mark.parametrize("name", sorted(OWN_HEADERS))
def test_the_workers_own_headers_are_never_a_publishers(name: str) -> None:
    """A request that has one was not replayed: the commands remove them. Similar names are kept."""
    copy = copy_of(Properties(headers={name: "forged", name + "s": "stays"}))
    assert copy.headers.get(name) != "forged"
    assert copy.headers[name + "s"] == "stays"
    assert b"forged" not in copy.table


@pytest.mark.parametrize("name", ["CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count"])
def test_headers_of_the_broker_are_dropped(name: str) -> None:
    """Headers that would route the copy elsewhere, or that the broker sets, are dropped; similar names are kept."""
    copy = copy_of(Properties(headers={name: "x", name.lower() + "s": "stays", "mine": 1}))
    assert name not in copy.headers
    assert copy.headers[name.lower() + "s"] == "stays"
    assert copy.headers["mine"] == 1


def test_a_message_moved_back_by_hand_has_the_reason_of_its_last_rejection() -> None:
    """A new rejection replaces the reason of an earlier one."""
    earlier = copied(Properties(user_id="guest", expiration="1"), Problem(Code.INVALID_UUID, "old"), FRAME, TAKEN)
    copy = copy_of(replace(earlier, user_id="other"))
    assert (copy.headers["x-error-code"], copy.headers["x-error-detail"]) == ("empty_body", PROBLEM.detail)
    assert copy.headers["x-original-user-id"] == "other"
    assert "x-original-expiration" not in copy.headers
    assert (copy.table.count(b"x-error-code"), copy.table.count(b"x-original-user-id")) == (1, 1)


def test_the_detail_is_at_most_a_thousand_bytes() -> None:
    """A longer detail is cut between two characters."""
    for detail, kept in (("x" * 1001, "x" * 1000), ("x" + "é" * 600, "x" + "é" * 499)):
        assert copy_of(Properties(), problem=Problem(Code.EMPTY_BODY, detail)).headers["x-error-detail"] == kept


@pytest.mark.parametrize("header_max", [FRAME, 65_528])
def test_headers_that_would_not_fit_are_left_out(header_max: int) -> None:
    """If the headers exceed the broker's frame, the publisher's are dropped; ours and the first rejection are kept."""
    for spare, fits in ((2_000, True), (500, False)):
        original = Properties(headers={"a": 1, "large": "x" * (header_max - spare), "x-first-seen": "earlier"})
        copy = copy_of(original, header_max)
        assert ("large" in copy.headers) is fits
        assert copy.headers.get("x-headers-dropped", False) is not fits
        assert ("a" in copy.headers) is fits
        assert copy.headers["x-first-seen"] == "earlier"
        assert copy.headers["x-error-code"] == "empty_body"


def test_what_determines_how_the_request_is_processed_stays() -> None:
    """Without it a replay would store another record, or an older one over a newer one."""
    needed = {"x-update-mode": "merge", "x-version": 7, "MessageId": "m"}
    copy = copy_of(Properties(headers={"large": "x" * FRAME, **needed}), FRAME)
    assert copy.headers["x-headers-dropped"] is True
    assert {name: copy.headers[name] for name in needed} == needed
    assert "large" not in copy.headers


async def test_what_may_have_ended_the_connection_is_left_out_then() -> None:
    """The broker may refuse a header, a type or an address that only it knows about. The next copy has none of these."""
    sent: list[Properties] = []

    class Broker:
        header_max = FRAME
        last_reason = "INTERNAL_ERROR"
        fate = Fate.LOST

        async def publish(self, messages: Sequence[Outgoing]) -> list[Fate]:
            sent.extend(received(cast("Properties", one.properties)) for one in messages)
            return [self.fate] * len(messages)

    original = received(
        Properties(message_id="m", type="t", reply_to="q", cluster_id="c", headers={"price": 1, "x-version": 7})
    )
    delivery = cast("RabbitDelivery", SimpleNamespace(properties=original, body=b"", taken=0.0, redelivered=False))
    broker = Broker()
    keeper = DeadLetters(cast("Publisher", broker), "dead")
    with pytest.raises(Unavailable):
        await keeper.keep([(delivery, PROBLEM)])
    broker.last_reason = "closed"
    with pytest.raises(Unavailable):
        await keeper.keep([(delivery, PROBLEM)])
    broker.fate = Fate.CONFIRMED
    for _ in range(2):
        await keeper.keep([(delivery, PROBLEM)])
    assert ["price" in each.headers for each in sent] == [True, False, False, True]
    assert [each.headers["x-version"] for each in sent] == [7] * 4
    assert [(each.type, each.reply_to, each.cluster_id) for each in sent[1:3]] == [(None, None, None)] * 2
    assert (sent[3].type, sent[3].reply_to, sent[3].message_id) == ("t", "q", "m")


def test_headers_that_were_too_long_to_be_read_are_said_to_be_left_out() -> None:
    """A publisher of AMQP 1.0 can send more than a worker reads."""
    copy = copied(Properties(unreadable=TABLE_TOO_LONG), PROBLEM, FRAME, TAKEN)
    assert copy.headers["x-headers-dropped"] is True
    assert copy.headers["x-first-seen"] == copy.headers["x-last-seen"]


def test_more_headers_than_are_read_are_left_out() -> None:
    """Copying tens of thousands would take 0.1 s for each message. What determines how the request is processed stays."""
    headers = {"x-version": 7, **{f"h{number}": number for number in range(HEADERS_MAX)}}
    copy = copy_of(Properties(headers=headers), FRAME)
    assert copy.headers["x-headers-dropped"] is True
    assert (copy.headers["x-version"], "h0" in copy.headers) == (7, False)


def test_a_forged_first_rejection_that_fills_the_frame_is_replaced() -> None:
    """A publisher can send anything in x-first-seen, and the copy must still fit into the frame."""
    forged = Properties(headers={"x-first-seen": "x" * 130_500})
    copy = copied(decode(encode(forged, 0)), PROBLEM, FRAME, TAKEN)
    assert len(encode(copy, 0)) < FRAME
    assert copy.headers["x-first-seen"] == SEEN


@pytest.mark.parametrize("fate", [Fate.RETURNED, Fate.NACKED])
async def test_a_copy_that_the_broker_does_not_take_is_an_outage(fate: Fate) -> None:
    """A copy that is returned or refused raises Unavailable, so that the message is held and not lost.

    After a refusal the next try goes over a new connection: the old one may not learn that a limit was removed.
    """
    sent: list[Outgoing] = []
    renewed: list[object] = []
    restored: list[object] = []

    class Broker:
        header_max = FRAME

        async def publish(self, messages: Sequence[Outgoing]) -> list[Fate]:
            sent.extend(messages)
            return [Fate.CONFIRMED, fate][: len(messages)]

        def restore(self) -> None:
            restored.append(self)

        def renew(self) -> None:
            renewed.append(self)

    delivery = cast(
        "RabbitDelivery", SimpleNamespace(properties=Properties(), body=b"body", taken=0.0, redelivered=False)
    )
    keeper = DeadLetters(cast("Publisher", Broker()), "dead")
    await keeper.keep([(delivery, PROBLEM)])
    with pytest.raises(Unavailable):
        await keeper.keep([(delivery, PROBLEM), (delivery, PROBLEM)])
    assert {(one.exchange, one.routing_key, one.mandatory, one.body) for one in sent} == {("", "dead", True, b"body")}
    assert (len(renewed), len(restored)) == (fate is Fate.NACKED, fate is Fate.RETURNED)


def test_headers_that_other_drivers_cannot_read_are_left_out() -> None:
    """Non-UTF-8 names, times out of range and endless nesting would each cost a reader its connection."""
    nested = b""
    for _ in range(2_000):
        nested = b"\x01aF" + len(nested).to_bytes(4, "big") + nested
    entries = [b"\x01\xfft\x01", b"\x02atT" + b"\xff" * 8, nested, table(mine=1)]
    copy = copied(Properties(table=b"".join(entries)), PROBLEM, FRAME, TAKEN)
    assert copy.table == table(mine=1)
