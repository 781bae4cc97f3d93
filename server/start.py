"""Puts the running parts together: generation, engine, pipeline."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from structlog.typing import FilteringBoundLogger

from decoding.native.engine import NativeEngine
from decoding.native.runner import default_threads
from index.live.catalogue import LiveSettings
from server.access import takes_changes
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
    threads = settings.engine_threads or default_threads()
    # Now already: what is measured while loading is measured as it will be run.
    torch.set_num_threads(threads)
    generation = await asyncio.to_thread(load_generation, settings, snapshot, checkpoint)
    assert generation.runner is not None
    engine = NativeEngine(generation.runner, threads=threads)
    return Pipeline(
        Generations(generation),
        await engine.start(),
        InMemoryUserContexts(settings.remembered_users, settings.remembered_items),
        settings,
        metrics,
        log,
    )


def load_generation(settings: Settings, snapshot: Path, checkpoint: Path) -> Generation:
    """A pair with its weights, as the native engine serves it; its catalogue takes changes where
    the settings let somebody send them. Raises like `Generation.open`."""
    changes = _merging(settings) if takes_changes(settings) else None
    generation = Generation.open(
        snapshot,
        checkpoint,
        verify=settings.verify,
        directory=settings.live_directory,
        changes=changes,
    )
    try:
        return generation.with_runner(settings.engine_device, settings.engine_dtype)
    except BaseException:
        generation.close()
        raise


def _merging(settings: Settings) -> LiveSettings:
    return LiveSettings(
        merge_share=settings.merge_share,
        merge_min_items=settings.merge_min_items,
        merge_log_bytes=settings.merge_log_bytes,
    )
