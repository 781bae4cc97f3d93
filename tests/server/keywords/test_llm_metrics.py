"""What Prometheus reads of a language model."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from server.keywords.breaker import BreakerState
from server.keywords.llm import LlmStats
from server.keywords.llm_metrics import LlmCollector


def test_metrics_are_read_at_each_scrape() -> None:
    stats = LlmStats(
        calls={"answered": 3, "timeout": 1},
        call_s=2.5,
        replies={"valid": 2, "repaired": 1},
        failures={"timeout": 1},
        repairs=1,
        prompt_tokens=300,
        completion_tokens=60,
        breaker=BreakerState.OPEN,
        breaker_opened=2,
        response_format="schema",
    )
    registry = CollectorRegistry()
    registry.register(LlmCollector(lambda: stats))
    lines = set(generate_latest(registry).decode().splitlines())
    assert {
        'onesearch_keyword_llm_calls_total{outcome="answered"} 3.0',
        'onesearch_keyword_llm_calls_total{outcome="timeout"} 1.0',
        'onesearch_keyword_llm_replies_total{outcome="repaired"} 1.0',
        'onesearch_keyword_llm_failures_total{failure="timeout"} 1.0',
        'onesearch_keyword_llm_tokens_total{kind="prompt"} 300.0',
        'onesearch_keyword_llm_tokens_total{kind="completion"} 60.0',
        "onesearch_keyword_llm_call_seconds_count 4.0",
        "onesearch_keyword_llm_call_seconds_sum 2.5",
        "onesearch_keyword_llm_repairs_total 1.0",
        "onesearch_keyword_llm_breaker_opened_total 2.0",
        'onesearch_keyword_llm_breaker{state="open"} 1.0',
        'onesearch_keyword_llm_breaker{state="closed"} 0.0',
    } <= lines
