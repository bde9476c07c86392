"""The manifests of deploy/kubernetes as kubectl renders them: their schemas, and what they name among themselves."""

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from fakes.deployment import DEPLOY, OVERLAYS, SECRET, documents, needs_kubectl, rendered, rendered_folder
from fakes.jobs import ERROR, job
from fakes.processes import ROOT

from server.jobs.storage.databases.open_database import open_database
from server.jobs.storage.databases.postgres_connections import MAX_CONNECTIONS
from server.jobs.storage.store import JobStore

pytestmark = needs_kubectl

SCHEMAS = Path(__file__).parent / "schemas"
VERSIONS = ("1.30", "1.37")  # of Kubernetes: the oldest and the newest that are checked
LOAD_SECONDS = 900  # ZIMAGE_LOAD_SECONDS of the workers

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_follow_the_schemas_of_kubernetes(version: str) -> None:
    checked = 0
    for manifest in {json.dumps(each, sort_keys=True): each for name in OVERLAYS for each in rendered(name)}.values():
        if not manifest["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(manifest, version, strict=True)
            checked += 1
    assert checked > 20


def test_manifests_of_keda_follow_its_schemas() -> None:
    found = [each for each in rendered("gpu-redis") if each["apiVersion"] == "keda.sh/v1alpha1"]
    assert sorted(each["kind"] for each in found) == ["ScaledObject", "TriggerAuthentication"]
    for manifest in found:
        (definition,) = documents((SCHEMAS / f"{manifest['kind'].lower()}s.yaml").read_text())
        jsonschema.validate(manifest, strict(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))


@every_overlay
def test_selectors_find_the_pods_of_one_workload(overlay: str) -> None:
    pods = [pod for _, pod in workloads(overlay)]
    selectors = [
        each["spec"]["selector"] if each["kind"] == "Service" else each["spec"]["selector"]["matchLabels"]
        for each in rendered(overlay)
        if each["kind"] in ("Service", "PodDisruptionBudget")
    ]
    assert len(selectors) >= 5
    for selector in selectors:
        matching = [pod for pod in pods if selector.items() <= pod["metadata"]["labels"].items()]
        assert len(matching) == 1, selector


@every_overlay
def test_scalers_name_a_deployment_that_leaves_them_its_replicas(overlay: str) -> None:
    deployments = {each["metadata"]["name"]: each for each in rendered(overlay) if each["kind"] == "Deployment"}
    scalers = [each for each in rendered(overlay) if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    assert scalers
    for scaler in scalers:
        assert "replicas" not in deployments[scaler["spec"]["scaleTargetRef"]["name"]]["spec"]


@every_overlay
def test_policies_select_pods_with_the_ports_that_they_name(overlay: str) -> None:
    pods = [pod for _, pod in workloads(overlay)]
    policies = [each for each in rendered(overlay) if each["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in [each["spec"] for each in policies]
    for policy in policies:
        selected = [pod for pod in pods if matches(policy["spec"]["podSelector"], pod["metadata"]["labels"])]
        assert selected, policy["metadata"]["name"]
        ports = {port["name"] for pod in selected for port in ports_of(pod)}
        for rule in policy["spec"].get("ingress", ()):
            assert {port["port"] for port in rule["ports"]} <= ports
    servers = {
        port for name, pod in workloads(overlay) for port in ports_of(pod, "containerPort") if "zimage" not in name
    }
    (outward,) = (each for each in policies if each["metadata"]["name"] == "to-services")
    assert servers <= {port["port"] for rule in outward["spec"]["egress"] for port in rule["ports"]}


@every_overlay
def test_probes_ask_ports_of_their_container(overlay: str) -> None:
    probed = set()
    for name, pod in workloads(overlay):
        for container in pod["spec"]["containers"]:
            names = {port["name"] for port in container["ports"]}
            probes = {kind: container[kind] for kind in container if kind.endswith("Probe")}
            probed |= {(name, kind) for kind in probes}
            for probe in probes.values():
                asked = probe.get("httpGet", probe.get("tcpSocket"))
                assert asked is None or asked["port"] in names
    assert {(name, kind) for name, _ in workloads(overlay) for kind in ("readinessProbe", "livenessProbe")} <= probed


@every_overlay
def test_secrets_are_those_of_the_documentation(overlay: str) -> None:
    named = [
        (reference["name"], reference["key"])
        for _, pod in workloads(overlay)
        for container in pod["spec"]["containers"]
        for variable in container.get("env", ())
        if (reference := variable.get("valueFrom", {}).get("secretKeyRef"))
    ]
    named += [
        (target["name"], target["key"])
        for each in rendered(overlay)
        if each["kind"] == "TriggerAuthentication"
        for target in each["spec"]["secretTargetRef"]
    ]
    broker, other = ("redis", "rabbitmq") if "redis" in overlay else ("rabbitmq", "redis")
    assert {name for name, _ in named} == {"zimage"}
    assert {key for _, key in named} == set(SECRET) - {f"{other}-password"} and broker in overlay
    assert not [each for each in rendered(overlay) if each["kind"] == "Secret"]


@every_overlay
def test_pods_keep_to_the_restricted_security_standard(overlay: str) -> None:
    for _, pod in workloads(overlay):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert ":" in container["image"].rsplit("/")[-1]


def test_images_are_replaced_by_every_overlay() -> None:
    for overlay in OVERLAYS:
        images = {
            container["image"]
            for name, pod in workloads(overlay)
            if "zimage" in name
            for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ()))
        }
        assert all(image.startswith("registry.example.com/") for image in images) and len(images) >= 2


@every_overlay
def test_plans_are_mounted_where_the_settings_say(overlay: str) -> None:
    for name, pod in workloads(overlay):
        if "zimage" in name:
            (container,) = pod["spec"]["containers"]
            (mount,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == "/engines")
            (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == mount["name"])
            assert mount["readOnly"]
            claims = [each["metadata"]["name"] for each in rendered(overlay) if each["kind"] == "PersistentVolumeClaim"]
            if "persistentVolumeClaim" in volume:
                assert claims == [volume["persistentVolumeClaim"]["claimName"]] and "emptyDir" not in volume
            else:
                assert pod["spec"]["initContainers"][0]["volumeMounts"][0]["name"] == volume["name"] and not claims


def test_settings_in_the_documentation_are_merged_into_an_overlay(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"^```yaml\n(configMapGenerator:\n.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "overlays" / "gpu-redis"
    with (overlay / "kustomization.yaml").open("a") as file:
        file.write(block)
    manifests = rendered_folder(overlay)
    (config,) = (each for each in manifests if each["kind"] == "ConfigMap")
    assert config["data"]["ZIMAGE_HISTORY_MB"] == "100000" and config["data"]["ZIMAGE_ENGINES"] == "/engines"
    names = json.dumps(manifests).count(config["metadata"]["name"])
    assert names == 3  # its own, and in the API replicas and the worker hosts


def test_workers_get_the_time_that_they_need() -> None:
    ((_, pod),) = (each for each in workloads("gpu-redis") if each[0] == "zimage-worker")
    (container,) = pod["spec"]["containers"]
    settings = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert settings["ZIMAGE_LOAD_SECONDS"] == str(LOAD_SECONDS)
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= LOAD_SECONDS
    (scaler,) = (each["spec"] for each in rendered("gpu-redis") if each["kind"] == "ScaledObject")
    downscale = scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert min(scaler["cooldownPeriod"], downscale["stabilizationWindowSeconds"]) > LOAD_SECONDS
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_keda_counts_the_unfinished_jobs(postgres_url: str) -> None:
    (scaler,) = (each["spec"] for each in rendered("gpu-redis") if each["kind"] == "ScaledObject")
    (trigger,) = scaler["triggers"]
    store, database = JobStore(postgres_url), open_database(postgres_url)
    try:
        jobs = [store.add(job()) for _ in range(4)]
        store.start(jobs[0].id)
        store.fail(jobs[1].id, ERROR)
        store.cancel(jobs[2].id)
        (row,) = database.rows(trigger["metadata"]["query"])
        assert [row[name] for name in row] == [2]
    finally:
        store.close()
        database.close()


def test_database_takes_the_connections_of_all_replicas() -> None:
    manifests = rendered("gpu-redis")
    (most,) = (
        int(text.removeprefix("max_connections="))
        for each in manifests
        if each["kind"] == "StatefulSet" and each["metadata"]["name"] == "postgres"
        for text in each["spec"]["template"]["spec"]["containers"][0]["args"]
        if text.startswith("max_connections=")
    )
    replicas = [
        each["spec"].get("maxReplicas", each["spec"].get("maxReplicaCount"))
        for each in manifests
        if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    ]
    surge = 1  # of the Deployment of the API
    assert len(replicas) == 2 and (sum(replicas) + surge) * MAX_CONNECTIONS < most


def workloads(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the pod template of each workload."""
    for each in rendered(overlay):
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each["metadata"]["name"], each["spec"]["template"]


def ports_of(pod: dict[str, Any], key: str | None = None) -> list[Any]:
    ports = [port for container in pod["spec"]["containers"] for port in container["ports"]]
    return [port[key] for port in ports] if key else ports


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
    )


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses properties it does not name, as `kubectl apply --validate=strict` does."""
    schema = copy.deepcopy(schema)
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        properties = each.get("properties", {})
        if properties and not each.get("x-kubernetes-preserve-unknown-fields"):
            if properties.keys() >= {"apiVersion", "kind", "metadata"}:
                properties = {name: value for name, value in properties.items() if name != "metadata"}
            each.setdefault("additionalProperties", False)
        waiting += properties.values()
        waiting += [each[key] for key in ("items", "additionalProperties") if isinstance(each.get(key), dict)]
    return schema
