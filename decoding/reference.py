"""Two oracles for every engine, written to be read, not to be fast.

`brute_force` scores every allowed SID. `stepwise_beam` is beam search with Python lists. Both ask
the model for whole sequences from scratch, so they share neither caches, nor batches, nor the
expansion with the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.engine import Prompt
from index.trie import Trie, TrieFilter

SidScore = tuple[tuple[int, ...], float]


@dataclass(frozen=True, slots=True, eq=False)
class Oracle:
    """A model as functions. `hidden`: token ids (1, T) → final states (1, T, d).
    `level_output[l]`: (K_l, d). `sid_offset[l]`: first token id of level l."""

    hidden: Callable[[Tensor], Tensor]
    level_output: Sequence[Tensor]
    sid_offset: Sequence[int]

    def log_probabilities(self, prompt: Prompt, prefix: Sequence[int]) -> NDArray[np.float64]:
        """float64 (K,) of the code after `prefix`."""
        codes = [offset + code for offset, code in zip(self.sid_offset, prefix, strict=False)]
        token_ids = torch.tensor([[*prompt.token_ids.tolist(), *codes]])
        level = len(prefix)
        with torch.no_grad():
            state = self.hidden(token_ids)[0, -1].double()
        logits = (self.level_output[level].double() @ state).detach().numpy()
        if prompt.level_prior is not None:
            logits = logits + prompt.level_prior[level]
        logits = logits - logits.max()
        return logits - np.log(np.exp(logits).sum())


def allowed_sids(trie: Trie, filter: TrieFilter | None) -> list[tuple[int, ...]]:
    """All allowed SIDs in order."""
    sids = [tuple(codes) for codes in trie.layout.unpack(trie.keys).tolist()]
    if filter is None:
        return sids
    return [sid for sid, allowed in zip(sids, filter.bits[-1].tolist(), strict=True) if allowed]


def brute_force(
    oracle: Oracle, trie: Trie, prompt: Prompt, filter: TrieFilter | None = None
) -> list[SidScore]:
    """Every allowed SID with its score, best first, ties in SID order."""
    known: dict[tuple[int, ...], NDArray[np.float64]] = {}
    found: list[SidScore] = []
    for sid in allowed_sids(trie, filter):
        score = 0.0
        for level, code in enumerate(sid):
            prefix = sid[:level]
            if prefix not in known:
                known[prefix] = oracle.log_probabilities(prompt, prefix)
            score += float(known[prefix][code])
        found.append((sid, score))
    return sorted(found, key=lambda one: (-one[1], one[0]))


def stepwise_beam(
    oracle: Oracle,
    trie: Trie,
    prompt: Prompt,
    beam_width: int,
    filter: TrieFilter | None = None,
) -> list[SidScore]:
    """Beam search: at each level the best `beam_width` prefixes that lead to an allowed SID."""
    allowed = allowed_sids(trie, filter)
    beam: list[SidScore] = [((), 0.0)]
    for level in range(trie.layout.levels):
        children: dict[tuple[int, ...], set[int]] = {}
        for sid in allowed:
            children.setdefault(sid[:level], set()).add(sid[level])
        grown: list[SidScore] = []
        for prefix, score in beam:
            if prefix in children:
                scores = oracle.log_probabilities(prompt, prefix)
                grown += [
                    ((*prefix, code), score + float(scores[code])) for code in children[prefix]
                ]
        beam = sorted(grown, key=lambda found: (-found[1], found[0]))[:beam_width]
    return beam
