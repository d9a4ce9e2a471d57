"""What is deployed fits what is built: names of metrics, settings, queues, limits. `make check` renders and validates."""

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from task_activity_log.cli import WRONG_USE
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings, load
from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.telemetry.names import METRICS
from tests import queries
from tests.queries import DEPLOY

KUBERNETES = DEPLOY / "kubernetes"
FROM_RABBITMQ = {
    f"rabbitmq_detailed_queue_{name}" for name in ("messages", "messages_ready", "messages_unacked", "consumers")
}
URLS = {"AMQP_URL": "amqp://broker", "DATABASE_URL": "postgresql://database"}


@cache
def manifest(path: str, kind: str) -> dict[str, Any]:
    """The one resource of that kind in a file below deploy/kubernetes."""
    (found,) = [each for each in manifests(path) if each["kind"] == kind]
    return found


def manifests(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / path).read_text(encoding="utf-8")))


def exposed() -> set[str]:
    """Every series that a worker shows, by name."""
    names = {
        line.split("{")[0].split(" ")[0] for line in Metrics().exposition().decode().splitlines() if line[0] != "#"
    }
    return names | set(METRICS)


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((name, rule["expr"]) for name, rule in queries.alerts().items())
    yield from ((title, queries.as_drawn(expression)) for title, expression in queries.panels())


def test_alerts_and_dashboard_ask_for_nothing_that_is_not_there() -> None:
    """A query with a name that nobody shows is silent for ever."""
    there = exposed() | FROM_RABBITMQ
    for title, expression in expressions():
        asked = set(queries.selectors(expression).values())
        assert asked <= there, title
        assert asked or expression.startswith("count(ALERTS"), title


def test_every_metric_of_the_worker_is_asked_for() -> None:
    """What is worth counting is worth showing; the draining gauge explains unready pods, and logs tell it too."""
    asked = {name for _, expression in expressions() for name in queries.selectors(expression).values()}
    assert {name for name in METRICS if not any(each.startswith(name) for each in asked)} == {
        "task_activity_log_draining"
    }


def test_the_dashboard_asks_four_questions_in_order_and_explains_its_answers() -> None:
    """Whoever looks at night reads from the top; each panel says what it means."""
    panels = json.loads(queries.DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Is it well?",
        "Is it keeping up?",
        "What is it refusing?",
        "Where is the time?",
    ]
    assert [panel["title"] for panel in panels if panel["type"] != "row" and not panel["description"]] == []
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("name", queries.alerts())
def test_every_alert_says_how_bad_what_and_where_to_read_on(name: str) -> None:
    """The one woken at night has a summary and a place in the runbook."""
    rule = queries.alerts()[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    assert rule["annotations"]["summary"].endswith(".")


def environment_of_the_base() -> dict[str, str]:
    lines = (KUBERNETES / "base" / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_pod_lives_longer_than_its_drain() -> None:
    """preStop, the drain and closing the connections fit into the grace period."""
    pod = manifest("base/deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    settings = load(URLS | environment_of_the_base())
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + settings.drain_limit_seconds + 5
    assert pod["containers"][0]["ports"] == [{"name": "http", "containerPort": settings.http_port}]


@pytest.mark.parametrize("path", ["base/deployment.yaml", "base/migration-job.yaml"])
def test_pods_may_do_nothing_that_they_need_not(path: str) -> None:
    """The restricted standard, and a file system that cannot be written to."""
    pod = manifests(path)[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [volume for volume in pod["volumes"] if "secret" not in volume] == []
    assert f"USER {pod['securityContext']['runAsUser']}:" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def test_the_job_gives_up_at_once_on_a_wrong_setting_and_goes_when_done() -> None:
    """Its exit code is the command's, and a template that cannot be changed is out of the way of the next release."""
    spec = manifest("base/migration-job.yaml", "Job")["spec"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [WRONG_USE]
    assert spec["ttlSecondsAfterFinished"] > 0


def test_a_disruption_is_allowed_in_an_outage() -> None:
    """Then all workers are unready, and nodes must still be drained."""
    spec = manifest("base/pod-disruption-budget.yaml", "PodDisruptionBudget")["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


# ---- resources of other operators, whose schemas are not at hand


def test_the_topology_of_the_operators_is_the_worker_s() -> None:
    """What one declares the other finds unchanged; queues outlive their resources."""
    ours, base = Topology(), "components/rabbitmq-topology/"
    queues = {each["spec"]["name"]: each["spec"] for each in manifests(base + "queues.yaml")}
    assert {name: {"x-queue-type": spec["type"], **spec["arguments"]} for name, spec in queues.items()} == ours.queues()
    for spec in queues.values():
        assert (spec["durable"], spec["autoDelete"], spec["deletionPolicy"]) == (True, False, "retain")
    rest = manifests(base + "exchanges.yaml")
    exchanges = {each["spec"]["name"]: each["spec"]["type"] for each in rest if each["kind"] == "Exchange"}
    assert exchanges == ours.exchanges()
    bindings = [each["spec"] for each in rest if each["kind"] == "Binding"]
    assert [(b["destination"], b["source"], b["routingKey"]) for b in bindings] == list(ours.bindings())
    assert {b["destinationType"] for b in bindings} == {"queue"}


def test_limits_are_policies_and_refuse_instead_of_losing() -> None:
    """Each queue has exactly one policy, and no policy drops messages."""
    policies = [each["spec"] for each in manifests("components/rabbitmq-topology/policies.yaml")]
    for queue in Topology().queues():
        assert sum(bool(re.search(policy["pattern"], queue)) for policy in policies) == 1, queue
    for policy in policies:
        assert policy["applyTo"] == "queues"
        assert policy["definition"]["overflow"] == "reject-publish"
        assert policy["definition"]["max-length-bytes"] > 0


def test_everything_of_the_broker_s_operator_names_a_cluster() -> None:
    """And the right version of its kinds."""
    for path in sorted((KUBERNETES / "components" / "rabbitmq-topology").glob("[!k]*.yaml")):
        for each in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            assert each["apiVersion"] == "rabbitmq.com/v1beta1"
            assert each["spec"]["rabbitmqClusterReference"] == {"name": "rabbitmq"}
            assert each["spec"]["vhost"] == "/"


def test_scaling_counts_what_is_in_hand_and_goes_down_slower_than_a_batch() -> None:
    """A worker with a full hand is not idle, and one that leaves has time to finish."""
    settings = Settings.model_fields
    scaled = manifest("components/keda/scaled-object.yaml", "ScaledObject")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    (trigger,) = scaled["spec"]["triggers"]
    wanted = {
        "protocol": "http",
        "excludeUnacknowledged": "false",
        "mode": "QueueLength",
        "queueName": settings["requests_queue"].default,
    }
    assert wanted.items() <= trigger["metadata"].items()
    assert trigger["authenticationRef"]["name"] == "task-activity-log-worker"
    down = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    slowest = settings["database_command_timeout_seconds"].default + settings["confirm_timeout_seconds"].default
    assert min(down["stabilizationWindowSeconds"], down["policies"][0]["periodSeconds"]) > slowest
    assert down["policies"][0]["value"] == 1
    assert scaled["spec"]["minReplicaCount"] >= 1


def test_prometheus_finds_the_workers_by_their_service() -> None:
    """The monitor's port and labels are the Service's."""
    monitor = manifest("components/service-monitor/service-monitor.yaml", "ServiceMonitor")
    service = manifest("base/service.yaml", "Service")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_the_rules_are_a_resource_too() -> None:
    """Group by group what Prometheus itself reads."""
    resource = manifest("components/prometheus-rule/prometheus-rule.yaml", "PrometheusRule")
    assert resource["spec"] == yaml.safe_load(queries.RULES.read_text(encoding="utf-8"))


# ---- the compose file


def compose() -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_compose_starts_the_worker_with_settings_that_it_takes() -> None:
    """As locked up as on Kubernetes, and with longer to stop than its drain."""
    worker = compose()["services"]["worker"]
    settings = load(worker["environment"])
    assert float(worker["stop_grace_period"].removesuffix("s")) > settings.drain_limit_seconds
    assert (worker["read_only"], worker["cap_drop"]) == (True, ["ALL"])
    assert "tmpfs" not in worker


def test_compose_mounts_what_there_is_and_opens_ports_to_this_machine_alone() -> None:
    """A file that is missing would become an empty directory."""
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose()["volumes"] or (DEPLOY / source).exists(), source


def test_compose_has_prometheus_scrape_the_worker_and_the_queues() -> None:
    """The targets are its services, and the exporter is asked for the families that the alerts need."""
    scrapes = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {
        target.split(":")[0] for each in scrapes for config in each["static_configs"] for target in config["targets"]
    }
    assert targets == {"worker", "rabbitmq"} <= set(compose()["services"])
    (detailed,) = [each for each in scrapes if each["job_name"] == "rabbitmq"]
    assert detailed["metrics_path"] == "/metrics/detailed"


def test_the_build_context_holds_what_the_image_is_made_of() -> None:
    """Whatever the Dockerfile copies is let through by .dockerignore."""
    root = DEPLOY.parent
    allowed = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in " ".join(copied).split():
        assert Path(root, name).exists()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in allowed), name
