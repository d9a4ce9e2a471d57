"""Where a request is sent: to the partition of its record where there are partitions, otherwise to the one requests queue."""

from task_activity_log import wire
from task_activity_log.partitions import hash_slot
from task_activity_log.rabbitmq.link import LOST, Missing, OutageKind, describe
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.topology import REQUEST_KEY

BY_RECORD = ".by-record"
"""The ending of the name of the exchange for requests that are sent by record."""


def no_exchange(exchange: str, advice: str = "a worker declares it when it starts") -> str:
    """That there is no such exchange, in words."""
    return f"exchange '{exchange}' does not exist on this broker: {advice}"


class Routing:
    """The exchange and the routing key of each request (contract, "By record")."""

    def __init__(
        self, exchange: str, *, partitioned: bool | None = None, partitions_exchange: str | None = None
    ) -> None:
        """Do not ask the broker yet.

        Args:
            exchange: the exchange of requests that are not sent by record.
            partitioned: whether requests are sent by record; None: if the broker has an exchange for it, and lets us.
            partitions_exchange: this exchange; None: the one with the name of `exchange` and `.by-record`. Never that of
                other workers, which have another `exchange`.
        """
        self.exchange = exchange
        self.partitions_exchange = partitions_exchange or f"{exchange}{BY_RECORD}"
        self._partitioned = partitioned
        self._by_record = partitioned is True

    async def find_out(self, publisher: Publisher) -> None:
        """Ask whether requests can be sent by record, unless the caller has said that they are not.

        This is not repeated on later connections: a record must not change its way while its requests wait, because one way
        can overtake the other.

        Raises:
            One of `link.LOST`: the connection is lost; or requests must be sent by record, and the exchange does not exist
                or is refused.
        """
        if self._partitioned is False:
            return
        try:
            await publisher.require_exchange(self.partitions_exchange)
        except LOST as error:
            kind = describe(error).kind
            if self._partitioned is None and kind in (OutageKind.NOT_FOUND, OutageKind.ACCESS_REFUSED):
                return
            if kind is OutageKind.NOT_FOUND:
                what = f"exchange '{self.partitions_exchange}', which is declared where WORKER_PARTITIONS is set,"
                raise Missing(f"{what} does not exist on this broker") from None
            raise
        self._by_record = True

    def address(self, body: bytes, content_type: str | None) -> tuple[str, str]:
        """The exchange and the routing key for a request. What has no readable record is sent where a worker answers it."""
        if self._by_record and (record_id := wire.record_id(body, content_type)) is not None:
            return self.partitions_exchange, hash_slot(record_id)
        return self.exchange, REQUEST_KEY

    def must_change(self, reason: str) -> bool:
        """Whether the channel was closed because the user may not send by record, and the caller has not asked for that.

        From then on requests are not sent by record: a user who was created before there were partitions has no permission
        for their exchange, and the broker tells that only when something is published.
        """
        named = reason.startswith("ACCESS_REFUSED") and self.named_in(reason) == self.partitions_exchange
        if not named or self._partitioned is not None:
            return False
        self._by_record = False
        return True

    def named_in(self, reason: str) -> str:
        """Which of the two exchanges the broker names in the reason for which it closed a channel."""
        return self.partitions_exchange if f"'{self.partitions_exchange}'" in reason else self.exchange

    def without_exchange(self, exchange: str) -> str:
        """Why nothing can be published: there is no such exchange. No worker that runs has to declare that for partitions."""
        if exchange == self.partitions_exchange:
            advice = (
                "the number of partitions is being changed, or the partitions were removed: restart this program then"
            )
            return no_exchange(exchange, f"{advice}. {_PARTITIONS}")
        return no_exchange(exchange)

    def without_queue(self, exchange: str) -> str:
        """Why the broker has returned an upsert."""
        advice = "a worker declares and binds its queue when it starts"
        if exchange == self.partitions_exchange:
            advice = f"not all partitions are declared and bound. {_PARTITIONS}"
        return f"exchange {exchange} routes upserts to no queue: {advice}"


_PARTITIONS = "`task-activity-log partitions` shows whether a change was interrupted, and how to finish or undo it"
