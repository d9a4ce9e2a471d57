"""XML to record and back (contract, sections 5 and 6).

There are two readers with the same result. The fast one, `_usual`, uses two passes of a pattern and accepts only what
serializers usually write: a root with known namespaces, and known children with plain text or nil. Everything else, valid
or not, is left to the complete one, `_members`, which knows every rule and is slower (see docs/performance.md).

The parser is libxml2, through lxml, with its limits enabled (256 levels, 10 MB per text). It fetches and expands nothing.
expat was not chosen because it copies the namespace into every prefixed attribute: for 160 kB of XML it used 1.4 GB and
5 s; libxml2 needs less than 5 ms. Without namespaces expat copies nothing, and shows what follows the root.

libxml2 keeps each name that it has read for as long as the thread lives that has read it, because lxml gives all parsers of
a thread one dictionary. Publishers choose the names. So a text with other names than serializers write is parsed in a thread
of its own, which is replaced after some text.
"""

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cache, partial
from itertools import islice
from operator import itemgetter
from threading import Lock
from typing import Final, NamedTuple, cast
from uuid import UUID
from xml.parsers import expat

from lxml import etree
from lxml.etree import _Element

from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.record import STORED_FIELDS, StoredTaskActivityLog, TaskActivityLog
from task_activity_log.wire import fields, values
from task_activity_log.wire.fields import KINDS, STORED_KINDS, Kind, Reader
from task_activity_log.wire.media import WHITE
from task_activity_log.wire.values import Invalid, NaiveDates

ROOT: Final = "task_activity_log"
INSTANCE: Final = "http://www.w3.org/2001/XMLSchema-instance"


def decode(text: str, naive: NaiveDates = "utc", ignored: list[str] | None = None) -> TaskActivityLog:
    """The record in an XML text. The names of elements that are not fields are added to `ignored`.

    Raises `Rejected`, or its subclass `InvalidFields` if only fields are invalid.
    """
    usual = _usual(text)
    if usual is not None:
        return fields.record(TaskActivityLog, usual, _text_readers(naive))
    return fields.record(TaskActivityLog, _members(text, ignored), _readers(naive))


def decode_stored(text: str) -> StoredTaskActivityLog:
    """The stored record in the XML text of a reply. Raises `Rejected`."""
    return fields.record(StoredTaskActivityLog, _members(text), _readers("utc", stored=True))


def encode(record: TaskActivityLog) -> fields.Encoded:
    """The record in XML without a declaration, with the children in the ordinal order of their names.

    A stored record has all twelve children, and instants with three digits. A request has those that are set, and instants
    with all digits.
    """
    stored = isinstance(record, StoredTaskActivityLog)
    found = record.__pydantic_serializer__.to_python(record, mode="json", exclude_unset=not stored)
    parts = [_START]
    replaced = set()
    for name, kind, start, end, nil in _CHILDREN:
        if name not in found:
            continue
        value = found[name]
        if value is None:
            parts.append(nil)
            continue
        if kind is Kind.TEXT:
            if _SPECIAL.search(value):
                if _FORMLESS.search(value):
                    replaced.add(name)
                value = escape(value)
        elif kind is Kind.INSTANT:
            # In 2026-01-11T20:58:34.720383+00:00 the fraction is between the 20th character and the offset.
            value = f"{value[:19]}.{value[20:-6][:3]:0<3}Z" if stored else f"{value[:-6]}Z"
        elif kind is Kind.BOOLEAN:
            value = "true" if value else "false"
        parts += (start, value, end)
    parts.append(_END)
    return fields.Encoded("".join(parts).encode(), tuple(filter(replaced.__contains__, STORED_FIELDS)))


def escape(text: str) -> str:
    """Text as XML content. Characters that XML 1.0 cannot represent become U+FFFD."""
    text = _FORMLESS.sub("\ufffd", text)  # first, because the text can become five times as long
    for character, reference in _ESCAPED:  # not one `sub` with a function, which takes 0.6 µs for each character
        text = text.replace(character, reference)
    return text


def parse(text: str) -> _Element:
    """The root of an XML text, without comments and processing instructions.

    Raises `Rejected` with `dtd_forbidden` or `malformed_xml`.
    """
    # A DTD is rejected before libxml2 parses the text, so that no entity is ever declared. A DTD can only be in the
    # prolog; in other places `<!DOCTYPE` is text or not well-formed.
    if "<!DOCTYPE" in text and _TO_DTD.match(text):
        raise Rejected(Problem(Code.DTD_FORBIDDEN, "Send XML without a document type declaration."))
    data = text.encode()
    root = _parsed(data, _PARSER) if _KNOWN.fullmatch(text) else _THREAD.parse(data)
    if root is None:
        raise Rejected(_MALFORMED)
    return root


class ParserThread:
    """A thread with a parser of its own, which is replaced after it has read `most_bytes`. It may be used by all threads.

    The names use some three times the memory of the texts, and are freed with the thread, its parser and the trees. The
    change of threads takes some 20 µs for each text, and a time slice of others if the machine is busy.
    """

    def __init__(self, most_bytes: int = 2**22) -> None:
        """Start no thread yet."""
        self._most_bytes = most_bytes
        self._turn = Lock()
        self._left = 0
        self._thread: ThreadPoolExecutor | None = None
        self._parser: etree.XMLParser | None = None

    def parse(self, data: bytes) -> _Element | None:
        """The root of XML; None if it is not well-formed."""
        with self._turn:
            if self._thread is not None and self._left < 0:
                self._thread.shutdown()
                self._thread = None
            if self._thread is None:
                self._thread, self._left = ThreadPoolExecutor(1, "xml"), self._most_bytes
                self._parser = self._thread.submit(_parser, recover=False).result()  # it takes the names of its thread
            self._left -= len(data)
            return self._thread.submit(_parsed, data, self._parser).result()


def _parsed(data: bytes, parser: etree.XMLParser | None) -> _Element | None:
    """The root of XML; None if it is not well-formed."""
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        odd_namespace = error.code in _ODD_NAMESPACE  # type: ignore[attr-defined]  # the stubs do not know it
    return _with_odd_namespace(data) if odd_namespace else None


def _with_odd_namespace(data: bytes) -> _Element | None:
    """The root of XML whose only defect, for libxml2, is a namespace that is not a URI; None if it has other defects.

    .NET uses its own names in namespaces, for example http://schemas.datacontract.org/2004/07/Société
    """
    parser = _parser(recover=True)
    try:
        root = etree.fromstring(data, parser)
        expat.ParserCreate("utf-8").Parse(data, True)  # after the first error libxml2 accepts all that follows the root
    except (etree.XMLSyntaxError, expat.ExpatError):
        return None
    return root if all(entry.type in _ODD_NAMESPACE for entry in parser.error_log) else None


def _parser(*, recover: bool) -> etree.XMLParser:
    return etree.XMLParser(
        encoding="utf-8",  # overrides the declaration: the body has been decoded already
        recover=recover,
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        collect_ids=False,
        remove_comments=True,
        remove_pis=True,
    )


class _Siblings:
    """The children of one element, for references from one to another."""

    def __init__(self, parent: _Element) -> None:
        self._parent = parent
        self._by_number: dict[str, _Element] | None = None

    def numbered(self, number: str) -> _Element | None:
        """The first child with this `z:Id` that is not a reference itself, which could be circular.

        All are found in one pass when the first is asked for, because ten fields could refer among 65,000 children.
        """
        if self._by_number is None:
            found = cast("list[_Element]", _NUMBERED(self._parent))
            self._by_number = {child.get(_REF_ID, ""): child for child in reversed(found)}
        return self._by_number.get(number)


class _Child(NamedTuple):
    element: _Element
    siblings: _Siblings


def _members(text: str, ignored: list[str] | None = None) -> dict[str, _Child]:
    """The children that are fields of a record, by field.

    Raises `Rejected` as `parse`, or with `wrong_root`, `malformed_xml` (text between the children) or `duplicate_field`.
    """
    root = parse(text)
    namespace, _, name = root.tag.rpartition("}")
    if name != ROOT:
        raise Rejected(_WRONG_ROOT)
    if _has_text(root):
        raise Rejected(_MALFORMED)
    prefix = f"{namespace}}}" if namespace else ""
    siblings = _Siblings(root)
    found: dict[str, _Child] = {}
    repeated = set()
    for child in _few(root, prefix):
        field = child.tag.removeprefix(prefix)
        if field in _NAMES:
            if field in found:
                repeated.add(field)
            found[field] = _Child(child, siblings)
        elif "{" not in field:  # an element of another namespace is not meant for us
            fields.ignore(field, ignored)
    fields.check_unique(repeated, STORED_FIELDS)
    return found


def _few(root: _Element, prefix: str) -> Iterable[_Element]:
    """The children of a root. If there are many, only those that can be fields, and only enough to detect duplicates.

    Each `tag` contains the whole namespace, so a long namespace and many children would use gigabytes. lxml therefore
    searches for the fields. It would interpret some namespaces as patterns; these are `Rejected` (`wrong_root`).
    """
    if len(root) <= _MANY:
        return root
    if prefix == "{*}" or prefix.count("}") > 1:
        raise Rejected(_WRONG_ROOT)
    return islice(root.iterchildren(*(start + name for name in STORED_FIELDS for start in {prefix, ""})), _MANY)


def _usual(text: str) -> dict[str, str | None] | None:
    """The text of each field, None for nil, in XML of the usual kind; None if the complete reader must decide."""
    if "]]>" in text or not _USUAL.fullmatch(text):
        return None
    found = _USUAL_CHILD.findall(text)
    members = {name or nil: None if nil else held for name, held, nil in found}
    return members if len(members) == len(found) else None


def _content(element: _Element, kind: Kind, siblings: _Siblings) -> str | None:
    """The text of an element; None if it is nil. Raises `Invalid` if it contains an element."""
    if _is_nil(element):
        return _referred(element, kind, siblings)
    if len(element):
        raise Invalid(kind.code)
    return element.text or ""


def _is_nil(element: _Element) -> bool:
    nil = element.get(_NIL)
    return nil is not None and _boolean(nil)


def _referred(element: _Element, kind: Kind, siblings: _Siblings) -> str | None:
    """The text that a nil element refers to; None if it has no reference, and so is null.

    DataContractSerializer with PreserveObjectReferences writes the second of two equal strings as
    `<subject z:Ref="2" i:nil="true"/>`. Read as null, the string would be lost. Raises `Invalid` for an unknown reference.
    """
    number = element.get(_REF)
    if number is None:
        return None
    other = siblings.numbered(number)
    if other is None:
        raise Invalid(kind.code)
    return _content(other, kind, siblings)


def _boolean(text: str) -> bool:
    value = _WORDS.get(text.strip(WHITE))
    if value is None:
        raise Invalid(Kind.BOOLEAN.code)
    return value


def _id(text: str) -> UUID | None:
    return values.uuid(text) if text else None  # an empty id is a missing one, not an invalid uuid


def _read(child: _Child, kind: Kind, read: Callable[[str], object]) -> object:
    """The value in an element; `read` returns that of a text."""
    element, siblings = child
    if kind is Kind.INSTANT and len(element) == len(_OFFSET_STRUCT) and not _is_nil(element) and not _has_text(element):
        return _read_offset_struct(element)
    text = _content(element, kind, siblings)
    return None if text is None else read(text)


def _read_offset_struct(element: _Element) -> datetime:
    """A DateTimeOffset written by DataContractSerializer. Its DateTime is in UTC, whatever its OffsetMinutes."""
    siblings = _Siblings(element)
    inside = {child.tag.rpartition("}")[2]: _content(child, Kind.INSTANT, siblings) or "" for child in element}
    if inside.keys() != _OFFSET_STRUCT or not _OFFSET_MINUTES.fullmatch(inside["OffsetMinutes"].strip(WHITE)):
        raise Invalid(Kind.INSTANT.code)
    return values.instant(inside["DateTime"])


@cache
def _text_readers(naive: NaiveDates, *, stored: bool = False) -> dict[str, Reader]:
    by_kind: dict[Kind, Reader] = {
        Kind.UUID: values.uuid,
        Kind.TEXT: str,
        Kind.INSTANT: partial(values.instant, naive=naive),
        Kind.BOOLEAN: _boolean,
    }
    return {field: by_kind[kind] for field, kind in (STORED_KINDS if stored else KINDS).items()} | {"id": _id}


@cache
def _readers(naive: NaiveDates, *, stored: bool = False) -> dict[str, Reader]:
    readers = _text_readers(naive, stored=stored)
    return {field: partial(_read, kind=STORED_KINDS[field], read=read) for field, read in readers.items()}


# Text without markup, without references, and without characters that XML normalizes (CR) or cannot represent.
_PLAIN = "[^<&\r\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]*+"
_BLANK = "[ \t\r\n]*+"
_ANY_FIELD = "|".join(sorted(STORED_FIELDS, key=len, reverse=True))
_CHILD = rf'<(?:({_ANY_FIELD})>({_PLAIN})</\1>|({_ANY_FIELD}) i:nil="true" ?/>)'
_USUAL_CHILD = re.compile(_CHILD)
_OWN = r'(?: xmlns="http://schemas\.datacontract\.org/2004/07/[A-Za-z0-9_.]*+")'
_XSI = rf' xmlns:i="{re.escape(INSTANCE)}"'
_USUAL = re.compile(
    rf'(?:<\?xml version="1\.0"(?: encoding="[A-Za-z][A-Za-z0-9._-]*+")? ?\?>{_BLANK})?'
    rf"<task_activity_log(?:{_OWN}?{_XSI}|{_XSI}{_OWN})>"
    rf"(?:{_BLANK}{_CHILD})*+{_BLANK}</task_activity_log>{_BLANK}"
)

_PARSER = _parser(recover=False)
_THREAD = ParserThread()
_QUOTED_INSTANCE, _QUOTED_SCHEMA = (f'"{re.escape(uri)}"' for uri in (INSTANCE, "http://www.w3.org/2001/XMLSchema"))
# What libxml2 keeps: names of elements, attributes, entities and processing instructions, prefixes, and namespaces.
_KNOWN = re.compile(
    r"(?:[^<&]++|&(?:amp|lt|gt|quot|apos|#[0-9]+|#x[0-9A-Fa-f]+);|<!\[CDATA\[(?s:.*?)\]\]>"
    r"|<\?xml [^<>?]*\?>"
    rf"|</?(?:{ROOT}|{_ANY_FIELD})(?:{_BLANK}(?:xmlns:xsd={_QUOTED_SCHEMA}|xmlns:(?:xs)?i={_QUOTED_INSTANCE}"
    rf'|(?:xs)?i:nil="[^"<&]*"))*+{_BLANK}/?>)*+'
)
"""Texts with the names and namespaces that XmlSerializer and DataContractSerializer write for a record, and no others."""
_ODD_NAMESPACE = {etree.ErrorTypes.WAR_NS_URI, etree.ErrorTypes.WAR_NS_URI_RELATIVE}
_MALFORMED = Problem(Code.MALFORMED_XML, "Send well-formed XML 1.0 with namespaces, without text between the fields.")
_WRONG_ROOT = Problem(
    Code.WRONG_ROOT, f"Send one record: an element {ROOT}, in lower case. Its namespace, if any, should be a URI."
)
_TO_DTD = re.compile(r"(?>[ \t\r\n]+|<\?(?s:.*?)\?>|<!--(?s:.*?)-->)*+<!DOCTYPE")
_has_text = etree.XPath("boolean(text()[normalize-space()])")

_NIL = f"{{{INSTANCE}}}nil"
_SERIALIZATION = "http://schemas.microsoft.com/2003/10/Serialization/"
_REF, _REF_ID = (f"{{{_SERIALIZATION}}}{name}" for name in ("Ref", "Id"))
_NUMBERED = etree.XPath("*[@z:Id and not(@z:Ref)]", namespaces={"z": _SERIALIZATION})
_NAMES = frozenset(STORED_FIELDS)
_MANY = 64
_WORDS = {"true": True, "1": True, "false": False, "0": False}
_OFFSET_STRUCT = {"DateTime", "OffsetMinutes"}
_OFFSET_MINUTES = re.compile(r"[+-]?0*(?:[0-7]?[0-9]?[0-9]|8[0-3][0-9]|840)")

_START = f'<{ROOT} xmlns:i="{INSTANCE}">'
_END = f"</{ROOT}>"
# In the ordinal order of their names, because DataContractSerializer skips children in any other order.
_CHILDREN = [
    (name, kind, f"<{name}>", f"</{name}>", f'<{name} i:nil="true"/>')
    for name, kind in sorted(STORED_KINDS.items(), key=itemgetter(0))
]
_FORMLESS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_SPECIAL = re.compile(f"[&<>\r{_FORMLESS.pattern[1:]}")
_ESCAPED = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\r", "&#xD;"))
