"""A tiny real decoder: two layers, three levels of sixteen codes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from decoding.native.runner import Runner
from decoding.reference import Oracle
from decoding.weights import DecoderWeights
from index.sid import SidLayout
from index.trie import Trie
from models.transformer import Qwen3, Qwen3Config

LAYOUT = SidLayout((16, 16, 16))
SID_OFFSET = (40, 56, 72)
VOCABULARY = 88


class Tiny(NamedTuple):
    model: Qwen3
    weights: DecoderWeights
    oracle: Oracle

    def runner(self, trie: Trie) -> Runner:
        return Runner(self.weights, trie)


def tiny(seed: int = 0, scale: float = 1.0, *, tied: bool = False, dtype=torch.float32) -> Tiny:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    generator = torch.Generator().manual_seed(seed)
    model = Qwen3(config).initialise(generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from the initial state, so that context and parents matter to the scores.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2).mul_(scale)
    weights = DecoderWeights.from_state_dict(
        config.to_json(), model.state_dict(), LAYOUT, SID_OFFSET, dtype=dtype
    )
    return Tiny(model, weights, Oracle(model.hidden, weights.level_output, SID_OFFSET))


def random_trie(seed: int, sids: int) -> Trie:
    codes = np.random.default_rng(seed).integers(0, 16, (sids, 3))
    return Trie.build(LAYOUT, LAYOUT.pack(codes))


@pytest.fixture(scope="session")
def decoder() -> Tiny:
    return tiny()


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., Tiny]:
    return tiny


@pytest.fixture(scope="session")
def make_trie() -> Callable[[int, int], Trie]:
    return random_trie


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
