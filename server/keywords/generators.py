"""The generator that the settings name, ready for work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import ConfigError
from server.keywords.generator import KeywordGenerator, NullGenerator
from server.keywords.keywords import KeywordRequest, Keywords
from server.keywords.store import KeywordStore
from server.redis.connection import RedisUnavailable
from server.settings import Settings

if TYPE_CHECKING:
    from server.keywords.budget import Budget
    from server.keywords.vocabulary import Vocabulary


@asynccontextmanager
async def open_generator(
    settings: Settings,
    snapshot: Path | None,
    store: KeywordStore,
    null_delay_s: float = 0.0,
    budget: Budget | None = None,
) -> AsyncGenerator[KeywordGenerator, None]:
    """The generator of `keyword_generator`; closed at the end.

    The statistical one needs a snapshot; the LLM's terms are those that its catalogue knows, where
    one is given. `store`: where the LLM finds generic keywords made before. `budget`: the LLM's, a
    new one of the settings' unless given.
    Raises ConfigError for settings that are missing or wrong, ArtifactError for the snapshot.
    """
    kind = settings.keyword_generator
    if kind == "null":
        yield NullGenerator(null_delay_s)
    elif kind == "statistical":
        if snapshot is None:
            raise ConfigError("the statistical generator needs --snapshot, or a champion to serve")
        yield await asyncio.to_thread(_statistical, snapshot, settings)
    else:
        async with _llm(settings, snapshot, store, budget or budget_of(settings)) as generator:
            yield generator


def budget_of(settings: Settings) -> Budget:
    """What a worker's language model may be asked, of whichever catalogue."""
    from server.keywords.budget import Budget

    return Budget(
        settings.keyword_llm_requests_per_minute,
        settings.keyword_llm_tokens_per_minute,
        settings.keyword_llm_tokens_per_day,
    )


def _statistical(path: Path, settings: Settings) -> KeywordGenerator:
    # What needs the index is imported here: other generators start without it.
    from index.dataset import Dataset
    from index.snapshot import Snapshot
    from server.keywords.associations import Associations, clicks_of
    from server.keywords.statistical import StatisticalGenerator
    from server.keywords.vocabulary import Vocabulary

    snapshot = Snapshot.open(path, verify=settings.verify)
    vocabulary = Vocabulary.build(snapshot)
    associations = None
    if settings.keyword_dataset is not None:
        dataset = Dataset.open(settings.keyword_dataset, verify=settings.verify)
        clicks = clicks_of(dataset, snapshot.items)
        associations = Associations.build(clicks, vocabulary, version=dataset.version)
    return StatisticalGenerator(snapshot, associations, vocabulary=vocabulary)


def _vocabulary(path: Path, settings: Settings) -> Vocabulary:
    from index.snapshot import Snapshot
    from server.keywords.vocabulary import Vocabulary

    return Vocabulary.build(Snapshot.open(path, verify=settings.verify))


@asynccontextmanager
async def _llm(
    settings: Settings, snapshot: Path | None, store: KeywordStore, budget: Budget
) -> AsyncGenerator[KeywordGenerator, None]:
    from server.keywords.chat import ChatSettings
    from server.keywords.llm import LlmGenerator

    if settings.keyword_llm_url is None or settings.keyword_llm_model is None:
        raise ConfigError(
            "the llm generator needs keyword_llm_url and keyword_llm_model "
            "(ONESEARCH_KEYWORD_LLM_URL, ONESEARCH_KEYWORD_LLM_MODEL)"
        )
    chat = ChatSettings(
        settings.keyword_llm_url,
        settings.keyword_llm_model,
        settings.keyword_llm_key,
        temperature=settings.keyword_llm_temperature,
        max_tokens=settings.keyword_llm_max_tokens,
        concurrency=settings.keyword_llm_concurrency,
        read_timeout_s=settings.keyword_llm_timeout_s,
        total_timeout_s=settings.keyword_llm_timeout_s,
        extra=settings.keyword_llm_extra,
    )

    async def generic(request: KeywordRequest) -> Keywords | None:
        try:
            [stored] = await store.read(generator.version, request.normalised, (None,))
        except RedisUnavailable:
            # Then the model is asked for them again.
            return None
        return None if stored is None else stored.keywords

    vocabulary = None
    if snapshot is not None:
        vocabulary = await asyncio.to_thread(_vocabulary, snapshot, settings)
    generator = LlmGenerator(chat, budget, generic=generic, vocabulary=vocabulary)
    try:
        yield generator
    finally:
        await generator.aclose()
