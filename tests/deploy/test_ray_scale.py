"""What the Ray application is told, without Ray; what its proxies say where a replica died."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from index.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("ONESEARCH_EVENTS")
    from deploy.ray import scale

    return scale


def test_doors_that_are_open_to_this_machine_are_shut(scale: ModuleType):
    settings = scale.replica_settings()
    assert settings.host == "0.0.0.0"
    assert settings.catalogue_changes is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CATALOGUE_CHANGES", "true", "a catalogue has one writer"),
        ("KEYWORDS", "student", "need one Redis: set ONESEARCH_REDIS_URL"),
        ("EVENTS", "true", "need one Redis: set ONESEARCH_REDIS_URL"),
    ],
)
def test_what_several_gateways_cannot_do_is_refused(
    scale: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
):
    monkeypatch.setenv(f"ONESEARCH_{name}", value)
    with pytest.raises(ConfigError, match=message):
        scale.replica_settings()


def test_a_wrong_scale_is_one_line(scale: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONESEARCH_RAY_MAX_GATEWAYS", "1")
    with pytest.raises(ConfigError, match="MAX_GATEWAYS 1 is less than"):
        scale.scale_of_environment()
    monkeypatch.setenv("ONESEARCH_RAY_MAX_GATEWAYS", "many")
    with pytest.raises(ConfigError, match="ONESEARCH_RAY_MAX_GATEWAYS: Input should be"):
        scale.scale_of_environment()


def test_replicas_get_settings_with_whole_paths_and_without_secrets(
    scale: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONESEARCH_REGISTRY", "shop/registry")
    monkeypatch.setenv("ONESEARCH_KEYWORD_LLM_KEY", "letters0and1digits")
    monkeypatch.setenv("ONESEARCH_REDIS_URL", "redis://:letters0and1digits@127.0.0.1/0")
    monkeypatch.setenv("ONESEARCH_RAY_GATEWAY_CPUS", "8")
    chosen = scale.scale_of_environment()
    environment = scale.replica_environment(scale.replica_settings(), chosen)
    assert environment["ONESEARCH_REGISTRY"] == str(tmp_path / "shop" / "registry")
    assert environment["ONESEARCH_ENGINE_THREADS"] == "4"
    assert "letters0and1digits" not in str(environment)
    monkeypatch.setenv("ONESEARCH_REDIS_URL", "redis://127.0.0.1/0")
    environment = scale.replica_environment(scale.replica_settings(), chosen)
    assert environment["ONESEARCH_REDIS_URL"] == "redis://127.0.0.1/0"


def test_a_request_without_an_answer_is_a_503(scale: ModuleType):
    from deploy.ray.proxy import AnswerForLost

    async def lost(scope: Scope, receive: Receive, send: Send) -> None:
        return None

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"found"})

    async def ask(app: AnswerForLost) -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return await client.get("/")

    answer = asyncio.run(ask(AnswerForLost(lost)))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "0"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == 503
    assert asyncio.run(ask(AnswerForLost(served))).text == "found"
