"""Puts the running parts together: generation, engine, pipeline."""

from __future__ import annotations

import asyncio
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from decoding.native.engine import NativeEngine
from decoding.native.runner import default_threads
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
        load_generation,
        snapshot,
        checkpoint,
        verify=settings.verify,
        device=settings.engine_device,
    )
    assert generation.runner is not None
    threads = settings.engine_threads or default_threads()
    engine = NativeEngine(generation.runner, threads=threads)
    return Pipeline(
        Generations(generation),
        await engine.start(),
        InMemoryUserContexts(settings.remembered_users, settings.remembered_items),
        settings,
        metrics,
        log,
    )


def load_generation(
    snapshot: Path, checkpoint: Path, *, verify: bool = True, device: str = "cpu"
) -> Generation:
    """A pair with its weights, as the native engine serves it. Raises like `Generation.open`."""
    return Generation.open(snapshot, checkpoint, verify=verify).with_runner(device)
