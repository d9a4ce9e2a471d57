"""The files in deploy/ match the product: metrics, settings, queues, limits. `make check` renders and validates them."""

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from task_activity_log.cli.exit_codes import WRONG_USE
from task_activity_log.console import settings as console
from task_activity_log.console.users import PasswordFile
from task_activity_log.partitions import PARTITIONS_MAX
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
    """The only resource of that kind in a file in deploy/kubernetes."""
    (found,) = [each for each in manifests(path) if each["kind"] == kind]
    return found


def manifests(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / path).read_text(encoding="utf-8")))


def exposed() -> set[str]:
    """The name of every series that a worker exposes."""
    names = {
        line.split("{")[0].split(" ")[0] for line in Metrics().exposition().decode().splitlines() if line[0] != "#"
    }
    return names | set(METRICS)


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((name, rule["expr"]) for name, rule in queries.alerts().items())
    yield from ((title, queries.as_drawn(expression)) for title, expression in queries.panels())


def test_alerts_and_dashboard_query_only_metrics_that_exist() -> None:
    """A query for a metric that nothing exposes would never return anything."""
    there = exposed() | FROM_RABBITMQ
    for title, expression in expressions():
        asked = set(queries.selectors(expression).values())
        assert asked <= there, title
        assert asked or expression.startswith("count(ALERTS"), title


def test_alerts_and_dashboard_query_every_metric_of_the_worker() -> None:
    """All but the draining gauge, which explains why a pod is not ready; the log says so as well."""
    asked = {name for _, expression in expressions() for name in queries.selectors(expression).values()}
    assert {name for name in METRICS if not any(each.startswith(name) for each in asked)} == {
        "task_activity_log_draining"
    }


def test_the_dashboard_has_five_rows_and_every_panel_has_a_description() -> None:
    """The rows are questions, the most urgent first."""
    panels = json.loads(queries.DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Is it healthy?",
        "Is it keeping up?",
        "What does it reject?",
        "Where does the time go?",
        "How are the partitions shared?",
    ]
    assert [panel["title"] for panel in panels if panel["type"] != "row" and not panel["description"]] == []
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("name", queries.alerts())
def test_every_alert_has_a_severity_a_summary_and_a_link_to_the_runbook(name: str) -> None:
    """Whoever is woken by it can see how bad it is, what happened, and where to read what to do."""
    rule = queries.alerts()[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    assert rule["annotations"]["summary"].endswith(".")


def environment_of_the_base() -> dict[str, str]:
    lines = (KUBERNETES / "base" / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def with_partitions() -> dict[str, str]:
    component = yaml.safe_load((KUBERNETES / "components/partitions/kustomization.yaml").read_text(encoding="utf-8"))
    return dict(line.split("=", 1) for line in component["configMapGenerator"][0]["literals"])


def test_the_grace_period_is_longer_than_a_drain() -> None:
    """preStop, the drain and closing the connections fit into it."""
    pod = manifest("base/deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    settings = load(URLS | environment_of_the_base())
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + settings.drain_limit_seconds + 5
    assert pod["containers"][0]["ports"] == [{"name": "http", "containerPort": settings.http_port}]


@pytest.mark.parametrize(
    "path", ["base/deployment.yaml", "base/migration-job.yaml", "components/console/deployment.yaml"]
)
def test_pods_have_only_the_privileges_that_they_need(path: str) -> None:
    """They meet the restricted pod security standard, and their file system is read-only."""
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


def test_the_migration_job_fails_at_once_on_a_wrong_setting_and_is_deleted_when_done() -> None:
    """The exit code is that of the command. A job cannot be changed, so the old one must be gone before the next release."""
    spec = manifest("base/migration-job.yaml", "Job")["spec"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [WRONG_USE]
    assert spec["ttlSecondsAfterFinished"] > 0


def test_nodes_can_be_drained_during_an_outage() -> None:
    """No worker is ready then, and the disruption budget must not protect pods that are not ready."""
    spec = manifest("base/pod-disruption-budget.yaml", "PodDisruptionBudget")["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


# ---- resources of other operators: `make check` has no schemas for them


def test_the_topology_operator_declares_what_the_worker_declares() -> None:
    """With the same arguments, and deleting a resource does not delete its queue."""
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


def test_every_queue_has_one_policy_and_it_rejects_publishes_at_the_limit() -> None:
    """Limits are policies, so that they can be changed, and no policy drops messages."""
    policies = [
        each["spec"]
        for path in ("rabbitmq-topology/policies.yaml", "rabbitmq-topology-partitions/policy.yaml")
        for each in manifests(f"components/{path}")
    ]
    nothing_is_published_to = {Topology().workers_queue, Topology().short_workers_queue}
    for queue in set(Topology(partitions=16).queues()) - nothing_is_published_to:
        assert sum(bool(re.search(policy["pattern"], queue)) for policy in policies) == 1, queue
    for policy in policies:
        assert policy["applyTo"] == "queues"
        assert policy["definition"]["overflow"] == "reject-publish"
        assert policy["definition"]["max-length-bytes"] > 0


def test_every_resource_of_the_topology_operator_names_a_cluster_and_a_virtual_host() -> None:
    """And has the right API version."""
    for path in sorted((KUBERNETES / "components").glob("rabbitmq-topology*/[!k]*.yaml")):
        for each in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            assert each["apiVersion"] == "rabbitmq.com/v1beta1"
            assert each["spec"]["rabbitmqClusterReference"] == {"name": "rabbitmq"}
            assert each["spec"]["vhost"] == "/"


def test_scaling_counts_unsettled_messages_and_removes_workers_slowly() -> None:
    """A worker with unsettled messages is not idle, and one that is removed has the time to finish its batch."""
    settings = Settings.model_fields
    scaled = manifest("components/keda/scaled-object.yaml", "ScaledObject")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    (trigger,) = scaled["spec"]["triggers"]
    wanted = {
        "protocol": "http",
        "excludeUnacknowledged": "false",
        "mode": "QueueLength",
        "useRegex": "true",
        "operation": "sum",
    }
    assert wanted.items() <= trigger["metadata"].items()
    assert trigger["authenticationRef"]["name"] == "task-activity-log-worker"
    down = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    slowest = settings["database_command_timeout_seconds"].default + settings["confirm_timeout_seconds"].default
    assert min(down["stabilizationWindowSeconds"], down["policies"][0]["periodSeconds"]) > slowest
    assert down["policies"][0]["value"] == 1
    assert scaled["spec"]["minReplicaCount"] >= 1


@pytest.mark.parametrize("partitions", [0, 16, PARTITIONS_MAX])
def test_scaling_counts_the_messages_of_every_request_queue_and_of_no_other(partitions: int) -> None:
    """RabbitMQ's management API searches for the expression, and KEDA fails if there are more queues than fit on a page."""
    (trigger,) = manifest("components/keda/scaled-object.yaml", "ScaledObject")["spec"]["triggers"]
    topology = Topology(partitions=partitions)
    others = (f"other.{topology.requests_queue}", f"{topology.requests_queue}.retry", f"{topology.requests_queue}s")
    found = [
        name for name in (*topology.queues(), *others) if re.search(trigger["metadata"]["queueName"], name) is not None
    ]
    assert sorted(found) == sorted(topology.request_queues)
    assert len(found) < int(trigger["metadata"]["pageSize"]) <= 500  # the management API's own limit


def test_partitions_are_consumed_by_several_workers_and_releases_have_no_pause() -> None:
    """The settings are valid, there are no more workers than partitions, and a new pod is ready before an old one ends."""
    component = yaml.safe_load((KUBERNETES / "components/partitions/kustomization.yaml").read_text(encoding="utf-8"))
    settings = load(URLS | environment_of_the_base() | with_partitions())
    spec = yaml.safe_load(component["patches"][0]["patch"])["spec"]
    scaled = manifest("components/keda/scaled-object.yaml", "ScaledObject")["spec"]
    assert 1 < spec["replicas"] <= settings.partitions
    assert scaled["maxReplicaCount"] <= settings.partitions
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_the_topology_operator_declares_the_partitions_that_the_workers_declare() -> None:
    """The two components together, for the number of partitions in the component `partitions`."""
    ours = Topology(partitions=int(with_partitions()["WORKER_PARTITIONS"]))
    base, more = "components/rabbitmq-topology/", "components/rabbitmq-topology-partitions/"
    component = yaml.safe_load((KUBERNETES / more / "kustomization.yaml").read_text(encoding="utf-8"))
    (patch,) = component["patches"]
    ((operation),) = yaml.safe_load(patch["patch"])
    everything = [
        *manifests(base + "queues.yaml"),
        *manifests(base + "exchanges.yaml"),
        *manifests(more + "partitions.yaml"),
    ]
    queues = {
        each["spec"]["name"]: {"x-queue-type": each["spec"]["type"], **each["spec"]["arguments"]}
        for each in everything
        if each["kind"] == "Queue"
    }
    (patched,) = [
        each for each in everything if each["metadata"]["name"] == patch["target"]["name"] and each["kind"] == "Queue"
    ]
    assert operation["path"] == "/spec/arguments/x-single-active-consumer"
    queues[patched["spec"]["name"]]["x-single-active-consumer"] = operation["value"]
    assert queues == ours.queues()
    exchanges = {each["spec"]["name"]: each["spec"]["type"] for each in everything if each["kind"] == "Exchange"}
    assert exchanges == ours.exchanges()
    bindings = [each["spec"] for each in everything if each["kind"] == "Binding"]
    assert {(b["destination"], b["source"], b["routingKey"]) for b in bindings} == set(ours.bindings())
    assert len(bindings) == len(ours.bindings())
    assert all(
        (each["spec"]["durable"], each["spec"]["autoDelete"], each["spec"]["deletionPolicy"]) == (True, False, "retain")
        for each in everything
        if each["kind"] == "Queue"
    )
    names = [(each["kind"], each["metadata"]["name"]) for each in everything]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]{1,63}", name) for _, name in names)


def test_the_service_monitor_selects_the_service_of_the_workers() -> None:
    """Its port is one of the Service's, and pods that are not ready are scraped too."""
    monitor = manifest("components/service-monitor/service-monitor.yaml", "ServiceMonitor")
    service = manifest("base/service.yaml", "Service")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_the_prometheus_rule_has_the_alerts() -> None:
    """The same groups as in the file for Prometheus itself."""
    resource = manifest("components/prometheus-rule/prometheus-rule.yaml", "PrometheusRule")
    assert resource["spec"] == yaml.safe_load(queries.RULES.read_text(encoding="utf-8"))


def test_the_console_has_valid_settings_and_reaches_the_workers_and_nothing_else() -> None:
    """It has no secret of the workers, and asks who its users are."""
    spec = manifest("components/console/deployment.yaml", "Deployment")["spec"]
    assert spec["replicas"] == 1, "each console remembers only its own actions"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    component = yaml.safe_load((KUBERNETES / "components/console/kustomization.yaml").read_text(encoding="utf-8"))
    (generated,) = component["configMapGenerator"]
    assert container["envFrom"] == [{"configMapRef": {"name": generated["name"]}}]
    variables = dict(line.split("=", 1) for line in generated["literals"])
    own = {name: value for name, value in variables.items() if name.startswith("CONSOLE_")}
    assert set(own) <= {console.variable(field) for field in console.ConsoleSettings.model_fields}
    (secret,) = [volume["secret"]["secretName"] for volume in pod["volumes"]]
    assert secret == "task-activity-log-console"  # noqa: S105 - its name
    service = manifest("base/service.yaml", "Service")
    assert own["CONSOLE_WORKERS"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert container["ports"] == [
        {"name": "http", "containerPort": console.ConsoleSettings.model_fields["port"].default}
    ]
    policy, admitted = manifests("components/console/network-policy.yaml")
    assert admitted["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {53, 5671, 5672, 5432, 8080}
    memory = console.ConsoleSettings.model_fields["memory_limit_bytes"].default
    assert int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20 >= 3 * memory


# ---- the compose file


def compose() -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_compose_starts_the_worker_with_valid_settings_and_few_privileges() -> None:
    """As few as on Kubernetes, and with more time to stop than a drain takes."""
    worker = compose()["services"]["worker"]
    settings = load(worker["environment"])
    assert float(worker["stop_grace_period"].removesuffix("s")) > settings.drain_limit_seconds
    assert (worker["read_only"], worker["cap_drop"]) == (True, ["ALL"])
    assert "tmpfs" not in worker


def test_compose_starts_the_console_with_a_password() -> None:
    """Listening on all addresses, it would refuse to start without; in the container's file is a user `trial`."""
    service = compose()["services"]["console"]
    variables = {name: value for name, value in service["environment"].items() if name.startswith("CONSOLE_")}
    file, inside, _ = service["volumes"][0].split(":")
    assert variables["CONSOLE_PASSWORD_FILE"] == inside
    settings = console.load(variables | {"CONSOLE_PASSWORD_FILE": str(DEPLOY / file)})
    assert (settings.host, settings.workers) == ("0.0.0.0", ("http://worker:8080",))  # noqa: S104
    user = PasswordFile.read(DEPLOY / file).user("trial", "trial")
    assert user is not None
    assert user.acts


def test_compose_mounts_files_that_exist_and_opens_ports_on_loopback_only() -> None:
    """Docker would make an empty directory of a file that is missing."""
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose()["volumes"] or (DEPLOY / source).exists(), source


def test_compose_has_prometheus_scrape_the_worker_and_the_queues() -> None:
    """The targets are services of the compose file, and RabbitMQ is asked for its detailed metrics."""
    scrapes = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {
        target.split(":")[0] for each in scrapes for config in each["static_configs"] for target in config["targets"]
    }
    assert targets == {"worker", "rabbitmq"} <= set(compose()["services"])
    (detailed,) = [each for each in scrapes if each["job_name"] == "rabbitmq"]
    assert detailed["metrics_path"] == "/metrics/detailed"


def test_the_build_context_has_every_file_that_the_dockerfile_copies() -> None:
    """Each exists, and .dockerignore does not exclude it."""
    root = DEPLOY.parent
    allowed = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in " ".join(copied).split():
        assert Path(root, name).exists()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in allowed), name
