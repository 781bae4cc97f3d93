"""Taste in the served ranking: who is known, who is not, and a catalogue that changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from index.errors import ConfigError
from index.live.view import CatalogueView
from index.rescoring import RescoringWeights
from index.snapshot import Snapshot
from index.taste import PersonalWeights, TasteTable, TasteWeights
from models.checkpoint import Checkpoint
from models.personal import PERSONAL, PersonalRanking, bonus_of
from models.ranking import Candidates, rank_candidates
from tests.conftest import TinyPair

WEIGHTS = PersonalWeights(RescoringWeights(0, 0, 0, 0, 0), TasteWeights(color=1.0))


@pytest.fixture
def view(tiny_pair: TinyPair) -> CatalogueView:
    return CatalogueView.of(Snapshot.open(tiny_pair.snapshot))


def test_a_history_moves_its_colour_up(view: CatalogueView) -> None:
    personal = PersonalRanking(WEIGHTS, view.base)
    rows = np.arange(35)
    found = Candidates(rows, np.zeros(35, np.float32), np.zeros(35, np.int64))
    # Rows 0 … 11 are red, 12 … 23 black, 24 … 34 white.
    weights, taste = bonus_of(personal, RescoringWeights(), np.array([13, 20]), rows, view)
    ranked = rank_candidates(view, weights, "desk", np.zeros(16, np.float32), found, taste)
    assert sorted(ranked.rows[:12].tolist()) == list(range(12, 24))
    table = TasteTable.of(view.base.items.table)
    expected = table.features([13, 20], rows, view.dense) @ WEIGHTS.taste.vector()
    assert taste is not None
    np.testing.assert_allclose(taste, expected)


def test_nobody_is_ranked_as_ever(view: CatalogueView) -> None:
    default, rows = RescoringWeights(), np.arange(5)
    nothing = np.zeros(0, np.int64)
    personal = PersonalRanking(WEIGHTS, view.base)
    assert bonus_of(personal, default, nothing, rows, view) == (default, None)
    assert bonus_of(None, default, np.array([3]), rows, view) == (default, None)


def test_a_checkpoint_says_how(tiny_pair: TinyPair) -> None:
    snapshot, checkpoint = Snapshot.open(tiny_pair.snapshot), Checkpoint.open(tiny_pair.checkpoint)
    assert PersonalRanking.of(checkpoint.settings.rescoring, snapshot) is None
    settings = replace(checkpoint.settings, rescoring={PERSONAL: WEIGHTS.to_json()})
    made = PersonalRanking.of(settings.rescoring, snapshot)
    assert made is not None
    assert made.weights == WEIGHTS
    with pytest.raises(ConfigError, match="number"):
        PersonalRanking.of({PERSONAL: {"dense": 1.0}}, snapshot)
