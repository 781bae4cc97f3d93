"""Sampled rollouts: SIDs drawn from the policy over the legal children, level by level.

    P(c | prefix) ∝ exp(z_c / T)      over the codes c that continue the prefix to an item

The native engine's decoder computes z with the weights in training, in memory: prompts are read
once, their rollouts share the keys and values. Beams take the best; a rollout is a draw, so a group
may hold the same SID twice. Every draw uses one number of the generator given, and products are
computed in the same way in every process: the same weights and generator give the same rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Prompt
from decoding.native.kv import BeamKV
from decoding.native.transformer import Decoder
from decoding.scoring import stacked_priors
from decoding.weights import DecoderWeights
from index.errors import ConfigError
from index.trie import Trie

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


class Rollouts(NamedTuple):
    """codes int64 (P, G, L); leaves int64 (P, G); chances float32 (P, G): log of the probability
    with which each was drawn."""

    codes: IntArray
    leaves: IntArray
    chances: FloatArray


@torch.inference_mode()
def sample_rollouts(
    weights: DecoderWeights,
    trie: Trie,
    prompts: Sequence[Prompt],
    group: int,
    random: np.random.Generator,
    *,
    temperature: float = 1.0,
) -> Rollouts:
    """`group` rollouts of each prompt. Raises ConfigError when nothing is legal."""
    if not trie.n_leaves:
        raise ConfigError("there is no legal SID to roll out; the catalogue is empty")
    decoder = Decoder(weights, measured=False)
    count, levels = len(prompts), trie.layout.levels
    priors = stacked_priors(prompts, trie.layout.level_sizes)
    context, hidden = decoder.prefill([prompt.token_ids for prompt in prompts])
    generated = BeamKV(weights.shape, levels - 1, count * group, decoder.dtype)
    codes = np.zeros((count * group, levels), np.int64)
    chances = np.zeros(count * group, np.float64)
    nodes = np.zeros(count, np.int64)
    counts = [group] * count
    for level in range(levels):
        logits = decoder.level_logits(hidden, level).numpy()
        if priors is not None:
            logits = logits + np.repeat(priors[level], len(logits) // count, axis=0)
        first, end = _children(trie, level, nodes)
        draws = group if level == 0 else 1
        nodes, drawn = _draw(logits / temperature, trie.codes[level], first, end, draws, random)
        codes[:, level] = trie.codes_at(level, nodes)
        chances += drawn
        if level < levels - 1:
            parents = np.arange(count * group) // (group if level == 0 else 1)
            tokens = codes[:, level] + weights.sid_offset[level]
            hidden = decoder.step(tokens, parents, counts, context, generated)
    return Rollouts(
        codes.reshape(count, group, levels),
        nodes.reshape(count, group),
        chances.reshape(count, group).astype(np.float32),
    )


def _children(trie: Trie, level: int, nodes: IntArray) -> tuple[IntArray, IntArray]:
    """The nodes of `level` below each row's node: first and end, int64 (rows,)."""
    if level:
        return trie.children(level - 1, nodes)
    return np.zeros(len(nodes), np.int64), np.full(len(nodes), trie.node_counts[0], np.int64)


def _draw(
    logits: FloatArray,
    codes: NDArray[np.uint8] | NDArray[np.uint16],
    first: IntArray,
    end: IntArray,
    draws: int,
    random: np.random.Generator,
) -> tuple[IntArray, NDArray[np.float64]]:
    """`draws` children of each row by the softmax over its children: nodes int64 (rows·draws,) and
    the logs of their probabilities. Inverse of the distribution function, all rows at once."""
    sizes = end - first
    starts = np.cumsum(sizes) - sizes
    row = np.repeat(np.arange(len(sizes)), sizes)
    child = np.arange(int(sizes.sum())) - np.repeat(starts - first, sizes)
    scores = logits[row, codes[child]].astype(np.float64)
    mass = np.exp(scores - np.maximum.reduceat(scores, starts)[row])
    share = mass / np.add.reduceat(mass, starts)[row]
    # Row r's values lie in (r, r + 1]: one sorted array, searched by r + u.
    below = np.cumsum(share)
    below -= (below[starts] - share[starts])[row]
    wanted = np.arange(len(sizes))[:, None] + random.random((len(sizes), draws))
    place = np.searchsorted(below + row, wanted.ravel(), side="right")
    place = np.clip(place, np.repeat(starts, draws), np.repeat(starts + sizes - 1, draws))
    return child[place], np.log(share[place])
