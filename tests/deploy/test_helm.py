"""deploy/helm/onesearch, rendered by helm: objects that Kubernetes takes, settings and metrics that
our programs know, values that are refused with their place."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import yaml

from server import settings as gateway_settings
from server.sidecar import settings as sidecar_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "onesearch"
EXAMPLES = ("minimal", "full")
KUBERNETES = ("1.27", "1.37")
"""The oldest version of Chart.yaml, and the newest whose schemas the package has."""
CUSTOM = {"ScaledObject", "ServiceMonitor", "PrometheusRule"}
PORTS = {"gateway": 8080, "worker": 9101, "sidecar": 9102, "redis": 6379}
DAEMONS = ("Deployment", "StatefulSet")
SPARE_S = 5
Objects = list[dict[str, Any]]


@pytest.fixture(scope="session")
def helm() -> str:
    """The program, of the PATH or of this environment."""
    program = shutil.which("helm") or shutil.which("helm", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("helm is not installed; `make test-helm` fetches it")
    return program


@pytest.fixture(scope="session")
def template(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Rendered objects, or helm's errors, of an example and values over it."""

    def render(example: str, over: dict[str, Any] | None = None) -> Objects | str:
        file = tmp_path_factory.mktemp("values") / "over.yaml"
        file.write_text(yaml.safe_dump(over or {}))
        files = ["--values", str(CHART / "examples" / f"{example}.yaml"), "--values", str(file)]
        command = [helm, "template", "shop", str(CHART), "--namespace", "search", *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            return done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    return render


@pytest.fixture(scope="session")
def rendered(template: Callable[..., Any]) -> dict[str, Objects]:
    return {example: template(example) for example in EXAMPLES}


@pytest.fixture(scope="session")
def schemas() -> ModuleType:
    return pytest.importorskip("kubernetes_validate", reason="needs the extra helm")


def of_kind(objects: Objects, *kinds: str) -> Objects:
    return [one for one in objects if one["kind"] in kinds]


def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """Component or pool → spec of its pods."""
    found: dict[str, dict[str, Any]] = {}
    for one in of_kind(objects, "Deployment", "StatefulSet", "Job"):
        labels = one["spec"]["template"]["metadata"]["labels"]
        name = labels.get("onesearch/pool") or labels["app.kubernetes.io/component"]
        found[name] = one["spec"]["template"]["spec"]
    return found


def settings_files(objects: Objects) -> dict[str, str]:
    maps = of_kind(objects, "ConfigMap")
    [one] = [each for each in maps if each["metadata"]["name"].endswith("-settings")]
    return one["data"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_finds_no_fault_with_the_chart(helm: str, example: str):
    values = CHART / "examples" / f"{example}.yaml"
    done = subprocess.run(
        [helm, "lint", "--strict", CHART, "-f", values], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("example", EXAMPLES)
def test_kubernetes_knows_every_field(
    rendered: dict[str, Objects], schemas: ModuleType, example: str, version: str
):
    kinds: set[str] = set()
    for one in rendered[example]:
        if one["kind"] not in CUSTOM:
            schemas.validate(one, version, strict=True)
        kinds.add(one["kind"])
    assert kinds >= {"Deployment", "Service", "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy"}


def test_the_schemas_would_refuse_a_wrong_field(rendered: dict[str, Objects], schemas: ModuleType):
    [first, *_] = of_kind(rendered["minimal"], "Deployment")
    wrong = first | {"spec": first["spec"] | {"replica": 1}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, KUBERNETES[-1], strict=True)


def test_the_operators_know_every_field_of_their_resources(rendered: dict[str, Objects]):
    keda = pytest.importorskip("cloudcoil.models.keda.v1alpha1", reason="needs the extra helm")
    operator = pytest.importorskip(
        "cloudcoil.models.prometheus_operator.v1", reason="needs the extra helm"
    )
    models = {
        "ScaledObject": keda.ScaledObject,
        "ServiceMonitor": operator.ServiceMonitor,
        "PrometheusRule": operator.PrometheusRule,
    }
    custom = of_kind(rendered["full"], *CUSTOM)
    assert {one["kind"] for one in custom} == CUSTOM
    for one in custom:
        # Fields that a model does not have are dropped by it, so what comes back would differ.
        read = models[one["kind"]].model_validate(one)
        assert read.model_dump(by_alias=True, exclude_unset=True, mode="json") == one


@pytest.mark.parametrize("example", EXAMPLES)
def test_our_programs_take_their_settings(
    rendered: dict[str, Objects], example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("ONESEARCH_EVENTS", "ONESEARCH_ENGINE_DTYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, text in settings_files(rendered[example]).items():
        file = tmp_path / name
        file.write_text(text)
        if name == "rounds.toml":
            assert sidecar_settings.load(file).dataset is not None
            continue
        read = gateway_settings.load(file)
        assert (read.registry, read.metrics_host) == (Path("var/registry"), "0.0.0.0")
        assert read.admin is False
        if name.startswith("gateway-"):
            assert (read.host, read.port) == ("0.0.0.0", PORTS["gateway"])
            assert read.catalogue_changes is (name == "gateway-writer.toml")
            assert read.engine_threads is not None
            assert (read.keys_file is not None) == (example == "full")


def test_a_setting_that_does_not_exist_ends_the_program_with_its_name(
    template: Callable[..., Any], tmp_path: Path
):
    files = settings_files(template("minimal", {"settings": {"beam_widht": 3}}))
    (tmp_path / "gateway.toml").write_text(files["gateway-cpu.toml"])
    with pytest.raises(gateway_settings.ConfigError, match="beam_widht: no such setting"):
        gateway_settings.load(tmp_path / "gateway.toml")


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_variable_is_a_setting(rendered: dict[str, Objects], example: str):
    prefix = gateway_settings.ENVIRONMENT_PREFIX
    known = {f"{prefix}{name.upper()}" for name in gateway_settings.Settings.model_fields}
    known |= {gateway_settings.CONFIG_VARIABLE}
    for name, pod in pods(rendered[example]).items():
        for container in pod["containers"]:
            given = {one["name"] for one in container.get("env", [])}
            assert {one for one in given if one.startswith(prefix)} <= known, name
            files = settings_files(rendered[example])
            for one in container.get("env", []):
                if one["name"] == gateway_settings.CONFIG_VARIABLE:
                    assert Path(one["value"]).name in files


@pytest.mark.parametrize("example", EXAMPLES)
def test_ports_probes_and_services_fit(rendered: dict[str, Objects], example: str):
    objects = rendered[example]
    ports: dict[str, int] = {}
    for one in of_kind(objects, *DAEMONS):
        [container] = one["spec"]["template"]["spec"]["containers"]
        component = one["metadata"]["labels"]["app.kubernetes.io/component"]
        [port] = container["ports"]
        assert port["containerPort"] == PORTS[component]
        ports[port["name"]] = port["containerPort"]
        path = "/readyz" if component == "gateway" else "/metrics"
        assert {"startupProbe", "livenessProbe"} <= set(container)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = container.get(probe, {}).get("httpGet")
            if get:
                assert get["port"] == port["name"]
                assert get["path"] == ("/livez" if (path, probe[0]) == ("/readyz", "l") else path)
        if component in ("worker", "sidecar"):
            assert str(port["containerPort"]) in container["args"]
    for service in of_kind(objects, "Service"):
        [port] = service["spec"]["ports"]
        assert port["targetPort"] in ports
        chosen = service["spec"]["selector"].items()
        labels = [
            one["spec"]["template"]["metadata"]["labels"] for one in of_kind(objects, *DAEMONS)
        ]
        assert any(chosen <= each.items() for each in labels), service["metadata"]["name"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_pod_has_the_time_to_end(rendered: dict[str, Objects], example: str, tmp_path: Path):
    files = settings_files(rendered[example])
    for name, pod in pods(rendered[example]).items():
        [container] = pod["containers"]
        file = f"gateway-{name}.toml" if f"gateway-{name}.toml" in files else f"{name}.toml"
        if name in ("redis", "prepare", "sidecar"):
            continue
        (tmp_path / file).write_text(files[file])
        read = gateway_settings.load(tmp_path / file)
        if name == "worker":
            needed = read.keyword_drain_s
        else:
            [command, before] = container["lifecycle"]["preStop"]["exec"]["command"]
            assert command == "sleep"
            needed = int(before) + read.drain_s + read.shutdown_s
            readiness = container["readinessProbe"]
            assert read.drain_s >= readiness["periodSeconds"] * readiness["failureThreshold"]
        assert pod["terminationGracePeriodSeconds"] >= needed + SPARE_S, name


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_container_is_confined_limited_and_ours(rendered: dict[str, Objects], example: str):
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM .* AS ([\w-]+)$", dockerfile, re.MULTILINE))
    for name, pod in pods(rendered[example]).items():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        user = 999 if name == "redis" else 10001
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (
            user,
            user,
        )
        [container] = pod["containers"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        mounts = {one["name"] for one in container["volumeMounts"]}
        assert mounts <= {one["name"] for one in pod["volumes"]} | {"data"}
        if name != "redis":
            assert container["image"].split("/")[-1].split(":")[0] in targets


def test_selectors_of_policies_budgets_and_monitors_choose_something(
    rendered: dict[str, Objects],
):
    objects = rendered["full"]
    labels = [
        one["spec"]["template"]["metadata"]["labels"]
        for one in of_kind(objects, "Deployment", "Job")
    ]
    chosen = of_kind(objects, "NetworkPolicy", "PodDisruptionBudget")
    assert len(of_kind(objects, "PodDisruptionBudget")) == 2
    for one in chosen:
        selector = one["spec"].get("podSelector") or one["spec"]["selector"]
        wanted = selector["matchLabels"].items()
        assert any(wanted <= each.items() for each in labels), one["metadata"]["name"]
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        names = [each["metadata"]["name"] for each in of_kind(objects, "Deployment")]
        assert one["spec"]["scaleTargetRef"]["name"] in names
    [monitor] = of_kind(objects, "ServiceMonitor")
    jobs = {
        one["metadata"]["labels"].get("onesearch/job")
        for one in of_kind(objects, "Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    }
    assert jobs - {None} == {"gateway", "worker", "sidecar"}


def test_replicas_are_the_autoscalers_where_there_is_one(rendered: dict[str, Objects]):
    deployments = {one["metadata"]["name"]: one for one in of_kind(rendered["full"], "Deployment")}
    assert "replicas" not in deployments["shop-onesearch-gateway-cpu"]["spec"]
    writer = deployments["shop-onesearch-gateway-writer"]["spec"]
    assert (writer["replicas"], writer["strategy"]) == (1, {"type": "Recreate"})


def test_autoscalers_ask_for_metrics_that_our_programs_export(
    template: Callable[..., Any], graph: Any, scraped: Callable[[str], str]
):
    search = f"{graph.gateway.url}/v1/search"
    assert httpx.post(search, json={"query": "white lamp"}, timeout=60).status_code == 200
    told = scraped(graph.gateway.url) + scraped(graph.worker.url)
    known = set(re.findall(r"^(onesearch_\w+)", told, re.MULTILINE))
    scaling = {"inFlightPerReplica": 8, "searchesPerReplica": 9, "queuedPromptsPerReplica": 4}
    asked: set[str] = set()
    for kind in ("hpa", "keda"):
        over = {"gateway": {"autoscaling": {"kind": kind, **scaling}}}
        over["worker"] = {"autoscaling": {"kind": kind}}
        text = yaml.safe_dump(
            of_kind(template("minimal", over), "HorizontalPodAutoscaler", "ScaledObject")
        )
        asked |= set(re.findall(r"onesearch_\w+", text))
    assert len(asked) == 4
    assert asked <= known


def test_alerts_dashboards_and_redis_are_those_of_compose(rendered: dict[str, Objects]):
    [rules] = of_kind(rendered["full"], "PrometheusRule")
    source = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    groups = {group["name"]: group["rules"] for group in rules["spec"]["groups"]}
    assert set(groups) == {group["name"] for group in source} - {"disks"} | {"volumes"}
    for group in source:
        for rule, ours in zip(group["rules"], groups.get(group["name"], []), strict=False):
            rule["annotations"].pop("look_at")
            assert "docker" not in ours["annotations"].pop("look_at")
            assert ours == rule
        assert group["name"] == "disks" or len(groups[group["name"]]) == len(group["rules"])
    maps = {one["metadata"]["name"]: one for one in of_kind(rendered["full"], "ConfigMap")}
    boards = {path.name: path.read_text() for path in (DEPLOY / "grafana/dashboards").iterdir()}
    assert maps["shop-onesearch-dashboards"]["data"] == boards
    [redis] = [
        one
        for one in of_kind(rendered["minimal"], "ConfigMap")
        if one["metadata"]["name"] == "shop-onesearch-redis"
    ]
    text = (DEPLOY / "compose" / "redis.conf").read_text()
    assert redis["data"]["redis.conf"].strip() == text.strip()


def test_prometheus_takes_the_rules(rendered: dict[str, Objects], tmp_path: Path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    [rules] = of_kind(rendered["full"], "PrometheusRule")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules["spec"]))
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"gateway": {"replica": 3}}, "'/gateway': additional properties 'replica' not allowed"),
        ({"gateways": {"cpu": {"replicas": -1}}}, "'/gateways/cpu/replicas': minimum: got -1"),
        ({"gateways": {"cpu": {"autoscaling": {"kind": "vpa"}}}}, "'none', 'hpa', 'keda'"),
        ({"gateways": {"Big": {}}}, "invalid propertyName 'Big'"),
        ({"gateway": {"resources": {"limits": {"memory": "lots"}}}}, "'/gateway/resources/limits"),
        ({"worker": {"generator": "gpt"}}, "'/worker/generator': value must be one of"),
        ({"redis": {"password": "a/b"}}, "'/redis/password': 'a/b' does not match"),
        ({"redis": {"password": ""}}, "redis.password: say it, or name a Secret"),
        ({"redis": {"bundled": False}}, "redis.external.existingSecret: name the Secret"),
        ({"settings": {"port": 9}}, "settings.port: the chart sets it"),
        (
            {"gateway": {"settings": {"keyword_llm_key": "x"}}},
            "settings.keyword_llm_key: settings are a ConfigMap; this one comes from a Secret",
        ),
        ({"worker": {"generator": "llm"}}, "worker.llm.url: where worker.generator is llm"),
        (
            {"gateways": {"writer": {"enabled": True, "replicas": 2}}},
            "gateways.writer: one process at a time takes changes",
        ),
        ({"persistence": {"registry": {"oneNode": False}}}, "accessMode: only ReadWriteMany"),
        (
            {"gateway": {"autoscaling": {"kind": "keda", "cpuPercent": 0}}},
            "gateways.cpu.autoscaling: keda needs",
        ),
    ],
)
def test_wrong_values_are_refused_with_their_place(
    template: Callable[..., Any], over: dict[str, Any], told: str
):
    error = template("minimal", over)
    assert isinstance(error, str) and told in error, error


def test_schema_and_values_name_the_same():
    """What the schema lacks would be refused; what values.yaml lacks is not explained."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    assert set(schema["$defs"]["pool"]["properties"]) == set(values["gateway"])
    for name in ("worker", "sidecar", "prepare", "redis", "networkPolicy", "monitoring", "image"):
        assert set(schema["properties"][name]["properties"]) == set(values[name]), name
