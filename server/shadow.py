"""Asks the challenger what the champion was asked, for comparison, after the answer was sent.

A share of the searches is offered to a bounded queue; what does not fit is dropped. One at a time
is taken out when the engine is idle, and put to champion and challenger one after the other, in
turns the other way round, with the same history and keywords: so both times are those of a search
that is alone. A search that comes meanwhile ends the comparison at once (the engine drops it at its
next level), and it is tried again later. So a search waits for no more than one level of a wave.

Agreement of two rankings, each cut at DEPTH:

    overlap = |A ∩ B| / max(|A|, |B|)
    RBO     = (X_k / k)·pᵏ + (1 − p)/p · Σ_{d=1..k} (X_d / d)·pᵈ,   X_d = |A_{1..d} ∩ B_{1..d}|

Source: Webber, Moffat, Zobel, *A similarity measure for indefinite rankings*, TOIS 2010, eq. 32;
with a list that is shorter, its missing places agree with nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from index.live.view import CatalogueView
from server.generation import Generation
from server.legality import illegality
from server.schemas import Degradation, Hit, SearchRequest

DEPTH = 10
PERSISTENCE = 0.9
QUEUE = 64
TRIES = 3
"""Of one comparison; each ends with the next search."""
LOOK_S = 0.02
"""How often the engine is looked at."""
TIMEOUT_S = 10.0

Tried = tuple[list[Hit], tuple[Degradation, ...]]


class TriesOut(Protocol):
    """`Pipeline.try_out`, and what a test has in its place."""

    def __call__(
        self,
        generation: Generation,
        request: SearchRequest,
        deadline: float,
        *,
        view: CatalogueView,
        history: Sequence[str],
        terms: Sequence[str],
    ) -> Awaitable[Tried]: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A search that was answered. `history`: item ids; `terms`: keywords in the prompt."""

    request: SearchRequest
    history: tuple[str, ...]
    terms: tuple[str, ...]
    tries: int = 0


@dataclass(frozen=True, slots=True)
class ShadowFigures:
    """What came of it. `overlap`, `rbo`: means over `compared`. `illegal`: hits of the challenger
    that are none; `failed`: searches that it could not answer and the champion could.
    `champion_s`, `challenger_s`: seconds, all together. `dropped`: for want of room, or of time."""

    offered: int = 0
    compared: int = 0
    overlap: float = 0.0
    rbo: float = 0.0
    illegal: int = 0
    failed: int = 0
    champion_s: float = 0.0
    challenger_s: float = 0.0
    dropped: int = 0

    @property
    def latency_ratio(self) -> float | None:
        """Challenger over champion; None before the first comparison."""
        return self.challenger_s / self.champion_s if self.champion_s else None


class Shadow:
    """Compares one challenger with one champion. Used on one event loop."""

    def __init__(
        self,
        champion: Callable[[], Generation],
        challenger: Generation,
        share: float,
        try_out: TriesOut,
        is_idle: Callable[[], bool],
        log: FilteringBoundLogger,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`is_idle`: whether the engine has nothing to do."""
        self._champion = champion
        self._challenger = challenger
        self._share = share
        self._try_out = try_out
        self._is_idle = is_idle
        self._log = log
        self._chance = chance
        self._waiting: deque[Asked] = deque()
        self._task: asyncio.Task[None] | None = None
        self._comparison: asyncio.Task[None] | None = None
        self._closed = False
        self.figures = ShadowFigures()

    def offer(self, asked: Asked) -> None:
        """A search was answered; it may be compared later."""
        if self._closed or self._chance() >= self._share:
            return
        self._count(offered=1)
        if len(self._waiting) >= QUEUE:
            self._count(dropped=1)
            return
        self._waiting.append(asked)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def give_way(self) -> None:
        """A search has come: what is being compared stops."""
        if self._comparison is not None:
            self._comparison.cancel()

    async def close(self) -> None:
        """Compare no more."""
        self._closed = True
        self.give_way()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        """Until nothing waits. Ends with the task that it is."""
        while self._waiting:
            await asyncio.sleep(LOOK_S)
            if not self._is_idle():
                continue
            asked = self._waiting.popleft()
            self._comparison = asyncio.create_task(self._compare(asked))
            await asyncio.wait([self._comparison])
            comparison, self._comparison = self._comparison, None
            if comparison.cancelled():
                self._again(asked)
            elif (error := comparison.exception()) is not None:
                self._count(failed=1)
                self._log.warning("shadow search failed", detail=f"{type(error).__name__}: {error}")
        self._task = None

    def _again(self, asked: Asked) -> None:
        if asked.tries + 1 < TRIES:
            self._waiting.append(replace(asked, tries=asked.tries + 1))
        else:
            self._count(dropped=1)

    async def _compare(self, asked: Asked) -> None:
        """Ask both; count nothing before both have answered."""
        changes = {"limit": DEPTH, "explain": False}
        asked = replace(asked, request=asked.request.model_copy(update=changes))
        champion, challenger = self._champion(), self._challenger
        own = challenger.view
        if self.figures.compared % 2:
            theirs, theirs_s = await self._timed(challenger, own, asked)
            ours, ours_s = await self._timed(champion, champion.view, asked)
        else:
            ours, ours_s = await self._timed(champion, champion.view, asked)
            theirs, theirs_s = await self._timed(challenger, own, asked)
        if ours[1]:
            # Nothing to compare with.
            self._count(dropped=1)
            return
        if theirs[1]:
            self._count(failed=1)
            return
        mine = [hit.item_id for hit in ours[0]]
        other = [hit.item_id for hit in theirs[0]]
        figures, n = self.figures, self.figures.compared
        self.figures = replace(
            figures,
            compared=n + 1,
            overlap=figures.overlap + (overlap(mine, other) - figures.overlap) / (n + 1),
            rbo=figures.rbo + (rank_biased_overlap(mine, other) - figures.rbo) / (n + 1),
            illegal=figures.illegal + sum(bool(illegality(own, hit)) for hit in theirs[0]),
            champion_s=figures.champion_s + ours_s,
            challenger_s=figures.challenger_s + theirs_s,
        )

    async def _timed(
        self, generation: Generation, view: CatalogueView, asked: Asked
    ) -> tuple[Tried, float]:
        began = time.monotonic()
        found = await self._try_out(
            generation,
            asked.request,
            began + TIMEOUT_S,
            view=view,
            history=asked.history,
            terms=asked.terms,
        )
        return found, time.monotonic() - began

    def _count(self, *, offered: int = 0, failed: int = 0, dropped: int = 0) -> None:
        figures = self.figures
        self.figures = replace(
            figures,
            offered=figures.offered + offered,
            failed=figures.failed + failed,
            dropped=figures.dropped + dropped,
        )


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Common items of two rankings, of the longer one; 1 for two empty ones."""
    longest = max(len(first), len(second))
    return len(set(first) & set(second)) / longest if longest else 1.0


def rank_biased_overlap(
    first: Sequence[str], second: Sequence[str], persistence: float = PERSISTENCE
) -> float:
    """RBO of two rankings without repetitions, extrapolated; 1 for two empty ones."""
    depth, p = max(len(first), len(second)), persistence
    if not depth:
        return 1.0
    seen_first, seen_second = set[str](), set[str]()
    common, weighted, agreement = 0, 0.0, 0.0
    for d in range(1, depth + 1):
        for one, own, other in (
            (first, seen_first, seen_second),
            (second, seen_second, seen_first),
        ):
            if d <= len(one):
                own.add(one[d - 1])
                common += one[d - 1] in other
        agreement = common / d
        weighted += agreement * p**d
    return agreement * p**depth + (1 - p) / p * weighted
