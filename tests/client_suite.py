"""One suite for two workers: the real one with its broker, and the one in memory that `task_activity_log.testing` has.

`tests/integration/test_client_on_a_broker.py` and `tests/unit/test_testing.py` run it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, Protocol
from uuid import UUID, uuid4

import pytest

from task_activity_log.client import (
    ClientError,
    NotSent,
    PoisonQueue,
    RejectedReply,
    StoredReply,
    Subscription,
    TaskActivityLog,
    TaskActivityLogClient,
    UnreadableReply,
    Upsert,
    UpsertRejected,
)


class Place(Protocol):
    """A worker, and whoever connects to its broker."""

    def client(self, *, window: int = 2_000) -> TaskActivityLogClient:
        """A client of a publisher."""

    def subscribe(self, **options: Any) -> Subscription[Any]:
        """A subscription with these options."""

    async def publish_junk(self, key: str) -> None:
        """Put a message that is no reply into the exchange of the replies."""


def record(subject: str = "", identifier: UUID | None = None) -> TaskActivityLog:
    return TaskActivityLog(id=identifier or uuid4(), subject=subject)


def own(*keys: str, **options: Any) -> dict[str, Any]:
    """Options for a durable queue that no other test uses."""
    return {"queue": f"own.{uuid4()}", "routing_keys": keys or ("#",), **options}


async def subjects(replies: Subscription[Any]) -> list[str | None]:
    """The subject of each record to the end; the code for a rejection, and None for anything else."""
    async with replies:
        return [told(reply) async for reply in replies]


async def fill(place: "Place", mine: dict[str, Any]) -> None:
    """Have the replies `a`, `b` and `c` wait in a queue. Another queue, which is read, shows that all three are there."""
    other = own()
    async with place.client() as client:
        for queue in (mine, other):
            async with place.subscribe(**queue):
                pass
        await client.send_many([record(subject) for subject in "abc"])
    assert await subjects(place.subscribe(**other, most=3)) == ["a", "b", "c"]


def told(reply: object) -> str | None:
    match reply:
        case StoredReply(stored):
            return stored.subject
        case RejectedReply(problem):
            return problem.code
        case _:
            return None


BAD = Upsert(b'{"id": "nope", "due_date": "tomorrow"}')
BAD_XML = Upsert(
    b"<task_activity_log><id>nope</id><due_date>tomorrow</due_date></task_activity_log>", "application/xml"
)


class PublisherSuite:
    """What a publisher can rely on."""

    async def test_an_upsert_returns_the_stored_record_and_a_repeat_is_not_applied(self, place: Place) -> None:
        """Sent again with its message_id it is a duplicate, and the stored record stays as it is."""
        async with place.client() as client:
            mine = record("Call back")
            message_id = str(uuid4())
            stored = await client.upsert(mine, message_id=message_id)
            assert (stored.outcome, stored.record.id, stored.record.subject) == ("inserted", mine.id, "Call back")
            again = await client.upsert(mine, message_id=message_id)
            assert (again.outcome, again.record) == ("duplicate", stored.record)
            updated = await client.upsert(mine)
            assert updated.outcome == "updated"
            assert updated.record.modified_dateutc > stored.record.modified_dateutc

    async def test_versions_and_modes_are_sent(self, place: Place) -> None:
        """A lower version is stale, and a merge keeps what is absent."""
        async with place.client() as client:
            mine = record("kept")
            assert (await client.upsert(mine, version=5)).outcome == "inserted"
            assert (await client.upsert(mine, version=4)).outcome == "stale"
            closed = TaskActivityLog(id=mine.id, is_closed=True)
            merged = await client.upsert(Upsert.of(closed, mode="merge", version=6))
            assert (merged.record.subject, merged.record.is_closed) == ("kept", True)

    @pytest.mark.parametrize("upsert", [BAD, BAD_XML], ids=["json", "xml"])
    async def test_a_rejection_has_its_code_and_every_bad_field(self, place: Place, upsert: Upsert) -> None:
        """In both formats."""
        async with place.client() as client:
            with pytest.raises(UpsertRejected, match="invalid_uuid: Send id") as rejection:
                await client.upsert(upsert)
        assert rejection.value.code == "invalid_uuid"
        assert [(bad.name, bad.code) for bad in rejection.value.errors] == [
            ("id", "invalid_uuid"),
            ("due_date", "invalid_date"),
        ]

    @pytest.mark.parametrize("kind", ["iterable", "async iterable"])
    async def test_many_are_answered_through_a_small_window(self, place: Place, kind: str) -> None:
        """Each is answered once, rejected ones too; the summary counts them; never more than the window are unanswered."""
        upserts = [Upsert(b"{}", source=str(n)) if n == 7 else Upsert.of(record(str(n))) for n in range(100)]

        async def coming() -> AsyncIterator[Upsert]:
            for upsert in upserts:
                await asyncio.sleep(0)
                yield upsert

        async with place.client(window=10) as client:
            bulk = client.upsert_many(upserts if kind == "iterable" else coming())
            answers = []
            async for answer in bulk:
                assert len(bulk.unanswered) <= 10
                answers.append(answer)
        assert sorted(answer.upsert.message_id for answer in answers) == sorted(one.message_id for one in upserts)
        assert [(a.upsert.source, a.problem.code) for a in answers if a.rejected] == [("7", "missing_id")]
        assert dict(bulk.summary.outcomes) == {"inserted": 99, "rejected": 1}
        assert "100 answered" in str(bulk.summary)

    async def test_requests_of_one_record_are_applied_in_their_order(self, place: Place) -> None:
        """The last one sent is what is stored."""
        identifier = uuid4()
        async with place.client() as client:
            upserts = [record(str(number), identifier) for number in range(50)]
            answers = [answer async for answer in client.upsert_many(upserts)]
        newest = max((answer.record for answer in answers), key=lambda stored: stored.modified_dateutc)
        assert newest.subject == "49"
        assert [answer.outcome for answer in answers].count("inserted") == 1

    async def test_a_failing_source_ends_the_bulk_with_its_own_error(self, place: Place) -> None:
        """After the answers to what was sent before."""

        def coming() -> Iterator[TaskActivityLog]:
            yield record()
            raise ZeroDivisionError

        async with place.client() as client:
            with pytest.raises(ZeroDivisionError):
                [answer async for answer in client.upsert_many(coming())]

    async def test_a_record_that_cannot_be_encoded_fails_alone(self, place: Place) -> None:
        """One that was changed without validation. The others are answered, or sent."""
        bad = record().model_copy(update={"subject": "\ud800"})
        async with place.client() as client:
            answers = [answer async for answer in client.upsert_many([record(), bad, record()])]
            assert sorted((one.outcome, one.sent) for one in answers) == [
                ("inserted", True), ("inserted", True), ("rejected", False)
            ]  # fmt: skip
            with pytest.raises(
                UpsertRejected, match=f"invalid_string: The record {bad.id} has a value that cannot be encoded"
            ):
                await client.upsert(bad)
            sent: list[int] = []
            with pytest.raises(NotSent, match=f"1 upsert not sent: record {bad.id}: invalid_string: ") as refusal:
                await client.send_many([record(), bad, record()], on_sent=sent.append)
            assert (sum(sent), [one.code for one in refusal.value.answers]) == (2, ["invalid_string"])

    @pytest.mark.parametrize("thing", [{"id": "x"}, b"{}", "{}", None])
    async def test_what_is_no_record_is_an_error_that_says_so(self, place: Place, thing: Any) -> None:
        """Wherever a record is taken."""
        async with place.client() as client:
            for sending in (client.upsert(thing), client.send_many([thing])):
                with pytest.raises(TypeError, match="send a TaskActivityLog or an Upsert, not "):
                    await sending

    async def test_options_apply_to_records_and_not_to_requests_made_by_hand(self, place: Place) -> None:
        """A merge keeps what is absent; versions of the clock grow; an `Upsert` has options of its own."""
        async with place.client() as client:
            mine = record("kept")
            await client.upsert(mine, version="clock")
            merged = await client.upsert(TaskActivityLog(id=mine.id, is_closed=True), merge=True, version="clock")
            assert (merged.outcome, merged.record.subject, merged.record.is_closed) == ("updated", "kept", True)
            assert (await client.upsert(mine, version=1)).outcome == "stale"
            replaced = await client.upsert(TaskActivityLog(id=mine.id), merge=False)
            assert replaced.record.subject is None
            many = [TaskActivityLog(id=mine.id, subject=str(number)) for number in range(20)]
            found = [
                answer.outcome async for answer in client.upsert_many(many, version="clock", merge=True, priority=2)
            ]
            assert found == ["updated"] * 20
            with pytest.raises(TypeError, match="merge should be True, False or None, and not 'replace'"):
                await client.upsert(TaskActivityLog(id=uuid4()), merge="replace")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=r"an Upsert is sent as it is: give .* to Upsert\.of"):
                await client.upsert(Upsert.of(mine), version=7)
            with pytest.raises(ValueError, match="priority should be"):
                await client.upsert(mine, priority=256)

    async def test_members_that_are_not_fields_are_named(self, place: Place) -> None:
        """With the answer to a request that is stored nevertheless."""
        async with place.client() as client:
            answer = await client.upsert(Upsert(b'{"id": "%s", "taskId": 1, "note": 2}' % str(uuid4()).encode()))
            assert (answer.outcome, answer.ignored) == ("inserted", ("taskId", "note"))
            assert (await client.upsert(record())).ignored == ()

    async def test_a_client_that_is_not_open_says_so_at_once(self, place: Place) -> None:
        """Before `async with`, and after it."""
        client = place.client()
        for _ in range(2):
            with pytest.raises(ClientError, match="the client is not open"):
                await client.upsert(record(), timeout=None)
            with pytest.raises(ClientError, match="the client is not open"):
                await client.send_many([record()], timeout=None)
            await client.__aexit__()

    async def test_a_bulk_is_iterated_over_once(self, place: Place) -> None:
        """After a `break` what is unanswered can be sent again, in another one."""
        async with place.client() as client:
            bulk = client.upsert_many([record() for _ in range(30)])
            async for _ in bulk:
                break
            with pytest.raises(ClientError, match="iterated over once"):
                await anext(aiter(bulk))
            again = client.upsert_many(bulk.unanswered)
            outcomes = [answer.outcome async for answer in again]
            assert len(outcomes) == len(bulk.unanswered)
            assert set(outcomes) <= {"inserted", "duplicate"}

    async def test_a_bulk_that_is_closed_takes_no_more_records(self, place: Place) -> None:
        """What was taken is answered or unanswered, and can be sent again at once. A bulk that has not begun can be closed."""
        taken = list[TaskActivityLog]()

        def records() -> Iterator[TaskActivityLog]:
            for _ in range(5000):
                taken.append(record())
                yield taken[-1]

        async with place.client() as client:
            async with aclosing(client.upsert_many(records())) as bulk:
                async for _ in bulk:
                    break
            count = len(taken)
            again = client.upsert_many(bulk.unanswered)
            outcomes = [answer.outcome async for answer in again]
            assert set(outcomes) <= {"inserted", "duplicate"}
            assert len(taken) == count == bulk.summary.answered + len(outcomes)
            await (unused := client.upsert_many(records())).aclose()
            with pytest.raises(ClientError, match="iterated over once"):
                await anext(aiter(unused))
            assert len(taken) == count

    async def test_a_client_is_open_once_at_a_time(self, place: Place) -> None:
        """It can be opened again afterwards."""
        client = place.client()
        for _ in range(2):
            async with client:
                with pytest.raises(ClientError, match="the client is open already"):
                    await client.__aenter__()
                assert (await client.upsert(record())).outcome == "inserted"

    async def test_what_is_being_sent_while_the_client_is_closed_raises_its_error(self, place: Place) -> None:
        """Not one of the driver."""
        async with place.client() as client:
            sending = asyncio.gather(client.send_many(record() for _ in range(600)))
            await asyncio.sleep(0)
        with pytest.raises(ClientError, match="the client is not open"):
            await sending


class SubscriberSuite:
    """What a subscriber can rely on."""

    async def test_each_reply_has_the_type_of_what_it_contains(self, place: Place) -> None:
        """A record, a problem, or neither: nothing is raised."""
        async with place.subscribe(routing_keys=["#"], most=3) as replies, place.client() as client:
            await client.send_many([record("a subject")])
            await client.send_many([Upsert(b"{}", message_id="bad")])
            seen = [await anext(replies), await anext(replies)]
            await place.publish_junk("stored.junk")
            seen.append(await anext(replies))
        assert {type(reply) for reply in seen[:2]} == {StoredReply, RejectedReply}
        for reply in seen:
            match reply:
                case StoredReply(stored):
                    assert (stored.subject, reply.outcome, reply.rejected) == ("a subject", "inserted", False)
                    assert reply.published is not None
                case RejectedReply(problem):
                    assert (problem.code, reply.code, reply.correlation_id) == ("missing_id", "missing_id", "bad")
                case UnreadableReply(error):
                    assert "cannot be read" in str(error)
                    assert reply is seen[2]

    @pytest.mark.parametrize("poison", [None, PoisonQueue("amq.mine")])
    async def test_a_name_that_is_reserved_for_the_broker_is_refused(
        self, place: Place, poison: PoisonQueue | None
    ) -> None:
        """For a queue that would be declared."""
        options = {"queue": "amq.mine"} if poison is None else own()
        with pytest.raises(
            ClientError, match=r"the broker refuses access: .*'amq.mine' contains reserved prefix 'amq\.\*'"
        ):
            async with place.subscribe(**options | {"routing_keys": ["#"]}, on_poison=poison):
                pass

    @pytest.mark.parametrize("name", ["upsert", "upsert.7", "dead-letters"])
    async def test_a_queue_of_the_worker_that_holds_no_replies_is_refused(self, place: Place, name: str) -> None:
        """A subscription would acknowledge what is in it; a reply that is moved to it would be a request."""
        queue = f"task_activity_log.{name}"
        with pytest.raises(ValueError, match=f"queue should name another queue: {queue} is for the worker"):
            place.subscribe(queue=queue)
        with pytest.raises(ValueError, match=f"on_poison should name another queue: {queue} is for the worker"):
            place.subscribe(**own(), on_poison=PoisonQueue(queue))

    async def test_a_reader_ends_when_another_task_closes_its_subscription(self, place: Place) -> None:
        """It does not connect again, and takes nothing from those who read the queue later."""
        mine = own()
        async with place.subscribe(**mine) as replies:
            reading = asyncio.gather(anext(replies))
            await asyncio.sleep(0)
        with pytest.raises(ClientError, match="the subscription was closed while it waited for a reply"):
            await reading
        async with place.client() as client:
            await client.send_many([record("a")])
        assert await subjects(place.subscribe(**mine, most=1)) == ["a"]

    async def test_a_reader_ends_also_if_its_subscription_is_opened_again_at_once(self, place: Place) -> None:
        """It takes nothing from the reader that comes after it."""
        mine = own()
        replies = place.subscribe(**mine, most=1)
        async with replies:
            reading = asyncio.gather(anext(replies))
            await asyncio.sleep(0)
        async with replies, place.client() as client:
            await client.send_many([record("a")])
            assert told(await anext(replies)) == "a"
            with pytest.raises(ClientError, match="the subscription was closed while it waited for a reply"):
                await reading

    async def test_answers_do_not_go_to_subscribers(self, place: Place) -> None:
        """Those who ask get the answer, and nobody else."""
        async with place.subscribe(routing_keys=["#"], most=1) as replies, place.client() as client:
            await client.upsert(record("answered"))
            await client.send_many([record("sent")])
            assert [told(reply) async for reply in replies] == ["sent"]

    @pytest.mark.parametrize(
        ("keys", "seen"),
        [
            (["#"], ["one", "two", "missing_id"]),
            (["stored.*"], ["one", "two"]),
            (["stored.updated", "rejected"], ["two", "missing_id"]),
            (["rejected.#"], ["missing_id"]),
        ],
    )
    async def test_a_private_queue_gets_what_its_routing_keys_select(
        self, place: Place, keys: list[str], seen: list[str]
    ) -> None:
        """While it is connected."""
        identifier = uuid4()
        async with place.client() as client:
            async with place.subscribe(routing_keys=keys, most=len(seen)) as replies:
                for upsert in (record("one", identifier), record("two", identifier), Upsert(b"{}")):
                    await client.send_many([upsert])
                    await client.upsert(record())  # answered after the one before
                assert [told(reply) async for reply in replies] == seen

    async def test_a_durable_queue_of_its_own_keeps_what_is_published_while_it_is_away(self, place: Place) -> None:
        """It is declared and bound at the first use."""
        mine = own("stored.inserted", "rejected")
        identifier = uuid4()
        async with place.client() as client:
            async with place.subscribe(**mine):
                pass
            await client.send_many([record("inserted", identifier)])
            assert await subjects(place.subscribe(**mine, most=1)) == ["inserted"]
            await client.send_many([record("updated", identifier), Upsert(b"{}")])
            assert await subjects(place.subscribe(**mine, most=1)) == ["missing_id"]
            await client.send_many([record("again")])
            assert await subjects(place.subscribe(queue=mine["queue"], most=1)) == ["again"]

    async def test_a_queue_that_does_not_exist_is_an_error(self, place: Place) -> None:
        """Immediately."""
        expected = (
            "queue 'nowhere' does not exist on this broker: declare it and bind it to the exchange of the replies, or"
        )
        with pytest.raises(ClientError, match=expected):
            await subjects(place.subscribe(queue="nowhere"))

    async def test_a_subscription_is_used_within_its_context(self, place: Place) -> None:
        """Outside of it an error says how to use it, instead of a wait without end."""
        replies = place.subscribe(**own())
        for _ in range(2):
            with pytest.raises(ClientError, match=r"write `async with subscribe\(…\) as replies`"):
                await anext(replies)
            async with replies:
                pass

    async def test_a_subscription_is_open_once_and_can_be_opened_again(self, place: Place) -> None:
        """A second connection would have replies that nobody is given. Opened again, it gives as many as the first time."""
        mine = own()
        replies = place.subscribe(**mine, most=1)
        async with place.client() as client, replies:
            with pytest.raises(ClientError, match="open already"):
                await replies.__aenter__()
            await client.send_many([record(subject) for subject in "ab"])
            assert [told(reply) async for reply in replies] == ["a"]
        assert await subjects(replies) == ["b"]

    async def test_one_task_at_a_time_waits_for_the_next_reply(self, place: Place) -> None:
        """Of two, one would acknowledge what the other has in hand."""
        async with place.client() as client, place.subscribe(**own()) as replies:
            waiting = asyncio.create_task(anext(replies))
            await asyncio.sleep(0)
            with pytest.raises(ClientError, match="another task waits for the next reply"):
                await anext(replies)
            await client.send_many([record("a")])
            assert told(await waiting) == "a"

    async def test_a_reply_is_acknowledged_after_the_body(self, place: Place) -> None:
        """If the loop is left in the middle of its body, that reply stays in the queue, and the earlier ones do not."""
        mine = own()
        async with place.client() as client:
            async with place.subscribe(**mine, prefetch=1) as replies:
                await client.send_many([record(subject) for subject in "abc"])
                async for reply in replies:
                    if told(reply) == "b":
                        break
        assert await subjects(place.subscribe(**mine, most=2)) == ["b", "c"]

    async def test_what_the_body_was_not_through_with_comes_again_when_it_is_opened_again(self, place: Place) -> None:
        """It is not taken for a repeat, which would be acknowledged without being yielded."""
        replies = place.subscribe(**own())
        async with place.client() as client:
            async with replies:
                await client.send_many([record(subject) for subject in "ab"])
                async for reply in replies:
                    assert told(reply) == "a"
                    break
            async with replies:
                assert [told(await anext(replies)) for _ in "ab"] == ["a", "b"]

    async def test_what_is_returned_comes_behind_what_was_returned_before(self, place: Place) -> None:
        """A queue does so. If these are of one record, its older state comes last: the documentation warns of that."""
        mine = own()
        await fill(place, mine)
        for prefetch in (3, 1):
            async with place.subscribe(**mine, prefetch=prefetch) as replies:
                assert told(await anext(replies)) == "a"
        assert await subjects(place.subscribe(**mine, most=3)) == ["b", "c", "a"]

    async def test_a_repeated_reply_is_yielded_once(self, place: Place) -> None:
        """Unless everything is asked for."""
        mine, other = own(), own()
        repeated = Upsert.of(record("repeated"))
        async with place.client() as client:
            for queue in (mine, other):
                async with place.subscribe(**queue):
                    pass
            for upsert in (repeated, repeated, Upsert.of(record("last"))):
                await client.upsert(record())
                await client.send_many([upsert])
        assert await subjects(place.subscribe(**mine, most=2)) == ["repeated", "last"]
        assert await subjects(place.subscribe(**other, most=3, everything=True)) == ["repeated", "repeated", "last"]

    async def test_a_poison_reply_is_moved_after_its_tries(self, place: Place) -> None:
        """It does not block those behind it for ever; the body's exception is raised each time, with a note."""
        mine, poison = own(), PoisonQueue(f"poison.{uuid4()}", tries=3)
        done: list[str | None] = []
        notes: list[str] = []

        async def run() -> None:
            async with place.subscribe(**mine, on_poison=poison) as replies:
                async for reply in replies:
                    if told(reply) == "c":
                        raise ValueError("the body of c")
                    done.append(told(reply))
                    if told(reply) == "z":
                        return

        async with place.client() as client:
            async with place.subscribe(**mine):
                pass
            await client.send_many([record(subject) for subject in "abcdef"])
            for _ in range(3):
                with pytest.raises(ValueError, match="the body of c") as raised:
                    await run()
                notes += raised.value.__notes__
            await client.send_many([record("z")])
        await run()
        assert sorted(map(str, done)) == ["a", "b", "d", "e", "f", "z"]
        assert notes == [
            "This was try 1 of 3: the reply is delivered again.",
            "This was try 2 of 3: the reply is delivered again.",
            f"After 3 deliveries the reply was moved to queue {poison.name}.",
        ]
        async with place.subscribe(queue=poison.name, most=1) as replies:
            async for reply in replies:
                assert (told(reply), reply.outcome) == ("c", "inserted")

    async def test_the_end_of_a_subscription_counts_as_a_delivery(self, place: Place) -> None:
        """Of all that was delivered: only closing the channel keeps the order. What the body does not fail with is not moved."""
        mine, poison = own(), PoisonQueue(f"poison.{uuid4()}", tries=3)
        await fill(place, mine)
        for _ in range(2):
            async with place.subscribe(**mine) as replies:
                async for _ in replies:
                    break

        async def run() -> None:
            async with place.subscribe(**mine, on_poison=poison) as replies:
                async for reply in replies:
                    if told(reply) == "b":
                        raise ValueError("mine")

        with pytest.raises(ValueError, match="mine") as raised:
            await run()
        assert raised.value.__notes__ == [f"After 3 deliveries the reply was moved to queue {poison.name}."]
        assert await subjects(place.subscribe(**mine, most=1)) == ["c"]
        assert await subjects(place.subscribe(queue=poison.name, most=1)) == ["b"]

    def test_a_number_of_tries_below_one_is_refused(self) -> None:
        """At once."""
        with pytest.raises(ValueError, match="at least 1"):
            PoisonQueue("poison", tries=0)
