"""How far a trained decoder is trusted beside its codebook prior.

    z_l = s_l · h·W_lᵀ + β·⟨e, C_l⟩          s_1 for the first level, one s for all further ones

A decoder trained for minutes is too sure of itself on queries it never saw: the beam then spends
its width on the many codes of a few guesses. The factors are chosen by the share of validation
queries' relevant items among the beam's items, and multiplied into the output rows of their level,
so no engine knows of them. Who trains on divides by them first (`undo`): they would multiply from
stage to stage, and each stage chooses its own when it is done. Queries without histories say
nothing of how far a history is to be trusted: of decoders that were trained on histories callers
give none, and the factors of the stage before are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.native.runner import Runner
from decoding.weights import DecoderWeights
from index.snapshot import Snapshot
from models.checkpoint import CheckpointSettings
from models.prompt import PromptBuilder
from models.query import QueryPrompts
from models.ranking import candidates_of
from models.tokenizer import Tokenizer
from models.training.rankers import Searchers, answer
from models.transformer import Qwen3

IntArray = NDArray[np.int64]
FURTHER_FACTORS = (1.0, 0.5, 0.2)
FIRST_FACTORS = (1.0, 0.7, 0.5)
MAX_QUERIES = 300


def calibrate(
    model: Qwen3,
    tokenizer: Tokenizer,
    settings: CheckpointSettings,
    snapshot: Snapshot,
    relevant: Mapping[str, IntArray],
    beam_width: int,
    earlier: Sequence[float] = (),
) -> tuple[float, ...]:
    """Scale the output rows of `model` in place; the factor of each level.

    Without queries in `relevant` those are taken that an `earlier` stage chose. All 1, and nothing
    changed: without these either, without a prior, or where output rows are the input rows too.
    """
    levels = len(settings.level_sizes)
    unchanged = (1.0,) * levels
    tied = model.config.tie_word_embeddings
    if tied or settings.level_prior_beta == 0:
        return unchanged
    if not relevant:
        factors = tuple(earlier) or unchanged
        _scale(model, tokenizer, model.lm_head.weight.detach().clone(), factors)
        return factors
    chosen = dict(list(relevant.items())[:MAX_QUERIES])
    prompts = QueryPrompts(
        snapshot.codec, PromptBuilder(tokenizer, settings.prompt), settings.level_prior_beta
    )
    original = model.lm_head.weight.detach().clone()

    def recall(factors: tuple[float, ...]) -> float:
        _scale(model, tokenizer, original, factors)
        tensors = dict(model.state_dict())
        weights = DecoderWeights.from_state_dict(
            model.config.to_json(), tensors, snapshot.layout, tokenizer.sid_offset
        )
        runner = Runner(weights, snapshot.trie, measured=False)
        searchers = Searchers(snapshot, prompts, runner.search_batch, beam_width, {})
        beams = answer(searchers, list(chosen)).hypotheses
        shares = [
            np.isin(wanted, candidates_of(snapshot, beam.leaves, beam.scores).rows).mean()
            for beam, wanted in zip(beams, chosen.values(), strict=True)
        ]
        return float(np.mean(shares))

    best, found = unchanged, recall(unchanged)
    further = FURTHER_FACTORS if levels > 1 else (1.0,)
    for first, rest in product(FIRST_FACTORS, further):
        factors = (first, *(rest,) * (levels - 1))
        if factors != unchanged and (share := recall(factors)) > found:
            best, found = factors, share
    _scale(model, tokenizer, original, best)
    return best


def undo(model: Qwen3, tokenizer: Tokenizer, factors: Sequence[float]) -> None:
    """Bring a model that `calibrate` gave these factors back to how it was trained, in place."""
    with torch.no_grad():
        for level, factor in enumerate(factors):
            if factor != 1:
                model.lm_head.weight[tokenizer.level_slice(level)] /= factor


def _scale(
    model: Qwen3, tokenizer: Tokenizer, original: torch.Tensor, factors: tuple[float, ...]
) -> None:
    """Write the original output rows, those of each level multiplied by its factor."""
    with torch.no_grad():
        weight = model.lm_head.weight
        weight.copy_(original)
        for level, factor in enumerate(factors):
            weight[tokenizer.level_slice(level)] *= factor
