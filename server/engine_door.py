"""The way to the engine: within a search's deadline, and shut while weights are replaced in place.

Whatever keeps the engine from answering (late, full, broken, shut) is told as a degradation, never
raised: retrieval can still answer. While the door is shut nothing is asked of the engine and nobody
waits for it, so no crowd gathers; who is inside ends first.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from structlog.typing import FilteringBoundLogger

from decoding.engine import Engine, Hypotheses
from decoding.errors import DeadlineExceeded, EngineOverloaded, EngineRestarting, GenerationReplaced
from index.live.view import CatalogueView
from server.generation import Generation
from server.preparation import Prepared
from server.schemas import Degradation
from server.settings import RANKING_RESERVE_SHARE, Settings

ENGINE_GRACE_S = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The engine's hypotheses, or why there are none."""

    hypotheses: Hypotheses | None
    degraded: tuple[Degradation, ...] = ()

    def parts(self, asked: float) -> dict[str, float]:
        """Seconds in the engine's queue and in its search, where it was asked at that (monotonic)
        time and has answered."""
        found = self.hypotheses
        if found is None or math.isnan(found.began):
            return {}
        return {"queue": max(0.0, found.began - asked), "beam": found.ended - found.began}


class NoWeights:
    """What the engine holds while it holds nothing."""

    def warm_up(self) -> None:
        """There is nothing to warm up."""


class EngineDoor:
    """Asks an engine. Used on one event loop."""

    def __init__(self, engine: Engine, settings: Settings, log: FilteringBoundLogger) -> None:
        self._engine = engine
        self._reserve_s = settings.ranking_reserve_s
        self._log = log
        self._inside = 0
        self._nobody_inside = asyncio.Event()
        self._nobody_inside.set()
        self.is_shut = False

    async def ask(
        self,
        generation: Generation,
        view: CatalogueView,
        prepared: Prepared,
        request_id: str,
        deadline: float,
        *,
        though_shut: bool = False,
    ) -> Found:
        """The engine's hypotheses within its share of the time that is left. `though_shut`: for who
        shut the door. Raises GenerationReplaced where the generation's weights are gone for good.
        """
        if self.is_shut and not though_shut:
            return Found(None, ("engine_replaced",))
        left_s = deadline - time.monotonic()
        engine_s = left_s - min(self._reserve_s, left_s * RANKING_RESERVE_SHARE)
        if engine_s <= 0:
            return Found(None, ("engine_deadline",))
        runner = generation.runner_of(view)
        if runner is None and generation.runners is not None:
            raise GenerationReplaced("the weights of this search have been replaced")
        self._inside += 1
        self._nobody_inside.clear()
        try:
            return await self._ask(runner, view, prepared, request_id, engine_s)
        finally:
            self._inside -= 1
            if not self._inside:
                self._nobody_inside.set()

    async def shut(self) -> None:
        """From now on nobody is let in; wait until who is inside is out."""
        self.is_shut = True
        await self._nobody_inside.wait()

    async def calm(self, at_most_s: float) -> None:
        """Wait until nobody is inside, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._nobody_inside.wait()

    def open(self) -> None:
        """Let searches in again."""
        self.is_shut = False

    async def _ask(
        self, runner: Any, view: CatalogueView, prepared: Prepared, request_id: str, engine_s: float
    ) -> Found:
        trie_filter = None if prepared.allowed is None else prepared.allowed.trie
        try:
            # The engine keeps its deadline itself; the timeout is for one that does not.
            async with asyncio.timeout(engine_s + ENGINE_GRACE_S):
                [hypotheses] = await self._engine.search(
                    [prepared.prompt],
                    prepared.beam_width,
                    trie_filter,
                    time.monotonic() + engine_s,
                    generation=runner,
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
