"""The worker accepts what a schema of the contract accepts, and the schemas accept what the worker writes."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from lxml import etree

from task_activity_log import wire
from task_activity_log.problem import Code, FieldError, Problem, Rejected
from task_activity_log.record import FIELDS, STORED_FIELDS, StoredTaskActivityLog
from tests.effort import examples
from tools.contract_files import describe

SCHEMA: dict[str, Any] = json.loads(describe("json-schema"))
REQUEST = Draft202012Validator(SCHEMA)
REPLY, PROBLEM = (Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}) for name in ("reply", "problem"))
REQUEST_XSD, REPLY_XSD, PROBLEM_XSD = (
    etree.XMLSchema(etree.fromstring(describe(name).encode())) for name in ("xsd", "xsd-reply", "xsd-problem")
)

VECTORS = [
    json.loads(line) for line in (Path(__file__).parent / "vectors.jsonl").read_text(encoding="utf-8").splitlines()
]
NARROWER = {
    "J54": "JSON Schema does not tell 0 from 0.0, which is no boolean",
    "X28": "in XML Schema 1.0 children in any order (xs:all) go with no wildcard: nothing unknown next to them",
    "X62": "as X28",
    "X64": "as X28: Subject is unknown, names of elements are case-sensitive",
    "X33": "fields are simple types, so that generated classes are simple: no attributes on them but nil",
    "X63": "as X33",
    "X53": "an xs:dateTime has a time, and generated classes have a DateTime for it",
}
"""Vectors that the worker accepts and a schema does not, each with the reason."""

ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"


# ---- the vectors


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["id"]))
def test_a_vector_is_valid_exactly_if_the_worker_accepts_it(vector: dict[str, Any]) -> None:
    """Except for the vectors that are listed in NARROWER, with the reasons."""
    try:
        media = wire.media_type(vector["content_type"])
        text = wire.text(b64decode(vector["body_base64"]), media)
        valid = _valid_xml(text) if wire.is_xml(media.name) else _valid_json(text)
    except (Rejected, ValueError, etree.XMLSyntaxError):  # before there is anything that a schema could look at
        valid = False
    accepted = vector["expect"]["outcome"] == "accept" and vector["id"] not in NARROWER

    assert valid == accepted, NARROWER.get(vector["id"])


def _valid_json(text: str) -> bool:
    return REQUEST.is_valid(json.loads(text, object_pairs_hook=_once_each))


def _once_each(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, which JSON Schema sees when each name is there once."""
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("a name is there twice")
    return found


def _valid_xml(text: str) -> bool:
    root = etree.fromstring(text.encode(), etree.XMLParser(encoding="utf-8", resolve_entities=False))
    return root.getroottree().docinfo.internalDTD is None and REQUEST_XSD.validate(root)


# ---- the worker accepts what a schema accepts


def _documents(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """JSON values that are valid by a part of `SCHEMA`: as much of JSON Schema as is used there."""
    if "$ref" in schema:
        return _documents(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "allOf" in schema:
        return _documents(schema["allOf"][0]).filter(
            Draft202012Validator({"$defs": SCHEMA["$defs"], **schema}).is_valid
        )
    if "anyOf" in schema:
        return st.one_of([_documents(choice) for choice in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "properties" in schema:
        return st.builds(
            lambda known, unknown: {**unknown, **known},
            st.fixed_dictionaries(
                {name: _documents(schema["properties"][name]) for name in schema["required"]},
                optional={
                    name: _documents(kind)
                    for name, kind in schema["properties"].items()
                    if name not in schema["required"]
                },
            ),
            st.dictionaries(
                (_TEXT | st.sampled_from(["$id", "\u0131d", "taskId"])).filter(
                    lambda name: name.lower() not in STORED_FIELDS
                ),
                _documents(schema["additionalProperties"]),
                max_size=3,
            ),
        )
    kinds = schema["type"]
    return st.one_of([_of_type(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)])


def _of_type(kind: str, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if kind == "string" and "pattern" in schema:
        return st.from_regex(schema["pattern"])
    if kind == "array":
        return st.lists(_documents(schema["items"]), max_size=3)
    if kind == "object":
        return st.dictionaries(_TEXT, _documents(schema["additionalProperties"]), max_size=3)
    return _SCALARS[kind]


_TEXT = st.text(st.characters(exclude_categories=()))  # halves of surrogate pairs as well
_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": _TEXT,
    "number": st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "null": st.none(),
}


@given(_documents(SCHEMA))
def test_the_worker_accepts_any_document_generated_from_the_json_schema(document: dict[str, Any]) -> None:
    """The decoded record has exactly the fields of the document."""
    REQUEST.validate(document)

    record = wire.decode(json.dumps(document), wire.JSON)

    assert record.model_fields_set == document.keys() & FIELDS


_ODD_TEXTS = st.sampled_from(
    [
        "2024-02-29", "2023-02-29", "1900-02-29", "2000-02-29", "0000-01-01", "0001-01-01T00:00:00+00:18",
        "9999-12-31T23:59:59.9999999-14:00", "2026-01-11T24:00:00", "2026-01-11T23:59:60Z", "2026-04-31T00:00:00",
        "2026-01-11T20:58:34+14:01", "2026-01-11T20:58:34-1400", "2026-01-11T20:58:34.Z", "12026-01-11T20:58:34",
        "-0001-01-11T20:58:34", "2026-01-11T20:58", "2026-01-11  20:58:34", "2026-01", "/Date(0)/", "/Date(-0001)/",
        "/Date(253402300800000)/", "/Date(-62135596800001)/", "/Date(99999999999999+1400)/", "/Date(1)/Z",
        ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"({ID})", f"{{{ID})", f"{{({ID})}}", f"urn:uuid:{ID}",
        f"{{{ID.replace('-', '')}}}", "0" * 32, "00000000-0000-0000-0000-000000000000", "true", "TRUE", "1", "0", "yes",
        "", " ", "\t\n", "\u00a0", "a\u0000b", "\ud83d", "\U0001f600",
    ]
)  # fmt: skip
_SPACE = st.text(" \t\r\n\u00a0\v", max_size=2)
_PADDED = st.builds(lambda before, text, after: before + text + after, _SPACE, _ODD_TEXTS | _TEXT, _SPACE)


@settings(max_examples=examples(500))
@given(
    st.sampled_from([*STORED_FIELDS, "Subject", "DUE_DATE"]),
    _PADDED | st.sampled_from([None, True, False, 0, 1, 1.0, 0.0, -0.0, 2, [], {}, [[[[]]]]]),
)
def test_the_worker_accepts_every_odd_value_that_the_json_schema_accepts(field: str, value: Any) -> None:
    """The schema may be narrower than the worker, but never wider."""
    document = {"id": ID, field: value}

    assert _accepted(json.dumps(document), wire.JSON) or not REQUEST.is_valid(document)


@settings(max_examples=examples(500))
@given(
    st.sampled_from(STORED_FIELDS),
    _PADDED.map(escape)
    | st.datetimes().map(datetime.isoformat)
    | st.sampled_from(["<b/>", "<!-- -->", "<![CDATA[1]]>"]),
    st.sampled_from(["", "", "", ' i:nil="1"', ' i:nil=" false "', ' i:nil="TRUE"', ' i:type="x"', ' xmlns="urn:b"']),
    st.sampled_from(["", "", "", ' z:Id="i1" xmlns:z="urn:z"', ' xmlns="urn:a"']),
    st.sampled_from(["", "", "", "text", "<!-- -->", "<?pi?>", "<unknown/>", "<subject/>"]),
)
def test_the_worker_accepts_all_odd_xml_that_the_xml_schema_accepts(
    field: str, content: str, attribute: str, root_attribute: str, sibling: str
) -> None:
    """An odd value, attribute or sibling of a field: the schema may be narrower than the worker, but never wider."""
    text = (
        f'<task_activity_log xmlns:i="http://www.w3.org/2001/XMLSchema-instance"{root_attribute}>'
        f"<{field}{attribute}>{content}</{field}>{sibling}{'' if field == 'id' else f'<id>{ID}</id>'}</task_activity_log>"
    )
    try:
        valid = _valid_xml(text)
    except (UnicodeEncodeError, etree.XMLSyntaxError):
        valid = False

    assert not valid or _accepted(text, wire.XML)


def _accepted(text: str, media_type: str) -> bool:
    try:
        wire.decode(text, media_type)
    except Rejected:
        return False
    return True


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(
            ("due_date", text)
            for text in ("2026-01-11T20:58:34", "2026-01-11T20:58:34.7203833Z", "0001-01-01T00:00:00")
        ),
        *(("due_date", text) for text in (" 2026-01-11T20:58:34+01:00\n", "9999-12-31T23:59:59.9999999-14:00")),
        *(("task_id", text) for text in (ID, f"{{{ID}}}", f" ({ID}) ", "0" * 32, ID.replace("-", "").upper())),
        *(("is_closed", text) for text in ("true", " false\n", "0", "1")),
        *(("subject", text) for text in ("", " a\n", "\U0001f600")),
        ("modified_dateutc", "garbage"),
    ],
)
def test_the_xml_schema_accepts_what_serializers_write(field: str, text: str) -> None:
    """So the test above is not true merely because nothing is valid: usual values pass, in any order, and so does null."""
    assert _valid_xml(f"<task_activity_log><{field}>{text}</{field}><id>{ID}</id></task_activity_log>")
    assert _valid_xml(f"<task_activity_log><id>{ID}</id><{field}>{text}</{field}></task_activity_log>")
    nil = 'i:nil="true" xmlns:i="http://www.w3.org/2001/XMLSchema-instance"'
    assert _valid_xml(f"<task_activity_log><id>{ID}</id><{field} {nil}/></task_activity_log>")


_ZEROS = "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(("id", text) for text in ("", _ZEROS, f"({_ZEROS})", f" {{{_ZEROS}}}\n", "0" * 32)),
        *(("task_id", text) for text in (" ", f"urn:uuid:{ID}", f"{{{ID})", ID[:-1], f"{ID} {ID}")),
        *(("due_date", text) for text in ("2026-02-29T00:00:00", "0000-01-01T00:00:00", "2026-01-11T24:00:00")),
        *(("due_date", text) for text in ("12026-01-11T00:00:00", "-2026-01-11T00:00:00", "2026-01-11T00:00:00+14:01")),
        *(("is_closed", text) for text in (" ", "yes", "2")),
    ],
)
def test_no_schema_accepts_an_edge_value_that_the_worker_rejects(field: str, text: str) -> None:
    """Values at the edges, which random examples seldom include."""
    members = {"id": ID, field: text}
    xml = "".join(f"<{name}>{held}</{name}>" for name, held in members.items())

    assert not _accepted(json.dumps(members), wire.JSON)
    assert not REQUEST.is_valid(members)
    assert not _accepted(f"<task_activity_log>{xml}</task_activity_log>", wire.XML)
    assert not _valid_xml(f"<task_activity_log>{xml}</task_activity_log>")


# ---- the schemas accept what the worker writes

_UTC = st.just(UTC)
_INSTANTS = st.datetimes(timezones=_UTC) | st.sampled_from(
    [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)]
)
_STRINGS = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_KINDS: dict[str, st.SearchStrategy[Any]] = {
    "is_closed": st.none() | st.booleans(),
    "due_date": st.none() | _INSTANTS,
    "date_closed": st.none() | _INSTANTS,
    "subject": _STRINGS,
    "description": _STRINGS,
    "reference_back_office": _STRINGS,
}
_RECORDS = st.fixed_dictionaries(
    {
        "id": st.uuids().filter(lambda value: value.int),
        **{name: _KINDS.get(name, st.none() | st.uuids(allow_nil=True)) for name in FIELDS if name != "id"},
        "modified_dateutc": _INSTANTS,
    }
).map(lambda values: StoredTaskActivityLog(**values))


@given(_RECORDS)
def test_every_reply_is_valid_by_its_schema(record: StoredTaskActivityLog) -> None:
    """Any stored record: in JSON with and without nulls, and in XML."""
    REPLY.validate(json.loads(wire.encode(record, wire.JSON, "emit").body))
    REPLY.validate(json.loads(wire.encode(record, wire.JSON, "omit").body))
    REPLY_XSD.assertValid(etree.fromstring(wire.encode(record, wire.XML).body))


@given(_RECORDS)
def test_a_reply_is_a_valid_request(record: StoredTaskActivityLog) -> None:
    """A reply can be sent back as a request."""
    REQUEST.validate(json.loads(wire.encode(record, wire.JSON).body))
    REQUEST_XSD.assertValid(etree.fromstring(wire.encode(record, wire.XML).body))


@given(
    st.sampled_from(Code),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(
        st.builds(
            FieldError,
            st.sampled_from(FIELDS),
            st.sampled_from(
                [code for code in Code if code.status == 422 and code is not Code.MISROUTED] + [Code.DUPLICATE_FIELD]
            ),
            st.text(st.characters(exclude_categories=["Cs"])),
        ),
        max_size=3,
    ),
)
def test_every_problem_is_valid_by_its_schema(code: Code, detail: str, errors: list[FieldError]) -> None:
    """In JSON and in XML."""
    problem = Problem(code, detail, tuple(errors))

    PROBLEM.validate(json.loads(wire.encode_problem(problem, wire.JSON)))
    PROBLEM_XSD.assertValid(etree.fromstring(wire.encode_problem(problem, wire.XML)))


def test_a_problem_with_the_status_of_another_code_is_invalid() -> None:
    """The schema has one status for each code."""
    problem = json.loads(wire.encode_problem(Problem(Code.MISSING_ID, "Send id."), wire.JSON))

    assert PROBLEM.is_valid(problem)
    assert not PROBLEM.is_valid({**problem, "status": 400})


@pytest.mark.parametrize("field", STORED_FIELDS)
def test_an_xml_reply_without_a_field_or_out_of_order_is_invalid(field: str) -> None:
    """A DataContractSerializer loses fields that are out of order."""
    record = StoredTaskActivityLog(id=UUID(ID), modified_dateutc=datetime(2026, 1, 11, tzinfo=UTC))
    root = etree.fromstring(wire.encode(record, wire.XML).body)
    child = root.find(field)
    assert child is not None
    assert REPLY_XSD.validate(root)

    root.remove(child)
    assert not REPLY_XSD.validate(root)
    root.insert(0 if field != min(STORED_FIELDS) else 1, child)
    assert not REPLY_XSD.validate(root)
