"""Partitions: which of N request queues has the requests of a record.

The hash slot of a record (`00` to `ff`) is the routing key of its requests, and the 256 slots are
divided among the queues in order. N is a power of two, so that doubling it divides each partition into two, and halving it
joins two that are next to each other.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from uuid import UUID

SLOTS = 256
PARTITIONS_MAX = 256


def hash_slot(record_id: UUID) -> str:
    """The hash slot of a record, from `00` to `ff` (contract, section 3): the first two digits of SHA-256 of its id.

    The id is hashed as 36 characters in lower case with hyphens. The digits of a uuid itself would not do: those of
    sequential ones hardly vary.
    """
    return sha256(str(record_id).encode()).hexdigest()[:2]


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


def valid_name(longest: int, name: str) -> str:
    """The name of a queue or an exchange, if the driver takes it. `longest` leaves room for the endings of partitions.

    Raises:
        ValueError: the name is longer, or has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.:@#,/+ -]+", name) or len(name) > longest:
        raise ValueError(f"should have at most {longest} letters, digits, spaces and characters of -_.:@#,/+")
    return name
