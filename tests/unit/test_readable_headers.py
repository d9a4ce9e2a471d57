"""The headers of a dead letter can be read by other programs' drivers, of which pamqp stands for all."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import decode

from task_activity_log.rabbitmq.headers import raw_headers, readable_headers
from tests.effort import examples
from tests.loop_work import counting

_LAST_MILLISECOND = 253_402_300_799_999


def _long(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _entry(item: tuple[bytes, bytes]) -> bytes:
    name, value = item
    return bytes((len(name),)) + name + value


SIZES = {"V": 0, "t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "I": 4, "i": 4, "l": 8, "L": 8, "f": 4, "d": 8, "D": 5}
fixed = st.sampled_from([*SIZES.items()]).flatmap(
    lambda kind: st.binary(min_size=kind[1], max_size=kind[1]).map(lambda value: kind[0].encode() + value)
)
instants = (st.integers(0, 2**64 - 1) | st.integers(_LAST_MILLISECOND - 2, _LAST_MILLISECOND + 2)).map(
    lambda number: b"T" + number.to_bytes(8, "big")
)
strings = st.tuples(st.sampled_from([b"S", b"x"]), st.binary(max_size=9)).map(lambda pair: pair[0] + _long(pair[1]))
names = st.text(max_size=4).map(str.encode) | st.binary(max_size=4)
values = st.recursive(
    fixed | instants | strings,
    lambda inner: (
        st.lists(inner, max_size=6).map(lambda items: b"A" + _long(b"".join(items)))
        | st.lists(st.tuples(names, inner), max_size=6).map(lambda items: b"F" + _long(b"".join(map(_entry, items))))
    ),
    max_leaves=20,
)
entries = st.tuples(names, values).map(_entry)
cut_or_changed = st.tuples(entries, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3))


def by_the_library(entry: bytes) -> bool:
    try:
        decode.field_table(_long(entry))
    except (ValueError, OverflowError, OSError, RecursionError, KeyError, IndexError):
        return False
    return True


def here(entry: bytes) -> bool:
    return readable_headers(entry) == [(entry[1 : 1 + entry[0]], entry)]


@settings(max_examples=examples(150))
@given(entries)
def test_a_well_formed_header_is_kept_exactly_if_the_library_can_read_it(entry: bytes) -> None:
    """Names that are not UTF-8 and instants that are out of range, at any depth, are what it cannot read."""
    assert here(entry) is by_the_library(entry)


@settings(max_examples=examples(150))
@given(cut_or_changed)
@example((b"\1aA\0\0\0\3\2ab", []))
def test_the_library_can_read_whatever_is_kept(made: tuple[bytes, list[tuple[int, int]]]) -> None:
    """Also of a table that is not well-formed, in which a value may end behind the table that contains it."""
    changed = bytearray(made[0])
    for position, byte in made[1]:
        changed[position % len(changed)] = byte
    for _, kept in readable_headers(bytes(changed)):
        assert by_the_library(kept)


def test_a_table_may_be_nested_a_hundred_times() -> None:
    """The library reads recursively; deeper tables would exhaust the stack of some program."""
    for depth, kept in ((100, True), (101, False)):
        table = b"\1aV"
        for _ in range(depth):
            table = b"\1aF" + _long(table)
        assert bool(readable_headers(table)) is kept
        assert by_the_library(table)


async def test_a_long_array_is_checked_in_one_pass() -> None:
    """One by one, its values would take a million lines of Python, which stop the event loop for a tenth of a second."""
    table = b"\1aA" + _long(b"V" * 120_000)
    with counting() as work:
        assert readable_headers(table)
    assert 0 < work.lines < 200


def test_names_can_be_left_out() -> None:
    """The other entries keep their order."""
    table = b"\1aV\1bV\1cV"
    assert [name for name, _ in readable_headers(table, without=[b"b"])] == [b"a", b"c"]
    assert [name for name, _ in raw_headers(table)] == [b"a", b"b", b"c"]
