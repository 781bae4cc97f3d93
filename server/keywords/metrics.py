"""What is counted of keywords: on the request path, in a worker, and of the queue between them.

Every label is one of a few words of this program; no query and no user is in any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.keywords.jobs import Priority
from server.keywords.queue import QueueStatus
from server.keywords.reader import MISSED_JOBS, STATES, Found, MissedJob
from server.processes import ProcessCollector

_GENERATION_BUCKETS_S = (
    *(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
OUTCOMES = ("made", "nothing", "retried", "dead", "repeated")
MEMORY, REDIS = "memory", "redis"


class ReaderMetrics:
    """Of a gateway: `onesearch_keyword_reads_total`, `onesearch_keyword_misses_total`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reads = Counter(
            "onesearch_keyword_reads",
            "Look-ups of keywords by searches",
            ["state", "source"],
            registry=registry,
        )
        self._entered = Counter(
            "onesearch_keyword_misses",
            "What became of the jobs of missing keywords",
            ["outcome"],
            registry=registry,
        )
        for state in STATES:
            for source in (MEMORY, REDIS):
                self._reads.labels(state, source)
        for outcome in MISSED_JOBS:
            self._entered.labels(outcome)

    def read(self, found: Found) -> None:
        """One look-up."""
        self._reads.labels(found.state, MEMORY if found.from_memory else REDIS).inc()

    def entered(self, what: MissedJob) -> None:
        """One job of a miss."""
        self._entered.labels(what).inc()


class WorkerMetrics:
    """Of a worker process, on a registry of its own."""

    def __init__(self, generator: str) -> None:
        self.registry = CollectorRegistry()
        self.status: QueueStatus | None = None
        self._jobs = Counter(
            "onesearch_keyword_jobs",
            "Jobs by what became of them: repeated ones had been done by another worker",
            ["generator", "outcome"],
            registry=self.registry,
        )
        self.jobs = {outcome: self._jobs.labels(generator, outcome) for outcome in OUTCOMES}
        self.seconds = Histogram(
            "onesearch_keyword_generation_seconds",
            "Time of a batch in the generator",
            ["generator"],
            buckets=_GENERATION_BUCKETS_S,
            registry=self.registry,
        ).labels(generator)
        self.batch = Histogram(
            "onesearch_keyword_batch_jobs",
            "Jobs handed to the generator at once",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        self.in_hand = Gauge(
            "onesearch_keyword_in_hand", "Jobs in this worker's hands", registry=self.registry
        )
        self.registry.register(QueueCollector(lambda: self.status))
        self.registry.register(ProcessCollector("worker"))


class QueueCollector(Collector):
    """The queue's numbers as they were last read; nothing while Redis is away."""

    def __init__(self, read: Callable[[], QueueStatus | None]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Jobs by priority, age of the oldest, dead letters."""
        status = self._read()
        if status is None:
            return
        waiting = GaugeMetricFamily(
            "onesearch_keyword_queue_waiting", "Jobs that wait", labels=["priority"]
        )
        oldest = GaugeMetricFamily(
            "onesearch_keyword_queue_oldest_seconds", "Age of the oldest job", labels=["priority"]
        )
        for priority in Priority:
            waiting.add_metric([priority], status.waiting[priority])
            oldest.add_metric([priority], status.oldest_s[priority])
        yield waiting
        yield oldest
        for name, text, value in (
            ("jobs", "Jobs that are not done", status.jobs),
            ("in_hand", "Jobs in the hands of all workers", status.in_hand),
            ("postponed", "Jobs that wait for their next attempt", status.postponed),
            ("dead", "Dead letters", status.dead),
            ("made", "Keywords kept for training", status.made),
        ):
            yield GaugeMetricFamily(f"onesearch_keyword_queue_{name}", text, value)
