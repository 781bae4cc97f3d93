"""Which generation a server serves, whether it should be another, and how its canary does; read at
each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.figures import OUTCOMES, Outcome
from server.generation import CHALLENGER, CHAMPION
from server.rollout import Rollout
from server.rollout_status import RolloutStatus
from server.shadow import ShadowFigures


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
        yield CounterMetricFamily(
            "onesearch_generation_rollbacks",
            "Promotions that were taken back here because they served clearly worse",
            status.rollbacks,
        )
        yield GaugeMetricFamily(
            "onesearch_generation_trials",
            "Generations whose searches are being compared with another's",
            len(status.trials),
        )
        change = GaugeMetricFamily(
            "onesearch_generation_change_seconds",
            "Parts of the last change of the generation that is served",
            labels=["part"],
        )
        for part, milliseconds in self._rollout.last_change_ms.items():
            change.add_metric([part], milliseconds / 1000)
        yield change
        yield from _canary(status)
        yield _arms(self._rollout.arms())
        if status.shadow is not None:
            yield from _shadow(status.shadow)


def _canary(status: RolloutStatus) -> Iterable[Metric]:
    canary = status.canary
    yield GaugeMetricFamily(
        "onesearch_canary_share",
        "Share of the users that the challenger answers here",
        canary.share if canary is not None and canary.served else 0.0,
    )
    yield GaugeMetricFamily(
        "onesearch_canary_behind",
        "Whether the registry has a canary that is not served here",
        canary is not None and not canary.served,
    )
    yield CounterMetricFamily(
        "onesearch_canary_stops",
        "Canaries that were stopped here because they served clearly worse",
        status.stops,
    )


def _arms(counts: Mapping[tuple[str, Outcome], int]) -> Metric:
    family = CounterMetricFamily(
        "onesearch_arm_searches", "Searches of a canary", labels=["arm", "outcome"]
    )
    for arm in (CHAMPION, CHALLENGER):
        for outcome in OUTCOMES:
            family.add_metric([arm, outcome], counts.get((arm, outcome), 0))
    return family


def _shadow(figures: ShadowFigures) -> Iterable[Metric]:
    for name, text, value in (
        ("compared", "Searches that were asked of the challenger too", figures.compared),
        ("illegal", "Hits of the challenger that are no items under their SID", figures.illegal),
        ("failed", "Compared searches that only the challenger failed", figures.failed),
        ("dropped", "Searches that were not compared, for want of room or time", figures.dropped),
    ):
        yield CounterMetricFamily(f"onesearch_shadow_{name}", text, value)
    for name, text, value in (
        ("overlap", "Common hits of the first ten, mean", figures.overlap),
        ("rbo", "Rank-biased overlap of the first ten, mean", figures.rbo),
        ("latency_ratio", "Challenger's time over champion's", figures.latency_ratio),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"onesearch_shadow_{name}", text, value)
