"""The methods' candidates and weights: what is served is what is evaluated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from decoding.engine import Hypotheses
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.ranking import rank_candidates
from models.training.rankers import (
    EXTRA_METHODS,
    METHODS,
    RESCORED,
    Searchers,
    answer,
    by_probability,
    embedded,
    fit_weights,
    ranker,
)
from models.training.run_evaluate import searchers_of, weights_of
from server.candidates import chosen_candidates
from server.settings import RETRIEVAL_CANDIDATES

BEAM = 4
RETRIEVED = 5
QUERIES = ["red desk", "steel lamp", "white chair"]


@pytest.fixture(scope="module")
def searchers(tiny_pair: Any) -> Searchers:
    checkpoint = Checkpoint.open(tiny_pair.checkpoint)
    made = searchers_of(Snapshot.open(tiny_pair.snapshot), checkpoint, BEAM)
    return replace(made, retrieved=RETRIEVED)


def test_what_is_evaluated_is_what_the_server_ranks(searchers: Searchers):
    answers = answer(searchers, QUERIES)
    evaluated = ranker("generative", searchers, answers)
    for i, query in enumerate(QUERIES):
        embedding, beam = answers.embeddings[i], answers.hypotheses[i]
        chosen = chosen_candidates(
            searchers.snapshot, query, embedding, beam, None, searchers.retrieved
        )
        weights = searchers.weights_of("generative")
        served = rank_candidates(searchers.snapshot, weights, query, embedding, chosen)
        assert evaluated(i)[0].tolist() == served.rows.tolist()


def test_as_many_are_retrieved_as_the_server_retrieves(tiny_pair: Any):
    snapshot, checkpoint = Snapshot.open(tiny_pair.snapshot), Checkpoint.open(tiny_pair.checkpoint)
    assert searchers_of(snapshot, checkpoint, BEAM).retrieved == RETRIEVAL_CANDIDATES


def test_without_retrieval_only_the_beam_is_ranked(searchers: Searchers):
    answers = answer(searchers, QUERIES)
    alone = replace(searchers, retrieved=0)
    for i in range(len(QUERIES)):
        beam, _ = ranker("generative_beam", searchers, answers)(i)
        assert set(beam) == set(ranker("generative", alone, answers)(i)[0])
        assert set(beam) < set(ranker("generative", searchers, answers)(i)[0])


def test_no_decoder_gets_the_same_candidates_to_choose_from(searchers: Searchers):
    answers = answer(searchers, QUERIES)
    for i in range(len(QUERIES)):
        beam = ranker("generative_beam", searchers, answers)(i)[1]
        assert ranker("codec_beam", searchers, answers)(i)[1] == beam
        retrieved = set(ranker("hybrid_rescored", searchers, answers)(i)[0])
        assert retrieved <= set(ranker("codec_only", searchers, answers)(i)[0])
        assert retrieved <= set(ranker("generative", searchers, answers)(i)[0])


def test_a_budget_stands_for_the_beam(searchers: Searchers):
    asked = embedded(searchers, QUERIES)
    assert ranker("codec_beam", searchers, asked, 7)(0)[1] == 7


@pytest.mark.parametrize("method", METHODS + EXTRA_METHODS)
def test_no_method_ranks_an_item_twice(searchers: Searchers, method: str):
    rows, count = ranker(method, searchers, answer(searchers, QUERIES))(0)
    assert len(set(rows.tolist())) == len(rows) == count


def test_items_share_the_probability_of_their_sid(tiny_pair: Any):
    snapshot = Snapshot.open(tiny_pair.snapshot)
    counts = snapshot.postings.counts()
    crowded, alone = int(np.argmax(counts)), int(np.argmin(counts))
    assert counts[crowded] > 1 and counts[alone] == 1
    leaves = np.array([crowded, alone])
    levels = snapshot.layout.levels

    def beam(*scores: float) -> Hypotheses:
        parts = np.zeros((2, levels), np.float32)
        return Hypotheses(
            leaves,
            snapshot.trie.codes_of_leaves(leaves),
            np.array(scores, np.float32),
            parts,
            parts.astype(np.int32),
            complete=True,
        )

    share = float(np.log(counts[crowded]))
    likelier = by_probability(snapshot, beam(-1.0, -1.0 - 0.5 * share))
    assert snapshot.postings.leaf_of_row[likelier[0]] == alone
    much_likelier = by_probability(snapshot, beam(-1.0, -1.1 - share))
    assert snapshot.postings.leaf_of_row[much_likelier[0]] == crowded
    assert sorted(likelier) == sorted(much_likelier)


def test_fitted_weights_favour_what_finds_the_relevant_item(searchers: Searchers):
    snapshot = searchers.snapshot
    titles = [str(snapshot.items.get(row)["title"]) for row in range(30)]
    relevant = {text: np.array([row]) for row, text in enumerate(titles)}
    fitted = fit_weights(searchers, relevant)
    assert set(fitted) == set(RESCORED)
    # The queries are the titles themselves: words and vectors agree with the right item.
    assert all(weights.dense > 0 and weights.lexical > 0 for weights in fitted.values())


def test_weights_of_a_checkpoint(tiny_pair: Any):
    checkpoint = Checkpoint.open(tiny_pair.checkpoint)
    mine = RescoringWeights(1, 2, 3, 4, 5, 6, "mine").to_json()
    other = RescoringWeights(dense=7, version="other").to_json()

    def fitted(rescoring: dict[str, Any]) -> dict[str, RescoringWeights]:
        return weights_of(
            replace(checkpoint, settings=replace(checkpoint.settings, rescoring=rescoring))
        )

    assert fitted({}) == {}
    found = fitted(mine | {"codec_only": other, "fitted_at_beam": 128})
    assert found["generative"].version == "mine" and found["codec_only"].version == "other"
    assert set(found) == {"generative", "codec_only"}
