"""Puts the running parts together: generation, engine, pipeline."""

from __future__ import annotations

import asyncio
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from decoding.engine import Engine
from decoding.native.engine import NativeEngine
from decoding.native.runner import Runner
from decoding.weights import DecoderWeights
from server.context import InMemoryUserContexts
from server.generation import Generation, Generations
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.settings import Settings


async def start_pipeline(
    settings: Settings,
    snapshot: Path,
    checkpoint: Path,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> Pipeline:
    """Open, check and warm up; the pipeline is ready for searches.

    Raises ArtifactError when snapshot or checkpoint are missing, damaged or do not fit.
    """
    generation = await asyncio.to_thread(
        Generation.open, snapshot, checkpoint, verify=settings.verify
    )
    engine = await start_engine(generation, settings)
    return Pipeline(
        Generations(generation),
        engine,
        InMemoryUserContexts(settings.remembered_users, settings.remembered_items),
        settings,
        metrics,
        log,
    )


async def start_engine(generation: Generation, settings: Settings) -> Engine:
    """The native engine on the generation's weights, warm."""
    weights = await asyncio.to_thread(DecoderWeights.from_directory, generation.checkpoint.path)
    runner = Runner(weights, generation.snapshot.trie)
    return await NativeEngine(runner, threads=settings.engine_threads).start()
