"""What each reader in Readers.cs is expected to find in a reply."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reader:
    """What .NET makes of a reply. The defaults: every field as it was."""

    xml: bool = False
    never_null: bool = False
    """Whether the class has no nulls: it throws for one that is there, and takes `default(T)` for one that is not."""
    skips_nulls: bool = False
    """Whether nulls that are there are taken for absent."""
    moves_extremes: bool = False
    """Whether dates go through local time, which clamps DateTime.MinValue and MaxValue."""
    drops_blanks: bool = False
    """Whether a string of nothing but white space is read as empty."""
    empties_nulls: bool = False
    """Whether a string that is null is read as empty."""
    guesses_dates: bool = False
    """Whether a string that looks like a date is rewritten as .NET would say it."""


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
"""Those that read a reply."""

UNFIT = {"data contract ordered", "data contract offsets"}
"""Those that do not: what they do instead has tests of its own."""
