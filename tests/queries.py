"""The queries of the alerts and the dashboard."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "task-activity-log-worker.json"
RULES = DEPLOY / "prometheus" / "rules.yaml"

_SELECTOR = re.compile(r"\b((?:task_activity_log|rabbitmq_detailed|process)_[a-z_]+)(\{[^}]*\})?")


def alerts() -> dict[str, Mapping[str, Any]]:
    """The alerts' rules by name."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def panels() -> list[tuple[str, str]]:
    """The title and the expression of each query on the dashboard, with its variables."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    drawn = [(p["title"], target["expr"]) for p in dashboard["panels"] for target in p.get("targets", [])]
    return drawn + [(note["name"], note["expr"]) for note in dashboard["annotations"]["list"]]


def as_drawn(expression: str, *, interval: str = "1m") -> str:
    """An expression of the dashboard with its variables replaced as Grafana would, with everything selected."""
    for variable, value in {"$__rate_interval": interval, "$namespace": ".*", "$job": ".*"}.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def selectors(expression: str) -> dict[str, str]:
    """The selectors in an expression, each with the name of its metric."""
    return {found.group(): found[1] for found in _SELECTOR.finditer(expression)}
