"""Requests that no driver made, as they come to a stock server: one engine, the processor in it."""

import asyncio
import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from decoding.engine import Prompt
from decoding.vllm.engine import VllmEngine

pytestmark = pytest.mark.anyio

OFFSET, END_TOKEN, LEVELS = (40, 56, 72), 1, 3
NUMBERS = itertools.count()


async def generated(engine: VllmEngine, prompts, arguments, **params) -> list[list[int]]:
    """Output tokens of requests that run at the same time."""

    async def one(prompt, extra_args) -> list[int]:
        number = next(NUMBERS)
        settings = SamplingParams(
            max_tokens=LEVELS + 2, detokenize=False, extra_args=extra_args, seed=number, **params
        )
        given = {"prompt_token_ids": prompt}
        async for output in engine.llm.generate(given, settings, f"plain-{number}"):
            last = output
        return list(last.outputs[0].token_ids)

    async def every() -> list[list[int]]:
        pairs = zip(prompts, arguments, strict=True)
        return await asyncio.gather(*(one(prompt, extra) for prompt, extra in pairs))

    return await engine.run(every())


def sid_of(tokens: list[int]) -> tuple[int, ...]:
    """Of one output: a SID and the end token, nothing else."""
    assert len(tokens) == LEVELS + 1 and tokens[-1] == END_TOKEN
    return tuple(token - offset for token, offset in zip(tokens, OFFSET, strict=False))


def drawn(count: int) -> list[list[int]]:
    random = np.random.default_rng(count)
    return [random.integers(2, 40, int(random.integers(2, 60))).tolist() for _ in range(count)]


@pytest.fixture
def sids(tiny_trie) -> set[tuple[int, ...]]:
    return {tuple(sid) for sid in tiny_trie.layout.unpack(tiny_trie.keys).tolist()}


async def test_greedy_output_is_legal_and_follows_the_scores(vllm_engine, tiny_model, sids):
    prompts = drawn(24)
    found = await generated(vllm_engine, prompts, [{"sid_constrained": True}] * 24, temperature=0)
    for prompt, tokens in zip(prompts, found, strict=True):
        best = tiny_model.runner.search_batch([Prompt(np.array(prompt, dtype=np.int32))], 1)[0]
        assert sid_of(tokens) == tuple(best.codes[0].tolist())
        assert sid_of(tokens) in sids


@pytest.mark.parametrize("params", [{}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 2.0}])
async def test_sampled_output_is_legal(vllm_engine, sids, params):
    prompts = drawn(32)
    arguments = [{"sid_prefix": []}] * 32
    found = await generated(vllm_engine, prompts, arguments, **{"temperature": 1, **params})
    assert {sid_of(tokens) for tokens in found} <= sids
    assert len({tuple(tokens) for tokens in found}) > 8


async def test_each_request_of_a_batch_has_its_own_constraint(vllm_engine, sids):
    """Prefixes, filters, priors and requests without a constraint side by side."""
    prompts = drawn(40)
    kinds = [
        {"sid_filter": ["<a_7><b_7>", "<a_3>"]},
        {"sid_prior": [50.0 if code == 3 else 0.0 for code in range(16)]},
        {"sid_constrained": 1},
        None,
    ]
    arguments = [kinds[number % 4] for number in range(40)]
    found = await generated(vllm_engine, prompts, arguments, temperature=1, ignore_eos=False)
    for number in range(0, 40, 4):
        sid = sid_of(found[number])
        assert sid in sids and (sid[:2] == (7, 7) or sid[0] == 3)
        assert sid_of(found[number + 1]) == (3, 0, 0)
        assert sid_of(found[number + 2]) in sids
    free = [tokens for number, tokens in enumerate(found) if number % 4 == 3]
    assert any(token < OFFSET[0] for tokens in free for token in tokens)


async def test_a_prefix_is_continued(vllm_engine, sids):
    prompts = [[*prompt, OFFSET[0] + 7, OFFSET[1] + 7] for prompt in drawn(8)]
    found = await generated(vllm_engine, prompts, [{"sid_prefix": [7, 7]}] * 8, temperature=1)
    for tokens in found:
        assert len(tokens) == 2 and tokens[1] == END_TOKEN
        assert (7, 7, tokens[0] - OFFSET[2]) in sids


async def test_a_prior_changes_scores_by_the_rule(vllm_engine, tiny_model):
    prior = np.random.default_rng(0).normal(0, 3, (3, 16)).astype(np.float32)
    prompts = drawn(12)
    found = await generated(
        vllm_engine, prompts, [{"sid_prior": prior.ravel().tolist()}] * 12, temperature=0
    )
    for prompt, tokens in zip(prompts, found, strict=True):
        asked = Prompt(np.array(prompt, dtype=np.int32), tuple(prior))
        [best] = tiny_model.runner.search_batch([asked], 1)
        assert sid_of(tokens) == tuple(best.codes[0].tolist())


async def test_scores_come_back_as_log_probabilities(vllm_engine, tiny_model, tiny_trie):
    async def ask():
        settings = SamplingParams(
            max_tokens=1, detokenize=False, logprobs=16, extra_args={"sid_constrained": True}
        )
        async for output in vllm_engine.llm.generate({"prompt_token_ids": [5, 6]}, settings, "one"):
            last = output
        return last.outputs[0].logprobs[0]

    found = await vllm_engine.run(ask())
    prompt = Prompt(np.array([5, 6], dtype=np.int32))
    expected = torch.from_numpy(tiny_model.oracle.log_probabilities(prompt, []))
    legal = np.unique(tiny_trie.codes[0]).tolist()
    assert {token for token, one in found.items() if one.logprob > -np.inf} == {
        OFFSET[0] + code for code in legal
    }
    for code in legal:
        assert found[OFFSET[0] + code].logprob == pytest.approx(float(expected[code]), abs=1e-4)


async def test_wrong_arguments_are_refused_and_the_engine_goes_on(vllm_engine, sids):
    for arguments in ({"sid_prefix": "7"}, {"sid_filter": []}, {"sid_prior": [float("nan")]}):
        with pytest.raises(VLLMValidationError, match=next(iter(arguments))):
            await generated(vllm_engine, [[5, 6]], [arguments])
    # What only the trie can tell is not known to the frontend here: such a request ends at once.
    [tokens] = await generated(vllm_engine, [[5, 6]], [{"sid_prefix": [3, 9]}])
    assert tokens == [END_TOKEN]
    [tokens] = await generated(vllm_engine, [[5, 6]], [{"sid_constrained": True}])
    assert sid_of(tokens) in sids
