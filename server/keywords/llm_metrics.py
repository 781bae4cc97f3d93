"""What an LlmGenerator counts, for Prometheus: read at each scrape.

    registry.register(LlmCollector(generator.stats))

Labels are words of this program: outcomes are "answered" or a Failure, states those of the breaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from server.keywords.breaker import BreakerState
from server.keywords.llm import LlmStats

_PREFIX = "onesearch_keyword_llm"


class LlmCollector(Collector):
    """The numbers of one generator."""

    def __init__(self, read: Callable[[], LlmStats]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Calls and their time, replies, tokens, repairs, failures, the breaker."""
        stats = self._read()
        for name, text, label, counts in (
            ("calls", "HTTP requests to the model", "outcome", stats.calls),
            ("replies", "Questions to the model by what came of them", "outcome", stats.replies),
            ("failures", "Requests for keywords that failed", "failure", stats.failures),
            (
                "tokens",
                "Tokens as the service counts them",
                "kind",
                {"prompt": stats.prompt_tokens, "completion": stats.completion_tokens},
            ),
        ):
            family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=[label])
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family
        yield SummaryMetricFamily(
            f"{_PREFIX}_call_seconds",
            "Time of the HTTP requests to the model",
            count_value=sum(stats.calls.values()),
            sum_value=stats.call_s,
        )
        yield CounterMetricFamily(
            f"{_PREFIX}_repairs", "Wrong replies shown to the model again", stats.repairs
        )
        yield CounterMetricFamily(
            f"{_PREFIX}_breaker_opened", "Times the breaker opened", stats.breaker_opened
        )
        breaker = GaugeMetricFamily(
            f"{_PREFIX}_breaker", "1 for the state the breaker is in", labels=["state"]
        )
        for state in BreakerState:
            breaker.add_metric([state], float(state is stats.breaker))
        yield breaker
