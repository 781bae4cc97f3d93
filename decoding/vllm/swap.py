"""New weights for a running vLLM, verified first; the engine goes on with the old ones otherwise.

vLLM loads into the tensors that are there and only warns of what is missing, goes on with nothing
when a path is wrong, and keeps keys and values of the old weights for its prefixes. So here: every
hash, tensor name, shape and number is checked before anything is touched; whole searches are
fenced, since a search is several requests to vLLM; the prefix cache is emptied, and that it was is
asked for; when loading fails the old checkpoint is loaded again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from safetensors import SafetensorError, safe_open

from decoding.errors import EngineClosed
from decoding.weights import CONFIG_FILE, SETTINGS_FILE, WEIGHTS_FILE, is_finite
from index import artifact
from index.errors import ArtifactError, ConfigError, OnesearchError
from index.sid import SidLayout

KIND = "checkpoint"
WORKER_EXTENSION = "decoding.vllm.worker_extension.ReplaceableWeights"
"""What the engine must be started with (`worker_extension_cls`)."""
REPLACE = "replace_weights"
OUTPUT = "lm_head.weight"
DRAIN_TIMEOUT_S = 120.0
RELOAD_TIMEOUT_S = 600.0
RESET_TRIES = 20
RESET_PAUSE_S = 0.05
# Keys of config.json that say nothing of the arithmetic.
_REMARKS = frozenset(
    (
        *("architectures", "transformers_version", "_name_or_path", "use_cache", "dtype"),
        *("torch_dtype", "pad_token_id", "eos_token_id", "bos_token_id", "initializer_range"),
    )
)
_NUMBER_TYPES = frozenset(("F32", "BF16", "F16"))
# What vLLM's loader would take beside model.safetensors.
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt")

Fence = Callable[[], AbstractAsyncContextManager[None]]


class WeightHolder(Protocol):
    """What of vLLM's AsyncLLM is used here."""

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ASYNC109  vLLM's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]: ...

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool: ...

    async def pause_generation(self, *, mode: Any = "abort", clear_cache: bool = True) -> None: ...

    async def resume_generation(self) -> None: ...


class SwapFailed(OnesearchError):
    """The new weights could not be loaded; the engine goes on with the old ones."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedCheckpoint:
    """A checkpoint directory as the engine sees it. `tensors`: shape of each by name, without the
    output matrix where it is the embedding's."""

    path: Path
    version: str
    config: Mapping[str, Any]
    layout: SidLayout
    sid_offset: tuple[int, ...]
    tensors: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> ServedCheckpoint:
        """Read what identifies it; with `verify` check every hash and every number.

        Raises ArtifactError naming the file, setting or tensor that is missing, damaged or wrong.
        """
        path = Path(path)
        manifest = artifact.read(path, KIND, verify=verify)
        _check_weight_files(path)
        config, settings = _read_json(path / CONFIG_FILE), _read_json(path / SETTINGS_FILE)
        try:
            layout = SidLayout.from_json(settings)
            sid_offset = tuple(int(offset) for offset in settings["sid_offset"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ArtifactError(
                f"{path / SETTINGS_FILE} has no valid SID layout: {error}"
            ) from None
        tensors = _read_shapes(path / WEIGHTS_FILE, check_numbers=verify)
        if config.get("tie_word_embeddings"):
            tensors.pop(OUTPUT, None)
        return cls(path.absolute(), manifest.version, config, layout, sid_offset, tensors)

    def check_replaces(self, running: ServedCheckpoint) -> None:
        """Raises ArtifactError unless an engine of `running` can take these weights as they are."""
        if (self.layout, self.sid_offset) != (running.layout, running.sid_offset):
            raise ArtifactError(
                f"checkpoint {self.path} has SID levels {self.layout.level_sizes} at "
                f"{self.sid_offset}, the running one has {running.layout.level_sizes} at "
                f"{running.sid_offset}; start a server for another codec"
            )
        for key in sorted((self.config.keys() | running.config.keys()) - _REMARKS):
            if self.config.get(key) != running.config.get(key):
                raise ArtifactError(
                    f"checkpoint {self.path}: {CONFIG_FILE} has {key} = {self.config.get(key)!r}, "
                    f"the running one has {running.config.get(key)!r}; start a server for another "
                    "model"
                )
        for name, shape in running.tensors.items():
            if name not in self.tensors:
                raise ArtifactError(f"checkpoint {self.path}: tensor {name} is missing")
            if self.tensors[name] != shape:
                raise ArtifactError(
                    f"checkpoint {self.path}: tensor {name} has shape {self.tensors[name]}, the "
                    f"running one has {shape}"
                )
        if unknown := self.tensors.keys() - running.tensors.keys():
            raise ArtifactError(f"checkpoint {self.path}: unexpected tensor {min(unknown)}")


async def swap_weights(
    llm: WeightHolder, fence: Fence, running: ServedCheckpoint, new: Path
) -> ServedCheckpoint:
    """Verify the checkpoint `new`, then load it into the engine that runs `running`.

    `fence` waits for running searches and holds new ones as long as its context is open. Returns
    what runs afterwards. Raises ArtifactError for a checkpoint that is refused (nothing was
    touched), SwapFailed when loading failed and the old weights are back, EngineClosed when even
    that failed: then the engine has no weights and must be started again.
    """
    checkpoint = await asyncio.to_thread(ServedCheckpoint.open, new)
    checkpoint.check_replaces(running)
    async with fence(), _paused(llm):
        try:
            await _load(llm, checkpoint.path)
        except BaseException as error:
            # Whoever was cancelled here believes that nothing was swapped: so be it.
            await _to_the_end(_restore(llm, running, error))
            if not isinstance(error, Exception):
                raise
            raise SwapFailed(
                f"checkpoint {checkpoint.path} could not be loaded ({_one_line(error)}); "
                f"{running.path} serves on"
            ) from error
    return checkpoint


async def _load(llm: WeightHolder, path: Path) -> None:
    async with asyncio.timeout(RELOAD_TIMEOUT_S):
        await llm.collective_rpc(REPLACE, args=(str(path),))
        await _empty_prefix_cache(llm)


async def _restore(llm: WeightHolder, running: ServedCheckpoint, cause: BaseException) -> None:
    try:
        await _load(llm, running.path)
    except Exception as error:
        raise EngineClosed(
            f"loading weights failed ({_one_line(cause)}), and so did loading {running.path} "
            f"again ({_one_line(error)})"
        ) from error


async def _empty_prefix_cache(llm: WeightHolder) -> None:
    """vLLM refuses while blocks are in use: those of requests that were just aborted."""
    for _ in range(RESET_TRIES):
        if await llm.reset_prefix_cache():
            return
        await asyncio.sleep(RESET_PAUSE_S)
    if not await llm.reset_prefix_cache(reset_running_requests=True):
        raise OnesearchError("the prefix cache could not be emptied")


@asynccontextmanager
async def _paused(llm: WeightHolder) -> AsyncGenerator[None, None]:
    """Nothing is left in vLLM, not even requests that were aborted a moment ago."""
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await llm.pause_generation(mode="wait", clear_cache=False)
        yield
    finally:
        await _to_the_end(llm.resume_generation())


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await it, however often whoever waits is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        # Of the task nothing is raised here, and who is cancelled now was to be ended anyway.
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    await task


def _check_weight_files(path: Path) -> None:
    for pattern in _WEIGHT_PATTERNS:
        for file in sorted(path.glob(pattern)):
            if file.name != WEIGHTS_FILE:
                raise ArtifactError(
                    f"{file} would be loaded beside {WEIGHTS_FILE}; a checkpoint has one file of "
                    "weights"
                )


def _read_shapes(path: Path, *, check_numbers: bool) -> dict[str, tuple[int, ...]]:
    """Of every tensor, from the header; `check_numbers` reads them one by one."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                shapes[name] = tuple(part.get_shape())
                if (kind := part.get_dtype()) not in _NUMBER_TYPES:
                    raise ArtifactError(
                        f"{path}: tensor {name} has type {kind}, expected one of "
                        f"{', '.join(sorted(_NUMBER_TYPES))}"
                    )
                if check_numbers and not is_finite(file.get_tensor(name)):
                    raise ArtifactError(f"{path}: tensor {name} has values that are not finite")
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    return shapes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
