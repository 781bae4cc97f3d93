"""One search from request to answer, on one pinned generation and one view of its catalogue.

assigned generation → keywords → preparation → engine → postings → rescoring → hits

Work on arrays runs in threads, never on the event loop; the engine has its own. The engine gets the
deadline less a reserve for what follows it. Where it is late, sheds or fails, dense and lexical
retrieval answer in its place and the answer says so.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from decoding.engine import Engine, EngineStats
from decoding.errors import GenerationReplaced
from index.live.changes import Change
from index.live.following import FollowingCatalogue
from index.live.view import CatalogueView
from server.catalogue_change import change_catalogue
from server.context import UserContexts
from server.engine_door import EngineDoor, Found, NoWeights
from server.experiment.assignment import Experiment, unit_of
from server.figures import Figures, outcome_of
from server.generation import Assigned, Generation, Generations
from server.hits import item_of
from server.keywords.reader import Found as KeywordsFound
from server.keywords.reader import KeywordReader, LookUp
from server.keywords.search import keyword_facts, keyword_request, prompt_terms
from server.laps import Laps
from server.metrics import Metrics
from server.preparation import Preparation, Prepared, notes
from server.ranking import Ranking, ranking_of
from server.runners import Runners
from server.schemas import Degradation, Hit, Item, SearchRequest, SearchResponse
from server.search import CatalogueStatus, ChangeOutcome, Serving
from server.settings import Settings
from server.shadow import Asked, Shadow
from server.stopwatch import Stopwatch

Result = TypeVar("Result")


class Pipeline:
    """The `Searcher` of the product: one engine, one live generation and perhaps a challenger, a
    pool of threads."""

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
        self._door = EngineDoor(engine, settings, log)
        self._preparation = Preparation(settings, metrics)
        self._contexts = contexts
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._keywords = keywords
        self._closing: set[asyncio.Task[None]] = set()
        self._promoting = asyncio.Lock()
        self._threads = ThreadPoolExecutor(settings.worker_threads, "onesearch-search")
        self.figures = Figures()
        self.shadow: Shadow | None = None
        """Asks the challenger too, where there is one."""

    async def search(
        self, request: SearchRequest, request_id: str, deadline: float
    ) -> SearchResponse:
        """Answer one request by `deadline` (monotonic seconds), degraded if need be."""
        watch, unit = Stopwatch(self._metrics), unit_of(request.user_id, request_id)
        if self.shadow is not None:
            self.shadow.give_way()
        while True:
            try:
                with self._generations.assigned(unit) as assigned:
                    return await self._counted(assigned, request, request_id, deadline, watch)
            except GenerationReplaced:
                # Its engine holds one set of weights, and now another. As soon as that is live,
                # prepare again: prompt and prior are of the generation.
                async with self._promoting:
                    continue

    async def _counted(
        self,
        assigned: Assigned,
        request: SearchRequest,
        request_id: str,
        deadline: float,
        watch: Stopwatch,
    ) -> SearchResponse:
        """`_search`, and what became of it. Who goes away before the deadline is not counted."""
        parts, began = assigned.generation.parts, time.monotonic()
        try:
            answer = await self._search(assigned, request, request_id, deadline, watch)
        except GenerationReplaced:
            raise
        except BaseException as error:
            now = time.monotonic()
            if not isinstance(error, asyncio.CancelledError) or now >= deadline:
                self.figures.add(parts, assigned.arm, now - began, "failed")
            raise
        outcome = outcome_of(answer.degraded)
        self.figures.add(parts, assigned.arm, time.monotonic() - began, outcome)
        return answer

    async def _search(
        self,
        assigned: Assigned,
        request: SearchRequest,
        request_id: str,
        deadline: float,
        watch: Stopwatch,
    ) -> SearchResponse:
        generation = assigned.generation
        # Whatever changes from here on, this search sees one catalogue.
        view = generation.view
        history = await self._history(request)
        look_up = await self._look_up(view, request, history)
        watch.lap("context")
        in_prompt = self._settings.keywords == "rag"
        known = await self._known(look_up, watch) if in_prompt else None
        terms = prompt_terms(known)
        prepared = await self._in_thread(
            self._preparation.prepare, generation, view, request, history, terms
        )
        watch.lap("prepare", embedding=prepared.embedding_s)
        if not in_prompt:
            # It began before the preparation, so it has mostly ended by now.
            known = await self._known(look_up, watch)
        if not prepared.beam_width:
            found, ranking = Found(None), Ranking()
        else:
            asked = time.monotonic()
            found = await self._door.ask(generation, view, prepared, request_id, deadline)
            watch.lap("engine", **found.parts(asked))
            ranking = await self._in_thread(self._rank, generation, view, request, prepared, found)
            watch.lap("rank", **ranking.parts)
        hits = self._shown(ranking, generation, view, request_id)
        self._metrics.unknown_history.inc(prepared.unknown_history)
        if self.shadow is not None and found.hypotheses is not None:
            self.shadow.offer(Asked(request, tuple(history), tuple(terms)))
        return SearchResponse(
            request_id=request_id,
            query=request.query,
            hits=hits,
            total_candidates=ranking.n_candidates,
            model_version=generation.model_version,
            index_version=view.version,
            degraded=_degraded(found, known),
            complete=len(hits) == request.limit,
            notes=notes(request, view, prepared, len(hits)),
            simulated=generation.simulated,
            history_items=len(history),
            keywords=keyword_facts(known, in_prompt=in_prompt),
            experiment=assigned.experiment,
            arm=assigned.arm,
            timings_ms=watch.stop(),
        )

    async def item(self, item_id: str) -> Item | None:
        """One item of the live catalogue, or None."""
        with self._generations.pin() as generation:
            return await self._in_thread(item_of, generation.view, item_id)

    async def change(self, changes: Sequence[Change]) -> ChangeOutcome:
        """Change the live catalogue; on return the changes are on disk and in the next search."""
        with self._generations.pin() as generation:
            return await change_catalogue(generation, changes, self._settings, self._log)

    @property
    def live(self) -> Generation:
        """What new searches are answered from."""
        return self._generations.live

    @property
    def challenger(self) -> Generation | None:
        """What is beside the live one."""
        return self._generations.challenger

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

    def processes(self) -> dict[str, list[int]]:
        """Numbers of the processes that were started for this one, by what they are for."""
        catalogue = self._generations.live.catalogue
        writer = catalogue.writer if isinstance(catalogue, FollowingCatalogue) else 0
        # vLLM's engine has processes of its own; it is only imported where it is installed.
        engine: list[int] = getattr(self._engine, "process_ids", [])
        return {"writer": [writer] if writer else [], "engine": engine}

    async def promote(
        self,
        generation: Generation,
        before: Callable[[], Awaitable[None]] | None = None,
        laps: Laps | None = None,
    ) -> asyncio.Event:
        """Answer new searches from another loaded generation, once it is warm in the engine.

        A generation of the same snapshot goes on with the live catalogue. Running searches end on
        theirs; the event is set when the last of them has. `before` is awaited when all is ready:
        what it raises is raised here, and the live generation stays.
        """
        laps = laps or Laps()
        async with self._promoting:
            old = self._generations.live
            generation = await self._in_thread(generation.succeeding, old)
            await self._engine.swap(generation.runner)
            laps.lap("warm_up")
            if before is not None:
                try:
                    await before()
                except BaseException:
                    await self._engine.swap(old.runner)
                    raise
            drained = self._flip(generation)
            laps.lap("flip")
            return drained

    async def replace(
        self,
        opened: Callable[[], Awaitable[Generation]],
        reopened: Callable[[], Awaitable[Generation]],
    ) -> asyncio.Event:
        """The same where two sets of weights do not fit: drop the live ones, then open another
        generation. Meanwhile retrieval answers.

        `opened` comes with what was decided for; when it raises, the weights that `reopened` has
        are put into the live generation, and the error is raised here. There must be no challenger.
        """
        async with self._promoting:
            old = self._generations.live
            assert self._generations.challenger is None
            if not self._door.is_shut:
                await self._door.shut()
            old.drop_weights()
            await self._engine.swap(NoWeights())
            try:
                generation = await self._in_thread((await opened()).succeeding, old)
                await self._engine.swap(generation.runner)
            except BaseException as error:
                # Its frames hold the weights that were being loaded.
                traceback.clear_frames(error.__traceback__)
                await self._refill(reopened)
                raise
            drained = self._flip(generation)
            self._door.open()
            return drained

    async def refill(self, reopened: Callable[[], Awaitable[Generation]]) -> None:
        """Put weights into the live generation, which has none."""
        async with self._promoting:
            await self._refill(reopened)

    async def _refill(self, reopened: Callable[[], Awaitable[Generation]]) -> None:
        live = self._generations.live
        live.take_weights(await reopened())
        await self._engine.swap(live.runner)
        self._door.open()

    @property
    def has_weights(self) -> bool:
        """False where neither the new nor the old could be loaded: only retrieval answers."""
        return not self._door.is_shut

    async def challenge(self, generation: Generation) -> Generation:
        """Have a loaded generation beside the live one, warm and with its catalogue if both are of
        one snapshot; gives it back as it is then. It answers nobody until `assign`."""
        async with self._promoting:
            generation = await self._in_thread(generation.succeeding, self._generations.live)
            # One set of weights more: only engines that are handed runners take that.
            assert isinstance(generation.runners, Runners)
            await self._in_thread(generation.runners.warm_up)
            self._generations.challenge(generation)
        return generation

    def assign(self, experiment: Experiment | None) -> None:
        """Give the challenger its arm of an experiment; None: it answers nobody."""
        self._generations.experiment = experiment

    def unchallenge(self) -> asyncio.Event:
        """End the challenge. The event is set when the challenger's last search has ended."""
        return self._generations.unchallenge()

    async def settled(self) -> None:
        """Wait until the catalogues of earlier generations are closed."""
        if self._closing:
            await asyncio.wait(self._closing)

    async def try_out(
        self,
        generation: Generation,
        request: SearchRequest,
        deadline: float,
        *,
        view: CatalogueView | None = None,
        history: Sequence[str] = (),
        terms: Sequence[str] = (),
    ) -> tuple[list[Hit], tuple[Degradation, ...]]:
        """What a generation that need not be live finds; and what it did without. `view`: of its
        catalogue, as it is now unless given; `terms`: keywords for the prompt."""
        view = generation.view if view is None else view
        prepared = await self._in_thread(
            self._preparation.prepare, generation, view, request, history, terms
        )
        if not prepared.beam_width:
            return [], ()
        found = await self._door.ask(generation, view, prepared, "", deadline, though_shut=True)
        ranking = await self._in_thread(self._rank, generation, view, request, prepared, found)
        return list(ranking.hits), found.degraded

    async def calm(self, at_most_s: float) -> None:
        """Wait until no search is in the engine, so long at most."""
        await self._door.calm(at_most_s)

    async def close(self) -> None:
        """End the engine, keywords, then the catalogue, then the threads."""
        await self._engine.close()
        if self._keywords is not None:
            await self._keywords.close()
        for closing in self._closing:
            closing.cancel()
        await asyncio.to_thread(self._generations.live.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _flip(self, generation: Generation) -> asyncio.Event:
        """Make it live; the old one's catalogue is closed when nobody uses it any more."""
        old = self._generations.live
        drained = self._generations.promote(generation)
        if old.source is not generation.source:
            closing = asyncio.create_task(_close_after(drained, old))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return drained

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

    def _rank(
        self,
        generation: Generation,
        view: CatalogueView,
        request: SearchRequest,
        prepared: Prepared,
        found: Found,
    ) -> Ranking:
        retrieved = self._settings.retrieval_candidates
        if found.hypotheses is None:
            retrieved = self._settings.fallback_candidates
        return ranking_of(generation, view, request, prepared, found, retrieved)

    def _shown(
        self, ranking: Ranking, generation: Generation, view: CatalogueView, request_id: str
    ) -> list[Hit]:
        """The hits of an answer. One that is illegal is left out, counted and told of."""
        hits = ranking.legal_hits
        if len(hits) < len(ranking.hits):
            self._metrics.illegal_hits.inc(len(ranking.hits) - len(hits))
            self._log.error(
                "illegal hits",
                request_id=request_id,
                model_version=generation.model_version,
                index_version=view.version,
                detail="; ".join(filter(None, ranking.illegal)),
            )
        return hits


async def _close_after(drained: asyncio.Event, generation: Generation) -> None:
    await drained.wait()
    await asyncio.to_thread(generation.close)


def _degraded(found: Found, known: KeywordsFound | None) -> list[Degradation]:
    if known is not None and known.state == "unavailable":
        return [*found.degraded, "keywords_unavailable"]
    return list(found.degraded)
