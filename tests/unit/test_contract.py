"""The schemas that `contract` prints are up to date, valid by their own standards, and consistent with the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from lxml import etree
from typer.testing import CliRunner

from task_activity_log import wire
from task_activity_log.cli import CONTRACT_FILES as FILES
from task_activity_log.cli import app
from task_activity_log.message import Properties
from task_activity_log.problem import Code, Problem
from task_activity_log.rabbitmq.dead_letters import copied
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.record import FIELDS, STORED_FIELDS
from task_activity_log.settings import Settings, variable
from task_activity_log.wire import as_xml
from tools.contract_files import FOLDER, describe

DOCS = Path(__file__).parents[2] / "docs" / "contract"
ASYNCAPI: dict[str, Any] = json.loads(describe("asyncapi"))
MESSAGES: dict[str, Any] = ASYNCAPI["components"]["messages"]


@pytest.mark.parametrize("name", FILES)
def test_the_file_in_the_package_is_up_to_date(name: str) -> None:
    """It is what the code generates now."""
    assert (FOLDER / FILES[name]).read_text(encoding="utf-8") == describe(name), "run `make docs`"


@pytest.mark.parametrize("name", FILES)
def test_the_command_prints_each_schema(name: str) -> None:
    """`task-activity-log contract NAME` prints the schema and nothing else."""
    result = CliRunner().invoke(app, ["contract", name])

    assert (result.exit_code, result.stdout) == (0, describe(name))


def test_an_unknown_schema_is_wrong_use() -> None:
    """The command exits with 2 and lists the names that exist."""
    result = CliRunner().invoke(app, ["contract", "wsdl"])

    assert result.exit_code == 2
    assert all(name in result.output for name in FILES)


def test_a_wrong_value_of_an_option_is_told_without_a_word_of_pythons() -> None:
    """Of an option of a command, and of one below a group."""
    for command in (["replies", "--outcome", "rejcted"], ["publish", "--stdin", "yaml", "-"]):
        result = CliRunner().invoke(app, command)
        assert (result.exit_code, "Value error" in result.output) == (2, False)
        assert "is not one of" in result.output


# ---- valid by their own standards


def test_the_asyncapi_document_is_valid() -> None:
    """By the official schema of AsyncAPI 3.0.0."""
    official = json.loads((Path(__file__).parent / "asyncapi-3.0.0.json").read_text(encoding="utf-8"))

    assert [error.message for error in Draft7Validator(official).iter_errors(ASYNCAPI)] == []


@pytest.mark.parametrize("document", [ASYNCAPI, json.loads(describe("json-schema"))], ids=["asyncapi", "json-schema"])
def test_every_reference_in_a_schema_resolves(document: dict[str, Any]) -> None:
    """Each `$ref` points to something in the same document."""
    references = list(_references(document))

    assert references
    for reference in references:
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]


def test_every_operation_uses_messages_of_its_channel() -> None:
    """AsyncAPI requires it of an operation and of its reply."""
    operations = list(ASYNCAPI["operations"].values())
    for operation in [*operations, *(operation["reply"] for operation in operations if "reply" in operation)]:
        channel = operation["channel"]["$ref"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])


def test_the_json_schema_is_valid() -> None:
    """By draft 2020-12; the types in the AsyncAPI document are valid by draft 7, which AsyncAPI uses."""
    Draft202012Validator.check_schema(json.loads(describe("json-schema")))
    for schema in ASYNCAPI["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)


@pytest.mark.parametrize("name", ["xsd", "xsd-reply", "xsd-problem"])
def test_every_xml_schema_is_valid(name: str) -> None:
    """An XML Schema processor compiles it."""
    etree.XMLSchema(etree.fromstring(describe(name).encode()))


def test_patterns_use_only_what_every_regex_dialect_has() -> None:
    """ECMAScript and XML Schema lack possessive quantifiers, look-arounds, named groups and some anchors."""
    patterns = re.findall(r'"pattern": (".*")', describe("json-schema"))
    assert len(patterns) > 5
    for pattern in map(json.loads, patterns):
        assert not re.search(r"\(\?[^:]|[*+?}]\+|\\[AZzdDwWsSb]", pattern), pattern
    for name in ("xsd", "xsd-reply"):
        for pattern in re.findall(r'xs:pattern value="(.*)"', describe(name)):
            assert not re.search(r"\(\?|\$|(?<!\[)\^|\\[AZzdDwWsSb]", pattern), pattern


# ---- examples


@pytest.mark.parametrize("message", [name for name in MESSAGES if name != "deadLetter"])
def test_every_example_is_valid_by_its_schema(message: str) -> None:
    """Its headers too, and the worker accepts the examples of requests."""
    described = MESSAGES[message]
    trait = ASYNCAPI["components"]["messageTraits"][described["traits"][0]["$ref"].rpartition("/")[2]]
    assert described["examples"]
    for example in described["examples"]:
        payload = example["payload"]
        if "x-xsd" in described:
            name = next(name for name, file in FILES.items() if file == described["x-xsd"])
            etree.XMLSchema(etree.fromstring(describe(name).encode())).assertValid(etree.fromstring(payload))
        else:
            Draft7Validator({**ASYNCAPI, **described["payload"]}).validate(payload)
            payload = json.dumps(payload)
        Draft7Validator(trait["headers"]).validate(example.get("headers", {}))
        if message.startswith("upsert"):
            assert wire.decode(payload, described["contentType"]).subject


def test_the_headers_of_a_dead_letter_are_described() -> None:
    """The schema allows every header that a copy has, and a copy has every header that the schema requires."""
    schema = MESSAGES["deadLetter"]["headers"]
    problem = Problem(Code.EMPTY_BODY, "Send the record in the body, which was empty.")
    for properties in (
        Properties(),
        Properties(user_id="guest", expiration="60000", table=b"\1aS" + (200_000).to_bytes(4, "big") + b"x" * 200_000),
    ):
        headers = dict(copied(properties, problem, 131_064, datetime.now(UTC), redelivered=True).headers)
        assert headers.keys() <= schema["properties"].keys()
        Draft7Validator(schema).validate(headers)
    assert headers.keys() == schema["properties"].keys()


# ---- consistent with the code


def test_the_schemas_have_every_name_of_the_code() -> None:
    """Every field, code, status, media type, queue and exchange."""
    topology = Topology()
    names = {*topology.queues(), *topology.exchanges(), *wire.MEDIA_TYPES, wire.PROBLEM_JSON, wire.PROBLEM_XML}
    assert all(f'"{name}"' in describe("asyncapi") for name in names)
    assert {entry["code"]: entry["status"] for entry in ASYNCAPI["x-problems"]} == {code: code.status for code in Code}
    schemas = ASYNCAPI["components"]["schemas"]
    assert tuple(schemas["request"]["properties"]) == tuple(schemas["reply"]["properties"]) == STORED_FIELDS
    for name in ("xsd", "xsd-reply"):
        children = re.findall(r'^ {8}<xs:element name="(\w+)"', describe(name), re.MULTILINE)
        assert children == list(STORED_FIELDS if name == "xsd" else sorted(STORED_FIELDS))


def test_the_readme_has_the_fields_and_the_codes() -> None:
    """Its tables have the same fields, codes and statuses, in the same order."""
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    fields = [name for row in rows for name in re.findall(r"`(\w+)`", row[0]) if name in STORED_FIELDS]
    codes = {name: int(row[1]) for row in rows if row[1].isdigit() for name in re.findall(r"`(\w+)`", row[0])}

    assert fields == [*FIELDS, "modified_dateutc"]
    assert codes == {code.value: code.status for code in Code}


def test_the_readme_has_the_sample_reply() -> None:
    """Its XML reply is what the encoder writes."""
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    reply = MESSAGES["storedXml"]["examples"][0]["payload"]

    assert as_xml.ROOT in reply
    assert re.sub(r"\n *", "", text).count(reply) == 1


def test_the_readme_names_settings_that_exist() -> None:
    """Each variable in it is one of a setting."""
    named = re.findall(r"WORKER_[A-Z_]+", (DOCS / "README.md").read_text(encoding="utf-8"))

    assert named
    assert set(named) <= {variable(field) for field in Settings.model_fields}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
