"""What is counted of events, exposures and user contexts.

Every label is one of a few words of this program; no user, query or item is in any.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from server.context import CONTEXT_READS, ContextRead

OUTCOMES = ("accepted", "duplicate", "rejected", "failed")
LOGGED, DROPPED = "logged", "dropped"


class BehaviourMetrics:
    """Of a gateway: `onesearch_events_total`, `onesearch_exposures_total`,
    `onesearch_exposures_waiting`, `onesearch_context_reads_total`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "onesearch_events",
            "Events sent, by what became of them; failed: Redis was away",
            ["outcome"],
            registry=registry,
        )
        self._exposures = Counter(
            "onesearch_exposures",
            "What searches showed, written down or dropped",
            ["outcome"],
            registry=registry,
        )
        self._waiting = Gauge(
            "onesearch_exposures_waiting", "Exposures that are not written yet", registry=registry
        )
        self._reads = Counter(
            "onesearch_context_reads",
            "Look-ups of what a user did before, in Redis",
            ["result"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._events.labels(outcome)
        for outcome in (LOGGED, DROPPED):
            self._exposures.labels(outcome)
        for result in CONTEXT_READS:
            self._reads.labels(result)

    def events(self, **counts: int) -> None:
        """So many of each of OUTCOMES."""
        for outcome, count in counts.items():
            self._events.labels(outcome).inc(count)

    def logged(self, exposures: int) -> None:
        """Written to Redis."""
        self._exposures.labels(LOGGED).inc(exposures)

    def dropped(self, exposures: int) -> None:
        """Lost: too many waited, or the process ended."""
        self._exposures.labels(DROPPED).inc(exposures)

    def context_read(self, what: ContextRead) -> None:
        """One look-up."""
        self._reads.labels(what).inc()

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Show the length of the exposures' queue."""
        self._waiting.set_function(waiting)
