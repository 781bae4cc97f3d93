"""One vLLM: an AsyncLLM, its process, and our rounds over it.

All is done on one event loop, which starting and stopping block for seconds.
"""

# vLLM lives in another environment than the one that is checked.
# pyright: reportMissingImports=false, reportUnknownParameterType=false
from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from decoding.vllm.driver import BeamDriver
from decoding.vllm.rounds import Rounds
from decoding.vllm.rows import Vocabulary
from decoding.vllm.swap import ServedCheckpoint
from decoding.vllm.worker_extension import END_WITH_PARENT
from decoding.weights import DecoderShape
from index.errors import ArtifactError, OnesearchError

SHUTDOWN_GRACE_S = 10.0
"""vLLM's process takes about three seconds to end; after this time it is killed."""


Result = TypeVar("Result")


class VllmProcess:
    """Made by `start`; once stopped or ended it is of no more use."""

    def __init__(self, llm: Any, vocabulary: Vocabulary, on_end: Callable[[], None]) -> None:
        self.llm = llm
        self._stopped = False
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_end = on_end
        self.rounds = Rounds(llm, self._ended)
        self.driver = BeamDriver(self.rounds, vocabulary)

    @classmethod
    async def start(
        cls, arguments: Mapping[str, Any], vocabulary: Vocabulary, on_end: Callable[[], None]
    ) -> VllmProcess:
        """`arguments`: of AsyncEngineArgs. `on_end` is called on this loop when vLLM ends without
        having been stopped. Raises OnesearchError when it does not start."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            with _unnamed_main():
                llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except Exception as error:
            raise OnesearchError(f"vLLM did not start: {type(error).__name__}: {error}") from error
        process = cls(llm, vocabulary, on_end)
        try:
            await process.collective_rpc(END_WITH_PARENT)
        except BaseException:
            process.stop()
            raise
        return process

    @property
    def ended(self) -> bool:
        """Whether vLLM answers no more."""
        return self._stopped or bool(self.llm.errored)

    @property
    def process_ids(self) -> list[int]:
        """Of vLLM's own processes."""
        manager = self.llm.engine_core.resources.engine_manager
        return [process.pid for process in manager.processes]

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ASYNC109  vLLM's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """This and the next three are vLLM's. They raise OnesearchError when vLLM ends meanwhile:
        its own would wait for ever."""
        return await self._answer(self.llm.collective_rpc(method, timeout, args, kwargs))

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """See vLLM."""
        return await self._answer(
            self.llm.reset_prefix_cache(reset_running_requests, reset_connector)
        )

    async def pause_generation(self, *, mode: Any = "abort", clear_cache: bool = True) -> None:
        """See vLLM."""
        await self._answer(self.llm.pause_generation(mode=mode, clear_cache=clear_cache))

    async def resume_generation(self) -> None:
        """See vLLM."""
        await self._answer(self.llm.resume_generation())

    def stop(self) -> None:
        """End it. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        context = self.llm.engine_core.ctx
        self.llm.shutdown(timeout=SHUTDOWN_GRACE_S)
        # vLLM closes its sockets, but not their context, of which this is a shadow.
        context._shadow_obj.destroy(linger=0)
        # vLLM's finaliser would do it again, perhaps when the interpreter is half gone.
        self.llm.shutdown = _nothing

    async def _answer(self, call: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait([task, self._end], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise OnesearchError("vLLM has ended")
            return task.result()
        finally:
            task.cancel()

    def _ended(self) -> None:
        if not self._end.done():
            self._end.set_result(None)
        if not self._stopped:
            self._on_end()


def check_heads(served: ServedCheckpoint) -> None:
    """Raises ArtifactError for heads that vLLM's CPU kernels do not know: it would end at the first
    request."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    shape, known = DecoderShape.from_json(served.config), _head_sizes(CPUAttentionBackend)
    if shape.head_dim not in known:
        raise ArtifactError(
            f"checkpoint {served.path} has heads of {shape.head_dim} numbers, vLLM on a CPU takes "
            f"{', '.join(map(str, known))}; use the native engine"
        )


def _head_sizes(backend: Any) -> list[int]:
    return backend.get_supported_head_sizes()


def _nothing(timeout: float | None = None) -> None: ...


@contextmanager
def _unnamed_main() -> Generator[None, None, None]:
    """Processes that start in the block do not run the main module again.

    They would load llvmlite with it, of which an object makes vLLM's worker on a CPU fail: it asks
    the variables of everything that is loaded for its kernels.
    """
    main = sys.modules["__main__"]
    spec, file = main.__spec__, getattr(main, "__file__", None)
    main.__spec__, main.__file__ = None, None
    try:
        yield
    finally:
        main.__spec__, main.__file__ = spec, file
