"""Prometheus' configuration, the alert rules and the dashboard agree with code, compose and runbook."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring import DASHBOARD, PROMETHEUS, RULES, expressions, selectors
from tests.servers import ROOT, executable

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
RUNBOOK = (ROOT / "deploy" / "runbook.md").read_text("utf-8")
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"


def anchors() -> set[str]:
    """Return the anchors of the runbook's headings, as GitHub makes them."""
    headings = re.findall(r"^##+ (.*)$", RUNBOOK, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def promtool(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [executable("promtool", "prometheus"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "token").write_text("secret")
    config = tmp_path / "prometheus.yml"
    config.write_text(config.read_text().replace("/run/secrets/metrics_token", str(tmp_path / "token")))
    assert f"{len(RULES)} rules found" in promtool("check", "config", "prometheus.yml", folder=tmp_path)


def test_the_rules_say_what_they_should_and_nothing_else() -> None:
    files = sorted(path.name for path in PROMETHEUS.glob("*.test.yml"))
    promtool("test", "rules", *files, folder=PROMETHEUS)
    tried = "".join((PROMETHEUS / file).read_text("utf-8") for file in files)
    for rule in RULES:
        assert rule["alert"] in tried, f"no test lets {rule['alert']} fire"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_its_place_in_the_runbook(rule: dict[str, dict[str, str]]) -> None:
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert document == "runbook.md"
    assert anchor in anchors()
    assert f"| `{rule['alert']}` | [" in RUNBOOK
    assert f"](#{anchor}) |" in RUNBOOK
    assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_every_link_inside_the_runbook_leads_somewhere() -> None:
    linked = set(re.findall(r"\]\(#([\w-]+)\)", RUNBOOK))
    assert linked <= anchors()


def test_prometheus_asks_the_api_with_the_secret_that_compose_gives_it() -> None:
    (job,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["api:8080"]}]
    (secret,) = COMPOSE["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert set(COMPOSE["services"]["prometheus"]["networks"]) & set(COMPOSE["services"]["api"]["networks"])
    assert "./deploy/prometheus:/etc/prometheus:ro" in COMPOSE["services"]["prometheus"]["volumes"]
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])


def test_secrets_are_files_that_are_never_committed() -> None:
    for secret in COMPOSE["secrets"].values():
        asked = subprocess.run(["git", "check-ignore", "-q", secret["file"]], cwd=ROOT, check=False)
        assert asked.returncode == 0, secret["file"]
    environment = COMPOSE["services"]["grafana"]["environment"]
    (secret,) = COMPOSE["services"]["grafana"]["secrets"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == f"/run/secrets/{secret}"
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_grafana_finds_its_prometheus_and_its_dashboard() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    named = {
        target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
    }
    assert named == {source["uid"]}
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/hilum.yml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in COMPOSE["services"]["grafana"]["volumes"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_expression_asks_for_something_of_ours() -> None:
    for expression in expressions():
        named = [name for name, _ in selectors(expression)]
        assert named or "up{" in expression or "ALERTS" in expression, expression
