"""The compose file: what it starts, in which order, with what; and that it holds no secret."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent_worker.loading import load_registry
from agent_worker.settings import WorkerSettings
from orchestrator.settings import Settings
from tests.services import postgres, rabbitmq
from tests.unit.deploy.dockerfile import ROOT, Dockerfile

COMPOSE = ROOT / "deploy" / "compose"
TEXT = (COMPOSE / "docker-compose.yml").read_text(encoding="utf-8")
FILE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = ["migrate", "orchestrator", "worker", "client"]
KEYS = {
    "build", "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "hostname", "image", "init",
    "ports", "profiles", "restart", "stop_grace_period", "user", "volumes",
}  # fmt: skip


def started_after(service: str) -> dict[str, str]:
    return {name: wait["condition"] for name, wait in SERVICES[service].get("depends_on", {}).items()}


def test_there_is_everything_that_a_cluster_needs() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {
        "definitions", "rabbitmq", "postgres", "migrate", "orchestrator", "worker",
    }  # fmt: skip
    assert (SERVICES["orchestrator"]["deploy"], SERVICES["worker"]["deploy"]) == ({"replicas": 2}, {"replicas": 3})
    assert [SERVICES[name]["command"] for name in OURS] == [
        ["migrate"],
        ["serve"],
        ["examples.agents:agents"],
        ["--help"],
    ]


def test_brokers_and_databases_are_those_that_the_tests_run_against() -> None:
    assert (SERVICES["rabbitmq"]["image"], SERVICES["postgres"]["image"]) == (rabbitmq.IMAGE, postgres.IMAGE)


@pytest.mark.parametrize("name", SERVICES)
def test_each_key_is_one_that_compose_knows(name: str) -> None:
    assert set(SERVICES[name]) <= KEYS
    assert set(FILE) <= {"name", "services", "volumes"} | {key for key in FILE if key.startswith("x-")}


def test_each_service_starts_when_what_it_needs_is_there() -> None:
    healthy = "service_healthy"
    assert started_after("migrate") == {"postgres": healthy}
    assert started_after("orchestrator") == {"rabbitmq": healthy, "migrate": "service_completed_successfully"}
    assert started_after("worker") == {"rabbitmq": healthy}
    assert started_after("rabbitmq") == {"definitions": "service_completed_successfully"}
    # `compose run client` brings what it depends on to the numbers in the file, whatever --scale had said.
    assert started_after("client") == {}
    for name in SERVICES:
        for other, condition in started_after(name).items():
            if condition == healthy:
                assert "test" in SERVICES[other]["healthcheck"], f"{name} would wait for {other} for ever"
    assert SERVICES["migrate"].get("restart") is None
    assert SERVICES["definitions"].get("restart") is None


@pytest.mark.parametrize("name", ["orchestrator", "worker"])
def test_services_are_healthy_while_they_are_ready_and_stop_in_their_own_time(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "messaging.monitoring.probe", "/readyz"]
    settings = Settings.model_fields["drain_timeout"], WorkerSettings.model_fields["worker_drain_timeout"]
    assert float(service["stop_grace_period"].removesuffix("s")) >= max(field.default for field in settings) + 10
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["orchestrator", "worker"])
def test_services_can_be_scaled(name: str) -> None:
    assert not {"ports", "hostname", "container_name"} & set(SERVICES[name])


@pytest.mark.parametrize("name", OURS)
def test_each_setting_is_one_that_the_service_reads_and_workers_know_no_database(name: str) -> None:
    given = set(SERVICES[name]["environment"])
    settings = WorkerSettings if name == "worker" else Settings
    assert given <= {f"FORKJOIN_{field.upper()}" for field in settings.model_fields}
    assert ("FORKJOIN_DATABASE_URL" in given) is (name != "worker")


@pytest.mark.parametrize("name", OURS)
def test_each_image_is_built_from_a_dockerfile_and_a_stage_that_exist(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (COMPOSE / build["context"]).resolve() == ROOT
    file = Dockerfile.read((ROOT / build["dockerfile"]).relative_to(ROOT / "deploy/docker").name)
    assert build.get("target") in {None, *(stage.name for stage in file.stages)}


def test_the_workers_registry_has_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "report" in load_registry(SERVICES["worker"]["command"][0]).names


def written_definitions(passwords: str, directory: Path) -> dict[str, Any]:
    """Return what the service `definitions` writes; its command is carried out here."""
    script = SERVICES["definitions"]["command"][0].replace("$$", "$").replace("/definitions/", f"{directory}/")
    tools = Path(sys.executable).parent
    environment = {"PASSWORDS": passwords, "PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", script], check=True, env=environment, cwd=directory)
    written: dict[str, Any] = json.loads((directory / "definitions.json").read_text())
    return written


def test_each_service_has_a_user_of_its_own_and_the_workers_user_serves_all_of_its_agents(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passwords = re.sub(r"\$\{(\w+)[^}]*\}", r"\1", SERVICES["definitions"]["environment"]["PASSWORDS"])
    written = written_definitions(passwords, tmp_path)
    users = {user["name"] for user in written["users"]}
    urls = {name: SERVICES[name]["environment"]["FORKJOIN_AMQP_URL"] for name in ("orchestrator", "worker", "client")}
    for name, url in urls.items():
        user, _, password = url.removeprefix("amqp://").partition("@")[0].partition(":")
        assert user in users, name
        assert json.loads(passwords)[user] == re.findall(r"\w+", password)[0], name
    assert len(set(urls.values())) == len(urls)

    monkeypatch.chdir(ROOT)
    served = set(load_registry(SERVICES["worker"]["command"][0]).names)
    assert {f"agent.{name}" for name in served} <= {queue["name"] for queue in written["queues"]}
    [rights] = [right for right in written["permissions"] if right["user"] == "forkjoin-worker"]
    assert all(re.search(rights["read"], f"agent.{name}") for name in served)


def test_secrets_come_from_the_environment_alone_and_the_example_names_them_all() -> None:
    example = (COMPOSE / ".env.example").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{([A-Z_]+)", TEXT))
    assert used == set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    for found in re.findall(r'(?:PASSWORD: |//forkjoin[a-z-]*:|"forkjoin[a-z-]*": ")(\S+)', TEXT):
        assert found.startswith("${"), found
    assert ".env" in (COMPOSE / ".gitignore").read_text(encoding="utf-8").split()


def test_no_port_is_open_to_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_volume_exists() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (COMPOSE / source).exists() if source.startswith(".") else source in FILE["volumes"]


def test_data_outlives_its_container() -> None:
    for name, directory in (("rabbitmq", "/var/lib/rabbitmq"), ("postgres", "/var/lib/postgresql/data")):
        assert f"{name}:{directory}" in SERVICES[name]["volumes"]


def test_grafana_shows_the_dashboard_from_the_prometheus_beside_it_and_nobody_may_change_anything() -> None:
    grafana = SERVICES["grafana"]
    mounted = {volume.split(":")[1]: COMPOSE / volume.split(":")[0] for volume in grafana["volumes"]}
    read = {place: yaml.safe_load(path.read_text(encoding="utf-8")) for place, path in mounted.items()}
    [source] = read["/etc/grafana/provisioning/datasources/forkjoin.yml"]["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert "prometheus" in SERVICES
    [provider] = read["/etc/grafana/provisioning/dashboards/forkjoin.yml"]["providers"]
    assert read[f"{provider['options']['path']}/forkjoin.json"]["uid"] == "forkjoin"
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["environment"]["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_prometheus_scrapes_the_ports_of_the_images_by_the_names_of_the_services() -> None:
    scrape = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text(encoding="utf-8"))
    [found] = [sd for job in scrape["scrape_configs"] for sd in job["dns_sd_configs"]]
    assert set(found["names"]) <= set(SERVICES)
    for image in ("orchestrator", "worker"):
        [exposed] = [one.value for one in Dockerfile.read(f"{image}.Dockerfile").built() if one.name == "EXPOSE"]
        assert exposed == str(found["port"])
    mounted = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}
    assert set(scrape["rule_files"]) <= mounted
