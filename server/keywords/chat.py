"""A client for OpenAI-compatible chat completions: one POST, one reply, and a name for every way
in which that can go wrong.

Where it connects comes from the configuration alone: http or https, redirects are not followed, no
proxy or netrc of the environment is used. The key is sent in one header and is in no message: what
the service wrote into an error is not repeated (it may quote the key or the query), except for its
short error code. A reply is read up to a limit, uncompressed, and within a total time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import httpx
import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from index.errors import ConfigError
from server.keywords.generator import Failure
from server.keywords.prompt import Message

DEFAULT_TEMPERATURE = 0.2
DEFAULT_MAX_TOKENS = 512
DEFAULT_CONCURRENCY = 8
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
TOTAL_TIMEOUT_S = 90.0
REPLY_BYTES = 256 * 1024
# When a service asks for patience and does not say how long, and the most that it may ask for.
RETRY_AFTER_S = 5.0
MAX_RETRY_AFTER_S = 3600.0
REASON_LENGTH = 160

_MAX_USAGE = 10_000_000
_CODE = re.compile(r"[a-z0-9_.-]{1,64}")
_RESERVED = frozenset({"model", "messages", "stream", "response_format"})
_UNUSABLE = {
    401: "it wants another key",
    403: "the key may not do this",
    404: "it does not know the path or the model",
    405: "it takes no POST on this path",
}
_BAD_FORMAT = frozenset({400, 415, 422, 501})


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """Where the model is and how it is asked.

    `base_url` is what comes before "/chat/completions", e.g. "http://127.0.0.1:8000/v1". `extra`:
    more fields of the request body, e.g. {"chat_template_kwargs": {"enable_thinking": False}}; a
    field that is None is left out of the body (some services call `max_tokens` otherwise).
    `read_timeout_s` must cover the writing of a whole reply, which arrives at once. Raises
    ConfigError.
    """

    base_url: str
    model: str
    api_key: SecretStr | None = None
    temperature: float = DEFAULT_TEMPERATURE
    max_tokens: int = DEFAULT_MAX_TOKENS
    concurrency: int = DEFAULT_CONCURRENCY
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S
    total_timeout_s: float = TOTAL_TIMEOUT_S
    reply_bytes: int = REPLY_BYTES
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"the model's base_url is not a URL: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError("the model's base_url must be http://HOST… or https://HOST…")
        if url.userinfo or url.query or url.fragment:
            raise ConfigError("the model's base_url must be without user, query and fragment")
        if _is_nobodys(url.host):
            raise ConfigError(
                f"the model's base_url names {url.host}: an address of clouds' metadata, of a link "
                "or of many machines is no model's"
            )
        if not self.model:
            raise ConfigError("the model's name is missing")
        key = self.api_key.get_secret_value() if self.api_key else ""
        if not (key.isascii() and key.isprintable()) or key != key.strip():
            raise ConfigError("the model's key has white space or other characters no key has")
        if not 0 <= self.temperature <= 2:
            raise ConfigError(f"temperature is {self.temperature}, it must be 0 to 2")
        for name in ("max_tokens", "concurrency", "reply_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("connect_timeout_s", "read_timeout_s", "total_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be above 0")
        if taken := _RESERVED & self.extra.keys():
            raise ConfigError(f"extra may not set {min(taken)!r}")

    @property
    def origin(self) -> str:
        """What messages call the service: scheme, host and port."""
        url = httpx.URL(self.base_url)
        return f"{url.scheme}://{url.netloc.decode()}"


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote. Tokens are None where the service does not count them."""

    text: str
    cut_off: bool
    prompt_tokens: int | None
    completion_tokens: int | None


class ChatError(Exception):
    """No completion. `str(error)` is one line for a person, without key and query.

    `retry_after_s`: when to try again, where the service says so. `blames`: whether this speaks
    against the service as a whole. `spent`: whether tokens may have been used.
    """

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        retry_after_s: float | None = None,
        blames: bool = False,
        spent: bool = False,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.retry_after_s = retry_after_s
        self.blames = blames
        self.spent = spent


class FormatError(ChatError):
    """The service cannot read the request; perhaps it does not take this response format."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Message(_Wire):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Wire):
    message: _Message
    finish_reason: str | None = None


class _Usage(_Wire):
    prompt_tokens: Annotated[int, Field(ge=0, le=_MAX_USAGE)] | None = None
    completion_tokens: Annotated[int, Field(ge=0, le=_MAX_USAGE)] | None = None


class _Reply(_Wire):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class ChatClient:
    """Asks one service. Used on one event loop, closed with `aclose`."""

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings
        self._url = httpx.URL(settings.base_url.rstrip("/") + "/chat/completions")
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if settings.api_key is not None:
            headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
        self._http = httpx.AsyncClient(
            headers=headers,
            follow_redirects=False,
            trust_env=False,
            verify=_certificates(self._url.scheme),
            limits=httpx.Limits(max_connections=settings.concurrency),
            timeout=httpx.Timeout(settings.read_timeout_s, connect=settings.connect_timeout_s),
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def complete(
        self, messages: Sequence[Message], response_format: Mapping[str, Any] | None
    ) -> Completion:
        """One completion. Raises ChatError; FormatError if the format may be the reason."""
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": messages,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "stream": False,
            **settings.extra,
        }
        if response_format is not None:
            body["response_format"] = response_format
        given = {name: value for name, value in body.items() if value is not None}
        try:
            async with asyncio.timeout(settings.total_timeout_s):
                status, headers, content = await self._post(orjson.dumps(given))
        except httpx.ConnectTimeout:
            raise self._unavailable("no connection in time") from None
        except (TimeoutError, httpx.TimeoutException):
            raise ChatError(
                Failure.TIMEOUT, f"{settings.origin}: no reply in time", blames=True, spent=True
            ) from None
        except httpx.ConnectError as error:
            # Words of the operating system or of TLS; nothing was sent yet.
            reason = " ".join(str(error).split())[:REASON_LENGTH]
            raise self._unavailable(f"no connection ({reason})") from None
        except httpx.RequestError as error:
            raise self._unavailable(
                f"the connection broke ({type(error).__name__})", spent=True
            ) from None
        if status != 200:
            raise self._error(status, headers, content)
        return self._completion(headers, content)

    async def _post(self, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of the reply. Of an error no more than its beginning is read."""
        headers = {"Content-Type": "application/json"}
        async with self._http.stream("POST", self._url, content=body, headers=headers) as reply:
            content, limit = bytearray(), self._settings.reply_bytes
            async for part in reply.aiter_raw():
                content += part
                if len(content) > limit:
                    if reply.status_code != 200:
                        break
                    raise ChatError(
                        Failure.INVALID_ANSWER,
                        f"{self._settings.origin}: the reply is larger than {limit} bytes",
                        blames=True,
                        spent=True,
                    )
            return reply.status_code, reply.headers, bytes(content[:limit])

    def _error(self, status: int, headers: httpx.Headers, content: bytes) -> ChatError:
        code = self._code(content)
        said = f"{self._settings.origin}: {status}{f' ({code})' if code else ''}"
        patience = _retry_after_s(headers)
        if status == 429:
            patience = RETRY_AFTER_S if patience is None else patience
            return ChatError(Failure.RATE_LIMITED, said, retry_after_s=patience)
        if status in _BAD_FORMAT:
            return FormatError(Failure.INVALID_REQUEST, f"{said}, it refuses the request")
        if status == 413:
            return ChatError(Failure.INVALID_REQUEST, f"{said}, the request is too large for it")
        if 300 <= status < 400:
            said += ", it answers with a redirect, which is not followed: mend base_url"
        elif status in _UNUSABLE:
            said += f", {_UNUSABLE[status]}"
        return ChatError(Failure.UNAVAILABLE, said, retry_after_s=patience, blames=True)

    def _completion(self, headers: httpx.Headers, content: bytes) -> Completion:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise self._unavailable("the reply is not JSON; is base_url right?", spent=True)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise self._unavailable("the reply is compressed though nobody asked", spent=True)
        try:
            reply = _Reply.model_validate_json(content)
        except ValidationError:
            raise self._unavailable("the reply is no chat completion", spent=True) from None
        choice, usage = reply.choices[0], reply.usage or _Usage()
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise ChatError(
                Failure.REFUSED, f"{self._settings.origin}: the model refused", spent=True
            )
        return Completion(
            choice.message.content or "",
            choice.finish_reason == "length",
            usage.prompt_tokens,
            usage.completion_tokens,
        )

    def _unavailable(self, message: str, *, spent: bool = False) -> ChatError:
        said = f"{self._settings.origin}: {message}"
        return ChatError(Failure.UNAVAILABLE, said, blames=True, spent=spent)

    def _code(self, content: bytes) -> str:
        """The short code in an OpenAI-style error, if that is what it is."""
        try:
            raw = orjson.loads(content)
        except orjson.JSONDecodeError:
            return ""
        error = raw.get("error") if isinstance(raw, dict) else None
        code = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
        key = self._settings.api_key
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            return ""
        return "" if key and key.get_secret_value() in code else code


def _is_nobodys(host: str) -> bool:
    """Whether an address cannot be that of a service: link-local ones are where clouds hand out
    credentials."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_link_local or address.is_multicast or address.is_unspecified


def _certificates(scheme: str) -> ssl.SSLContext:
    """Whom TLS trusts: what httpx brings along, the system's store, SSL_CERT_FILE."""
    if scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Retry-After, in seconds from now; None if it is missing or makes no sense."""
    raw = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", raw):
        return min(float(raw), MAX_RETRY_AFTER_S)
    try:
        wait_s = parsedate_to_datetime(raw).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)
