"""Who may ask for what, where API keys are in use: a key in `Authorization: Bearer`, with the scope
that its path needs.

Every path needs one except those listed as public, so a path that is added later is shut until
somebody decides. Doors (`server.access`) still say where requests may come from; this says whose
they are.

    search    everything under /v1/ that is not said below
    events    POST /v1/events
    ingest    PUT, PATCH, DELETE /v1/items
    metrics   GET /metrics
    admin     /admin, and whatever is not public
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from server.access import changes_catalogue, is_below
from server.errors import Problem, refuse
from server.keys import Key, KeyScope
from server.keys_ring import KeyRing
from server.security_metrics import SecurityMetrics

PUBLIC = frozenset({"/", "/docs", "/openapi.json", "/livez", "/readyz"})
PROBLEMS_FOLDER = "/problems"
API_FOLDER = "/v1"
METRICS_PATH = "/metrics"
EVENTS_PATH = "/v1/events"
_SCHEME = b"bearer "


def scope_needed(scope: Scope) -> KeyScope | None:
    """What a key needs for a request; None where no key is needed."""
    path: str = scope["path"]
    if path in PUBLIC or is_below(PROBLEMS_FOLDER, path):
        return None
    if path == METRICS_PATH:
        return "metrics"
    if changes_catalogue(scope):
        return "ingest"
    if is_below(EVENTS_PATH, path):
        return "events"
    return "search" if is_below(API_FOLDER, path) else "admin"


class KeyDoor:
    """ASGI middleware, before the body is read: 401 without a valid key, 403 without its scope.

    The key of a request that passes is `scope["onesearch.key"]`."""

    def __init__(
        self, app: ASGIApp, ring: KeyRing, metrics: SecurityMetrics, public_metrics: bool = False
    ) -> None:
        self._app = app
        self._ring = ring
        self._metrics = metrics
        self._public_metrics = public_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        needed = scope_needed(scope)
        if needed is None or (needed == "metrics" and self._public_metrics):
            await self._app(scope, receive, send)
            return
        found = self._key_of(scope)
        if isinstance(found, Problem):
            await refuse(found, scope, receive, send)
            return
        scope["onesearch.client"] = found.name
        if needed not in found.scopes:
            self._metrics.key_refused("scope")
            problem = Problem(
                "scope-missing",
                f"the key does not have the scope {needed}",
                headers={"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope"'},
            )
            await refuse(problem, scope, receive, send)
            return
        scope["onesearch.key"] = found
        await self._app(scope, receive, send)

    def _key_of(self, scope: Scope) -> Key | Problem:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            self._metrics.key_refused("missing")
            return _unauthorised("send a key: Authorization: Bearer …")
        found = "unknown"
        if len(given) == 1 and given[0][: len(_SCHEME)].lower() == _SCHEME:
            found = self._ring.find(given[0][len(_SCHEME) :].strip().decode("latin-1"))
        if isinstance(found, Key):
            return found
        self._metrics.key_refused(found)
        if found == "expired":
            return _unauthorised("the key has expired", "invalid_token")
        return _unauthorised("this is no key of this server", "invalid_token")


_CHALLENGE = 'Bearer realm="onesearch"'


def _unauthorised(detail: str, error: str = "") -> Problem:
    challenge = f'{_CHALLENGE}, error="{error}"' if error else _CHALLENGE
    return Problem("key-refused", detail, headers={"WWW-Authenticate": challenge})
