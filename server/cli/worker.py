"""`onesearch worker`: makes keywords for the queries that wait, until told to end.

SIGTERM and Ctrl-C drain: no new jobs, those in hand are finished, the status is 0. A second signal
ends at once; its jobs go to another worker.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import uuid
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from index.errors import ConfigError
from server import settings as settings_of
from server.settings import Settings

if TYPE_CHECKING:
    from models.registry.registry import Registry
    from server.keywords.generator import KeywordGenerator
    from server.keywords.metrics import WorkerMetrics
    from server.keywords.worker import Worker
    from server.keywords.worker_plan import WorkerPlan

EXIT_AT_ONCE = 130


def worker(
    generator: Annotated[
        str | None, typer.Option(help="statistical (default), llm or null.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Batches at the same time.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Jobs in a batch.")] = None,
    snapshot: Annotated[
        Path | None, typer.Option(help="Snapshot directory; the champion's if not given.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Dataset whose clicks the statistical generator learns.")
    ] = None,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when no job is left.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve /metrics there; 0 takes a free port."),
    ] = None,
    null_delay_s: Annotated[
        float, typer.Option(min=0, help="How long the null generator takes for a batch.")
    ] = 0.0,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; ONESEARCH_CONFIG names one too.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="At the end, print one JSON object on standard output.")
    ] = False,
) -> None:
    """Make keywords for queries that searches missed or `keywords warm` entered."""
    settings = settings_of.load(
        config,
        keyword_generator=generator,
        keyword_concurrency=concurrency,
        keyword_batch=batch,
        snapshot=snapshot,
        keyword_dataset=dataset,
    )
    from server.cli.serve import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        tally = runner.run(work(settings, until_empty, metrics_port, null_delay_s))
    if as_json:
        typer.echo(orjson.dumps(tally).decode())


def chosen_snapshot(settings: Settings) -> Path | None:
    """The snapshot that keywords are about: as given, else the champion's (of the registry or of
    the champion file, chosen as `serve` does), else None."""
    if settings.snapshot is not None:
        return settings.snapshot
    registry = followed_registry(settings)
    if registry is not None:
        return registry.choose(verify=False).snapshot
    if not settings.champion.is_file():
        return None
    from server.generation import read_champion

    return read_champion(settings.champion)[0]


def followed_registry(settings: Settings) -> Registry | None:
    """The registry whose champion's catalogue keywords are about; None where it does not say."""
    from models.registry.registry import Registry

    registry, named = Registry(settings.registry), settings.model_fields_set
    asked = "champion" not in named or "registry" in named
    if settings.snapshot is not None or not asked:
        return None
    return registry if registry.exists and registry.aliases().champion is not None else None


def plan_of(settings: Settings, until_empty: bool) -> WorkerPlan:
    """How the worker works.

    Unless it is set otherwise, an answer of a language model is a batch of its own: it took seconds
    and is stored at once, whatever becomes of the others. As many jobs are in hand as calls run.
    """
    from server.keywords.worker_plan import WorkerPlan

    concurrency, batch = settings.keyword_concurrency, settings.keyword_batch
    if settings.keyword_generator == "llm":
        if "keyword_batch" not in settings.model_fields_set:
            batch = 1
        if "keyword_concurrency" not in settings.model_fields_set:
            concurrency = math.ceil(settings.keyword_llm_concurrency / batch)
    return WorkerPlan(
        concurrency=concurrency,
        batch=batch,
        lease_s=settings.keyword_lease_s,
        drain_s=settings.keyword_drain_s,
        until_empty=until_empty,
    )


async def work(
    settings: Settings,
    until_empty: bool,
    metrics_port: int | None,
    null_delay_s: float,
    stop: asyncio.Event | None = None,
) -> dict[str, Any]:
    """Work until `stop` is set, by signals unless it is given; what was done."""
    from server.keywords.following import follow
    from server.keywords.generators import budget_of, open_generator
    from server.keywords.metrics import WorkerMetrics
    from server.keywords.queue import KeywordQueue
    from server.keywords.store import KeywordStore
    from server.keywords.worker import Worker, worker_error
    from server.logs import forward_standard_logging, make_logger
    from server.redis.keys import Keys
    from server.redis.opening import open_redis
    from server.traces import start_traces

    traces = start_traces(settings, "worker")
    log = make_logger(settings.log_level)
    keys = Keys(settings.redis_prefix)
    told = stop or asyncio.Event()
    async with open_redis(settings) as redis:
        store = KeywordStore(redis, keys)
        queue = KeywordQueue(
            redis,
            keys,
            limit=settings.keyword_queue_limit,
            lease_s=settings.keyword_lease_s,
            consumer=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        )
        budget = budget_of(settings)

        def opened(path: Path | None) -> AbstractAsyncContextManager[KeywordGenerator]:
            return open_generator(settings, path, store, null_delay_s, budget)

        registry, snapshot = followed_registry(settings), chosen_snapshot(settings)
        async with AsyncExitStack() as present:
            generator = await present.enter_async_context(opened(snapshot))
            metrics = WorkerMetrics(generator.name)
            plan = plan_of(settings, until_empty)
            forward_standard_logging(log)
            one = Worker(queue, store, keys, generator, metrics, log, plan, traces)
            _observe_llm(one, metrics)
            if stop is None:
                end_with_signals(told)
            with _exposed(metrics, settings.metrics_host, metrics_port) as port:
                log.info(
                    "working", generator=generator.name, version=generator.version, metrics=port
                )
                # Another one may take its place, and this one's catalogue is let go of then.
                del generator
                try:
                    async with asyncio.TaskGroup() as group:
                        following = None
                        if registry is not None and snapshot is not None:
                            following = group.create_task(
                                follow(registry, snapshot, opened, present, one, log)
                            )
                        tally = await one.run(told)
                        if following is not None:
                            following.cancel()
                except BaseExceptionGroup as group:
                    error = worker_error(group)
                    if error is None:
                        raise
                    raise error from None
                finally:
                    if traces is not None:
                        await asyncio.to_thread(traces.close)
            log.info("ended", **asdict(tally))
            made_by = {"generator": one.generator.name, "version": one.generator.version}
    return asdict(tally) | made_by


def _observe_llm(worker: Worker, metrics: WorkerMetrics) -> None:
    """Show what a language model's generator counts; others count nothing of their own."""
    from server.keywords.llm import LlmGenerator, LlmStats
    from server.keywords.llm_metrics import LlmCollector

    def stats() -> LlmStats:
        assert isinstance(worker.generator, LlmGenerator)
        return worker.generator.stats()

    if isinstance(worker.generator, LlmGenerator):
        metrics.registry.register(LlmCollector(stats))


def end_with_signals(stop: asyncio.Event) -> None:
    """The first SIGTERM or SIGINT sets `stop`, the second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        if stop.is_set():
            os._exit(EXIT_AT_ONCE)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)


@contextmanager
def _exposed(
    metrics: WorkerMetrics, host: str, port: int | None
) -> Generator[int | None, None, None]:
    """Serve a worker's metrics; the port, None without."""
    if port is None:
        yield None
        return
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise ConfigError(f"--metrics-port {port}: {error.strerror}; choose another") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
