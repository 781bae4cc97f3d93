"""Rounds of one-token requests to vLLM: all of a beam's rows out together, their answers back.

vLLM's own way makes one coroutine, one queue and one output object per request, and a Python object
per log-probability. Here a round is one future: `RoundOutputs` sits in the place of AsyncLLM's
output processor, keeps for itself the raw arrays of requests that belong to a round, and hands all
others on. Requests are encoded as they are sent, so one object serves a whole round.
"""

# vLLM lives in another environment than the one that is checked.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import OutputProcessor

from decoding.vllm.round_names import request_names
from index.errors import OnesearchError


class Row(NamedTuple):
    """One request: what is to be continued, by how it is constrained (decoding/vllm/arguments.py),
    and how many log-probabilities are wanted."""

    token_ids: list[int]
    arguments: dict[str, Any]
    wanted: int


class Answer(NamedTuple):
    """The best tokens of a row, int32 (n,), and their log-probabilities, float32 (n,), falling."""

    token_ids: NDArray[np.int32]
    scores: NDArray[np.float32]


class _Round:
    """Answers of one round, as they come."""

    def __init__(self, rows: int) -> None:
        self.answers: list[Answer | None] = [None] * rows
        self.missing = rows
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, position: int, answer: Answer) -> None:
        self.answers[position] = answer
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class RoundOutputs(OutputProcessor):
    """vLLM's output processor, but for the requests of rounds. `waiting`: round and place of each
    by request id. `on_end`: called when vLLM ends by itself."""

    waiting: dict[str, tuple[_Round, int]]
    on_end: Callable[[], None]

    @classmethod
    def instead_of(cls, other: OutputProcessor, on_end: Callable[[], None]) -> RoundOutputs:
        """One that takes the place of vLLM's, with its state."""
        outputs = cls.__new__(cls)
        outputs.__dict__.update(other.__dict__)
        outputs.waiting = {}
        outputs.on_end = on_end
        return outputs

    def process_outputs(self, engine_core_outputs: list[Any], *arguments: Any, **named: Any) -> Any:
        others: list[Any] = []
        for output in engine_core_outputs:
            entry = self.waiting.get(output.request_id)
            if entry is None:
                others.append(output)
            elif output.finish_reason is not None:
                del self.waiting[output.request_id]
                self._settle(*entry, output)
        return super().process_outputs(others, *arguments, **named)

    def propagate_error(self, e: Exception) -> None:
        for entry, _ in self.waiting.values():
            entry.fail(OnesearchError(f"vLLM ended: {type(e).__name__}: {e}"))
        self.waiting.clear()
        super().propagate_error(e)
        self.on_end()

    def _settle(self, entry: _Round, position: int, output: Any) -> None:
        found = output.new_logprobs
        if found is None:
            entry.fail(OnesearchError(f"vLLM ended a request: {output.finish_reason}"))
            return
        # The sampled token comes first, then the best ones, it among them.
        entry.settle(position, Answer(found.logprob_token_ids[0, 1:], found.logprobs[0, 1:]))


class Rounds:
    """Sends rounds through an AsyncLLM. Used on the AsyncLLM's event loop; `on_end` is called there
    when vLLM ends by itself."""

    def __init__(self, llm: AsyncLLM, on_end: Callable[[], None]) -> None:
        self._llm = llm
        self._outputs = RoundOutputs.instead_of(llm.output_processor, on_end)
        llm.output_processor = self._outputs
        # The task that takes outputs knows the processor it was started with.
        if llm.output_handler is not None:
            llm.output_handler.cancel()
            llm.output_handler = None
        llm._run_output_handler()  # pyright: ignore[reportPrivateUsage]
        self._numbers = itertools.count()
        # Encoded by value when a request is sent; see the module's head.
        self._params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=1,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            skip_clone=True,
        )

    @property
    def waiting(self) -> int:
        """Requests that are not answered."""
        return len(self._outputs.waiting)

    async def ask(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer per row. Whoever is cancelled here leaves no request behind."""
        entry = _Round(len(rows))
        waiting = self._outputs.waiting
        names = request_names(next(self._numbers), len(rows))
        try:
            for position, (name, row) in enumerate(zip(names, rows, strict=True)):
                waiting[name] = (entry, position)
                await self._send(name, row)
            await entry.done
        finally:
            if entry.missing:
                await self._abort(name for name in names if waiting.pop(name, None))
        return [answer for answer in entry.answers if answer is not None]

    async def _send(self, name: str, row: Row) -> None:
        self._params.logprobs = row.wanted
        self._params.extra_args = row.arguments
        await self._llm.engine_core.add_request_async(
            EngineCoreRequest(
                request_id=name,
                external_req_id=name,
                prompt_token_ids=row.token_ids,
                mm_features=None,
                sampling_params=self._params,
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
        )

    async def _abort(self, names: Iterable[str]) -> None:
        await self._llm.engine_core.abort_requests_async(list(names))
