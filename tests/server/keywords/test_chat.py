"""Settings of the chat client; how it behaves towards a real server is in test_llm.py."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from index.errors import ConfigError
from server.keywords.chat import ChatSettings

URL = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://models.example/openai/v1/", "http://[::1]:80/v1"]
)
def test_base_urls(url: str) -> None:
    assert url.startswith(ChatSettings(url, "m").origin)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"base_url": "file:///etc/passwd"}, "must be http"),
        ({"base_url": "127.0.0.1:8000/v1"}, "must be http"),
        ({"base_url": "ftp://host/v1"}, "must be http"),
        ({"base_url": "http:///v1"}, "must be http"),
        ({"base_url": "http://host:port/v1"}, "not a URL"),
        ({"base_url": "http://me:secret@host/v1"}, "without user"),
        ({"base_url": "http://host/v1?key=secret"}, "without user, query"),
        ({"base_url": "http://host/v1#top"}, "without user, query and fragment"),
        ({"model": ""}, "name is missing"),
        ({"api_key": SecretStr("secret\nX-Other: 1")}, "key has white space"),
        ({"api_key": SecretStr("sécret")}, "key has"),
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"total_timeout_s": 0.0}, "total_timeout_s is 0"),
        ({"extra": {"stream": True}}, "may not set 'stream'"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        ChatSettings(**{"base_url": URL, "model": "m", **changes})
    assert "secret" not in str(caught.value)
    assert "sécret" not in str(caught.value)


def test_the_key_does_not_show() -> None:
    settings = ChatSettings(URL, "m", SecretStr("sk-1234"))
    assert "sk-1234" not in f"{settings} {settings!r}"
