"""Prometheus metrics of one gateway, on a registry of its own.

Labels are bounded: routes are templates of this program (anything else is "other"), methods and
degradations come from fixed lists, statuses are three-digit numbers that we send ourselves. What
engine and catalogue count and what is being served is read at each scrape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

from decoding.engine import EngineStats
from index.live.catalogue import LiveStatus
from server.headers import arrived, status_of
from server.search import Searcher

if TYPE_CHECKING:
    from server.traces import Traces

OTHER = "other"
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
_LATENCY_BUCKETS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 60.0),
)
_STAGE_BUCKETS_S = (
    *(0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02),
    *(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
_Reading = tuple[str, Callable[[EngineStats], float]]
_ENGINE_GAUGES: dict[str, _Reading] = {
    "queued_prompts": ("Prompts that wait", lambda stats: stats.queued_prompts),
    "queued_rows": ("Beam rows that wait", lambda stats: stats.queued_rows),
    "running_prompts": ("Prompts of the present wave", lambda stats: stats.running_prompts),
    "restarting": ("Whether it broke and is being started", lambda stats: stats.restarting),
    "wave_seconds": ("Recent time of a wave, smoothed", lambda stats: stats.wave_s),
}
_ENGINE_COUNTERS: dict[str, _Reading] = {
    "waves": ("Waves run", lambda stats: stats.waves),
    "prompts": ("Prompts that were in a wave", lambda stats: stats.prompts),
    "rows": ("Beam rows that were in a wave", lambda stats: stats.rows),
    "expired": ("Prompts dropped past their deadline", lambda stats: stats.expired),
    "shed": ("Prompts that the queue refused", lambda stats: stats.shed),
    "cancelled": ("Prompts that nobody waited for any more", lambda stats: stats.cancelled),
    "failed": ("Prompts that broke", lambda stats: stats.failed),
    "restarts": ("Times it broke and was started again", lambda stats: stats.restarts),
    "swaps": ("Generations that went live after the first", lambda stats: stats.swaps),
}
_CatalogueReading = tuple[str, Callable[[LiveStatus], float]]
_CATALOGUE_GAUGES: dict[str, _CatalogueReading] = {
    "sequence": ("Number of the last change", lambda status: status.sequence),
    "items": ("Items that can be found", lambda status: status.items),
    "added_rows": ("Rows added since the last merge", lambda status: status.added_rows),
    "deleted_rows": ("Rows deleted since the last merge", lambda status: status.deleted_rows),
    "waiting_changes": ("Changes handed in, not yet made", lambda status: status.waiting_changes),
    "log_bytes": ("Size of the change log", lambda status: status.log_bytes),
    "merging": ("Whether a merge is running", lambda status: status.merging),
    "last_merge_seconds": ("How long the last merge took", lambda status: status.last_merge_s),
    "merge_failed": ("Whether the last merge failed", lambda status: bool(status.merge_error)),
}
_CATALOGUE_COUNTERS: dict[str, _CatalogueReading] = {
    "changes_applied": ("Changes made", lambda status: status.applied),
    "changes_rejected": ("Changes that could not be made", lambda status: status.rejected),
    "publications": ("New states of the catalogue", lambda status: status.publications),
    "merges": ("Merges that went well", lambda status: status.merges),
}


class Metrics:
    """All the gateway counts. Created once, handed to what counts."""

    def __init__(self, traces: Traces | None = None) -> None:
        """`traces`: where what is timed goes as well."""
        self.traces = traces
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "onesearch_request_seconds",
            "Time to answer a request",
            ["route", "method", "status"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.stages = Histogram(
            "onesearch_stage_seconds",
            "Time spent in each stage of a search",
            ["stage"],
            buckets=_STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self.degraded = Counter(
            "onesearch_degraded",
            "Answers given without a part of the search",
            ["reason"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "onesearch_in_flight", "Requests under /v1 being answered", registry=self.registry
        )
        self.search_limit = Gauge(
            "onesearch_search_limit",
            "Searches let in at the same time, as it was after the last one",
            registry=self.registry,
        )
        self.shed = Counter(
            "onesearch_shed", "Requests refused by the admission limits", registry=self.registry
        )
        self.cache = Counter(
            "onesearch_cache",
            "Look-ups in the gateway's caches",
            ["cache", "result"],
            registry=self.registry,
        )
        self.illegal_hits = Counter(
            "onesearch_illegal_hits",
            "Hits that were no items under their SID: never, if all is well",
            registry=self.registry,
        )
        self.unknown_history = Counter(
            "onesearch_unknown_history_items",
            "History items that the catalogue does not have",
            registry=self.registry,
        )

    def observe(self, searcher: Searcher, version: str) -> None:
        """Show the searcher's engine, and beside this program's version what it serves."""
        self.registry.register(SearcherCollector(searcher, version))

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)


class RequestMetrics:
    """ASGI middleware: one observation for each answered request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._known: dict[tuple[str, str, int], Histogram] = {}
        """Children of the histogram: as few as there are labels, and slow to look up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            method = scope["method"] if scope["method"] in METHODS else OTHER
            key = route_of(scope), method, status_of(scope)
            requests = self._known.get(key)
            if requests is None:
                route, method, status = key
                requests = self._metrics.requests.labels(route, method, str(status))
                self._known[key] = requests
            requests.observe(time.monotonic() - arrived(scope))


def route_of(scope: Scope) -> str:
    """The template of the matched route, or "other": never the client's text."""
    return str(getattr(scope.get("route"), "path", OTHER))


class PassedOn(Collector):
    """What a library counts on the default registry, by the beginning of its metrics' names."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def collect(self) -> Iterable[Metric]:
        """The library's own metrics, as they are."""
        return [metric for metric in REGISTRY.collect() if metric.name.startswith(self._prefix)]

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are known only once the library has counted."""
        return []


class SearcherCollector(Collector):
    """Reads the searcher each time the metrics are scraped."""

    def __init__(self, searcher: Searcher, version: str) -> None:
        self._searcher = searcher
        self._version = version

    def collect(self) -> Iterable[Metric]:
        """What is being served, empty while there is nothing; the engine's numbers; the changing
        catalogue's."""
        serving = self._searcher.serving()
        labels = {
            "version": self._version,
            "model_version": serving.model_version if serving else "",
            # Without the number of the last change: each value of a label is kept for ever.
            "index_version": serving.index_version.partition("+")[0] if serving else "",
        }
        yield InfoMetricFamily("onesearch_build", "What is being served", labels)
        stats = self._searcher.engine_stats()
        for name, (text, read) in _ENGINE_GAUGES.items():
            yield GaugeMetricFamily(f"onesearch_engine_{name}", text, read(stats))
        for name, (text, read) in _ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"onesearch_engine_{name}", text, read(stats))
        status = self._searcher.catalogue_status()
        if status is None:
            return
        for name, (text, read) in _CATALOGUE_GAUGES.items():
            yield GaugeMetricFamily(f"onesearch_catalogue_{name}", text, read(status.live))
        for name, (text, read) in _CATALOGUE_COUNTERS.items():
            yield CounterMetricFamily(f"onesearch_catalogue_{name}", text, read(status.live))
        filters = CounterMetricFamily(
            "onesearch_catalogue_filters",
            "Filters by how they were answered, since the last merge",
            labels=["result"],
        )
        for result, count in status.filters.items():
            filters.add_metric([result], count)
        yield filters
