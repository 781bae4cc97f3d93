"""Passwords and keys are in no message, log, metric or answer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from index.errors import ConfigError
from server.logs import make_logger
from server.redis.connection import RedisConnection, check_url
from server.security import warn_if_open
from server.settings import Settings, load

PASSWORD = "hunter2-s3cret"
URL = f"redis://:{PASSWORD}@127.0.0.1:1/0"


def test_settings_do_not_show_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONESEARCH_REDIS_URL", URL)
    monkeypatch.setenv("ONESEARCH_KEYWORD_LLM_KEY", PASSWORD)
    settings = load()
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert PASSWORD not in shown
    assert settings.redis_address == URL


@pytest.mark.parametrize("name", ["redis_url", "keyword_llm_key"])
def test_a_wrong_one_is_not_repeated(tmp_path: Path, name: str):
    file = tmp_path / "settings.toml"
    file.write_text(f'{name} = ["{PASSWORD}"]\n')
    with pytest.raises(ConfigError, match=name) as caught:
        load(file)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@127.0.0.1/0",
        f"redis://:{PASSWORD}/x@127.0.0.1:6379/0",
        f"redis://:x@127.0.0.1:{PASSWORD}/0",
        f"redis://[{PASSWORD}",
        f"{PASSWORD}",
    ],
)
def test_an_address_that_is_none_is_not_repeated(url: str):
    with pytest.raises(ConfigError, match="redis_url") as caught:
        check_url(url)
    assert PASSWORD not in str(caught.value)


def test_a_redis_that_is_away_says_nothing_of_its_password(stub_client: Any, log_lines: Any):
    client = stub_client(redis_url=URL, rate_limit=100, keyword_llm_key=SecretStr(PASSWORD))
    answers = [client.post("/v1/search", json={"query": "x"}), client.get("/metrics")]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert "counted by this process alone" in log_lines.getvalue()
    for shown in (log_lines.getvalue(), *(answer.text for answer in answers)):
        assert PASSWORD not in shown


def test_a_wrong_password_is_not_repeated(redis_server: Any):
    import asyncio

    from index.errors import OnesearchError

    async def ask() -> str:
        redis = RedisConnection(f"{redis_server.url}?password={PASSWORD}", 5.0)
        with pytest.raises(OnesearchError) as caught:
            await redis.command("PING")
        await redis.close()
        return str(caught.value)

    assert PASSWORD not in asyncio.run(ask())


@pytest.mark.parametrize(
    ("changes", "warns"),
    [({}, False), ({"host": "0.0.0.0"}, True), ({"host": "0.0.0.0", "keys_file": "x"}, False)],
)
def test_a_server_for_everybody_says_so(changes: dict[str, Any], warns: bool):
    stream = io.StringIO()
    warn_if_open(Settings(catalogue_changes=True, **changes), make_logger("info", stream))
    told = stream.getvalue()
    assert ("no API keys: everybody who reaches this server may search" in told) == warns
    assert ('"open_to_everybody":["search","catalogue_changes"]' in told) == warns
