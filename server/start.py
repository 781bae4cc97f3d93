"""Puts the running parts together: generation, engine, pipeline."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

import torch
from structlog.typing import FilteringBoundLogger

from decoding.engine import Engine
from decoding.native.engine import NativeEngine
from decoding.native.runner import Runner, default_threads
from index.live.catalogue import LiveSettings
from index.live.nursery import Nursery
from server.access import takes_changes
from server.context import InMemoryUserContexts, UserContexts
from server.generation import Generation, Generations
from server.keywords.metrics import QueueCollector, ReaderMetrics
from server.keywords.queue import KeywordQueue
from server.keywords.reader import KeywordReader
from server.keywords.store import KeywordStore
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.redis.opening import embedded_server
from server.settings import Settings


async def start_pipeline(
    settings: Settings,
    snapshot: Path,
    checkpoint: Path,
    metrics: Metrics,
    log: FilteringBoundLogger,
    contexts: UserContexts | None = None,
) -> Pipeline:
    """Open, check and warm up; the pipeline is ready for searches. `contexts`: in memory unless
    given.

    Raises ArtifactError when snapshot or checkpoint are missing, damaged or do not fit.
    """
    keywords = await start_keywords(settings, metrics, log)
    try:
        generation, engine = await _start_engine(settings, snapshot, checkpoint)
    except BaseException:
        if keywords is not None:
            await keywords.close()
        raise
    return Pipeline(
        Generations(generation),
        engine,
        contexts or InMemoryUserContexts(settings.remembered_users, settings.remembered_items),
        settings,
        metrics,
        log,
        keywords,
    )


async def start_keywords(
    settings: Settings, metrics: Metrics, log: FilteringBoundLogger
) -> KeywordReader | None:
    """What searches read keywords with; None where they are off. A Redis that is named need not
    answer yet; the embedded one does when this returns.

    Raises ConfigError for a wrong address or where there is no server program.
    """
    if settings.keywords == "off":
        return None
    server = embedded_server(settings)
    if server is not None:
        await asyncio.to_thread(server.start)
    url = settings.redis_address or (server.url if server is not None else "")
    redis, keys = RedisConnection(url, settings.redis_timeout_s), Keys(settings.redis_prefix)
    reader = KeywordReader(
        redis,
        KeywordStore(redis, keys, settings.keyword_cache_entries),
        KeywordQueue(redis, keys, limit=settings.keyword_queue_limit),
        ReaderMetrics(metrics.registry),
        log,
        settings.keyword_budget_ms / 1000,
        server,
        traces=metrics.traces,
    )
    metrics.registry.register(QueueCollector(lambda: reader.status))
    return reader


async def _start_engine(
    settings: Settings, snapshot: Path, checkpoint: Path
) -> tuple[Generation, Engine]:
    # Now already: what is measured while loading is measured as it will be run.
    torch.set_num_threads(_threads(settings))
    generation = await asyncio.to_thread(load_generation, settings, snapshot, checkpoint)
    try:
        engine, generation = await start_engine(settings, generation)
    except BaseException:
        generation.close()
        raise
    return generation, engine


def load_generation(
    settings: Settings, snapshot: Path, checkpoint: Path, nursery: Nursery | None = None
) -> Generation:
    """A pair as the engine of the settings serves it: with its weights for the native one, named
    for vLLM's, which loads them when it swaps. Its catalogue takes changes where the settings let
    somebody send them, with a writer from `nursery`. Raises like `Generation.open`."""
    changes = _merging(settings) if takes_changes(settings) else None
    generation = Generation.open(
        snapshot,
        checkpoint,
        verify=settings.verify,
        directory=settings.live_directory,
        changes=changes,
        nursery=nursery,
    )
    try:
        return with_weights(settings, generation)
    except BaseException:
        generation.close()
        raise


def with_weights(settings: Settings, generation: Generation) -> Generation:
    """An opened pair with what the settings' engine searches it with: see `load_generation`."""
    if settings.engine == "vllm":
        # Its lines are none of our log's; what it warns of is let through. Read at its import.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from decoding.vllm.engine import VllmGeneration

        return generation.named(
            VllmGeneration(generation.checkpoint.path, generation.view.base.trie)
        )
    return generation.with_runner(settings.engine_device, settings.engine_dtype)


async def start_engine(settings: Settings, generation: Generation) -> tuple[Engine, Generation]:
    """The settings' engine with a loaded generation, and the generation as the engine names it."""
    if settings.engine == "vllm":
        return await _start_vllm(settings, generation)
    # CUDA's runner has the same surface.
    runner = cast(Runner, generation.runner)
    return await NativeEngine(runner, threads=_threads(settings)).start(), generation


async def _start_vllm(settings: Settings, generation: Generation) -> tuple[Engine, Generation]:
    # Needs vLLM, which has an environment of its own.
    from decoding.vllm.engine import VllmEngine
    from decoding.vllm.settings import VllmSettings

    dtype = settings.engine_dtype
    if dtype == "auto":
        dtype = "bfloat16" if settings.engine_device == "cuda" else "float32"
    engine = await VllmEngine.open(
        generation.checkpoint.path,
        generation.view.base.trie,
        VllmSettings(
            device=settings.engine_device,
            dtype=dtype,
            kv_cache_gb=settings.vllm_cache_gb,
            gpu_memory_share=settings.vllm_memory_share,
            threads=_threads(settings),
            counts=True,
        ),
        # Opening the generation has verified it.
        verify=False,
    )
    return engine, generation.named(engine.live)


def _threads(settings: Settings) -> int:
    return settings.engine_threads or default_threads()


def _merging(settings: Settings) -> LiveSettings:
    return LiveSettings(
        merge_share=settings.merge_share,
        merge_min_items=settings.merge_min_items,
        merge_log_bytes=settings.merge_log_bytes,
    )
