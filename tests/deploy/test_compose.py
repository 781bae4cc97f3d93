"""docker-compose.yml and .env.example: whole, consistent, hardened."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import ENVIRONMENT_PREFIX, Settings
from server.sidecar.settings import SidecarSettings

ROOT = Path(__file__).parents[2]
OWN = {"gateway", "gateway-gpu", "worker", "sidecar", "prepare", "llm"}


def services(compose: Any) -> dict[str, Any]:
    return compose.resolved["services"]


def test_it_is_a_compose_file(compose: Any):
    known = pytest.importorskip("compose_spec", reason="needs the package compose-spec")
    parsed = known.PyCompose.from_yaml(yaml.safe_dump(compose.resolved))
    assert set(parsed.service_names()) == set(services(compose))
    parsed.validate()


def test_docker_compose_resolves_it():
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("docker compose is not installed")
    profiles = ["--profile", "demo", "--profile", "gpu", "--profile", "llm"]
    subprocess.run(
        [docker, "compose", "--env-file", ".env.example", *profiles, "config", "--quiet"],
        cwd=ROOT,
        check=True,
    )


def test_the_example_names_every_variable_and_shows_its_default(
    compose: Any, compose_with: Any, example: dict[str, str]
):
    handed_on = {
        name
        for service in services(compose).values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    assert compose.used | handed_on == set(example)
    everything = {name: value for name, value in example.items() if name not in handed_on}
    assert compose_with(everything).resolved == compose.resolved


@pytest.mark.parametrize("name", ["REDIS_PASSWORD", "GRAFANA_PASSWORD"])
def test_no_password_no_start(compose_with: Any, example: dict[str, str], name: str):
    with pytest.raises(Exception, match=f"{name}: say which in .env"):
        compose_with(example | {name: ""})


def test_every_setting_exists(compose: Any):
    known = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in Settings.model_fields}
    sidecar = str(SidecarSettings.model_config.get("env_prefix"))
    known |= {f"{sidecar}{name.upper()}" for name in SidecarSettings.model_fields}
    for service in services(compose).values():
        given = {name for name in service.get("environment", {}) if name.startswith("ONESEARCH_")}
        assert given <= known


def test_every_service_is_limited_hardened_and_watched(compose: Any):
    for name, service in services(compose).items():
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} <= set(limits), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert ("healthcheck" in service) == (name != "prepare"), name
        assert "privileged" not in service, name


def test_images_are_ours_or_pinned(compose: Any):
    for name, service in services(compose).items():
        image, _, tag = service["image"].partition(":")
        if name in OWN:
            assert image.startswith("onesearch/") and service["build"]["target"], name
        else:
            assert re.search(r"\d+\.\d+\.\d+", tag), f"{name} is not pinned: {service['image']}"


def test_what_is_named_is_there(compose: Any):
    volumes, networks = compose.resolved["volumes"], compose.resolved["networks"]
    for name, service in services(compose).items():
        assert set(service.get("networks", [])) <= set(networks), name
        assert set(service.get("depends_on", {})) <= set(services(compose)), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./deploy"):
                assert (ROOT / source).exists(), source
            elif not source.startswith("."):
                assert source in volumes, source


def test_ports_are_open_to_this_machine_only(compose: Any):
    published = [port for one in services(compose).values() for port in one.get("ports", [])]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)
    reached = compose.resolved["networks"]["back"]
    assert reached == {"internal": True}
    assert services(compose)["redis"]["networks"] == ["back"]
    assert "ports" not in services(compose)["redis"]


def test_changes_and_admin_are_refused_unless_asked_for(compose: Any):
    environment = compose.environment("gateway")
    doors = [environment[f"ONESEARCH_{door}"] for door in ("ADMIN", "CATALOGUE_CHANGES")]
    assert doors == ["false", "false"]
