"""Checks the image's recipe, the manifests and the alerts; says in one line each what was checked, or why it was not.

With --write it writes the Kubernetes component of the alerts from prometheus/rules.yaml instead.

Tools of the machine, kubectl and promtool, are used where they are; a machine without them checks less.
Kubernetes' own kinds are held strictly against its published schemas, of the oldest release that is supported and of
the newest known; the shape of other operators' kinds is held by tests/unit/test_deploy.py.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RULES = DEPLOY / "prometheus" / "rules.yaml"
PROMETHEUS_RULE = KUBERNETES / "components" / "prometheus-rule" / "prometheus-rule.yaml"

OLDEST = "1.30"
"""The first release with preStop's `sleep`, which the base uses."""
OTHERS = ("keda.sh/", "monitoring.coreos.com/", "rabbitmq.com/")
"""Kinds of operators that have no schema here."""

_RULE_HEAD = """\
# Written from deploy/prometheus/rules.yaml by `make docs`; edit that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: task-activity-log-worker
spec:
"""

Manifest = dict[str, Any]


class CheckError(Exception):
    """Something is wrong; the text says what and where."""


def prometheus_rule() -> str:
    """The component's resource: the rules, indented."""
    rules = RULES.read_text(encoding="utf-8")
    return _RULE_HEAD + re.sub("^(?=.)", "  ", rules[rules.index("groups:") :], flags=re.MULTILINE)


def check_prometheus_rule() -> str:
    """The component is what the rules say."""
    if PROMETHEUS_RULE.read_text(encoding="utf-8") != prometheus_rule():
        raise CheckError(f"{PROMETHEUS_RULE.relative_to(ROOT)} is not current; run `make docs`")
    return "the component prometheus-rule is current"


def check_dockerfile() -> str:
    """Nothing that hadolint knows to be unwise."""
    _run([str(Path(sys.executable).with_name("hadolint")), "--no-color", str(DEPLOY / "Dockerfile")])
    return "the Dockerfile has nothing that hadolint knows to be unwise"


def check_alerts() -> str:
    """Every expression parses and fires when it should."""
    if shutil.which("promtool") is None:
        return "alerts were not tried: there is no promtool here (`make test-deploy` installs it where it may)"
    _run(["promtool", "check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yaml")])
    _run(["promtool", "check", "rules", str(RULES)])
    _run(["promtool", "test", "rules", str(RULES.with_name("tests.yaml"))])
    return "alerts parse and fire when they should (promtool)"


def check_manifests() -> str:
    """Each overlay, and the base with each component, renders, is valid and holds together."""
    if shutil.which("kubectl") is None:
        return "Kubernetes manifests were not rendered: there is no kubectl here"
    newest = kubernetes_validate.latest_version()
    renderings = dict(_renderings())
    valid: list[Manifest] = []  # most are the same in all renderings
    for name, manifests in renderings.items():
        for manifest in manifests:
            if manifest not in valid:
                _validate(name, manifest, OLDEST)
                _validate(name, manifest, newest)
                valid.append(manifest)
        _check_references(name, manifests)
    return f"{len(renderings)} renderings of Kubernetes manifests are valid in {OLDEST} and {newest}, and hold together"


def _renderings() -> Iterator[tuple[str, list[Manifest]]]:
    components = sorted(path.parent for path in KUBERNETES.glob("components/*/kustomization.yaml"))
    for overlay in sorted(path.parent for path in KUBERNETES.glob("overlays/*/kustomization.yaml")):
        yield f"overlay {overlay.name}", _render(overlay)
        has = yaml.safe_load((overlay / "kustomization.yaml").read_text(encoding="utf-8")).get("components", [])
        missing = [component for component in components if f"../../components/{component.name}" not in has]
        yield f"overlay {overlay.name} with all components", _render(overlay, missing)
    for component in components:
        yield f"base with {component.name}", _render(KUBERNETES / "base", [component])


def _render(directory: Path, components: Sequence[Path] = ()) -> list[Manifest]:
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch).resolve()
        asked = {
            "resources": [os.path.relpath(directory, here)],
            "components": [os.path.relpath(component, here) for component in components],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
        return list(yaml.safe_load_all(_run(["kubectl", "kustomize", scratch])))


def _validate(name: str, manifest: Manifest, version: str) -> None:
    if manifest["apiVersion"].startswith(OTHERS):
        return
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        what = getattr(error, "message", "") or type(error).__name__
        raise CheckError(f"{name}: {_called(manifest)} in Kubernetes {version}: {what}") from None


def _check_references(name: str, manifests: Sequence[Manifest]) -> None:
    """Nothing that is selected is missing, and every ConfigMap that pods use is there: Kubernetes would not say."""
    there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    pods = [manifest["spec"]["template"] for manifest in manifests if "template" in manifest.get("spec", {})]
    labels = [pod["metadata"]["labels"] for pod in pods]
    services = [manifest["metadata"].get("labels", {}) for manifest in manifests if manifest["kind"] == "Service"]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        match manifest["kind"]:
            case "Service":
                _selects(name, manifest, spec["selector"], labels)
            case "PodDisruptionBudget" | "Deployment":
                _selects(name, manifest, spec["selector"]["matchLabels"], labels)
            case "NetworkPolicy":
                _selects(name, manifest, spec["podSelector"]["matchLabels"], labels)
            case "ServiceMonitor":
                _selects(name, manifest, spec["selector"]["matchLabels"], services)
    for pod in pods:
        sources = [source for container in pod["spec"]["containers"] for source in container.get("envFrom", [])]
        wanted = {("ConfigMap", source["configMapRef"]["name"]) for source in sources}
        if "serviceAccountName" in pod["spec"]:
            wanted.add(("ServiceAccount", pod["spec"]["serviceAccountName"]))
        if missing := wanted - there:
            raise CheckError(f"{name}: pods use what is not there: {missing}")


def _selects(name: str, manifest: Manifest, wanted: dict[str, str], labels: Sequence[dict[str, str]]) -> None:
    if not any(wanted.items() <= found.items() for found in labels):
        raise CheckError(f"{name}: {_called(manifest)} selects nothing: {wanted}")


def _called(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CheckError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def main() -> int:
    """Write, or check everything; returns the exit status."""
    if "--write" in sys.argv[1:]:
        PROMETHEUS_RULE.write_text(prometheus_rule(), encoding="utf-8")
        return 0
    failed = False
    for check in (check_dockerfile, check_manifests, check_prometheus_rule, check_alerts):
        try:
            print(f"deploy: {check()}")
        except CheckError as error:
            print(f"deploy: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
