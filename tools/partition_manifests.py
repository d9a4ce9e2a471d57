"""Writes the queues and bindings of the partitions as resources of RabbitMQ's topology operator; with --check it compares.

The number of partitions is WORKER_PARTITIONS in the component `partitions`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from task_activity_log.rabbitmq.topology import Topology
from tools.generated import ROOT, write_or_check

COMPONENTS = ROOT / "deploy" / "kubernetes" / "components"
PARTITIONS = COMPONENTS / "partitions" / "kustomization.yaml"
MANIFESTS = COMPONENTS / "rabbitmq-topology-partitions" / "partitions.yaml"

_SETTING = "WORKER_PARTITIONS="
_HEAD = """\
# Written by `python -m tools.partition_manifests` (part of `make docs`). One resource a line: there are 256 bindings.
"""
_OPERATOR = {"rabbitmqClusterReference": {"name": "rabbitmq"}}
_PLACE = {"vhost": "/", "durable": True, "autoDelete": False}


def manifests() -> str:
    """A line for each resource: JSON, which is YAML too."""
    component = yaml.safe_load(PARTITIONS.read_text(encoding="utf-8"))
    (literal,) = component["configMapGenerator"][0]["literals"]
    topology = Topology(partitions=int(literal.removeprefix(_SETTING)))
    return _HEAD + "".join(f"---\n{json.dumps(resource)}\n" for resource in _resources(topology))


def _resources(topology: Topology) -> Iterator[Mapping[str, Any]]:
    plain = Topology()
    for queue, arguments in topology.queues().items():
        if queue not in plain.queues():
            rest = {name: value for name, value in (arguments or {}).items() if name != "x-queue-type"}
            spec = {"name": queue, **_PLACE, "type": "quorum", "deletionPolicy": "retain", "arguments": rest}
            yield _resource("Queue", queue, spec)
    for exchange, type_ in topology.exchanges().items():
        if exchange not in plain.exchanges():
            yield _resource("Exchange", exchange, {"name": exchange, **_PLACE, "type": type_})
    for queue, exchange, key in topology.bindings():
        if (queue, exchange, key) not in plain.bindings():
            to = {"source": exchange, "destination": queue, "destinationType": "queue", "routingKey": key}
            yield _resource("Binding", f"{exchange}.{key}", {"vhost": "/", **to})


def _resource(kind: str, name: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    allowed = name.replace("_", "-").replace(".", "-")  # in names of resources
    head = {"apiVersion": "rabbitmq.com/v1beta1", "kind": kind, "metadata": {"name": allowed}}
    return {**head, "spec": {**spec, **_OPERATOR}}


def main() -> int:
    """Rewrite the resources, or check them."""
    return write_or_check({MANIFESTS: manifests()})


if __name__ == "__main__":
    sys.exit(main())
