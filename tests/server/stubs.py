"""What stands in for a searcher or an engine where a test is of what is before or around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from decoding.engine import EngineStats, Hypotheses, Prompt
from index.live.changes import Change
from index.live.trie import AnyTrie
from index.trie import TrieFilter
from server.schemas import Item, SearchRequest, SearchResponse
from server.search import CatalogueStatus, ChangeOutcome, Serving


class StubSearcher:
    """Answers at once with nothing; tests replace `answer` to be slow or to fail."""

    def __init__(self) -> None:
        self.answer: Callable[[SearchRequest], Any] | None = None
        self.live: Serving | None = Serving("m1", "i1", True, 3)
        self.status: CatalogueStatus | None = None
        self.changes: list[Change] = []
        self.outcome: ChangeOutcome | Exception | None = None

    async def search(
        self, request: SearchRequest, request_id: str, deadline: float
    ) -> SearchResponse:
        if self.answer is not None:
            await self.answer(request)
        return SearchResponse(
            request_id=request_id,
            query=request.query,
            hits=[],
            total_candidates=0,
            model_version="m1",
            index_version="i1",
            degraded=[],
            complete=False,
            notes=[],
            simulated=True,
            timings_ms={"total": 0.1},
        )

    async def item(self, item_id: str) -> Item | None:
        return None

    async def change(self, changes: Sequence[Change]) -> ChangeOutcome:
        self.changes += changes
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome or ChangeOutcome(7, len(changes), (), "i1+7")

    def serving(self) -> Serving | None:
        return self.live

    def catalogue_status(self) -> CatalogueStatus | None:
        return self.status

    def engine_stats(self) -> EngineStats:
        return EngineStats(
            queued_prompts=2,
            queued_rows=20,
            running_prompts=3,
            waves=5,
            prompts=40,
            rows=400,
            expired=6,
            shed=7,
            cancelled=8,
            failed=9,
            swaps=1,
            wave_s=0.25,
        )

    async def close(self) -> None: ...


class StubEngine:
    """An engine that waits `delay_s` or raises `error`; it finds the first `n` SIDs."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.error: Exception | None = None
        self.prompts: list[Prompt] = []
        self.layout_levels = 3

    async def search(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None = None,
        deadline: float | None = None,
        *,
        generation: Any = None,
        trie: AnyTrie | None = None,
    ) -> list[Hypotheses]:
        self.prompts += prompts
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        leaves = np.arange(beam_width) if filter is None else np.flatnonzero(filter.bits[-1])
        n = len(leaves)
        shape = (n, self.layout_levels)
        assert trie is not None
        return [
            Hypotheses(
                leaves=leaves,
                codes=trie.codes_of_leaves(leaves),
                scores=np.linspace(-1, -9, n, dtype=np.float32),
                level_scores=np.zeros(shape, np.float32),
                branching=np.ones(shape, np.int32),
                complete=True,
            )
        ]

    async def swap(self, generation: Any, /) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0)

    async def close(self) -> None: ...
