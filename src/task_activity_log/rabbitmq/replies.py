"""Replies: where each one goes, and what happens to one that cannot be placed (contract, section 6).

Replies to a `reply_to` go over a connection of their own, because anybody can name an address there that ends the
connection or takes nothing. Those to the replies exchange share the connection of the dead letters.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Generic

import structlog

from task_activity_log.pipeline.ports import D, Settlement
from task_activity_log.pipeline.reply import Reply, too_large
from task_activity_log.rabbitmq.addresses import Addresses, Waiting
from task_activity_log.rabbitmq.confirms import Late
from task_activity_log.rabbitmq.exchange import RepliesExchange
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.log_limit import LogLimit
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.properties import properties_of
from task_activity_log.rabbitmq.publisher import MessageMax, Publisher
from task_activity_log.rabbitmq.reply_to import is_direct, is_malformed, queue_of
from task_activity_log.rabbitmq.retries import Callbacks, Failing, Retries
from task_activity_log.rabbitmq.topology import Topology

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 1.0
"""How long a reply may take to be confirmed before others go on without it."""
_SILENT_PATIENCE_SECONDS = 0.25
"""Used for half a minute after an address was silent: there may be more, and each batch with some makes everybody wait."""
_SILENT_SECONDS = 30.0
_LATE_SECONDS = 0.75
"""How long a late answer is waited for before the reply is published again apart, if several are late: one silent address may
hold the answers to the others back, but the broker may also be slow."""
_REFUSED_MAX = 1_000
_RENEW_SECONDS = 60.0
"""How often a new connection is opened because of refusals: a queue that is full again and again must not do it to others."""
_OVERHEAD_BYTES = 1_000
"""Roughly the memory of a settlement without its delivery and the body of its reply."""


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How replies are sent to the addresses that requests name."""

    reply_to_allowed: Sequence[str] = ("*",)
    """Patterns of the addresses that are used."""
    also_to_exchange: bool = False
    """Whether a reply to an address goes to the replies exchange as well."""
    give_up_seconds: float = 30.0
    """How long a reply waits at an address that takes nothing."""
    waiting_max: int = 500
    """How many replies may wait at addresses that take nothing; at one address half of that."""
    waiting_bytes_max: int = 2**26
    """The same in bytes, for all of them."""


class Replies(Generic[D]):
    """Publishes each reply to the `reply_to` of its request, or to the replies exchange if the request has none."""

    _silent_until = 0.0  # until when replies have less time (event loop's clock); set by `_publish_promptly`
    _renew_from = 0.0  # from when on a new connection may be opened again; set by `_refused_again`

    def __init__(
        self,
        own: Publisher,
        addressed: Publisher,
        link: LinkOptions,
        topology: Topology,
        options: ReplyOptions = ReplyOptions(),
        *,
        still: Callable[[D], bool] = lambda _: True,
        message_max: MessageMax | None = None,
        on_given_up: Callable[[str], None] = lambda _: None,
        on_not_taken: Callable[[str, int], None] = lambda _, __: None,
    ) -> None:
        """Publish nothing yet: to the exchange through `own`, to addresses through `addressed`, to those that fail over `link`.

        `still` says whether a delivery is still unsettled: the reply to one that was requeued is not published. The two
        callbacks get the reason for each reply that is given up, and for those that a subscriber's queue has not taken.
        """
        self._addressed = addressed
        self._exchange = RepliesExchange(own, topology, on_not_taken)
        self._own_queues, self._options = topology.own_queues, options
        self._message_max = message_max or MessageMax()
        self._on_given_up, self._still = on_given_up, still
        self._addresses: Addresses[Settlement[D]] = Addresses(
            give_up_seconds=options.give_up_seconds, count_max=options.waiting_max, size_max=options.waiting_bytes_max
        )
        callbacks = Callbacks(
            outgoing=self._to_address,
            finished=self._finished,
            still=self._is_wanted,
            reachable=lambda: own.connected and own.blocked is None and not own.slow,
            answered_at=lambda: max(own.answered_at, addressed.answered_at),
            ask=own.ask,
            message_max=self._message_max.learn,
        )
        self._retries = Retries(link, self._addresses, callbacks)
        self._late, self._log_limit = asyncio.Queue[Settlement[D]](), LogLimit()
        self._refused: set[str] = set()  # addresses that were refused on the connection of `addressed`, at most some
        # Of the batches in `publish`, by id: what needs nothing more at its address (False: it waits), what the exchange has.
        self._placed, self._kept = dict[int, bool](), set[int]()

    async def run(self) -> None:
        """Try replies again that wait at their addresses, until cancelled."""
        await self._retries.run()

    @property
    def waiting(self) -> int:
        """How many replies wait at addresses that take nothing at present."""
        return self._retries.waiting

    @property
    def failing(self) -> tuple[Failing, ...]:
        """These addresses, at most 20, those with the oldest reply first."""
        return self._retries.failing

    async def publish(self, settlements: Sequence[Settlement[D]]) -> list[bool]:
        """Publish replies and return, for each, whether nothing more is to be done for it.

        True: it is confirmed or was given up. False: its address takes nothing at present; `settled` returns it later.

        Raises:
            Unavailable: the broker is away, or the replies queue takes nothing. Call it again with all of them: what is
                confirmed by then is not published again.
        """
        addressed: list[tuple[str, Settlement[D]]] = []
        own: list[Settlement[D]] = []
        for settlement in settlements:
            reply_to = settlement.reply.reply_to
            address = self._address(reply_to) if reply_to else None
            if not settlement.answers:
                continue
            if address is not None:
                addressed.append((address, settlement))
            if address is None or self._options.also_to_exchange:
                own.append(settlement)
        if addressed and own:
            outcomes = await asyncio.gather(self._address_all(addressed), self._keep(own), return_exceptions=True)
            for failure in filter(None, outcomes):
                raise failure
        elif addressed:
            await self._address_all(addressed)
        elif own:
            await self._keep(own)
        # What was published before may still be unconfirmed, and is remembered.
        self._kept.difference_update(map(id, settlements))
        return [self._placed.pop(id(settlement), True) for settlement in settlements]

    async def settled(self) -> list[Settlement[D]]:
        """Wait for settlements for which `publish` returned False, and whose replies are confirmed or given up now."""
        done = [await self._late.get()]
        while not self._late.empty():
            done.append(self._late.get_nowait())
        return done

    async def _keep(self, settlements: Sequence[Settlement[D]]) -> None:
        left = [settlement for settlement in settlements if id(settlement) not in self._kept]
        if left:
            replies = [self._fitting(settlement) for settlement in left]
            await self._exchange.publish(replies, lambda position: self._kept.add(id(left[position])))

    def _fitting(self, settlement: Settlement[D]) -> Reply:
        """The reply, or the problem that replaces it if the broker does not take messages of its size."""
        most = self._message_max.known
        if most is not None and len(settlement.reply.body) > most:
            settlement.reply = too_large(settlement.reply, most)
        return settlement.reply

    # to addresses

    def _address(self, reply_to: str) -> str | None:
        address = queue_of(reply_to)
        allowed = self._options.reply_to_allowed
        if address in self._own_queues or not any(fnmatchcase(address, pattern) for pattern in allowed):
            self._on_given_up("not_allowed")
            return None
        return address

    def _is_wanted(self, settlement: Settlement[D]) -> bool:
        return settlement.acknowledged or self._still(settlement.delivery)

    async def _address_all(self, replies: Sequence[tuple[str, Settlement[D]]]) -> None:
        """Publish these, or let them wait at addresses that take nothing."""
        fresh: list[tuple[str, Settlement[D]]] = []
        for address, settlement in replies:
            if id(settlement) in self._placed:
                continue
            if not self._is_wanted(settlement):
                # It comes again and is answered then. Replies of its record that waited here were forgotten when it was
                # requeued, and come again as well: this one must not overtake them.
                self._placed[id(settlement)] = True
            elif is_malformed(address):
                self._given_up(address, Fate.RETURNED.value, 1)
                self._placed[id(settlement)] = True
            elif address in self._addresses:
                self._wait(address, settlement)
            elif self._may_end_connection(address):
                self._addresses.suspect(self._wait(address, settlement).line)
            else:
                fresh.append((address, settlement))
        if fresh:
            await self._publish_fresh(fresh)
        if self._addresses.busy:
            self._retries.wake()

    def _may_end_connection(self, address: str) -> bool:
        # RabbitMQ 3 ends the connection of whoever publishes to direct reply-to of a node that is not in its cluster.
        return is_direct(address) and self._addressed.version.startswith("3.") and not self._addresses.trusts(address)

    async def _publish_fresh(self, replies: Sequence[tuple[str, Settlement[D]]]) -> None:
        """Publish to addresses that are not known to fail."""
        waiting: dict[int, Waiting[Settlement[D]]] = {}  # by position
        outgoing = [self._to_address(*reply) for reply in replies]
        fates = await self._publish_promptly(outgoing, partial(self._answered_late, waiting))
        unconfirmed = {address for (address, _), fate in zip(replies, fates, strict=True) if fate is Fate.UNCONFIRMED}
        for position, ((address, settlement), fate) in enumerate(zip(replies, fates, strict=True)):
            if fate is Fate.CONFIRMED:
                self._placed[id(settlement)] = True
                continue
            if fate is Fate.RETURNED:
                self._given_up(address, fate.value, 1)
                self._placed[id(settlement)] = True
                continue
            waiting[position] = one = self._wait(address, settlement)
            self._not_taken(one, fate, alone=len(unconfirmed) == 1)
        for address in {address for (address, _), fate in zip(replies, fates, strict=True) if fate is Fate.NACKED}:
            self._refused_again(address)

    def _not_taken(self, one: Waiting[Settlement[D]], fate: Fate, *, alone: bool) -> None:
        """What became of a reply that waits now. `alone`: no other address was silent."""
        now = self._retries.clock()
        if fate is Fate.LOST:
            self._addresses.suspect(one.line)
        elif fate is Fate.NACKED:
            self._addresses.refused(one, now)
        elif alone:  # otherwise one may hold the answers to the others back
            self._addresses.opened(one, now)
        else:
            one.line.due = now + _LATE_SECONDS

    async def _publish_promptly(self, outgoing: Sequence[Outgoing], on_late: Late) -> list[Fate]:
        """Publish to addresses, and do not wait long for one that is silent."""
        began = asyncio.get_running_loop().time()
        patience = _SILENT_PATIENCE_SECONDS if began < self._silent_until else _PATIENCE_SECONDS
        fates = await self._addressed.publish(outgoing, patience, on_late)
        if Fate.UNCONFIRMED in fates:
            self._silent_until = began + _SILENT_SECONDS
        return fates

    def _refused_again(self, address: str) -> None:
        """Publish over a new connection from now on if this address was refused before, and took replies apart since.

        A quorum queue whose limit is removed may go on to refuse the channels that it has refused (see `Publisher.renew`).
        """
        now = time.monotonic()
        if address not in self._refused:
            if len(self._refused) < _REFUSED_MAX:
                self._refused.add(address)
        elif now >= self._renew_from:
            self._renew_from = now + _RENEW_SECONDS
            self._refused.clear()
            self._addressed.renew()

    def _answered_late(self, waiting: dict[int, Waiting[Settlement[D]]], position: int, fate: Fate) -> None:
        if position in waiting:
            self._addresses.answered(waiting[position], fate, self._retries.clock())
            self._retries.wake()

    def _wait(self, address: str, settlement: Settlement[D]) -> Waiting[Settlement[D]]:
        size = settlement.delivery.weight + len(settlement.reply.body) + _OVERHEAD_BYTES
        self._placed[id(settlement)] = False
        return self._addresses.join(address, settlement, size, self._retries.clock())

    def _finished(self, finished: Sequence[tuple[Waiting[Settlement[D]], str | None]]) -> None:
        for waiting, _ in finished:
            if id(waiting.item) in self._placed:  # `publish` has not returned yet
                self._placed[id(waiting.item)] = True
            else:
                self._late.put_nowait(waiting.item)
        given_up = Counter((waiting.line.address, why) for waiting, why in finished if why is not None)
        for (address, why), count in given_up.items():
            self._given_up(address, why, count)

    def _given_up(self, address: str, why: str, count: int) -> None:
        for _ in range(count):
            self._on_given_up(why)
        omitted = self._log_limit.omit(count, time.monotonic())
        if omitted is not None:
            log.warning("reply_given_up", reply_to=address, why=why, count=count, omitted=omitted)

    def _to_address(self, address: str, settlement: Settlement[D]) -> Outgoing:
        reply = self._fitting(settlement)
        # RabbitMQ returns a mandatory message to direct reply-to although it delivers it.
        return Outgoing("", address, properties_of(reply), reply.body, mandatory=not is_direct(address))
