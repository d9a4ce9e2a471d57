"""The order of upserts of one record: a later one is published only when the broker has confirmed the earlier ones.

A queue that is full refuses some of what is published together and takes what follows. What is sent again would then come
behind later upserts of its record, and an older state would be stored over a newer one.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar
from uuid import UUID

from pydantic_core import SchemaValidator, ValidationError
from pydantic_core import core_schema as cs

from task_activity_log import wire
from task_activity_log.client.messages import Upsert

Item = TypeVar("Item")


class Order:
    """Upserts that wait because the broker has refused an earlier one of their record."""

    def __init__(self) -> None:
        self._behind: dict[Hashable, list[Upsert]] = {}  # by record: the refused one, and those that came later
        self._due: set[Hashable] = set()  # the records whose refused upsert may be sent again

    def waves(self, upserts: Iterable[Upsert]) -> list[list[Upsert]]:
        """What is to be published, with what is due first. Each wave has a record once; a wave is published after the other."""
        due = [upsert for record in self._due for upsert in self._behind.pop(record, ())]
        self._due.clear()
        return waves([*due, *upserts])

    def admit(self, wave: Sequence[Upsert]) -> Sequence[Upsert]:
        """Those of a wave that may be published now. The others wait behind an earlier one of their record."""
        if not self._behind:
            return wave
        admitted: list[Upsert] = []
        for upsert in wave:
            line = self._behind.get(_record(upsert))
            (admitted if line is None else line).append(upsert)
        return admitted

    def refused(self, upserts: Iterable[Upsert]) -> set[Hashable]:
        """These are to be sent again. Returns their records, for `due`."""
        records = {_record(upsert): [upsert] for upsert in upserts}
        self._behind.update(records)
        return set(records)

    def due(self, records: Iterable[Hashable]) -> None:
        """Publish the upserts of these records again, with the next waves."""
        self._due.update(records)


def waves(upserts: Sequence[Upsert]) -> list[list[Upsert]]:
    """Split upserts into waves. Each has a record once, and those of one record keep their order."""
    return [[*upserts]] if len(upserts) == 1 else waves_of(upserts, map(_record, upserts))


def waves_of(items: Iterable[Item], records: Iterable[Hashable]) -> list[list[Item]]:
    """As `waves`, of anything; `records` says for each which record it is about."""
    split: list[list[Item]] = []
    earlier: dict[Hashable, int] = {}
    for item, record in zip(items, records, strict=True):
        index = earlier[record] = earlier.get(record, -1) + 1
        if index == len(split):
            split.append([])
        split[index].append(item)
    return split


def _record(upsert: Upsert) -> Hashable:
    """The id of the record, or something unique if there is none that is valid."""
    return _usual_id(upsert) or wire.record_id(upsert.body, upsert.content_type) or upsert.message_id


def _usual_id(upsert: Upsert) -> UUID | None:
    """The id of a JSON record that has it in the usual form, valid or not, in a sixth of the time of decoding the record."""
    if upsert.content_type != wire.JSON or len(upsert.body) > _SHORT_BYTES:
        return None
    try:
        found: UUID = _ID.validate_json(upsert.body)["id"]
    except ValidationError:
        return None
    return found if found.int else None


_SHORT_BYTES = 65_536
_ID = SchemaValidator(
    cs.typed_dict_schema({"id": cs.typed_dict_field(cs.uuid_schema())}, extra_behavior="ignore"),
)
