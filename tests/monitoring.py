"""What dashboards and alert rules ask of Prometheus."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.servers import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/hilum.json").read_text("utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]


def expressions() -> Iterator[str]:
    """Yield every expression of dashboard and rules."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for rule in RULES:
        yield rule["expr"]


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield our metrics in an expression with the labels that are matched."""
    for name, matchers in re.findall(r"\b(hilum_[a-z_]+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
