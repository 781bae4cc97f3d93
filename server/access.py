"""Where requests may come from that change the catalogue, bring events or use /admin.

Without API keys by default only from programs on this machine, and only while the server listens on
a loopback address: what comes through a proxy, or under another name than the machine's own (a web
page whose name was made to point here), is refused. A setting opens or closes each door for
everyone. With API keys (`server.keys_door`) whose request it is counts instead, and only a setting
closes a door.

/admin is not for the network, key or not: it answers on a listener of its own where `admin_port` is
set, else on the only one while that is a loopback address or where the setting `admin` says so.
"""

from __future__ import annotations

import ipaddress
import socket

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Problem, declares_json, refuse
from server.settings import ENVIRONMENT_PREFIX, Settings

ITEMS_PATH = "/v1/items"
EVENTS_PATH = "/v1/events"
ADMIN_PATH = "/admin"
PRIVATE_PATHS = frozenset({"/metrics", "/livez", "/readyz"})
"""What the listener of /admin has beside it."""
CHANGING_METHODS = frozenset({"PUT", "PATCH", "DELETE"})
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
_LOCAL_NAME = "localhost"
_SETTING = f"the setting catalogue_changes ({ENVIRONMENT_PREFIX}CATALOGUE_CHANGES)"
_EVENTS_SETTING = f"the setting events ({ENVIRONMENT_PREFIX}EVENTS)"
_ADMIN_SETTING = f"the setting admin ({ENVIRONMENT_PREFIX}ADMIN)"


def changes_catalogue(scope: Scope) -> bool:
    """Whether a request is one for a catalogue change."""
    path: str = scope["path"]
    if scope["method"] not in CHANGING_METHODS:
        return False
    return is_below(ITEMS_PATH, path)


def sends_events(scope: Scope) -> bool:
    """Whether a request brings events."""
    return scope["method"] == "POST" and scope["path"] == EVENTS_PATH


class CatalogueDoor:
    """ASGI middleware, before the body is read: 403 for those who may not change the catalogue,
    503 when `catalogue_requests` change it already (each may bring a large body)."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._loopback = is_loopback(settings.host)
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not changes_catalogue(scope):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except Problem as problem:
            await refuse(problem, scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1

    def _check(self, scope: Scope) -> None:
        refusal = self.refusal(scope)
        if refusal is not None:
            # The body has not been read, so the connection cannot be used again.
            raise Problem("changes-refused", refusal, headers={"Connection": "close"})
        if self._inside >= self._settings.catalogue_requests:
            raise Problem(
                "overloaded",
                f"{self._inside} requests are changing the catalogue, which is the limit",
                retry_after_s=self._settings.retry_after_s,
                headers={"Connection": "close"},
            )

    def refusal(self, scope: Scope) -> str | None:
        """Why this request may not change the catalogue, or None."""
        allowed = self._settings.catalogue_changes
        if allowed is not None:
            return None if allowed else f"{_SETTING} is false: this server only reads"
        if self._settings.keys_file is not None:
            return None
        return _not_local(scope, self._loopback, _SETTING)


class EventDoor:
    """ASGI middleware, before the body is read: 403 for those who may not send events, 415 for what
    does not say that it is JSON, 503 when `event_requests` are being taken already."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._loopback = is_loopback(settings.host)
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not sends_events(scope):
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope)
        if problem is not None:
            await refuse(problem, scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1

    def _problem(self, scope: Scope) -> Problem | None:
        # The body has not been read, so the connection cannot be used again.
        close = {"Connection": "close"}
        if refusal := self.refusal(scope):
            return Problem("events-refused", refusal, headers=close)
        if not declares_json(Request(scope)):
            detail = "send Content-Type: application/json"
            return Problem("unsupported-media-type", detail, headers=close)
        if self._inside >= self._settings.event_requests:
            return Problem(
                "overloaded",
                f"{self._inside} requests bring events, which is the limit",
                retry_after_s=self._settings.retry_after_s,
                headers=close,
            )
        return None

    def refusal(self, scope: Scope) -> str | None:
        """Why this request may not send events, or None."""
        allowed = self._settings.events
        if allowed is not None:
            return None if allowed else f"{_EVENTS_SETTING} is false"
        if self._settings.keys_file is not None:
            return None
        return _not_local(scope, self._loopback, _EVENTS_SETTING)


class AdminDoor:
    """ASGI middleware, before the body is read: 403 for those who may not use /admin, and 415 for
    what does not say that it is JSON, since a web page can send that without being asked. Where
    there is a listener for it, that has /admin, /metrics and the probes and nothing else."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._allowed = settings.admin
        self._with_keys = settings.keys_file is not None
        self._port = settings.admin_port
        self._loopback = is_loopback(
            settings.host if settings.admin_port is None else settings.admin_host
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = None
        if is_below(ADMIN_PATH, scope["path"]):
            problem = self._problem(scope)
        elif self._is_private(scope) and scope["path"] not in PRIVATE_PATHS:
            detail = f"this listener has only {ADMIN_PATH} and {', '.join(sorted(PRIVATE_PATHS))}"
            problem = Problem("not-found", detail, headers={"Connection": "close"})
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await refuse(problem, scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        # The body has not been read, so the connection cannot be used again.
        close = {"Connection": "close"}
        if refusal := self.refusal(scope):
            return Problem("admin-refused", refusal, headers=close)
        if scope["method"] == "POST" and not declares_json(Request(scope)):
            detail = "send Content-Type: application/json"
            return Problem("unsupported-media-type", detail, headers=close)
        return None

    def refusal(self, scope: Scope) -> str | None:
        """Why this request may not use /admin, or None."""
        if self._allowed is False:
            return f"{_ADMIN_SETTING} is false: nobody may"
        if self._port is not None and not self._is_private(scope):
            return f"{ADMIN_PATH} is on the listener of the setting admin_port alone"
        if self._allowed or (self._with_keys and (self._loopback or self._port is not None)):
            return None
        return _not_local(scope, self._loopback, _ADMIN_SETTING)

    def _is_private(self, scope: Scope) -> bool:
        """Whether a request came to the listener of /admin."""
        server = scope.get("server")
        return self._port is not None and server is not None and server[1] == self._port


def takes_changes(settings: Settings) -> bool:
    """Whether anybody may change the catalogue at all."""
    return _is_open(settings.catalogue_changes, settings)


def takes_events(settings: Settings) -> bool:
    """Whether anybody may send events at all."""
    return _is_open(settings.events, settings)


def _is_open(door: bool | None, settings: Settings) -> bool:
    if door is not None:
        return door
    return settings.keys_file is not None or is_loopback(settings.host)


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is reached from this machine only."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    return all(_is_loopback_address(str(address[0])) for *_, address in found)


def _not_local(scope: Scope, loopback: bool, setting: str) -> str | None:
    """Why a request is not believed to come from this machine itself, or None."""
    if not loopback:
        return f"the server does not listen on a loopback address; {setting} must be true"
    names = {name for name, _ in scope["headers"]}
    if names & _FORWARDED or not _is_local_name(_host_of(scope)):
        return f"the request does not come from this machine itself; {setting} must be true"
    return None


def is_below(folder: str, path: str) -> bool:
    """Whether a path is a folder or something in it."""
    return path == folder or path.startswith(f"{folder}/")


def _host_of(scope: Scope) -> str:
    """The name that the client called the server by, without its port."""
    given = next((value for name, value in scope["headers"] if name == b"host"), b"")
    host = given.decode("latin-1")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_local_name(name: str) -> bool:
    name = name.lower().rstrip(".")
    return name == _LOCAL_NAME or name.endswith(f".{_LOCAL_NAME}") or _is_loopback_address(name)


def _is_loopback_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False
