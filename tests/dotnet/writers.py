"""What each writer in Writers.cs is expected to write, described by what the worker must decode from it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from tests.dotnet.values import ZERO, Net

TEXT_FIELDS = ("subject", "description", "reference_back_office")


@dataclass(frozen=True)
class Writer:
    """How .NET changes a record when it writes it. With the defaults, it writes every field as it is, including nulls."""

    nulls: Literal["sent", "omitted", "texts omitted", "only texts sent", "never", "never, texts omitted"] = "sent"
    """Which nulls it writes. `never`: only strings can be null, and other members have `default(T)` instead."""
    offsets: bool = False
    """Whether its dates are DateTimeOffsets."""
    digits: int = 7
    """The number of digits of the fraction of a second."""
    unspecified: Literal["UTC", "local"] = "UTC"
    """What an Unspecified DateTime is taken as."""
    drops_zone: bool = False
    """Whether it writes dates without offset or Z, so that they are taken as UTC whatever they were."""
    moves_extremes: bool = False
    """Whether it converts DateTime.MinValue and MaxValue to local time, for which .NET clamps or throws."""
    drops_cr: bool = False
    """Whether it writes CR unescaped or as LF; every XML reader reads both as LF."""
    checks: bool | None = None
    """XML: whether it throws on characters that XML cannot hold instead of writing references. None for JSON."""

    def expected(self, values: dict[str, Any], zone: ZoneInfo) -> dict[str, Any]:
        """The record that the worker must decode."""
        return {name: self._expected(name, value, zone) for name, value in values.items()}

    def fields_set(self, values: dict[str, Any]) -> set[str]:
        """The fields that are present, including nulls."""
        return {name for name, value in values.items() if value is not None or self._sends_null(name)}

    def _sends_null(self, name: str) -> bool:
        text = name in TEXT_FIELDS
        match self.nulls:
            case "sent":
                return True
            case "omitted":
                return False
            case "texts omitted":
                return not text
            case "only texts sent":
                return text
            case "never":
                return True
            case "never, texts omitted":
                return not text

    def _expected(self, name: str, value: object, zone: ZoneInfo) -> object:
        if value is None and self.nulls.startswith("never") and name not in TEXT_FIELDS:
            date = datetime(1, 1, 1, tzinfo=UTC)
            return False if name == "is_closed" else date if name in ("due_date", "date_closed") else ZERO
        if isinstance(value, Net):
            kind = value.kind
            if kind == "Unspecified" and self.unspecified == "local":
                kind = "Local"
            if self.drops_zone:
                kind = "Unspecified"
            return Net(value.ticks, kind).instant(zone, self.digits)
        if isinstance(value, str) and self.drops_cr:
            return value.replace("\r\n", "\n").replace("\r", "\n")
        return value


_JSON = Writer()
_OLD = Writer(digits=3, unspecified="local", moves_extremes=True)  # /Date(ms)/
_XML = Writer(checks=False)  # DataContractSerializer on its own writer
_CHECKED = Writer(checks=True, drops_cr=True)  # on one of XmlWriter.Create
_SERIALIZER = Writer(checks=False, drops_cr=True, nulls="texts omitted")
_SERIALIZER_CHECKED = Writer(checks=True, drops_cr=True, nulls="texts omitted")

WRITERS = {
    "example json": _JSON,
    "example xml": _XML,
    "newtonsoft": _JSON,
    "newtonsoft capitals": _JSON,
    "newtonsoft camel case": _JSON,
    "newtonsoft data contract": _JSON,
    "newtonsoft never null": Writer(nulls="never"),
    "newtonsoft offsets": Writer(offsets=True),
    "newtonsoft nulls ignored": Writer(nulls="omitted"),
    "newtonsoft defaults ignored": Writer(nulls="omitted"),
    "newtonsoft should serialize": Writer(nulls="only texts sent"),
    "newtonsoft microsoft dates": _OLD,
    "newtonsoft microsoft dates offsets": Writer(offsets=True, digits=3),
    "newtonsoft utc": _JSON,
    "newtonsoft local": Writer(unspecified="local", moves_extremes=True),
    "newtonsoft unspecified": Writer(drops_zone=True),
    "newtonsoft date format": Writer(digits=3),
    "newtonsoft date format with a space": Writer(digits=0, drops_zone=True),
    "newtonsoft iso converter": _JSON,
    "newtonsoft indented": _JSON,
    "newtonsoft ascii": _JSON,
    "newtonsoft html": _JSON,
    "newtonsoft types": _JSON,
    "newtonsoft references": _JSON,
    "newtonsoft jobject": _JSON,
    "newtonsoft stream writer": _JSON,
    "newtonsoft utf-16 with mark": _JSON,
    "newtonsoft utf-16": _JSON,
    "newtonsoft utf-16be": _JSON,
    "data contract json": _OLD,
    "data contract json plain": _OLD,
    "data contract json date format": _JSON,
    "data contract": _XML,
    "data contract plain": _XML,
    "data contract ordered": _XML,
    "data contract sparse": Writer(checks=False, nulls="omitted"),
    "data contract offsets": Writer(checks=False, offsets=True),
    "data contract never null": Writer(checks=False, nulls="never"),
    "data contract preserved references": _XML,
    "data contract string writer": _CHECKED,
    "data contract utf-16 string": _CHECKED,
    "data contract utf-16 string without charset": _CHECKED,
    "data contract xml writer utf-8 with mark": _CHECKED,
    "data contract xml writer utf-16 with mark": _CHECKED,
    "data contract xml writer utf-16be with mark": _CHECKED,
    "data contract xml writer unchecked": Writer(checks=False, drops_cr=True),
    "data contract dictionary writer": _XML,
    "xml serializer": _SERIALIZER,
    "xml serializer nullable": Writer(checks=False, drops_cr=True),
    "xml serializer specified": Writer(checks=False, drops_cr=True, nulls="omitted"),
    "xml serializer should serialize": Writer(checks=False, drops_cr=True, nulls="omitted"),
    "xml serializer never null": Writer(checks=False, drops_cr=True, nulls="never, texts omitted"),
    "xml serializer namespace": _SERIALIZER,
    "xml serializer without namespaces": _SERIALIZER,
    "xml serializer string writer": _SERIALIZER,
    "xml serializer utf-16 string": _SERIALIZER,
    "xml serializer stream writer": _SERIALIZER,
    "xml serializer text writer utf-16": _SERIALIZER,
    "xml serializer xml writer": _SERIALIZER_CHECKED,
    "xml serializer xml writer utf-16 with mark": _SERIALIZER_CHECKED,
    "xml serializer xml writer without declaration": _SERIALIZER_CHECKED,
    "xml serializer xml writer entitized": Writer(checks=True, nulls="texts omitted"),
}
"""The writers whose records are accepted, with every field."""

REFUSED = {
    "newtonsoft javascript dates": "malformed_json",  # new Date(…) is JavaScript
    "data contract json offsets": "invalid_date",  # an object where a date should be
    "xml serializer offsets": "invalid_date",  # <due_date />: XmlSerializer does not know DateTimeOffset
}
"""The writers whose dates are unusable, with the error code of the reply."""
