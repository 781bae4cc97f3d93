"""Which generation a server serves and whether it should be another, read at each scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.rollout import Rollout


class RolloutCollector(Collector):
    """Reads a rollout's status. Only the generation served now is a label."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    def collect(self) -> Iterable[Metric]:
        """The generation, its alias and the registry's revision; whether the champion is not
        served; what was promoted here and what was refused."""
        status = self._rollout.status()
        labels = {"generation": status.generation, "alias": status.alias}
        yield InfoMetricFamily("onesearch_generation", "The generation that is served", labels)
        yield GaugeMetricFamily(
            "onesearch_generation_revision",
            "Revision of the registry's aliases, as last seen",
            status.revision,
        )
        yield GaugeMetricFamily(
            "onesearch_generation_behind",
            "Whether the champion could not be served",
            bool(status.problem),
        )
        yield CounterMetricFamily(
            "onesearch_generation_promotions",
            "Generations that went live after the first",
            status.promotions,
        )
        yield CounterMetricFamily(
            "onesearch_generation_refusals",
            "Generations that were not taken",
            status.refusals,
        )
