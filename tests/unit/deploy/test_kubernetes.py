"""The manifests: valid for Kubernetes, strictly, and true to what the services read, answer and need."""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml

from agent_worker.settings import WorkerSettings
from orchestrator.monitoring import PATIENCE
from orchestrator.settings import Settings
from tests.unit.deploy.dockerfile import ROOT, Dockerfile
from tests.unit.deploy.metrics import all_metrics

KUBERNETES = ROOT / "deploy" / "kubernetes"
VERSION = "1.33"  # one that clusters run; a newer one takes these too
OVERLAYS = ["development", "production"]
OF_OPERATORS = {
    "keda.sh/v1alpha1", "rabbitmq.com/v1beta1", "postgresql.cnpg.io/v1", "monitoring.coreos.com/v1",
}  # fmt: skip
SETTINGS = {"forkjoin-orchestrator": Settings, "forkjoin-migrate": Settings, "forkjoin-worker": WorkerSettings}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


FILES = sorted(path for path in KUBERNETES.rglob("*.yaml"))
MANIFESTS = {
    f"{path.relative_to(KUBERNETES)} {document['kind']}": document
    for path in FILES
    if path.name != "kustomization.yaml"
    for document in documents(path)
}
KUSTOMIZATIONS = [path for path in FILES if path.name == "kustomization.yaml"]
BASE = {
    (document["kind"], document["metadata"]["name"]): document
    for path in (KUBERNETES / "base").glob("*.yaml")
    for document in documents(path)
    if "metadata" in document
}
WORKLOADS = [document for (kind, _), document in BASE.items() if kind in {"Deployment", "Job"}]
DEPLOYMENTS = [document for document in WORKLOADS if document["kind"] == "Deployment"]


def name_of(document: dict[str, Any]) -> str:
    name: str = document["metadata"]["name"]
    return name


def container(workload: dict[str, Any]) -> dict[str, Any]:
    [found] = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def check(document: dict[str, Any]) -> None:
    if document["apiVersion"] not in OF_OPERATORS:
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("document", MANIFESTS.values(), ids=MANIFESTS)
def test_each_manifest_is_valid_for_kubernetes_strictly(document: dict[str, Any]) -> None:
    check(document)


def test_a_misspelt_field_would_be_seen() -> None:
    [worker] = [document for document in DEPLOYMENTS if name_of(document) == "forkjoin-worker"]
    wrong = {**worker, "spec": {**worker["spec"], "replica": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(wrong)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: str(path.relative_to(KUBERNETES).parent))
def test_each_kustomization_names_files_that_exist_and_no_file_is_forgotten(path: Path) -> None:
    [content] = documents(path)
    named = [*content.get("resources", []), *content.get("components", [])]
    assert [name for name in named if not (path.parent / name).exists()] == []
    here = {other.name for other in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
    assert here <= set(named)


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_each_setting_is_one_that_the_service_reads_and_secrets_are_references(workload: dict[str, Any]) -> None:
    known = {f"FORKJOIN_{field.upper()}" for field in SETTINGS[name_of(workload)].model_fields}
    environment = {variable["name"]: variable for variable in container(workload)["env"]}
    assert set(environment) <= known
    assert ("FORKJOIN_DATABASE_URL" in environment) is (name_of(workload) != "forkjoin-worker")
    for name, variable in environment.items():
        if name.endswith("_URL"):
            assert set(variable) == {"name", "valueFrom"}
            assert variable["valueFrom"]["secretKeyRef"]["name"] == "forkjoin"


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_no_pod_is_root_or_may_become_it_or_writes_or_talks_to_kubernetes(workload: dict[str, Any]) -> None:
    pod = workload["spec"]["template"]["spec"]
    image = "worker" if name_of(workload) == "forkjoin-worker" else "orchestrator"
    [user] = [one.value for one in Dockerfile.read(f"{image}.Dockerfile").built() if one.name == "USER"]
    context = pod["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert container(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert ("ServiceAccount", pod["serviceAccountName"]) in BASE


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_each_container_runs_a_command_of_its_image_with_bounded_memory(workload: dict[str, Any]) -> None:
    running = container(workload)
    assert running["image"] in {"forkjoin-orchestrator", "forkjoin-worker"}
    assert running["args"] in (["serve"], ["migrate"], ["agents:agents"])
    assert {"cpu", "memory"} <= set(running["resources"]["requests"])
    assert "memory" in running["resources"]["limits"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=name_of)
def test_probes_ask_what_the_services_answer_with_time_enough(deployment: dict[str, Any]) -> None:
    running = container(deployment)
    [port] = running["ports"]
    image = name_of(deployment).removeprefix("forkjoin-")
    [exposed] = [one.value for one in Dockerfile.read(f"{image}.Dockerfile").built() if one.name == "EXPOSE"]
    assert (port["name"], str(port["containerPort"])) == ("http", exposed)
    paths = {kind: running[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert paths["startup"] == paths["liveness"] == {"path": "/livez", "port": "http"}
    assert paths["readiness"] == {"path": "/readyz", "port": "http"}
    assert running["readinessProbe"]["timeoutSeconds"] > PATIENCE
    liveness = running["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 120


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=name_of)
def test_pods_have_longer_to_end_than_they_need_to_drain(deployment: dict[str, Any]) -> None:
    [drain] = [one for one in container(deployment)["env"] if one["name"].endswith("DRAIN_TIMEOUT")]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= float(drain["value"]) + 20


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=name_of)
def test_selectors_meet_the_pods(deployment: dict[str, Any]) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    name = name_of(deployment)
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        BASE["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"],
        BASE["NetworkPolicy", "forkjoin-worker"]["spec"]["podSelector"]["matchLabels"] if "worker" in name else {},
        *(one["labelSelector"]["matchLabels"] for one in spread(deployment)),
    ]
    assert [selector for selector in selectors if not selector.items() <= labels.items()] == []


def spread(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    return found


def test_orchestrators_are_scaled_by_the_autoscaler_alone_and_two_at_least() -> None:
    scaler = BASE["HorizontalPodAutoscaler", "forkjoin-orchestrator"]["spec"]
    assert ("Deployment", scaler["scaleTargetRef"]["name"]) in BASE
    assert "replicas" not in BASE["Deployment", "forkjoin-orchestrator"]["spec"]
    assert scaler["minReplicas"] >= 2
    assert BASE["PodDisruptionBudget", "forkjoin-orchestrator"]["spec"]["minAvailable"] < scaler["minReplicas"]


def ports(policy: str) -> set[int]:
    rules = BASE["NetworkPolicy", policy]["spec"]["egress"]
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_workers_reach_rabbitmq_and_never_postgres_and_nobody_reaches_them_but_the_monitoring() -> None:
    assert {5671, 5672} <= ports("forkjoin-worker")
    assert 5432 not in ports("forkjoin-worker")
    assert {5671, 5672, 5432} == ports("forkjoin-orchestrator")
    [rule] = BASE["NetworkPolicy", "forkjoin-monitoring"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert "from" in rule


# Components


def patched(component: str, workload: str) -> dict[str, Any]:
    """Return a workload of the base as the patches of a component make it."""
    [kustomization] = documents(KUBERNETES / "components" / component / "kustomization.yaml")
    result = copy.deepcopy(BASE["Deployment", workload])
    for patch in kustomization["patches"]:
        if re.fullmatch(patch["target"]["name"], workload):
            for step in yaml.safe_load(patch["patch"]):
                apply(step, result)
    return result


def apply(step: dict[str, Any], to: Any) -> None:
    """Do what one step of a JSON patch says."""
    *path, last = step["path"].removeprefix("/").split("/")
    for part in path:
        to = to[int(part)] if isinstance(to, list) else to[part]
    if step["op"] == "add" and last == "-":
        to.append(step["value"])
        return
    assert step["op"] == "replace"
    assert last in to, "there is nothing to replace"
    to[last] = step["value"]


@pytest.mark.parametrize(
    ("component", "workload", "secret"),
    [
        ("rabbitmq", "forkjoin-orchestrator", ("forkjoin-rabbitmq-default-user", "connection_string")),
        ("rabbitmq", "forkjoin-worker", ("forkjoin-rabbitmq-default-user", "connection_string")),
        ("users", "forkjoin-orchestrator", ("forkjoin-orchestrator", "amqp-url")),
        ("users", "forkjoin-worker", ("forkjoin-worker", "amqp-url")),
    ],
)
def test_a_component_says_where_the_url_of_rabbitmq_comes_from(
    component: str, workload: str, secret: tuple[str, str]
) -> None:
    changed = patched(component, workload)
    check(changed)
    [url] = [one for one in container(changed)["env"] if one["name"] == "FORKJOIN_AMQP_URL"]
    assert url["valueFrom"]["secretKeyRef"] == {"name": secret[0], "key": secret[1]}
    [before] = [one for one in container(BASE["Deployment", workload])["env"] if one["name"] == "FORKJOIN_AMQP_URL"]
    assert before != url


def test_services_with_users_of_their_own_sign_and_workers_declare_nothing() -> None:
    given = {
        workload: {one["name"]: one.get("value") for one in container(patched("users", workload))["env"]}
        for workload in ("forkjoin-orchestrator", "forkjoin-worker")
    }
    assert {workload: found["FORKJOIN_AMQP_SIGN"] for workload, found in given.items()} == dict.fromkeys(given, "true")
    assert given["forkjoin-worker"]["FORKJOIN_WORKER_DECLARE"] == "false"
    for workload, found in given.items():
        assert found.keys() <= {f"FORKJOIN_{field.upper()}" for field in SETTINGS[workload].model_fields}


def test_in_production_services_have_users_of_their_own_after_the_operators() -> None:
    [production] = documents(KUBERNETES / "overlays" / "production" / "kustomization.yaml")
    components = [Path(one).name for one in production["components"]]
    assert components.index("rabbitmq") < components.index("users")


# KEDA


def scaled_object(component: str) -> dict[str, Any]:
    found = documents(KUBERNETES / "components" / component / "scaled-object.yaml")
    [spec] = [document["spec"] for document in found if document["kind"] == "ScaledObject"]
    assert isinstance(spec, dict)
    return spec


@pytest.mark.parametrize("component", ["keda", "keda-prometheus"])
def test_workers_are_scaled_to_zero_and_back(component: str) -> None:
    spec = scaled_object(component)
    assert ("Deployment", spec["scaleTargetRef"]["name"]) in BASE
    assert spec["minReplicaCount"] == 0 < spec["maxReplicaCount"]
    [concurrency] = [
        one["value"]
        for one in container(BASE["Deployment", "forkjoin-worker"])["env"]
        if one["name"] == "FORKJOIN_WORKER_CONCURRENCY"
    ]
    [trigger] = spec["triggers"]
    metadata = trigger["metadata"]
    assert int(metadata.get("value") or metadata["threshold"]) == 2 * int(concurrency)
    assert all(isinstance(value, str) for value in metadata.values()), "KEDA takes nothing but strings"


def production_namespace() -> str:
    [content] = documents(KUBERNETES / "overlays" / "production" / "kustomization.yaml")
    namespace: str = content["namespace"]
    return namespace


def test_the_queue_is_an_agents_and_tasks_that_run_are_counted() -> None:
    spec = scaled_object("keda")
    [trigger] = spec["triggers"]
    metadata = trigger["metadata"]
    assert (metadata["protocol"], metadata["mode"]) == ("http", "QueueLength")
    assert metadata["excludeUnacknowledged"] == "false"
    assert metadata["host"].endswith(f".{production_namespace()}:15672/"), "KEDA asks from another namespace"
    assert re.fullmatch(r"agent\.[\w.-]+", metadata["queueName"])
    assert spec["fallback"]["replicas"] >= 1, "or a queue that nobody has declared yet would stay undeclared"
    authentication = documents(KUBERNETES / "components" / "keda" / "scaled-object.yaml")[1]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert {one["parameter"] for one in authentication["spec"]["secretTargetRef"]} == {"username", "password"}
    assert "@" not in metadata["host"]


async def test_our_own_backlog_is_a_metric_that_the_orchestrators_show() -> None:
    [trigger] = scaled_object("keda-prometheus")["triggers"]
    query = trigger["metadata"]["query"]
    promql_parser.parse(query)
    [(name, matchers)] = re.findall(r"(forkjoin_\w+)\{([^}]*)\}", query)
    metric = (await all_metrics())[name]
    assert set(re.findall(r"(\w+)=", matchers)) == set(metric.labels)
    assert "sum(max by (status)" in query, "every replica tells the same"


# Overlays


@pytest.fixture(params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What an overlay comes to."""
    return render(request.param)


def render(overlay: str) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, which renders without a cluster")
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_what_an_overlay_comes_to_is_valid_and_in_its_namespace(rendered: list[dict[str, Any]]) -> None:
    for document in rendered:
        check(document)
    [namespace] = [name_of(document) for document in rendered if document["kind"] == "Namespace"]
    others = [document["metadata"] for document in rendered if document["kind"] != "Namespace"]
    assert {metadata.get("namespace") for metadata in others} == {namespace}


def test_in_production_urls_come_from_secrets_and_keda_alone_scales_workers() -> None:
    rendered = {(document["kind"], name_of(document)): document for document in render("production")}
    assert ("RabbitmqCluster", "forkjoin-rabbitmq") in rendered
    assert rendered["RabbitmqCluster", "forkjoin-rabbitmq"]["spec"]["replicas"] == 3
    assert ("Cluster", "forkjoin-postgres") in rendered
    secrets = {
        (name, variable["name"]): tuple(variable["valueFrom"]["secretKeyRef"].values())
        for (kind, name), document in rendered.items()
        if kind in {"Deployment", "Job"}
        for variable in container(document)["env"]
        if "valueFrom" in variable
    }
    database = ("uri", "forkjoin-postgres-app")
    assert secrets == {
        ("forkjoin-orchestrator", "FORKJOIN_AMQP_URL"): ("amqp-url", "forkjoin-orchestrator"),
        ("forkjoin-worker", "FORKJOIN_AMQP_URL"): ("amqp-url", "forkjoin-worker"),
        ("forkjoin-orchestrator", "FORKJOIN_DATABASE_URL"): database,
        ("forkjoin-migrate", "FORKJOIN_DATABASE_URL"): database,
    }
    assert "replicas" not in rendered["Deployment", "forkjoin-worker"]["spec"]
    images = {container(document)["image"] for (kind, _), document in rendered.items() if kind in {"Deployment", "Job"}}
    assert all(image.startswith("registry.example.com/") and ":" in image for image in images)


def test_the_other_way_to_scale_fits_into_the_same_place(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, which renders without a cluster")
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    file = tmp_path / "kubernetes/overlays/production/kustomization.yaml"
    file.write_text(file.read_text().replace("components/keda\n", "components/keda-prometheus\n"))
    done = subprocess.run([kubectl, "kustomize", str(file.parent)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "forkjoin_agent_attempts" in done.stdout


def test_no_secret_is_in_the_manifests() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "kind: Secret\n" not in text
        assert not re.search(r"://[^/\s]*:[^/\s]*@", text), path
