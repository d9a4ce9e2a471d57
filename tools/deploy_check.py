"""Checks the Dockerfile, the Kubernetes manifests and the alerts; one line for each says what was checked, or why not.

kubectl and promtool are used if they are installed; without them less is checked. Kubernetes' own kinds are validated
strictly against its published schemas, of the oldest release that is supported and of the newest known. The resources of
other operators are tested in tests/unit/test_deploy.py.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import yaml

from tools.generated import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RULES = DEPLOY / "prometheus" / "rules.yaml"

OLDEST = "1.30"
"""The first release with preStop's `sleep`, which the base uses."""
OTHERS = ("keda.sh/", "monitoring.coreos.com/", "rabbitmq.com/")
"""API groups of operators: kubernetes-validate has no schemas for their kinds."""

Manifest = dict[str, Any]


class CheckError(Exception):
    """Something is wrong; the text says what and where."""


def check_dockerfile() -> str:
    """Hadolint finds nothing in the Dockerfile."""
    _run([str(Path(sys.executable).with_name("hadolint")), "--no-color", str(DEPLOY / "Dockerfile")])
    return "hadolint finds nothing in the Dockerfile"


def check_alerts() -> str:
    """Every expression parses, and every alert fires when it should and only then."""
    if shutil.which("promtool") is None:
        return "alerts were not tested: promtool is not installed (`make test-deploy` installs it if it may)"
    _run(["promtool", "check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yaml")])
    _run(["promtool", "check", "rules", str(RULES)])
    _run(["promtool", "test", "rules", str(RULES.with_name("tests.yaml"))])
    return "alerts parse, and fire when they should (promtool)"


def check_manifests() -> str:
    """Each overlay, and the base with each component, renders, is valid and refers only to what exists."""
    if shutil.which("kubectl") is None:
        return "Kubernetes manifests were not checked: kubectl is not installed"
    newest = kubernetes_validate.latest_version()
    renderings = dict(_renderings())
    valid: list[Manifest] = []  # most manifests are the same in all renderings: each is validated once
    for name, manifests in renderings.items():
        for manifest in manifests:
            if manifest not in valid:
                _validate(name, manifest, OLDEST)
                _validate(name, manifest, newest)
                valid.append(manifest)
        _check_references(name, manifests)
    return f"{len(renderings)} renderings of Kubernetes manifests are valid in {OLDEST} and {newest}, references too"


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
        raise CheckError(f"{name}: {_named(manifest)} in Kubernetes {version}: {what}") from None


def _check_references(name: str, manifests: Sequence[Manifest]) -> None:
    """Every selector matches something, and what pods use exists: Kubernetes itself does not report either."""
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
            raise CheckError(f"{name}: pods use what does not exist: {missing}")


def _selects(name: str, manifest: Manifest, wanted: dict[str, str], labels: Sequence[dict[str, str]]) -> None:
    if not any(wanted.items() <= found.items() for found in labels):
        raise CheckError(f"{name}: {_named(manifest)} selects nothing: {wanted}")


def _named(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CheckError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def main() -> int:
    """Check everything; returns the exit status."""
    failed = False
    for check in (check_dockerfile, check_manifests, check_alerts):
        try:
            print(f"deploy: {check()}")
        except CheckError as error:
            print(f"deploy: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
