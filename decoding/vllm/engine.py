"""vLLM behind the engine's contract: beams over AsyncLLM, on an event loop in a thread of its own.

So the gateway's loop never waits for vLLM's messages, nor for its start. Searches run as many at a
time as the rows of a batch allow, the others wait in their order; a fence holds all of them while
weights are replaced, so that no search mixes two sets. There is one set of weights at a time: who
names a generation that has been replaced gets `GenerationReplaced` and prepares the search again.

When vLLM's process ends by itself, it is started again with the checkpoint that was live. Until
then searches get `EngineRestarting` at once.
"""

# vLLM lives in another environment than the one that is checked.
# pyright: reportMissingImports=false, reportUnknownParameterType=false
from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from decoding.beam import check_filter
from decoding.engine import EngineStats, Hypotheses, Prompt
from decoding.errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineOverloaded,
    EngineRestarting,
    GenerationReplaced,
)
from decoding.scoring import check_prompt, check_search
from decoding.vllm.gate import Gate
from decoding.vllm.loop_thread import LoopThread
from decoding.vllm.process import VllmProcess, check_heads
from decoding.vllm.processor import read_vocabulary
from decoding.vllm.rows import Vocabulary
from decoding.vllm.settings import VllmSettings
from decoding.vllm.swap import ServedCheckpoint, SwapFailed, swap_weights
from decoding.weights import DecoderShape
from index.errors import ArtifactError, OnesearchError
from index.live.trie import AnyTrie
from index.trie import Trie, TrieFilter

SMOOTHING = 0.2
"""Weight of the newest search in the smoothed times."""
MIN_RETRY_S = 0.01
CLOSE_TIMEOUT_S = 60.0
RESTART_PAUSE_S = 1.0
"""Between two attempts; doubled each time."""
LONGEST_RESTART_PAUSE_S = 60.0
WARM_UP_WIDTH = 4

_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class VllmGeneration:
    """What `swap` takes: a checkpoint directory and the trie it decodes into."""

    checkpoint: Path
    trie: Trie


@dataclass(slots=True)
class _Counters:
    searches: int = 0
    prompts: int = 0
    rows: int = 0
    expired: int = 0
    shed: int = 0
    cancelled: int = 0
    failed: int = 0
    swaps: int = 0
    restarts: int = 0
    search_s: float = 0.0
    row_s: float = 0.0


class VllmEngine:
    """Implements `decoding.engine.Engine`. Made by `open`; methods may be called on any loop."""

    def __init__(
        self, settings: VllmSettings, generation: VllmGeneration, served: ServedCheckpoint
    ) -> None:
        self.settings = settings
        self._live = generation
        self._served = served
        self._counters = _Counters()
        self._thread = LoopThread("vllm-engine")
        self._closed = False
        self._restarting = False
        self._restart: asyncio.Task[None] | None = None
        self._vocabulary: Vocabulary
        self._longest_prompt: int
        self._tokens: int
        self._arguments: dict[str, Any]
        self._process: VllmProcess
        self._gate: Gate

    @classmethod
    async def open(
        cls,
        checkpoint: Path,
        trie: Trie,
        settings: VllmSettings | None = None,
        *,
        snapshot: Path | None = None,
        verify: bool = True,
    ) -> VllmEngine:
        """Start vLLM with a checkpoint: seconds to a minute. `trie`: of the snapshot it belongs to;
        `snapshot`: its directory, for requests that do not come through this engine.

        Raises ArtifactError for a damaged checkpoint or one that does not fit the trie,
        OnesearchError when vLLM does not start.
        """
        settings = settings or VllmSettings()
        served = await asyncio.to_thread(ServedCheckpoint.open, checkpoint, verify=verify)
        if served.layout != trie.layout:
            raise ArtifactError(
                f"the weights decode {served.layout.level_sizes} codes per level, "
                f"the trie has {trie.layout.level_sizes}; they are of different codecs"
            )
        engine = cls(settings, VllmGeneration(served.path, trie), served)
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                await engine._thread.run(engine._start(snapshot))
        except TimeoutError:
            await engine.close()
            raise OnesearchError(
                f"vLLM did not start within {settings.start_timeout_s:.0f} s"
            ) from None
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def live(self) -> VllmGeneration:
        """What answers searches that name no generation."""
        return self._live

    @property
    def llm(self) -> Any:
        """The AsyncLLM. Its coroutines run on `run`'s loop only."""
        return self._process.llm

    @property
    def process_ids(self) -> list[int]:
        """Of vLLM's own processes."""
        return self._process.process_ids

    async def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on vLLM's event loop."""
        return await self._thread.run(coroutine)

    async def search(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None = None,
        deadline: float | None = None,
        *,
        generation: VllmGeneration | None = None,
        trie: AnyTrie | None = None,
    ) -> list[Hypotheses]:
        """See `Engine.search`. Raises GenerationReplaced too."""
        searched = self._live.trie if trie is None else trie
        layout = self._vocabulary.layout
        check_search(layout, searched.layout, beam_width)
        check_filter(searched, filter)
        for prompt in prompts:
            check_prompt(prompt, layout.level_sizes, self._tokens, self._longest_prompt)
        if self._closed:
            raise EngineClosed("the engine is closed")
        if not prompts:
            return []
        if self._restarting:
            raise EngineRestarting("vLLM ended and is being started again")
        return await self._thread.run(
            self._search(prompts, beam_width, filter, deadline, generation, searched)
        )

    async def swap(self, generation: VllmGeneration, /) -> None:
        """Verify a checkpoint and load it over the live one, between searches: those that run end
        first, those that come wait. Raises ArtifactError for one that is refused, and SwapFailed;
        the live one serves on, if need be after a restart. See decoding/vllm/swap.py."""
        if self._closed:
            raise EngineClosed("the engine is closed")
        await self._thread.run(self._swap(generation))

    @asynccontextmanager
    async def fence(self) -> AsyncGenerator[None, None]:
        """On vLLM's loop (`run`): wait until running searches end; none begins in the block."""
        async with self._gate.fence():
            yield

    @property
    def unanswered(self) -> int:
        """Requests that are in vLLM for searches; 0 when idle."""
        return self._process.rounds.waiting

    def stats(self) -> EngineStats:
        counters, gate = self._counters, self._gate
        return EngineStats(
            queued_prompts=gate.queued_prompts,
            queued_rows=gate.queued_rows,
            running_prompts=gate.running_prompts,
            waves=counters.searches,
            prompts=counters.prompts,
            rows=counters.rows,
            expired=counters.expired,
            shed=counters.shed,
            cancelled=counters.cancelled,
            failed=counters.failed,
            swaps=counters.swaps,
            wave_s=counters.search_s,
            restarts=counters.restarts,
            restarting=self._restarting,
        )

    async def close(self) -> None:
        """Idempotent. Running searches end and answer; waiting ones get EngineClosed."""
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._thread.run(self._stop())
        finally:
            await asyncio.to_thread(self._thread.stop)

    async def _start(self, snapshot: Path | None) -> None:
        """On vLLM's loop. Blocks it for seconds; nothing else is on it yet."""
        os.environ.update(self.settings.environment())
        self._vocabulary = read_vocabulary(self._served.path)
        if self.settings.device == "cpu":
            check_heads(self._served)
        levels = self._vocabulary.layout.levels
        positions = DecoderShape.from_directory(self._served.path).max_positions
        self._longest_prompt = min(self.settings.max_prompt_tokens, positions - levels)
        self._tokens = int(self._served.config["vocab_size"])
        self._gate = Gate(self.settings.max_rows)
        self._arguments = self.settings.engine_arguments(
            self._served.path, snapshot, self._longest_prompt + levels
        )
        await self._start_process()

    async def _start_process(self) -> None:
        arguments = self._arguments | {"model": str(self._served.path)}
        self._process = await VllmProcess.start(arguments, self._vocabulary, self._ended)
        # Kernels are compiled at their first use, here and in vLLM's process.
        warm_up = Prompt(np.zeros(1, dtype=np.int32))
        await self._process.driver.search(warm_up, WARM_UP_WIDTH, None, self._live.trie)

    def _ended(self) -> None:
        """vLLM has ended by itself, or has no weights. On its loop."""
        if self._closed or self._restarting:
            return
        self._restarting = True
        _LOG.error("vLLM has ended; it is started again with %s", self._served.path)
        self._restart = asyncio.get_running_loop().create_task(self._start_again())

    async def _start_again(self) -> None:
        pause_s = RESTART_PAUSE_S
        # Running searches have failed, or do now.
        async with self._gate.fence():
            while True:
                self._process.stop()
                try:
                    await self._start_process()
                    break
                except Exception as error:  # noqa: BLE001  vLLM's are of any kind
                    _LOG.error("vLLM does not start: %s; again in %.0f s", error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_RESTART_PAUSE_S)
            self._counters.restarts += 1
            self._restarting = False
        _LOG.warning("vLLM answers again")

    async def _stop(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait([self._restart])
        if hasattr(self, "_process"):
            await self._gate.close()
            self._process.stop()

    async def _search(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None,
        deadline: float | None,
        generation: VllmGeneration | None,
        trie: AnyTrie,
    ) -> list[Hypotheses]:
        """On vLLM's loop."""
        counters = self._counters
        rows = min(beam_width, max(trie.n_leaves, 1)) * len(prompts)
        self._admit(rows, len(prompts), deadline)
        try:
            async with asyncio.timeout(_until(deadline)), self._gate.search(rows, len(prompts)):
                # Behind the gate, since weights are replaced while searches wait there.
                if generation is not None and generation is not self._live:
                    raise GenerationReplaced("the weights of this search have been replaced")
                begun = time.monotonic()
                found = await self._all(prompts, beam_width, filter, trie)
        except TimeoutError:
            counters.expired += len(prompts)
            raise DeadlineExceeded("the search was not done in time and was dropped") from None
        except asyncio.CancelledError:
            counters.cancelled += len(prompts)
            raise
        except GenerationReplaced:
            # Nothing failed: the search is asked again.
            raise
        except OnesearchError:
            counters.failed += len(prompts)
            raise
        except Exception as error:
            counters.failed += len(prompts)
            raise OnesearchError(f"vLLM failed: {type(error).__name__}: {error}") from error
        ended = time.monotonic()
        self._learn(ended - begun, rows, len(prompts))
        return [replace(one, began=begun, ended=ended) for one in found]

    async def _all(
        self,
        prompts: Sequence[Prompt],
        beam_width: int,
        filter: TrieFilter | None,
        trie: AnyTrie,
    ) -> list[Hypotheses]:
        driver = self._process.driver
        if len(prompts) == 1:
            return [await driver.search(prompts[0], beam_width, filter, trie)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(driver.search(prompt, beam_width, filter, trie))
                    for prompt in prompts
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _admit(self, rows: int, prompts: int, deadline: float | None) -> None:
        """Raises EngineOverloaded where waiting is in vain."""
        gate, counters = self._gate, self._counters
        before = gate.queued_rows + gate.running_rows
        wait = counters.row_s * (before + rows)
        if gate.queued_rows and gate.queued_rows + rows > self.settings.queue_rows:
            counters.shed += prompts
            raise EngineOverloaded(f"{gate.queued_rows} beam rows are waiting", wait + MIN_RETRY_S)
        # With nothing before it a search is tried, however dear the last ones were.
        if deadline is None or not before:
            return
        left = max(deadline - time.monotonic(), 0.0)
        if wait > left:
            counters.shed += prompts
            raise EngineOverloaded(
                f"about {wait * 1000:.0f} ms to wait, {left * 1000:.0f} ms left",
                max(wait - left, MIN_RETRY_S),
            )

    def _learn(self, seconds: float, rows: int, prompts: int) -> None:
        """What a search cost, and a row: while others ran too, its part of the time."""
        counters = self._counters
        counters.searches += 1
        counters.prompts += prompts
        counters.rows += rows
        running = max(self._gate.running_rows + rows, 1)
        weight = SMOOTHING if counters.searches > 1 else 1.0
        counters.search_s += weight * (seconds - counters.search_s)
        counters.row_s += weight * (seconds / running - counters.row_s)

    async def _swap(self, generation: VllmGeneration) -> None:
        if generation.trie.layout != self._vocabulary.layout:
            raise ArtifactError(
                f"the trie of {generation.checkpoint} has {generation.trie.layout.level_sizes} "
                f"codes per level, the running one {self._vocabulary.layout.level_sizes}; start a "
                "server for another codec"
            )

        @asynccontextmanager
        async def fence() -> AsyncGenerator[None, None]:
            async with self._gate.fence():
                yield
                # Before the next search begins.
                self._live = generation

        process, running = self._process, self._served
        try:
            self._served = await swap_weights(process, fence, running, generation.checkpoint)
        except (ArtifactError, SwapFailed):
            raise
        except Exception as error:
            if process is not self._process:
                # It waited until another was started.
                await self._swap(generation)
                return
            if not (isinstance(error, EngineClosed) or process.ended):
                raise
            # It has no weights any more, or there is no it.
            self._ended()
            raise SwapFailed(
                f"checkpoint {generation.checkpoint} was not loaded: vLLM failed and is started "
                f"again with {running.path}"
            ) from error
        self._counters.swaps += 1


def _until(deadline: float | None) -> float | None:
    """Seconds that are left; the deadline's clock need not be the event loop's."""
    return None if deadline is None else deadline - time.monotonic()
