"""Sends dead letters again, as the requests that they were, and removes them."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from task_activity_log.aio import Slices
from task_activity_log.client.connections import no_connection, options, publishing
from task_activity_log.client.dead_letters import DeadLetter, Loan
from task_activity_log.client.errors import ClientError
from task_activity_log.client.order import waves_of
from task_activity_log.client.rate import Rate
from task_activity_log.client.record_id import record_id
from task_activity_log.client.routing import Routing
from task_activity_log.message import Properties
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, describe
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import MessageMax, Publisher

_TOGETHER = 100
"""How many letters of one record are sent together, whatever the rate."""

Part: TypeAlias = Sequence[tuple[DeadLetter, DeadLetter]]
"""Letters on loan, each with the one to send."""
StillDue: TypeAlias = Callable[[Part], Awaitable[Part]]


async def replay(
    loan: Loan,
    letters: Part,
    broker: str | LinkOptions,
    *,
    exchange: str = "task_activity_log",
    partitioned: bool | None = None,
    partitions_exchange: str | None = None,
    rate: float = 100.0,
    still_due: StillDue | None = None,
    on_replayed: Callable[[DeadLetter], None] = lambda _: None,
    go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Publish each as the request that it was, and remove it from the dead letters once the broker has confirmed that.

    If this is interrupted in between, the request is in both queues: with a message_id it is applied once. Each letter on
    loan comes with the one to send, itself or a corrected one. At most `rate` are published per second, and `on_replayed`
    is called with each that has been replayed. `go_on` is asked before each part: once it says no, the rest stays in the
    queue. `still_due` gets each part directly before it is sent, and returns what of it is to be sent: a long replay must
    not overwrite a row that was changed after it began. Returns how many were replayed.

    Up to a hundred letters of one record are sent together, in their order, also if that is faster than `rate` for a moment:
    once the first is stored, nobody can tell whether the row was changed by that one or by a newer request.

    Where workers share partitions, each is sent to the partition of its record, and one without a readable record to
    `exchange`. `partitioned` and `partitions_exchange` are those of `TaskActivityLogClient`.

    Raises:
        ClientError: the broker refuses them, or is away, or `still_due` has raised `Unavailable`: those that were not
            replayed are in the queue.
    """
    user = unquote(urlsplit(options(broker).url).username or "") or None
    size = max(1, min(500, int(rate / 10)))
    pace = Rate(rate)
    routing = Routing(exchange, partitioned=partitioned, partitions_exchange=partitions_exchange)
    most = MessageMax()
    async with publishing(broker, "replays", most) as publisher:
        try:
            with asking_the_driver():
                await routing.find_out(publisher)
        except LOST as error:
            raise no_connection(options(broker), describe(error), "docs/dead-letters.md") from error
        count = 0
        for part in await _parts(letters, size):
            await pace.wait(len(part))
            if not go_on():
                return count
            try:
                chunk = part if still_due is None else await still_due(part)
                fates = await _publish_in_order(publisher, routing, [sent for _, sent in chunk], user)
            except Unavailable as error:
                raise ClientError(f"{count} replayed, then: {error.reason}; the others are in the queue") from error
            done = [letter for (letter, _), fate in zip(chunk, fates, strict=True) if fate is Fate.CONFIRMED]
            try:
                await loan.remove(done)
            except ClientError as error:
                both = f"{len(done)} more were sent and may still be dead letters"
                raise ClientError(f"{count} replayed, then the connection was lost; {both}: run it again") from error
            count += len(done)
            for letter in done:
                on_replayed(letter)
            if len(done) < len(chunk):
                raise ClientError(f"{count} replayed, then {_why_not(chunk, fates, routing, publisher, most.known)}")
    return count


async def _parts(letters: Part, size: int) -> list[Part]:
    """Parts of `size` or more. What there is of one record is in the part of its first letter, as far as that is permitted."""
    groups: list[Part] = []
    unfinished: dict[Hashable, list[tuple[DeadLetter, DeadLetter]]] = {}
    slices = Slices()
    for pair in letters:
        record = _record(pair[1])
        group = unfinished.get(record)
        if group is None or len(group) == _TOGETHER:
            group = unfinished[record] = []
            groups.append(group)
        group.append(pair)
        if slices.over(len(pair[1].body)):
            await slices.next()
    parts: list[list[tuple[DeadLetter, DeadLetter]]] = []
    for letters_of_one in groups:
        if not parts or len(parts[-1]) >= size:
            parts.append([])
        parts[-1] += letters_of_one
    return list[Part](parts)


def _record(letter: DeadLetter) -> Hashable:
    """The id of the record, or something that only exact copies have in common if there is none that can be read."""
    return record_id(letter.body, letter.restored(None).content_type) or letter.key


async def _publish_in_order(
    publisher: Publisher, routing: Routing, letters: Sequence[DeadLetter], user: str | None
) -> list[Fate | None]:
    """Publish these, and of each record a later one only when all before are confirmed; None for what was not published.

    A queue that is full refuses some of what is published together and takes what follows. The older dead letter would be
    left, and a later replay would store it over the newer one.
    """
    fates: list[Fate | None] = [None] * len(letters)
    for wave in waves_of(range(len(letters)), map(_record, letters)):
        requests = [(letters[number].restored(user), letters[number].body) for number in wave]
        try:
            published = await _publish(publisher, routing, requests)
        except Unavailable:
            if publisher.blocked is not None:
                # The broker takes what was written once it takes anything again.
                published = [Fate.UNCONFIRMED] * len(wave)
            elif any(fates):
                break
            else:
                raise
        for number, fate in zip(wave, published, strict=True):
            fates[number] = fate
        if any(fate is not Fate.CONFIRMED for fate in published):
            break
    return fates


def _why_not(part: Part, fates: Sequence[Fate | None], routing: Routing, publisher: Publisher, most: int | None) -> str:
    """Why some were not replayed, and where they are. `most` is the longest body that the broker takes, if it has said so."""
    reason = publisher.last_reason
    refusing = routing.named_in(reason) if reason.startswith("ACCESS_REFUSED") else None
    unknown = sum(
        fate is Fate.UNCONFIRMED or (fate is Fate.LOST and _exchange(letter, routing) != refusing)
        for (_, letter), fate in zip(part, fates, strict=True)
    )
    too_long = [] if most is None else [sent for _, sent in part if len(sent.body) > most]
    if too_long:
        first, more = too_long[0], f" ({len(too_long):,} are longer)" if len(too_long) > 1 else ""
        why = (
            f"the broker refuses more than {most:,} bytes, and {first.name} has {len(first.body):,}{more}:"
            " raise max_message_size, or export and discard it, and run it again"
        )
    elif Fate.LOST in fates:
        why = f"the connection was lost ({reason})" if refusing is None else f"the broker refuses them ({reason})"
    elif publisher.blocked is not None:
        why = f"the broker blocks publishers ({publisher.blocked})"
    else:
        why = "the broker did not answer in time" if unknown else "the broker took no more"
    doubt = f", and up to {unknown} of them may have been sent as well" if unknown else ""
    return f"{why}; the others are in the queue{doubt}"


def _exchange(letter: DeadLetter, routing: Routing) -> str:
    """The exchange to which it is sent."""
    return routing.address(letter.body, letter.restored(None).content_type)[0]


async def _publish(publisher: Publisher, routing: Routing, requests: Sequence[tuple[Properties, bytes]]) -> list[Fate]:
    """Publish these, and once more what was lost because it may not be sent by record.

    Raises:
        Unavailable: the connection is lost, and none is confirmed.
    """
    fates = await publisher.publish(
        [Outgoing(*routing.address(body, properties.content_type), properties, body) for properties, body in requests]
    )
    if Fate.LOST not in fates or not routing.must_change(publisher.last_reason):
        return fates
    lost = [request for request, fate in zip(requests, fates, strict=True) if fate is Fate.LOST]
    try:
        again = iter(await _publish(publisher, routing, lost))
    except Unavailable:
        if Fate.CONFIRMED not in fates:
            raise
        return fates
    return [next(again) if fate is Fate.LOST else fate for fate in fates]
