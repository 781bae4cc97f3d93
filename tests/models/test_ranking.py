from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from decoding.engine import Hypotheses
from index import rescoring
from index.items import ItemFilter
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from models.ranking import candidates_of, rank_candidates, rank_hypotheses, with_retrieved

WEIGHTS = RescoringWeights(sid=0.7, dense=3.0, lexical=2.0, popularity=0.5, price=0.1)
QUERY = "black steel lamp"


@pytest.fixture(scope="module")
def snapshot(tiny_pair: Any) -> Snapshot:
    return Snapshot.open(tiny_pair.snapshot)


def hypotheses(snapshot: Snapshot, count: int) -> Hypotheses:
    leaves = np.random.default_rng(0).permutation(snapshot.trie.n_leaves)[:count]
    scores = np.linspace(-1, -9, len(leaves)).astype(np.float32)
    levels = snapshot.layout.levels
    return Hypotheses(
        leaves=leaves,
        codes=snapshot.trie.codes_of_leaves(leaves),
        scores=scores,
        level_scores=np.repeat(scores[:, None] / levels, levels, axis=1),
        branching=np.ones((len(leaves), levels), np.int32),
        complete=True,
    )


def test_candidates_are_the_items_of_the_leaves(snapshot: Snapshot):
    found = hypotheses(snapshot, 6)
    made = candidates_of(snapshot, found.leaves, found.scores)
    leaf_of_row = snapshot.postings.leaf_of_row
    expected = {row for row, leaf in enumerate(leaf_of_row) if leaf in set(found.leaves.tolist())}
    assert set(made.rows.tolist()) == expected
    assert len(made.rows) == len(expected)
    for row, score, place in zip(*made, strict=True):
        assert found.leaves[place] == leaf_of_row[row]
        assert score == found.scores[place]


def test_the_filter_holds_for_items_that_share_a_sid(snapshot: Snapshot):
    shared = int(np.argmax(snapshot.postings.counts()))
    rows = np.flatnonzero(snapshot.postings.leaf_of_row == shared)
    assert len(rows) > 1
    mask = np.ones(len(snapshot.items), bool)
    mask[rows[0]] = False
    made = candidates_of(snapshot, np.array([shared]), np.zeros(1, np.float32), mask)
    assert sorted(made.rows.tolist()) == rows[1:].tolist()


def test_order_is_by_weighted_score(snapshot: Snapshot):
    embedding = snapshot.embed_queries([QUERY])[0]
    found = hypotheses(snapshot, snapshot.trie.n_leaves)
    ranked = rank_hypotheses(snapshot, WEIGHTS, QUERY, embedding, found)
    assert sorted(ranked.rows.tolist()) == list(range(len(snapshot.items)))
    sid_scores = found.scores[ranked.hypothesis]
    table = rescoring.features(embedding, QUERY, ranked.rows, sid_scores, snapshot)
    np.testing.assert_allclose(ranked.features, table, atol=1e-6)
    np.testing.assert_allclose(ranked.scores, table @ WEIGHTS.vector(), rtol=1e-5)
    assert (np.diff(ranked.scores) <= 0).all()
    assert snapshot.items.get(int(ranked.rows[0]))["title"] == QUERY


def test_candidates_from_outside_the_beam(snapshot: Snapshot):
    """NaN stands for an item that no hypothesis brought: ranked, below the beam by its SID part."""
    embedding = snapshot.embed_queries([QUERY])[0]
    found = hypotheses(snapshot, 5)
    inside = candidates_of(snapshot, found.leaves, found.scores)
    other = np.setdiff1d(np.arange(len(snapshot.items)), inside.rows)[:3]
    mixed = type(inside)(
        np.concatenate([inside.rows, other]),
        np.concatenate([inside.sid_scores, np.full(3, np.nan, np.float32)]),
        np.concatenate([inside.hypothesis, np.full(3, -1)]),
    )
    ranked = rank_candidates(snapshot, WEIGHTS, QUERY, embedding, mixed)
    assert np.isfinite(ranked.scores).all()
    outside = ranked.hypothesis == -1
    assert sorted(ranked.rows[outside].tolist()) == other.tolist()
    assert ranked.features[outside, 0].max() < ranked.features[~outside, 0].min()


def test_an_empty_answer_ranks_to_nothing(snapshot: Snapshot):
    embedding = snapshot.embed_queries([QUERY])[0]
    nothing = snapshot.items.mask(ItemFilter(price_min=1e9))
    ranked = rank_hypotheses(snapshot, WEIGHTS, QUERY, embedding, hypotheses(snapshot, 4), nothing)
    assert [len(part) for part in ranked] == [0, 0, 0, 0]
    none = hypotheses(snapshot, 0)
    assert len(rank_hypotheses(snapshot, WEIGHTS, QUERY, embedding, none).rows) == 0


def test_a_named_item_goes_first_and_keeps_to_the_filter(snapshot: Snapshot):
    query = "i35 black steel lamp"
    last = snapshot.items.row_of("i35")
    assert last is not None
    for text, first in (("i35", True), (query, False)):
        embedding = snapshot.embed_queries([text])[0]
        nothing = candidates_of(snapshot, np.empty(0, np.int64), np.empty(0, np.float32))
        made = with_retrieved(snapshot, text, embedding, nothing, None, 3)
        ranked = rank_candidates(snapshot, WEIGHTS, text, embedding, made)
        assert (ranked.rows[0] == last) == first
        assert (np.diff(ranked.scores) <= 0).all()
    mask = np.ones(len(snapshot.items), bool)
    mask[last] = False
    embedding = snapshot.embed_queries(["i35"])[0]
    made = with_retrieved(snapshot, "i35", embedding, nothing, mask, 3)
    assert last not in made.rows


def test_what_is_not_explained_is_ranked_alike(snapshot: Snapshot):
    embedding = snapshot.embed_queries([QUERY])[0]
    found = hypotheses(snapshot, 12)
    made = candidates_of(snapshot, found.leaves, found.scores)
    for weights in (WEIGHTS, replace(WEIGHTS, words=2.0)):
        whole = rank_candidates(snapshot, weights, QUERY, embedding, made)
        brief = rank_candidates(snapshot, weights, QUERY, embedding, made, explained=False)
        np.testing.assert_array_equal(whole.rows, brief.rows)
        np.testing.assert_array_equal(whole.scores, brief.scores)
        assert whole.features[:, 5].any()
        assert brief.features[:, 5].any() == (weights.words > 0)
