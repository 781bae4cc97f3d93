"""What is counted of requests that are refused for who sends them. No label holds a client's text,
nor a key's name: how many there are is nobody's promise."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

KeyReason = Literal["missing", "unknown", "expired", "scope"]
Client = Literal["key", "address"]
CutReason = Literal["slow", "blocked", "crowded"]


class SecurityMetrics:
    """One gateway's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        refused = Counter(
            "onesearch_keys_refused",
            "Requests refused for their API key",
            ["reason"],
            registry=registry,
        )
        self._refused = {reason: refused.labels(reason) for reason in get_args(KeyReason)}
        limited = Counter(
            "onesearch_rate_limited",
            "Requests above their client's rate",
            ["client"],
            registry=registry,
        )
        self._limited = {client: limited.labels(client) for client in get_args(Client)}
        self.rates_local = Gauge(
            "onesearch_rates_local",
            "Whether rates are counted by this process alone though a Redis is named",
            registry=registry,
        )
        cut = Counter(
            "onesearch_connections_cut",
            "Connections closed for being slow or too many",
            ["reason"],
            registry=registry,
        )
        self._cut = {reason: cut.labels(reason) for reason in get_args(CutReason)}

    def key_refused(self, reason: KeyReason) -> None:
        """Count a request."""
        self._refused[reason].inc()

    def connection_cut(self, reason: CutReason) -> None:
        """Count a connection."""
        self._cut[reason].inc()

    def rate_limited(self, client: Client) -> None:
        """Count a request."""
        self._limited[client].inc()
