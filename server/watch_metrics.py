"""How a server learns which generation to serve, read at each scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.watch import Watch


class WatchCollector(Collector):
    """Reads a watch's status."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[Metric]:
        """Generations by the way in which they were learnt; where a Redis is named, whether its
        announcements are heard, and how many there were."""
        status = self._watch.status()
        learnt = CounterMetricFamily(
            "onesearch_generation_learnt",
            "Generations that went live after the first, by how this server learnt of them",
            labels=["way"],
        )
        for way, count in status.ways.items():
            learnt.add_metric([way], count)
        yield learnt
        if status.channel == "off":
            return
        yield GaugeMetricFamily(
            "onesearch_announcements_connected",
            "Whether announcements of promotions are heard",
            status.channel == "on",
        )
        messages = CounterMetricFamily(
            "onesearch_announcements", "Announcements of promotions", labels=["what"]
        )
        for what, count in status.messages.items():
            messages.add_metric([what], count)
        yield messages
