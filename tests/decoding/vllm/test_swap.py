"""Weights replaced in a running vLLM: under load, tied and untied, and refused ones."""

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from decoding.engine import Prompt
from decoding.errors import EngineClosed, GenerationReplaced
from decoding.native.runner import Runner, Search
from decoding.vllm.swap import ServedCheckpoint, SwapFailed, swap_weights
from decoding.weights import CONFIG_FILE, SETTINGS_FILE, WEIGHTS_FILE, DecoderWeights
from index import artifact
from index.errors import ArtifactError
from index.trie import Trie

pytestmark = [
    pytest.mark.anyio,
    # vLLM and what it imports warn of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="needs vLLM's environment: make test-vllm"
)

WIDTH = 12
Write = Callable[..., Any]


def prompts(count: int) -> list[Prompt]:
    random = np.random.default_rng(5)
    return [Prompt(random.integers(2, 40, 70).astype(np.int32)) for _ in range(count)]


def native(checkpoint: Path, trie: Trie, asked: list[Prompt]) -> list[Any]:
    runner = Runner(DecoderWeights.from_directory(checkpoint), trie)
    return runner.run([Search(prompt, WIDTH) for prompt in asked])


def same(found: Any, wanted: Any) -> bool:
    return np.array_equal(found.codes, wanted.codes) and np.allclose(
        found.scores, wanted.scores, atol=1e-4
    )


def rewritten(source: Path, path: Path, **changes: Any) -> Path:
    """A copy with a manifest of its own. `config`, `settings`: keys to set; `tensors`: a function
    of the dictionary."""
    with artifact.create(path, "checkpoint") as draft:
        for name, given in ((CONFIG_FILE, "config"), (SETTINGS_FILE, "settings")):
            values = json.loads((source / name).read_bytes()) | changes.get(given, {})
            (draft.path / name).write_text(json.dumps(values))
        tensors = load_file(source / WEIGHTS_FILE)
        changes.get("tensors", lambda _: None)(tensors)
        save_file(tensors, draft.path / WEIGHTS_FILE)
        if "beside" in changes:
            (draft.path / changes["beside"]).write_bytes(b"")
    return path


@pytest.fixture
def pair(tmp_path: Path, write_tiny: Write) -> tuple[Path, Path]:
    """Two checkpoints that may replace each other."""
    for seed in (0, 1):
        write_tiny(tmp_path / f"seed{seed}", seed)
    return tmp_path / "seed0", tmp_path / "seed1"


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.pop(name)


def change(name: str, to: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.update({name: to(tensors[name])})


NORM = "model.norm.weight"
REFUSED = {
    "other levels": ({"settings": {"level_sizes": [16, 16, 8]}}, "has SID levels"),
    "other tokens": ({"settings": {"sid_offset": [39, 56, 72]}}, "has SID levels"),
    "no layout": ({"settings": {"sid_offset": "nope"}}, "no valid SID layout"),
    "other arithmetic": ({"config": {"rope_theta": 1e6}}, "has rope_theta = 1000000.0"),
    "other vocabulary": ({"config": {"vocab_size": 89}}, "has vocab_size = 89"),
    "missing tensor": ({"tensors": drop(NORM)}, "tensor model.norm.weight is missing"),
    "unknown tensor": (
        {"tensors": lambda tensors: tensors.update(more=tensors[NORM].clone())},
        "unexpected tensor more",
    ),
    "other shape": ({"tensors": change(NORM, lambda t: t[:-1].clone())}, r"has shape \(31,\)"),
    "not finite": ({"tensors": change(NORM, lambda t: t * np.nan)}, "not finite"),
    "other type": ({"tensors": change(NORM, lambda t: t.double())}, "has type F64"),
    "more weights": ({"beside": "other.safetensors"}, "would be loaded beside"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_that_does_not_fit_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, what: str
):
    changes, told = REFUSED[what]
    running = ServedCheckpoint.open(pair[0])
    other = rewritten(pair[1], tmp_path / "other", **changes)
    with pytest.raises(ArtifactError, match=told):
        ServedCheckpoint.open(other).check_replaces(running)


def test_remarks_in_the_config_do_not_matter(pair: tuple[Path, Path], tmp_path: Path):
    changes = {"transformers_version": "9", "torch_dtype": "bfloat16"}
    other = rewritten(pair[1], tmp_path / "other", config=changes)
    ServedCheckpoint.open(other).check_replaces(ServedCheckpoint.open(pair[0]))


class Holder:
    """Stands for a vLLM that fails: `failures` are raised by the next loads, in turn."""

    def __init__(self, *failures: BaseException | None, resets: bool = True) -> None:
        self.failures, self.resets = list(failures), resets
        self.loaded: list[str] = []
        self.paused = False

    async def collective_rpc(
        self,
        method: str,
        timeout: Any = None,  # noqa: ASYNC109  vLLM's own signature
        args: Any = (),
        kwargs: Any = None,
    ):
        assert self.paused
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.loaded.append(Path(args[0]).name)
        return [None]

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ):
        return self.resets or reset_running_requests

    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True):
        self.paused = True

    async def resume_generation(self):
        self.paused = False


@asynccontextmanager
async def no_fence():
    yield


async def test_a_load_that_fails_brings_the_old_weights_back(pair: tuple[Path, Path]):
    running = ServedCheckpoint.open(pair[0])
    holder = Holder(RuntimeError("disk"))
    with pytest.raises(SwapFailed, match=r"RuntimeError: disk.*seed0 serves on"):
        await swap_weights(holder, no_fence, running, pair[1])
    assert [holder.loaded, holder.paused] == [["seed0"], False]


async def test_who_is_cancelled_swapped_nothing(pair: tuple[Path, Path]):
    running = ServedCheckpoint.open(pair[0])
    holder = Holder(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await swap_weights(holder, no_fence, running, pair[1])
    assert [holder.loaded, holder.paused] == [["seed0"], False]


async def test_who_is_cancelled_again_has_the_old_weights_too(pair: tuple[Path, Path]):
    """While the old ones are loaded again."""
    running = ServedCheckpoint.open(pair[0])
    holder = Holder(asyncio.CancelledError())
    restoring, go_on = asyncio.Event(), asyncio.Event()
    load = holder.collective_rpc

    async def slow_load(*given: Any, **named: Any):
        if not holder.failures:
            restoring.set()
            await go_on.wait()
        return await load(*given, **named)

    holder.collective_rpc = slow_load
    task = asyncio.create_task(swap_weights(holder, no_fence, running, pair[1]))
    await restoring.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [holder.loaded, holder.paused] == [["seed0"], False]


async def test_an_engine_without_weights_is_closed(pair: tuple[Path, Path]):
    running = ServedCheckpoint.open(pair[0])
    with pytest.raises(EngineClosed, match=r"OSError: one.*so did loading.*OSError: two"):
        await swap_weights(Holder(OSError("one"), OSError("two")), no_fence, running, pair[1])


async def test_a_cache_in_use_is_emptied_by_force(pair: tuple[Path, Path], monkeypatch: Any):
    monkeypatch.setattr("decoding.vllm.swap.RESET_PAUSE_S", 0.0)
    running = ServedCheckpoint.open(pair[0])
    found = await swap_weights(Holder(resets=False), no_fence, running, pair[1])
    assert found.path == pair[1]


@needs_vllm
async def test_bad_checkpoints_leave_the_engine_as_it_was(
    vllm_engine: Any, pair: tuple[Path, Path], tmp_path: Path, tiny_trie: Trie
):
    from decoding.vllm.engine import VllmGeneration

    asked = prompts(1)
    [before] = await vllm_engine.search(asked, WIDTH)
    swaps = vllm_engine.stats().swaps
    corrupt = rewritten(pair[1], tmp_path / "corrupt")
    with (corrupt / WEIGHTS_FILE).open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\xff")
    missing = rewritten(pair[1], tmp_path / "missing", tensors=drop(NORM))
    other = rewritten(pair[1], tmp_path / "other", settings={"level_sizes": [16, 16, 8]})
    for path, told in (
        (corrupt, "differs from its manifest"),
        (missing, "is missing"),
        (other, "has SID levels"),
        (tmp_path / "nowhere", "is not there"),
    ):
        with pytest.raises(ArtifactError, match=told):
            await vllm_engine.swap(VllmGeneration(path, tiny_trie))
        [after] = await vllm_engine.search(asked, WIDTH)
        assert np.array_equal(after.scores, before.scores)
        assert np.array_equal(after.codes, before.codes)
    assert vllm_engine.stats().swaps == swaps


@needs_vllm
async def test_a_swap_under_load_fails_nothing_and_mixes_nothing(
    vllm_engine: Any, pair: tuple[Path, Path], tiny_trie: Trie
):
    from decoding.vllm.engine import VllmGeneration

    first = vllm_engine.live
    generations = [first, VllmGeneration(pair[1], tiny_trie)]
    asked = prompts(4)
    truth = [native(one.checkpoint, tiny_trie, asked) for one in generations]
    assert not any(same(*both) for both in zip(*truth, strict=True))
    live, stop, seen = 0, asyncio.Event(), [0, 0]

    async def client(number: int) -> None:
        while not stop.is_set():
            swapped = live
            [found] = await vllm_engine.search([asked[number]], WIDTH)
            which = [same(found, answers[number]) for answers in truth]
            assert sum(which) == 1
            # Whoever asks after a swap gets the new weights.
            assert which[live] or swapped != live or swapping
            seen[which.index(True)] += 1

    swapping = False
    async with asyncio.TaskGroup() as group:
        for number in range(len(asked)):
            group.create_task(client(number))
        for turn in range(4):
            await asyncio.sleep(0.2)
            swapping = True
            await vllm_engine.swap(generations[(turn + 1) % 2])
            live = (turn + 1) % 2
            swapping = False
        await asyncio.sleep(0.2)
        stop.set()
    assert min(seen) > 3
    assert vllm_engine.live is first


@needs_vllm
async def test_searches_for_weights_that_are_gone_are_told(
    vllm_engine: Any, pair: tuple[Path, Path], tiny_trie: Trie
):
    from decoding.vllm.engine import VllmGeneration

    first, asked = vllm_engine.live, prompts(1)
    await vllm_engine.swap(VllmGeneration(pair[1], tiny_trie))
    with pytest.raises(GenerationReplaced):
        await vllm_engine.search(asked, WIDTH, generation=first)
    await vllm_engine.swap(first)
    assert len(await vllm_engine.search(asked, WIDTH, generation=first)) == 1


@needs_vllm
async def test_no_keys_or_values_of_old_weights_are_left(
    vllm_engine: Any, pair: tuple[Path, Path], tiny_trie: Trie
):
    from decoding.vllm.engine import VllmGeneration

    token_ids: list[int] = prompts(1)[0].token_ids.tolist()
    first = vllm_engine.live
    await cached_tokens(vllm_engine, token_ids)
    assert await cached_tokens(vllm_engine, token_ids) == len(token_ids) // 32 * 32
    await vllm_engine.swap(VllmGeneration(pair[1], tiny_trie))
    assert await cached_tokens(vllm_engine, token_ids) == 0
    await vllm_engine.swap(first)
    assert await cached_tokens(vllm_engine, token_ids) == 0


async def cached_tokens(engine: Any, token_ids: list[int]) -> int:
    """How many tokens of a prompt vLLM finds in its prefix cache."""
    from vllm import SamplingParams

    async def ask() -> int:
        parameters = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
        prompt = {"prompt_token_ids": token_ids}
        number = 0
        async for answer in engine.llm.generate(prompt, parameters, request_id="cached"):
            number = answer.num_cached_tokens
        return number

    return await engine.run(ask())


@needs_vllm
async def test_tied_weights_are_swapped_whole(tmp_path: Path, write_tiny: Write, tiny_trie: Trie):
    """On a CPU the output matrix has a packed copy, which vLLM does not pack again."""
    from decoding.vllm.engine import VllmEngine, VllmGeneration
    from decoding.vllm.settings import VllmSettings

    paths = [tmp_path / "tied0", tmp_path / "tied1"]
    for seed, path in enumerate(paths):
        write_tiny(path, seed, tied=True)
    asked = prompts(4)
    settings = VllmSettings(max_rows=128, max_batched_tokens=1024, kv_cache_gb=0.1)
    engine = await VllmEngine.open(paths[0], tiny_trie, settings)
    try:
        fresh = await engine.search(asked, WIDTH)
        for path, wanted in (
            (paths[1], native(paths[1], tiny_trie, asked)),
            (paths[0], fresh),
        ):
            await engine.swap(VllmGeneration(path, tiny_trie))
            found = await engine.search(asked, WIDTH)
            assert all(same(*both) for both in zip(found, wanted, strict=True))
    finally:
        await engine.close()
