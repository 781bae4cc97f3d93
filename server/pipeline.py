"""One search from request to answer, on one pinned generation and one view of its catalogue.

query → keywords → embedding → user context → prompt → engine → postings → rescoring → hits

Work on arrays runs in threads, never on the event loop; the engine has its own. The engine gets the
deadline less a reserve for what follows it. Where it is late, sheds or fails, dense and lexical
retrieval answer in its place and the answer says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from structlog.typing import FilteringBoundLogger

from decoding.engine import Engine, EngineStats, Hypotheses, Prompt
from decoding.errors import DeadlineExceeded, EngineOverloaded, EngineRestarting, GenerationReplaced
from index.items import ItemFilter
from index.live.catalogue import CatalogueBusy, CatalogueClosed, CatalogueUnsure
from index.live.changes import Change
from index.live.filters import Allowed
from index.live.view import CatalogueView
from index.text import normalise
from models.ranking import rank_candidates
from server.cache import LruCache
from server.candidates import chosen_candidates
from server.context import UserContexts
from server.errors import Problem
from server.generation import Generation, Generations
from server.hits import hits_of, item_of
from server.keywords.reader import Found as KeywordsFound
from server.keywords.reader import KeywordReader, LookUp
from server.keywords.search import keyword_facts, keyword_request, prompt_terms
from server.metrics import Metrics
from server.schemas import Degradation, Hit, Item, SearchRequest, SearchResponse
from server.search import CatalogueStatus, ChangeOutcome, Serving
from server.settings import RANKING_RESERVE_SHARE, Settings

ENGINE_GRACE_S = 0.005
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What the engine and the ranking need of a request. `embedding` float32 (d,)."""

    query: str
    embedding: NDArray[np.float32]
    prompt: Prompt
    allowed: Allowed | None
    beam_width: int
    unknown_history: int


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The engine's hypotheses, or why there are none."""

    hypotheses: Hypotheses | None
    degraded: tuple[Degradation, ...] = ()


class Stopwatch:
    """Milliseconds of each stage, in the order they ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = self._last = time.perf_counter()
        self.timings_ms: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage; the next one begins."""
        now = time.perf_counter()
        self._metrics.stages.labels(stage).observe(now - self._last)
        self.timings_ms[stage] = round((now - self._last) * 1000, 3)
        self._last = now

    def stop(self) -> dict[str, float]:
        """All stages and the total."""
        total_ms = (time.perf_counter() - self._start) * 1000
        return self.timings_ms | {"total": round(total_ms, 3)}


class Pipeline:
    """The `Searcher` of the product: one engine, one live generation, a pool of threads."""

    def __init__(
        self,
        generations: Generations,
        engine: Engine,
        contexts: UserContexts,
        settings: Settings,
        metrics: Metrics,
        log: FilteringBoundLogger,
        keywords: KeywordReader | None = None,
    ) -> None:
        self._generations = generations
        self._engine = engine
        self._contexts = contexts
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._keywords = keywords
        self._closing: set[asyncio.Task[None]] = set()
        self._promoting = asyncio.Lock()
        self._threads = ThreadPoolExecutor(settings.worker_threads, "onesearch-search")
        self._embeddings: LruCache[tuple[str, str], NDArray[np.float32]] = LruCache(
            settings.query_cache_entries
        )

    async def search(
        self, request: SearchRequest, request_id: str, deadline: float
    ) -> SearchResponse:
        """Answer one request by `deadline` (monotonic seconds), degraded if need be."""
        watch = Stopwatch(self._metrics)
        while True:
            try:
                return await self._search(request, request_id, deadline, watch)
            except GenerationReplaced:
                # Its engine holds one set of weights, and now another. As soon as that is live,
                # prepare again: prompt and prior are of the generation.
                async with self._promoting:
                    continue

    async def _search(
        self, request: SearchRequest, request_id: str, deadline: float, watch: Stopwatch
    ) -> SearchResponse:
        with self._generations.pin() as generation:
            # Whatever changes from here on, this search sees one catalogue.
            view = generation.view
            history = await self._history(request)
            look_up = await self._look_up(view, request, history)
            in_prompt = self._settings.keywords == "rag"
            known = await self._known(look_up, watch) if in_prompt else None
            prepared = await self._in_thread(
                self._prepare, generation, view, request, history, prompt_terms(known)
            )
            watch.lap("prepare")
            if not in_prompt:
                # It began before the preparation, so it has mostly ended by now.
                known = await self._known(look_up, watch)
            if not prepared.beam_width:
                found, hits, n_candidates = Found(None), list[Hit](), 0
            else:
                found = await self._ask_engine(generation, view, prepared, request_id, deadline)
                watch.lap("engine")
                hits, n_candidates = await self._in_thread(
                    self._rank, generation, view, request, prepared, found
                )
                watch.lap("rank")
        self._metrics.unknown_history.inc(prepared.unknown_history)
        return SearchResponse(
            request_id=request_id,
            query=request.query,
            hits=hits,
            total_candidates=n_candidates,
            model_version=generation.model_version,
            index_version=view.version,
            degraded=_degraded(found, known),
            complete=len(hits) == request.limit,
            notes=_notes(request, prepared, len(hits), knows=_knows(view, prepared)),
            simulated=generation.simulated,
            keywords=keyword_facts(known, in_prompt=in_prompt),
            timings_ms=watch.stop(),
        )

    async def item(self, item_id: str) -> Item | None:
        """One item of the live catalogue, or None."""
        with self._generations.pin() as generation:
            return await self._in_thread(item_of, generation.view, item_id)

    async def change(self, changes: Sequence[Change]) -> ChangeOutcome:
        """Change the live catalogue; on return the changes are on disk and in the next search."""
        with self._generations.pin() as generation:
            if generation.catalogue is None:
                raise Problem("catalogue-read-only", "this server only reads its catalogue")
            try:
                made = asyncio.wrap_future(generation.catalogue.submit(changes))
                # What was handed in is done, whoever still waits for it; nobody may any more.
                made.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                applied = await asyncio.shield(made)
            except CatalogueBusy:
                raise Problem(
                    "overloaded",
                    "more changes wait than the catalogue takes",
                    retry_after_s=self._settings.retry_after_s,
                ) from None
            except CatalogueClosed as error:
                unsure = isinstance(error, CatalogueUnsure)
                event = "changes may not be made" if unsure else "changes not made"
                self._log.error(event, changes=len(changes), detail=str(error))
                raise Problem(
                    "changes-unavailable",
                    "whether the changes were made is not known; send them again"
                    if unsure
                    else "the changes were not made; the server's log says why",
                    retry_after_s=self._settings.retry_after_s,
                ) from None
        return ChangeOutcome(
            applied.sequence,
            applied.applied,
            tuple((bad.index, bad.reason) for bad in applied.rejected),
            generation.index_version_at(applied.sequence),
        )

    @property
    def live(self) -> Generation:
        """What new searches are answered from."""
        return self._generations.live

    def serving(self) -> Serving:
        """The live generation."""
        live = self._generations.live
        view = live.view
        return Serving(live.model_version, view.version, live.simulated, view.n_items)

    def catalogue_status(self) -> CatalogueStatus | None:
        """The live catalogue in numbers, where it takes changes."""
        catalogue = self._generations.live.catalogue
        if catalogue is None:
            return None
        return CatalogueStatus(catalogue.status(), catalogue.view.filter_counts)

    def engine_stats(self) -> EngineStats:
        """The engine's counters."""
        return self._engine.stats()

    async def promote(
        self, generation: Generation, before: Callable[[], Awaitable[None]] | None = None
    ) -> asyncio.Event:
        """Answer new searches from another loaded generation, once it is warm in the engine.

        A generation of the same snapshot goes on with the live catalogue. Running searches end on
        theirs; the event is set when the last of them has. `before` is awaited when all is ready:
        what it raises is raised here, and the live generation stays.
        """
        async with self._promoting:
            old = self._generations.live
            generation = await self._in_thread(generation.succeeding, old)
            await self._engine.swap(generation.runner)
            if before is not None:
                try:
                    await before()
                except BaseException:
                    await self._engine.swap(old.runner)
                    raise
            drained = self._generations.promote(generation)
        if old.source is not generation.source:
            closing = asyncio.create_task(_close_after(drained, old))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return drained

    async def settled(self) -> None:
        """Wait until the catalogues of earlier generations are closed."""
        if self._closing:
            await asyncio.wait(self._closing)

    async def try_out(
        self, generation: Generation, request: SearchRequest, deadline: float
    ) -> tuple[list[Hit], tuple[Degradation, ...]]:
        """What a generation that need not be live finds, without user and keywords; and what it
        did without."""
        view = generation.view
        prepared = await self._in_thread(self._prepare, generation, view, request, (), ())
        if not prepared.beam_width:
            return [], ()
        found = await self._ask_engine(generation, view, prepared, "", deadline)
        hits, _ = await self._in_thread(self._rank, generation, view, request, prepared, found)
        return hits, found.degraded

    async def close(self) -> None:
        """End the engine, keywords, then the catalogue, then the threads."""
        await self._engine.close()
        if self._keywords is not None:
            await self._keywords.close()
        for closing in self._closing:
            closing.cancel()
        await asyncio.to_thread(self._generations.live.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _history(self, request: SearchRequest) -> Sequence[str]:
        """Item ids from the request, else from what is known of the user."""
        if request.history is not None:
            if request.user_id is not None:
                await self._contexts.remember(request.user_id, request.history)
            return request.history
        if request.user_id is not None:
            return await self._contexts.history(request.user_id)
        return ()

    async def _look_up(
        self, view: CatalogueView, request: SearchRequest, history: Sequence[str]
    ) -> LookUp | None:
        """Begin to read keywords; None where they are off."""
        if self._keywords is None:
            return None
        if request.user_id is not None and history:
            asked = await self._in_thread(keyword_request, view, request, history)
        else:
            asked = keyword_request(view, request, ())
        return self._keywords.look_up(asked)

    async def _known(self, look_up: LookUp | None, watch: Stopwatch) -> KeywordsFound | None:
        """What was read of keywords within their budget."""
        if self._keywords is None or look_up is None:
            return None
        found = await self._keywords.found(look_up)
        watch.lap("keywords")
        return found

    def _prepare(
        self,
        generation: Generation,
        view: CatalogueView,
        request: SearchRequest,
        history: Sequence[str],
        keywords: Sequence[str],
    ) -> Prepared:
        query = normalise(request.query)
        embedding = self._embedding(generation, view, query)
        rows = view.items.rows_of(history)
        known = rows[rows >= 0]
        sids = view.trie.codes_of_leaves(view.postings.leaf_of_row[known])
        allowed = view.filter(item_filter(request))
        n_legal = view.trie.n_leaves if allowed is None else allowed.trie.n_leaves
        return Prepared(
            query,
            embedding,
            generation.prompts.prompt(query, embedding, list(sids), keywords),
            allowed,
            min(request.beam_width or self._settings.beam_width, n_legal),
            len(rows) - len(known),
        )

    def _embedding(
        self, generation: Generation, view: CatalogueView, query: str
    ) -> NDArray[np.float32]:
        # Encoder and attributes are the snapshot's: changes of the catalogue leave them alone.
        key = (generation.snapshot_version, query)
        embedding = self._embeddings.get(key)
        self._count("query", embedding is not None)
        if embedding is None:
            # A text without one known feature has no direction; zero is similar to nothing.
            embedding = np.nan_to_num(view.embed_queries([query])[0])
            self._embeddings.put(key, embedding)
        return embedding

    def _count(self, cache: str, hit: bool) -> None:
        self._metrics.cache.labels(cache, "hit" if hit else "miss").inc()

    async def _ask_engine(
        self,
        generation: Generation,
        view: CatalogueView,
        prepared: Prepared,
        request_id: str,
        deadline: float,
    ) -> Found:
        """The engine's hypotheses within its share of the time that is left."""
        left_s = deadline - time.monotonic()
        reserve_s = min(self._settings.ranking_reserve_s, left_s * RANKING_RESERVE_SHARE)
        engine_s = left_s - reserve_s
        if engine_s <= 0:
            return Found(None, ("engine_deadline",))
        trie_filter = None if prepared.allowed is None else prepared.allowed.trie
        try:
            # The engine keeps its deadline itself; the timeout is for one that does not.
            async with asyncio.timeout(engine_s + ENGINE_GRACE_S):
                [hypotheses] = await self._engine.search(
                    [prepared.prompt],
                    prepared.beam_width,
                    trie_filter,
                    deadline - reserve_s,
                    generation=generation.runner_of(view),
                    trie=view.trie,
                )
        except (DeadlineExceeded, TimeoutError):
            return Found(None, ("engine_deadline",))
        except EngineOverloaded:
            return Found(None, ("engine_overload",))
        except GenerationReplaced:
            raise
        except EngineRestarting:
            return Found(None, ("engine_error",))
        except Exception:  # noqa: BLE001  whatever broke in there, retrieval can still answer
            self._log.exception("engine failed", request_id=request_id)
            return Found(None, ("engine_error",))
        return Found(hypotheses)

    def _rank(
        self,
        generation: Generation,
        view: CatalogueView,
        request: SearchRequest,
        prepared: Prepared,
        found: Found,
    ) -> tuple[list[Hit], int]:
        retrieved = self._settings.retrieval_candidates
        if found.hypotheses is None:
            retrieved = self._settings.fallback_candidates
        query, embedding, weights = prepared.query, prepared.embedding, generation.weights
        mask = None if prepared.allowed is None else prepared.allowed.mask
        beam = found.hypotheses
        chosen = chosen_candidates(view, query, embedding, beam, mask, retrieved)
        ranked = rank_candidates(view, weights, query, embedding, chosen)
        hits = hits_of(view, weights, ranked, beam, request.limit, explain=request.explain)
        return hits, len(ranked.rows)


async def _close_after(drained: asyncio.Event, generation: Generation) -> None:
    await drained.wait()
    await asyncio.to_thread(generation.close)


def item_filter(request: SearchRequest) -> ItemFilter:
    """The request's filters as the index takes them."""
    filters = request.filters
    if filters is None:
        return ItemFilter()
    return ItemFilter(
        category=tuple(filters.category),
        brand=tuple(filters.brand),
        color=tuple(filters.color),
        material=tuple(filters.material),
        price_min=filters.price_min,
        price_max=filters.price_max,
        in_stock=filters.in_stock,
    )


def _degraded(found: Found, known: KeywordsFound | None) -> list[Degradation]:
    if known is not None and known.state == "unavailable":
        return [*found.degraded, "keywords_unavailable"]
    return list(found.degraded)


def _knows(view: CatalogueView, prepared: Prepared) -> bool:
    """Whether encoder or lexical index know anything of the query."""
    return bool(prepared.embedding.any()) or view.lexical.upper_bound(prepared.query) > 0


def _notes(request: SearchRequest, prepared: Prepared, n_hits: int, *, knows: bool) -> list[str]:
    notes: list[str] = []
    if not knows:
        notes.append("nothing in the query is known to this catalogue; the hits are only guesses")
    if prepared.unknown_history:
        notes.append(f"history items not in the catalogue: {prepared.unknown_history}")
    if n_hits == request.limit:
        return notes
    # Without conditions there still is a filter when SIDs have lost all of their items.
    allowed = None if item_filter(request).is_empty else prepared.allowed
    if not prepared.beam_width:
        notes.append("the catalogue is empty" if allowed is None else "no item passes the filters")
    elif allowed is not None and allowed.n_items == n_hits:
        notes.append(f"only {n_hits} {'item passes' if n_hits == 1 else 'items pass'} the filters")
    else:
        were = "item was" if n_hits == 1 else "items were"
        notes.append(f"only {n_hits} {were} found; a larger beam_width finds more")
    return notes
