"""XML ↔ record (contract, sections 5 and 6).

Two readers give the same result. `_usual` does with two passes of a pattern what serializers usually write: a root with
known namespaces, known children with plain text in them or nil, white space in between. Whatever else there is, right
or wrong, it leaves to `_members`, which takes twice as long and knows every rule.

The parser is libxml2's, through lxml, with its limits on (nesting 256 deep, 10 MB a text) and nothing that fetches or
expands. expat copies the namespace into every prefixed attribute: 160 kB of XML took 1.4 GB and 5 s of it, and less
than 5 ms here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from functools import cache, partial
from itertools import islice
from typing import Final
from uuid import UUID

from lxml import etree
from lxml.etree import _Element

from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.record import STORED_FIELDS, StoredTaskActivityLog, TaskActivityLog
from task_activity_log.wire import fields, values
from task_activity_log.wire.fields import Reader
from task_activity_log.wire.media import WHITE
from task_activity_log.wire.values import Invalid, NaiveDates

ROOT: Final = "task_activity_log"
INSTANCE: Final = "http://www.w3.org/2001/XMLSchema-instance"


def decode(text: str, naive: NaiveDates = "utc") -> TaskActivityLog:
    """The record in an XML text. Raises `Rejected`; when only fields are bad, `InvalidFields`."""
    usual = _usual(text)
    if usual is not None:
        return fields.record(TaskActivityLog, usual, _text_readers(naive))
    return fields.record(TaskActivityLog, _members(text), _readers(naive))


def decode_stored(text: str) -> StoredTaskActivityLog:
    """The stored record in a reply's XML text. Raises `Rejected`."""
    instant = _readers("utc")["due_date"]
    return fields.record(StoredTaskActivityLog, _members(text), {**_readers("utc"), "modified_dateutc": instant})


def encode(record: TaskActivityLog) -> fields.Encoded:
    """The record without declaration, children in ordinal order of their names.

    A stored record has all twelve, its instants with three digits; a request has those that were set, with all digits.
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
        if kind is Code.INVALID_STRING:
            if _SPECIAL.search(value):
                if _FORMLESS.search(value):
                    replaced.add(name)
                value = escape(value)
        elif kind is Code.INVALID_DATE:
            # 2026-01-11T20:58:34.720383+00:00: the fraction is between the 20th character and the offset.
            value = f"{value[:19]}.{value[20:-6][:3]:0<3}Z" if stored else f"{value[:-6]}Z"
        elif kind is Code.INVALID_BOOLEAN:
            value = "true" if value else "false"
        parts += (start, value, end)
    parts.append(_END)
    return fields.Encoded("".join(parts).encode(), tuple(filter(replaced.__contains__, STORED_FIELDS)))


def escape(text: str) -> str:
    """Text as XML content; characters that XML 1.0 has no form for become U+FFFD."""
    return _SPECIAL.sub(lambda found: _ESCAPED.get(found[0], "\ufffd"), text)


def parse(text: str) -> _Element:
    """The root of an XML text, without comments and processing instructions.

    Raises `Rejected` with `dtd_forbidden` or `malformed_xml`.
    """
    # Looked for before libxml2 sees it, so that no entity is ever declared. It can only be in the prolog: elsewhere it
    # is a piece of text or not well-formed.
    if "<!DOCTYPE" in text and _TO_DTD.match(text):
        raise Rejected(Problem(Code.DTD_FORBIDDEN, "Send XML without a document type declaration."))
    data = text.encode()
    try:
        return etree.fromstring(data, _PARSER)
    except etree.XMLSyntaxError as error:
        odd_namespace = error.code in _ODD_NAMESPACE  # type: ignore[attr-defined]  # the stubs do not know it
    root = _with_odd_namespace(data) if odd_namespace else None
    if root is None:
        raise Rejected(_MALFORMED)
    return root


def _with_odd_namespace(data: bytes) -> _Element | None:
    """The root of XML that has nothing wrong but that libxml2 finds a namespace no URI; None when there is more.

    .NET names them after its own: http://schemas.datacontract.org/2004/07/Société
    """
    parser = _parser(recover=True)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError:
        return None
    return root if all(entry.type in _ODD_NAMESPACE for entry in parser.error_log) else None


def _parser(*, recover: bool) -> etree.XMLParser:
    return etree.XMLParser(
        encoding="utf-8",  # whatever the declaration says: it is text already
        recover=recover,
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        collect_ids=False,
        remove_comments=True,
        remove_pis=True,
    )


def _members(text: str) -> dict[str, _Element]:
    """The children that count as fields of a record, by field.

    Raises `Rejected` with what `parse` does, `wrong_root`, `malformed_xml` for text between the children, or
    `duplicate_field`.
    """
    root = parse(text)
    namespace, _, name = root.tag.rpartition("}")
    if name != ROOT:
        raise Rejected(_WRONG_ROOT)
    if _has_text(root):
        raise Rejected(_MALFORMED)
    prefix = f"{namespace}}}" if namespace else ""
    found: dict[str, _Element] = {}
    repeated = set()
    for child in _few(root, prefix):
        field = child.tag.removeprefix(prefix)
        if field in _NAMES:
            if field in found:
                repeated.add(field)
            found[field] = child
    fields.check_unique(repeated, STORED_FIELDS)
    return found


def _few(root: _Element, prefix: str) -> Iterable[_Element]:
    """The children of a root; of many, those that count, and of these no more than can be without one being twice.

    Each `tag` has the whole namespace in it: a long one times many children would be gigabytes. So lxml looks for them,
    which cannot be done in the namespaces that it would take for a pattern. Raises `Rejected` (`wrong_root`) for these.
    """
    if len(root) <= _MANY:
        return root
    if prefix == "{*}" or prefix.count("}") > 1:
        raise Rejected(_WRONG_ROOT)
    return islice(root.iterchildren(*(start + name for name in STORED_FIELDS for start in {prefix, ""})), _MANY)


def _usual(text: str) -> dict[str, str | None] | None:
    """The text of each field, None for nil, in XML of the usual sort; None when it has to be looked at more closely."""
    if "]]>" in text or not _USUAL.fullmatch(text):
        return None
    found = _USUAL_CHILD.findall(text)
    members = {name or nil: None if nil else held for name, held, nil in found}
    return members if len(members) == len(found) else None


def _content(element: _Element, code: Code) -> str | None:
    """The text of an element, None when it is nil. Raises `Invalid`, with `code` for an element inside it."""
    if _is_nil(element):
        return _referred(element, code)
    if len(element):
        raise Invalid(code)
    return element.text or ""


def _is_nil(element: _Element) -> bool:
    nil = element.get(_NIL)
    return nil is not None and _boolean(nil)


def _referred(element: _Element, code: Code) -> str | None:
    """None; or what a nil element refers to, in what DataContractSerializer writes with PreserveObjectReferences.

    The second of two equal strings is `<subject z:Ref="2" i:nil="true"/>`: taken for null it would be lost. Raises
    `Invalid`, with `code`, for a reference to nothing.
    """
    number = element.get(_REF)
    if number is None:
        return None
    root = element.getparent()
    for other in () if root is None else root:
        if other.get(_REF_ID) == number and other.get(_REF) is None:  # never round in circles
            return _content(other, code)
    raise Invalid(code)


def _boolean(text: str) -> bool:
    value = _WORDS.get(text.strip(WHITE))
    if value is None:
        raise Invalid(Code.INVALID_BOOLEAN)
    return value


def _read_string(element: _Element) -> str | None:
    return _content(element, Code.INVALID_STRING)


def _read_uuid(element: _Element) -> UUID | None:
    return _uuid(_content(element, Code.INVALID_UUID))


def _read_id(element: _Element) -> UUID | None:
    return _id(_content(element, Code.INVALID_UUID))


def _read_boolean(element: _Element) -> bool | None:
    return _boolean_or_null(_content(element, Code.INVALID_BOOLEAN))


def _uuid(text: str | None) -> UUID | None:
    return None if text is None else values.uuid(text)


def _id(text: str | None) -> UUID | None:
    return values.uuid(text) if text else None


def _boolean_or_null(text: str | None) -> bool | None:
    return None if text is None else _boolean(text)


def _instant(text: str | None, naive: NaiveDates) -> datetime | None:
    return None if text is None else values.instant(text, naive)


def _read_instant(element: _Element, naive: NaiveDates) -> datetime | None:
    if len(element) == len(_OFFSET_STRUCT) and not _is_nil(element) and not _has_text(element):
        return _read_offset_struct(element)
    return _instant(_content(element, Code.INVALID_DATE), naive)


def _read_offset_struct(element: _Element) -> datetime:
    """A DateTimeOffset of DataContractSerializer, whose DateTime is in UTC already, whatever its OffsetMinutes."""
    inside = {child.tag.rpartition("}")[2]: _content(child, Code.INVALID_DATE) or "" for child in element}
    if inside.keys() != _OFFSET_STRUCT or not _OFFSET_MINUTES.fullmatch(inside["OffsetMinutes"].strip(WHITE)):
        raise Invalid(Code.INVALID_DATE)
    return values.instant(inside["DateTime"])


@cache
def _readers(naive: NaiveDates) -> dict[str, Reader]:
    kinds: dict[Code, Reader] = {
        Code.INVALID_UUID: _read_uuid,
        Code.INVALID_STRING: _read_string,
        Code.INVALID_DATE: partial(_read_instant, naive=naive),
        Code.INVALID_BOOLEAN: _read_boolean,
    }
    return {field: kinds[code] for field, code in fields.KINDS.items()} | {"id": _read_id}


@cache
def _text_readers(naive: NaiveDates) -> dict[str, Reader]:
    kinds: dict[Code, Reader] = {
        Code.INVALID_UUID: _uuid,
        Code.INVALID_STRING: lambda text: text,
        Code.INVALID_DATE: partial(_instant, naive=naive),
        Code.INVALID_BOOLEAN: _boolean_or_null,
    }
    return {field: kinds[code] for field, code in fields.KINDS.items()} | {"id": _id}


# Text without markup, references, what XML normalizes (CR) or has no form for.
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
_ODD_NAMESPACE = {etree.ErrorTypes.WAR_NS_URI, etree.ErrorTypes.WAR_NS_URI_RELATIVE}
_MALFORMED = Problem(Code.MALFORMED_XML, "Send well-formed XML 1.0 with namespaces, and no text between the fields.")
_WRONG_ROOT = Problem(
    Code.WRONG_ROOT, f"Send one record, an element {ROOT} in lower case; a namespace should be a URI."
)
_TO_DTD = re.compile(r"(?>[ \t\r\n]+|<\?(?s:.*?)\?>|<!--(?s:.*?)-->)*+<!DOCTYPE")
_has_text = etree.XPath("boolean(text()[normalize-space()])")

_NIL = f"{{{INSTANCE}}}nil"
_REF, _REF_ID = (f"{{http://schemas.microsoft.com/2003/10/Serialization/}}{name}" for name in ("Ref", "Id"))
_NAMES = frozenset(STORED_FIELDS)
_MANY = 64
_WORDS = {"true": True, "1": True, "false": False, "0": False}
_OFFSET_STRUCT = {"DateTime", "OffsetMinutes"}
_OFFSET_MINUTES = re.compile(r"[+-]?0*(?:[0-7]?[0-9]?[0-9]|8[0-3][0-9]|840)")

_START = f'<{ROOT} xmlns:i="{INSTANCE}">'
_END = f"</{ROOT}>"
# In ordinal order of their names: DataContractSerializer reads no other.
_CHILDREN = [
    (name, kind, f"<{name}>", f"</{name}>", f'<{name} i:nil="true"/>')
    for name, kind in sorted({**fields.KINDS, "modified_dateutc": Code.INVALID_DATE}.items())
]
_FORMLESS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_SPECIAL = re.compile(f"[&<>\r{_FORMLESS.pattern[1:]}")
_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#xD;"}
