"""Writes the alerts, deploy/prometheus/rules.yaml, as a Kubernetes resource; with --check it compares instead."""

import re
import sys

from tools.generated import ROOT, write_or_check

RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
RESOURCE = ROOT / "deploy" / "kubernetes" / "components" / "prometheus-rule" / "prometheus-rule.yaml"

_HEAD = """\
# Written from deploy/prometheus/rules.yaml by `make docs`; edit that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: task-activity-log-worker
spec:
"""


def resource() -> str:
    """The rules, indented below the head of a PrometheusRule."""
    rules = RULES.read_text(encoding="utf-8")
    return _HEAD + re.sub("^(?=.)", "  ", rules[rules.index("groups:") :], flags=re.MULTILINE)


def main() -> int:
    """Rewrite the resource, or check it."""
    return write_or_check({RESOURCE: resource()})


if __name__ == "__main__":
    sys.exit(main())
