"""Traces of searches, from the gateway to the keyword worker, for an OpenTelemetry collector.

    POST /v1/search                     one request; a W3C `traceparent` that it brings is continued
      context                           history, from the request or Redis
      prepare ▸ embedding               query, filter, prompt
      keywords                          what Redis had, within the budget
      engine ▸ queue, beam              the wait for a wave, the wave
      rank ▸ candidates, rescoring, hits
      keywords.enter                    a job for what was missing: it carries the trace on
        keywords.job ▸ queue, generate, store       in the worker's process

Off unless `otlp_endpoint` is set: then nothing of OpenTelemetry is imported, and `start_traces`
gives None. Spans are made of times that were taken anyway, when what they tell of has ended, and
are sent by a thread of its own: no request waits for the collector, and while that is away spans
are dropped.

A trace holds no user ids, items or headers; query texts where `trace_queries` says so. Which
requests are traced is decided here, by `trace_share` and the trace's id: a client can ask for less
(a `traceparent` that says "not sampled"), not for more. The worker follows the gateway.
Source: W3C Trace Context, OpenTelemetry's specification of tracing.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from index.errors import ConfigError
from server.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

EXPORT_TIMEOUT_S = 5.0
"""Of one batch of spans, and at the end of the process for those that are left."""
Value = str | int | float | bool | Sequence[str]


class Traces:
    """Makes spans and sends them. Safe to use from several threads."""

    def __init__(
        self,
        service: str,
        exporter: SpanExporter,
        *,
        share: float = 1.0,
        follows: bool = False,
        with_queries: bool = False,
    ) -> None:
        """`follows`: what began elsewhere is traced as was decided there."""
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        by_share = TraceIdRatioBased(share)
        sampler = ParentBased(by_share, **({} if follows else {"remote_parent_sampled": by_share}))
        resource = Resource.create(
            {"service.name": service, "service.version": version("onesearch")}
        )
        self.with_queries = with_queries
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("onesearch")
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Generator[Span, None, None]:
        """A request is answered in this block; spans made meanwhile, here and in tasks that are
        begun here, are part of it."""
        with self._tracer.start_as_current_span(
            "request",
            self._propagator.extract(headers),
            self._trace.SpanKind.SERVER,
            # An exception's text may hold what a client sent.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    @property
    def recording(self) -> bool:
        """Whether the request at hand is traced; it may have been answered meanwhile."""
        return self._trace.get_current_span().get_span_context().trace_flags.sampled

    @property
    def traceparent(self) -> str | None:
        """Names the request at hand to another process; None outside of a request."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")

    def stage(self, name: str, seconds: float, parts: Mapping[str, float]) -> None:
        """A span that has just ended, of the request at hand. `parts`: seconds of what happened in
        it, one after the other from its beginning."""
        if not self.recording:
            return
        self._record_parts(self.record(name, seconds), seconds, parts)

    def job(
        self, name: str, traceparent: str, parts: Mapping[str, float], facts: Mapping[str, Value]
    ) -> None:
        """Spans of a job that has just ended, of the request that another process named. `parts`:
        as of `stage`, the wait in the queue first."""
        request = self._propagator.extract({"traceparent": traceparent})
        seconds = sum(parts.values())
        job = self.record(name, seconds, within=request, consumes=True, facts=facts)
        self._record_parts(job, seconds, parts)

    def record(
        self,
        name: str,
        seconds: float,
        *,
        ago_s: float = 0.0,
        within: Context | None = None,
        consumes: bool = False,
        facts: Mapping[str, Value] | None = None,
    ) -> Context:
        """A span of so many seconds that ended `ago_s` ago; a parent for others. `within`: its own
        parent, the request at hand if not given. `consumes`: a job that came through a queue."""
        kind = self._trace.SpanKind.CONSUMER if consumes else self._trace.SpanKind.INTERNAL
        ended_ns = time.time_ns() - round(ago_s * 1e9)
        began_ns = ended_ns - round(seconds * 1e9)
        attributes = {f"onesearch.{fact}": value for fact, value in (facts or {}).items()}
        span = self._tracer.start_span(name, within, kind, attributes, start_time=began_ns)
        span.end(ended_ns)
        return self._trace.set_span_in_context(span, within)

    def _record_parts(self, whole: Context, seconds: float, parts: Mapping[str, float]) -> None:
        for part, part_s in parts.items():
            seconds -= part_s
            self.record(part, part_s, ago_s=seconds, within=whole)

    def close(self) -> None:
        """Send what is left, for EXPORT_TIMEOUT_S at most. Blocks."""
        self._provider.force_flush(round(EXPORT_TIMEOUT_S * 1000))
        self._provider.shutdown()


def start_traces(settings: Settings, service: Literal["gateway", "worker"]) -> Traces | None:
    """What the settings ask for; None where they name no collector.

    Raises ConfigError for an address that is none, or where OpenTelemetry is not installed.
    """
    endpoint = settings.otlp_endpoint
    if not endpoint:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError("otlp_endpoint must begin with http:// or https://")
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise ConfigError(
            "otlp_endpoint is set and OpenTelemetry not installed: pip install 'onesearch[otel]'"
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    url = f"{endpoint.rstrip('/')}/v1/traces"
    return Traces(
        f"onesearch-{service}",
        OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_S),
        share=settings.trace_share,
        follows=service == "worker",
        with_queries=settings.trace_queries,
    )
