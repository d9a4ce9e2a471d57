"""What each reader in Readers.cs is expected to read from a reply."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reader:
    """How .NET changes a reply when it reads it. With the defaults, every field stays as it is."""

    xml: bool = False
    never_null: bool = False
    """Whether the class has no nullable members: it throws on a null, and uses `default(T)` for an absent field."""
    skips_nulls: bool = False
    """Whether it treats a null as an absent field."""
    moves_extremes: bool = False
    """Whether it converts dates to local time, which clamps DateTime.MinValue and MaxValue."""
    drops_blanks: bool = False
    """Whether it reads a string of white space as an empty string."""
    empties_nulls: bool = False
    """Whether it reads a null string as an empty string."""
    guesses_dates: bool = False
    """Whether it rewrites a string that looks like a date in .NET's own format."""


_NEWTONSOFT = Reader(moves_extremes=True)
_NEVER = Reader(never_null=True, moves_extremes=True)
_CONTRACT = Reader(xml=True)

READERS = {
    "example json": _NEWTONSOFT,
    "example xml": _CONTRACT,
    "newtonsoft": _NEWTONSOFT,
    "newtonsoft capitals": _NEWTONSOFT,
    "newtonsoft data contract": _NEWTONSOFT,
    "newtonsoft offsets": Reader(),
    "newtonsoft never null": _NEVER,
    "newtonsoft never null, nulls ignored": Reader(never_null=True, skips_nulls=True, moves_extremes=True),
    "newtonsoft utc": _NEWTONSOFT,
    "newtonsoft local": _NEWTONSOFT,
    "newtonsoft missing members are errors": _NEWTONSOFT,
    "newtonsoft jobject": Reader(moves_extremes=True, guesses_dates=True),
    "newtonsoft stream": _NEWTONSOFT,
    "data contract": _CONTRACT,
    "data contract never null": Reader(xml=True, never_null=True),
    "data contract xml reader": _CONTRACT,
    "data contract string reader": _CONTRACT,
    "xml serializer": Reader(xml=True, drops_blanks=True, empties_nulls=True),
    "xml serializer nullable": Reader(xml=True, drops_blanks=True),
    "xml serializer never null": Reader(xml=True, never_null=True, drops_blanks=True, empties_nulls=True),
    "xml serializer string reader": Reader(xml=True, drops_blanks=True, empties_nulls=True),
    "xml serializer xml reader": Reader(xml=True, empties_nulls=True),
}
"""The readers that can read a reply."""

UNFIT = {"data contract ordered", "data contract offsets"}
"""The readers that cannot: separate tests show what they do instead."""
