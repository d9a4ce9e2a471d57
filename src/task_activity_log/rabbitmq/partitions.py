"""Partitions: which of N request queues has the requests of a record.

The hash slot of a record (`record.hash_slot`, `00` to `ff`) is the routing key of its requests, and the 256 slots are
divided among the queues in order. N is a power of two, so that doubling it divides each partition into two, and halving it
joins two that are next to each other.
"""

from collections.abc import Iterator

SLOTS = 256
PARTITIONS_MAX = 256


def is_partition_count(count: int) -> bool:
    """Whether requests can be divided into this many partitions: a power of two up to 256."""
    return 0 < count <= PARTITIONS_MAX and count & (count - 1) == 0


def partition_of(slot: str, count: int) -> int:
    """Which of `count` partitions has this slot: a number from 0 on."""
    return int(slot, 16) * count // SLOTS


def slots_of(partition: int, count: int) -> Iterator[str]:
    """The slots of one of `count` partitions, in order."""
    each = SLOTS // count
    return (f"{slot:02x}" for slot in range(partition * each, (partition + 1) * each))


def queue_of(requests_queue: str, partition: int) -> str:
    """The name of a partition's queue."""
    return f"{requests_queue}.{partition}"
