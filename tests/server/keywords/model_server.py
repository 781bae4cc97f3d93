"""A chat completions service that plays what a test tells it to, and a generator that asks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from server.keywords.breaker import CircuitBreaker
from server.keywords.budget import Budget
from server.keywords.chat import ChatSettings
from server.keywords.generator import GenerationError
from server.keywords.keywords import (
    KeywordRequest,
    Keywords,
)
from server.keywords.llm import Call, LlmGenerator

KEY = "sk-this-is-the-key"
JSON = "application/json"
UNDERSTANDING: dict[str, Any] = {
    "intents": ["function", "negation"],
    "categories": ["health"],
    "attributes": [{"type": "Function", "value": "relieve fatigue"}],
    "topics": ["relieve fatigue"],
    "excluded": ["supplements"],
    "keywords": ["massager", "energy supplements", "eye mask"],
}
QUERY = "Relieve fatigue, no supplements"
USER = KeywordRequest(
    QUERY, "u1", profile=(("brand", "Breo"),), clicked_titles=("Breo neck massager",)
)

Play: TypeAlias = Callable[[dict[str, Any], Send], Awaitable[None]]


class ModelServer:
    """Plays a chat completions service: each request takes the next play, the last one stays."""

    def __init__(self, *plays: Play) -> None:
        self.plays = list(plays)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.open = 0
        self.most_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.paths.append(scope["path"])
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        self.bodies.append(json.loads(content))
        play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await play(self.bodies[-1], send)
        finally:
            self.open -= 1

    def asked(self, place: int = -1) -> dict[str, Any]:
        """The data of a question, as the model sees it."""
        return json.loads(self.bodies[place]["messages"][-1]["content"])


async def respond(
    send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    pairs = {"content-type": JSON, **(headers or {})}
    start = [(k.encode(), v.encode()) for k, v in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def completion(content: Any, finish_reason: str = "stop", **message: Any) -> bytes:
    text = content if isinstance(content, str | None) else json.dumps(content)
    return json.dumps(
        {
            "choices": [{"message": {"content": text, **message}, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20},
        }
    ).encode()


def says(content: Any, finish_reason: str = "stop", **message: Any) -> Play:
    async def play(body: dict[str, Any], send: Send) -> None:
        await respond(send, 200, completion(content, finish_reason, **message))

    return play


def answers(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Play:
    async def play(request: dict[str, Any], send: Send) -> None:
        await respond(send, status, body, headers)

    return play


def sleeps(delay_s: float, then: Play) -> Play:
    async def play(body: dict[str, Any], send: Send) -> None:
        await asyncio.sleep(delay_s)
        await then(body, send)

    return play


Run: TypeAlias = Callable[..., list[Keywords | GenerationError]]
Serve: TypeAlias = Callable[..., ModelServer]


def with_generator(
    url: str,
    use: Callable[[LlmGenerator], Awaitable[Any]],
    budget: Budget | None = None,
    breaker: CircuitBreaker | None = None,
    generic: Any = None,
    observe: Callable[[Call], None] | None = None,
    patience_s: float = 60.0,
    **settings: Any,
) -> Any:
    """What `use` returns, given a generator that is closed afterwards."""

    async def run() -> Any:
        generator = LlmGenerator(
            ChatSettings(url, "tiny", SecretStr(KEY), **settings),
            budget,
            breaker,
            patience_s=patience_s,
            generic=generic,
            observe=observe,
            clock=lambda: 7.0,
        )
        try:
            return await use(generator)
        finally:
            await generator.aclose()

    return asyncio.run(run())


def found(answer: Keywords | GenerationError) -> Keywords:
    assert isinstance(answer, Keywords), answer
    return answer


def failed(answer: Keywords | GenerationError) -> GenerationError:
    assert isinstance(answer, GenerationError), answer
    assert KEY not in answer.message
    assert "fatigue" not in answer.message.lower()
    assert "\n" not in answer.message
    return answer
